/*
 * neighbour_scribble.h - neighbours that scribble over both rings while they are in use, beside a good one.
 */
#ifndef KVF_NEIGHBOUR_SCRIBBLE_H
#define KVF_NEIGHBOUR_SCRIBBLE_H

#include "neighbour_hostile.h"

typedef struct scribbler {
    villain who;
    uint64_t random;
    uint32_t stop; /* atomic */
    pthread_t thread;
} scribbler;

/* Writes plausible nonsense all over both rings while they are in use, and knocks. */
static void *scribble(void *argument) {
    scribbler *self = argument;
    while (__atomic_load_n(&self->stop, __ATOMIC_ACQUIRE) == 0) {
        for (int k = 0; k < 200; k++) {
            self->random = self->random * 6364136223846793005u + 1442695040888963407u;
            const uint64_t word = self->random >> 33;
            kvf_byte_ring *ring = word % 2 ? &self->who.out : &self->who.in;
            kvf_byte_ring_words *words = shared(ring);
            const uint64_t near = __atomic_load_n(&words->head, __ATOMIC_RELAXED) / 8 * 8 + word / 16 % 64 * 8;
            uint64_t *at = (uint64_t *)(void *)(ring->memory + KVF_BYTE_RING_FIRST + near % KVF_BYTE_RING_BYTES);
            if (word / 2 % 8 == 0) __atomic_store_n(&words->head, __atomic_load_n(&words->head, __ATOMIC_RELAXED) + word / 64 % 8 * 8, __ATOMIC_RELAXED);
            else if (word / 2 % 8 == 1) __atomic_store_n(&words->tail, __atomic_load_n(&words->tail, __ATOMIC_RELAXED) + word / 64 % 3 * 8, __ATOMIC_RELAXED);
            else if (word / 2 % 8 == 2) __atomic_store_n(&words->reader_waits, (uint32_t)word, __ATOMIC_RELAXED);
            else if (word / 2 % 8 == 3) __atomic_store_n(&words->writer_waits, (uint32_t)word, __ATOMIC_RELAXED);
            else __atomic_store_n(at, word / 64 % 20 | (word / 2048 % 8 == 0 ? word / 16384 % 4 << 32 : 0), __ATOMIC_RELAXED);
        }
        knock(&self->who);
    }
    return NULL;
}

static void scribbled_rings(int rounds) {
    const int before = open_descriptors(), maps = mapped_files();
    side a = open_side("a"), b = open_side("b");
    uint32_t back, to = ringed(&a, &b, &back), said = 0, heard = 0, closed = 0;
    double out[1];
    for (int round = 0; round < rounds; round++) {
        scribbler hands[2];
        bool open[2] = {true, true};
        for (int k = 0; k < 2; k++) hands[k] = (scribbler){.who = ringed_villain(&b), .random = random_word()};
        for (int k = 0; k < 2; k++) CHECK(pthread_create(&hands[k].thread, NULL, scribble, &hands[k]) == 0);
        for (int turn = 0; turn < 400 && (open[0] || open[1] || heard < said); turn++) {
            if (said < heard + 100) CHECK(kvf_neighbour_send(a.self, to, (const uint8_t *)&said, 4, NULL, 0, out) == KVF_OK && ++said);
            for (int k = 0; k < 2; k++)
                if (open[k]) kvf_neighbour_send(b.self, hands[k].who.number, (const uint8_t *)&said, below(5), NULL, 0, out);
            CHECK(kvf_neighbour_look(b.self, turn % 3 > 0, out) == KVF_OK);
            event got;
            for (int many = 0; many < 1000 && poll_event(&b, &got); many++) {
                if (got.connection == back) {
                    CHECK(got.kind == KVF_NEIGHBOUR_MESSAGE && got.length == 4 && memcmp(got.payload, &heard, 4) == 0 && ++heard);
                    continue;
                }
                const int which = got.connection == hands[0].who.number ? 0 : 1;
                CHECK(got.connection == hands[which].who.number && got.kind != KVF_NEIGHBOUR_EXITED);
                if (got.kind == KVF_NEIGHBOUR_CLOSED) open[which] = false, closed++;
            }
            pause_micros(50);
        }
        for (int k = 0; k < 2; k++) {
            __atomic_store_n(&hands[k].stop, 1, __ATOMIC_RELEASE);
            CHECK(pthread_join(hands[k].thread, NULL) == 0);
            CHECK(kvf_neighbour_forget(b.self, hands[k].who.number) == KVF_OK);
            drop_villain(&hands[k].who);
        }
        /* Of both nothing more comes; what a good neighbour said is all there. */
        CHECK(kvf_neighbour_look(b.self, 0, out) == KVF_OK);
        event got = {0};
        for (int tries = 0; poll_event(&b, &got) || heard < said; tries++) {
            if (got.connection == 0) {
                CHECK(tries < 100000);
                pause_micros(100);
            } else tries = 0;
            if (got.connection == back) CHECK(got.kind == KVF_NEIGHBOUR_MESSAGE && memcmp(got.payload, &heard, 4) == 0 && ++heard);
            got.connection = 0;
        }
    }
    CHECK(closed > 0 && said > 0 && mapped_files() == maps + 4);
    close_side(&a);
    close_side(&b);
    CHECK(open_descriptors() == before && mapped_files() == maps);
}

#endif
