/*
 * address.h - what the kernels are written in, and where the rows of a flattened program lie.
 */
#ifndef KVF_KERNEL_ADDRESS_H
#define KVF_KERNEL_ADDRESS_H

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

#endif
