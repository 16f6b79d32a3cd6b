/*
 * driver.h - what the parts of the driver share: checking, random numbers, waiting for a slot as JavaScript does.
 */
#ifndef KVF_DRIVER_H
#define KVF_DRIVER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvf.h"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* xorshift64* (Vigna, 2016): the same cases at every run. */
static uint64_t random_state = 0x2545f4914f6cdd1du;

static inline uint64_t random_word(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

static inline uint64_t below(uint64_t limit) { return (random_word() >> 16) % limit; }

/* Mappings of files in memory in this process. */
static inline int mapped_files(void) {
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps);
    char line[512];
    int count = 0;
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "/memfd:")) count++;
    fclose(maps);
    return count;
}

/* JavaScript's side of a context. */
typedef struct client {
    kvf_word context;
    uint32_t *words;
    uint32_t slots;
} client;

typedef struct answer {
    uint32_t slot;
    int32_t status;
    uint32_t flags;
    double value;
    double micros;
} answer;

static inline client open_client(uint32_t slots) {
    double out[3];
    CHECK(kvf_context_open(slots, out) == KVF_OK);
    return (client){.context = (kvf_word)out[0], .words = (uint32_t *)(uintptr_t)out[1], .slots = slots};
}

/* Takes one completion off the ring. */
static inline bool take(client *self, answer *to) {
    uint32_t tail = __atomic_load_n(self->words + 1, __ATOMIC_SEQ_CST);
    if (tail == __atomic_load_n(self->words, __ATOMIC_SEQ_CST)) return false;
    const uint32_t *record = self->words + 16 + (size_t)(tail & (self->slots - 1)) * 8;
    to->slot = record[0];
    to->status = (int32_t)record[1];
    to->flags = record[2];
    memcpy(&to->value, record + 4, 8);
    memcpy(&to->micros, record + 6, 8);
    __atomic_store_n(self->words + 1, tail + 1, __ATOMIC_SEQ_CST);
    return true;
}

static inline answer await(client *self) {
    answer got;
    for (int tries = 0; !take(self, &got); tries++) {
        CHECK(tries < 600000);
        struct timespec pause = {.tv_nsec = 100000};
        nanosleep(&pause, NULL);
    }
    return got;
}

static inline uint32_t *slot_record(const client *self, uint32_t slot) {
    return self->words + 16 + (size_t)(self->slots + slot) * 8;
}

static inline double close_client(client *self, uint32_t millis) {
    double left = -1;
    CHECK(kvf_context_close(self->context, millis, &left) == KVF_OK);
    return left;
}

#endif
