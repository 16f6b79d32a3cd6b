/*
 * ring.h - the shared block of a context (kvf.h describes its words) and its doorbell.
 */
#ifndef KVF_RING_H
#define KVF_RING_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVF_RING_HEAD 0
#define KVF_RING_TAIL 1
#define KVF_RING_ARMED 2
#define KVF_RING_PROGRESS 3
#define KVF_RING_NOTIFICATIONS 4
#define KVF_RING_FIRST 16
#define KVF_RECORD_WORDS 8

#define KVF_SLOT_PROGRAMS 0
#define KVF_SLOT_WATCH 1
#define KVF_SLOT_CANCEL 2
#define KVF_SLOT_BYTES 4 /* a double over words 4 and 5 */

/* Owner of a shared block. The block's own memory is never unmapped (a JavaScript view of it must not dangle): it goes
 * to a list of blocks that much later contexts take from. */
typedef struct kvf_ring {
    uint32_t *words;
    size_t bytes;
    uint32_t slots;
    pthread_mutex_t bell; /* held while ringing, so that closing can wait for the last ring */
    void (*callback)(void);
    int socket; /* writing end, or -1 */
    bool silent;
} kvf_ring;

typedef struct kvf_completion {
    uint32_t slot;
    int32_t status;
    uint32_t flags;
    double value;
    double micros;
} kvf_completion;

int32_t kvf_ring_init(kvf_ring *ring, uint32_t slots);
void kvf_ring_destroy(kvf_ring *ring);
/* Never rings again after it returned. Closes the socket. */
void kvf_ring_silence(kvf_ring *ring);

uint32_t kvf_ring_load(const kvf_ring *ring, uint32_t word);
void kvf_ring_store(kvf_ring *ring, uint32_t word, uint32_t value);
/* First word of a slot's record. */
uint32_t kvf_ring_slot_word(const kvf_ring *ring, uint32_t slot);

/* Appends a completion; the caller holds the context's lock and has reserved room. Does not ring. */
void kvf_ring_push(kvf_ring *ring, const kvf_completion *completion);
/* Completions that JavaScript has not taken. */
uint32_t kvf_ring_unread(const kvf_ring *ring);
/* Rings if JavaScript armed the bell. */
void kvf_ring_bell(kvf_ring *ring);

#endif
