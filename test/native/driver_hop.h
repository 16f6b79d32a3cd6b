/*
 * driver_hop.h - random hops whose destinations are disjoint, and what they must do, cell by cell.
 */
#ifndef KVF_DRIVER_HOP_H
#define KVF_DRIVER_HOP_H

#include "driver.h"

#define MOST_WORDS 20000
#define GUARD 0xa5
/* Blocks above this get no more cells. */
#define MOST_BLOCK 2048

/* A hop under construction over two arenas. */
typedef struct draft {
    double words[MOST_WORDS];
    uint64_t used;
    uint32_t programs;
    uint8_t *src;
    uint8_t *dst;
    uint64_t src_bytes;
    uint64_t dst_bytes;
    uint64_t dst_used; /* destinations are given out from the front */
} draft;

static void begin_draft(draft *self, uint32_t programs, uint64_t src_bytes, uint64_t dst_bytes) {
    memset(self->words, 0, sizeof self->words);
    self->programs = programs;
    self->used = KVF_HOP_HEADER_WORDS + (uint64_t)programs * KVF_PROGRAM_WORDS;
    self->src_bytes = src_bytes;
    self->dst_bytes = dst_bytes;
    self->dst_used = 0;
    self->src = malloc(src_bytes);
    self->dst = malloc(dst_bytes);
    CHECK(self->src && self->dst);
    for (uint64_t k = 0; k < src_bytes; k++) self->src[k] = (uint8_t)random_word();
    memset(self->dst, GUARD, dst_bytes);
}

static void end_draft(draft *self) {
    free(self->src);
    free(self->dst);
}

static double *new_array(draft *self, uint64_t words) {
    double *at = self->words + self->used;
    self->used += words;
    CHECK(self->used <= MOST_WORDS);
    return at;
}

/* Nested strides in a random order of the loops, now and then with a gap or backwards. Returns the bytes from the lowest
 * to past the highest; `start` is where index zero lies in them. */
static uint64_t random_strides(uint32_t loops, const double *count, uint64_t row, double *stride, uint64_t *start, bool gaps) {
    uint32_t order[KVF_MAX_LOOPS];
    for (uint32_t k = 0; k < loops; k++) order[k] = k;
    for (uint32_t k = loops; k > 1; k--) {
        uint32_t other = (uint32_t)below(k), kept = order[k - 1];
        order[k - 1] = order[other];
        order[other] = kept;
    }
    uint64_t extent = row;
    *start = 0;
    for (uint32_t k = 0; k < loops; k++) {
        uint64_t step = extent + (gaps && below(3) == 0 ? below(row < 40 ? 3 : 40) : 0);
        uint64_t reach = step * ((uint64_t)count[order[k]] - 1);
        bool backwards = gaps && below(5) == 0;
        stride[order[k]] = backwards ? -(double)step : (double)step;
        if (backwards) *start += reach;
        extent += reach;
    }
    return extent;
}

/* Offsets of a side as block ids times their greatest common divisor, in the place of the offsets. Returns the stride. */
static double offsets_to_ids(double *offset, uint64_t pairs) {
    uint64_t unit = 0;
    for (uint64_t p = 0; p < pairs; p++)
        for (uint64_t a = (uint64_t)offset[p]; a != 0;) {
            uint64_t rest = unit % a;
            unit = a;
            a = rest;
        }
    if (unit == 0) unit = 1;
    uint32_t ids[8];
    for (uint64_t p = 0; p < pairs; p++) ids[p] = (uint32_t)((uint64_t)offset[p] / unit);
    memcpy(offset, ids, pairs * sizeof *ids);
    return (double)unit;
}

/* Fills program `index` with random loops over blocks that lie in free room of the destination arena. */
static void random_program(draft *self, uint32_t index, uint64_t most_row) {
    double *head = self->words + KVF_HOP_HEADER_WORDS + (uint64_t)index * KVF_PROGRAM_WORDS;
    uint64_t row = 1 + below(most_row), bases = 1 + below(3), pairs = 1 + below(6);
    if (below(2)) row = (row + 63) / 64 * 64;
    uint32_t loops = (uint32_t)below(KVF_MAX_LOOPS + 1);
    bool gaps = below(2) == 0, runs = below(2) == 0;
    uint64_t cells = 1, src_start, dst_start;
    for (uint32_t k = 0; k < loops; k++) {
        head[6 + k] = (double)(cells * row > MOST_BLOCK ? 1 : 1 + below(4));
        cells *= (uint64_t)head[6 + k];
    }
    uint64_t src_block = random_strides(loops, head + 6, row, head + 12, &src_start, gaps);
    uint64_t dst_block = random_strides(loops, head + 6, row, head + 18, &dst_start, gaps);
    double *src_base = new_array(self, bases), *dst_base = new_array(self, bases);
    double *src_offset = new_array(self, pairs), *dst_offset = new_array(self, pairs);
    double *run_words = runs ? new_array(self, (pairs + 1) / 2) : NULL;
    uint32_t *run = (uint32_t *)(void *)run_words;
    uint64_t sum = 0, steps[8];
    for (uint64_t p = 0; p < pairs; p++) {
        steps[p] = runs ? 1 + below(4) : 1;
        if (runs) memcpy(run + p, &(uint32_t){(uint32_t)steps[p]}, 4);
        sum += steps[p];
    }
    bool backwards = below(4) == 0;
    head[4] = (double)src_block;
    head[5] = backwards ? -(double)dst_block : (double)dst_block;
    /* Each base owns a part of the destination arena, each pair a part of that. */
    uint64_t per_base = sum * dst_block, at = self->dst_used + below(100);
    self->dst_used = at + bases * per_base + 64;
    CHECK(self->dst_used <= self->dst_bytes && src_block * 5 + 64 <= self->src_bytes);
    for (uint64_t r = 0; r < bases; r++) {
        dst_base[r] = (double)((uintptr_t)self->dst + at + r * per_base);
        src_base[r] = (double)((uintptr_t)self->src + below(32));
    }
    uint64_t filled = 0;
    for (uint64_t p = 0; p < pairs; p++) {
        dst_offset[p] = (double)(filled + dst_start + (backwards ? (steps[p] - 1) * dst_block : 0));
        filled += steps[p] * dst_block;
        uint64_t room = self->src_bytes - 64 - steps[p] * src_block;
        src_offset[p] = (double)(below(room) + src_start);
    }
    head[0] = (double)bases;
    head[1] = (double)pairs;
    head[2] = loops;
    head[3] = (double)row;
    head[28] = (double)(src_base - self->words);
    head[29] = (double)(dst_base - self->words);
    head[30] = (double)(src_offset - self->words);
    head[31] = (double)(dst_offset - self->words);
    head[32] = runs ? (double)(run_words - self->words) : 0;
    head[33] = (double)(bases * sum * cells * row);
    if (below(2)) {
        head[34] = 1;
        head[35] = offsets_to_ids(src_offset, pairs);
        head[36] = offsets_to_ids(dst_offset, pairs);
    }
}

static void seal_draft(draft *self) {
    double bytes = 0;
    for (uint32_t p = 0; p < self->programs; p++) bytes += self->words[KVF_HOP_HEADER_WORDS + p * KVF_PROGRAM_WORDS + 33];
    self->words[0] = KVF_HOP_MAGIC;
    self->words[1] = KVF_HOP_VERSION;
    self->words[2] = self->programs;
    self->words[3] = (double)self->used;
    self->words[4] = bytes;
}

/* Where pair `q` of a side lies: offsets at word 30 and 31, or block ids, whose strides are words 35 and 36. */
static double pair_offset(const double *words, const double *head, int side, uint64_t q) {
    const double *list = words + (uint64_t)head[30 + side];
    if (head[34] == 0) return list[q];
    uint32_t id;
    memcpy(&id, (const char *)list + 4 * q, 4);
    return (double)id * head[35 + side];
}

/* Told of each row in program order. */
typedef void (*row_visitor)(void *to, uint64_t src, uint64_t dst, uint64_t bytes, uint32_t program);

/* The definition of a hop, loop by loop, straight from the words. */
static void visit_rows(const double *words, row_visitor visit, void *to) {
    for (uint32_t p = 0; p < (uint32_t)words[2]; p++) {
        const double *head = words + KVF_HOP_HEADER_WORDS + (uint64_t)p * KVF_PROGRAM_WORDS;
        uint64_t cells = 1;
        for (int k = 0; k < (int)head[2]; k++) cells *= (uint64_t)head[6 + k];
        for (uint64_t r = 0; r < (uint64_t)head[0]; r++)
            for (uint64_t q = 0; q < (uint64_t)head[1]; q++) {
                uint32_t run = 1;
                if (head[32] != 0) memcpy(&run, (const char *)(words + (uint64_t)head[32]) + 4 * q, 4);
                for (uint32_t i = 0; i < run; i++)
                    for (uint64_t cell = 0; cell < cells; cell++) {
                        double src = words[(uint64_t)head[28] + r] + pair_offset(words, head, 0, q) + i * head[4];
                        double dst = words[(uint64_t)head[29] + r] + pair_offset(words, head, 1, q) + i * head[5];
                        uint64_t rest = cell;
                        for (int k = (int)head[2]; k-- > 0; rest /= (uint64_t)head[6 + k]) {
                            uint64_t index = rest % (uint64_t)head[6 + k];
                            src += (double)index * head[12 + k];
                            dst += (double)index * head[18 + k];
                        }
                        visit(to, (uint64_t)src, (uint64_t)dst, (uint64_t)head[3], p);
                    }
            }
    }
}

#endif
