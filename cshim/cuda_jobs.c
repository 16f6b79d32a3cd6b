/*
 * cuda_jobs.c - the CUDA part of kvf.h.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_device.h"
#include "cuda_kernels.h"
#include "cuda_memory.h"
#include "status.h"
#include "thread.h"

/* ---- slow calls: a thread each ----------------------------------------------------------------------------------- */

typedef struct operation operation;
struct operation {
    int32_t (*run)(operation *op);
    kvf_context *context;
    uint32_t slot;
    int device;
    int other;
    uint64_t address, bytes;
    uint32_t kind;
    cu_ipc ipc;
    char path[512];
    double value;
};

static void *operation_thread(void *argument) {
    operation *op = argument;
    int32_t status = op->run(op);
    if (status == KVF_OK) kvf_job_finish(op->context, op->slot, KVF_OK, 0, op->value);
    else kvf_job_fail(op->context, op->slot, status, 0, "%s", kvf_error_text());
    free(op);
    return NULL;
}

/* Starts `op`, a filled-in template, as the slot's job. */
static int32_t start(kvf_word context, uint32_t slot, const operation *op) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    operation *own = malloc(sizeof *own);
    if (!own) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for a job");
    *own = *op;
    own->context = ctx;
    own->slot = slot;
    int32_t status = kvf_job_begin(ctx, slot);
    if (status != KVF_OK) {
        free(own);
        return status;
    }
    pthread_t thread;
    status = kvf_thread_start(&thread, "kvf-cuda-job", operation_thread, own);
    if (status != KVF_OK) {
        kvf_job_drop(ctx, slot);
        free(own);
        return status;
    }
    pthread_detach(thread);
    return KVF_OK;
}

/* ---- what there is ------------------------------------------------------------------------------------------------- */

typedef struct text {
    char *at;
    size_t used, room;
    bool failed;
} text;

static void say(text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(text *out, const char *format, ...) {
    char piece[1024];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    if (length < 0 || out->failed) return;
    size_t add = (size_t)length < sizeof piece ? (size_t)length : sizeof piece - 1;
    if (out->used + add > out->room) {
        size_t room = 2 * (out->room + add) + 1024;
        char *more = realloc(out->at, room);
        if (!more) {
            out->failed = true;
            return;
        }
        out->at = more;
        out->room = room;
    }
    memcpy(out->at + out->used, piece, add);
    out->used += add;
}

/* The name as a JSON string's inside: the driver's names are plain, but nothing promises it. */
static void plain(char *name) {
    for (; *name; name++) {
        if (*name == '"' || *name == '\\' || (unsigned char)*name < 32) *name = ' ';
    }
}

static int numa_node(const char *pci) {
    char path[128], lower[32];
    size_t i = 0;
    for (; pci[i] && i < sizeof lower - 1; i++) lower[i] = pci[i] >= 'A' && pci[i] <= 'Z' ? (char)(pci[i] + 32) : pci[i];
    lower[i] = 0;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/numa_node", lower);
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    int node = -1;
    if (fscanf(file, "%d", &node) != 1) node = -1;
    fclose(file);
    return node;
}

static void describe(text *out, const kvf_cuda_driver *cu, int ordinal) {
    cu_device handle;
    if (cu->device_get(&handle, ordinal) != CU_OK) return;
    char name[256] = "", pci[32] = "", id[33] = "";
    cu_uuid uuid;
    size_t memory = 0;
    cu->device_name(name, sizeof name, handle);
    plain(name);
    cu->device_pci(pci, sizeof pci, handle);
    plain(pci);
    if (cu->device_uuid(&uuid, handle) == CU_OK) {
        for (int i = 0; i < 16; i++) snprintf(id + 2 * i, 3, "%02x", uuid.bytes[i]);
    }
    cu->device_memory(&memory, handle);
    static const struct { const char *name; int attribute; } numbers[] = {
        {"major", CU_ATTR_MAJOR}, {"minor", CU_ATTR_MINOR}, {"sms", CU_ATTR_SMS}, {"copyEngines", CU_ATTR_COPY_ENGINES}, {"l2", CU_ATTR_L2}};
    say(out, "{\"ordinal\":%d,\"name\":\"%s\",\"uuid\":\"%s\",\"pci\":\"%s\",\"memory\":%zu", ordinal, name, id, pci, memory);
    int value;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        value = 0;
        cu->device_attribute(&value, numbers[i].attribute, handle);
        say(out, ",\"%s\":%d", numbers[i].name, value);
    }
    int node = numa_node(pci);
    if (node < 0 && cu->device_attribute(&value, CU_ATTR_NUMA_NODE, handle) == CU_OK) node = value;
    say(out, ",\"numaNode\":%d", node);
    value = 0;
    cu->device_attribute(&value, CU_ATTR_INTEGRATED, handle);
    say(out, ",\"integrated\":%s", value ? "true" : "false");
    value = 0;
    cu->device_attribute(&value, CU_ATTR_HOST_POINTERS, handle);
    kvf_cuda_device *device = kvf_cuda_device_peek(ordinal);
    say(out, ",\"hostPointers\":%s,\"open\":%s,\"poisoned\":%s,\"code\":\"%s\",\"bulk\":%s,\"peers\":[", value ? "true" : "false", device ? "true" : "false",
        device && device->poisoned ? "true" : "false", device ? device->code : "", device && device->kernel[KVF_KERNEL_BULK] ? "true" : "false");
    for (int peer = 0, first = 1; peer < cu->devices; peer++) {
        cu_device other;
        int can = 0;
        if (peer == ordinal || cu->device_get(&other, peer) != CU_OK || cu->device_peer(&can, handle, other) != CU_OK || !can) continue;
        say(out, first ? "%d" : ",%d", peer);
        first = 0;
    }
    say(out, "]}");
}

static int32_t run_info(operation *op) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (!cu) return KVF_E_UNAVAILABLE;
    text out = {0};
    char path[sizeof cu->path];
    snprintf(path, sizeof path, "%s", cu->path);
    plain(path);
    say(&out, "{\"driver\":%d,\"library\":\"%s\",\"batch\":%d,\"kernels\":\"%s\",\"devices\":[", cu->version, path, cu->batch8 ? 8 : cu->batch9 ? 9 : 0,
        kvf_kernels_hash());
    for (int i = 0; i < cu->devices; i++) {
        if (i > 0) say(&out, ",");
        describe(&out, cu, i);
    }
    say(&out, "]}");
    if (out.failed) {
        free(out.at);
        return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for the description");
    }
    kvf_job_give_result(op->context, op->slot, out.at, out.used);
    op->value = cu->version;
    return KVF_OK;
}

static int32_t run_load(operation *op) {
    int32_t status = kvf_cuda_driver_load(op->path);
    return status == KVF_OK ? run_info(op) : status;
}

int32_t kvf_cuda_load_job(kvf_word context, uint32_t slot, const char *path) {
    operation op = {.run = run_load};
    if (path && strlen(path) >= sizeof op.path) return kvf_refuse(KVF_E_INVALID, "CUDA: the path is too long");
    if (path) strcpy(op.path, path);
    return start(context, slot, &op);
}

int32_t kvf_cuda_info_job(kvf_word context, uint32_t slot) {
    return start(context, slot, &(operation){.run = run_info});
}

/* ---- devices and memory ------------------------------------------------------------------------------------------------ */

static int32_t run_open(operation *op) {
    return kvf_cuda_device_open(op->device);
}
static int32_t run_close(operation *op) {
    return kvf_cuda_device_close(op->device);
}
static int32_t run_peer(operation *op) {
    kvf_cuda_device *device = kvf_cuda_device_get(op->device), *peer = kvf_cuda_device_get(op->other);
    if (!device || !peer) return KVF_E_CUDA;
    int32_t status = kvf_cuda_device_reach(device, op->other);
    return status == KVF_OK ? kvf_cuda_device_reach(peer, op->device) : status;
}
static int32_t run_alloc(operation *op) {
    return kvf_cuda_memory_alloc(op->device, op->bytes, &op->value);
}
static int32_t run_free(operation *op) {
    return kvf_cuda_memory_free(op->device, op->address);
}
static int32_t run_pinned_alloc(operation *op) {
    return kvf_cuda_pinned_alloc(op->device, op->bytes, &op->value);
}
static int32_t run_pinned_free(operation *op) {
    return kvf_cuda_pinned_free(op->device, op->address);
}
static int32_t run_register(operation *op) {
    return kvf_cuda_memory_register(op->device, op->address, op->bytes);
}
static int32_t run_unregister(operation *op) {
    return kvf_cuda_memory_unregister(op->device, op->address);
}
static int32_t run_adopt(operation *op) {
    return kvf_cuda_memory_adopt(op->device, op->address, op->bytes, op->kind);
}
static int32_t run_set(operation *op) {
    return kvf_cuda_memory_set(op->device, op->address, op->bytes, op->kind);
}
static int32_t run_ipc_export(operation *op) {
    int32_t status = kvf_cuda_ipc_export(op->device, op->address, &op->ipc, &op->value);
    return status == KVF_OK ? kvf_job_set_result(op->context, op->slot, &op->ipc, sizeof op->ipc) : status;
}
static int32_t run_ipc_open(operation *op) {
    return kvf_cuda_ipc_open(op->device, &op->ipc, &op->value);
}
static int32_t run_ipc_close(operation *op) {
    return kvf_cuda_ipc_close(op->device, op->address);
}
static int32_t run_event_open(operation *op) {
    kvf_cuda_device *device = kvf_cuda_device_get(op->device);
    if (!device) return KVF_E_CUDA;
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    cu_event event = NULL;
    cu_result result = kvf_cuda_driver_get()->ipc_event_open(&event, op->ipc);
    kvf_cuda_leave();
    op->value = (double)(uintptr_t)event;
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: another process's event could not be opened");
}
static int32_t run_event_close(operation *op) {
    kvf_cuda_device *device = kvf_cuda_device_get(op->device);
    if (!device) return KVF_E_CUDA;
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    cu_result result = kvf_cuda_driver_get()->event_destroy((cu_event)(uintptr_t)op->address);
    kvf_cuda_leave();
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: an event could not be closed");
}

int32_t kvf_cuda_device_open_job(kvf_word context, uint32_t slot, int32_t device) {
    return start(context, slot, &(operation){.run = run_open, .device = device});
}

int32_t kvf_cuda_device_close_job(kvf_word context, uint32_t slot, int32_t device) {
    return start(context, slot, &(operation){.run = run_close, .device = device});
}

int32_t kvf_cuda_peer_job(kvf_word context, uint32_t slot, int32_t device, int32_t peer) {
    return start(context, slot, &(operation){.run = run_peer, .device = device, .other = peer});
}

static int32_t sized(kvf_word bytes) {
    return bytes == 0 || bytes > (UINT64_C(1) << 52) ? kvf_refuse(KVF_E_INVALID, "CUDA: %llu is not a size", (unsigned long long)bytes) : KVF_OK;
}

int32_t kvf_cuda_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_alloc, .device = device, .bytes = bytes}) : status;
}

int32_t kvf_cuda_free_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_free, .device = device, .address = address});
}

int32_t kvf_cuda_pinned_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_pinned_alloc, .device = device, .bytes = bytes}) : status;
}

int32_t kvf_cuda_pinned_free_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_pinned_free, .device = device, .address = address});
}

int32_t kvf_cuda_register_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes) {
    int32_t status = sized(bytes);
    if (status != KVF_OK) return status;
    if (address % 4096 || bytes % 4096) return kvf_refuse(KVF_E_INVALID, "CUDA: memory to register starts and ends on a page");
    return start(context, slot, &(operation){.run = run_register, .device = device, .address = address, .bytes = bytes});
}

int32_t kvf_cuda_unregister_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_unregister, .device = device, .address = address});
}

int32_t kvf_cuda_adopt_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes, uint32_t kind) {
    int32_t status = sized(bytes);
    if (status != KVF_OK) return status;
    if (kind != KVF_CUDA_POINTER_PINNED && kind != KVF_CUDA_POINTER_DEVICE) return kvf_refuse(KVF_E_INVALID, "CUDA: %u is no kind of memory to adopt", kind);
    return start(context, slot, &(operation){.run = run_adopt, .device = device, .address = address, .bytes = bytes, .kind = kind});
}

int32_t kvf_cuda_set_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes, uint32_t value) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_set, .device = device, .address = address, .bytes = bytes, .kind = value}) : status;
}

int32_t kvf_cuda_ipc_export_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_ipc_export, .device = device, .address = address});
}

int32_t kvf_cuda_ipc_open_job(kvf_word context, uint32_t slot, int32_t device, const uint8_t *handle) {
    if (!handle) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no handle");
    operation op = {.run = run_ipc_open, .device = device};
    memcpy(&op.ipc, handle, sizeof op.ipc);
    return start(context, slot, &op);
}

int32_t kvf_cuda_ipc_close_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_ipc_close, .device = device, .address = address});
}

int32_t kvf_cuda_event_open_job(kvf_word context, uint32_t slot, int32_t device, const uint8_t *handle) {
    if (!handle) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no handle");
    operation op = {.run = run_event_open, .device = device};
    memcpy(&op.ipc, handle, sizeof op.ipc);
    return start(context, slot, &op);
}

int32_t kvf_cuda_event_close_job(kvf_word context, uint32_t slot, int32_t device, kvf_word event) {
    return start(context, slot, &(operation){.run = run_event_close, .device = device, .address = event});
}

/* ---- copies ------------------------------------------------------------------------------------------------------------ */

/* A copy by DMA costs about a microsecond a row to submit: with more than this it goes to the device's thread. */
#define INLINE_ROWS 8

/* Whether submitting takes microseconds only, as far as that can be said before. */
static bool is_quick(const kvf_task *task) {
    if (task->hop.programs > 4 || task->marks) return false;
    switch (task->method) {
        case KVF_CUDA_METHOD_KERNEL:
        case KVF_CUDA_METHOD_BULK: return true;
        case KVF_CUDA_METHOD_PITCHED: {
            uint64_t boxes = 0;
            for (uint32_t i = 0; i < task->hop.programs; i++) boxes += task->hop.program[i].bases * task->hop.program[i].blocks;
            return boxes <= INLINE_ROWS;
        }
        case KVF_CUDA_METHOD_DMA:
        case KVF_CUDA_METHOD_BATCH: return task->hop.rows <= INLINE_ROWS;
        default: return false;
    }
}

/* Pageable memory makes a copy call block. */
static bool is_pinned(kvf_cuda_device *device, const kvf_hop *hop) {
    for (uint32_t i = 0; i < hop->programs; i++) {
        const kvf_program *program = &hop->program[i];
        if (program->src_kind == 1 && program->dst_kind == 1) continue;
        const double at = program->src_kind == 0 ? program->src_base[0] + program->src_offset[0] : program->dst_base[0] + program->dst_offset[0];
        if (program->bytes > 0 && !kvf_cuda_knows(device, (uint64_t)at, (uint64_t)at + 1, 0)) return false;
    }
    return true;
}

static int32_t check_waits(const double *waits, uint32_t count, uint32_t programs) {
    if (count > 0 && !waits) return kvf_refuse(KVF_E_INVALID, "CUDA: %u events to wait for are missing", count);
    for (uint32_t i = 0; i < count; i++) {
        double program = waits[2 * i], event = waits[2 * i + 1];
        if (!(program >= 0 && program < (programs ? programs : 1) && program == floor(program)) || !(event >= 1 && event < 9007199254740992.0))
            return kvf_refuse(KVF_E_INVALID, "CUDA: wait %u names program %g and event %g", i, program, event);
    }
    return KVF_OK;
}

/* Records what is on the caller's stream now. */
static int32_t record_before(kvf_task *task) {
    int32_t status = kvf_cuda_enter(task->device);
    if (status != KVF_OK) return status;
    task->before = kvf_cuda_event_take(task->device);
    if (!task->before) status = KVF_E_CUDA;
    else {
        cu_result result = kvf_cuda_driver_get()->event_record(task->before, task->stream);
        if (result != CU_OK) status = kvf_cuda_failed(task->device, result, "CUDA: the caller's stream");
    }
    kvf_cuda_leave();
    return status;
}

/* Gets a prepared task going: inline where that is quick, else on a thread. Owns the task from here on. */
static int32_t launch_task(kvf_task *task, bool inlined, bool must_inline) {
    kvf_context *ctx = task->context;
    const uint32_t slot = task->slot;
    int32_t status = kvf_job_begin(ctx, slot);
    if (status != KVF_OK) {
        kvf_task_free(task);
        return status;
    }
    bool touched = false;
    status = KVF_AGAIN;
    if (inlined) {
        status = kvf_task_submit(task, must_inline, &touched);
        if (status == KVF_OK || touched) return KVF_OK; /* settled later, with success or with what went wrong half way */
    }
    if (status == KVF_AGAIN) status = kvf_task_queue(task);
    if (status == KVF_OK) return KVF_OK;
    kvf_job_drop(ctx, slot);
    kvf_task_free(task);
    return status;
}

int32_t kvf_cuda_copy_job(kvf_word context, uint32_t slot, int32_t ordinal, const double *hop, kvf_word words, uint32_t method, uint32_t width, uint32_t flags,
                          kvf_word stream, const double *waits, uint32_t count) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    if (method < KVF_CUDA_METHOD_DMA || method > KVF_CUDA_METHOD_BULK) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no copy method %u", method);
    if (width > 65535) return kvf_refuse(KVF_E_INVALID, "CUDA: %u CTAs are too many", width);
    kvf_task *task = calloc(1, sizeof *task);
    if (!task) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for a copy");
    *task = (kvf_task){.context = ctx, .slot = slot, .device = device, .method = method, .width = width, .flags = flags, .stream = (cu_stream)(uintptr_t)stream};
    int32_t status = kvf_hop_parse(&task->hop, hop, words);
    if (status != KVF_OK) {
        free(task);
        return status;
    }
    if ((flags & KVF_CUDA_WATCH) && task->hop.programs > 1) {
        task->marks = calloc(task->hop.programs, sizeof *task->marks);
        if (!task->marks) status = kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for progress");
    }
    if (status == KVF_OK) status = check_waits(waits, count, task->hop.programs);
    if (status == KVF_OK && count > 0) {
        task->waits = malloc(2 * count * sizeof *waits);
        if (!task->waits) status = kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for events");
        else memcpy(task->waits, waits, 2 * count * sizeof *waits);
        task->wait_count = count;
    }
    if (status == KVF_OK && task->stream) status = record_before(task);
    if (status != KVF_OK) {
        kvf_task_free(task);
        return status;
    }
    const bool forced = (flags & KVF_CUDA_INLINE) || (flags & KVF_CUDA_CALLER_WAITS);
    bool inlined = forced || (!(flags & KVF_CUDA_THREAD) && is_quick(task) && is_pinned(device, &task->hop));
    if (!forced && inlined && task->hop.words == hop) {
        /* Should the inline try have to wait, the thread needs words of its own: they are copied only then. */
        bool touched = false;
        status = kvf_job_begin(ctx, slot);
        if (status != KVF_OK) {
            kvf_task_free(task);
            return status;
        }
        status = kvf_task_submit(task, false, &touched);
        if (status == KVF_OK || touched) return KVF_OK;
        kvf_job_drop(ctx, slot);
        if (status != KVF_AGAIN) {
            kvf_task_free(task);
            return status;
        }
        inlined = false;
    }
    if (!inlined) {
        kvf_hop_free(&task->hop);
        status = kvf_hop_parse_copy(&task->hop, hop, words);
        if (status != KVF_OK) {
            memset(&task->hop, 0, sizeof task->hop);
            kvf_task_free(task);
            return status;
        }
    }
    return launch_task(task, inlined, forced);
}

int32_t kvf_cuda_event_job(kvf_word context, uint32_t slot, int32_t ordinal, kvf_word event) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    if (!event) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no event");
    kvf_task *task = calloc(1, sizeof *task);
    if (!task) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for a wait");
    *task = (kvf_task){.context = ctx, .slot = slot, .device = device, .foreign = (cu_event)(uintptr_t)event};
    return launch_task(task, true, true);
}

/* ---- for tests and measurements -------------------------------------------------------------------------------------------- */

static int32_t with_device(int32_t ordinal, kvf_cuda_device **device) {
    *device = kvf_cuda_device_get(ordinal);
    if (!*device) return KVF_E_CUDA;
    return kvf_cuda_enter(*device);
}

int32_t kvf_cuda_test_context(int32_t ordinal, double *out) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    out[0] = (double)(uintptr_t)device->context;
    return KVF_OK;
}

int32_t kvf_cuda_test_stream(int32_t ordinal, double *out) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    cu_stream stream = NULL;
    cu_result result = kvf_cuda_driver_get()->stream_create(&stream, CU_STREAM_NON_BLOCKING, 0);
    kvf_cuda_leave();
    out[0] = (double)(uintptr_t)stream;
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: a stream could not be made");
}

int32_t kvf_cuda_test_stream_close(int32_t ordinal, kvf_word stream) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    cu_result result = kvf_cuda_driver_get()->stream_destroy((cu_stream)(uintptr_t)stream);
    kvf_cuda_leave();
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: a stream could not be closed");
}

int32_t kvf_cuda_test_event(int32_t ordinal, kvf_word stream, uint8_t *ipc, double *out) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_event event = NULL;
    cu_ipc handle;
    cu_result result = cu->event_create(&event, CU_EVENT_NO_TIMING | (ipc ? CU_EVENT_IPC : 0));
    if (result == CU_OK) result = cu->event_record(event, (cu_stream)(uintptr_t)stream);
    if (result == CU_OK && ipc) {
        result = cu->ipc_event_export(&handle, event);
        memcpy(ipc, &handle, sizeof handle);
    }
    kvf_cuda_leave();
    out[0] = (double)(uintptr_t)event;
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: an event could not be recorded");
}

static int32_t launch_one(int32_t ordinal, kvf_word stream, kvf_kernel kernel, uint64_t argument) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    void *parameters[] = {&argument};
    cu_result result = CU_OK;
    if (!device->kernel[kernel]) status = kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: there are no kernels on device %d", ordinal);
    else result = kvf_cuda_driver_get()->launch(device->kernel[kernel], 1, 1, 1, 1, 1, 1, 0, (cu_stream)(uintptr_t)stream, parameters, NULL);
    kvf_cuda_leave();
    return result == CU_OK ? status : kvf_cuda_failed(device, result, "CUDA: a kernel could not be launched");
}

int32_t kvf_cuda_test_sleep(int32_t ordinal, kvf_word stream, kvf_word micros) {
    return launch_one(ordinal, stream, KVF_KERNEL_SLEEP, micros * 1000);
}

int32_t kvf_cuda_test_fault(int32_t ordinal, kvf_word stream) {
    return launch_one(ordinal, stream, KVF_KERNEL_FAULT, 64);
}

int32_t kvf_cuda_test_copy(int32_t ordinal, const double *hop, kvf_word words, uint32_t method, uint32_t width, uint32_t repeats, double *out) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    double made[3];
    int32_t status = kvf_context_open(64, made);
    if (status != KVF_OK) return status;
    const kvf_word context = (kvf_word)made[0];
    uint32_t *shared = (uint32_t *)(uintptr_t)(uint64_t)made[1];
    for (uint32_t i = 0; i < repeats && status == KVF_OK; i++) {
        const uint64_t begun = kvf_now_nanos();
        const uint32_t head = __atomic_load_n(&shared[0], __ATOMIC_ACQUIRE);
        status = kvf_cuda_copy_job(context, 0, ordinal, hop, words, method, width, 0, 0, NULL, 0);
        if (status != KVF_OK) break;
        const uint64_t queued = kvf_now_nanos();
        while (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) == head) {}
        const uint64_t over = kvf_now_nanos();
        const uint32_t *done = shared + 16 + 8 * (head % 64);
        status = (int32_t)done[1];
        __atomic_store_n(&shared[1], head + 1, __ATOMIC_RELEASE);
        if (status != KVF_OK) {
            char words_of[KVF_TEXT_BYTES] = "";
            kvf_slot_error(context, 0, words_of, sizeof words_of);
            kvf_set_error("%s", words_of);
            break;
        }
        memcpy(&out[0], done + 4, sizeof(double));
        out[1 + 2 * i] = (double)(queued - begun) / 1e3;
        out[2 + 2 * i] = (double)(over - begun) / 1e3;
    }
    char failure[KVF_TEXT_BYTES];
    snprintf(failure, sizeof failure, "%s", kvf_error_text());
    double left;
    kvf_context_close(context, 1000, &left);
    if (status != KVF_OK) kvf_set_error("%s", failure);
    return status;
}
