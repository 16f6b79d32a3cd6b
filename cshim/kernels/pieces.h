/* pieces.h - long rows: a warp takes a piece of one and streams through it. */
#ifndef KVF_KERNEL_PIECES_H
#define KVF_KERNEL_PIECES_H

#include "vector.h"

/* Where in its row the piece begins that unit `n` stands for. */
KVF_DEVICE kvf_u64 kvf_piece_start(const kvf_kernel_program *p, kvf_u32 n, kvf_u32 *row) {
    *row = kvf_divide(n, p->pieces);
    return (kvf_u64)(n - *row * p->pieces.by) * p->piece_bytes;
}

/* Bytes of a piece by what is left of its row: the last one may be shorter. */
KVF_DEVICE kvf_u32 kvf_piece_bytes(const kvf_kernel_program *p, kvf_u64 left) {
    return left < p->piece_bytes ? (kvf_u32)left : p->piece_bytes;
}

/* The piece that unit `n` stands for; returns its bytes. */
KVF_DEVICE kvf_u32 kvf_piece(const kvf_kernel_program *p, kvf_u32 n, kvf_u64 *src, kvf_u64 *dst) {
    kvf_u32 row;
    const kvf_u64 at = kvf_piece_start(p, n, &row), left = p->row_bytes - at;
    kvf_locate1(p, &row, src, dst);
    *src += at;
    *dst += at;
    return kvf_piece_bytes(p, left);
}

/* A warp's way through one piece. */
#define KVF_STREAM(W, SHIFT, U)                                                                                            \
    KVF_DEVICE void kvf_stream##W(kvf_u64 dst, kvf_u64 src, kvf_u32 bytes, kvf_u32 lane, kvf_u32 narrow) {                 \
        const kvf_u32 vectors = bytes >> (SHIFT);                                                                          \
        KVF_ROLL                                                                                                           \
        for (kvf_u32 i = lane; i < vectors; i += 32 * U) {                                                                 \
            kvf_v##W v[U] KVF_BLANK;                                                                                       \
            KVF_UNROLL                                                                                                     \
            for (kvf_u32 j = 0; j < U; j++)                                                                                \
                if (i + 32 * j < vectors) kvf_load##W(&v[j], src + ((kvf_u64)(i + 32 * j) << (SHIFT)), narrow);            \
            KVF_UNROLL                                                                                                     \
            for (kvf_u32 j = 0; j < U; j++)                                                                                \
                if (i + 32 * j < vectors) kvf_store##W(dst + ((kvf_u64)(i + 32 * j) << (SHIFT)), &v[j], narrow);           \
        }                                                                                                                  \
        const kvf_u32 end = vectors << (SHIFT);                                                                            \
        if (lane < bytes - end) kvf_bytes(dst + end + lane, src + end + lane, 1);                                          \
    }

KVF_STREAM(16, 4, 4)
KVF_STREAM(n, narrow, 2)

#define KVF_PIECES(W)                                                                                                      \
    KVF_DEVICE void kvf_pieces##W(const kvf_kernel_program *p, kvf_u32 cta, kvf_u32 ctas, kvf_u32 thread, kvf_u32 threads) { \
        const kvf_u32 units = p->units, warps = threads >> 5;                                                              \
        for (kvf_u64 n = (kvf_u64)cta * warps + (thread >> 5); n < units; n += (kvf_u64)ctas * warps) {                    \
            kvf_u64 src, dst;                                                                                              \
            const kvf_u32 bytes = kvf_piece(p, (kvf_u32)n, &src, &dst);                                                    \
            kvf_stream##W(dst, src, bytes, thread & 31u, p->narrow);                                                       \
        }                                                                                                                  \
    }

KVF_PIECES(16)
KVF_PIECES(n)

#endif
