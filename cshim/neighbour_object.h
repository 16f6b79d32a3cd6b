/*
 * neighbour_object.h - the neighbour object as its parts share it: connections, the processes at their other ends, and
 * events that wait for JavaScript. One lock guards all of it; nothing under it blocks.
 */
#ifndef KVF_NEIGHBOUR_OBJECT_H
#define KVF_NEIGHBOUR_OBJECT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "context.h"
#include "neighbour.h"
#include "neighbour_ring.h"

#define KVF_NEIGHBOUR_CONNECTIONS 4096u
/* Packets from one connection before the others have their turn. */
#define KVF_NEIGHBOUR_TURN 64
/* Packets that are still received from one that is gone: more than a socket holds. Its end may have another owner yet. */
#define KVF_NEIGHBOUR_LAST 65536

/* What an epoll entry is about; the connection's number stands in the upper half. */
enum { KVF_ABOUT_WAKE, KVF_ABOUT_SEEN, KVF_ABOUT_LISTENER, KVF_ABOUT_SOCKET, KVF_ABOUT_PROCESS };

/* What holds up what a connection sends: the socket, or the reader of the ring. */
typedef enum kvf_waiting { KVF_WAITS_NOT, KVF_WAITS_SOCKET, KVF_WAITS_RING } kvf_waiting;

typedef struct kvf_connection {
    struct kvf_connection *next;
    uint32_t number;
    int socket;     /* -1 once it is closed */
    int process;    /* watches the other end's process; -1: not watched, or gone */
    bool announced; /* JavaScript knows of it */
    bool shutting;  /* closes when the queue is empty */
    bool rings;     /* the other end has shown who it is: it may send by a ring */
    bool offered;   /* the ring to write to was made, or cannot be: it is not tried again */
    bool writes;    /* its file has gone: what follows goes by it */
    bool pending;   /* the ring holds more, and nobody will be woken for it */
    bool reading;   /* what the ring holds is being taken */
    bool failed;    /* the other end turned out to be gone meanwhile */
    kvf_waiting waiting;
    size_t unread;  /* memory of events that were not taken */
    size_t queued;
    kvf_outgoing *first, *last;
    kvf_incoming incoming;   /* arrives in packets */
    kvf_byte_ring out, in;
    kvf_incoming written;    /* arrives in records */
    kvf_event *early;        /* came over the socket and is due when the ring says so */
} kvf_connection;

typedef struct kvf_neighbour {
    kvf_member member; /* must be first */
    struct kvf_neighbour *next; /* in the list of open ones */
    kvf_context *ctx;
    pthread_t thread;
    int sleep; /* what the thread sleeps on: `wake`, and `seen` unless JavaScript looks itself */
    int seen;  /* what there is to see: the listener, sockets and processes */
    int wake;  /* eventfd of this process alone: the thread has something to do */
    uint32_t stopping;
    pthread_mutex_t lock; /* guards all that follows */
    bool looking;         /* JavaScript looks itself: the thread sleeps on */
    uint32_t looks;
    bool pending;         /* a connection has something pending */
    int listener;
    bool paused; /* descriptors ran out: nobody is let in for a while */
    uint32_t last_number;
    uint32_t count;
    kvf_connection *connections;
    kvf_event *first_event, *last_event;
    size_t event_bytes;
    uint64_t turned_away;
} kvf_neighbour;

/* The open object, or NULL with the text set. */
kvf_neighbour *kvf_neighbour_from(kvf_word word);

/* What follows is called under the lock. */

/* Deals with what the rings hold that may hold something: all of them, or those that are pending. */
void kvf_neighbour_read_rings(kvf_neighbour *self, bool all);
/* Has the thread look. */
void kvf_neighbour_wake(kvf_neighbour *self);
/* Deals with what there is to see now, without waiting. False when descriptors ran out for those who want in. */
bool kvf_neighbour_see(kvf_neighbour *self);
/* JavaScript looks itself from now on, and the thread is not woken by what there is to see; or no longer. */
void kvf_neighbour_look_here(kvf_neighbour *self, bool here);

/* Asks to be shown a descriptor, or asks for something else of it; epoll_ctl's answer. */
int kvf_neighbour_watch(kvf_neighbour *self, int what, uint32_t interest, uint32_t about, uint32_t number, int operation);
/* Makes an event; the descriptors become its own. NULL without memory for it: they are closed then. */
kvf_event *kvf_event_make(const kvf_connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count);
/* Appends an event that was made. */
void kvf_event_append(kvf_neighbour *self, kvf_connection *from, kvf_event *event);
/* Makes and appends one, if the connection may have so much waiting. */
bool kvf_event_add_message(kvf_neighbour *self, kvf_connection *from, kvf_incoming *message);
/* Appends an event; the descriptors become its own. False without memory for it: they are closed then. */
bool kvf_event_add(kvf_neighbour *self, kvf_connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count);
/* Bytes of an event's record, as it is taken. */
size_t kvf_event_record_bytes(const kvf_event *event);
/* Bytes of memory that it takes until then. */
size_t kvf_event_memory(const kvf_event *event);
uint8_t *kvf_event_payload(kvf_event *event);
/* Frees an event that nobody takes. */
void kvf_event_free(kvf_event *event);

kvf_connection *kvf_connection_find(kvf_neighbour *self, uint32_t number);
/* Adds a connected socket, which becomes its own; NULL with the text set, and the socket is closed. */
kvf_connection *kvf_connection_add(kvf_neighbour *self, int socket, const struct ucred *who);
void kvf_connection_free(kvf_neighbour *self, kvf_connection *gone);
/* Closes the socket and, the first time, says why. */
void kvf_connection_break(kvf_neighbour *self, kvf_connection *at, const char *why);
/* The other end is gone: takes what it had said, and breaks off. */
void kvf_connection_end(kvf_neighbour *self, kvf_connection *at);
/* Sends what is queued, as far as it goes. */
void kvf_connection_flush(kvf_neighbour *self, kvf_connection *at);
/* Makes a ring to write to, and hands its file over behind what is queued. KVF_OK, also when there is one. */
int32_t kvf_connection_offer(kvf_neighbour *self, kvf_connection *at);
/* Appends to what is queued and sends it as far as it goes. */
void kvf_connection_post(kvf_neighbour *self, kvf_connection *to, kvf_outgoing *message);
/* Writes a message to the ring, if it goes by it, whole and at once. False when it does not. */
bool kvf_connection_write(kvf_neighbour *self, kvf_connection *to, const uint8_t *bytes, size_t length);
/* Takes what the ring holds, if there is one. */
void kvf_connection_read(kvf_neighbour *self, kvf_connection *at);
/* Nobody looks at the ring from now on: its writer is to knock. */
void kvf_connection_sleep(kvf_neighbour *self, kvf_connection *at);
/* Maps the ring that the other end made, whose file has arrived. NULL, or why the connection ends. */
const char *kvf_connection_adopt(kvf_neighbour *self, kvf_connection *at);
/* Receives one packet, if there is one and the connection outlives it. */
bool kvf_connection_receive_packet(kvf_neighbour *self, kvf_connection *at);
/* Receives at most so many packets, and what came by the ring. */
void kvf_connection_receive(kvf_neighbour *self, kvf_connection *at, int turns);

#endif
