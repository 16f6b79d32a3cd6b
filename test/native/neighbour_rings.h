/*
 * neighbour_rings.h - messages by rings in shared memory: their order beside what the socket carries, and rings that are
 * full.
 */
#ifndef KVF_NEIGHBOUR_RINGS_H
#define KVF_NEIGHBOUR_RINGS_H

#include "neighbour_ring.h"

/* Two connected sides that send by rings; four mappings more and not one descriptor. */
static uint32_t ringed(side *a, side *b, uint32_t *back) {
    const int maps = mapped_files(), descriptors = open_descriptors();
    uint32_t to = connect_to(a, b);
    *back = expect_event(b, KVF_NEIGHBOUR_ACCEPTED).connection;
    CHECK(kvf_neighbour_ring(a->self, to + 100, 1) == KVF_E_PEER);
    CHECK(kvf_neighbour_ring(b->self, *back, 0) == KVF_OK);
    CHECK(kvf_neighbour_ring(a->self, to, 1) == KVF_OK && kvf_neighbour_ring(a->self, to, 1) == KVF_OK);
    for (int tries = 0; mapped_files() < maps + 4; tries++) {
        CHECK(tries < 10000);
        pause_micros(100);
    }
    CHECK(mapped_files() == maps + 4);
    for (int tries = 0; open_descriptors() > descriptors + 4; tries++) { /* two sockets, two watches of this process */
        CHECK(tries < 10000);
        pause_micros(100);
    }
    return to;
}

/* ---- order ------------------------------------------------------------------------------------------------------ */

#define LONGEST ((size_t)3 << 20)

/* Message k of a sequence: lengths and bytes that follow from k; some are longer than a ring. */
static size_t length_of(uint32_t k) {
    const uint32_t mixed = k * 2654435761u >> 8;
    if (k % 61 == 7) return LONGEST - mixed % 1000;
    if (k % 17 == 3) return KVF_BYTE_RING_BYTES / 2 + mixed % 64 - 32;
    return k % 5 == 0 ? mixed % 20000 : mixed % 40;
}

/* Every so often one has a descriptor, and goes over the socket. */
static bool has_descriptor(uint32_t k) { return k % 11 == 2 || k % 11 == 3; }

static void send_numbered(side *from, uint32_t to, uint32_t k, uint8_t *scratch, int descriptor) {
    double out[1];
    const size_t length = 4 + length_of(k);
    memset(scratch, (int)(k * 7 + 1), length);
    memcpy(scratch, &k, 4);
    const double pair[] = {descriptor, 0};
    CHECK(kvf_neighbour_send(from->self, to, scratch, length, pair, has_descriptor(k), out) == KVF_OK);
}

static void check_numbered(const event *got, uint32_t connection, uint32_t k) {
    uint32_t number;
    CHECK(got->connection == connection && got->length == 4 + length_of(k) && got->count == has_descriptor(k));
    memcpy(&number, got->payload, 4);
    CHECK(number == k);
    for (size_t j = 4; j < got->length; j++) CHECK(got->payload[j] == (uint8_t)(k * 7 + 1));
    for (uint32_t j = 0; j < got->count; j++) CHECK(close(got->descriptors[j]) == 0);
}

/* In both directions at once, with whoever reads asleep, looking, or now this and now that. */
static void rings(uint32_t messages) {
    const int before = open_descriptors(), maps = mapped_files();
    for (int way = 0; way < 3; way++) {
        side a = open_side("a"), b = open_side("b");
        uint32_t back, to = ringed(&a, &b, &back);
        uint8_t *scratch = malloc(4 + LONGEST);
        int descriptor = memory_file(4096, F_SEAL_SHRINK);
        CHECK(scratch);
        uint32_t sent = 0, heard[2] = {0, 0};
        while (heard[0] < messages || heard[1] < messages) {
            for (int k = 0; k < 8 && sent < messages; k++, sent++) {
                send_numbered(&a, to, sent, scratch, descriptor);
                send_numbered(&b, back, sent, scratch, descriptor);
            }
            for (int end = 0; end < 2; end++) {
                side *at = end ? &b : &a;
                double found[1];
                if (way) CHECK(kvf_neighbour_look(at->self, way == 1 || below(3) > 0, found) == KVF_OK);
                event got;
                while (heard[end] < messages && poll_event(at, &got)) {
                    CHECK(got.kind == KVF_NEIGHBOUR_MESSAGE);
                    check_numbered(&got, end ? back : to, heard[end]++);
                }
            }
        }
        close(descriptor);
        free(scratch);
        close_side(&a);
        close_side(&b);
        CHECK(open_descriptors() == before && mapped_files() == maps);
    }
}

/* Nobody reads for now: what does not fit waits in order, and comes though its sender is gone by then. */
static void full_rings(uint32_t messages) {
    const int before = open_descriptors(), maps = mapped_files();
    for (int way = 0; way < 2; way++) {
        side a = open_side("a"), b = open_side("b");
        uint32_t back, to = ringed(&a, &b, &back), heard = 0;
        uint8_t *scratch = malloc(4 + LONGEST);
        int descriptor = memory_file(4096, F_SEAL_SHRINK);
        double out[1];
        CHECK(scratch);
        CHECK(kvf_neighbour_look(b.self, 1, out) == KVF_OK);
        for (uint32_t k = 0; k < messages; k++) send_numbered(&a, to, k, scratch, descriptor);
        CHECK(kvf_neighbour_send(a.self, to, scratch, 0, NULL, 0, out) == KVF_OK && out[0] > 4 * (double)KVF_BYTE_RING_BYTES);
        pause_micros(20000);
        event got;
        CHECK(!poll_event(&b, &got)); /* nobody was woken */
        CHECK(kvf_neighbour_shut(a.self, to) == KVF_OK);
        CHECK(kvf_neighbour_send(a.self, to, scratch, 1, NULL, 0, out) == KVF_E_PEER);
        while (heard < messages) {
            if (way) CHECK(kvf_neighbour_look(b.self, 0, out) == KVF_OK);
            else CHECK(kvf_neighbour_look(b.self, 1, out) == KVF_OK);
            while (heard < messages && poll_event(&b, &got)) {
                CHECK(got.kind == KVF_NEIGHBOUR_MESSAGE);
                check_numbered(&got, back, heard++);
            }
        }
        CHECK(kvf_neighbour_look(b.self, 0, out) == KVF_OK);
        CHECK(expect_event(&b, KVF_NEIGHBOUR_MESSAGE).length == 0);
        expect_event(&b, KVF_NEIGHBOUR_CLOSED);
        expect_event(&a, KVF_NEIGHBOUR_CLOSED);
        CHECK(mapped_files() == maps);
        close(descriptor);
        free(scratch);
        close_side(&a);
        close_side(&b);
        CHECK(open_descriptors() == before && mapped_files() == maps);
    }
}

#endif
