/*
 * rows.h - short rows.
 *
 * D rows are found at once, and each time F vectors are moved that lie src_span and dst_span apart: parts of the row, or
 * the same vector of rows along the innermost loop. Finding costs more than moving.
 */
#ifndef KVF_KERNEL_ROWS_H
#define KVF_KERNEL_ROWS_H

#include "vector.h"

#define KVF_ROWS(NAME, W, SHIFT, D, F)                                                                               \
    KVF_DEVICE void kvf_rows##NAME(const kvf_kernel_program *p, kvf_u32 cta, kvf_u32 ctas, kvf_u32 thread, kvf_u32 threads) { \
        const kvf_u32 units = p->units, row_bytes = (kvf_u32)p->row_bytes, narrow = p->narrow;                       \
        const kvf_u64 src_span = p->src_span, dst_span = p->dst_span;                                                \
        const kvf_u64 reach = (kvf_u64)threads * D;                                                                  \
        (void)narrow;                                                                                                \
        for (kvf_u64 first = cta * reach + thread; first < units; first += ctas * reach) {                           \
            kvf_v##W v[D * F] KVF_BLANK;                                                                             \
            kvf_u64 src[D], dst[D];                                                                                  \
            kvf_u32 row[D], at[D];                                                                                   \
            KVF_UNROLL                                                                                               \
            for (int j = 0; j < D; j++) {                                                                            \
                kvf_u64 n = first + (kvf_u64)j * threads;                                                            \
                kvf_u32 unit = n < units ? (kvf_u32)n : units - 1;                                                   \
                row[j] = kvf_divide(unit, p->pieces);                                                                \
                at[j] = n < units ? (unit - row[j] * p->pieces.by) << (SHIFT) : row_bytes;                           \
            }                                                                                                        \
            kvf_locate##D(p, row, src, dst);                                                                         \
            KVF_UNROLL                                                                                               \
            for (int j = 0; j < D; j++)                                                                              \
                if (at[j] + (1u << (SHIFT)) <= row_bytes) {                                                          \
                    KVF_UNROLL                                                                                       \
                    for (kvf_u32 f = 0; f < F; f++) kvf_load##W(&v[j * F + f], src[j] + at[j] + f * src_span, narrow); \
                }                                                                                                    \
            KVF_UNROLL                                                                                               \
            for (int j = 0; j < D; j++)                                                                              \
                if (at[j] + (1u << (SHIFT)) <= row_bytes) {                                                          \
                    KVF_UNROLL                                                                                       \
                    for (kvf_u32 f = 0; f < F; f++) kvf_store##W(dst[j] + at[j] + f * dst_span, &v[j * F + f], narrow); \
                }                                                                                                    \
            if (F == 1 && (row_bytes & ((1u << (SHIFT)) - 1))) {                                                     \
                KVF_UNROLL                                                                                           \
                for (int j = 0; j < D; j++)                                                                          \
                    if (at[j] < row_bytes && at[j] + (1u << (SHIFT)) > row_bytes)                                    \
                        kvf_bytes(dst[j] + at[j], src[j] + at[j], row_bytes - at[j]);                                \
            }                                                                                                        \
        }                                                                                                            \
    }

KVF_ROWS(16, 16, 4, 4, 1)
KVF_ROWS(16x2, 16, 4, 4, 2)
KVF_ROWS(16x4, 16, 4, 2, 4)
KVF_ROWS(n, n, narrow, 2, 1)

#endif
