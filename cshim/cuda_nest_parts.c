/*
 * cuda_nest_parts.c - nests cut into parts, brought to a slab, and walked row by row.
 */
#include <string.h>

#include "cuda_nest.h"
#include "cuda_nest_side.h"

/* ---- parts --------------------------------------------------------------------------------------------------- */

static void keep_bases(kvf_nest *part, const kvf_nest *nest, uint64_t from, uint64_t to) {
    *part = *nest;
    part->bases = to - from;
    for (int s = 0; s < 2; s++) {
        if (part->side[s].base) part->side[s].base += from;
        else part->side[s].add += (int64_t)from * part->side[s].base_step;
    }
}

static void keep_pairs(kvf_nest *part, const kvf_nest *nest, uint64_t from, uint64_t to, uint64_t blocks) {
    *part = *nest;
    part->pairs = to - from;
    part->blocks = blocks;
    if (part->run) part->run += from;
    for (int s = 0; s < 2; s++) {
        kvf_places *place = &part->side[s].place;
        if (from > 0) place->number = 0; /* another list now */
        if (place->offset) place->offset += from;
        else if (place->id) place->id += from;
        else {
            part->side[s].add += (int64_t)from * part->side[s].offset_step;
            part->side[s].bounded = false;
        }
    }
}

void kvf_nest_pairs(const kvf_nest *nest, uint64_t from, uint64_t to, kvf_nest *part) {
    uint64_t blocks = to - from;
    if (nest->run) {
        blocks = 0;
        for (uint64_t p = from; p < to; p++) blocks += nest->run[p];
    }
    keep_pairs(part, nest, from, to, blocks);
    kvf_nest_normalise(part);
}

static void keep_loop(kvf_nest *part, const kvf_nest *nest, uint32_t k, uint64_t from, uint64_t to) {
    *part = *nest;
    part->count[k] = to - from;
    for (int s = 0; s < 2; s++) part->side[s].add += (int64_t)from * part->side[s].stride[k];
}

static void keep_row(kvf_nest *part, const kvf_nest *nest, uint64_t from, uint64_t to) {
    *part = *nest;
    part->row = to - from;
    for (int s = 0; s < 2; s++) part->side[s].add += (int64_t)from;
}

int32_t kvf_nest_cut(const kvf_nest *whole, int side, uint64_t bytes, uint64_t pairs, kvf_nest_each each, void *argument) {
    kvf_nest nest = *whole;
    if (nest.pairs == 1 || kvf_nest_bytes(&nest) <= bytes) kvf_nest_normalise(&nest);
    uint64_t total = kvf_nest_bytes(&nest);
    if (total == 0) return KVF_OK;
    if (total <= bytes && nest.pairs <= pairs) {
        kvf_nest_normalise(&nest);
        return each(&nest, argument);
    }
    kvf_nest part;
    if (nest.pairs > 1) {
        const uint64_t per_block = total / nest.blocks;
        for (uint64_t from = 0; from < nest.pairs;) {
            uint64_t to = from, blocks = 0;
            while (to < nest.pairs && to - from < pairs) {
                uint64_t run = kvf_nest_run(&nest, to);
                if (to > from && (blocks + run) * per_block > bytes) break;
                blocks += run;
                to++;
            }
            keep_pairs(&part, &nest, from, to, blocks);
            int32_t status = kvf_nest_cut(&part, side, bytes, pairs, each, argument);
            if (status != KVF_OK) return status;
            from = to;
        }
        return KVF_OK;
    }
    /* One pair: the longest stride that has something to cut; -1 the bases, -2 the row. */
    int axis = -2;
    uint64_t count = 1, longest = 0;
    if (nest.bases > 1) {
        axis = -1;
        count = nest.bases;
        longest = kvf_nest_base_stride(&nest, side);
    }
    for (uint32_t k = 0; k < nest.loops; k++) {
        uint64_t stride = kvf_magnitude(nest.side[side].stride[k]);
        if (nest.count[k] > 1 && (axis == -2 || stride > longest)) {
            axis = (int)k;
            count = nest.count[k];
            longest = stride;
        }
    }
    if (axis == -2) count = nest.row;
    uint64_t share = total / count, group = share >= bytes ? 1 : bytes / share;
    if (axis == -2 && group > 4096) group = group / 4096 * 4096;
    for (uint64_t from = 0; from < count; from += group) {
        uint64_t to = count - from < group ? count : from + group;
        if (axis == -2) keep_row(&part, &nest, from, to);
        else if (axis == -1) keep_bases(&part, &nest, from, to);
        else keep_loop(&part, &nest, (uint32_t)axis, from, to);
        int32_t status = kvf_nest_cut(&part, side, bytes, pairs, each, argument);
        if (status != KVF_OK) return status;
    }
    return KVF_OK;
}

/* ---- slabs --------------------------------------------------------------------------------------------------- */

void kvf_nest_slab(const kvf_nest *nest, int side, uint64_t slab, double *offsets, kvf_nest *near, kvf_nest *far) {
    const int other = 1 - side;
    const kvf_side *outside = &nest->side[other];
    kvf_side packed;
    memset(&packed, 0, sizeof packed);
    packed.add = (int64_t)slab; /* its bounds are found when they are needed */

    /* The axes of a block, by growing stride on the other side, become the slab's packed order. */
    uint64_t end = nest->row;
    bool taken[KVF_KERNEL_LOOPS + 1] = {false};
    for (uint32_t round = 0; round <= nest->loops; round++) {
        int next = -1;
        uint64_t least = UINT64_MAX;
        for (uint32_t k = 0; k <= nest->loops; k++) { /* the bases are the axis behind the last loop */
            if (taken[k]) continue;
            uint64_t stride = k < nest->loops ? kvf_magnitude(outside->stride[k]) : kvf_nest_base_stride(nest, other);
            if (next < 0 || stride < least) {
                next = (int)k;
                least = stride;
            }
        }
        taken[next] = true;
        if ((uint32_t)next < nest->loops) {
            packed.stride[next] = (int64_t)end;
            end *= nest->count[next];
        } else {
            packed.base_step = (int64_t)end;
            end *= nest->bases;
        }
    }
    packed.run = (int64_t)end;
    packed.offset_step = (int64_t)end;
    if (nest->run) {
        double at = 0;
        for (uint64_t p = 0; p < nest->pairs; p++) {
            offsets[p] = at;
            at += (double)(nest->run[p] * end);
        }
        packed.place.offset = offsets;
    }
    *near = *nest;
    near->side[other] = packed;
    *far = *nest;
    far->side[side] = packed;
    kvf_nest_normalise(near);
    kvf_nest_normalise(far);
    kvf_nest_order(near, other);
    kvf_nest_order(far, other);
}

/* ---- walking ------------------------------------------------------------------------------------------------- */

static void walk_start(kvf_walk *walk) {
    const kvf_nest *nest = walk->nest;
    memset(walk->index, 0, sizeof walk->index);
    for (int s = 0; s < 2; s++) {
        const kvf_side *side = &nest->side[s];
        walk->at[s] = (uint64_t)(side->add + kvf_side_base(side, walk->base) + kvf_side_offset(side, walk->pair) + (int64_t)walk->step * side->run);
    }
}

void kvf_walk_step(kvf_walk *walk) {
    const kvf_nest *nest = walk->nest;
    if (--walk->left == 0) return;
    for (uint32_t k = nest->loops; k-- > 0;) {
        if (++walk->index[k] < nest->count[k]) {
            for (int s = 0; s < 2; s++) walk->at[s] += (uint64_t)nest->side[s].stride[k];
            return;
        }
        for (int s = 0; s < 2; s++) walk->at[s] -= (nest->count[k] - 1) * (uint64_t)nest->side[s].stride[k];
        walk->index[k] = 0;
    }
    do {
        if (++walk->step >= kvf_nest_run(nest, walk->pair)) {
            walk->step = 0;
            if (++walk->pair == nest->pairs) {
                walk->pair = 0;
                walk->base++;
            }
        }
    } while (kvf_nest_run(nest, walk->pair) == 0);
    walk_start(walk);
}

void kvf_walk_open(kvf_walk *walk, const kvf_nest *nest) {
    memset(walk, 0, sizeof *walk);
    walk->nest = nest;
    walk->left = nest->row ? kvf_nest_rows(nest) : 0;
    if (walk->left == 0) return;
    while (kvf_nest_run(nest, walk->pair) == 0) walk->pair++;
    walk_start(walk);
}

bool kvf_walk_next(kvf_walk *walk, kvf_span *span) {
    if (walk->left == 0) return false;
    span->src = walk->at[KVF_SRC];
    span->dst = walk->at[KVF_DST];
    span->bytes = walk->nest->row;
    kvf_walk_step(walk);
    while (walk->left > 0 && walk->at[KVF_SRC] == span->src + span->bytes && walk->at[KVF_DST] == span->dst + span->bytes) {
        span->bytes += walk->nest->row;
        kvf_walk_step(walk);
    }
    return true;
}
