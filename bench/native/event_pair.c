/*
 * event_pair.c - the round trip of an eventfd between two processes, halved: the limit of row F18. No part of kvferry is
 * in it.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static int there = -1, back = -1;
static pid_t other;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* Starts the process at the other end; 0 when it runs. */
EXPORT int32_t bench_event_start(void) {
    there = eventfd(0, EFD_CLOEXEC);
    back = eventfd(0, EFD_CLOEXEC);
    if (there < 0 || back < 0) return -1;
    pid_t parent = getpid();
    other = fork();
    if (other < 0) return -1;
    if (other == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        for (uint64_t value; read(there, &value, sizeof value) == sizeof value;) {
            value = 1;
            if (write(back, &value, sizeof value) != sizeof value) break;
        }
        _exit(0);
    }
    return 0;
}

/* Microseconds of half a round trip. */
EXPORT double bench_event_half_trip(void) {
    uint64_t value = 1;
    double begun = now();
    if (write(there, &value, sizeof value) != sizeof value || read(back, &value, sizeof value) != sizeof value) return -1;
    return (now() - begun) / 2;
}

EXPORT void bench_event_stop(void) {
    kill(other, SIGKILL);
    waitpid(other, 0, 0);
    close(there);
    close(back);
}
