/*
 * cuda_sample.h - random copy programs with their memory, the bytes that they must give by plain nested loops, and the
 * hop that says the same. Included by the drivers of the CUDA tests.
 */
#ifndef TEST_CUDA_SAMPLE_H
#define TEST_CUDA_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvf.h"

#define MOST_PAIRS 24
#define MOST_BASES 6

static uint64_t random_state;
static uint64_t draw(void) {
    uint64_t z = (random_state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t below(uint64_t n) {
    return draw() % n;
}

/* ---- a random program ------------------------------------------------------------------------------------------- */

typedef struct sample {
    uint32_t bases, pairs, loops, blocks, row;
    uint32_t run[MOST_PAIRS];
    bool runs;
    uint64_t count[KVF_MAX_LOOPS];
    uint64_t base[2][MOST_BASES];
    uint64_t offset[2][MOST_PAIRS];
    int64_t run_stride[2];
    int64_t stride[2][KVF_MAX_LOOPS];
    uint64_t bytes[2];        /* of each side's memory */
    unsigned char *memory[2];
    unsigned char *wanted;
} sample;

/* Lays one side out: the axes of a block in random order with random gaps, then blocks, then bases within or apart. */
static void lay(sample *s, int side, uint32_t slots, const uint32_t *first, uint32_t unit) {
    uint32_t axes[KVF_MAX_LOOPS + 1], n = 0;
    const bool inside = below(2) == 0;
    for (uint32_t k = 0; k < s->loops; k++) axes[n++] = k;
    if (inside) axes[n++] = KVF_MAX_LOOPS;
    const bool ordered = below(3) == 0;
    for (uint32_t i = n; i > 1 && !ordered; i--) {
        uint32_t j = (uint32_t)below(i), swap = axes[i - 1];
        axes[i - 1] = axes[j];
        axes[j] = swap;
    }
    if (ordered) {
        for (uint32_t i = 0; i < n / 2; i++) {
            uint32_t swap = axes[i];
            axes[i] = axes[n - 1 - i];
            axes[n - 1 - i] = swap;
        }
    }
    const bool gaps = below(2) == 0;
    uint64_t end = s->row, even = 0;
    for (uint32_t i = 0; i < n; i++) {
        end = (end + unit - 1) / unit * unit + (gaps ? unit * below(3) : 0);
        if (axes[i] == KVF_MAX_LOOPS) {
            even = end;
            end *= s->bases;
        } else {
            s->stride[side][axes[i]] = (int64_t)end;
            end *= s->count[axes[i]];
        }
    }
    end = (end + unit - 1) / unit * unit + (gaps ? unit * below(3) : 0);
    s->run_stride[side] = (int64_t)end;
    for (uint32_t p = 0; p < s->pairs; p++) s->offset[side][p] = first[p] * end;
    uint64_t whole = slots * end;
    if (inside) {
        for (uint32_t r = 0; r < s->bases; r++) s->base[side][r] = r * even;
        s->bytes[side] = whole;
    } else {
        uint64_t at = 0;
        const bool apart = below(2) == 0;
        for (uint32_t r = 0; r < s->bases; r++) {
            s->base[side][r] = at;
            at += whole + (apart ? unit * below(5) : 0);
        }
        s->bytes[side] = at;
    }
    if (below(4) == 0 && s->runs) { /* backwards: a run that descends */
        for (uint32_t p = 0; p < s->pairs; p++) s->offset[side][p] += (s->run[p] - 1) * end;
        s->run_stride[side] = -(int64_t)end;
    }
}

static void place(const sample *s, int side, uint32_t *slots, uint32_t *first) {
    (void)side;
    uint32_t order[MOST_PAIRS], at = (uint32_t)below(3);
    for (uint32_t p = 0; p < s->pairs; p++) order[p] = p;
    if (below(3) != 0) {
        for (uint32_t i = s->pairs; i > 1; i--) {
            uint32_t j = (uint32_t)below(i), swap = order[i - 1];
            order[i - 1] = order[j];
            order[j] = swap;
        }
    }
    for (uint32_t i = 0; i < s->pairs; i++) {
        first[order[i]] = at;
        at += s->run[order[i]] + (uint32_t)below(2);
    }
    *slots = at + 1;
}

static void make(sample *s) {
    static const uint32_t units[] = {1, 2, 4, 8, 16, 16, 16, 32};
    memset(s, 0, sizeof *s);
    const uint32_t unit = units[below(8)];
    s->bases = 1 + (uint32_t)(below(2) ? below(MOST_BASES) : 0);
    s->pairs = 1 + (uint32_t)(below(4) ? below(MOST_PAIRS) : 0);
    s->loops = (uint32_t)below(4);
    for (uint32_t k = 0; k < s->loops; k++) s->count[k] = 1 + below(4);
    s->row = (uint32_t)(below(3) == 0 ? 1 + below(9000) : (1 + below(40)) * unit);
    s->runs = below(2) == 0;
    const bool alike = below(2) == 0;
    for (uint32_t p = 0; p < s->pairs; p++) {
        s->run[p] = s->runs ? (alike && p ? s->run[0] : 1 + (uint32_t)below(4)) : 1;
        s->blocks += s->run[p];
    }
    for (int side = 0; side < 2; side++) {
        uint32_t slots, first[MOST_PAIRS];
        place(s, side, &slots, first);
        lay(s, side, slots, first, unit);
        const uint64_t shift = below(2) ? unit * below(3) : 0;
        s->memory[side] = aligned_alloc(64, (s->bytes[side] + shift + 127) / 64 * 64);
        s->bytes[side] += shift;
        for (uint32_t r = 0; r < s->bases; r++) s->base[side][r] += shift;
    }
    for (uint64_t i = 0; i < s->bytes[0]; i++) s->memory[0][i] = (unsigned char)draw();
    memset(s->memory[1], 0xa5, s->bytes[1]);
    s->wanted = malloc(s->bytes[1] + 1);
    memset(s->wanted, 0xa5, s->bytes[1]);
    /* The oracle: plain loops over the numbers above. */
    for (uint32_t r = 0; r < s->bases; r++)
        for (uint32_t p = 0; p < s->pairs; p++)
            for (uint32_t i = 0; i < s->run[p]; i++) {
                uint64_t rows = 1;
                for (uint32_t k = 0; k < s->loops; k++) rows *= s->count[k];
                for (uint64_t n = 0; n < rows; n++) {
                    int64_t at[2];
                    for (int side = 0; side < 2; side++) {
                        at[side] = (int64_t)s->base[side][r] + (int64_t)s->offset[side][p] + (int64_t)i * s->run_stride[side];
                        uint64_t left = n;
                        for (uint32_t k = s->loops; k-- > 0;) {
                            at[side] += (int64_t)(left % s->count[k]) * s->stride[side][k];
                            left /= s->count[k];
                        }
                    }
                    memcpy(s->wanted + at[1], s->memory[0] + at[0], s->row);
                }
            }
}

static void discard(sample *s) {
    free(s->memory[0]);
    free(s->memory[1]);
    free(s->wanted);
}

/* ---- as a hop ------------------------------------------------------------------------------------------------------ */

/* The stride of which a side's offsets are multiples by block ids; 0 where all are 0. */
static uint64_t id_stride(const sample *s, int side) {
    uint64_t unit = 0;
    for (uint32_t p = 0; p < s->pairs; p++)
        for (uint64_t a = s->offset[side][p]; a != 0;) {
            uint64_t rest = unit % a;
            unit = a;
            a = rest;
        }
    return unit;
}

/* The sides' memory is at `at_side[side]`, of kind `kind[side]` on device `device`. Returns the words. */
static uint64_t write_hop(const sample *s, const uint64_t at_side[2], const uint32_t kind[2], uint32_t device, double *words) {
    uint64_t at = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS;
    double *program = words + KVF_HOP_HEADER_WORDS;
    memset(words, 0, at * sizeof *words);
    program[0] = s->bases;
    program[1] = s->pairs;
    program[2] = s->loops;
    program[3] = s->row;
    program[4] = (double)s->run_stride[0];
    program[5] = (double)s->run_stride[1];
    uint64_t rows = 1;
    for (uint32_t k = 0; k < s->loops; k++) {
        program[6 + k] = (double)s->count[k];
        program[12 + k] = (double)s->stride[0][k];
        program[18 + k] = (double)s->stride[1][k];
        rows *= s->count[k];
    }
    for (int side = 0; side < 2; side++) {
        program[24 + 2 * side] = kind[side];
        program[25 + 2 * side] = kind[side] == 1 ? device : 0;
    }
    const double bytes = (double)(s->bases * s->blocks * rows * s->row);
    for (int side = 0; side < 2; side++) {
        program[28 + side] = (double)at;
        for (uint32_t r = 0; r < s->bases; r++) words[at++] = (double)(at_side[side] + s->base[side][r]);
    }
    /* Every second sample says block ids instead of offsets, where it can. */
    const uint64_t unit[2] = {id_stride(s, 0), id_stride(s, 1)};
    const bool ids = (s->row ^ s->pairs) & 1 && unit[0] > 0 && unit[1] > 0;
    program[34] = ids;
    for (int side = 0; side < 2; side++) {
        program[30 + side] = (double)at;
        program[35 + side] = ids ? (double)unit[side] : 0;
        if (ids) {
            for (uint32_t p = 0; p < s->pairs; p++) {
                const uint32_t id = (uint32_t)(s->offset[side][p] / unit[side]);
                memcpy((char *)(words + at) + 4 * p, &id, 4);
            }
            at += (s->pairs + 1) / 2;
        } else
            for (uint32_t p = 0; p < s->pairs; p++) words[at++] = (double)s->offset[side][p];
    }
    if (s->runs) {
        program[32] = (double)at;
        memcpy(words + at, s->run, s->pairs * sizeof *s->run);
        at += (s->pairs + 1) / 2;
    }
    program[33] = bytes;
    words[0] = KVF_HOP_MAGIC;
    words[1] = KVF_HOP_VERSION;
    words[2] = 1;
    words[3] = (double)at;
    words[4] = bytes;
    return at;
}

#endif
