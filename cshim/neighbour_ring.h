/*
 * neighbour_ring.h - a ring of bytes in memory that two processes share: one writes messages into it, the other reads them.
 *
 * Each end keeps its own position to itself and believes nothing that the other end wrote: it is copied once and looked at
 * then. Positions count bytes since the beginning and are multiples of 8.
 *
 * Nobody is woken here. An end that is about to sleep says so (`*_waits`), looks once more, and the other end, which looks
 * at that word after each of its own steps, owes it one packet on their socket. It is not an eventfd: how a write to one of
 * those behaves is up to every process that holds it, so that a hostile neighbour could make this one wait for ever.
 */
#ifndef KVF_NEIGHBOUR_RING_H
#define KVF_NEIGHBOUR_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "neighbour.h"

/* Bytes of records that a ring holds: a power of two. */
#define KVF_BYTE_RING_BYTES ((uint64_t)256 << 10)
/* Where they begin, after the words of both ends. */
#define KVF_BYTE_RING_FIRST ((uint64_t)4096)
/* Bytes of the file: no multiple of a huge page, so that no file of huge pages that may be lacking passes for it. */
#define KVF_BYTE_RING_FILE (KVF_BYTE_RING_FIRST + KVF_BYTE_RING_BYTES)

/* The beginning of the file; each end's words on cache lines of their own. */
typedef struct kvf_byte_ring_words {
    uint64_t head;         /* the writer's position */
    uint32_t writer_waits; /* 1: it wants to be woken when there is room */
    uint8_t apart[116];
    uint64_t tail;         /* the reader's position */
    uint32_t reader_waits; /* 1: it wants to be woken when there is something to read */
} kvf_byte_ring_words;

/* What a record is: the rest of a message, a part of one with more to come, or nothing itself: the next message is the one
 * that came over the socket. A record is a word of its bytes, a word of what it is, the bytes, and padding up to 8. */
enum { KVF_RECORD_LAST, KVF_RECORD_MORE, KVF_RECORD_SOCKET };
#define KVF_RECORD_HEAD ((uint64_t)8)

/* One end of a ring. */
typedef struct kvf_byte_ring {
    uint8_t *memory; /* NULL: there is none */
    uint64_t own;    /* this end's position */
    uint64_t other;  /* the other end's, as last seen */
    uint64_t told;   /* this end's, as the other one can see it */
} kvf_byte_ring;

/* Makes a ring to write to. *descriptor = its file, the caller's, for the reader. KVF_OK, or a status with the text set. */
int32_t kvf_byte_ring_make(kvf_byte_ring *out, int *descriptor);
/* Maps a ring to read from; the descriptor stays the caller's. KVF_E_INVALID for a file that is no ring. */
int32_t kvf_byte_ring_open(kvf_byte_ring *out, int descriptor);
void kvf_byte_ring_close(kvf_byte_ring *ring);

/* True when a message of that length would be written whole. */
bool kvf_byte_ring_fits(const kvf_byte_ring *ring, size_t length);
/* Writes what is left of a message from *sent on (`socket`: a record that stands for one on the socket, of no bytes). MORE:
 * all of it. WAIT: there is no room, and the reader will tell. BROKEN: the reader's position is none. */
kvf_link_state kvf_byte_ring_write(kvf_byte_ring *ring, bool socket, const uint8_t *bytes, size_t length, size_t *sent);
/* After writing: true when the reader is to be woken. */
bool kvf_byte_ring_wakes_reader(kvf_byte_ring *ring);

/* Reads one record and appends its bytes to a message. MORE: *kind says what it was. WAIT: there is none. BROKEN: *why says
 * why. */
kvf_link_state kvf_byte_ring_read(kvf_byte_ring *ring, kvf_incoming *message, uint32_t *kind, const char **why);
/* Gives the room of what was read back; true when the writer is to be woken. */
bool kvf_byte_ring_release(kvf_byte_ring *ring);
/* The reader is about to sleep, and wants to be woken; true when there is something to read after all. */
bool kvf_byte_ring_sleep(kvf_byte_ring *ring);
/* The reader looks by itself and need not be woken. */
void kvf_byte_ring_awake(kvf_byte_ring *ring);

#endif
