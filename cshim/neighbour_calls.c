/*
 * neighbour_calls.c - what JavaScript asks of the neighbour object.
 */
#include "neighbour_object.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "status.h"

#define BACKLOG 256
/* While messages come by rings, what else there is to see is looked for every so many times. */
#define SEE_EVERY 16

/* The address of an abstract name: a zero byte, then the name, without an end. */
static int32_t address_of(const char *name, struct sockaddr_un *address, socklen_t *length) {
    size_t bytes = name ? strlen(name) : 0;
    if (bytes == 0 || bytes > sizeof address->sun_path - 1) return kvf_refuse(KVF_E_INVALID, "a rendezvous has a name of 1 to %zu bytes", sizeof address->sun_path - 1);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path + 1, name, bytes);
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + bytes);
    return KVF_OK;
}

int32_t kvf_neighbour_listen(kvf_word word, const char *name) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    struct sockaddr_un address;
    socklen_t length = 0;
    int32_t status = address_of(name, &address, &length);
    if (status != KVF_OK) return status;
    if (self->listener >= 0) return kvf_refuse(KVF_E_BUSY, "it listens already");
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) return kvf_refuse_errno(errno, "a local socket");
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, BACKLOG) != 0) {
        status = kvf_refuse_errno(errno, "the rendezvous @%s", name);
        close(listener);
        return status;
    }
    pthread_mutex_lock(&self->lock);
    self->listener = listener;
    if (kvf_neighbour_watch(self, listener, EPOLLIN, KVF_ABOUT_LISTENER, 0, EPOLL_CTL_ADD) != 0) {
        status = kvf_refuse_errno(errno, "epoll");
        close(listener);
        self->listener = -1;
    }
    pthread_mutex_unlock(&self->lock);
    return status;
}

int32_t kvf_neighbour_connect(kvf_word word, const char *name, double *out) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    struct sockaddr_un address;
    socklen_t length = 0;
    int32_t status = address_of(name, &address, &length);
    if (status != KVF_OK) return status;
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_connect: no place for the result");
    int end = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (end < 0) return kvf_refuse_errno(errno, "a local socket");
    if (connect(end, (struct sockaddr *)&address, length) != 0) {
        int why = errno;
        close(end);
        if (why == EAGAIN) {
            kvf_set_error("nobody accepts at @%s in time", name);
            return KVF_AGAIN;
        }
        kvf_refuse_errno(why, "nobody listens at @%s", name);
        return why == ECONNREFUSED ? KVF_E_PEER : KVF_E_SYSTEM;
    }
    struct ucred who;
    socklen_t bytes = sizeof who;
    if (getsockopt(end, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) {
        status = kvf_refuse_errno(errno, "the credentials of the listener at @%s", name);
        close(end);
        return status;
    }
    pthread_mutex_lock(&self->lock);
    kvf_connection *made = self->count < KVF_NEIGHBOUR_CONNECTIONS ? kvf_connection_add(self, end, &who) : NULL;
    if (made) {
        made->announced = true;
        out[0] = made->number;
        out[1] = who.uid;
        out[2] = who.pid;
        out[3] = made->process >= 0;
    } else if (self->count >= KVF_NEIGHBOUR_CONNECTIONS) {
        kvf_set_error("%u neighbours are connected, which is the most", KVF_NEIGHBOUR_CONNECTIONS);
        close(end);
    }
    pthread_mutex_unlock(&self->lock);
    return made ? KVF_OK : KVF_E_SYSTEM;
}

/* A connection that is open for sending, or NULL. */
static kvf_connection *sends_to(kvf_neighbour *self, uint32_t number) {
    kvf_connection *to = kvf_connection_find(self, number);
    return to && to->socket >= 0 && !to->shutting ? to : NULL;
}

int32_t kvf_neighbour_send(kvf_word word, uint32_t number, const uint8_t *bytes, kvf_word length, const double *descriptors, uint32_t count, double *out) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!out || (!bytes && length) || (!descriptors && count) || length > KVF_NEIGHBOUR_MESSAGE_BYTES || count > KVF_NEIGHBOUR_DESCRIPTORS)
        return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_send: %llu bytes, %u descriptors", (unsigned long long)length, count);
    int32_t status = KVF_OK;
    kvf_outgoing *message = NULL;
    pthread_mutex_lock(&self->lock);
    kvf_connection *to = sends_to(self, number);
    if (to && (count > 0 || !kvf_connection_write(self, to, bytes, length))) {
        /* A copy is made without the lock. */
        pthread_mutex_unlock(&self->lock);
        message = kvf_outgoing_make(bytes, length, descriptors, count, &status);
        if (!message) return status;
        pthread_mutex_lock(&self->lock);
        to = sends_to(self, number);
        if (to) kvf_connection_post(self, to, message);
        else kvf_outgoing_free(message);
    }
    if (!to) status = kvf_refuse(KVF_E_PEER, "the connection is closed");
    else {
        out[0] = (double)to->queued;
        if (to->socket < 0) status = kvf_refuse(KVF_E_PEER, "the other end is gone");
        /* JavaScript may be busy when more can go. */
        else if (to->waiting) kvf_neighbour_look_here(self, false);
    }
    bool noted = self->event_bytes > 0;
    pthread_mutex_unlock(&self->lock);
    if (status == KVF_E_PEER && noted) kvf_context_notify(self->ctx);
    return status;
}

/* True when something waits to be sent. */
static bool sends(const kvf_neighbour *self) {
    const kvf_connection *at = self->connections;
    while (at && !at->waiting) at = at->next;
    return at != NULL;
}

int32_t kvf_neighbour_look(kvf_word word, uint32_t here, double *out) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_look: no place for the result");
    pthread_mutex_lock(&self->lock);
    if (!here) kvf_neighbour_look_here(self, false);
    else {
        if (!self->looking && !sends(self)) kvf_neighbour_look_here(self, true);
        kvf_neighbour_read_rings(self, true);
        if (self->event_bytes == 0 || ++self->looks % SEE_EVERY == 0) kvf_neighbour_see(self);
    }
    size_t found = self->event_bytes;
    out[0] = (double)found;
    pthread_mutex_unlock(&self->lock);
    /* Whoever is to answer may wait for this very processor. */
    if (here && found == 0) sched_yield();
    return KVF_OK;
}

int32_t kvf_neighbour_take(kvf_word word, uint8_t *bytes, kvf_word capacity, double *out) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!out || (!bytes && capacity)) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_take: a missing buffer");
    size_t written = 0;
    pthread_mutex_lock(&self->lock);
    while (self->first_event && written + kvf_event_record_bytes(self->first_event) <= capacity) {
        kvf_event *event = self->first_event;
        size_t size = kvf_event_record_bytes(event);
        uint32_t head[4] = {event->kind, event->connection, (uint32_t)event->length, event->count};
        uint8_t *to = bytes + written;
        memset(to + size - 4, 0, 4); /* padding */
        memcpy(to, head, sizeof head);
        memcpy(to + 16, event->descriptors, 4 * (size_t)event->count);
        memcpy(to + 16 + 4 * (size_t)event->count, kvf_event_payload(event), event->length);
        written += size;
        self->event_bytes -= size;
        kvf_connection *from = kvf_connection_find(self, event->connection);
        if (from) from->unread -= kvf_event_memory(event);
        self->first_event = event->next;
        if (!self->first_event) self->last_event = NULL;
        free(event);
    }
    out[0] = (double)written;
    out[1] = (double)self->event_bytes;
    out[2] = (double)self->turned_away;
    pthread_mutex_unlock(&self->lock);
    return written > 0 ? KVF_OK : KVF_AGAIN;
}

int32_t kvf_neighbour_ring(kvf_word word, uint32_t number, uint32_t offer) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    int32_t status = KVF_OK;
    pthread_mutex_lock(&self->lock);
    kvf_connection *at = kvf_connection_find(self, number);
    if (!at || at->socket < 0 || at->shutting) status = kvf_refuse(KVF_E_PEER, "the connection is closed");
    else {
        at->rings = true;
        if (offer) status = kvf_connection_offer(self, at);
    }
    bool noted = self->event_bytes > 0;
    pthread_mutex_unlock(&self->lock);
    if (noted) kvf_context_notify(self->ctx);
    return status;
}

int32_t kvf_neighbour_shut(kvf_word word, uint32_t number) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    pthread_mutex_lock(&self->lock);
    kvf_connection *at = kvf_connection_find(self, number);
    if (at && at->socket >= 0) {
        at->shutting = true;
        if (!at->first) kvf_connection_break(self, at, "closed here");
    }
    pthread_mutex_unlock(&self->lock);
    kvf_context_notify(self->ctx);
    return at ? KVF_OK : kvf_refuse(KVF_E_PEER, "there is no connection %u", number);
}

int32_t kvf_neighbour_forget(kvf_word word, uint32_t number) {
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    pthread_mutex_lock(&self->lock);
    kvf_connection *at = kvf_connection_find(self, number);
    if (at) kvf_connection_free(self, at);
    pthread_mutex_unlock(&self->lock);
    return at ? KVF_OK : kvf_refuse(KVF_E_PEER, "there is no connection %u", number);
}
