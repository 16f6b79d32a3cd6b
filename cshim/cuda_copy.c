/*
 * cuda_copy.c - puts a task's copies onto a lane's streams, by the method that was asked for.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_device.h"
#include "status.h"
#include "thread.h"

/* Links a submission together; lives on the submitting thread's stack. */
typedef struct submission {
    kvf_task *task;
    kvf_cuda_device *device;
    const kvf_cuda_driver *cu;
    kvf_lane *lane;
    bool patient; /* may wait for staging */
    bool touched; /* something that writes the destination was queued */
    int near;     /* slabs: the side in device memory */
    double *offsets;
    uint32_t chunk;
    uint32_t program;
} submission;

static int32_t check_sides(submission *s, const kvf_program *program);
static int32_t copy_rows(submission *s, const kvf_nest *nest, cu_stream stream);
static int32_t copy_pitched(submission *s, const kvf_nest *nest);
static int32_t copy_batched(submission *s, const kvf_nest *nest, cu_stream stream);
static int32_t copy_by_kernel(submission *s, const kvf_nest *nest, int side, bool bulk, uint32_t ctas, uint32_t threads);
static int32_t copy_by_slab(submission *s, const kvf_nest *nest);
static int32_t submit_programs(submission *s);
static int32_t complete(submission *s, int32_t status);

static int32_t failed(submission *s, cu_result result, const char *what) {
    return kvf_cuda_failed(s->device, result, what);
}

/* ---- submitting ------------------------------------------------------------------------------------------------ */

kvf_direction kvf_hop_direction(const kvf_hop *hop) {
    if (hop->programs == 0) return KVF_ON_DEVICE;
    const kvf_program *program = &hop->program[0];
    if (program->src_kind == 0) return KVF_TO_DEVICE;
    return program->dst_kind == 0 ? KVF_TO_HOST : KVF_ON_DEVICE;
}

/* A free lane of the direction, locked; NULL when none is free and the caller cannot wait. */
static kvf_lane *take_lane(kvf_cuda_device *device, kvf_direction direction, bool patient) {
    unsigned turn = atomic_fetch_add(&device->turn[direction], 1);
    for (unsigned i = 0; i < KVF_LANES; i++) {
        kvf_lane *lane = &device->lane[direction][(turn + i) % KVF_LANES];
        if (pthread_mutex_trylock(&lane->lock) == 0) return lane;
    }
    if (!patient) return NULL;
    kvf_lane *lane = &device->lane[direction][turn % KVF_LANES];
    pthread_mutex_lock(&lane->lock);
    return lane;
}

int32_t kvf_task_submit(kvf_task *task, bool patient, bool *touched) {
    submission s = {.task = task, .device = task->device, .cu = kvf_cuda_driver_get(), .patient = patient};
    *touched = false;
    task->direction = kvf_hop_direction(&task->hop);
    task->begun = kvf_now_nanos();
    if (kvf_task_waits(task)) {
        if (!task->lane && !(task->lane = kvf_lane_take_own(s.device))) return KVF_E_NOMEM;
        s.lane = task->lane;
        pthread_mutex_lock(&s.lane->lock);
    } else if (!(s.lane = take_lane(s.device, task->direction, patient))) return KVF_AGAIN;
    if (!s.lane->ready && !patient && !task->foreign) {
        pthread_mutex_unlock(&s.lane->lock);
        return KVF_AGAIN;
    }
    int32_t status = kvf_cuda_enter(s.device);
    if (status != KVF_OK) {
        pthread_mutex_unlock(&s.lane->lock);
        return status;
    }
    status = task->foreign ? kvf_lane_side(s.device, s.lane) : kvf_lane_prepare(s.device, s.lane);
    if (status == KVF_OK && task->method == KVF_CUDA_METHOD_SLAB) status = kvf_lane_copies(s.device, s.lane);
    if (status == KVF_OK && !task->done && !(task->done = kvf_cuda_event_take(s.device))) status = KVF_E_CUDA;
    if (status == KVF_OK) {
        status = submit_programs(&s);
        if (status == KVF_OK || s.touched) {
            int32_t ended = complete(&s, status);
            if (status == KVF_OK) status = ended;
            *touched = s.touched || ended == KVF_OK;
        }
    }
    free(s.offsets);
    kvf_cuda_leave();
    pthread_mutex_unlock(&s.lane->lock);
    return status;
}

/* Makes the side stream wait for all that was queued. */
static int32_t join(submission *s) {
    kvf_lane *lane = s->lane;
    cu_stream streams[3] = {lane->work, lane->copy[0], lane->copy[1]};
    for (int i = 0; i < 3; i++) {
        if (i > 0 && !lane->used_copy[i - 1]) continue;
        cu_result result = s->cu->event_record(lane->join[i], streams[i]);
        if (result == CU_OK) result = s->cu->stream_wait(lane->side, lane->join[i], 0);
        if (result != CU_OK) return failed(s, result, "CUDA: streams could not be joined");
    }
    return KVF_OK;
}

static void on_mark(void *argument) {
    kvf_mark *mark = argument;
    kvf_task *task = mark->task;
    if (!atomic_load(&task->settled)) kvf_job_progress(task->context, task->slot, mark->programs, mark->bytes);
}

/* Queues the events that the program waits for. Slabs read the host side on streams of their own: those wait too. */
static int32_t queue_waits(submission *s, uint32_t program, bool first) {
    kvf_task *task = s->task;
    bool any = first && task->before;
    cu_result result = CU_OK;
    if (any) result = s->cu->stream_wait(s->lane->work, task->before, 0);
    for (uint32_t i = 0; i < task->wait_count && result == CU_OK; i++) {
        if ((uint32_t)task->waits[2 * i] != program) continue;
        any = true;
        result = s->cu->stream_wait(s->lane->work, (cu_event)(uintptr_t)task->waits[2 * i + 1], 0);
    }
    if (result == CU_OK && any && task->method == KVF_CUDA_METHOD_SLAB) {
        result = s->cu->event_record(s->lane->join[0], s->lane->work);
        for (uint32_t i = 0; i < s->device->tuning.slab_streams && result == CU_OK; i++) result = s->cu->stream_wait(s->lane->copy[i], s->lane->join[0], 0);
    }
    return result == CU_OK ? KVF_OK : failed(s, result, "CUDA: an event could not be waited for");
}

static int32_t submit_programs(submission *s) {
    kvf_task *task = s->task;
    const kvf_cuda_tuning *tuning = &s->device->tuning;
    s->lane->used_copy[0] = s->lane->used_copy[1] = false;
    double bytes = 0;
    if (task->hop.programs == 0 && !task->foreign) { /* nothing to copy, but somebody may be waiting for what comes before */
        int32_t status = queue_waits(s, 0, true);
        if (status != KVF_OK) return status;
    }
    for (uint32_t i = 0; i < task->hop.programs; i++) {
        const kvf_program *program = &task->hop.program[i];
        if (s->touched && kvf_job_cancelled(task->context, task->slot))
            return kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled after %u of %u programs", i, task->hop.programs);
        kvf_nest nest;
        kvf_nest_from(&nest, program);
        s->program = i;
        int32_t status = KVF_OK;
        if (program->bytes > 0) status = check_sides(s, program);
        if (status == KVF_OK) status = queue_waits(s, i, i == 0);
        if (status != KVF_OK) return status;
        const bool on_device = program->src_kind == 1 && program->dst_kind == 1;
        const int host = program->src_kind == 0 ? KVF_SRC : KVF_DST;
        if (program->bytes > 0) switch (task->method) {
            case KVF_CUDA_METHOD_DMA: status = copy_rows(s, &nest, s->lane->work); break;
            case KVF_CUDA_METHOD_PITCHED: status = copy_pitched(s, &nest); break;
            case KVF_CUDA_METHOD_BATCH: status = copy_batched(s, &nest, s->lane->work); break;
            case KVF_CUDA_METHOD_KERNEL: {
                uint32_t own = on_device ? tuning->device_ctas * (uint32_t)s->device->sms : tuning->link_ctas;
                kvf_nest_order(&nest, host);
                status = copy_by_kernel(s, &nest, host, false, task->width ? task->width : own, on_device ? tuning->device_threads : tuning->link_threads);
                break;
            }
            case KVF_CUDA_METHOD_BULK: {
                uint32_t own = on_device ? (uint32_t)s->device->sms : tuning->bulk_ctas;
                kvf_nest_order(&nest, host);
                status = copy_by_kernel(s, &nest, host, true, task->width ? task->width : own, tuning->bulk_warps * 32);
                break;
            }
            case KVF_CUDA_METHOD_SLAB:
                s->near = 1 - host;
                status = copy_by_slab(s, &nest);
                break;
            default: status = kvf_refuse(KVF_E_INVALID, "CUDA: there is no copy method %u", task->method);
        }
        if (status != KVF_OK) return status;
        bytes += (double)program->bytes;
        if (task->marks && i + 1 < task->hop.programs) {
            status = join(s);
            if (status != KVF_OK) return status;
            task->marks[i] = (kvf_mark){task, i + 1, bytes};
            cu_result result = s->cu->stream_call(s->lane->side, on_mark, &task->marks[i]);
            if (result != CU_OK) return failed(s, result, "CUDA: progress could not be queued");
        }
    }
    if (task->foreign) {
        cu_result result = s->cu->stream_wait(s->lane->side, task->foreign, 0);
        if (result != CU_OK) return failed(s, result, "CUDA: an event could not be waited for");
    }
    return KVF_OK;
}

/* Queues the completion behind everything. `status` other than KVF_OK: part was queued, and the job ends with that once
 * the part is over. */
static int32_t complete(submission *s, int32_t status) {
    kvf_task *task = s->task;
    kvf_lane *lane = s->lane;
    const kvf_cuda_driver *cu = s->cu;
    task->status = status;
    task->done_flags = status == KVF_OK && !s->touched ? 0 : KVF_DONE_TOUCHED;
    task->value = status == KVF_OK ? (double)task->hop.bytes : 0;
    task->side = lane->side;
    if (status != KVF_OK) strncpy(task->text, kvf_error_text(), sizeof task->text - 1);
    const bool copies = lane->used_copy[0] || lane->used_copy[1];
    /* Marks are called on the side stream: the end comes behind them, or they would find the task gone. */
    const bool joined = copies || task->marks;
    cu_stream last = task->foreign || joined ? lane->side : lane->work;
    int32_t ended = joined ? join(s) : KVF_OK;
    task->last = last;
    const bool flagged = s->device->tuning.look && kvf_task_flag(task);
    kvf_task_started(task);
    if (ended == KVF_OK) {
        cu_result result = CU_OK;
        if (task->stream && (task->flags & KVF_CUDA_CALLER_WAITS)) {
            result = cu->event_record(task->done, last);
            if (result == CU_OK) result = cu->stream_wait(task->stream, task->done, 0);
            task->recorded = true;
        }
        if (result == CU_OK && flagged) {
            const uint32_t *flag = s->device->flags + (task->flag - 1) * KVF_FLAG_WORDS;
            result = cu->stream_write(last, (cu_pointer)(uintptr_t)flag, task->number, 0);
        }
        if (result != CU_OK) ended = failed(s, result, "CUDA: the completion could not be queued");
        else if (flagged) kvf_task_look(task);
        else ended = kvf_task_call(task);
    }
    if (ended != KVF_OK) { /* nobody will call: what was queued may still run */
        kvf_task_settle(task, ended, s->touched ? KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT : 0, 0, kvf_error_text());
        s->touched = true;
        if (lane->work) cu->stream_synchronize(lane->work);
        cu->stream_synchronize(lane->side);
        atomic_store(&task->over, true);
    }
    return ended;
}

/* ---- what may be touched ---------------------------------------------------------------------------------------- */

/* A kernel that is given a wrong address ends the context for everybody: every base's extent is proven first. */
static int32_t check_sides(submission *s, const kvf_program *program) {
    const uint32_t method = s->task->method;
    const bool kernel = method == KVF_CUDA_METHOD_KERNEL || method == KVF_CUDA_METHOD_BULK || method == KVF_CUDA_METHOD_SLAB;
    const uint32_t kinds[2] = {program->src_kind, program->dst_kind}, devices[2] = {program->src_device, program->dst_device};
    if (method == KVF_CUDA_METHOD_SLAB && (kinds[0] == kinds[1]))
        return kvf_refuse(KVF_E_INVALID, "CUDA: a slab copy has one side in host and one in device memory");
    for (int side = 0; side < 2; side++) {
        const char *name = side == KVF_SRC ? "source" : "destination";
        if (kinds[side] > 1) return kvf_refuse(KVF_E_INVALID, "CUDA: program %u: the %s is neither host nor device memory", s->program, name);
        const bool by_driver = !kernel || (method == KVF_CUDA_METHOD_SLAB && kinds[side] == 0);
        if (kinds[side] == 0 && by_driver) continue; /* the driver checks */
        uint64_t low, high;
        bool known = kvf_cuda_knows_side(s->device, program, side, &low, &high);
        if (!known && kinds[side] == 1) { /* what was opened for this device is known; another device's own is to be reached first */
            int32_t status = kvf_cuda_device_reach(s->device, (int)devices[side]);
            if (status != KVF_OK) return status;
            known = kvf_cuda_knows_side(s->device, program, side, &low, &high);
        }
        if (!known)
            return kvf_refuse(KVF_E_INVALID, "CUDA: program %u: the %s, %llu bytes at 0x%llx, is not %s", s->program, name,
                              (unsigned long long)(high - low), (unsigned long long)low, kinds[side] == 1 ? "memory of this device" : "pinned memory");
    }
    return KVF_OK;
}

/* ---- DMA --------------------------------------------------------------------------------------------------------- */

static int32_t copy_rows(submission *s, const kvf_nest *nest, cu_stream stream) {
    kvf_walk walk;
    kvf_span span;
    kvf_walk_open(&walk, nest);
    while (kvf_walk_next(&walk, &span)) {
        cu_result result = s->cu->copy(span.dst, span.src, span.bytes, stream);
        if (result != CU_OK) return failed(s, result, "CUDA: a copy could not be queued");
        s->touched = true;
    }
    return KVF_OK;
}

static int32_t copy_batched(submission *s, const kvf_nest *nest, cu_stream stream) {
    const kvf_cuda_driver *cu = s->cu;
    if (!cu->batch8 && !cu->batch9) return copy_rows(s, nest, stream);
    kvf_lane *lane = s->lane;
    kvf_walk walk;
    kvf_span span = {0};
    kvf_walk_open(&walk, nest);
    for (bool more = true; more;) {
        size_t count = 0;
        uint64_t bytes = 0;
        while (count < KVF_BATCH && (more = kvf_walk_next(&walk, &span))) {
            lane->batch_src[count] = span.src;
            lane->batch_dst[count] = span.dst;
            lane->batch_bytes[count++] = span.bytes;
            bytes += span.bytes;
        }
        if (count == 0) break;
        cu_result result;
        if (count <= 2) { /* one descriptor or two: the plain call is cheaper */
            result = cu->copy(lane->batch_dst[0], lane->batch_src[0], lane->batch_bytes[0], stream);
            if (result == CU_OK && count == 2) result = cu->copy(lane->batch_dst[1], lane->batch_src[1], lane->batch_bytes[1], stream);
        } else {
            cu_copy_attributes attributes = {.order = 1, .flags = bytes / count <= 128u << 10 ? 1 : 0};
            size_t at = 0, wrong = 0;
            result = cu->batch8 ? cu->batch8(lane->batch_dst, lane->batch_src, lane->batch_bytes, count, &attributes, &at, 1, stream)
                                : cu->batch9(lane->batch_dst, lane->batch_src, lane->batch_bytes, count, &attributes, &at, 1, &wrong, stream);
        }
        if (result != CU_OK) return failed(s, result, "CUDA: a batch of copies could not be queued");
        s->touched = true;
        if (kvf_job_cancelled(s->task->context, s->task->slot)) return kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled between batches");
    }
    return KVF_OK;
}

static int32_t copy_pitched(submission *s, const kvf_nest *nest) {
    kvf_nest order = *nest;
    kvf_nest_order(&order, KVF_DST);
    const uint32_t loops = order.loops;
    cu_copy3d box;
    memset(&box, 0, sizeof box);
    box.src_type = box.dst_type = CU_MEMORY_UNIFIED;
    box.width = order.row;
    box.height = loops > 0 ? order.count[loops - 1] : 1;
    box.depth = loops > 1 ? order.count[loops - 2] : 1;
    bool fits = loops <= 2;
    for (int side = 0; side < 2 && fits; side++) {
        const int64_t *stride = order.side[side].stride;
        int64_t pitch = loops > 0 ? stride[loops - 1] : (int64_t)order.row, slice = loops > 1 ? stride[0] : pitch * (int64_t)box.height;
        fits = pitch >= (int64_t)order.row && pitch < INT32_MAX && slice % pitch == 0 && slice / pitch >= (int64_t)box.height;
        if (!fits) break;
        if (side == KVF_SRC) box.src_pitch = (size_t)pitch, box.src_height = (size_t)(slice / pitch);
        else box.dst_pitch = (size_t)pitch, box.dst_height = (size_t)(slice / pitch);
    }
    if (!fits) return kvf_refuse(KVF_E_INVALID, "CUDA: program %u is not pitched: %u loops", s->program, loops);
    kvf_nest corners = order; /* one row of one byte for each box */
    corners.loops = 0;
    corners.row = 1;
    kvf_walk walk;
    kvf_walk_open(&walk, &corners);
    for (uint64_t left = corners.bases * corners.blocks; left > 0; left--) {
        box.src_device = walk.at[KVF_SRC];
        box.dst_device = walk.at[KVF_DST];
        cu_result result = s->cu->copy3d(&box, s->lane->work);
        if (result != CU_OK) return failed(s, result, "CUDA: a pitched copy could not be queued");
        s->touched = true;
        kvf_walk_step(&walk);
    }
    return KVF_OK;
}

/* ---- kernels ------------------------------------------------------------------------------------------------------- */

typedef struct launch {
    submission *s;
    int side;
    bool bulk;
    bool sends; /* lists go to device memory: many warps will read them; across the link they are read where they are */
    uint32_t ctas, threads;
} launch;

/* Room for `bytes` of lists in the lane's staging. KVF_AGAIN: the oldest upload is not over and the caller is impatient. */
static int32_t stage_lists(submission *s, uint32_t bytes, uint32_t *at) {
    kvf_lane *lane = s->lane;
    if (!lane->list_device) {
        if (!s->patient && !s->touched) return KVF_AGAIN;
        int32_t status = kvf_lane_lists(s->device, lane);
        if (status != KVF_OK) return status;
    }
    if (lane->list_used + bytes > KVF_LIST_BYTES) {
        uint32_t next = (lane->list_segment + 1) % KVF_LIST_SEGMENTS;
        cu_result result = s->patient || s->touched ? s->cu->event_synchronize(lane->list_free[next]) : s->cu->event_query(lane->list_free[next]);
        if (result == CU_NOT_READY) return KVF_AGAIN;
        if (result == CU_OK) result = s->cu->event_record(lane->list_free[lane->list_segment], lane->work);
        if (result != CU_OK) return failed(s, result, "CUDA: staging of lists");
        lane->list_segment = next;
        lane->list_used = 0;
    }
    *at = lane->list_segment * KVF_LIST_BYTES + lane->list_used;
    lane->list_used += (bytes + 255u) & ~255u;
    return KVF_OK;
}

/* Brings lists into device memory by a kernel: a copy call costs several times as much to submit. */
static int32_t send_lists(submission *s, cu_pointer from, cu_pointer to, uint64_t bytes) {
    const kvf_nest nest = {.bases = 1, .pairs = 1, .blocks = 1, .row = (bytes + 15) & ~(uint64_t)15, .side = {{.add = (int64_t)from}, {.add = (int64_t)to}}};
    kvf_kernel_program program;
    bool external;
    int32_t status = kvf_nest_program(&nest, KVF_DST, KVF_SHAPE_PIECES, 16, 1024, NULL, &external, &program);
    if (status != KVF_OK) return status;
    void *parameters[] = {&program};
    const uint32_t ctas = (program.units + 3) / 4;
    cu_result result = s->cu->launch(s->device->kernel[KVF_KERNEL_PIECES_16], ctas, 1, 1, 128, 1, 1, 0, s->lane->work, parameters, NULL);
    return result == CU_OK ? KVF_OK : failed(s, result, "CUDA: lists could not be sent");
}

static int32_t launch_part(const kvf_nest *nest, void *argument) {
    launch *how = argument;
    submission *s = how->s;
    kvf_lane *lane = s->lane;
    const kvf_cuda_tuning *tuning = &s->device->tuning;
    const uint32_t width = kvf_nest_alignment(nest, false);
    kvf_shape shape = how->bulk ? KVF_SHAPE_BULK : kvf_nest_shape(nest, width);
    uint32_t piece = how->bulk ? tuning->bulk_stage : KVF_KERNEL_PIECE;
    if (how->bulk && (width < 16 || nest->row % 16 != 0))
        return kvf_refuse(KVF_E_INVALID, "CUDA: program %u is not aligned to 16 bytes, as bulk copies need", s->program);
    const uint64_t words = kvf_nest_words(nest);
    kvf_kernel_program program;
    uint32_t at = 0;
    bool external = false;
    if (words > KVF_KERNEL_INLINE_WORDS) {
        int32_t status = stage_lists(s, (uint32_t)words * 4, &at);
        if (status != KVF_OK) return status;
    }
    int32_t status = kvf_nest_program(nest, how->side, shape, width, piece, lane->list_host + at / 4, &external, &program);
    if (status != KVF_OK) return status;
    if (external) {
        program.lists = (cu_pointer)(uintptr_t)lane->list_host + at;
        if (how->sends) {
            status = send_lists(s, program.lists, lane->list_device + at, words * 4);
            if (status != KVF_OK) return status;
            program.lists = lane->list_device + at;
        }
    }
    /* Not more CTAs than there is work for, and the work spread over all of them. */
    uint32_t threads = how->threads, shared = 0;
    static const kvf_kernel rows[5] = {0, KVF_KERNEL_ROWS_16, KVF_KERNEL_ROWS_16X2, 0, KVF_KERNEL_ROWS_16X4};
    kvf_kernel kernel = how->bulk ? KVF_KERNEL_BULK
                        : shape == KVF_SHAPE_PIECES ? (width == 16 ? KVF_KERNEL_PIECES_16 : KVF_KERNEL_PIECES_N)
                        : width == 16 ? rows[kvf_nest_vectors(nest, width)] : KVF_KERNEL_ROWS_N;
    uint64_t per_cta = shape == KVF_SHAPE_ROWS ? threads : threads / 32;
    uint64_t most = (program.units + per_cta - 1) / per_cta;
    uint32_t ctas = most < how->ctas ? (uint32_t)most : how->ctas;
    if (how->bulk) shared = threads / 32 * KVF_KERNEL_STAGES * tuning->bulk_stage;
    if (!s->device->kernel[kernel]) return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: there is no kernel for this method on device %d", s->device->ordinal);
    void *parameters[] = {&program};
    cu_result result = s->cu->launch(s->device->kernel[kernel], ctas, 1, 1, threads, 1, 1, shared, lane->work, parameters, NULL);
    if (result != CU_OK) return failed(s, result, "CUDA: a kernel could not be launched");
    s->touched = true;
    return KVF_OK;
}

#define FIRST_PAIRS 1024

static int32_t copy_by_kernel(submission *s, const kvf_nest *nest, int side, bool bulk, uint32_t ctas, uint32_t threads) {
    launch how = {s, side, bulk, s->task->direction == KVF_ON_DEVICE, ctas, threads};
    const uint32_t width = kvf_nest_alignment(nest, false);
    kvf_shape shape = bulk ? KVF_SHAPE_BULK : kvf_nest_shape(nest, width);
    const uint64_t pairs = KVF_LIST_BYTES / 16; /* three words a pair, and bases beside them */
    if (4 * nest->bases > KVF_LIST_BYTES / 16) return kvf_refuse(KVF_E_INVALID, "CUDA: program %u has too many bases", s->program);
    if (kvf_nest_units(nest, shape, width, bulk ? s->device->tuning.bulk_stage : KVF_KERNEL_PIECE) <= KVF_KERNEL_UNITS / 2 && nest->pairs <= pairs) {
        if (nest->pairs < 2 * FIRST_PAIRS) return launch_part(nest, &how);
        /* Writing long lists takes as long as copying some of what they name: the device starts on the first of them. */
        kvf_nest part;
        kvf_nest_pairs(nest, 0, FIRST_PAIRS, &part);
        int32_t status = launch_part(&part, &how);
        if (status != KVF_OK) return status;
        kvf_nest_pairs(nest, FIRST_PAIRS, nest->pairs, &part);
        return launch_part(&part, &how);
    }
    if (!s->patient && !s->touched) return KVF_AGAIN; /* several launches may wait for staging in between */
    return kvf_nest_cut(nest, side, (uint64_t)(shape == KVF_SHAPE_ROWS ? width : 1024) << 29, pairs, launch_part, &how);
}

/* ---- slabs --------------------------------------------------------------------------------------------------------- */

static int32_t slab_part(const kvf_nest *nest, void *argument) {
    submission *s = argument;
    kvf_lane *lane = s->lane;
    const kvf_cuda_driver *cu = s->cu;
    const kvf_cuda_tuning *tuning = &s->device->tuning;
    if (s->touched && kvf_job_cancelled(s->task->context, s->task->slot)) return kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled between slabs");
    const uint32_t slot = lane->slab_next++ % KVF_SLABS;
    const uint32_t way = s->chunk++ % tuning->slab_streams;
    cu_stream copies = lane->copy[way];
    kvf_nest near, far;
    kvf_nest_slab(nest, s->near, lane->slab + slot * lane->slab_bytes, s->offsets, &near, &far);
    launch how = {s, 1 - s->near, false, true, s->task->width ? s->task->width : tuning->slab_ctas, tuning->slab_threads};
    const bool gather = s->near == KVF_SRC;
    cu_stream first = gather ? lane->work : copies, second = gather ? copies : lane->work;
    lane->used_copy[way] = true;

    cu_result result = cu->stream_wait(first, lane->slab_free[slot], 0);
    if (result != CU_OK) return failed(s, result, "CUDA: slabs");
    int32_t status = gather ? launch_part(&near, &how) : copy_batched(s, &far, copies);
    if (status != KVF_OK) return status;
    result = cu->event_record(lane->slab_ready[slot], first);
    if (result == CU_OK) result = cu->stream_wait(second, lane->slab_ready[slot], 0);
    if (result != CU_OK) return failed(s, result, "CUDA: slabs");
    status = gather ? copy_batched(s, &far, copies) : launch_part(&near, &how);
    if (status != KVF_OK) return status;
    result = cu->event_record(lane->slab_free[slot], second);
    return result == CU_OK ? KVF_OK : failed(s, result, "CUDA: slabs");
}

static int32_t copy_by_slab(submission *s, const kvf_nest *nest) {
    const uint64_t pairs = KVF_LIST_BYTES / 16;
    if (!s->patient && !s->touched) return KVF_AGAIN;
    if (4 * nest->bases > KVF_LIST_BYTES / 16) return kvf_refuse(KVF_E_INVALID, "CUDA: program %u has too many bases", s->program);
    int32_t status = kvf_lane_slabs(s->device, s->lane);
    if (status != KVF_OK) return status;
    if (nest->run && !(s->offsets = realloc(s->offsets, pairs * sizeof *s->offsets)))
        return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for %llu offsets", (unsigned long long)pairs);
    return kvf_nest_cut(nest, 1 - s->near, s->lane->slab_bytes, pairs, slab_part, s);
}
