/*
 * cuda_lane.c - lanes: streams with their scratch, made once and used by one submission after the other; and the pool of
 * events.
 */
#include "cuda_device.h"

#include <stdlib.h>

#include "status.h"

kvf_lane *kvf_lane_take_own(kvf_cuda_device *device) {
    pthread_mutex_lock(&device->lock);
    kvf_lane *lane = device->own;
    while (lane && lane->taken) lane = lane->next;
    if (!lane) {
        lane = calloc(1, sizeof *lane);
        if (lane) {
            pthread_mutex_init(&lane->lock, NULL);
            lane->own = true;
            lane->next = device->own;
            device->own = lane;
        } else kvf_set_error("CUDA: no memory for a lane");
    }
    if (lane) lane->taken = true;
    pthread_mutex_unlock(&device->lock);
    return lane;
}

int32_t kvf_lane_side(kvf_cuda_device *device, kvf_lane *lane) {
    if (lane->side) return KVF_OK;
    cu_result result = kvf_cuda_driver_get()->stream_create(&lane->side, CU_STREAM_NON_BLOCKING, device->priority_high);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: a stream could not be made");
}

int32_t kvf_lane_prepare(kvf_cuda_device *device, kvf_lane *lane) {
    if (lane->ready) return KVF_OK;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    int32_t status = kvf_lane_side(device, lane);
    if (status != KVF_OK) return status;
    cu_result result = CU_OK;
    /* Kernels of few CTAs wait for a free multiprocessor behind a model's: they go first. */
    if (!lane->work) result = cu->stream_create(&lane->work, CU_STREAM_NON_BLOCKING, device->priority_high);
    for (int i = 0; i < 3 && result == CU_OK; i++) {
        if (!lane->join[i]) result = cu->event_create(&lane->join[i], CU_EVENT_NO_TIMING);
    }
    for (int i = 0; i < KVF_LIST_SEGMENTS && result == CU_OK; i++) {
        if (!lane->list_free[i]) result = cu->event_create(&lane->list_free[i], CU_EVENT_NO_TIMING);
    }
    if (result != CU_OK) return kvf_cuda_failed(device, result, "CUDA: streams could not be made");
    lane->ready = true;
    return KVF_OK;
}

int32_t kvf_lane_lists(kvf_cuda_device *device, kvf_lane *lane) {
    if (lane->list_device) return KVF_OK;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    const size_t bytes = (size_t)KVF_LIST_SEGMENTS * KVF_LIST_BYTES;
    cu_result result = CU_OK;
    if (!lane->list_host) result = cu->host_alloc((void **)&lane->list_host, bytes, CU_HOST_PORTABLE | CU_HOST_MAPPED);
    if (result == CU_OK) result = cu->alloc(&lane->list_device, bytes);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: staging for lists could not be made");
}

int32_t kvf_lane_copies(kvf_cuda_device *device, kvf_lane *lane) {
    for (uint32_t i = 0; i < device->tuning.slab_streams; i++) {
        if (lane->copy[i]) continue;
        cu_result result = kvf_cuda_driver_get()->stream_create(&lane->copy[i], CU_STREAM_NON_BLOCKING, device->priority_low);
        if (result != CU_OK) return kvf_cuda_failed(device, result, "CUDA: streams for slabs could not be made");
    }
    return KVF_OK;
}

int32_t kvf_lane_slabs(kvf_cuda_device *device, kvf_lane *lane) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (lane->slab && lane->slab_bytes == device->tuning.slab_chunk) return KVF_OK;
    if (lane->slab) { /* another size was asked for: nothing may use the old ones */
        for (int i = 0; i < 2; i++) {
            if (lane->copy[i]) cu->stream_synchronize(lane->copy[i]);
        }
        cu->stream_synchronize(lane->work);
        cu->free(lane->slab);
        lane->slab = 0;
    }
    cu_result result = CU_OK;
    for (int i = 0; i < KVF_SLABS && result == CU_OK; i++) {
        if (!lane->slab_ready[i]) result = cu->event_create(&lane->slab_ready[i], CU_EVENT_NO_TIMING);
        if (result == CU_OK && !lane->slab_free[i]) result = cu->event_create(&lane->slab_free[i], CU_EVENT_NO_TIMING);
    }
    if (result == CU_OK) result = cu->alloc(&lane->slab, KVF_SLABS * device->tuning.slab_chunk);
    if (result != CU_OK) return kvf_cuda_failed(device, result, "CUDA: slabs could not be made");
    lane->slab_bytes = device->tuning.slab_chunk;
    return KVF_OK;
}

void kvf_lane_free(kvf_lane *lane) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_stream streams[4] = {lane->work, lane->copy[0], lane->copy[1], lane->side};
    for (int i = 0; i < 4; i++) {
        if (streams[i]) cu->stream_synchronize(streams[i]);
    }
    for (int i = 0; i < 4; i++) {
        if (streams[i]) cu->stream_destroy(streams[i]);
    }
    for (int i = 0; i < 3; i++) {
        if (lane->join[i]) cu->event_destroy(lane->join[i]);
    }
    for (int i = 0; i < KVF_LIST_SEGMENTS; i++) {
        if (lane->list_free[i]) cu->event_destroy(lane->list_free[i]);
    }
    for (int i = 0; i < KVF_SLABS; i++) {
        if (lane->slab_ready[i]) cu->event_destroy(lane->slab_ready[i]);
        if (lane->slab_free[i]) cu->event_destroy(lane->slab_free[i]);
    }
    if (lane->list_host) cu->host_free(lane->list_host);
    if (lane->list_device) cu->free(lane->list_device);
    if (lane->slab) cu->free(lane->slab);
}

/* ---- events --------------------------------------------------------------------------------------------------- */

cu_event kvf_cuda_event_take(kvf_cuda_device *device) {
    cu_event event = NULL;
    pthread_mutex_lock(&device->lock);
    if (device->spares > 0) event = device->spare[--device->spares];
    pthread_mutex_unlock(&device->lock);
    if (event) return event;
    cu_result result = kvf_cuda_driver_get()->event_create(&event, CU_EVENT_NO_TIMING);
    if (result == CU_OK) return event;
    kvf_cuda_failed(device, result, "CUDA: an event could not be made");
    return NULL;
}

void kvf_cuda_event_give(kvf_cuda_device *device, cu_event event) {
    if (!event) return;
    pthread_mutex_lock(&device->lock);
    if (device->spares == device->spare_room) {
        uint32_t room = device->spare_room ? 2 * device->spare_room : 64;
        cu_event *more = realloc(device->spare, room * sizeof *more);
        if (more) {
            device->spare = more;
            device->spare_room = room;
        }
    }
    bool kept = device->spares < device->spare_room;
    if (kept) device->spare[device->spares++] = event;
    pthread_mutex_unlock(&device->lock);
    if (!kept) kvf_cuda_driver_get()->event_destroy(event);
}

