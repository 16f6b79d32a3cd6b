/*
 * cuda_look.c - how the end of a task is noticed.
 *
 * A sleeping thread that the driver wakes runs tens of microseconds after the device is done. So the end of a copy is
 * foreseen from the rate last seen: a thread sleeps until shortly before, looks at the flag that the stream writes, the
 * more often the nearer the end should be, and when the foreseen time is well past it leaves the task to the driver's
 * callback. With nothing in flight it sleeps for good.
 */
#include "cuda_device.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#include "status.h"
#include "thread.h"

#define MICRO UINT64_C(1000)
#define NEAR (64 * MICRO)          /* around the foreseen end it looks without pause */
#define PAUSE (20 * MICRO)         /* elsewhere at least that often */
#define EVENT_PAUSE (15 * MICRO)   /* for tasks that wait for events of others, whose end nobody can foresee */
#define EVENT_LOOKS (20000 * MICRO)
#define LATE (5000 * MICRO)
#define FORESIGHT (1000000 * MICRO) /* nobody sees further: what is queued longer is left to the driver's callback */
#define WAKE_EARLY (100 * MICRO)   /* a timed sleep may last that much longer */
#define SHORT (4 * MICRO)          /* not worth a sleep */
#define COLLECT_AT 64              /* tasks that ended */
#define LINGER (100 * MICRO)       /* awake after the last one, so that a chain of small copies wakes nobody */

#define EARLY (250 * MICRO)        /* it begins to look that long before the end, of short copies half their time before */
#define UNSEEN 3                   /* over before the first look, how long is not known: the next guess is much shorter */

static void learn(const kvf_task *task, uint64_t now);

/* The rate of copies like this one: those of other sizes do not tell how long it takes. */
static double *rate_of(const kvf_task *task) {
    uint32_t size = 0;
    while (size + 1 < KVF_SIZES && task->hop.bytes >> (22 + 2 * size)) size++;
    return &task->device->rate[task->direction][task->method % KVF_METHODS][size];
}

static uint64_t early(uint64_t lasts) {
    const uint64_t most = lasts / 2 < EARLY ? lasts / 2 : EARLY;
    return most > lasts / 4 ? most : lasts / 4;
}

bool kvf_task_flag(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    pthread_mutex_lock(&device->lock);
    bool got = device->free_flags > 0;
    if (got) {
        task->flag = 1u + device->free_flag[--device->free_flags];
        if (++device->numbers == 0) device->numbers = 1;
        task->number = device->numbers;
    }
    pthread_mutex_unlock(&device->lock);
    return got;
}

/* Gives a task to the looking thread. */
static void look_at(kvf_cuda_device *device, kvf_task *task) {
    task->look_next = atomic_load(&device->looked);
    while (!atomic_compare_exchange_weak(&device->looked, &task->look_next, task)) {}
}

void kvf_task_look(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    const uint64_t now = kvf_now_nanos();
    pthread_mutex_lock(&device->lock);
    uint64_t *expected = &device->expected[task->direction];
    const bool waits = kvf_task_waits(task); /* such a one says nothing about the link */
    task->lasts = (uint64_t)((double)task->hop.bytes / *rate_of(task));
    uint64_t starts = *expected > task->begun && !waits ? *expected : task->begun;
    if (starts > task->begun + FORESIGHT) starts = task->begun + FORESIGHT;
    if (!waits) *expected = starts + task->lasts;
    if (task->lasts > FORESIGHT) task->lasts = FORESIGHT;
    task->expected = starts + task->lasts + 5 * MICRO;
    task->look_from = waits ? task->begun : task->expected - early(task->lasts) - 5 * MICRO;
    task->look_until = waits ? now + EVENT_LOOKS : task->expected + task->lasts + LATE;
    const uint64_t from = task->look_from;
    const bool wakes = task->wakes;
    pthread_mutex_unlock(&device->lock);
    /* No lock from here on: the looking thread takes none while it is awake, so that neither waits for the other. */
    look_at(device, task);
    if (atomic_load(&device->looks) || from >= atomic_load(&device->look_at)) return;
    if (wakes) atomic_store(&device->overslept, true);
    else kvf_looker_wake(device);
}

void kvf_looker_wake(kvf_cuda_device *device) {
    atomic_store(&device->overslept, false);
    pthread_mutex_lock(&device->lock);
    pthread_cond_signal(&device->look);
    pthread_mutex_unlock(&device->lock);
}

static void on_done(void *argument) {
    kvf_task *task = argument;
    learn(task, kvf_now_nanos());
    atomic_fetch_sub(&task->lane->tasks, 1);
    kvf_task_settle(task, task->status, task->done_flags, task->value, task->text);
    atomic_store(&task->over, true);
}

int32_t kvf_task_call(kvf_task *task) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_result result = CU_OK;
    if (task->last != task->side) { /* recorded late, it may include what was queued since: later, never earlier */
        if (!task->recorded) result = cu->event_record(task->done, task->last);
        if (result == CU_OK) result = cu->stream_wait(task->side, task->done, 0);
    }
    if (result == CU_OK) result = cu->stream_call(task->side, on_done, task);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(task->device, result, "CUDA: the completion could not be queued");
}

/* What was seen of the link, for the next estimate. */
static void learn(const kvf_task *task, uint64_t now) {
    kvf_cuda_device *device = task->device;
    const kvf_direction way = task->direction;
    if (!task->expected || kvf_task_waits(task) || task->status != KVF_OK) return;
    pthread_mutex_lock(&device->lock);
    double *rate = rate_of(task);
    const bool alone = task->expected <= task->begun + task->lasts + 10 * MICRO; /* nothing was queued before it */
    if (alone && task->hop.bytes >= 1u << 20) {
        const uint64_t lasted = now > task->begun + 20 * MICRO ? now - task->begun - 10 * MICRO : 10 * MICRO;
        double seen = (double)task->hop.bytes / (double)lasted;
        if (!task->seen && seen < UNSEEN * *rate) seen = UNSEEN * *rate;
        *rate = seen < 0.05 ? 0.05 : (*rate + seen) / 2;
    }
    /* What is queued behind it ends as much earlier or later. */
    const uint64_t queued = device->expected[way] > task->expected ? device->expected[way] - task->expected : 0;
    device->expected[way] = now + (queued < FORESIGHT ? queued : FORESIGHT);
    pthread_mutex_unlock(&device->lock);
}

/* When to look at a task again. */
static uint64_t look_again(const kvf_task *task, uint64_t now) {
    if (now < task->look_from) return task->look_from;
    uint64_t far, most;
    if (kvf_task_waits(task)) {
        far = (now - task->begun) / 4;
        most = EVENT_PAUSE;
    } else {
        far = now < task->expected ? task->expected - now : now - task->expected;
        most = PAUSE;
    }
    const uint64_t pause = far < NEAR ? 0 : far / 16;
    return now + (pause < most ? pause : most);
}

/* Takes the tasks that are over, and those that took too long, off the list; answers when to look again. */
static uint64_t look_once(kvf_cuda_device *device, kvf_task **list, uint64_t now, kvf_task **over, kvf_task **late) {
    uint64_t again = UINT64_MAX;
    for (kvf_task **at = list; *at;) {
        kvf_task *task = *at;
        const bool written = __atomic_load_n(&device->flags[(task->flag - 1) * KVF_FLAG_WORDS], __ATOMIC_ACQUIRE) == task->number;
        if (written || now > task->look_until) {
            *at = task->look_next;
            kvf_task **to = written ? over : late;
            task->look_next = *to;
            *to = task;
            continue;
        }
        const uint64_t next = look_again(task, now);
        if (now >= task->look_from) task->seen = true;
        if (next < again) again = next;
        at = &task->look_next;
    }
    return again;
}

static void end_looks(kvf_cuda_device *device, kvf_task *over, kvf_task *late) {
    while (over) {
        kvf_task *next = over->look_next;
        struct kvf_queue *queue = kvf_queue_to_stir(over, kvf_now_nanos());
        on_done(over);
        if (queue) kvf_queue_stir(queue);
        over = next;
    }
    if (!late) return;
    const bool entered = !atomic_load(&device->poisoned) && kvf_cuda_enter(device) == KVF_OK;
    while (late) {
        kvf_task *next = late->look_next;
        /* Where the driver does not take it, it is looked at for a while more. A poisoned device settles its tasks. */
        if (!atomic_load(&late->settled) && !atomic_load(&device->poisoned) && !(entered && kvf_task_call(late) == KVF_OK)) {
            late->look_until = kvf_now_nanos() + LATE;
            look_at(device, late);
        }
        late = next;
    }
    if (entered) kvf_cuda_leave();
}

void *kvf_cuda_look_thread(void *argument) {
    kvf_cuda_device *device = argument;
    kvf_task *list = NULL;
    uint64_t busy = 0;
    uint32_t ended = 0; /* since they were freed last: their flags are wanted again */
    bool stop = false;
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    atomic_store(&device->looks, true);
    while (!stop) {
        kvf_task *more = atomic_load_explicit(&device->looked, memory_order_relaxed) ? atomic_exchange(&device->looked, NULL) : NULL;
        while (more) {
            kvf_task *next = more->look_next;
            more->look_next = list;
            list = more;
            more = next;
        }
        const uint64_t now = kvf_now_nanos();
        kvf_task *over = NULL, *late = NULL;
        const uint64_t again = look_once(device, &list, now, &over, &late);
        if (over || late) {
            for (const kvf_task *task = over; task; task = task->look_next) ended++;
            end_looks(device, over, late);
            busy = kvf_now_nanos();
            if (ended >= COLLECT_AT) {
                kvf_cuda_collect(device);
                ended = 0;
            }
        } else if (again > now + WAKE_EARLY && now > busy + LINGER) {
            pthread_mutex_lock(&device->lock);
            atomic_store(&device->look_at, again);
            atomic_store(&device->looks, false);
            if (!device->stop && !atomic_load(&device->looked)) {
                if (again == UINT64_MAX) pthread_cond_wait(&device->look, &device->lock);
                else kvf_condition_wait_until(&device->look, &device->lock, again - WAKE_EARLY);
            }
            atomic_store(&device->looks, true);
            stop = device->stop;
            pthread_mutex_unlock(&device->lock);
        } else if (again > now + SHORT && again != UINT64_MAX) {
            uint64_t pause = again - now < PAUSE ? again - now : PAUSE; /* new tasks are seen that late at most */
            nanosleep(&(struct timespec){0, (long)(pause - SHORT / 2)}, NULL);
        } else {
            for (int i = 0; i < 16; i++) kvf_relax();
            if ((now >> 12 & 3) == 0) sched_yield();
        }
    }
    return NULL;
}
