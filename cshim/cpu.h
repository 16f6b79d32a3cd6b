/*
 * cpu.h - which instructions this processor has beyond the ones that the library is compiled for.
 */
#ifndef KVF_CPU_H
#define KVF_CPU_H

#include <stdint.h>

#define KVF_CPU_BASE 0u   /* SSE2, or what every arm64 has */
#define KVF_CPU_AVX2 1u   /* and 256-bit integers */
#define KVF_CPU_AVX512 2u /* and 512-bit ones with the 256-bit forms of their instructions */

/* The best level that may be used. */
uint32_t kvf_cpu_level(void);
/* Allows nothing above a level, so that a test can run every path. Not while other threads work. */
void kvf_cpu_limit(uint32_t level);

/* Of NAME_base and NAME_avx2, which exists on x86-64 only: the one to call. */
#if defined(__x86_64__)
#define KVF_CPU_PICK(NAME) (kvf_cpu_level() == KVF_CPU_BASE ? NAME##_base : NAME##_avx2)
#else
#define KVF_CPU_PICK(NAME) NAME##_base
#endif

#endif
