/*
 * cuda_task.c - tasks from their start to their end: the list of what runs, the submit threads, and the thread that finds
 * out when a context has died.
 */
#include "cuda_device.h"

#include <stdio.h>
#include <stdlib.h>

#include "status.h"
#include "thread.h"

#define MILLI 1000000ull
#define LOOK_EVERY (50 * MILLI) /* the watching thread, while something runs */
#define STIR_AFTER MILLI        /* copies that took so long */
#define STIR (MILLI / 5)        /* a submit thread stays awake so long after one */
#define LOOK_ON 40              /* times more after nothing runs, so that a stream of small copies wakes nobody */

void kvf_task_started(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    pthread_mutex_lock(&device->lock);
    task->next = device->running;
    device->running = task;
    device->runs++;
    if (!device->watching) {
        device->watching = true;
        pthread_cond_signal(&device->watched);
    }
    pthread_mutex_unlock(&device->lock);
}

void kvf_task_settle(kvf_task *task, int32_t status, uint32_t flags, double value, const char *text) {
    if (atomic_exchange(&task->settled, true)) return;
    if (status == KVF_OK) kvf_job_finish(task->context, task->slot, KVF_OK, flags, value);
    else kvf_job_fail(task->context, task->slot, status, flags, "%s", text);
}

void kvf_task_free(kvf_task *task) {
    if (task->flag) {
        pthread_mutex_lock(&task->device->lock);
        task->device->free_flag[task->device->free_flags++] = (uint16_t)(task->flag - 1);
        pthread_mutex_unlock(&task->device->lock);
    }
    kvf_cuda_event_give(task->device, task->done);
    kvf_cuda_event_give(task->device, task->before);
    if (task->lane && task->lane->own) {
        pthread_mutex_lock(&task->device->lock);
        task->lane->taken = false;
        pthread_mutex_unlock(&task->device->lock);
    }
    kvf_hop_free(&task->hop);
    free(task->waits);
    free(task->marks);
    free(task);
}

void kvf_cuda_collect(kvf_cuda_device *device) {
    kvf_task *over = NULL;
    pthread_mutex_lock(&device->lock);
    if (!device->poisoned) { /* the driver may still call back for the tasks of a poisoned one */
        for (kvf_task **at = &device->running; *at;) {
            kvf_task *task = *at;
            if (atomic_load(&task->over)) {
                *at = task->next;
                task->next = over;
                over = task;
                device->runs--;
            } else at = &task->next;
        }
    }
    pthread_mutex_unlock(&device->lock);
    while (over) {
        kvf_task *next = over->next;
        kvf_task_free(over);
        over = next;
    }
}

bool kvf_task_waits(const kvf_task *task) {
    return task->stream || task->wait_count > 0 || task->foreign;
}

static void run_queued(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    bool touched = false;
    int32_t status = KVF_OK;
    if (kvf_job_cancelled(task->context, task->slot)) status = kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled before the first byte moved");
    else if (device->poisoned) status = kvf_refuse(KVF_E_CUDA, "CUDA device %d is lost: %s", device->ordinal, device->cause);
    else status = kvf_task_submit(task, true, &touched);
    if (status != KVF_OK && !touched) {
        kvf_task_settle(task, status, 0, 0, kvf_error_text());
        kvf_task_free(task);
    }
    kvf_cuda_collect(device);
    pthread_mutex_lock(&device->lock);
    device->runs--;
    pthread_mutex_unlock(&device->lock);
}

static void *own_thread(void *argument) {
    run_queued(argument);
    return NULL;
}

int32_t kvf_task_queue(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    const bool waits = kvf_task_waits(task); /* its streams may fill up behind an event and block who submits */
    task->next = NULL;
    task->wakes = false;
    pthread_mutex_lock(&device->lock);
    bool stop = device->stop;
    if (!stop) {
        device->runs++; /* counts for close; given back once the task is started or has failed */
        if (!waits) {
            struct kvf_queue *queue = &device->queue[kvf_hop_direction(&task->hop)];
            if (queue->last) queue->last->next = task;
            else queue->first = task;
            queue->last = task;
            task->queued = true;
            atomic_fetch_add_explicit(&queue->length, 1, memory_order_relaxed);
            pthread_cond_signal(&queue->queued);
        }
    }
    pthread_mutex_unlock(&device->lock);
    if (stop) return kvf_refuse(KVF_E_CLOSED, "CUDA: device %d is closing", device->ordinal);
    if (!waits) return KVF_OK;
    pthread_t thread;
    int32_t status = kvf_thread_start(&thread, "kvf-cuda-waiter", own_thread, task);
    if (status == KVF_OK) pthread_detach(thread);
    else {
        pthread_mutex_lock(&device->lock);
        device->runs--;
        pthread_mutex_unlock(&device->lock);
    }
    return status;
}

struct kvf_queue *kvf_queue_to_stir(const kvf_task *task, uint64_t now) {
    return task->queued && now >= task->begun + STIR_AFTER ? &task->device->queue[task->direction] : NULL;
}

void kvf_queue_stir(struct kvf_queue *queue) {
    pthread_mutex_lock(&queue->device->lock);
    queue->awake_until = kvf_now_nanos() + STIR;
    pthread_cond_signal(&queue->queued);
    pthread_mutex_unlock(&queue->device->lock);
}

/* Sleeps until something is queued, or looks for it while the thread is to stay awake. The device is locked. */
static void await_queued(struct kvf_queue *queue) {
    kvf_cuda_device *device = queue->device;
    const uint64_t until = queue->awake_until;
    if (kvf_now_nanos() >= until) {
        pthread_cond_wait(&queue->queued, &device->lock);
        return;
    }
    pthread_mutex_unlock(&device->lock);
    while (atomic_load_explicit(&queue->length, memory_order_relaxed) == 0 && kvf_now_nanos() < until) kvf_relax();
    pthread_mutex_lock(&device->lock);
}

void *kvf_cuda_submit_thread(void *argument) {
    struct kvf_queue *queue = argument;
    kvf_cuda_device *device = queue->device;
    pthread_mutex_lock(&device->lock);
    for (;;) {
        while (!queue->first && !device->stop) await_queued(queue);
        kvf_task *task = queue->first;
        if (!task) break;
        queue->first = task->next;
        atomic_fetch_sub_explicit(&queue->length, 1, memory_order_relaxed);
        if (!queue->first) queue->last = NULL;
        pthread_mutex_unlock(&device->lock);
        run_queued(task);
        pthread_mutex_lock(&device->lock);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

/* Ends every task of a device whose context is of no use any more. What its kernels and copies did is not known. */
void kvf_cuda_poison(kvf_cuda_device *device) {
    char text[KVF_TEXT_BYTES];
    snprintf(text, sizeof text, "%s", kvf_error_text());
    pthread_mutex_lock(&device->lock);
    bool first = !device->poisoned;
    if (first) {
        snprintf(device->cause, sizeof device->cause, "%s", text);
        device->poisoned = true;
    }
    kvf_task *running = device->running;
    pthread_mutex_unlock(&device->lock);
    /* Tasks of a poisoned device stay on its list for good; new ones come in front. */
    for (kvf_task *task = running; task; task = task->next)
        kvf_task_settle(task, KVF_E_CUDA, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT, 0, device->cause);
    kvf_set_error("%s", text);
}

/* Frees what is over, and finds out when a context has died: the driver calls nobody back then. */
void *kvf_cuda_watch_thread(void *argument) {
    kvf_cuda_device *device = argument;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    uint32_t idle = 0;
    pthread_mutex_lock(&device->lock);
    while (!device->stop) {
        if (!device->watching) {
            pthread_cond_wait(&device->watched, &device->lock);
            idle = 0;
            continue;
        }
        kvf_condition_wait_until(&device->watched, &device->lock, kvf_now_nanos() + LOOK_EVERY);
        if (device->stop) break;
        if (atomic_exchange(&device->overslept, false)) pthread_cond_signal(&device->look); /* nobody woke it as was promised */
        bool poisoned = device->poisoned;
        idle = device->running && !poisoned ? 0 : idle + 1;
        if (idle > LOOK_ON) {
            device->watching = false;
            continue;
        }
        cu_stream any = device->running ? device->running->last : NULL; /* lanes stay until the device is closed */
        pthread_mutex_unlock(&device->lock);
        kvf_cuda_collect(device);
        if (poisoned) kvf_cuda_poison(device); /* what was started while it was being poisoned */
        else if (any && kvf_cuda_enter(device) == KVF_OK) {
            cu_result result = cu->stream_query(any);
            if (result != CU_OK && result != CU_NOT_READY) kvf_cuda_failed(device, result, "CUDA: a kernel or copy failed");
            kvf_cuda_leave();
        }
        pthread_mutex_lock(&device->lock);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}
