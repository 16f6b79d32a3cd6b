/*
 * cuda_copy_slab.c - copies through slabs in device memory: a kernel gathers or scatters, large copies cross the link.
 */
#include <stdlib.h>

#include "cuda_copy.h"
#include "status.h"

static int32_t slab_part(const kvf_nest *nest, void *argument) {
    kvf_submission *s = argument;
    kvf_lane *lane = s->lane;
    const kvf_cuda_driver *cu = s->cu;
    const kvf_cuda_tuning *tuning = &s->device->tuning;
    if (s->touched && kvf_job_cancelled(s->task->context, s->task->slot)) return kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled between slabs");
    const uint32_t slot = lane->slab_next++ % KVF_SLABS;
    const uint32_t way = s->chunk++ % tuning->slab_streams;
    cu_stream copies = lane->copy[way];
    kvf_nest near, far;
    kvf_nest_slab(nest, s->near, lane->slab + slot * lane->slab_bytes, s->offsets, &near, &far);
    kvf_launch how = {.s = s, .side = 1 - s->near, .near = true, .ctas = s->task->width ? s->task->width : tuning->slab_ctas, .threads = tuning->slab_threads};
    const bool gather = s->near == KVF_SRC;
    cu_stream first = gather ? lane->work : copies, second = gather ? copies : lane->work;
    lane->used_copy[way] = true;

    cu_result result = cu->stream_wait(first, lane->slab_free[slot], 0);
    if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: slabs");
    int32_t status = gather ? kvf_copy_launch(&near, &how) : kvf_copy_batched(s, &far, copies);
    if (status != KVF_OK) return status;
    result = cu->event_record(lane->slab_ready[slot], first);
    if (result == CU_OK) result = cu->stream_wait(second, lane->slab_ready[slot], 0);
    if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: slabs");
    status = gather ? kvf_copy_batched(s, &far, copies) : kvf_copy_launch(&near, &how);
    if (status != KVF_OK) return status;
    result = cu->event_record(lane->slab_free[slot], second);
    return result == CU_OK ? KVF_OK : kvf_copy_failed(s, result, "CUDA: slabs");
}

int32_t kvf_copy_by_slab(kvf_submission *s, const kvf_nest *nest) {
    const uint64_t pairs = KVF_LIST_BYTES / 16;
    if (!s->patient && !s->touched) return KVF_AGAIN;
    if (4 * nest->bases > KVF_LIST_BYTES / 16) return kvf_refuse(KVF_E_INVALID, "CUDA: program %u has too many bases", s->program);
    int32_t status = kvf_lane_slabs(s->device, s->lane);
    if (status != KVF_OK) return status;
    if (nest->run && !(s->offsets = realloc(s->offsets, pairs * sizeof *s->offsets)))
        return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for %llu offsets", (unsigned long long)pairs);
    return kvf_nest_cut(nest, 1 - s->near, s->lane->slab_bytes, pairs, slab_part, s);
}
