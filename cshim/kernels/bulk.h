/*
 * bulk.h - bulk copies.
 *
 * One thread of each warp moves pieces through a ring of stages in shared memory with the bulk copy engine: a piece is
 * loaded while earlier ones are stored, and no register ever holds a byte. Addresses and sizes are multiples of 16.
 */
#ifndef KVF_KERNEL_BULK_H
#define KVF_KERNEL_BULK_H

#include "pieces.h"

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
