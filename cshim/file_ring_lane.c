/* The lane of a file that one thread serves with an io_uring. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "file_lane.h"
#include "file_ring.h"

#define WAKE_TAG UINT64_MAX

struct kvf_file_ring_lane {
    kvf_file *file;
    kvf_ring_io io;
    kvf_file_request *requests;
    uint32_t *free;
    uint32_t free_count;
    uint64_t woken; /* what the eventfd gives */
};

static bool push_request(kvf_file_ring_lane *lane, uint32_t index) {
    kvf_file_request *request = &lane->requests[index];
    return kvf_ring_io_vector(&lane->io, request->part->writing, request->fd, request->vectors + request->first, request->count,
                              request->at, index);
}

static void take_results(kvf_file_ring_lane *lane, bool *listening) {
    kvf_file *file = lane->file;
    uint64_t tag;
    int32_t result;
    while (kvf_ring_io_take(&lane->io, &tag, &result)) {
        if (tag == WAKE_TAG) {
            *listening = false;
            continue;
        }
        uint32_t index = (uint32_t)tag;
        kvf_file_request *request = &lane->requests[index];
        /* The queue has room: what was taken off it makes a place. */
        if (kvf_file_request_again(request, result) && push_request(lane, index)) continue;
        pthread_mutex_lock(&file->lock);
        request->part->in_flight--;
        pthread_mutex_unlock(&file->lock);
        lane->free[lane->free_count++] = index;
    }
}

void *kvf_file_ring_lane_work(void *argument) {
    kvf_file_ring_lane *lane = argument;
    kvf_file *file = lane->file;
    bool listening = false;
    for (;;) {
        kvf_file_part *gone;
        bool busy, over;
        pthread_mutex_lock(&file->lock);
        gone = kvf_file_queue_sweep(file);
        while (lane->free_count > 0) {
            uint32_t index = lane->free[lane->free_count - 1];
            if (!kvf_file_queue_pick(file, &lane->requests[index], &gone)) break;
            lane->free_count--;
            push_request(lane, index);
        }
        busy = lane->free_count < file->depth;
        over = file->closing && !file->active && !file->waiting_first;
        pthread_mutex_unlock(&file->lock);
        kvf_file_parts_free(gone);
        if (over && !busy) break;
        if (gone) continue;
        if (!listening) listening = kvf_ring_io_read(&lane->io, file->wake, &lane->woken, sizeof lane->woken, WAKE_TAG);
        int failed = kvf_ring_io_enter(&lane->io, true);
        /* EBUSY and EAGAIN: completions must be taken first. */
        if (failed && failed != EBUSY && failed != EAGAIN) sched_yield();
        take_results(lane, &listening);
    }
    kvf_file_ring_lane_free(lane);
    kvf_file_lane_ended(file);
    return NULL;
}

kvf_file_ring_lane *kvf_file_ring_lane_make(kvf_file *file) {
    kvf_file_ring_lane *lane = calloc(1, sizeof *lane);
    if (!lane) return NULL;
    lane->file = file;
    lane->requests = malloc(file->depth * sizeof *lane->requests);
    lane->free = malloc(file->depth * sizeof *lane->free);
    if (file->wake < 0) file->wake = eventfd(0, EFD_CLOEXEC);
    uint32_t entries = 2;
    while (entries < file->depth + 1) entries *= 2;
    if (lane->requests && lane->free && file->wake >= 0 && kvf_ring_io_open(&lane->io, entries)) {
        for (uint32_t k = 0; k < file->depth; k++) lane->free[k] = k;
        lane->free_count = file->depth;
        return lane;
    }
    free(lane->requests);
    free(lane->free);
    free(lane);
    return NULL;
}

void kvf_file_ring_lane_free(kvf_file_ring_lane *lane) {
    kvf_ring_io_close(&lane->io); /* also ends the read of the eventfd */
    free(lane->requests);
    free(lane->free);
    free(lane);
}
