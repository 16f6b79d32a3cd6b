/*
 * hop.h - a hop block (kvf.h) parsed and checked, and a cursor over its rows. Every executor reads hops through this.
 */
#ifndef KVF_HOP_H
#define KVF_HOP_H

#include <stdbool.h>
#include <stdint.h>

#include "kvf.h"

/* Where the pairs of one side lie. */
typedef struct kvf_places {
    const double *offset; /* offset(p) itself, or NULL: */
    const uint32_t *id;   /* then it is id[p] * stride */
    int64_t stride;
    uint64_t number;      /* of the list of ids (kvf_list_number), or 0 */
} kvf_places;

/* One copy program. All numbers were checked: every address that it forms lies in [0, 2^53] on both sides (in
 * [1, 2^53] for kinds 0 and 1), every product fits, every array lies in the block.
 *
 *   for each base r < bases, pair p < pairs, i < run(p), each loop k < loops:
 *     src = src_base[r] + offset(p) + i * src_run + sum of index[k] * src_stride[k]      (dst likewise)
 *     row_bytes bytes from src to dst
 */
typedef struct kvf_program {
    uint64_t bases;
    uint64_t pairs;
    uint64_t row_bytes;
    int64_t src_run;
    int64_t dst_run;
    uint32_t loops;
    uint32_t src_kind; /* 0 host, 1 device, 2 file */
    uint32_t dst_kind;
    uint32_t src_device;
    uint32_t dst_device;
    uint64_t count[KVF_MAX_LOOPS];
    int64_t src_stride[KVF_MAX_LOOPS];
    int64_t dst_stride[KVF_MAX_LOOPS];
    const double *src_base;
    const double *dst_base;
    kvf_places place[2];     /* of the pairs: source and destination */
    const uint32_t *run;     /* NULL: every run is 1 */
    int64_t offset_least[2]; /* bounds of the offsets, source and destination; with the runs behind them */
    int64_t offset_most[2];
    int64_t reach_least[2];
    int64_t reach_most[2];
    uint64_t offset_bits[2]; /* ends in as many zeros as all offsets' bits, or-ed */
    uint64_t blocks;         /* sum of runs: blocks of one base */
    uint64_t rows_per_block; /* product of the loop counts */
    uint64_t rows;           /* bases x blocks x rows_per_block */
    uint64_t bytes;          /* rows x row_bytes */
} kvf_program;

/* Lists of block ids beside a block, source and destination, for programs that name them. */
typedef struct kvf_id_lists {
    const uint32_t *id[2];
    uint64_t count; /* of each */
} kvf_id_lists;

/* A parsed hop. `programs` may be 0 (nothing to move). */
typedef struct kvf_hop {
    const double *words;
    uint64_t word_count;
    kvf_id_lists lists;
    uint64_t list_number[2]; /* theirs, or 0 */
    uint32_t programs;
    uint64_t rows;
    uint64_t bytes;
    kvf_program *program;
    void *owned;         /* a private copy of the words and the lists, or NULL */
    kvf_program few[2];  /* storage of `program` for short hops: a kvf_hop must not be moved in memory */
} kvf_hop;

/* Parses and checks; the words are borrowed and must outlive the hop. On failure nothing is held, the text says which
 * program and which number is wrong, and the status is KVF_E_INVALID or KVF_E_NOMEM. */
int32_t kvf_hop_parse(kvf_hop *hop, const double *words, uint64_t count);
/* The same over a private copy of the words. */
int32_t kvf_hop_parse_copy(kvf_hop *hop, const double *words, uint64_t count);
/* Both for a block with lists beside it, which are borrowed, or copied, as its words are. */
int32_t kvf_hop_parse_beside(kvf_hop *hop, const double *words, uint64_t count, const kvf_id_lists *lists);
int32_t kvf_hop_parse_copy_beside(kvf_hop *hop, const double *words, uint64_t count, const kvf_id_lists *lists);
/* Frees what parsing allocated. */
void kvf_hop_free(kvf_hop *hop);

static inline int64_t kvf_offset_of(const kvf_places *place, uint64_t p) {
    return place->offset ? (int64_t)place->offset[p] : (int64_t)place->id[p] * place->stride;
}

/* The run of pair `p`. */
static inline uint64_t kvf_program_run(const kvf_program *program, uint64_t p) {
    return program->run ? program->run[p] : 1;
}

/* ---- cursor ---------------------------------------------------------------------------------------------------
 * Walks all rows of a hop in program order:
 *
 *   kvf_cursor cursor;
 *   kvf_cursor_open(&cursor, &hop);
 *   kvf_row row;
 *   while (kvf_cursor_next(&cursor, &row)) ...
 *
 * Plain data: a copy of a cursor is a bookmark. Borrows the hop.
 */
typedef struct kvf_row {
    uint64_t src;
    uint64_t dst;
    uint64_t bytes;
    uint32_t program; /* index of its program */
    bool last;        /* the last row of its program */
} kvf_row;

typedef struct kvf_cursor {
    const kvf_hop *hop;
    uint32_t program;
    uint64_t base;
    uint64_t pair;
    uint64_t step; /* position in the run */
    uint64_t left; /* rows left in this program */
    uint64_t index[KVF_MAX_LOOPS];
    uint64_t src;
    uint64_t dst;
} kvf_cursor;

void kvf_cursor_open(kvf_cursor *cursor, const kvf_hop *hop);
bool kvf_cursor_next(kvf_cursor *cursor, kvf_row *row);

#endif
