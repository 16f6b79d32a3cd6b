/*
 * cuda_copy.c - puts a task's copies onto a lane's streams, by the method that was asked for.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_copy.h"
#include "status.h"
#include "thread.h"

static int32_t check_sides(kvf_submission *s, const kvf_program *program);
static int32_t submit_programs(kvf_submission *s);
static int32_t complete(kvf_submission *s, int32_t status);

int32_t kvf_copy_failed(kvf_submission *s, cu_result result, const char *what) {
    return kvf_cuda_failed(s->device, result, what);
}

/* ---- submitting ------------------------------------------------------------------------------------------------ */

kvf_direction kvf_hop_direction(const kvf_hop *hop) {
    if (hop->programs == 0) return KVF_ON_DEVICE;
    const kvf_program *program = &hop->program[0];
    if (program->src_kind == 0) return KVF_TO_DEVICE;
    return program->dst_kind == 0 ? KVF_TO_HOST : KVF_ON_DEVICE;
}

/* A free lane of the direction, locked; NULL when none is free and the caller cannot wait. One with nothing to do comes
 * first: what was used last is in the processor's caches. */
static kvf_lane *take_lane(kvf_cuda_device *device, kvf_direction direction, bool patient) {
    for (unsigned i = 0; i < KVF_LANES; i++) {
        kvf_lane *lane = &device->lane[direction][i];
        if (atomic_load(&lane->tasks) == 0 && pthread_mutex_trylock(&lane->lock) == 0) return lane;
    }
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
    kvf_submission s = {.task = task, .device = task->device, .cu = kvf_cuda_driver_get(), .patient = patient};
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
        /* Nothing reads the lists any more: those that come next lie where the last ones did. */
        if (atomic_load(&s.lane->tasks) == 0) s.lane->list_used = 0;
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

int32_t kvf_task_rehearse(kvf_task *task) {
    kvf_submission s = {.task = task, .device = task->device, .cu = kvf_cuda_driver_get(), .rehearsal = true};
    task->direction = kvf_hop_direction(&task->hop);
    s.lane = &s.device->lane[task->direction][0]; /* what comes when all is done goes there */
    if (pthread_mutex_trylock(&s.lane->lock) != 0) return KVF_OK;
    int32_t status = KVF_OK;
    if (s.lane->ready && (status = kvf_cuda_enter(s.device)) == KVF_OK) {
        status = submit_programs(&s);
        kvf_cuda_leave();
    }
    pthread_mutex_unlock(&s.lane->lock);
    return status;
}

/* Makes the side stream wait for all that was queued. */
static int32_t join(kvf_submission *s) {
    kvf_lane *lane = s->lane;
    cu_stream streams[3] = {lane->work, lane->copy[0], lane->copy[1]};
    for (int i = 0; i < 3; i++) {
        if (i > 0 && !lane->used_copy[i - 1]) continue;
        cu_result result = s->cu->event_record(lane->join[i], streams[i]);
        if (result == CU_OK) result = s->cu->stream_wait(lane->side, lane->join[i], 0);
        if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: streams could not be joined");
    }
    return KVF_OK;
}

static void on_mark(void *argument) {
    kvf_mark *mark = argument;
    kvf_task *task = mark->task;
    if (!atomic_load(&task->settled)) kvf_job_progress(task->context, task->slot, mark->programs, mark->bytes);
}

/* Queues the events that the program waits for. Slabs read the host side on streams of their own: those wait too. */
static int32_t queue_waits(kvf_submission *s, uint32_t program, bool first) {
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
    return result == CU_OK ? KVF_OK : kvf_copy_failed(s, result, "CUDA: an event could not be waited for");
}

static int32_t submit_programs(kvf_submission *s) {
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
            case KVF_CUDA_METHOD_DMA: status = kvf_copy_rows(s, &nest, s->lane->work); break;
            case KVF_CUDA_METHOD_PITCHED: status = kvf_copy_pitched(s, &nest); break;
            case KVF_CUDA_METHOD_BATCH: status = kvf_copy_batched(s, &nest, s->lane->work); break;
            case KVF_CUDA_METHOD_KERNEL: {
                uint32_t own = on_device ? tuning->device_ctas * (uint32_t)s->device->sms : tuning->link_ctas;
                kvf_nest_order(&nest, host);
                status = kvf_copy_by_kernel(s, &nest, host, false, task->width ? task->width : own, on_device ? tuning->device_threads : tuning->link_threads);
                break;
            }
            case KVF_CUDA_METHOD_BULK: {
                uint32_t own = on_device ? (uint32_t)s->device->sms : tuning->bulk_ctas;
                kvf_nest_order(&nest, host);
                status = kvf_copy_by_kernel(s, &nest, host, true, task->width ? task->width : own, tuning->bulk_warps * 32);
                break;
            }
            case KVF_CUDA_METHOD_SLAB:
                s->near = 1 - host;
                status = kvf_copy_by_slab(s, &nest);
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
            if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: progress could not be queued");
        }
    }
    if (task->foreign) {
        cu_result result = s->cu->stream_wait(s->lane->side, task->foreign, 0);
        if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: an event could not be waited for");
    }
    return KVF_OK;
}

/* Queues the completion behind everything. `status` other than KVF_OK: part was queued, and the job ends with that once
 * the part is over. */
static int32_t complete(kvf_submission *s, int32_t status) {
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
    task->lane = lane;
    atomic_fetch_add(&lane->tasks, 1);
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
        if (result != CU_OK) ended = kvf_copy_failed(s, result, "CUDA: the completion could not be queued");
        else if (flagged) kvf_task_look(task);
        else ended = kvf_task_call(task);
    }
    if (ended != KVF_OK) { /* nobody will call: what was queued may still run */
        kvf_task_settle(task, ended, s->touched ? KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT : 0, 0, kvf_error_text());
        s->touched = true;
        const bool idle = (!lane->work || cu->stream_synchronize(lane->work) == CU_OK) && cu->stream_synchronize(lane->side) == CU_OK;
        if (idle) atomic_fetch_sub(&lane->tasks, 1); /* else the lane's lists are not begun anew any more */
        atomic_store(&task->over, true);
    }
    return ended;
}

/* ---- what may be touched ---------------------------------------------------------------------------------------- */

/* A kernel that is given a wrong address ends the context for everybody: every base's extent is proven first. */
static int32_t check_sides(kvf_submission *s, const kvf_program *program) {
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
