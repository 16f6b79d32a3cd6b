/*
 * cuda_submit.c - the CUDA part of kvf.h: copies and waits for events, which are submitted where that is quickest.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_device.h"
#include "status.h"

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
        const int host = program->src_kind == 0 ? 0 : 1;
        const uint64_t at = (uint64_t)((int64_t)(host == 0 ? program->src_base : program->dst_base)[0] + kvf_offset_of(&program->place[host], 0));
        if (program->bytes > 0 && !kvf_cuda_knows(device, at, at + 1, 0)) return false;
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

/* What a caller is told whose job has begun. */
static int32_t begun(kvf_cuda_device *device, uint32_t flags) {
    return (flags & KVF_CUDA_WAKES) && atomic_load(&device->overslept) ? KVF_AGAIN : KVF_OK;
}

int32_t kvf_cuda_copy_job(kvf_word context, uint32_t slot, int32_t ordinal, const double *hop, kvf_word words, uint32_t method, uint32_t width, uint32_t flags,
                          kvf_word stream, const double *waits, uint32_t count, const uint32_t *sources, const uint32_t *destinations, uint32_t ids) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    if (method < KVF_CUDA_METHOD_DMA || method > KVF_CUDA_METHOD_BULK) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no copy method %u", method);
    if (width > 65535) return kvf_refuse(KVF_E_INVALID, "CUDA: %u CTAs are too many", width);
    const kvf_id_lists lists = {{sources, destinations}, ids};
    kvf_task *task = calloc(1, sizeof *task);
    if (!task) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for a copy");
    *task = (kvf_task){.context = ctx, .slot = slot, .device = device, .method = method, .width = width, .flags = flags, .wakes = (flags & KVF_CUDA_WAKES) != 0, .stream = (cu_stream)(uintptr_t)stream};
    int32_t status = kvf_hop_parse_beside(&task->hop, hop, words, &lists);
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
        if (status == KVF_OK || touched) return begun(device, flags);
        kvf_job_drop(ctx, slot);
        if (status != KVF_AGAIN) {
            kvf_task_free(task);
            return status;
        }
        inlined = false;
    }
    if (!inlined) {
        kvf_hop_free(&task->hop);
        status = kvf_hop_parse_copy_beside(&task->hop, hop, words, &lists);
        if (status != KVF_OK) {
            memset(&task->hop, 0, sizeof task->hop);
            kvf_task_free(task);
            return status;
        }
    }
    status = launch_task(task, inlined, forced);
    return status == KVF_OK ? begun(device, flags) : status;
}

int32_t kvf_cuda_rehearse(int32_t ordinal, const double *hop, kvf_word words, uint32_t method, uint32_t width, const uint32_t *sources,
                          const uint32_t *destinations, uint32_t ids) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    kvf_task task = {.device = device, .method = method, .width = width};
    int32_t status = kvf_hop_parse_beside(&task.hop, hop, words, &(kvf_id_lists){{sources, destinations}, ids});
    if (status != KVF_OK) return status;
    if (method == KVF_CUDA_METHOD_KERNEL) status = kvf_task_rehearse(&task);
    kvf_hop_free(&task.hop);
    return status;
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
