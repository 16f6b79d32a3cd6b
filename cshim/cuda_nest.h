/*
 * cuda_nest.h - copy programs as the CUDA executor works with them: cut into parts, brought to a slab, fused, walked.
 * Pure: no driver, no threads.
 */
#ifndef KVF_CUDA_NEST_H
#define KVF_CUDA_NEST_H

#include <stdbool.h>
#include <stdint.h>

#include "hop.h"
#include "kernels/program.h"

#define KVF_SRC 0
#define KVF_DST 1

/* One side of a nest. An address is
 *   add + base(r) + offset(p) + step * run + sum of index * stride
 * base(r) is base[r], or r * base_step without a list; offset(p) likewise, or a block id times a stride. */
typedef struct kvf_side {
    const double *base;
    kvf_places place; /* no list: offset(p) is p * offset_step */
    int64_t base_step;
    int64_t offset_step;
    int64_t add;
    int64_t run;
    int64_t stride[KVF_KERNEL_LOOPS];
    int64_t least, most; /* bounds of the offsets, and all their bits; of a part: those of the whole will do */
    uint64_t bits;
    bool bounded;
} kvf_side;

/* A copy program, or a part of one. Borrows the arrays of its hop. */
typedef struct kvf_nest {
    uint64_t bases;
    uint64_t pairs;
    const uint32_t *run; /* NULL: every run is 1 */
    uint64_t blocks;     /* sum of the runs */
    uint64_t row;        /* bytes */
    uint32_t loops;
    uint64_t count[KVF_KERNEL_LOOPS];
    kvf_side side[2];
} kvf_nest;

/* The nest of a program: runs that are all alike and bases that are evenly spaced on both sides become loops, loops of
 * one go, and what continues on both sides is joined. */
void kvf_nest_from(kvf_nest *nest, const kvf_program *program);

uint64_t kvf_nest_block_rows(const kvf_nest *nest); /* rows in one block of one base */
uint64_t kvf_nest_rows(const kvf_nest *nest);
uint64_t kvf_nest_bytes(const kvf_nest *nest);

/* Sorts the loops so that the innermost has the smallest stride on `side`, then joins what continues on both sides. */
void kvf_nest_order(kvf_nest *nest, int side);

/* Bounds of a program's addresses on one side, relative to a base: [*low, *high). */
void kvf_program_extent(const kvf_program *program, int side, int64_t *low, int64_t *high);

/* The part of a nest that pairs [from, to) are. */
void kvf_nest_pairs(const kvf_nest *nest, uint64_t from, uint64_t to, kvf_nest *part);

/* Greatest power of two, at most 16, that divides every address of the nest, and of the row when `row` is set. */
uint32_t kvf_nest_alignment(const kvf_nest *nest, bool row);

/* Cuts a nest into parts of at most `bytes` bytes and `pairs` pairs, in order, and calls `each` with them until it
 * returns other than KVF_OK. Parts are cut first between pairs, then along the axis with the largest stride on `side`. */
typedef int32_t (*kvf_nest_each)(const kvf_nest *part, void *argument);
int32_t kvf_nest_cut(const kvf_nest *nest, int side, uint64_t bytes, uint64_t pairs, kvf_nest_each each, void *argument);

/* Makes of a nest the two halves of a copy through a slab: `near` between the side `side` and the slab at `slab`,
 * `far` between the slab and the other side. The slab's order follows the other side, so that `far` has the longest
 * rows. `offsets` has room for one double a pair and is used when runs differ. */
void kvf_nest_slab(const kvf_nest *nest, int side, uint64_t slab, double *offsets, kvf_nest *near, kvf_nest *far);

/* Walks the rows of a nest, joining neighbours that continue each other on both sides. */
typedef struct kvf_walk {
    const kvf_nest *nest;
    uint64_t base, pair, step, left;
    uint64_t index[KVF_KERNEL_LOOPS];
    uint64_t at[2];
} kvf_walk;

typedef struct kvf_span {
    uint64_t src, dst, bytes;
} kvf_span;

void kvf_walk_open(kvf_walk *walk, const kvf_nest *nest);
bool kvf_walk_next(kvf_walk *walk, kvf_span *span);
/* To the next row, without joining: walk->at has its addresses while walk->left is not 0. */
void kvf_walk_step(kvf_walk *walk);

/* ---- kernel programs ----------------------------------------------------------------------------------------- */

typedef enum kvf_shape { KVF_SHAPE_ROWS, KVF_SHAPE_PIECES, KVF_SHAPE_BULK, KVF_SHAPE_SLICES } kvf_shape;

/* Vectors that one thread moves for each row that it finds, in the shape of rows: 1, 2 or 4. */
uint32_t kvf_nest_vectors(const kvf_nest *nest, uint32_t width);

/* 32-bit words of lists that a nest needs in that shape: two for each pair; in slices one where the places on both sides fit
 * 16 bits of their unit. */
uint64_t kvf_nest_words(const kvf_nest *nest, kvf_shape shape);
/* How the list of pairs is made of block ids in slices: from the same ids the same forms make the same list. */
typedef struct kvf_id_form {
    uint32_t unit[2], first[2]; /* a place is id * unit - first: source and destination */
    bool narrow;                /* both places of a pair in one word */
} kvf_id_form;
/* False where a nest's places are not made of ids so. */
bool kvf_nest_id_form(const kvf_nest *nest, kvf_id_form *form);

/* Whether lists of so many words lie outside the program: those that do not fit into it, and all of slices. */
static inline bool kvf_lists_external(uint64_t words, kvf_shape shape) {
    return shape == KVF_SHAPE_SLICES || words > KVF_KERNEL_INLINE_WORDS;
}

/* Fills a kernel program for a nest. `lists` has room for kvf_nest_words, and is where the lists go when they are external
 * (*external then says so, and the caller sets program->lists); NULL where they were written before. `width` is the access
 * width in bytes; `side` is the side on which neighbouring units should be neighbours in memory.
 * KVF_E_INVALID: offsets span more than 32 bits of their common unit, or too many units. In the shape of rows with
 * kvf_nest_vectors above 1 the kernel must be that of as many vectors. */
int32_t kvf_nest_program(const kvf_nest *nest, int side, kvf_shape shape, uint32_t width, uint32_t piece, uint32_t *lists, bool *external,
                         kvf_kernel_program *program);

/* What fits a nest: pieces for long rows, rows for short ones. */
kvf_shape kvf_nest_shape(const kvf_nest *nest, uint32_t width);
/* Whether a nest that has this shape can be copied in slices: long rows, each pair by itself. */
bool kvf_nest_slices(const kvf_nest *nest, kvf_shape shape, uint32_t width);
/* Gives each of at most `ctas` CTAs a slice of a program, in whole rounds of its warps; returns how many there are. */
uint32_t kvf_program_slice(kvf_kernel_program *program, uint32_t ctas, uint32_t warps);
/* Units of a nest in that shape. */
uint64_t kvf_nest_units(const kvf_nest *nest, kvf_shape shape, uint32_t width, uint32_t piece);

#endif
