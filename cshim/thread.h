/*
 * thread.h - starting threads and reading the clock, the same way everywhere.
 */
#ifndef KVF_THREAD_H
#define KVF_THREAD_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

/* Starts a joinable thread with a name (15 bytes at most, shown by ps and debuggers), with all signals blocked, so that
 * the host program's handlers never run on it. KVF_OK or KVF_E_SYSTEM (text set). */
int32_t kvf_thread_start(pthread_t *out, const char *name, void *(*run)(void *), void *argument);

/* Joins by a deadline (a kvf_now_nanos value; past: only when it has already ended). KVF_OK, or KVF_AGAIN when the
 * thread still runs: it was not joined then and may be tried again. */
int32_t kvf_thread_join_by(pthread_t thread, uint64_t deadline);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t kvf_now_nanos(void);
/* That clock's value as a timespec, for condition variables made by kvf_condition_init. */
struct timespec kvf_timespec_at(uint64_t nanos);
/* Makes a condition variable that waits on CLOCK_MONOTONIC. */
void kvf_condition_init(pthread_cond_t *condition);
/* Waits until signalled or the deadline passes; KVF_OK or KVF_AGAIN (the deadline passed). */
int32_t kvf_condition_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline);

/* A pause of some nanoseconds for a thread that looks for something again and again. */
static inline void kvf_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
