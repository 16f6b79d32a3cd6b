/*
 * cuda_nest_program.c - nests as the kernels read them.
 */
#include <string.h>

#include "cpu.h"
#include "cuda_nest.h"
#include "cuda_nest_side.h"
#include "status.h"

_Static_assert(offsetof(kvf_kernel_program, words) == sizeof(kvf_kernel_head), "a head is a program up to its words");

static kvf_divisor divisor(uint32_t by) {
    uint32_t bits = 0;
    while (bits < 31 && (UINT64_C(1) << bits) < by) bits++;
    uint32_t shift = 31 + bits;
    return (kvf_divisor){by, (uint32_t)(((UINT64_C(1) << shift) + by - 1) / by), shift};
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

bool kvf_nest_slices(const kvf_nest *nest, kvf_shape shape, uint32_t width) {
    /* Shorter rows are too little work for each pair that is fetched: 2 % slower than by lists that were sent. */
    const bool worth = nest->row >= 2 * KVF_KERNEL_SLICE_PIECE;
    return shape == KVF_SHAPE_PIECES && worth && width == 16 && nest->bases == 1 && nest->pairs > 1 && !nest->run;
}

uint32_t kvf_program_slice(kvf_kernel_program *program, uint32_t ctas, uint32_t warps) {
    const uint32_t rounds = (program->units + warps - 1) / warps, each = (rounds + ctas - 1) / ctas;
    program->slice = each * warps;
    program->pair_units = divisor(program->units / program->pairs);
    return (rounds + each - 1) / each;
}

/* ---- lists --------------------------------------------------------------------------------------------------- */

/* The offsets' common unit, so that each fits 32 bits above the least: that of the stride will often do for block ids,
 * and leaves a 32-bit product for each. */
static bool fit_offsets(const kvf_side *bounds, uint32_t *shift) {
    *shift = 0;
    if (bounds->bits == 0) return true;
    const uint64_t span = (uint64_t)(bounds->most - bounds->least);
    if (bounds->place.id && bounds->place.stride > 0) {
        *shift = (uint32_t)__builtin_ctzll((uint64_t)bounds->place.stride);
        if (span >> *shift <= UINT32_MAX) return true;
    }
    *shift = (uint32_t)__builtin_ctzll(bounds->bits);
    return span >> *shift <= UINT32_MAX;
}

/* How pairs are written: offsets above the least, in units. */
typedef struct pair_form {
    int64_t least[2];
    uint32_t shift[2];
    bool fits;   /* 32 bits */
    bool narrow; /* 16 bits */
} pair_form;

static pair_form form_of(const kvf_nest *nest, kvf_shape shape) {
    pair_form form = {.fits = true, .narrow = shape == KVF_SHAPE_SLICES};
    for (int s = 0; s < 2; s++) {
        kvf_side bounds = nest->side[s];
        kvf_side_bound(nest, &bounds);
        form.least[s] = bounds.least;
        form.fits = fit_offsets(&bounds, &form.shift[s]) && form.fits;
        form.narrow = form.narrow && (uint64_t)(bounds.most - bounds.least) >> form.shift[s] <= UINT16_MAX;
    }
    return form;
}

static bool lists_pairs(const kvf_nest *nest) {
    return nest->pairs > 1 || nest->run;
}

uint64_t kvf_nest_words(const kvf_nest *nest, kvf_shape shape) {
    uint64_t words = nest->bases > 1 ? 4 * nest->bases : 0;
    if (lists_pairs(nest)) words += shape == KVF_SHAPE_SLICES && form_of(nest, shape).narrow ? nest->pairs : 2 * nest->pairs;
    if (nest->run) words += nest->pairs + 1;
    return words + (words & 1);
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

/* Writes one column of the list of pairs. In narrow pairs the source comes first and the destination over it. */
#define FILL_COLUMN(OFFSET)                                                              \
    for (uint64_t p = 0; p < nest->pairs; p++) {                                         \
        const uint32_t value = (uint32_t)((uint64_t)((OFFSET) - least) >> shift);        \
        if (!form->narrow) at[2 * p + (uint32_t)side] = value;                           \
        else at[p] = side == KVF_SRC ? value : at[p] | value << 16;                      \
    }
static void fill_column(const kvf_nest *nest, int side, const pair_form *form, uint32_t *at) {
    const kvf_side *from = &nest->side[side];
    const int64_t least = form->least[side];
    const uint32_t shift = form->shift[side];
    if (from->place.id) FILL_COLUMN((int64_t)from->place.id[p] * from->place.stride)
    else if (from->place.offset) FILL_COLUMN((int64_t)from->place.offset[p])
    else FILL_COLUMN((int64_t)p * from->offset_step)
}

/* Whether a side has block ids whose stride is made of the unit. */
static bool divides(const kvf_side *side, uint32_t shift) {
    const kvf_places *place = &side->place;
    return place->id && place->stride > 0 && shift <= (uint32_t)__builtin_ctzll((uint64_t)place->stride);
}

/* A column of block ids in 32-bit products: what comes out is below 2^32, whatever overflows on the way. */
typedef struct id_column {
    const uint32_t *id;
    uint32_t unit, first;
} id_column;

static id_column column_of(const kvf_nest *nest, const pair_form *form, int side) {
    const kvf_places *place = &nest->side[side].place;
    return (id_column){place->id, (uint32_t)((uint64_t)place->stride >> form->shift[side]), (uint32_t)((uint64_t)form->least[side] >> form->shift[side])};
}

bool kvf_nest_id_form(const kvf_nest *nest, kvf_id_form *made) {
    const pair_form form = form_of(nest, KVF_SHAPE_SLICES);
    made->narrow = form.narrow;
    for (int s = 0; s < 2; s++) {
        if (!divides(&nest->side[s], form.shift[s])) return false;
        const id_column column = column_of(nest, &form, s);
        made->unit[s] = column.unit;
        made->first[s] = column.first;
    }
    return form.fits;
}

/* Both columns at once. Plain loops, which compilers turn into what each processor does many of at once. */
#define FILL_IDS(NAME, TARGET)                                                                                        \
    TARGET static void wide_##NAME(id_column src, id_column dst, uint64_t pairs, uint32_t *at) {                       \
        for (uint64_t p = 0; p < pairs; p++) {                                                                        \
            at[2 * p] = src.id[p] * src.unit - src.first;                                                             \
            at[2 * p + 1] = dst.id[p] * dst.unit - dst.first;                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    TARGET static void narrow_##NAME(id_column src, id_column dst, uint64_t pairs, uint32_t *at) {                     \
        for (uint64_t p = 0; p < pairs; p++) at[p] = (src.id[p] * src.unit - src.first) | (dst.id[p] * dst.unit - dst.first) << 16; \
    }
FILL_IDS(base, )
#if defined(__x86_64__)
FILL_IDS(avx2, __attribute__((target("avx2"))))
#endif

static void fill_pairs(const kvf_nest *nest, const pair_form *form, uint32_t *at) {
    if (!divides(&nest->side[KVF_SRC], form->shift[KVF_SRC]) || !divides(&nest->side[KVF_DST], form->shift[KVF_DST])) {
        for (int s = 0; s < 2; s++) fill_column(nest, s, form, at);
        return;
    }
    const id_column src = column_of(nest, form, KVF_SRC), dst = column_of(nest, form, KVF_DST);
    if (form->narrow) KVF_CPU_PICK(narrow)(src, dst, nest->pairs, at);
    else KVF_CPU_PICK(wide)(src, dst, nest->pairs, at);
}

int32_t kvf_nest_program(const kvf_nest *nest, int side, kvf_shape shape, uint32_t width, uint32_t piece, uint32_t *lists, bool *external,
                         kvf_kernel_program *program) {
    const uint64_t units = kvf_nest_units(nest, shape, width, piece), words = kvf_nest_words(nest, shape);
    if (units > KVF_KERNEL_UNITS || words > UINT32_MAX || nest->pairs > UINT32_MAX)
        return kvf_refuse(KVF_E_INVALID, "CUDA: %llu units are too many for one launch", (unsigned long long)units);
    *external = kvf_lists_external(words, shape);
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
        uint64_t block = nest->pairs > 1 ? kvf_magnitude(kvf_side_offset(&nest->side[side], 1) - kvf_side_offset(&nest->side[side], 0)) : 0;
        bool inner = nest->pairs > 1 && kvf_nest_base_stride(nest, side) < block;
        program->flags |= inner ? KVF_KERNEL_BASES_INNER : 0;
        program->outer = divisor((uint32_t)(inner ? nest->bases : nest->blocks));
        program->bases_at = used;
        for (uint64_t r = 0; r < nest->bases; r++) {
            for (int s = 0; s < 2; s++) {
                uint64_t base = (uint64_t)kvf_side_base(&nest->side[s], r);
                at[used++] = (uint32_t)base;
                at[used++] = (uint32_t)(base >> 32);
            }
        }
    }
    if (lists_pairs(nest)) {
        const pair_form form = form_of(nest, shape);
        if (!form.fits) return kvf_refuse(KVF_E_INVALID, "CUDA: the offsets of %llu pairs span too far for a kernel", (unsigned long long)nest->pairs);
        program->src += (uint64_t)form.least[KVF_SRC];
        program->dst += (uint64_t)form.least[KVF_DST];
        program->src_shift = form.shift[KVF_SRC];
        program->dst_shift = form.shift[KVF_DST];
        program->pairs = (uint32_t)nest->pairs;
        program->pairs_at = used;
        program->flags |= form.narrow ? KVF_KERNEL_PAIRS_NARROW : 0;
        if (at) fill_pairs(nest, &form, at + used);
        used += (uint32_t)(form.narrow ? nest->pairs : 2 * nest->pairs);
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
