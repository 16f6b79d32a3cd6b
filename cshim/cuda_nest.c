#include "cuda_nest.h"

#include <string.h>

#include "status.h"

static int64_t side_base(const kvf_side *side, uint64_t r) {
    return side->base ? (int64_t)side->base[r] : (int64_t)r * side->base_step;
}

static int64_t side_offset(const kvf_side *side, uint64_t p) {
    return side->offset ? (int64_t)side->offset[p] : (int64_t)p * side->offset_step;
}

static uint64_t nest_run(const kvf_nest *nest, uint64_t p) {
    return nest->run ? nest->run[p] : 1;
}

/* ---- normal form --------------------------------------------------------------------------------------------- */

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
static void normalise(kvf_nest *nest) {
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
            for (int s = 0; s < 2; s++) nest->side[s].add += side_base(&nest->side[s], 0);
            nest->bases = 1;
            for (int s = 0; s < 2; s++) {
                nest->side[s].base = NULL;
                nest->side[s].base_step = 0;
            }
            prepend(nest, bases, step[0], step[1]);
        }
    } else {
        for (int s = 0; s < 2; s++) {
            nest->side[s].add += side_base(&nest->side[s], 0);
            nest->side[s].base = NULL;
            nest->side[s].base_step = 0;
        }
    }
    if (nest->pairs == 1) {
        for (int s = 0; s < 2; s++) {
            nest->side[s].add += side_offset(&nest->side[s], 0);
            nest->side[s].offset = NULL;
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
    nest->side[KVF_SRC].offset = program->src_offset;
    nest->side[KVF_DST].offset = program->dst_offset;
    nest->side[KVF_SRC].run = program->src_run;
    nest->side[KVF_DST].run = program->dst_run;
    for (int s = 0; s < 2; s++) {
        nest->side[s].least = program->offset_least[s];
        nest->side[s].most = program->offset_most[s];
        nest->side[s].bits = program->offset_bits[s];
        nest->side[s].bounded = true;
    }
    if (kvf_nest_bytes(nest) > 0) normalise(nest);
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

/* Fills the bounds of a side's offsets where they are not known. */
static void bound(const kvf_nest *nest, kvf_side *side) {
    if (side->bounded) return;
    side->bounded = true;
    side->bits = 0;
    side->least = INT64_MAX;
    side->most = INT64_MIN;
    for (uint64_t p = 0; p < nest->pairs; p++) {
        int64_t offset = side_offset(side, p);
        side->bits |= (uint64_t)offset;
        if (offset < side->least) side->least = offset;
        if (offset > side->most) side->most = offset;
    }
}

uint32_t kvf_nest_alignment(const kvf_nest *nest, bool row) {
    uint64_t bits = 16 | (row ? nest->row : 0);
    for (int s = 0; s < 2; s++) {
        kvf_side bounds = nest->side[s];
        const kvf_side *at = &bounds;
        bound(nest, &bounds);
        bits |= (uint64_t)at->add | at->bits;
        for (uint64_t r = 0; r < nest->bases; r++) bits |= (uint64_t)side_base(at, r);
        if (nest->run) bits |= (uint64_t)at->run;
        for (uint32_t k = 0; k < nest->loops; k++) bits |= (uint64_t)at->stride[k];
    }
    return (uint32_t)(bits & (~bits + 1));
}

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
        if (part->side[s].offset) part->side[s].offset += from;
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
    normalise(part);
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

static uint64_t magnitude(int64_t value) {
    return value < 0 ? (uint64_t)-value : (uint64_t)value;
}

/* Distance between neighbouring bases on a side, for comparing with strides. */
static uint64_t base_stride(const kvf_nest *nest, int side) {
    return nest->bases < 2 ? 0 : magnitude(side_base(&nest->side[side], 1) - side_base(&nest->side[side], 0));
}

int32_t kvf_nest_cut(const kvf_nest *whole, int side, uint64_t bytes, uint64_t pairs, kvf_nest_each each, void *argument) {
    kvf_nest nest = *whole;
    if (nest.pairs == 1 || kvf_nest_bytes(&nest) <= bytes) normalise(&nest);
    uint64_t total = kvf_nest_bytes(&nest);
    if (total == 0) return KVF_OK;
    if (total <= bytes && nest.pairs <= pairs) {
        normalise(&nest);
        return each(&nest, argument);
    }
    kvf_nest part;
    if (nest.pairs > 1) {
        const uint64_t per_block = total / nest.blocks;
        for (uint64_t from = 0; from < nest.pairs;) {
            uint64_t to = from, blocks = 0;
            while (to < nest.pairs && to - from < pairs) {
                uint64_t run = nest_run(&nest, to);
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
        longest = base_stride(&nest, side);
    }
    for (uint32_t k = 0; k < nest.loops; k++) {
        uint64_t stride = magnitude(nest.side[side].stride[k]);
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
            uint64_t stride = k < nest->loops ? magnitude(outside->stride[k]) : base_stride(nest, other);
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
        packed.offset = offsets;
    }
    *near = *nest;
    near->side[other] = packed;
    *far = *nest;
    far->side[side] = packed;
    normalise(near);
    normalise(far);
    kvf_nest_order(near, other);
    kvf_nest_order(far, other);
}

/* ---- walking ------------------------------------------------------------------------------------------------- */

static void walk_start(kvf_walk *walk) {
    const kvf_nest *nest = walk->nest;
    memset(walk->index, 0, sizeof walk->index);
    for (int s = 0; s < 2; s++) {
        const kvf_side *side = &nest->side[s];
        walk->at[s] = (uint64_t)(side->add + side_base(side, walk->base) + side_offset(side, walk->pair) + (int64_t)walk->step * side->run);
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
        if (++walk->step >= nest_run(nest, walk->pair)) {
            walk->step = 0;
            if (++walk->pair == nest->pairs) {
                walk->pair = 0;
                walk->base++;
            }
        }
    } while (nest_run(nest, walk->pair) == 0);
    walk_start(walk);
}

void kvf_walk_open(kvf_walk *walk, const kvf_nest *nest) {
    memset(walk, 0, sizeof *walk);
    walk->nest = nest;
    walk->left = nest->row ? kvf_nest_rows(nest) : 0;
    if (walk->left == 0) return;
    while (nest_run(nest, walk->pair) == 0) walk->pair++;
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

/* ---- kernel programs ----------------------------------------------------------------------------------------- */

static kvf_divisor divisor(uint32_t by) {
    uint32_t bits = 0;
    while (bits < 31 && (UINT64_C(1) << bits) < by) bits++;
    uint32_t shift = 31 + bits;
    return (kvf_divisor){by, (uint32_t)(((UINT64_C(1) << shift) + by - 1) / by), shift};
}

uint64_t kvf_nest_words(const kvf_nest *nest) {
    uint64_t words = nest->bases > 1 ? 4 * nest->bases : 0;
    if (nest->pairs > 1 || nest->run) words += 2 * nest->pairs;
    if (nest->run) words += nest->pairs + 1;
    return words + (words & 1);
}

kvf_shape kvf_nest_shape(const kvf_nest *nest, uint32_t width) {
    const uint64_t reach = 32 * (uint64_t)width; /* what a warp touches at once */
    if (nest->row >= 8 * reach) return KVF_SHAPE_PIECES;
    return nest->row >= 2 * reach && nest->row % reach == 0 ? KVF_SHAPE_PIECES : KVF_SHAPE_ROWS;
}

static bool along_loop(const kvf_nest *nest);

/* Units that each row counts that is found. */
static uint64_t row_units(const kvf_nest *nest, kvf_shape shape, uint32_t width, uint32_t piece) {
    if (shape != KVF_SHAPE_ROWS) return (nest->row + piece - 1) / piece;
    const uint64_t vectors = (nest->row + width - 1) / width;
    return along_loop(nest) ? vectors : vectors / kvf_nest_vectors(nest, width);
}

uint64_t kvf_nest_units(const kvf_nest *nest, kvf_shape shape, uint32_t width, uint32_t piece) {
    const uint64_t units = kvf_nest_rows(nest) * row_units(nest, shape, width, piece);
    return shape == KVF_SHAPE_ROWS && along_loop(nest) ? units / kvf_nest_vectors(nest, width) : units;
}

/* The offsets' common unit, so that each fits 32 bits above the least. */
static bool fit_offsets(const kvf_side *bounds, uint32_t *shift) {
    *shift = 0;
    if (bounds->bits == 0) return true;
    *shift = (uint32_t)__builtin_ctzll(bounds->bits);
    return (uint64_t)(bounds->most - bounds->least) >> *shift <= UINT32_MAX;
}

/* Along the innermost loop where it divides: then the rows that a warp moves at once stay neighbours. */
static bool along_loop(const kvf_nest *nest) {
    return nest->loops > 0 && nest->count[nest->loops - 1] % 2 == 0;
}

uint32_t kvf_nest_vectors(const kvf_nest *nest, uint32_t width) {
    if (width != 16 || nest->row % 16) return 1;
    if (along_loop(nest)) return nest->count[nest->loops - 1] % 4 == 0 ? 4 : 2;
    const uint64_t vectors = nest->row / 16; /* of a row at least eight lanes stay side by side: a whole line */
    return vectors % 32 == 0 ? 4 : vectors % 16 == 0 ? 2 : 1;
}

/* Writes one column of the list of pairs. */
static void fill_offsets(const kvf_nest *nest, int side, int64_t least, uint32_t shift, uint32_t *at) {
    const kvf_side *from = &nest->side[side];
    const double *offset = from->offset;
    if (offset) {
        for (uint64_t p = 0; p < nest->pairs; p++) at[2 * p] = (uint32_t)((uint64_t)((int64_t)offset[p] - least) >> shift);
    } else {
        for (uint64_t p = 0; p < nest->pairs; p++) at[2 * p] = (uint32_t)((uint64_t)((int64_t)p * from->offset_step - least) >> shift);
    }
}

int32_t kvf_nest_program(const kvf_nest *nest, int side, kvf_shape shape, uint32_t width, uint32_t piece, uint32_t *lists, bool *external,
                         kvf_kernel_program *program) {
    const uint64_t units = kvf_nest_units(nest, shape, width, piece), words = kvf_nest_words(nest);
    if (units > KVF_KERNEL_UNITS || words > UINT32_MAX || nest->pairs > UINT32_MAX)
        return kvf_refuse(KVF_E_INVALID, "CUDA: %llu units are too many for one launch", (unsigned long long)units);
    *external = words > KVF_KERNEL_INLINE_WORDS;
    uint32_t *at = *external ? lists : program->words;

    memset(program, 0, offsetof(kvf_kernel_program, words));
    program->src = (uint64_t)nest->side[KVF_SRC].add;
    program->dst = (uint64_t)nest->side[KVF_DST].add;
    program->src_run = nest->side[KVF_SRC].run;
    program->dst_run = nest->side[KVF_DST].run;
    program->loops = nest->loops;
    for (uint32_t k = 0; k < nest->loops; k++) {
        program->src_stride[k] = nest->side[KVF_SRC].stride[k];
        program->dst_stride[k] = nest->side[KVF_DST].stride[k];
        program->count[k] = divisor((uint32_t)nest->count[k]);
    }
    program->pieces = divisor((uint32_t)row_units(nest, shape, width, piece));
    program->row_bytes = nest->row;
    program->units = (uint32_t)units;
    program->narrow = (uint32_t)__builtin_ctz(width);
    program->piece_bytes = piece;
    if (shape == KVF_SHAPE_ROWS) {
        const uint32_t vectors = kvf_nest_vectors(nest, width), last = nest->loops - 1;
        program->src_span = program->dst_span = nest->row / vectors;
        if (vectors > 1 && along_loop(nest)) {
            const uint64_t steps = nest->count[last] / vectors;
            program->count[last] = divisor((uint32_t)steps);
            program->src_span = steps * (uint64_t)nest->side[KVF_SRC].stride[last];
            program->dst_span = steps * (uint64_t)nest->side[KVF_DST].stride[last];
        }
    }
    program->bases_at = program->runs_at = KVF_KERNEL_NONE;

    uint32_t used = 0;
    if (nest->bases > 1) {
        uint64_t block = nest->pairs > 1 ? magnitude(side_offset(&nest->side[side], 1) - side_offset(&nest->side[side], 0)) : 0;
        bool inner = nest->pairs > 1 && base_stride(nest, side) < block;
        program->flags = inner ? KVF_KERNEL_BASES_INNER : 0;
        program->outer = divisor((uint32_t)(inner ? nest->bases : nest->blocks));
        program->bases_at = used;
        for (uint64_t r = 0; r < nest->bases; r++) {
            for (int s = 0; s < 2; s++) {
                uint64_t base = (uint64_t)side_base(&nest->side[s], r);
                at[used++] = (uint32_t)base;
                at[used++] = (uint32_t)(base >> 32);
            }
        }
    }
    if (nest->pairs > 1 || nest->run) {
        int64_t least[2];
        uint32_t shift[2];
        for (int s = 0; s < 2; s++) {
            kvf_side bounds = nest->side[s];
            bound(nest, &bounds);
            least[s] = bounds.least;
            if (!fit_offsets(&bounds, &shift[s]))
                return kvf_refuse(KVF_E_INVALID, "CUDA: the offsets of %llu pairs span too far for a kernel", (unsigned long long)nest->pairs);
        }
        program->src += (uint64_t)least[KVF_SRC];
        program->dst += (uint64_t)least[KVF_DST];
        program->src_shift = shift[KVF_SRC];
        program->dst_shift = shift[KVF_DST];
        program->pairs = (uint32_t)nest->pairs;
        program->pairs_at = used;
        for (int s = 0; s < 2; s++) fill_offsets(nest, s, least[s], shift[s], at + used + s);
        used += (uint32_t)(2 * nest->pairs);
        if (nest->run) {
            program->runs_at = used;
            program->runs_step = 1;
            while (program->runs_step * 2 < nest->pairs) program->runs_step *= 2;
            uint32_t block = 0;
            for (uint64_t p = 0; p < nest->pairs; p++) {
                at[used++] = block;
                block += nest->run[p];
            }
            at[used++] = block;
        }
    }
    return KVF_OK;
}
