/*
 * file_lane.h - what moves a file's bytes: its queue of parts and the threads that serve it, which are one with an io_uring
 * or several that call.
 */
#ifndef KVF_FILE_LANE_H
#define KVF_FILE_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "file.h"
#include "file_request.h"

/* Queues a part (its reference to the file is the caller's) and starts the lane's threads when there are none. On failure
 * the part was not taken. */
int32_t kvf_file_lane_submit(kvf_file *file, kvf_file_part *part);
/* Wakes the lane's threads: something changed. The caller holds the file's lock. */
void kvf_file_lane_wake(kvf_file *file);
/* The last thing that a thread of the lane does: gives back its reference to the file. */
void kvf_file_lane_ended(kvf_file *file);

/* ---- the queue: the caller holds the file's lock; parts that are over are freed without it ---- */

/* The next request of the active parts in turn; false when there is none now. Parts that are over go to `gone`. */
bool kvf_file_queue_pick(kvf_file *file, kvf_file_request *request, kvf_file_part **gone);
/* Takes out parts that were stopped before their turn; a list linked by `next`. */
kvf_file_part *kvf_file_queue_sweep(kvf_file *file);

/* ---- a lane with an io_uring ---- */

typedef struct kvf_file_ring_lane kvf_file_ring_lane;

/* NULL where the kernel has no io_uring or forbids it, or without memory for it. */
kvf_file_ring_lane *kvf_file_ring_lane_make(kvf_file *file);
void kvf_file_ring_lane_free(kvf_file_ring_lane *lane);
/* The thread's function; frees the lane. */
void *kvf_file_ring_lane_work(void *lane);

#endif
