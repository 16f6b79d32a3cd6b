/*
 * neighbour.h - connections to processes of this host, as the parts of the neighbour object share them. The public side
 * is in kvf.h.
 */
#ifndef KVF_NEIGHBOUR_H
#define KVF_NEIGHBOUR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A message, or the rest of one, that the socket did not take. Owns its descriptors. */
typedef struct kvf_outgoing {
    struct kvf_outgoing *next;
    size_t length;
    size_t sent;
    uint32_t count; /* descriptors, which travel with the first packet */
    bool begun;     /* the first packet has gone */
    bool ring;      /* nothing but the file of a ring, which is its descriptor */
    int descriptors[128];
    uint8_t bytes[];
} kvf_outgoing;

/* An event on its way to JavaScript. Owns its descriptors until it is taken. */
typedef struct kvf_event {
    struct kvf_event *next;
    size_t length;
    uint32_t kind;
    uint32_t connection;
    uint32_t count;
    int descriptors[]; /* and the payload behind them */
} kvf_event;

/* What a packet is: a part of a message, the last part, a knock of an end that wrote to or read from a ring, or the file of
 * a ring, which is the message's only descriptor. */
typedef enum kvf_packet { KVF_PACKET_PART, KVF_PACKET_LAST, KVF_PACKET_KNOCK, KVF_PACKET_RING } kvf_packet;

/* How a send or a receive went. */
typedef enum kvf_link_state { KVF_LINK_MORE, KVF_LINK_WAIT, KVF_LINK_BROKEN } kvf_link_state;

/* A message that arrives in packets. */
typedef struct kvf_incoming {
    uint8_t *bytes;
    size_t length;
    size_t room;
    uint32_t count;
    int descriptors[128];
} kvf_incoming;

/* Makes a message of a copy of the bytes and of descriptors of its own: `pairs` as kvf_neighbour_send has them. NULL with
 * the text and *status set. */
kvf_outgoing *kvf_outgoing_make(const uint8_t *bytes, size_t length, const double *pairs, uint32_t count, int32_t *status);
/* Makes one of nothing but the file of a ring, which becomes its own. NULL with the text set: the file is closed. */
kvf_outgoing *kvf_outgoing_make_ring(int descriptor);
void kvf_outgoing_free(kvf_outgoing *message);
/* Sends packets until the message has gone (MORE), the socket takes no more (WAIT) or the other end is gone (BROKEN). */
kvf_link_state kvf_link_send(int socket, kvf_outgoing *message);
/* Wakes the other end. BROKEN: it is gone. */
kvf_link_state kvf_link_knock(int socket);

/* Receives one packet. MORE: one was taken, and *packet says what it was. WAIT: there is none.
 * BROKEN: *why says why; an orderly end is "the other end closed". */
kvf_link_state kvf_link_receive(int socket, kvf_incoming *message, kvf_packet *packet, const char **why);
/* Makes room for more bytes of a message; false without memory for them. */
bool kvf_incoming_reserve(kvf_incoming *message, size_t more);
/* Closes what arrived of a message and empties it. */
void kvf_incoming_clear(kvf_incoming *message);

/* Looks at a descriptor that came from another process: KVF_OK for a file in memory of exactly that size that can no more
 * shrink, so that no access to a mapping of it can ever fail. */
int32_t kvf_memory_file_check(int descriptor, uint64_t bytes);

/* A descriptor that polls readable when the process at the other end of a socket is gone, or -1. */
int kvf_link_watch(int socket, pid_t process);

#endif
