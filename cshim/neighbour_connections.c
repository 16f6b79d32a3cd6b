/*
 * neighbour_connections.c - connections of the neighbour object: what they send, what they receive, and the events that it
 * becomes.
 */
#include "neighbour_object.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "status.h"

/* What one connection may have waiting here; a well-behaved one stays far below. */
#define MOST_WAITING ((size_t)64 << 20)
#define TOO_MUCH "it sent more than this process takes"

/* ---- events ----------------------------------------------------------------------------------------------------- */

size_t kvf_event_record_bytes(const kvf_event *event) { return 16 + 4 * (size_t)event->count + ((event->length + 3) & ~(size_t)3); }

/* What an event costs while it waits: many are small. */
static size_t memory_of(uint32_t count, size_t length) { return sizeof(kvf_event) + count * sizeof(int) + length; }
size_t kvf_event_memory(const kvf_event *event) { return memory_of(event->count, event->length); }
uint8_t *kvf_event_payload(kvf_event *event) { return (uint8_t *)(event->descriptors + event->count); }

void kvf_event_free(kvf_event *event) {
    for (uint32_t at = 0; at < event->count; at++) close(event->descriptors[at]);
    free(event);
}

kvf_event *kvf_event_make(const kvf_connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count) {
    kvf_event *event = malloc(memory_of(count, length));
    if (!event) {
        for (uint32_t at = 0; at < count; at++) close(descriptors[at]);
        return NULL;
    }
    event->next = NULL;
    event->kind = kind;
    event->connection = from->number;
    event->count = count;
    if (count) memcpy(event->descriptors, descriptors, count * sizeof *descriptors);
    event->length = length;
    if (length) memcpy(kvf_event_payload(event), payload, length);
    return event;
}

void kvf_event_append(kvf_neighbour *self, kvf_connection *from, kvf_event *event) {
    if (self->last_event) self->last_event->next = event;
    else self->first_event = event;
    self->last_event = event;
    self->event_bytes += kvf_event_record_bytes(event);
    from->unread += kvf_event_memory(event);
}

bool kvf_event_add(kvf_neighbour *self, kvf_connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count) {
    kvf_event *event = kvf_event_make(from, kind, payload, length, descriptors, count);
    if (event) kvf_event_append(self, from, event);
    return event != NULL;
}

/* The event of a message that is complete, which is empty afterwards; NULL when it may not wait here. */
static kvf_event *event_of(const kvf_connection *from, kvf_incoming *message) {
    if (from->unread + memory_of(message->count, message->length) > MOST_WAITING) return NULL;
    kvf_event *event = kvf_event_make(from, KVF_NEIGHBOUR_MESSAGE, message->bytes, message->length, message->descriptors, message->count);
    message->count = 0; /* the event's own now, or closed */
    message->length = 0;
    return event;
}

bool kvf_event_add_message(kvf_neighbour *self, kvf_connection *from, kvf_incoming *message) {
    kvf_event *event = event_of(from, message);
    if (event) kvf_event_append(self, from, event);
    return event != NULL;
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

/* Closes and frees all that a connection is made of but the watch of the process. */
static void drop_ways(kvf_connection *at) {
    if (at->socket >= 0) close(at->socket); /* leaves the epoll set by itself: nobody else has the open socket */
    at->socket = -1;
    drop_queue(at);
    kvf_incoming_clear(&at->incoming);
    kvf_incoming_clear(&at->written);
    kvf_byte_ring_close(&at->out);
    kvf_byte_ring_close(&at->in);
    at->writes = false;
    if (at->early) kvf_event_free(at->early);
    at->early = NULL;
}

void kvf_connection_break(kvf_neighbour *self, kvf_connection *at, const char *why) {
    if (at->socket < 0) return;
    drop_ways(at);
    if (at->announced) kvf_event_add(self, at, KVF_NEIGHBOUR_CLOSED, why, strlen(why), NULL, 0);
}

void kvf_connection_free(kvf_neighbour *self, kvf_connection *gone) {
    kvf_connection **at = &self->connections;
    while (*at != gone) at = &(*at)->next;
    *at = gone->next;
    self->count--;
    drop_ways(gone);
    if (gone->process >= 0) close(gone->process);
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

/* ---- receiving -------------------------------------------------------------------------------------------------- */

/* A message that came over the socket although the other end writes to a ring: it is due when the ring says so. As that is
 * said at once, there is never more than one. */
static const char *keep_early(kvf_neighbour *self, kvf_connection *at) {
    if (at->early) kvf_connection_read(self, at);
    if (at->socket < 0) return NULL;
    if (at->early) return "what arrived is due before what was sent";
    at->early = event_of(at, &at->incoming);
    return at->early ? NULL : TOO_MUCH;
}

/* Deals with one packet. NULL, or why the connection ends. */
static const char *take_packet(kvf_neighbour *self, kvf_connection *at, kvf_packet packet) {
    switch (packet) {
    case KVF_PACKET_PART: return NULL;
    case KVF_PACKET_LAST: return at->in.memory ? keep_early(self, at) : kvf_event_add_message(self, at, &at->incoming) ? NULL : TOO_MUCH;
    case KVF_PACKET_RING: return kvf_connection_adopt(self, at);
    case KVF_PACKET_KNOCK: break;
    }
    if (!at->in.memory && !at->out.memory) return "what arrived is no packet";
    if (at->first) kvf_connection_flush(self, at);
    return NULL;
}

bool kvf_connection_receive_packet(kvf_neighbour *self, kvf_connection *at) {
    kvf_packet packet = KVF_PACKET_PART;
    const char *why = NULL;
    kvf_link_state state = kvf_link_receive(at->socket, &at->incoming, &packet, &why);
    if (state == KVF_LINK_WAIT) return false;
    if (state == KVF_LINK_MORE) why = take_packet(self, at, packet);
    /* What the other end wrote before it closed. */
    else kvf_connection_read(self, at);
    if (why) kvf_connection_break(self, at, why);
    return at->socket >= 0;
}

void kvf_connection_receive(kvf_neighbour *self, kvf_connection *at, int turns) {
    kvf_connection_read(self, at);
    for (int turn = 0; turn < turns && at->socket >= 0; turn++) {
        if (!kvf_connection_receive_packet(self, at)) return;
        kvf_connection_read(self, at);
    }
}

/* ---- sending ---------------------------------------------------------------------------------------------------- */

/* Asks to be told when the socket takes more, or no longer. */
static void wait_for(kvf_neighbour *self, kvf_connection *at, kvf_waiting what) {
    if ((at->waiting == KVF_WAITS_SOCKET) != (what == KVF_WAITS_SOCKET))
        kvf_neighbour_watch(self, at->socket, EPOLLIN | EPOLLRDHUP | (what == KVF_WAITS_SOCKET ? EPOLLOUT : 0), KVF_ABOUT_SOCKET, at->number, EPOLL_CTL_MOD);
    at->waiting = what;
}

/* Sends one message as far as it goes, and says what holds it up. */
static kvf_link_state send_one(kvf_connection *at, kvf_outgoing *message, kvf_waiting *held) {
    const bool descriptors = message->count > 0 || message->begun;
    *held = KVF_WAITS_SOCKET;
    if (!at->writes || descriptors) {
        kvf_link_state state = kvf_link_send(at->socket, message);
        if (state != KVF_LINK_MORE) return state;
        if (message->ring) at->writes = true;
        if (message->ring || !at->writes) return state;
    }
    *held = KVF_WAITS_RING;
    size_t nothing = 0;
    return descriptors ? kvf_byte_ring_write(&at->out, true, NULL, 0, &nothing) : kvf_byte_ring_write(&at->out, false, message->bytes, message->length, &message->sent);
}

void kvf_connection_end(kvf_neighbour *self, kvf_connection *at) {
    at->failed = false;
    kvf_connection_receive(self, at, KVF_NEIGHBOUR_LAST);
    kvf_connection_break(self, at, "the other end is gone");
}

/* Sends what is queued, as far as it goes. */
void kvf_connection_flush(kvf_neighbour *self, kvf_connection *at) {
    kvf_link_state state = KVF_LINK_MORE;
    kvf_waiting held = KVF_WAITS_NOT;
    while (at->first && state == KVF_LINK_MORE) {
        kvf_outgoing *message = at->first;
        size_t before = message->sent;
        state = send_one(at, message, &held);
        at->queued -= message->sent - before;
        if (state != KVF_LINK_MORE) break;
        at->first = message->next;
        if (!at->first) at->last = NULL;
        kvf_outgoing_free(message);
    }
    if (state != KVF_LINK_BROKEN && at->writes && kvf_byte_ring_wakes_reader(&at->out)) {
        kvf_link_state knocked = kvf_link_knock(at->socket);
        if (knocked == KVF_LINK_BROKEN) state = knocked;
    }
    if (state == KVF_LINK_BROKEN) {
        drop_queue(at);
        at->failed = true;
        if (!at->reading) kvf_connection_end(self, at);
        return;
    }
    wait_for(self, at, state == KVF_LINK_WAIT ? held : KVF_WAITS_NOT);
    if (at->shutting && !at->first) kvf_connection_break(self, at, "closed here");
}

void kvf_connection_post(kvf_neighbour *self, kvf_connection *to, kvf_outgoing *message) {
    if (to->last) to->last->next = message;
    else to->first = message;
    to->last = message;
    to->queued += message->length;
    if (to->waiting == KVF_WAITS_NOT) kvf_connection_flush(self, to);
}
