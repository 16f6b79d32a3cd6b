#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "status.h"
#include "thread.h"

#define MOST_THREADS 256u
/* A thread that ran out of work looks for more so long before it sleeps: being woken costs both sides several
 * microseconds, and a job often follows another. One thread at a time does so. */
#define LOOK_NANOS 30000u
/* Items of a task from which on two sleeping threads are woken at once. */
#define WAKE_TWO_ITEMS 8u

typedef struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    kvf_task *first; /* tasks with items that nobody has claimed, next turn first */
    kvf_task *last;
    uint32_t threads;
    uint32_t idle;       /* threads that sleep */
    uint32_t submitted;  /* atomic, raised under the lock: tasks so far */
    bool looking;        /* a thread is awake and looks for work */
    bool may_look;       /* there is more than one processor */
    bool ending;
    pthread_t thread[MOST_THREADS];
} pool;

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static pool *current;

static void append(pool *self, kvf_task *task) {
    task->next = NULL;
    if (self->last) self->last->next = task;
    else self->first = task;
    self->last = task;
}

static kvf_task *take_first(pool *self) {
    kvf_task *task = self->first;
    self->first = task->next;
    if (!self->first) self->last = NULL;
    return task;
}

/* Does a task wait for another thread? */
static bool wanted(const pool *self) {
    for (const kvf_task *task = self->first; task; task = task->next)
        if (task->active < task->width) return true;
    return false;
}

/* Waits for a submission, awake, for a short time. The lock is held before and after, not during. */
static void look(pool *self) {
    uint32_t seen = __atomic_load_n(&self->submitted, __ATOMIC_RELAXED);
    self->looking = true;
    pthread_mutex_unlock(&self->lock);
    uint64_t until = kvf_now_nanos() + LOOK_NANOS;
    /* Yielding, for the thread that is to submit may wait for this very processor. */
    while (__atomic_load_n(&self->submitted, __ATOMIC_RELAXED) == seen && kvf_now_nanos() < until) sched_yield();
    pthread_mutex_lock(&self->lock);
    self->looking = false;
}

/* Claims one item of the next task that may use another thread. Tasks take turns. */
static kvf_task *claim(pool *self, uint64_t *index) {
    kvf_task *stop = self->last;
    while (self->first) {
        kvf_task *task = take_first(self);
        bool free_place = task->active < task->width;
        bool was_last = task == stop;
        if (free_place) {
            *index = task->claimed++;
            task->active++;
            if (task->claimed < task->items) append(self, task);
            /* Each thread wakes one more, so that submitting costs two wake-ups at most, whatever the width. */
            if (self->idle > 0 && !self->looking && wanted(self)) pthread_cond_signal(&self->work);
            return task;
        }
        append(self, task);
        if (was_last) return NULL;
    }
    return NULL;
}

static void *work(void *argument) {
    pool *self = argument;
    bool worked = false;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        uint64_t index;
        kvf_task *task = claim(self, &index);
        if (!task && worked && self->may_look && !self->looking && !self->ending) {
            worked = false;
            look(self);
            continue;
        }
        if (!task) {
            /* Every waiting task already has its width, so ending may not wait for them here: others serve them. */
            if (self->ending && !self->first) break;
            self->idle++;
            pthread_cond_wait(&self->work, &self->lock);
            self->idle--;
            continue;
        }
        pthread_mutex_unlock(&self->lock);
        worked = true;
        task->item(task, index);
        pthread_mutex_lock(&self->lock);
        task->active--;
        if (task->active == 0 && task->claimed == task->items) {
            pthread_mutex_unlock(&self->lock);
            task->end(task);
            pthread_mutex_lock(&self->lock);
        }
    }
    pthread_cond_broadcast(&self->work); /* others may have slept while tasks still waited */
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

/* The caller holds pool_lock. */
static pool *pool_of_process(void) {
    if (current) return current;
    pool *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->work, NULL);
    made->may_look = sysconf(_SC_NPROCESSORS_ONLN) > 1;
    current = made;
    return made;
}

int32_t kvf_pool_submit(kvf_task *task) {
    task->claimed = 0;
    task->active = 0;
    uint64_t threads = task->items < task->width ? task->items : task->width;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    pthread_mutex_lock(&pool_lock);
    pool *self = pool_of_process();
    if (!self) {
        pthread_mutex_unlock(&pool_lock);
        return kvf_refuse(KVF_E_NOMEM, "no memory for the copy pool");
    }
    int32_t status = KVF_OK;
    while (self->threads < threads && status == KVF_OK) {
        status = kvf_thread_start(&self->thread[self->threads], "kvf-copy", work, self);
        if (status == KVF_OK) self->threads++;
    }
    if (self->threads > 0) {
        status = KVF_OK;
        pthread_mutex_lock(&self->lock);
        append(self, task);
        __atomic_store_n(&self->submitted, self->submitted + 1, __ATOMIC_RELAXED);
        bool wake = self->idle > 0 && !self->looking;
        /* For large work the second thread is not left to the first: that one may take as long again to wake up. */
        bool wake_second = threads > 1 && task->items >= WAKE_TWO_ITEMS && self->idle > (wake ? 1u : 0u);
        pthread_mutex_unlock(&self->lock);
        if (wake) pthread_cond_signal(&self->work);
        if (wake_second) pthread_cond_signal(&self->work);
    }
    pthread_mutex_unlock(&pool_lock);
    return status;
}

void kvf_pool_join(uint64_t deadline) {
    pthread_mutex_lock(&pool_lock);
    pool *self = current;
    current = NULL;
    pthread_mutex_unlock(&pool_lock);
    if (!self) return;
    pthread_mutex_lock(&self->lock);
    self->ending = true;
    pthread_cond_broadcast(&self->work);
    pthread_mutex_unlock(&self->lock);
    uint32_t left = 0;
    for (uint32_t k = 0; k < self->threads; k++)
        if (kvf_thread_join_by(self->thread[k], deadline) != KVF_OK) {
            pthread_detach(self->thread[k]);
            left++;
        }
    if (left) return; /* the pool belongs to the threads that are stuck */
    pthread_cond_destroy(&self->work);
    pthread_mutex_destroy(&self->lock);
    free(self);
}
