#include "cuda_nest.h"

#include <string.h>

#include "cuda_nest_side.h"

/* Puts a loop outside all others. */
static void prepend(kvf_nest *nest, uint64_t count, int64_t src, int64_t dst) {
    for (uint32_t k = nest->loops; k > 0; k--) {
        nest->count[k] = nest->count[k - 1];
        for (int s = 0; s < 2; s++) nest->side[s].stride[k] = nest->side[s].stride[k - 1];
    }
    nest->count[0] = count;
    nest->side[KVF_SRC].stride[0] = src;
    nest->side[KVF_DST].stride[0] = dst;
    nest->loops++;
}

static void remove_loop(kvf_nest *nest, uint32_t at) {
    for (uint32_t k = at; k + 1 < nest->loops; k++) {
        nest->count[k] = nest->count[k + 1];
        for (int s = 0; s < 2; s++) nest->side[s].stride[k] = nest->side[s].stride[k + 1];
    }
    nest->loops--;
}

/* Drops loops of one, joins a loop into its inner neighbour or the row where both sides continue. */
static void fuse(kvf_nest *nest) {
    for (uint32_t k = nest->loops; k-- > 0;) {
        if (nest->count[k] == 1) {
            remove_loop(nest, k);
            continue;
        }
        bool joins = true;
        if (k + 1 == nest->loops) {
            for (int s = 0; s < 2; s++) joins = joins && nest->side[s].stride[k] == (int64_t)nest->row;
            if (!joins) continue;
            nest->row *= nest->count[k];
            nest->loops--;
        } else {
            for (int s = 0; s < 2; s++) joins = joins && nest->side[s].stride[k] == nest->side[s].stride[k + 1] * (int64_t)nest->count[k + 1];
            if (!joins) continue;
            nest->count[k + 1] *= nest->count[k];
            remove_loop(nest, k);
        }
    }
}

/* Whether bases are evenly spaced on this side, and their step. */
static bool even_bases(const kvf_side *side, uint64_t bases, int64_t *step) {
    if (!side->base) {
        *step = side->base_step;
        return true;
    }
    *step = (int64_t)side->base[1] - (int64_t)side->base[0];
    for (uint64_t r = 2; r < bases; r++) {
        if ((int64_t)side->base[r] - (int64_t)side->base[r - 1] != *step) return false;
    }
    return true;
}

/* Moves lists of one entry into the constant part, even bases and runs into loops. */
void kvf_nest_normalise(kvf_nest *nest) {
    if (nest->run) {
        bool alike = true;
        for (uint64_t p = 1; alike && p < nest->pairs; p++) alike = nest->run[p] == nest->run[0];
        if (alike && nest->loops < KVF_KERNEL_LOOPS) {
            uint64_t run = nest->run[0];
            nest->run = NULL;
            nest->blocks = nest->pairs;
            prepend(nest, run, nest->side[KVF_SRC].run, nest->side[KVF_DST].run);
        }
    }
    if (nest->bases > 1) {
        int64_t step[2];
        if (nest->loops < KVF_KERNEL_LOOPS && even_bases(&nest->side[0], nest->bases, &step[0]) &&
            even_bases(&nest->side[1], nest->bases, &step[1])) {
            uint64_t bases = nest->bases;
            for (int s = 0; s < 2; s++) nest->side[s].add += kvf_side_base(&nest->side[s], 0);
            nest->bases = 1;
            for (int s = 0; s < 2; s++) {
                nest->side[s].base = NULL;
                nest->side[s].base_step = 0;
            }
            prepend(nest, bases, step[0], step[1]);
        }
    } else {
        for (int s = 0; s < 2; s++) {
            nest->side[s].add += kvf_side_base(&nest->side[s], 0);
            nest->side[s].base = NULL;
            nest->side[s].base_step = 0;
        }
    }
    if (nest->pairs == 1) {
        for (int s = 0; s < 2; s++) {
            nest->side[s].add += kvf_side_offset(&nest->side[s], 0);
            nest->side[s].place = (kvf_places){0};
            nest->side[s].offset_step = 0;
            nest->side[s].least = nest->side[s].most = 0;
            nest->side[s].bits = 0;
            nest->side[s].bounded = true;
        }
    }
    fuse(nest);
}

void kvf_nest_from(kvf_nest *nest, const kvf_program *program) {
    memset(nest, 0, sizeof *nest);
    nest->bases = program->bases;
    nest->pairs = program->pairs;
    nest->run = program->run;
    nest->blocks = program->blocks;
    nest->row = program->row_bytes;
    nest->loops = program->loops;
    for (uint32_t k = 0; k < program->loops; k++) {
        nest->count[k] = program->count[k];
        nest->side[KVF_SRC].stride[k] = program->src_stride[k];
        nest->side[KVF_DST].stride[k] = program->dst_stride[k];
    }
    nest->side[KVF_SRC].base = program->src_base;
    nest->side[KVF_DST].base = program->dst_base;
    nest->side[KVF_SRC].place = program->place[KVF_SRC];
    nest->side[KVF_DST].place = program->place[KVF_DST];
    nest->side[KVF_SRC].run = program->src_run;
    nest->side[KVF_DST].run = program->dst_run;
    for (int s = 0; s < 2; s++) {
        nest->side[s].least = program->offset_least[s];
        nest->side[s].most = program->offset_most[s];
        nest->side[s].bits = program->offset_bits[s];
        nest->side[s].bounded = true;
    }
    if (kvf_nest_bytes(nest) > 0) kvf_nest_normalise(nest);
}

uint64_t kvf_nest_block_rows(const kvf_nest *nest) {
    uint64_t rows = 1;
    for (uint32_t k = 0; k < nest->loops; k++) rows *= nest->count[k];
    return rows;
}

uint64_t kvf_nest_rows(const kvf_nest *nest) {
    return nest->bases * nest->blocks * kvf_nest_block_rows(nest);
}

uint64_t kvf_nest_bytes(const kvf_nest *nest) {
    return kvf_nest_rows(nest) * nest->row;
}

void kvf_nest_order(kvf_nest *nest, int side) {
    for (uint32_t k = 1; k < nest->loops; k++) { /* insertion: a handful of loops */
        for (uint32_t i = k; i > 0; i--) {
            int64_t *stride = nest->side[side].stride;
            int64_t outer = stride[i - 1] < 0 ? -stride[i - 1] : stride[i - 1];
            int64_t inner = stride[i] < 0 ? -stride[i] : stride[i];
            if (outer >= inner) break;
            uint64_t count = nest->count[i];
            nest->count[i] = nest->count[i - 1];
            nest->count[i - 1] = count;
            for (int s = 0; s < 2; s++) {
                int64_t swap = nest->side[s].stride[i];
                nest->side[s].stride[i] = nest->side[s].stride[i - 1];
                nest->side[s].stride[i - 1] = swap;
            }
        }
    }
    fuse(nest);
}

void kvf_program_extent(const kvf_program *program, int side, int64_t *low, int64_t *high) {
    const int64_t *stride = side == KVF_SRC ? program->src_stride : program->dst_stride;
    *low = program->reach_least[side];
    *high = program->reach_most[side];
    for (uint32_t k = 0; k < program->loops; k++) {
        int64_t last = (int64_t)(program->count[k] - 1) * stride[k];
        if (last < 0) *low += last;
        else *high += last;
    }
    *high += (int64_t)program->row_bytes;
}

uint32_t kvf_nest_alignment(const kvf_nest *nest, bool row) {
    uint64_t bits = 16 | (row ? nest->row : 0);
    for (int s = 0; s < 2; s++) {
        kvf_side bounds = nest->side[s];
        const kvf_side *at = &bounds;
        kvf_side_bound(nest, &bounds);
        bits |= (uint64_t)at->add | at->bits;
        for (uint64_t r = 0; r < nest->bases; r++) bits |= (uint64_t)kvf_side_base(at, r);
        if (nest->run) bits |= (uint64_t)at->run;
        for (uint32_t k = 0; k < nest->loops; k++) bits |= (uint64_t)at->stride[k];
    }
    return (uint32_t)(bits & (~bits + 1));
}
