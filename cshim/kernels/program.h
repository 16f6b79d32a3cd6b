/*
 * program.h - a copy program as the kernels receive it: strides, counts and the two lists of offsets, passed by value
 * as the kernel's one parameter. Read by the C compiler and by the kernel compiler alike.
 */
#ifndef KVF_KERNEL_PROGRAM_H
#define KVF_KERNEL_PROGRAM_H

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
typedef unsigned int kvf_u32;
typedef unsigned long long kvf_u64;
typedef long long kvf_i64;
#else
#include <stdint.h>
typedef uint32_t kvf_u32;
typedef uint64_t kvf_u64;
typedef int64_t kvf_i64;
#endif

/* Loops in a kernel program: those of a copy program, its run and its bases where they are evenly spaced. */
#define KVF_KERNEL_LOOPS 8

/* Units that one launch may have: indices and their divisions are 31 bits wide. */
#define KVF_KERNEL_UNITS 0x7fffffffu

/* Bytes that a warp copies of a long row before it takes the next piece; in slices, where finding it takes less. */
#define KVF_KERNEL_PIECE 4096u
#define KVF_KERNEL_SLICE_PIECE 2048u

/* In slices: pairs that a CTA fetches at once, and CTAs of 512 threads that fit a multiprocessor. */
#define KVF_KERNEL_TILE 256u
#define KVF_KERNEL_SLICE_CTAS 3

/* Stages of a warp's ring in bulk copies. */
#define KVF_KERNEL_STAGES 4

/* 32-bit words of lists that travel inside the parameter; the parameter stays within 4 KiB for old drivers. */
#define KVF_KERNEL_INLINE_WORDS 896

/* Division of numbers below 2^31 by a constant: (n * scale) >> shift. */
typedef struct kvf_divisor {
    kvf_u32 by;
    kvf_u32 scale;
    kvf_u32 shift;
} kvf_divisor;

#define KVF_KERNEL_BASES_INNER 1u  /* neighbouring units walk bases before blocks */
#define KVF_KERNEL_PAIRS_NARROW 2u /* slices: a pair is one word, the source in its lower half, the destination in the upper */

typedef struct kvf_kernel_program {
    kvf_u64 src;       /* added to every address */
    kvf_u64 dst;
    kvf_u64 lists;     /* address of the lists, 16-byte aligned, or 0: they are in `words` */
    kvf_u64 src_span;  /* between the vectors that one thread moves in the shape of rows */
    kvf_u64 dst_span;
    kvf_i64 src_run;
    kvf_i64 dst_run;
    kvf_i64 src_stride[KVF_KERNEL_LOOPS];
    kvf_i64 dst_stride[KVF_KERNEL_LOOPS];
    kvf_divisor count[KVF_KERNEL_LOOPS];
    kvf_divisor pieces; /* units in a row: vectors of short rows, pieces of long ones */
    kvf_divisor outer;  /* blocks, or bases where they are the inner axis */
    kvf_divisor pair_units; /* units of each pair, where CTAs take slices */
    kvf_u64 row_bytes;
    kvf_u32 units;      /* in all */
    kvf_u32 loops;
    kvf_u32 flags;
    kvf_u32 pairs;      /* 0: no list, offsets are 0 */
    kvf_u32 bases_at;   /* word of the list of bases: (src, dst) as two 64-bit numbers each, 16-byte aligned;
                           KVF_KERNEL_NONE: none */
    kvf_u32 pairs_at;   /* word of the list of pairs: (src, dst) in units of 2^src_shift and 2^dst_shift bytes; even where
                           they are two words each */
    kvf_u32 runs_at;    /* word of the first block of each pair and their end; KVF_KERNEL_NONE: every run is 1 */
    kvf_u32 src_shift;
    kvf_u32 dst_shift;
    kvf_u32 narrow;      /* log2 of the access width of the narrow kernels */
    kvf_u32 piece_bytes; /* of long rows: KVF_KERNEL_PIECE or KVF_KERNEL_SLICE_PIECE; of bulk copies: the stage's size */
    kvf_u32 slice;       /* units of each CTA, in slices */
    kvf_u32 runs_step;   /* greatest power of two below the number of pairs: where the search for a block's pair starts */
    kvf_u32 words[KVF_KERNEL_INLINE_WORDS] __attribute__((aligned(16)));
} kvf_kernel_program;

#define KVF_KERNEL_NONE 0xffffffffu

/* A program without words, whose lists lie elsewhere: what a launch carries takes time. */
#define KVF_KERNEL_HEAD_BYTES ((unsigned)sizeof(kvf_kernel_program) - 4u * KVF_KERNEL_INLINE_WORDS)
typedef struct kvf_kernel_head {
    kvf_u64 of[KVF_KERNEL_HEAD_BYTES / 8] __attribute__((aligned(16)));
} kvf_kernel_head;

#endif
