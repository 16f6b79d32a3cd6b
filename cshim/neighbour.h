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
    int descriptors[128];
    uint8_t bytes[];
} kvf_outgoing;

/* An event on its way to JavaScript. Owns its descriptors until it is taken. */
typedef struct kvf_event {
    struct kvf_event *next;
    uint32_t kind;
    uint32_t connection;
    uint32_t count;
    int descriptors[128];
    size_t length;
    uint8_t payload[];
} kvf_event;

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
void kvf_outgoing_free(kvf_outgoing *message);
/* Sends packets until the message has gone (MORE), the socket takes no more (WAIT) or the other end is gone (BROKEN). */
kvf_link_state kvf_link_send(int socket, kvf_outgoing *message);

/* Receives one packet. MORE: one was taken, and *whole says whether it completed the message. WAIT: there is none.
 * BROKEN: *why says why; an orderly end is "the other end closed". */
kvf_link_state kvf_link_receive(int socket, kvf_incoming *message, bool *whole, const char **why);
/* Closes what arrived of a message and empties it. */
void kvf_incoming_clear(kvf_incoming *message);

/* A descriptor that polls readable when the process at the other end of a socket is gone, or -1. */
int kvf_link_watch(int socket, pid_t process);

#endif
