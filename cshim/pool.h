/*
 * pool.h - the process's pool of copy threads. Their one job: take items of tasks and run them.
 */
#ifndef KVF_POOL_H
#define KVF_POOL_H

#include <stdint.h>

/* Work cut into items that may run in any order on several threads. An item should take about 100 microseconds, for
 * tasks that wait share the threads item by item. */
typedef struct kvf_task {
    void (*item)(struct kvf_task *task, uint64_t index); /* runs item `index` < items */
    void (*end)(struct kvf_task *task);                  /* once, after every item returned; may free the task */
    uint64_t items;                                      /* at least 1 */
    uint32_t width;                                      /* at most so many threads at once; at least 1 */
    /* the pool's own, zero when submitted */
    uint64_t claimed;
    uint32_t active;
    struct kvf_task *next;
} kvf_task;

/* Hands a task to the pool, which grows to the task's width. On failure (no thread at all could be started) the task was
 * not taken. */
int32_t kvf_pool_submit(kvf_task *task);

/* Ends and joins the pool's threads once all tasks are done or the deadline has passed; threads that are stuck then are
 * left behind with their pool, and the next task starts a new one. */
void kvf_pool_join(uint64_t deadline);

#endif
