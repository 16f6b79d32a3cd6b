/*
 * neighbour_connections.c - connections of the neighbour object: what they send, what they receive, and the events that it
 * becomes.
 */
#include "neighbour_object.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "status.h"

/* What one connection may have waiting here; a well-behaved one stays far below. */
#define MOST_WAITING ((size_t)64 << 20)

/* ---- events ----------------------------------------------------------------------------------------------------- */

size_t kvf_event_record_bytes(const kvf_event *event) { return 16 + 4 * (size_t)event->count + ((event->length + 3) & ~(size_t)3); }

void kvf_event_free(kvf_event *event) {
    for (uint32_t at = 0; at < event->count; at++) close(event->descriptors[at]);
    free(event);
}

/* Appends an event; the descriptors become its own. False without memory for it: they are closed then. */
bool kvf_event_add(kvf_neighbour *self, kvf_connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count) {
    kvf_event *event = malloc(sizeof *event + length);
    if (!event) {
        for (uint32_t at = 0; at < count; at++) close(descriptors[at]);
        return false;
    }
    event->next = NULL;
    event->kind = kind;
    event->connection = from->number;
    event->count = count;
    if (count) memcpy(event->descriptors, descriptors, count * sizeof *descriptors);
    event->length = length;
    if (length) memcpy(event->payload, payload, length);
    if (self->last_event) self->last_event->next = event;
    else self->first_event = event;
    self->last_event = event;
    self->event_bytes += kvf_event_record_bytes(event);
    from->unread += kvf_event_record_bytes(event);
    return true;
}

/* ---- connections ------------------------------------------------------------------------------------------------ */

kvf_connection *kvf_connection_find(kvf_neighbour *self, uint32_t number) {
    kvf_connection *at = self->connections;
    while (at && at->number != number) at = at->next;
    return at;
}

int kvf_neighbour_watch(kvf_neighbour *self, int what, uint32_t interest, uint32_t about, uint32_t number, int operation) {
    struct epoll_event event = {.events = interest, .data.u64 = (uint64_t)number << 32 | about};
    return epoll_ctl(self->seen, operation, what, &event);
}

static void drop_queue(kvf_connection *at) {
    while (at->first) {
        kvf_outgoing *message = at->first;
        at->first = message->next;
        kvf_outgoing_free(message);
    }
    at->last = NULL;
    at->queued = 0;
}

/* Closes the socket and, the first time, says why. */
void kvf_connection_break(kvf_neighbour *self, kvf_connection *at, const char *why) {
    if (at->socket < 0) return;
    close(at->socket); /* leaves the epoll set by itself: nobody else has the open socket */
    at->socket = -1;
    drop_queue(at);
    kvf_incoming_clear(&at->incoming);
    if (at->announced) kvf_event_add(self, at, KVF_NEIGHBOUR_CLOSED, why, strlen(why), NULL, 0);
}

void kvf_connection_free(kvf_neighbour *self, kvf_connection *gone) {
    kvf_connection **at = &self->connections;
    while (*at != gone) at = &(*at)->next;
    *at = gone->next;
    self->count--;
    if (gone->socket >= 0) close(gone->socket);
    if (gone->process >= 0) close(gone->process);
    drop_queue(gone);
    kvf_incoming_clear(&gone->incoming);
    free(gone);
}

/* Adds a connected socket, which becomes its own; NULL with the text set, and the socket is closed. */
kvf_connection *kvf_connection_add(kvf_neighbour *self, int socket, const struct ucred *who) {
    kvf_connection *made = calloc(1, sizeof *made);
    if (!made) {
        close(socket);
        kvf_set_error("no memory for a connection");
        return NULL;
    }
    made->number = ++self->last_number;
    made->socket = socket;
    made->process = kvf_link_watch(socket, who->pid);
    made->next = self->connections;
    self->connections = made;
    self->count++;
    if (kvf_neighbour_watch(self, socket, EPOLLIN | EPOLLRDHUP, KVF_ABOUT_SOCKET, made->number, EPOLL_CTL_ADD) != 0 ||
        (made->process >= 0 && kvf_neighbour_watch(self, made->process, EPOLLIN, KVF_ABOUT_PROCESS, made->number, EPOLL_CTL_ADD) != 0)) {
        kvf_refuse_errno(errno, "epoll");
        kvf_connection_free(self, made);
        return NULL;
    }
    return made;
}

void kvf_connection_receive(kvf_neighbour *self, kvf_connection *at, int turns) {
    for (int turn = 0; turn < turns && at->socket >= 0; turn++) {
        bool whole;
        const char *why = "";
        kvf_link_state state = kvf_link_receive(at->socket, &at->incoming, &whole, &why);
        if (state == KVF_LINK_WAIT) return;
        if (state == KVF_LINK_BROKEN) {
            kvf_connection_break(self, at, why);
            return;
        }
        if (!whole) continue;
        kvf_incoming *message = &at->incoming;
        bool kept = at->unread + message->length <= MOST_WAITING &&
                    kvf_event_add(self, at, KVF_NEIGHBOUR_MESSAGE, message->bytes, message->length, message->descriptors, message->count);
        if (!kept) {
            kvf_connection_break(self, at, "it sent more than this process takes");
            return;
        }
        message->count = 0; /* the event's own now */
        message->length = 0;
    }
}

/* Sends what is queued; true when the queue is empty afterwards. */
void kvf_connection_flush(kvf_neighbour *self, kvf_connection *at) {
    while (at->first) {
        kvf_outgoing *message = at->first;
        size_t before = message->sent;
        kvf_link_state state = kvf_link_send(at->socket, message);
        at->queued -= message->sent - before;
        if (state == KVF_LINK_BROKEN) {
            kvf_connection_receive(self, at, INT_MAX); /* what it said before it went: no more than a socket holds */
            kvf_connection_break(self, at, "the other end is gone");
            return;
        }
        if (state == KVF_LINK_WAIT) {
            if (!at->waiting) kvf_neighbour_watch(self, at->socket, EPOLLIN | EPOLLRDHUP | EPOLLOUT, KVF_ABOUT_SOCKET, at->number, EPOLL_CTL_MOD);
            at->waiting = true;
            return;
        }
        at->first = message->next;
        if (!at->first) at->last = NULL;
        kvf_outgoing_free(message);
    }
    if (at->waiting) kvf_neighbour_watch(self, at->socket, EPOLLIN | EPOLLRDHUP, KVF_ABOUT_SOCKET, at->number, EPOLL_CTL_MOD);
    at->waiting = false;
    if (at->shutting) kvf_connection_break(self, at, "closed here");
}
