#include "blake3.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "cpu.h"
#include "pool.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words of BLAKE3 are read as they lie, which needs a little-endian machine"
#endif

#define OUT_BYTES 32u
#define BLOCK_BYTES 64u
#define CHUNK_BYTES 1024u
#define CHUNK_BLOCKS (CHUNK_BYTES / BLOCK_BYTES)
/* Chunks that are hashed and joined level by level at once. */
#define TREE_CHUNKS 64u
#define TREE_LEVELS 6u
#define MOST_LEVELS 54u

#define CHUNK_START 1u
#define CHUNK_END 2u
#define PARENT 4u
#define ROOT 8u

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* Which message word each step of each round takes: the permutation of the specification, applied again and again. */
static const uint8_t schedule[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},  {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},  {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},  {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

/* ---- side by side -------------------------------------------------------------------------------------------- */

typedef uint32_t vector4 __attribute__((vector_size(16)));
typedef uint32_t vector8 __attribute__((vector_size(32)));

typedef void (*hash_lanes)(const uint8_t *const *input, uint32_t blocks, uint64_t counter, uint32_t step, uint32_t flags,
                           uint32_t first, uint32_t last, uint8_t *out);

static inline void transpose_any(uint32_t *to, const uint8_t *const *input, size_t at, uint32_t lanes) {
    for (uint32_t lane = 0; lane < lanes; lane++)
        for (uint32_t word = 0; word < 16; word++) memcpy(to + word * lanes + lane, input[lane] + at + 4 * word, 4);
}

#define LANES 4
#define VECTOR vector4
#define LANES_NAME hash_4
#define LANES_TARGET
#define TRANSPOSE(m, input, at) transpose_any((uint32_t *)(m), input, at, 4)
#include "blake3_lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* Eight words of each of eight inputs, turned: three rounds of interleaving 32, 64 and 128 bits. */
#define HALF_TRANSPOSE(attribute, name)                                                                                \
    attribute static inline void name(vector8 *to, const uint8_t *const *input, size_t at) {                           \
        __m256i row[8], pair[8], quad[8];                                                                              \
        for (int k = 0; k < 8; k++) row[k] = _mm256_loadu_si256((const __m256i *)(const void *)(input[k] + at));       \
        for (int k = 0; k < 8; k += 2) {                                                                               \
            pair[k] = _mm256_unpacklo_epi32(row[k], row[k + 1]);                                                       \
            pair[k + 1] = _mm256_unpackhi_epi32(row[k], row[k + 1]);                                                   \
        }                                                                                                              \
        for (int k = 0; k < 8; k += 4)                                                                                 \
            for (int j = 0; j < 2; j++) {                                                                              \
                quad[k + 2 * j] = _mm256_unpacklo_epi64(pair[k + j], pair[k + j + 2]);                                 \
                quad[k + 2 * j + 1] = _mm256_unpackhi_epi64(pair[k + j], pair[k + j + 2]);                             \
            }                                                                                                          \
        for (int k = 0; k < 4; k++) {                                                                                  \
            to[k] = (vector8)_mm256_permute2x128_si256(quad[k], quad[k + 4], 0x20);                                    \
            to[k + 4] = (vector8)_mm256_permute2x128_si256(quad[k], quad[k + 4], 0x31);                                \
        }                                                                                                              \
    }

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f,avx512vl")))
HALF_TRANSPOSE(AVX2, turn_avx2)
HALF_TRANSPOSE(AVX512, turn_avx512)

#define LANES 8
#define VECTOR vector8
#define LANES_NAME hash_8_avx2
#define LANES_TARGET AVX2
#define TRANSPOSE(m, input, at) (turn_avx2(m, input, at), turn_avx2((m) + 8, input, (at) + 32))
#include "blake3_lanes.h"

#define LANES 8
#define VECTOR vector8
#define LANES_NAME hash_8_avx512
#define LANES_TARGET AVX512
#define TRANSPOSE(m, input, at) (turn_avx512(m, input, at), turn_avx512((m) + 8, input, (at) + 32))
#include "blake3_lanes.h"

static hash_lanes widest(uint32_t *lanes) {
    uint32_t level = kvf_cpu_level();
    *lanes = level == KVF_CPU_BASE ? 4 : 8;
    return level == KVF_CPU_AVX512 ? hash_8_avx512 : level == KVF_CPU_AVX2 ? hash_8_avx2 : hash_4;
}
#else
static hash_lanes widest(uint32_t *lanes) {
    *lanes = 4;
    return hash_4;
}
#endif

/* ---- one at a time ------------------------------------------------------------------------------------------- */

static inline uint32_t turned(uint32_t x, int bits) { return (x >> bits) | (x << (32 - bits)); }

static inline void mix(uint32_t *v, int a, int b, int c, int d, uint32_t x, uint32_t y) {
    v[a] += v[b] + x;
    v[d] = turned(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = turned(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = turned(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = turned(v[b] ^ v[c], 7);
}

static void compress(uint32_t *chain, const uint8_t *block, uint32_t bytes, uint64_t counter, uint32_t flags) {
    uint32_t m[16], v[16];
    memcpy(m, block, BLOCK_BYTES);
    memcpy(v, chain, 32);
    memcpy(v + 8, initial, 16);
    v[12] = (uint32_t)counter;
    v[13] = (uint32_t)(counter >> 32);
    v[14] = bytes;
    v[15] = flags;
    for (int round = 0; round < 7; round++) {
        const uint8_t *s = schedule[round];
        for (int k = 0; k < 4; k++) mix(v, k, 4 + k, 8 + k, 12 + k, m[s[2 * k]], m[s[2 * k + 1]]);
        for (int k = 0; k < 4; k++)
            mix(v, k, 4 + (k + 1) % 4, 8 + (k + 2) % 4, 12 + (k + 3) % 4, m[s[8 + 2 * k]], m[s[9 + 2 * k]]);
    }
    for (int k = 0; k < 8; k++) chain[k] = v[k] ^ v[8 + k];
}

/* A chunk of 0 to 1024 bytes. */
static void hash_chunk(const uint8_t *chunk, uint64_t bytes, uint64_t counter, uint32_t last, uint8_t *out) {
    uint32_t chain[8];
    memcpy(chain, initial, sizeof chain);
    uint32_t flags = CHUNK_START;
    for (; bytes > BLOCK_BYTES; bytes -= BLOCK_BYTES, chunk += BLOCK_BYTES, flags = 0)
        compress(chain, chunk, BLOCK_BYTES, counter, flags);
    uint8_t block[BLOCK_BYTES] = {0};
    if (bytes) memcpy(block, chunk, bytes);
    compress(chain, block, (uint32_t)bytes, counter, flags | CHUNK_END | last);
    memcpy(out, chain, OUT_BYTES);
}

/* Joins two chaining values that follow each other. `out` may be `pair`. */
static void hash_parent(const uint8_t *pair, uint32_t last, uint8_t *out) {
    uint32_t chain[8];
    memcpy(chain, initial, sizeof chain);
    compress(chain, pair, BLOCK_BYTES, 0, PARENT | last);
    memcpy(out, chain, OUT_BYTES);
}

/* ---- trees --------------------------------------------------------------------------------------------------- */

/* Chaining value of a complete tree of TREE_CHUNKS chunks that is not the whole message. */
static void hash_tree(const uint8_t *input, uint64_t counter, hash_lanes hash, uint32_t lanes, uint8_t *out) {
    uint8_t values[TREE_CHUNKS * OUT_BYTES];
    const uint8_t *place[8];
    for (uint32_t at = 0; at < TREE_CHUNKS; at += lanes) {
        for (uint32_t k = 0; k < lanes; k++) place[k] = input + (size_t)(at + k) * CHUNK_BYTES;
        hash(place, CHUNK_BLOCKS, counter + at, 1, 0, CHUNK_START, CHUNK_END, values + at * OUT_BYTES);
    }
    for (uint32_t left = TREE_CHUNKS / 2; left > 0; left /= 2) {
        uint32_t at = 0;
        /* Results go where inputs of the same step or earlier ones lay, after they were read. */
        for (; at + lanes <= left; at += lanes) {
            for (uint32_t k = 0; k < lanes; k++) place[k] = values + (size_t)(at + k) * BLOCK_BYTES;
            hash(place, 1, 0, 0, PARENT, 0, 0, values + at * OUT_BYTES);
        }
        for (; at < left; at++) hash_parent(values + at * BLOCK_BYTES, 0, values + at * OUT_BYTES);
    }
    memcpy(out, values, OUT_BYTES);
}

void kvf_blake3(const uint8_t *message, uint64_t bytes, uint8_t *out) {
    uint32_t lanes;
    hash_lanes hash = widest(&lanes);
    /* Chaining values of complete trees that wait for a right sibling, largest first; two that lie next to each other are
     * joined once it is sure that more follows, for the last join of all is marked as the root. */
    uint8_t stack[MOST_LEVELS * OUT_BYTES];
    uint32_t height = 0;
    uint64_t chunks = 0;
    while (bytes > CHUNK_BYTES) {
        bool tree = bytes > TREE_CHUNKS * CHUNK_BYTES;
        uint8_t *value = stack + height * OUT_BYTES;
        if (tree) hash_tree(message, chunks, hash, lanes, value);
        else hash_chunk(message, CHUNK_BYTES, chunks, 0, value);
        height++;
        uint64_t step = tree ? TREE_CHUNKS : 1;
        message += step * CHUNK_BYTES;
        bytes -= step * CHUNK_BYTES;
        chunks += step;
        /* A bit of the count for each value on the stack. */
        while (height > (uint32_t)__builtin_popcountll(chunks)) {
            height--;
            hash_parent(stack + (height - 1) * OUT_BYTES, 0, stack + (height - 1) * OUT_BYTES);
        }
    }
    hash_chunk(message, bytes, chunks, height == 0 ? ROOT : 0, stack + height * OUT_BYTES);
    for (; height > 0; height--) hash_parent(stack + (height - 1) * OUT_BYTES, height == 1 ? ROOT : 0, stack + (height - 1) * OUT_BYTES);
    memcpy(out, stack, OUT_BYTES);
}

/* ---- as a job ------------------------------------------------------------------------------------------------ */

/* Messages below this are hashed several to an item. */
#define ITEM_BYTES ((uint64_t)256 << 10)

typedef struct hash_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    uint32_t stopped; /* atomic */
    const uint8_t *first;
    uint64_t bytes;
    uint64_t stride;
    uint64_t count;
    uint64_t per_item;
    uint8_t *digests;
} hash_job;

static void hash_item(kvf_task *task, uint64_t index) {
    hash_job *job = (hash_job *)task;
    uint64_t end = (index + 1) * job->per_item < job->count ? (index + 1) * job->per_item : job->count;
    for (uint64_t k = index * job->per_item; k < end; k++) {
        if (kvf_job_cancelled(job->ctx, job->slot)) {
            __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
            return;
        }
        kvf_blake3(job->first + k * job->stride, job->bytes, job->digests + k * OUT_BYTES);
    }
}

static void end_hashing(kvf_task *task) {
    hash_job *job = (hash_job *)task;
    if (job->stopped) {
        free(job->digests);
        kvf_job_fail(job->ctx, job->slot, KVF_E_CANCELLED, 0, "hashing was stopped");
    } else {
        kvf_job_give_result(job->ctx, job->slot, job->digests, job->count * OUT_BYTES);
        kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, (double)job->count);
    }
    free(job);
}

int32_t kvf_blake3_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, kvf_word stride, uint32_t count, uint32_t threads) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (threads == 0 || (bytes > 0 && address == 0) || bytes > (uint64_t)1 << 53 || stride > (uint64_t)1 << 53)
        return kvf_refuse(KVF_E_INVALID, "kvf_blake3_job: no address, no threads or too many bytes");
    hash_job *job = calloc(1, sizeof *job);
    uint8_t *digests = malloc(count ? (size_t)count * OUT_BYTES : 1);
    if (!job || !digests) {
        free(job);
        free(digests);
        return kvf_refuse(KVF_E_NOMEM, "no memory for %u digests", count);
    }
    job->ctx = ctx;
    job->slot = slot;
    job->first = (const uint8_t *)(uintptr_t)address;
    job->bytes = bytes;
    job->stride = stride;
    job->count = count;
    job->digests = digests;
    job->per_item = bytes >= ITEM_BYTES ? 1 : ITEM_BYTES / (bytes ? bytes : 1);
    uint64_t items = (count + job->per_item - 1) / job->per_item;
    job->task = (kvf_task){.item = hash_item, .end = end_hashing, .items = items ? items : 1, .width = threads};
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    free(job);
    free(digests);
    return status;
}
