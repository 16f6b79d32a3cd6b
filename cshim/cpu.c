#include "cpu.h"

static uint32_t limit = KVF_CPU_AVX512;

void kvf_cpu_limit(uint32_t level) { limit = level; }

#if defined(__x86_64__)

#include <cpuid.h>

/* Asked of the processor itself: not every compiler brings the helper behind __builtin_cpu_supports. */
static uint32_t found_level(void) {
    uint32_t a, b, c, d, enabled, high;
    const uint32_t saved = 1u << 27, avx = 1u << 28, avx2 = 1u << 5, avx512f = 1u << 16, avx512vl = 1u << 31;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & saved) || !(c & avx)) return KVF_CPU_BASE;
    /* The kernel must save the wide registers as well. */
    __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    if ((enabled & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx2)) return KVF_CPU_BASE;
    return (enabled & 0xe0) == 0xe0 && (b & avx512f) && (b & avx512vl) ? KVF_CPU_AVX512 : KVF_CPU_AVX2;
}

#else

static uint32_t found_level(void) { return KVF_CPU_BASE; }

#endif

uint32_t kvf_cpu_level(void) {
    static uint32_t known; /* the level and one; atomic */
    uint32_t level = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (level == 0) {
        level = found_level() + 1;
        __atomic_store_n(&known, level, __ATOMIC_RELAXED);
    }
    return level - 1 < limit ? level - 1 : limit;
}
