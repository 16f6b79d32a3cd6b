/*
 * fill.c - test patterns, the same on every machine: one block at once, or many as a job.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "pool.h"
#include "status.h"

#define MOST_BYTES ((uint64_t)1 << 53)

/* The finaliser of SplitMix64 (Steele, Lea and Flood, 2014). */
static uint64_t mixed(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static void fill_sequential(uint8_t *at, uint64_t bytes, uint64_t first) {
    for (uint64_t k = 0; k < bytes; k++) at[k] = (uint8_t)(first + k);
}

/* Words of SplitMix64, little-endian, from a state that the four numbers decide. */
static void fill_random(uint8_t *at, uint64_t bytes, uint64_t seed, uint32_t block, uint32_t layer, uint32_t outer) {
    uint64_t state = mixed(mixed(mixed(mixed(seed) + block) + layer) + outer);
    for (uint64_t k = 0; k < bytes; k += 8) {
        state += 0x9e3779b97f4a7c15u;
        uint64_t word = mixed(state);
        uint8_t part[8];
        for (int byte = 0; byte < 8; byte++) part[byte] = (uint8_t)(word >> (8 * byte));
        memcpy(at + k, part, bytes - k < 8 ? bytes - k : 8);
    }
}

static int32_t check(const char *call, kvf_word address, uint32_t pattern, uint32_t layers, uint32_t outers, kvf_word cell_bytes) {
    unsigned __int128 all = (unsigned __int128)layers * outers * cell_bytes;
    if (address != 0 && pattern <= KVF_FILL_RANDOM && all <= MOST_BYTES) return KVF_OK;
    return kvf_refuse(KVF_E_INVALID, "%s: pattern %u, %u layers, %u outers, %llu bytes in a cell", call, pattern, layers, outers,
                      (unsigned long long)cell_bytes);
}

static void fill_one(uint8_t *at, uint32_t pattern, uint64_t seed, uint32_t block, uint32_t layers, uint32_t outers, uint64_t cell_bytes) {
    if (pattern == KVF_FILL_CONSTANT) {
        memset(at, (int)(seed & 255), (size_t)layers * outers * cell_bytes);
        return;
    }
    for (uint32_t layer = 0; layer < layers; layer++)
        for (uint32_t outer = 0; outer < outers; outer++, at += cell_bytes) {
            if (pattern == KVF_FILL_SEQUENTIAL) fill_sequential(at, cell_bytes, (uint64_t)block + layer);
            else fill_random(at, cell_bytes, seed, block, layer, outer);
        }
}

int32_t kvf_fill_block(kvf_word address, uint32_t pattern, kvf_word seed, uint32_t block, uint32_t layers, uint32_t outers,
                       kvf_word cellBytes) {
    int32_t status = check("kvf_fill_block", address, pattern, layers, outers, cellBytes);
    if (status == KVF_OK) fill_one((uint8_t *)(uintptr_t)address, pattern, seed, block, layers, outers, cellBytes);
    return status;
}

/* ---- as a job ---------------------------------------------------------------------------------------------------- */

/* About what one item writes. */
#define ITEM_BYTES ((uint64_t)256 << 10)

typedef struct fill_job {
    kvf_task task; /* first: items get this address */
    kvf_context *ctx;
    uint32_t slot;
    uint32_t pattern;
    uint64_t seed;
    uint8_t *first;
    uint64_t stride;
    uint32_t layers;
    uint32_t outers;
    uint64_t cell_bytes;
    uint32_t count;
    uint32_t per_item;
    uint32_t stopped;
    uint32_t blocks[];
} fill_job;

static void fill_item(kvf_task *task, uint64_t index) {
    fill_job *job = (fill_job *)task;
    if (kvf_job_cancelled(job->ctx, job->slot)) {
        __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
        return;
    }
    uint64_t from = index * job->per_item;
    uint64_t end = from + job->per_item < job->count ? from + job->per_item : job->count;
    for (uint64_t k = from; k < end; k++)
        fill_one(job->first + k * job->stride, job->pattern, job->seed, job->blocks[k], job->layers, job->outers, job->cell_bytes);
}

static void end_fill(kvf_task *task) {
    fill_job *job = (fill_job *)task;
    if (job->stopped) kvf_job_fail(job->ctx, job->slot, KVF_E_CANCELLED, KVF_DONE_TOUCHED, "filling was stopped");
    else kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, (double)job->count);
    free(job);
}

int32_t kvf_fill_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word stride, uint32_t pattern, kvf_word seed,
                     const uint32_t *blocks, uint32_t count, uint32_t layers, uint32_t outers, kvf_word cellBytes, uint32_t threads) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    int32_t status = check("kvf_fill_job", address, pattern, layers, outers, cellBytes);
    if (status != KVF_OK) return status;
    uint64_t bytes = (uint64_t)layers * outers * cellBytes;
    if (threads == 0 || (count > 0 && !blocks) || (unsigned __int128)stride * count > MOST_BYTES)
        return kvf_refuse(KVF_E_INVALID, "kvf_fill_job: no threads, no block ids or too many bytes");
    fill_job *job = calloc(1, sizeof *job + (size_t)count * sizeof *blocks);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory for %u block ids", count);
    job->ctx = ctx;
    job->slot = slot;
    job->pattern = pattern;
    job->seed = seed;
    job->first = (uint8_t *)(uintptr_t)address;
    job->stride = stride;
    job->layers = layers;
    job->outers = outers;
    job->cell_bytes = cellBytes;
    job->count = count;
    if (count > 0) memcpy(job->blocks, blocks, (size_t)count * sizeof *blocks);
    job->per_item = bytes >= ITEM_BYTES ? 1 : (uint32_t)(ITEM_BYTES / (bytes ? bytes : 1));
    uint64_t items = ((uint64_t)count + job->per_item - 1) / job->per_item;
    job->task = (kvf_task){.item = fill_item, .end = end_fill, .items = items ? items : 1, .width = threads};
    status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    free(job);
    return status;
}
