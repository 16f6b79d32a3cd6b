/*
 * nixl_inbox.h - received notifications on their way to JavaScript: a bounded queue of framed records.
 *
 * A record is u32 name bytes, u32 payload bytes, name, payload, padded with zeros to a multiple of 4.
 */
#ifndef KVF_NIXL_INBOX_H
#define KVF_NIXL_INBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The thread that fills it stops asking NIXL above this, so that nothing is dropped: NIXL keeps the rest. */
#define KVF_INBOX_BYTES ((size_t)16 << 20)

typedef struct kvf_record kvf_record;

typedef struct kvf_inbox {
    pthread_mutex_t mutex;
    kvf_record *first;
    kvf_record *last;
    size_t bytes;
    uint64_t dropped; /* memory for a record could not be had */
} kvf_inbox;

void kvf_inbox_init(kvf_inbox *inbox);
/* Frees what was not taken. */
void kvf_inbox_destroy(kvf_inbox *inbox);
/* True when it holds KVF_INBOX_BYTES or more. */
bool kvf_inbox_full(kvf_inbox *inbox);
/* Adds a copy; a record for which there is no memory is counted as dropped. */
void kvf_inbox_add(kvf_inbox *inbox, const char *name, const void *payload, size_t length);
/* Appends all of `from`, which is empty then: whoever takes sees all of them or none. */
void kvf_inbox_move(kvf_inbox *inbox, kvf_inbox *from);
/* Moves as many whole records as fit. out[0] = bytes written, out[1] = dropped so far, out[2] = bytes still queued.
 * KVF_OK, or KVF_AGAIN when nothing was written: the queue is empty (out[2] is 0), or `capacity` is too small. */
int32_t kvf_inbox_take(kvf_inbox *inbox, uint8_t *bytes, size_t capacity, double *out);

#endif
