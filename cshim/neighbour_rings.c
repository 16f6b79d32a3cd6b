/*
 * neighbour_rings.c - connections that send by rings in shared memory. The socket remains for descriptors, for knocking and
 * for the end.
 *
 * Either end makes the ring that it writes to and hands its file over: whatever that end sends afterwards goes by the ring,
 * so that what came before is known to come first. A message with descriptors goes over the socket, and then a record that
 * stands for it into the ring: it is taken when that record is.
 *
 * While the thread sleeps, a reader's ring says so, and its writer knocks; while JavaScript looks, nobody need be woken.
 */
#include "neighbour_object.h"

#include <unistd.h>

/* Room is given back in steps, so that whoever writes much goes on meanwhile. */
#define STEP (KVF_BYTE_RING_BYTES / 4)

int32_t kvf_connection_offer(kvf_neighbour *self, kvf_connection *at) {
    if (at->offered) return KVF_OK;
    at->offered = true;
    int descriptor = -1;
    int32_t status = kvf_byte_ring_make(&at->out, &descriptor);
    if (status != KVF_OK) return status;
    kvf_outgoing *message = kvf_outgoing_make_ring(descriptor);
    if (!message) {
        kvf_byte_ring_close(&at->out);
        return KVF_E_NOMEM;
    }
    kvf_connection_post(self, at, message);
    return KVF_OK;
}

const char *kvf_connection_adopt(kvf_neighbour *self, kvf_connection *at) {
    if (!at->rings || at->in.memory) return "what arrived is no packet";
    int32_t status = kvf_byte_ring_open(&at->in, at->incoming.descriptors[0]);
    close(at->incoming.descriptors[0]);
    at->incoming.count = 0;
    if (status != KVF_OK) return "what it sent is no ring";
    kvf_connection_offer(self, at); /* without one, this end keeps to the socket */
    return NULL;
}

bool kvf_connection_write(kvf_neighbour *self, kvf_connection *to, const uint8_t *bytes, size_t length) {
    if (!to->writes || to->first || !kvf_byte_ring_fits(&to->out, length)) return false;
    size_t sent = 0;
    if (kvf_byte_ring_write(&to->out, false, bytes, length, &sent) != KVF_LINK_MORE) return false;
    kvf_connection_flush(self, to); /* nothing is queued: it knocks */
    return true;
}

/* The message that a record stands for. False when the connection has ended. */
static bool take_early(kvf_neighbour *self, kvf_connection *at) {
    if (at->written.length > 0) {
        kvf_connection_break(self, at, "what arrived is no record");
        return false;
    }
    while (!at->early)
        if (!kvf_connection_receive_packet(self, at)) {
            kvf_connection_break(self, at, "what arrived stands for a message that did not");
            return false;
        }
    kvf_event_append(self, at, at->early);
    at->early = NULL;
    return true;
}

/* Gives room back, and wakes who waits for it. Where that fails the other end is gone, which is seen elsewhere. */
static void give_back(kvf_connection *at) {
    if (kvf_byte_ring_release(&at->in)) kvf_link_knock(at->socket);
}

void kvf_connection_read(kvf_neighbour *self, kvf_connection *at) {
    if (!at->in.memory || at->reading) return;
    at->reading = true;
    at->pending = false;
    const uint64_t from = at->in.own;
    kvf_link_state state = KVF_LINK_MORE;
    while (state == KVF_LINK_MORE && at->in.own - from < KVF_BYTE_RING_BYTES) {
        uint32_t kind = KVF_RECORD_MORE;
        const char *why = NULL;
        state = kvf_byte_ring_read(&at->in, &at->written, &kind, &why);
        if (state == KVF_LINK_MORE && kind == KVF_RECORD_LAST && !kvf_event_add_message(self, at, &at->written)) why = "it sent more than this process takes";
        if (why) kvf_connection_break(self, at, why);
        else if (state == KVF_LINK_MORE && kind == KVF_RECORD_SOCKET) take_early(self, at);
        if (at->socket < 0) return;
        if (at->in.own - at->in.told >= STEP) give_back(at);
    }
    give_back(at);
    at->reading = false;
    if (at->failed) return kvf_connection_end(self, at);
    if (!self->looking) kvf_connection_sleep(self, at);
}

void kvf_connection_sleep(kvf_neighbour *self, kvf_connection *at) {
    if (!at->in.memory || !kvf_byte_ring_sleep(&at->in)) return;
    self->pending = at->pending = true;
    kvf_neighbour_wake(self);
}

void kvf_neighbour_read_rings(kvf_neighbour *self, bool all) {
    if (!all && !self->pending) return;
    self->pending = false;
    for (kvf_connection *at = self->connections; at; at = at->next)
        if (all || at->pending) kvf_connection_read(self, at);
}
