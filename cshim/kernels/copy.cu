/* copy.cu - the kernels' entries. One parameter each: the program or its head, by value. */
#include "body.h"

#define KVF_ENTRY(NAME, BODY, ...)                                                                             \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) NAME(const __grid_constant__ kvf_kernel_program p) { \
        BODY(&p, blockIdx.x, gridDim.x, threadIdx.x, blockDim.x);                                              \
    }

KVF_ENTRY(kvf_rows_16, kvf_rows16, 512, 2)
KVF_ENTRY(kvf_rows_16x2, kvf_rows16x2, 512, 2)
KVF_ENTRY(kvf_rows_16x4, kvf_rows16x4, 512, 2)
KVF_ENTRY(kvf_rows_n, kvf_rowsn, 512, 2)
KVF_ENTRY(kvf_pieces_16, kvf_pieces16, 512)
KVF_ENTRY(kvf_pieces_n, kvf_piecesn, 512)

/* Launches of slices may overlap: where the architecture knows it, each lets the next begin at once, and none ends before the
 * one before it has. Other kernels do without, for these words cost them registers. */
#if __CUDA_ARCH__ >= 900
#define KVF_NEXT() asm volatile("griddepcontrol.launch_dependents;")
#define KVF_LAST() asm volatile("griddepcontrol.wait;" ::: "memory")
#else
#define KVF_NEXT()
#define KVF_LAST()
#endif

extern "C" __global__ void __launch_bounds__(512, KVF_KERNEL_SLICE_CTAS) kvf_slices_16(const __grid_constant__ kvf_kernel_head p) {
    __shared__ kvf_tile tile;
    KVF_NEXT();
    kvf_slices16((const kvf_kernel_program *)&p, blockIdx.x, threadIdx.x, blockDim.x, tile);
    KVF_LAST();
}

#if __CUDA_ARCH__ >= 900
extern "C" __global__ void __launch_bounds__(256) kvf_bulk_16(const __grid_constant__ kvf_kernel_program p) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ kvf_stage stages[8][KVF_BULK_STAGES];
    kvf_bulk(&p, blockIdx.x, gridDim.x, threadIdx.x, blockDim.x, memory, stages);
}
#endif

/* Holds one CTA for that many nanoseconds. */
extern "C" __global__ void kvf_sleep(kvf_u64 nanos) {
    kvf_u64 start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        __nanosleep(1000);
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < nanos);
}

/* Writes where nobody owns memory. */
extern "C" __global__ void kvf_fault(kvf_u64 address) {
    *(volatile kvf_u32 *)address = 1;
}
