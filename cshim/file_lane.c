/* A file's lane: how it starts and is woken, and the threads of one that calls. */
#include "file_lane.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "thread.h"

#define MOST_LANE_THREADS 8u
/* How often a lane that is busy or hangs looks for parts that were cancelled before their turn. */
#define LOOK_NANOS 20000000u

void kvf_file_lane_ended(kvf_file *file) {
    pthread_mutex_lock(&file->lock);
    file->threads--;
    pthread_cond_broadcast(&file->ended);
    pthread_mutex_unlock(&file->lock);
    kvf_file_release(file);
}

static void *work_by_calls(void *argument) {
    kvf_file *file = argument;
    kvf_file_request *request = malloc(sizeof *request);
    pthread_mutex_lock(&file->lock);
    while (request) {
        kvf_file_part *gone = kvf_file_queue_sweep(file);
        bool found = kvf_file_queue_pick(file, request, &gone);
        if (gone) {
            pthread_mutex_unlock(&file->lock);
            kvf_file_parts_free(gone);
            pthread_mutex_lock(&file->lock);
            if (!found) continue;
        }
        if (!found) {
            if (file->closing && !file->active && !file->waiting_first) break;
            if (file->waiting_first) {
                struct timespec until;
                clock_gettime(CLOCK_REALTIME, &until);
                until.tv_nsec += LOOK_NANOS;
                if (until.tv_nsec >= 1000000000) {
                    until.tv_sec++;
                    until.tv_nsec -= 1000000000;
                }
                pthread_cond_timedwait(&file->work, &file->lock, &until);
            } else pthread_cond_wait(&file->work, &file->lock);
            continue;
        }
        pthread_mutex_unlock(&file->lock);
        int64_t result;
        do {
            const struct iovec *vectors = request->vectors + request->first;
            result = request->part->writing ? pwritev(request->fd, vectors, (int)request->count, (off_t)request->at)
                                            : preadv(request->fd, vectors, (int)request->count, (off_t)request->at);
            if (result < 0) result = -errno;
        } while (kvf_file_request_again(request, result));
        pthread_mutex_lock(&file->lock);
        request->part->in_flight--;
        if (request->part->in_flight == 0) pthread_cond_broadcast(&file->work);
    }
    pthread_mutex_unlock(&file->lock);
    free(request);
    kvf_file_lane_ended(file);
    return NULL;
}

void kvf_file_lane_wake(kvf_file *file) {
    if (file->ring) {
        const uint64_t one = 1;
        if (write(file->wake, &one, sizeof one) < 0) sched_yield(); /* full: it is awake */
    } else pthread_cond_broadcast(&file->work);
}

static int32_t start_thread(kvf_file *file, void *(*run)(void *), void *argument) {
    pthread_t thread;
    __atomic_fetch_add(&file->references, 1, __ATOMIC_RELAXED);
    int32_t status = kvf_thread_start(&thread, "kvf-file", run, argument);
    if (status == KVF_OK) {
        pthread_detach(thread);
        file->threads++;
    } else __atomic_fetch_sub(&file->references, 1, __ATOMIC_RELAXED);
    return status;
}

static int32_t start_lane(kvf_file *file) {
    if (file->threads > 0) return KVF_OK;
    kvf_file_ring_lane *lane = file->no_ring ? NULL : kvf_file_ring_lane_make(file);
    if (lane) {
        int32_t status = start_thread(file, kvf_file_ring_lane_work, lane);
        if (status == KVF_OK) {
            file->ring = true;
            return KVF_OK;
        }
        kvf_file_ring_lane_free(lane);
        return status;
    }
    uint32_t wanted = file->depth < MOST_LANE_THREADS ? file->depth : MOST_LANE_THREADS;
    int32_t status = KVF_OK;
    while (file->threads < wanted && status == KVF_OK) status = start_thread(file, work_by_calls, file);
    return file->threads > 0 ? KVF_OK : status;
}

int32_t kvf_file_lane_submit(kvf_file *file, kvf_file_part *part) {
    pthread_mutex_lock(&file->lock);
    int32_t status = file->closing ? kvf_refuse(KVF_E_CLOSED, "%s: is being closed", file->path) : start_lane(file);
    if (status == KVF_OK) {
        part->next = NULL;
        if (file->waiting_last) file->waiting_last->next = part;
        else file->waiting_first = part;
        file->waiting_last = part;
        kvf_file_lane_wake(file);
    }
    pthread_mutex_unlock(&file->lock);
    return status;
}
