#include "store.h"

#include <string.h>

#include "cpu.h"

#define ROWS(name)                                                                                                     \
    static void name(uint8_t *dst, const uint8_t *src, uint64_t bytes, uint64_t count, int64_t dst_stride,             \
                     int64_t src_stride, const uint8_t *after)

/* ---- plain stores -------------------------------------------------------------------------------------------- */

ROWS(rows_any) {
    (void)after;
    for (; count > 0; count--, dst += dst_stride, src += src_stride) memcpy(dst, src, bytes);
}

/* Rows of a size that the compiler knows are a few moves instead of a call. */
#define FIXED(size)                                                                                                    \
    ROWS(rows_##size) {                                                                                                \
        (void)bytes, (void)after;                                                                                      \
        for (; count > 0; count--, dst += dst_stride, src += src_stride) memcpy(dst, src, size);                       \
    }

FIXED(1)
FIXED(2)
FIXED(4)
FIXED(8)
FIXED(16)
FIXED(32)
FIXED(64)
FIXED(128)
FIXED(256)

static kvf_rows plain_rows(uint64_t bytes) {
    switch (bytes) {
    case 1: return rows_1;
    case 2: return rows_2;
    case 4: return rows_4;
    case 8: return rows_8;
    case 16: return rows_16;
    case 32: return rows_32;
    case 64: return rows_64;
    case 128: return rows_128;
    case 256: return rows_256;
    default: return rows_any;
    }
}

/* ---- non-temporal stores: whole cache lines past the cache, the rest plainly ----------------------------------- */

/* Below this a row has too few whole lines. */
#define LEAST_NONTEMPORAL 128u
#define LINE 64u

/* The first lines of what is copied next: the processor guesses the others, but not across the end of a page. */
#define FETCHED_LINES 16u
#define LEAST_FETCHED 1024u
#define PAGE 4096u

static inline void fetch(const uint8_t *src, uint64_t lines) {
    for (uint64_t k = 0; k < lines && k < FETCHED_LINES; k++) __builtin_prefetch(src + k * LINE, 0, 2);
}

#define STREAMED(name, attribute, stream)                                                                              \
    attribute ROWS(name) {                                                                                             \
        bool fetching = bytes >= LEAST_FETCHED;                                                                        \
        if (bytes < LEAST_NONTEMPORAL) { /* the end of a row that was split */                                         \
            rows_any(dst, src, bytes, count, dst_stride, src_stride, after);                                           \
            return;                                                                                                    \
        }                                                                                                              \
        for (; count > 0; count--, dst += dst_stride, src += src_stride) {                                             \
            const uint8_t *next = count > 1 ? src + src_stride : after;                                                \
            if (fetching && next) fetch(next, bytes / LINE);                                                           \
            uint64_t head = -(uint64_t)(uintptr_t)dst & (LINE - 1);                                                    \
            uint64_t body = (bytes - head) & ~(uint64_t)(LINE - 1);                                                    \
            if (head) memcpy(dst, src, head);                                                                          \
            uint8_t *to = dst + head;                                                                                  \
            const uint8_t *from = src + head;                                                                          \
            for (uint64_t lines = body / LINE; lines > 0;) {                                                           \
                uint64_t here = (PAGE - (uintptr_t)from % PAGE + LINE - 1) / LINE;                                     \
                if (here < lines) fetch(from + here * LINE, lines - here);                                             \
                else here = lines;                                                                                     \
                stream(to, from, here);                                                                                \
                to += here * LINE;                                                                                     \
                from += here * LINE;                                                                                   \
                lines -= here;                                                                                         \
            }                                                                                                          \
            uint64_t done = head + body;                                                                               \
            if (done < bytes) memcpy(dst + done, src + done, bytes - done);                                            \
        }                                                                                                              \
    }

#if defined(__x86_64__)

#include <immintrin.h>

__attribute__((target("avx2"))) static inline void stream_two_lines(uint8_t *dst, const uint8_t *src) {
    __m256i part[4];
    for (int k = 0; k < 4; k++) part[k] = _mm256_loadu_si256((const __m256i *)(const void *)(src + 32 * k));
    for (int k = 0; k < 4; k++) _mm256_stream_si256((__m256i *)(void *)(dst + 32 * k), part[k]);
}

/* Whole lines: the destination is aligned to a line. Wider registers were no faster. */
__attribute__((target("avx2"))) static inline void stream_avx2(uint8_t *dst, const uint8_t *src, uint64_t lines) {
    for (; lines >= 2; lines -= 2, dst += 2 * LINE, src += 2 * LINE) stream_two_lines(dst, src);
    if (lines == 0) return;
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)src);
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(src + 32));
    _mm256_stream_si256((__m256i *)(void *)dst, low);
    _mm256_stream_si256((__m256i *)(void *)(dst + 32), high);
}

static inline void stream_sse2(uint8_t *dst, const uint8_t *src, uint64_t lines) {
    for (; lines > 0; lines--, dst += LINE, src += LINE) {
        __m128i part[4];
        for (int k = 0; k < 4; k++) part[k] = _mm_loadu_si128((const __m128i *)(const void *)(src + 16 * k));
        for (int k = 0; k < 4; k++) _mm_stream_si128((__m128i *)(void *)(dst + 16 * k), part[k]);
    }
}

STREAMED(rows_stream_sse2, , stream_sse2)
STREAMED(rows_stream_avx2, __attribute__((target("avx2"))), stream_avx2)

kvf_rows kvf_rows_for(uint64_t row_bytes, bool nontemporal) {
    if (!nontemporal || row_bytes < LEAST_NONTEMPORAL) return plain_rows(row_bytes);
    return kvf_cpu_level() == KVF_CPU_BASE ? rows_stream_sse2 : rows_stream_avx2;
}

void kvf_rows_fence(void) { _mm_sfence(); }

#elif defined(__aarch64__)

/* Pairs stored with the hint that nobody reads them soon. */
static inline void stream_pairs(uint8_t *dst, const uint8_t *src, uint64_t lines) {
    for (; lines > 0; lines--, dst += LINE, src += LINE)
        __asm__ volatile("ldp q0, q1, [%1]\n\t"
                         "ldp q2, q3, [%1, #32]\n\t"
                         "stnp q0, q1, [%0]\n\t"
                         "stnp q2, q3, [%0, #32]"
                         :
                         : "r"(dst), "r"(src)
                         : "v0", "v1", "v2", "v3", "memory");
}

STREAMED(rows_stream, , stream_pairs)

kvf_rows kvf_rows_for(uint64_t row_bytes, bool nontemporal) {
    return nontemporal && row_bytes >= LEAST_NONTEMPORAL ? rows_stream : plain_rows(row_bytes);
}

void kvf_rows_fence(void) { __asm__ volatile("dmb ishst" ::: "memory"); }

#else

kvf_rows kvf_rows_for(uint64_t row_bytes, bool nontemporal) {
    (void)nontemporal;
    return plain_rows(row_bytes);
}

void kvf_rows_fence(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

#endif
