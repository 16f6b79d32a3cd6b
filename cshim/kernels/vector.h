/* vector.h - how a thread moves bytes: vectors, and what is left over at the end of a row. */
#ifndef KVF_KERNEL_VECTOR_H
#define KVF_KERNEL_VECTOR_H

#include "address.h"

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

#endif
