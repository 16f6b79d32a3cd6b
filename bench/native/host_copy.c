/*
 * host_copy.c - what the best C loop gets out of this machine for chunks that lie scattered in host memory: the limit and
 * the anchors of rows F9, and the loop that fills the arrays of row F10. No part of kvferry is in it.
 *
 *   cc -O3 -std=c17 -shared -fPIC host_copy.c -o host_copy.so -lpthread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define MOST_THREADS 64u
#define EXPORT __attribute__((visibility("default")))

typedef void (*copy_chunk)(uint8_t *to, const uint8_t *from, uint64_t bytes, const uint8_t *next);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- one chunk; chunks are multiples of 256 bytes and aligned to them ----------------------------------------- */

static void chunk_libc(uint8_t *to, const uint8_t *from, uint64_t bytes, const uint8_t *next) {
    (void)next;
    memcpy(to, from, bytes);
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static inline void stream_avx2(uint8_t *to, const uint8_t *from, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 96));
        _mm256_stream_si256((__m256i *)(void *)(to + i), a);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 32), b);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 64), c);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 96), d);
    }
}

__attribute__((target("avx2"))) static void chunk_avx2(uint8_t *to, const uint8_t *from, uint64_t bytes, const uint8_t *next) {
    (void)next;
    stream_avx2(to, from, bytes);
}

/* The first kilobyte of the next chunk is asked for before this one is copied. */
__attribute__((target("avx2"))) static void chunk_avx2_next(uint8_t *to, const uint8_t *from, uint64_t bytes,
                                                            const uint8_t *next) {
    if (next)
        for (uint64_t i = 0; i < 1024 && i < bytes; i += 64) __builtin_prefetch(next + i, 0, 3);
    stream_avx2(to, from, bytes);
}

/* Reads a kilobyte ahead inside the chunk. */
__attribute__((target("avx2"))) static void chunk_avx2_ahead(uint8_t *to, const uint8_t *from, uint64_t bytes,
                                                             const uint8_t *next) {
    (void)next;
    for (uint64_t i = 0; i < bytes; i += 128) {
        __builtin_prefetch(from + i + 1024, 0, 0);
        __builtin_prefetch(from + i + 1088, 0, 0);
        stream_avx2(to + i, from + i, 128);
    }
}

/* The first kilobyte of each page is asked for before the page before it is copied: processors do not guess across pages. */
__attribute__((target("avx2"))) static void chunk_avx2_pages(uint8_t *to, const uint8_t *from, uint64_t bytes,
                                                             const uint8_t *next) {
    for (uint64_t i = 0; i < bytes; i += 4096) {
        const uint64_t part = bytes - i < 4096 ? bytes - i : 4096;
        const uint8_t *then = i + part < bytes ? from + i + part : next;
        if (then)
            for (uint64_t k = 0; k < 1024 && k < bytes; k += 64) __builtin_prefetch(then + k, 0, 2);
        stream_avx2(to + i, from + i, part);
    }
}

__attribute__((target("avx512f"))) static void chunk_avx512(uint8_t *to, const uint8_t *from, uint64_t bytes,
                                                            const uint8_t *next) {
    (void)next;
    for (uint64_t i = 0; i < bytes; i += 256) {
        __m512i a = _mm512_loadu_si512(from + i), b = _mm512_loadu_si512(from + i + 64);
        __m512i c = _mm512_loadu_si512(from + i + 128), d = _mm512_loadu_si512(from + i + 192);
        _mm512_stream_si512((__m512i *)(void *)(to + i), a);
        _mm512_stream_si512((__m512i *)(void *)(to + i + 64), b);
        _mm512_stream_si512((__m512i *)(void *)(to + i + 128), c);
        _mm512_stream_si512((__m512i *)(void *)(to + i + 192), d);
    }
}

static copy_chunk chunk_of(uint32_t kind) {
    switch (kind) {
    case 0: return chunk_libc;
    case 1: return __builtin_cpu_supports("avx2") ? chunk_avx2 : NULL;
    case 2: return __builtin_cpu_supports("avx2") ? chunk_avx2_next : NULL;
    case 3: return __builtin_cpu_supports("avx2") ? chunk_avx2_ahead : NULL;
    case 4: return __builtin_cpu_supports("avx512f") ? chunk_avx512 : NULL;
    case 5: return __builtin_cpu_supports("avx2") ? chunk_avx2_pages : NULL;
    default: return NULL;
    }
}

static void fence(void) { _mm_sfence(); }

#elif defined(__aarch64__)

static void chunk_stnp(uint8_t *to, const uint8_t *from, uint64_t bytes, const uint8_t *next) {
    (void)next;
    for (uint64_t i = 0; i < bytes; i += 64)
        __asm__ volatile("ldp q0, q1, [%1]\n\tldp q2, q3, [%1, #32]\n\tstnp q0, q1, [%0]\n\tstnp q2, q3, [%0, #32]"
                         :
                         : "r"(to + i), "r"(from + i)
                         : "v0", "v1", "v2", "v3", "memory");
}

static copy_chunk chunk_of(uint32_t kind) { return kind == 0 ? chunk_libc : kind == 1 ? chunk_stnp : NULL; }

static void fence(void) { __asm__ volatile("dmb ishst" ::: "memory"); }

#else

static copy_chunk chunk_of(uint32_t kind) { return kind == 0 ? chunk_libc : NULL; }

static void fence(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

#endif

/* ---- threads: the caller and helpers that sleep between two copies ---------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begin = PTHREAD_COND_INITIALIZER;
static pthread_cond_t end = PTHREAD_COND_INITIALIZER;
static uint32_t helpers, turn, wanted, busy;

static struct {
    copy_chunk copy;
    uint8_t *to;
    const uint8_t *from;
    const double *to_offset;
    const double *from_offset;
    uint64_t chunks, chunk_bytes, batch;
    uint64_t next; /* atomic */
} job;

static void take_part(void) {
    for (;;) {
        uint64_t i = __atomic_fetch_add(&job.next, job.batch, __ATOMIC_RELAXED);
        if (i >= job.chunks) break;
        uint64_t stop = i + job.batch < job.chunks ? i + job.batch : job.chunks;
        for (; i < stop; i++) {
            const uint8_t *next = i + 1 < stop ? job.from + (uint64_t)job.from_offset[i + 1] : NULL;
            job.copy(job.to + (uint64_t)job.to_offset[i], job.from + (uint64_t)job.from_offset[i], job.chunk_bytes, next);
        }
    }
    fence();
}

static void *help(void *argument) {
    uint32_t number = (uint32_t)(uintptr_t)argument, seen = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (seen == turn || number >= wanted) {
            seen = turn;
            pthread_cond_wait(&begin, &lock);
        }
        seen = turn;
        pthread_mutex_unlock(&lock);
        take_part();
        pthread_mutex_lock(&lock);
        if (--busy == 0) pthread_cond_signal(&end);
    }
    return NULL;
}

/*
 * Copies `chunks` chunks of `chunk_bytes` bytes with `threads` threads.
 *
 * kind: 0 libc's memcpy, above: loops with non-temporal stores. Returns the seconds it took, -1 for a kind that this
 * processor does not have.
 */
EXPORT double bench_copy(uint32_t kind, uint8_t *to, const uint8_t *from, const double *to_offset, const double *from_offset,
                         uint32_t chunks, uint32_t chunk_bytes, uint32_t threads) {
    copy_chunk copy = chunk_of(kind);
    if (!copy || threads == 0 || threads > MOST_THREADS) return -1;
    pthread_mutex_lock(&lock);
    for (; helpers + 1 < threads; helpers++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(uintptr_t)helpers) != 0) {
            pthread_mutex_unlock(&lock);
            return -1;
        }
        pthread_detach(thread);
    }
    pthread_mutex_unlock(&lock);
    double start = now();
    job.copy = copy;
    job.to = to;
    job.from = from;
    job.to_offset = to_offset;
    job.from_offset = from_offset;
    job.chunks = chunks;
    job.chunk_bytes = chunk_bytes;
    job.batch = ((uint64_t)1 << 20) / chunk_bytes;
    if (job.batch == 0) job.batch = 1;
    job.next = 0;
    if (threads > 1) {
        pthread_mutex_lock(&lock);
        wanted = threads - 1;
        busy = wanted;
        turn++;
        pthread_cond_broadcast(&begin);
        pthread_mutex_unlock(&lock);
    }
    take_part();
    if (threads > 1) {
        pthread_mutex_lock(&lock);
        while (busy > 0) pthread_cond_wait(&end, &lock);
        pthread_mutex_unlock(&lock);
    }
    return now() - start;
}

/* Fills the offsets of a copy program for lists of block ids, and nothing else. Returns seconds. */
EXPORT double bench_fill(const uint32_t *from, const uint32_t *to, uint32_t pairs, double from_stride, double to_stride,
                         double *from_offset, double *to_offset) {
    double start = now();
    for (uint32_t i = 0; i < pairs; i++) {
        from_offset[i] = (double)from[i] * from_stride;
        to_offset[i] = (double)to[i] * to_stride;
    }
    return now() - start;
}
