/*
 * slices.h - long rows of a list in host memory.
 *
 * Each CTA has `slice` units in a row. Host memory answers after microseconds: its threads fetch the pairs of many units
 * together, a thread a pair, before any of them is copied. Programs without bases, with runs of one, and with their lists
 * elsewhere: their words are not to be read.
 */
#ifndef KVF_KERNEL_SLICES_H
#define KVF_KERNEL_SLICES_H

#include "pieces.h"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
typedef kvf_u32 kvf_tile[2 * KVF_KERNEL_TILE];
#define KVF_TOGETHER() __syncthreads()
#else
typedef const kvf_kernel_program *kvf_tile; /* on the host each thread reads the list itself */
#define KVF_TOGETHER()
#endif

/* One pair of the list. */
KVF_DEVICE void kvf_pair(const kvf_kernel_program *p, kvf_u32 pair, kvf_u32 *x, kvf_u32 *y) {
    const kvf_u32 *list = (const kvf_u32 *)(uintptr_t)p->lists + p->pairs_at;
    if (p->flags & KVF_KERNEL_PAIRS_NARROW) {
        const kvf_u32 both = kvf_list1(list + pair);
        *x = both & 0xffffu;
        *y = both >> 16;
    } else kvf_list2(list + 2 * (kvf_u64)pair, x, y);
}

/* A pair of the tile, which begins with pair `first`. */
KVF_DEVICE void kvf_tile_pair(kvf_tile tile, kvf_u32 first, kvf_u32 pair, kvf_u32 *x, kvf_u32 *y) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    *x = tile[2 * (pair - first)];
    *y = tile[2 * (pair - first) + 1];
#else
    (void)first;
    kvf_pair(tile, pair, x, y);
#endif
}

/* The piece that unit `n` stands for; returns its bytes. */
KVF_DEVICE kvf_u32 kvf_slice_piece(const kvf_kernel_program *p, kvf_u32 n, kvf_tile tile, kvf_u32 first, kvf_u64 *src, kvf_u64 *dst) {
    kvf_u32 row, x, y;
    const kvf_u64 at = kvf_piece_start(p, n, &row), left = p->row_bytes - at;
    kvf_loops1(p, &row, src, dst);
    kvf_tile_pair(tile, first, row, &x, &y);
    *src += ((kvf_u64)x << p->src_shift) + at;
    *dst += ((kvf_u64)y << p->dst_shift) + at;
    return kvf_piece_bytes(p, left);
}

#define KVF_PIECE_VECTORS (KVF_KERNEL_SLICE_PIECE / 512u) /* of each of a warp's threads */

/* Units from `n` to `stop` of a program without loops whose pieces are all whole, as most are: nothing is asked of each vector. */
KVF_DEVICE void kvf_whole_pieces16(const kvf_kernel_program *p, kvf_u32 n, kvf_u64 stop, kvf_u32 lane, kvf_u32 warps, kvf_tile tile, kvf_u32 first) {
    KVF_ROLL
    for (; n < stop; n += warps) {
        kvf_u32 row, x, y;
        const kvf_u64 at = kvf_piece_start(p, n, &row) + lane * 16u;
        kvf_tile_pair(tile, first, row, &x, &y);
        const kvf_u64 src = p->src + ((kvf_u64)x << p->src_shift) + at, dst = p->dst + ((kvf_u64)y << p->dst_shift) + at;
        kvf_v16 v[KVF_PIECE_VECTORS] KVF_BLANK;
        KVF_UNROLL
        for (kvf_u32 j = 0; j < KVF_PIECE_VECTORS; j++) kvf_load16(&v[j], src + 512u * j, p->narrow);
        KVF_UNROLL
        for (kvf_u32 j = 0; j < KVF_PIECE_VECTORS; j++) kvf_store16(dst + 512u * j, &v[j], p->narrow);
    }
}

KVF_DEVICE void kvf_slices16(const kvf_kernel_program *p, kvf_u32 cta, kvf_u32 thread, kvf_u32 threads, kvf_tile tile) {
    const kvf_u32 in_pair = p->pair_units.by, warps = threads >> 5;
    const kvf_u64 from = (kvf_u64)cta * p->slice, end = from + p->slice < p->units ? from + p->slice : p->units;
    const kvf_u32 whole = p->loops == 0 && p->piece_bytes == KVF_KERNEL_SLICE_PIECE && p->row_bytes % KVF_KERNEL_SLICE_PIECE == 0;
    KVF_ROLL
    for (kvf_u64 at = from; at < end;) {
        const kvf_u32 first = kvf_divide((kvf_u32)at, p->pair_units);
        const kvf_u64 reach = ((kvf_u64)first + KVF_KERNEL_TILE) * in_pair, stop = reach < end ? reach : end;
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
        const kvf_u32 pairs = kvf_divide((kvf_u32)stop - 1, p->pair_units) - first + 1;
        for (kvf_u32 i = thread; i < pairs; i += threads) kvf_pair(p, first + i, &tile[2 * i], &tile[2 * i + 1]);
#endif
        KVF_TOGETHER();
        const kvf_u32 own = (kvf_u32)at + (thread >> 5);
        if (whole) kvf_whole_pieces16(p, own, stop, thread & 31u, warps, tile, first);
        else {
            KVF_ROLL
            for (kvf_u32 n = own; n < stop; n += warps) {
                kvf_u64 src, dst;
                const kvf_u32 bytes = kvf_slice_piece(p, n, tile, first, &src, &dst);
                kvf_stream16(dst, src, bytes, thread & 31u, p->narrow);
            }
        }
        KVF_TOGETHER();
        at = stop;
    }
}

#endif
