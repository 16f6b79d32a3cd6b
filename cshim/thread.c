#include "thread.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "status.h"

#define NANOS 1000000000u

int32_t kvf_thread_start(pthread_t *out, const char *name, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(out, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return kvf_refuse_errno(failed, "thread %s could not be started", name);
    char cut[16];
    strncpy(cut, name, sizeof cut - 1);
    cut[sizeof cut - 1] = 0;
    pthread_setname_np(*out, cut);
    return KVF_OK;
}

int32_t kvf_thread_join_by(pthread_t thread, uint64_t deadline) {
    uint64_t now = kvf_now_nanos();
    uint64_t wait = deadline > now ? deadline - now : 0;
    if (wait == 0) return pthread_tryjoin_np(thread, NULL) == 0 ? KVF_OK : KVF_AGAIN;
    /* The only join with a clock in old C libraries counts on the wall clock. */
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t nanos = (uint64_t)until.tv_nsec + wait % NANOS;
    until.tv_sec += (time_t)(wait / NANOS + nanos / NANOS);
    until.tv_nsec = (long)(nanos % NANOS);
    return pthread_timedjoin_np(thread, NULL, &until) == 0 ? KVF_OK : KVF_AGAIN;
}

uint64_t kvf_now_nanos(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NANOS + (uint64_t)now.tv_nsec;
}

struct timespec kvf_timespec_at(uint64_t nanos) {
    struct timespec at = {.tv_sec = (time_t)(nanos / NANOS), .tv_nsec = (long)(nanos % NANOS)};
    return at;
}

void kvf_condition_init(pthread_cond_t *condition) {
    pthread_condattr_t how;
    pthread_condattr_init(&how);
    pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &how);
    pthread_condattr_destroy(&how);
}

int32_t kvf_condition_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
    struct timespec until = kvf_timespec_at(deadline);
    return pthread_cond_timedwait(condition, mutex, &until) == ETIMEDOUT ? KVF_AGAIN : KVF_OK;
}
