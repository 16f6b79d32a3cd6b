/* copy.cu - the kernels' entries. One parameter each: the program, by value. */
#include "body.h"

#define KVF_ENTRIES(W)                                                                                                \
    extern "C" __global__ void __launch_bounds__(512, 2) kvf_rows_##W(const __grid_constant__ kvf_kernel_program p) {    \
        kvf_rows##W(&p, blockIdx.x, gridDim.x, threadIdx.x, blockDim.x);                                              \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(512) kvf_pieces_##W(const __grid_constant__ kvf_kernel_program p) {  \
        kvf_pieces##W(&p, blockIdx.x, gridDim.x, threadIdx.x, blockDim.x);                                            \
    }

KVF_ENTRIES(16)
KVF_ENTRIES(n)

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
