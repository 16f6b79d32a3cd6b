/*
 * nixl_jobs.h - what the native NIXL programs share: jobs awaited one by one, hops built from rows, bytes by pattern.
 */
#ifndef NIXL_JOBS_H
#define NIXL_JOBS_H

#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvf.h"

#define SLOTS 256u

typedef struct outcome {
    bool there;
    int32_t status;
    uint32_t flags;
    double value;
    double micros;
    char text[512];
} outcome;

static kvf_word context;
static _Atomic uint32_t *block;
static outcome outcomes[SLOTS];

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline void nap(double s) {
    nanosleep(&(struct timespec){(time_t)s, (long)((s - (double)(time_t)s) * 1e9)}, NULL);
}

static sem_t bell;

static inline void ring(void) {
    sem_post(&bell);
}

static inline void open_context(void) {
    double out[3];
    if (kvf_context_open(SLOTS, out) != KVF_OK || sem_init(&bell, 0, 0) != 0) abort();
    context = (kvf_word)out[0];
    block = (_Atomic uint32_t *)(uintptr_t)out[1];
    if (kvf_context_ring_by_callback(context, (kvf_word)(uintptr_t)ring) != KVF_OK) abort();
}

/* Waits for the bell, at most a few milliseconds, so that nothing competes with the threads that work. */
static inline void wait_for_bell(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 5000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    atomic_store(&block[2], 1);
    if (atomic_load(&block[0]) == atomic_load(&block[1])) sem_timedwait(&bell, &until);
}

/* Takes what is on the ring. */
static inline void drain(void) {
    uint32_t head = atomic_load(&block[0]), tail = atomic_load(&block[1]);
    for (; tail != head; tail++) {
        uint32_t words[8];
        for (uint32_t i = 0; i < 8; i++) words[i] = atomic_load_explicit(&block[16 + (tail % SLOTS) * 8 + i], memory_order_relaxed);
        outcome *o = &outcomes[words[0]];
        if (o->there) abort(); /* two completions of one job */
        o->there = true;
        o->status = (int32_t)words[1];
        o->flags = words[2];
        memcpy(&o->value, &words[4], 8);
        memcpy(&o->micros, &words[6], 8);
        o->text[0] = 0;
        kvf_slot_error(context, words[0], o->text, sizeof o->text);
        atomic_store(&block[1], tail + 1);
    }
}

/* Waits for the job that `started` begot in `slot`; a refused start counts as its outcome. */
static inline outcome await_for(int32_t started, uint32_t slot, double bound) {
    outcome o;
    memset(&o, 0, sizeof o);
    if (started != KVF_OK) {
        o.there = true;
        o.status = started;
        kvf_last_error(o.text, sizeof o.text);
        return o;
    }
    double begin = seconds();
    for (uint32_t turn = 0;; turn++) {
        drain();
        if (outcomes[slot].there) {
            o = outcomes[slot];
            outcomes[slot].there = false;
            return o;
        }
        if (seconds() - begin > bound) {
            o.status = 1000;
            snprintf(o.text, sizeof o.text, "no completion within %g s", bound);
            return o;
        }
        if (turn > 100) wait_for_bell();
    }
}

static inline outcome await(int32_t started, uint32_t slot) {
    return await_for(started, slot, 20);
}

static inline double progress_bytes(uint32_t slot) {
    uint32_t words[2];
    uint32_t at = 16 + SLOTS * 8 + slot * 8 + 4;
    words[0] = atomic_load(&block[at]);
    words[1] = atomic_load(&block[at + 1]);
    double value;
    memcpy(&value, words, 8);
    return value;
}

static inline uint32_t progress_programs(uint32_t slot) {
    return atomic_load(&block[16 + SLOTS * 8 + slot * 8]);
}

/* A hop of one program: `pairs` rows of `row` bytes from src + a[i] to dst + b[i] (NULL: i * row). Freed by the caller. */
static inline double *rows_hop(uint64_t src, uint64_t dst, const uint32_t *a, const uint32_t *b, uint32_t pairs, double row,
                        kvf_word *words) {
    size_t count = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + 2 + 2 * (size_t)pairs;
    double *hop = calloc(count, sizeof *hop);
    if (!hop) abort();
    hop[0] = KVF_HOP_MAGIC;
    hop[1] = KVF_HOP_VERSION;
    hop[2] = pairs > 0;
    hop[3] = (double)count;
    hop[4] = row * pairs;
    if (pairs == 0) {
        hop[3] = KVF_HOP_HEADER_WORDS;
        *words = KVF_HOP_HEADER_WORDS;
        return hop;
    }
    double *p = hop + KVF_HOP_HEADER_WORDS;
    size_t at = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS;
    p[0] = 1;
    p[1] = pairs;
    p[3] = row;
    p[28] = (double)at;
    p[29] = (double)at + 1;
    p[30] = (double)at + 2;
    p[31] = (double)at + 2 + pairs;
    p[33] = row * pairs;
    hop[at] = (double)src;
    hop[at + 1] = (double)dst;
    for (uint32_t i = 0; i < pairs; i++) {
        hop[at + 2 + i] = (a ? a[i] : i) * row;
        hop[at + 2 + pairs + i] = (b ? b[i] : i) * row;
    }
    *words = count;
    return hop;
}

static inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Every 8 bytes tell their seed and their place. */
static inline void paint(unsigned char *memory, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t word = mix(seed * 0x100000001b3ull + i);
        memcpy(memory + i, &word, 8);
    }
}

static inline uint32_t *permutation(uint32_t count, uint64_t seed) {
    uint32_t *order = malloc(count * sizeof *order);
    if (!order) abort();
    for (uint32_t i = 0; i < count; i++) order[i] = i;
    for (uint32_t i = count - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(mix(seed + i) % (i + 1)), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    return order;
}

/* ---- agents ---------------------------------------------------------------------------------------------------- */

static inline kvf_word make_agent(const char *name, uint32_t lanes, const char *parameters) {
    outcome o = await(kvf_nixl_agent_job(context, 0, name, 10000, lanes), 0);
    if (o.status != KVF_OK) {
        fprintf(stderr, "agent %s: %d %s\n", name, o.status, o.text);
        exit(1);
    }
    kvf_word agent = (kvf_word)o.value;
    o = await(kvf_nixl_backend_job(context, 0, agent, "UCX", parameters), 0);
    if (o.status != KVF_OK) {
        fprintf(stderr, "backend of %s: %d %s\n", name, o.status, o.text);
        exit(1);
    }
    return agent;
}

static inline outcome register_memory(kvf_word agent, const void *memory, double bytes) {
    double region[3] = {(double)(uintptr_t)memory, bytes, 0};
    return await(kvf_nixl_register_job(context, 0, agent, KVF_MEM_DRAM, region, 1), 0);
}

/* The agent's metadata; freed by the caller. */
static inline uint8_t *export_of(kvf_word agent, size_t *length) {
    outcome o = await(kvf_nixl_metadata_job(context, 0, agent, 0, 0, NULL, 0), 0);
    double out[1];
    uint8_t *bytes = malloc(1 << 20);
    if (!bytes || o.status != KVF_OK || kvf_slot_result(context, 0, bytes, 1 << 20, out) != KVF_OK) {
        fprintf(stderr, "metadata: %d %s\n", o.status, o.text);
        exit(1);
    }
    *length = (size_t)out[0];
    return bytes;
}

/* Takes the next notification within `bound` seconds: its length, or -1. Keeps what came with it for later. */
static inline long next_notification(kvf_word agent, char *name, char *payload, size_t capacity, double bound) {
    static uint8_t buffer[1 << 20];
    static size_t at, end;
    double begin = seconds();
    while (at == end) {
        double out[3];
        if (kvf_nixl_take_notifications(agent, buffer, sizeof buffer, out) == KVF_OK) {
            at = 0;
            end = (size_t)out[0];
            break;
        }
        if (seconds() - begin > bound) return -1;
        nap(50e-6);
    }
    uint32_t head[2];
    memcpy(head, buffer + at, 8);
    memcpy(name, buffer + at + 8, head[0]);
    name[head[0]] = 0;
    if (head[1] < capacity) {
        memcpy(payload, buffer + at + 8 + head[0], head[1]);
        payload[head[1]] = 0;
    }
    at += (8 + (size_t)head[0] + head[1] + 3) & ~(size_t)3;
    return head[1];
}

/* ---- verdicts --------------------------------------------------------------------------------------------------- */

static int failures;

/* One line for each named case: `ok NAME | facts`, or `not ok NAME | why`. */
static inline void __attribute__((format(printf, 3, 4))) verdict(const char *name, bool good, const char *format, ...) {
    char why[512];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    printf("%s %s | %s\n", good ? "ok" : "not ok", name, why);
    fflush(stdout);
    failures += !good;
}

#endif
