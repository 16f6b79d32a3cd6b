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

#define KVF_NEIGHBOUR_CONNECTIONS 4096u
/* Packets from one connection before the others have their turn. */
#define KVF_NEIGHBOUR_TURN 64

/* What an epoll entry is about; the connection's number stands in the upper half. */
enum { KVF_ABOUT_STOP, KVF_ABOUT_SEEN, KVF_ABOUT_LISTENER, KVF_ABOUT_SOCKET, KVF_ABOUT_PROCESS };

typedef struct kvf_connection {
    struct kvf_connection *next;
    uint32_t number;
    int socket;     /* -1 once it is closed */
    int process;    /* watches the other end's process; -1: not watched, or gone */
    bool announced; /* JavaScript knows of it */
    bool shutting;  /* closes when the queue is empty */
    bool waiting;   /* for the socket to take more */
    size_t unread;  /* bytes of events that were not taken */
    size_t queued;
    kvf_outgoing *first, *last;
    kvf_incoming incoming;
} kvf_connection;

typedef struct kvf_neighbour {
    kvf_member member; /* must be first */
    struct kvf_neighbour *next; /* in the list of open ones */
    kvf_context *ctx;
    pthread_t thread;
    int sleep; /* what the thread sleeps on: `stop`, and `seen` unless JavaScript looks itself */
    int seen;  /* what there is to see: the listener, sockets and processes */
    int stop;  /* eventfd */
    uint32_t stopping;
    pthread_mutex_t lock; /* guards all that follows */
    bool looking;         /* JavaScript looks itself: the thread sleeps on */
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

/* Deals with what there is to see now, without waiting. False when descriptors ran out for those who want in. */
bool kvf_neighbour_see(kvf_neighbour *self);
/* JavaScript looks itself from now on, and the thread is not woken by what there is to see; or no longer. */
void kvf_neighbour_look_here(kvf_neighbour *self, bool here);

/* Asks to be shown a descriptor, or asks for something else of it; epoll_ctl's answer. */
int kvf_neighbour_watch(kvf_neighbour *self, int what, uint32_t interest, uint32_t about, uint32_t number, int operation);
/* Appends an event; the descriptors become its own. False without memory for it: they are closed then. */
bool kvf_event_add(kvf_neighbour *self, kvf_connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count);
/* Bytes of an event's record, as it is taken. */
size_t kvf_event_record_bytes(const kvf_event *event);
/* Frees an event that nobody takes. */
void kvf_event_free(kvf_event *event);

kvf_connection *kvf_connection_find(kvf_neighbour *self, uint32_t number);
/* Adds a connected socket, which becomes its own; NULL with the text set, and the socket is closed. */
kvf_connection *kvf_connection_add(kvf_neighbour *self, int socket, const struct ucred *who);
void kvf_connection_free(kvf_neighbour *self, kvf_connection *gone);
/* Closes the socket and, the first time, says why. */
void kvf_connection_break(kvf_neighbour *self, kvf_connection *at, const char *why);
/* Sends what is queued, as far as the socket takes it. */
void kvf_connection_flush(kvf_neighbour *self, kvf_connection *at);
/* Receives at most so many packets. */
void kvf_connection_receive(kvf_neighbour *self, kvf_connection *at, int turns);

#endif
