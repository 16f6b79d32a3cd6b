/*
 * cuda_copy_dma.c - copies by the driver: one for each row, boxes of two or three dimensions, batches.
 */
#include <string.h>

#include "cuda_copy.h"
#include "status.h"

int32_t kvf_copy_rows(kvf_submission *s, const kvf_nest *nest, cu_stream stream) {
    kvf_walk walk;
    kvf_span span;
    kvf_walk_open(&walk, nest);
    while (kvf_walk_next(&walk, &span)) {
        cu_result result = s->cu->copy(span.dst, span.src, span.bytes, stream);
        if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: a copy could not be queued");
        s->touched = true;
    }
    return KVF_OK;
}

int32_t kvf_copy_batched(kvf_submission *s, const kvf_nest *nest, cu_stream stream) {
    const kvf_cuda_driver *cu = s->cu;
    if (!cu->batch8 && !cu->batch9) return kvf_copy_rows(s, nest, stream);
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
        if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: a batch of copies could not be queued");
        s->touched = true;
        if (kvf_job_cancelled(s->task->context, s->task->slot)) return kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled between batches");
    }
    return KVF_OK;
}

int32_t kvf_copy_pitched(kvf_submission *s, const kvf_nest *nest) {
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
        if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: a pitched copy could not be queued");
        s->touched = true;
        kvf_walk_step(&walk);
    }
    return KVF_OK;
}
