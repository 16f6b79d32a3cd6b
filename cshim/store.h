/*
 * store.h - copying rows: one function for each way of storing, chosen once for a program.
 */
#ifndef KVF_STORE_H
#define KVF_STORE_H

#include <stdbool.h>
#include <stdint.h>

/* Copies `count` rows of `bytes` bytes that lie `src_stride` and `dst_stride` apart. Rows do not overlap. `after` is where
 * the caller will read next, or NULL: a processor's own prefetching stops at the end of a page, so large rows are fetched
 * one ahead. */
typedef void (*kvf_rows)(uint8_t *dst, const uint8_t *src, uint64_t bytes, uint64_t count, int64_t dst_stride, int64_t src_stride,
                         const uint8_t *after);

/* The fastest function on this processor for rows of this size. */
kvf_rows kvf_rows_for(uint64_t row_bytes, bool nontemporal);

/* Orders earlier non-temporal stores of this thread before whatever it stores next. */
void kvf_rows_fence(void);

#endif
