/*
 * body.h - what the copy kernels do, for one thread of one CTA. The same text is compiled for the GPU and, with the
 * few operations below in plain C, for a host loop over CTAs and threads: no thread needs another one's result.
 *
 * Three shapes:
 *   rows    short rows: neighbouring threads take neighbouring vectors of W bytes of the flattened program, so that rows
 *           shorter than a warp's reach still fill it; every vector finds its own row.
 *   pieces  long rows: a warp takes a piece of a row and streams through it.
 *   slices  long rows of a list in host memory: a CTA takes neighbouring pieces, and fetches their pairs at once.
 * Rows need not be multiples of W: what is left over is copied byte by byte by the thread that owns the end.
 */
#ifndef KVF_KERNEL_BODY_H
#define KVF_KERNEL_BODY_H

#include "program.h"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define KVF_DEVICE static __device__ __forceinline__
#define KVF_UNROLL _Pragma("unroll")
#define KVF_ROLL _Pragma("unroll 1")
typedef kvf_u64 uintptr_t;
#define KVF_BLANK
#else
#include <string.h>
#define KVF_DEVICE static inline
#define KVF_UNROLL
#define KVF_ROLL
#define KVF_BLANK = {0} /* a host compiler cannot see that what was not loaded is not stored */
#endif

/* ---- addresses ----------------------------------------------------------------------------------------------- */

KVF_DEVICE kvf_u32 kvf_divide(kvf_u32 n, kvf_divisor d) {
    return (kvf_u32)(((kvf_u64)n * d.scale) >> d.shift);
}

/* Reads of lists: one access an entry, free to move before anything that is written. */
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
KVF_DEVICE kvf_u32 kvf_list1(const kvf_u32 *at) {
    kvf_u32 a;
    asm("ld.u32 %0, [%1];" : "=r"(a) : "l"(at));
    return a;
}
KVF_DEVICE void kvf_list2(const kvf_u32 *at, kvf_u32 *a, kvf_u32 *b) {
    asm("ld.v2.u32 {%0,%1}, [%2];" : "=r"(*a), "=r"(*b) : "l"(at));
}
KVF_DEVICE void kvf_list4(const kvf_u32 *at, kvf_u64 *a, kvf_u64 *b) {
    asm("ld.v2.u64 {%0,%1}, [%2];" : "=l"(*a), "=l"(*b) : "l"(at));
}
#else
KVF_DEVICE kvf_u32 kvf_list1(const kvf_u32 *at) { return *at; }
KVF_DEVICE void kvf_list2(const kvf_u32 *at, kvf_u32 *a, kvf_u32 *b) {
    *a = at[0];
    *b = at[1];
}
KVF_DEVICE void kvf_list4(const kvf_u32 *at, kvf_u64 *a, kvf_u64 *b) {
    memcpy(a, at, 8);
    memcpy(b, at + 2, 8);
}
#endif

/* The loops' share of the addresses of N rows, which leaves the number of a block of a base. Everything is unrolled, so that
 * no array needs memory. */
#define KVF_LOOPS(N)                                                                                              \
    KVF_DEVICE void kvf_loops##N(const kvf_kernel_program *p, kvf_u32 *n, kvf_u64 *s, kvf_u64 *d) {              \
        KVF_UNROLL                                                                                                \
        for (int j = 0; j < N; j++) {                                                                             \
            s[j] = p->src;                                                                                        \
            d[j] = p->dst;                                                                                        \
        }                                                                                                         \
        KVF_ROLL                                                                                                  \
        for (kvf_u32 k = p->loops; k-- > 0;) {                                                                    \
            const kvf_divisor count = p->count[k];                                                                \
            const kvf_i64 src = p->src_stride[k], dst = p->dst_stride[k];                                         \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) {                                                                         \
                kvf_u32 q = kvf_divide(n[j], count);                                                              \
                kvf_i64 i = n[j] - q * count.by;                                                                  \
                s[j] += (kvf_u64)(i * src);                                                                       \
                d[j] += (kvf_u64)(i * dst);                                                                       \
                n[j] = q;                                                                                         \
            }                                                                                                     \
        }                                                                                                         \
    }

KVF_LOOPS(1)
KVF_LOOPS(2)
KVF_LOOPS(4)

/* Addresses of N rows of the flattened program at once: the program's numbers are fetched once for all, and the reads
 * of the lists overlap. */
#define KVF_LOCATE(N)                                                                                             \
    KVF_DEVICE void kvf_locate##N(const kvf_kernel_program *p, kvf_u32 *n, kvf_u64 *s, kvf_u64 *d) {             \
        const kvf_u32 *lists = p->lists ? (const kvf_u32 *)(uintptr_t)p->lists : p->words;                        \
        kvf_loops##N(p, n, s, d);                                                                                 \
        if (p->bases_at != KVF_KERNEL_NONE) {                                                                     \
            const kvf_u32 inner = p->flags & KVF_KERNEL_BASES_INNER;                                              \
            kvf_u64 x[N], y[N];                                                                                   \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) {                                                                         \
                const kvf_u32 q = kvf_divide(n[j], p->outer), r = n[j] - q * p->outer.by;                         \
                kvf_list4(lists + p->bases_at + 4 * (inner ? r : q), &x[j], &y[j]);                               \
                n[j] = inner ? q : r;                                                                             \
            }                                                                                                     \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) {                                                                         \
                s[j] += x[j];                                                                                     \
                d[j] += y[j];                                                                                     \
            }                                                                                                     \
        }                                                                                                         \
        if (p->runs_at != KVF_KERNEL_NONE) { /* from a block to its pair: the last that starts at or before it */  \
            kvf_u32 pair[N];                                                                                      \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) pair[j] = 0;                                                              \
            KVF_ROLL                                                                                              \
            for (kvf_u32 step = p->runs_step; step > 0; step >>= 1) {                                             \
                KVF_UNROLL                                                                                        \
                for (int j = 0; j < N; j++) {                                                                     \
                    const kvf_u32 next = pair[j] + step;                                                          \
                    const kvf_u32 at = next < p->pairs ? next : 0;                                                \
                    if (next < p->pairs && kvf_list1(lists + p->runs_at + at) <= n[j]) pair[j] = next;            \
                }                                                                                                 \
            }                                                                                                     \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) {                                                                         \
                const kvf_i64 step = n[j] - kvf_list1(lists + p->runs_at + pair[j]);                              \
                s[j] += (kvf_u64)(step * p->src_run);                                                             \
                d[j] += (kvf_u64)(step * p->dst_run);                                                             \
                n[j] = pair[j];                                                                                   \
            }                                                                                                     \
        }                                                                                                         \
        if (p->pairs) {                                                                                           \
            kvf_u32 x[N], y[N];                                                                                   \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) kvf_list2(lists + p->pairs_at + 2 * n[j], &x[j], &y[j]);                  \
            KVF_UNROLL                                                                                            \
            for (int j = 0; j < N; j++) {                                                                         \
                s[j] += (kvf_u64)x[j] << p->src_shift;                                                            \
                d[j] += (kvf_u64)y[j] << p->dst_shift;                                                            \
            }                                                                                                     \
        }                                                                                                         \
    }

KVF_LOCATE(1)
KVF_LOCATE(2)
KVF_LOCATE(4)

/* ---- vectors ------------------------------------------------------------------------------------------------- */

/* 16 bytes at a time, or less where addresses are not multiples of 16: then one access of 2^narrow bytes. */
typedef struct kvf_v16 { kvf_u32 a, b, c, d; } kvf_v16;
typedef kvf_u64 kvf_vn;

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

/* Sources are read once and never written by the same launch: past L1, and without keeping destination lines. */
KVF_DEVICE void kvf_load16(kvf_v16 *v, kvf_u64 at, kvf_u32 narrow) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v->a), "=r"(v->b), "=r"(v->c), "=r"(v->d) : "l"(at));
}
KVF_DEVICE void kvf_store16(kvf_u64 at, const kvf_v16 *v, kvf_u32 narrow) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(at), "r"(v->a), "r"(v->b), "r"(v->c), "r"(v->d) : "memory");
}
#define KVF_ACCESS(TYPE, AT) (*(volatile TYPE *)(AT))

#else

/* On the host an access at an address that is not a multiple of its width is what it would be on the GPU: a fault. */
void kvf_kernel_misaligned(kvf_u64 at, kvf_u32 width);

KVF_DEVICE void kvf_load16(kvf_v16 *v, kvf_u64 at, kvf_u32 narrow) {
    (void)narrow;
    if (at % 16) kvf_kernel_misaligned(at, 16);
    memcpy(v, (const void *)(uintptr_t)at, 16);
}
KVF_DEVICE void kvf_store16(kvf_u64 at, const kvf_v16 *v, kvf_u32 narrow) {
    (void)narrow;
    if (at % 16) kvf_kernel_misaligned(at, 16);
    memcpy((void *)(uintptr_t)at, v, 16);
}
#define KVF_ACCESS(TYPE, AT) (*(volatile TYPE *)((AT) % sizeof(TYPE) ? (kvf_kernel_misaligned((AT), sizeof(TYPE)), (AT)) : (AT)))

#endif

KVF_DEVICE void kvf_loadn(kvf_vn *v, kvf_u64 at, kvf_u32 narrow) {
    if (narrow == 3) *v = KVF_ACCESS(kvf_u64, at);
    else if (narrow == 2) *v = KVF_ACCESS(kvf_u32, at);
    else if (narrow == 1) *v = KVF_ACCESS(unsigned short, at);
    else *v = KVF_ACCESS(unsigned char, at);
}
KVF_DEVICE void kvf_storen(kvf_u64 at, const kvf_vn *v, kvf_u32 narrow) {
    if (narrow == 3) KVF_ACCESS(kvf_u64, at) = *v;
    else if (narrow == 2) KVF_ACCESS(kvf_u32, at) = (kvf_u32)*v;
    else if (narrow == 1) KVF_ACCESS(unsigned short, at) = (unsigned short)*v;
    else KVF_ACCESS(unsigned char, at) = (unsigned char)*v;
}

/* The end of a row that is not a multiple of the vector. */
KVF_DEVICE void kvf_bytes(kvf_u64 dst, kvf_u64 src, kvf_u32 bytes) {
    KVF_ROLL
    for (kvf_u32 i = 0; i < bytes; i++) KVF_ACCESS(unsigned char, dst + i) = KVF_ACCESS(unsigned char, src + i);
}

/* ---- short rows ----------------------------------------------------------------------------------------------
 * D rows are found at once, and each time F vectors are moved that lie src_span and dst_span apart: parts of the row, or
 * the same vector of rows along the innermost loop. Finding costs more than moving.
 */

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

/* ---- long rows ----------------------------------------------------------------------------------------------- */

/* The piece that unit `n` stands for; returns its bytes. */
KVF_DEVICE kvf_u32 kvf_piece(const kvf_kernel_program *p, kvf_u32 n, kvf_u64 *src, kvf_u64 *dst) {
    kvf_u32 row = kvf_divide(n, p->pieces);
    kvf_u64 at = (kvf_u64)(n - row * p->pieces.by) * p->piece_bytes;
    kvf_u64 left = p->row_bytes - at;
    kvf_locate1(p, &row, src, dst);
    *src += at;
    *dst += at;
    return left < p->piece_bytes ? (kvf_u32)left : p->piece_bytes;
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

/* ---- slices --------------------------------------------------------------------------------------------------
 * Each CTA has `slice` units in a row. Host memory answers after microseconds: its threads fetch the pairs of many units
 * together, a thread a pair, before any of them is copied. Programs without bases, with runs of one, and with their lists
 * elsewhere: their words are not to be read.
 */

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

/* The piece that unit `n` stands for, whose pair was fetched after pair `first`; returns its bytes. */
KVF_DEVICE kvf_u32 kvf_slice_piece(const kvf_kernel_program *p, kvf_u32 n, kvf_tile tile, kvf_u32 first, kvf_u64 *src, kvf_u64 *dst) {
    kvf_u32 row = kvf_divide(n, p->pieces), x, y;
    const kvf_u64 at = (kvf_u64)(n - row * p->pieces.by) * p->piece_bytes, left = p->row_bytes - at;
    kvf_loops1(p, &row, src, dst);
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    x = tile[2 * (row - first)];
    y = tile[2 * (row - first) + 1];
#else
    (void)first;
    kvf_pair(tile, row, &x, &y);
#endif
    *src += ((kvf_u64)x << p->src_shift) + at;
    *dst += ((kvf_u64)y << p->dst_shift) + at;
    return left < p->piece_bytes ? (kvf_u32)left : p->piece_bytes;
}

KVF_DEVICE void kvf_slices16(const kvf_kernel_program *p, kvf_u32 cta, kvf_u32 thread, kvf_u32 threads, kvf_tile tile) {
    const kvf_u32 in_pair = p->pair_units.by;
    const kvf_u64 from = (kvf_u64)cta * p->slice, end = from + p->slice < p->units ? from + p->slice : p->units;
    KVF_ROLL
    for (kvf_u64 at = from; at < end;) {
        const kvf_u32 first = kvf_divide((kvf_u32)at, p->pair_units);
        const kvf_u64 reach = ((kvf_u64)first + KVF_KERNEL_TILE) * in_pair, stop = reach < end ? reach : end;
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
        const kvf_u32 pairs = kvf_divide((kvf_u32)stop - 1, p->pair_units) - first + 1;
        for (kvf_u32 i = thread; i < pairs; i += threads) kvf_pair(p, first + i, &tile[2 * i], &tile[2 * i + 1]);
#endif
        KVF_TOGETHER();
        KVF_ROLL
        for (kvf_u32 n = (kvf_u32)at + (thread >> 5); n < stop; n += threads >> 5) {
            kvf_u64 src, dst;
            const kvf_u32 bytes = kvf_slice_piece(p, n, tile, first, &src, &dst);
            kvf_stream16(dst, src, bytes, thread & 31u, p->narrow);
        }
        KVF_TOGETHER();
        at = stop;
    }
}

/* ---- bulk copies ---------------------------------------------------------------------------------------------
 * One thread of each warp moves pieces through a ring of stages in shared memory with the bulk copy engine: a piece is
 * loaded while earlier ones are stored, and no register ever holds a byte. Addresses and sizes are multiples of 16.
 */

#define KVF_BULK_STAGES KVF_KERNEL_STAGES
#define KVF_BULK_LAG 2 /* pieces that are loaded ahead of the one being stored; the other stages are being stored */

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#if __CUDA_ARCH__ >= 900

KVF_DEVICE kvf_u32 kvf_shared(const void *at) { return (kvf_u32)__cvta_generic_to_shared(at); }

/* What a warp remembers of a stage. */
typedef struct kvf_stage {
    kvf_u64 full; /* the barrier that its load completes */
    kvf_u64 to;
    kvf_u32 bytes;
} kvf_stage;

KVF_DEVICE void kvf_bulk(const kvf_kernel_program *p, kvf_u32 cta, kvf_u32 ctas, kvf_u32 thread, kvf_u32 threads,
                         unsigned char *memory, kvf_stage (*stages)[KVF_BULK_STAGES]) {
    if (thread & 31u) return;
    const kvf_u32 warp = thread >> 5, warps = threads >> 5;
    const kvf_u32 ring = kvf_shared(memory) + warp * KVF_BULK_STAGES * p->piece_bytes;
    for (int s = 0; s < KVF_BULK_STAGES; s++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(kvf_shared(&stages[warp][s].full)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    const kvf_u32 first = cta * warps + warp, step = ctas * warps;
    const kvf_u32 mine = first < p->units ? (p->units - first - 1) / step + 1 : 0;
    KVF_ROLL
    for (kvf_u32 i = 0; i < mine + KVF_BULK_LAG; i++) { /* load piece i, store piece i - lag */
        if (i < mine) {
            const kvf_u32 s = i % KVF_BULK_STAGES;
            kvf_stage *stage = &stages[warp][s];
            kvf_u64 from;
            stage->bytes = kvf_piece(p, first + i * step, &from, &stage->to);
            /* The stage's last store is the newest but one: let all but the newest have read their stages. */
            asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(kvf_shared(&stage->full)), "r"(stage->bytes) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(ring + s * p->piece_bytes),
                         "l"(from), "r"(stage->bytes), "r"(kvf_shared(&stage->full))
                         : "memory");
        }
        if (i >= KVF_BULK_LAG) {
            const kvf_u32 s = (i - KVF_BULK_LAG) % KVF_BULK_STAGES;
            const kvf_stage *stage = &stages[warp][s];
            kvf_u32 done = 0;
            while (!done) {
                asm volatile("{ .reg .pred q; mbarrier.try_wait.parity.shared::cta.b64 q, [%1], %2; selp.u32 %0, 1, 0, q; }"
                             : "=r"(done)
                             : "r"(kvf_shared(&stage->full)), "r"((i - KVF_BULK_LAG) / KVF_BULK_STAGES & 1u)
                             : "memory");
            }
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(stage->to), "r"(ring + s * p->piece_bytes), "r"(stage->bytes)
                         : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        }
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif
#else

KVF_DEVICE void kvf_bulk(const kvf_kernel_program *p, kvf_u32 cta, kvf_u32 ctas, kvf_u32 thread, kvf_u32 threads) {
    if (thread & 31u) return;
    const kvf_u64 step = (kvf_u64)ctas * (threads >> 5);
    for (kvf_u64 n = (kvf_u64)cta * (threads >> 5) + (thread >> 5); n < p->units; n += step) {
        kvf_u64 src, dst;
        kvf_u32 bytes = kvf_piece(p, (kvf_u32)n, &src, &dst);
        if (src % 16 || dst % 16 || bytes % 16) kvf_kernel_misaligned(src | dst | bytes, 16);
        memcpy((void *)(uintptr_t)dst, (const void *)(uintptr_t)src, bytes);
    }
}

#endif
#endif
