/*
 * copy.c - running a hop between host addresses, on the calling thread or cut into items for the copy pool.
 *
 * The bytes of a hop, in program order, are one line from 0 to hop.bytes. An item is a piece of that line, so small programs
 * share an item and a large row is split over several, with the same code.
 */
#include <pthread.h>
#include <stdlib.h>

#include "context.h"
#include "copy_range.h"
#include "hop.h"
#include "pool.h"
#include "store.h"

#define LEAST_ITEM ((uint64_t)256 << 10)
#define MOST_ITEM ((uint64_t)1 << 20)
#define ITEMS_PER_THREAD 8u
/* Rows above this are split, at multiples of SPLIT_ALIGNMENT. */
#define LEAST_SPLIT_ROW ((uint64_t)64 << 10)
#define SPLIT_ALIGNMENT 4096u

/* ---- on the calling thread ----------------------------------------------------------------------------------- */

static int32_t check_host(const kvf_hop *hop) {
    for (uint32_t p = 0; p < hop->programs; p++)
        if (hop->program[p].src_kind != 0 || hop->program[p].dst_kind != 0)
            return kvf_refuse(KVF_E_INVALID, "hop: program %u is not between host addresses", p);
    return KVF_OK;
}

static int32_t check_flags(uint32_t flags) {
    return flags & ~KVF_COPY_NONTEMPORAL ? kvf_refuse(KVF_E_INVALID, "copy: unknown flags %u", flags) : KVF_OK;
}

int32_t kvf_copy_run(const double *words, kvf_word count, uint32_t flags, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_copy_run: no place for the result");
    int32_t status = check_flags(flags);
    if (status != KVF_OK) return status;
    kvf_hop hop;
    status = kvf_hop_parse(&hop, words, count);
    if (status != KVF_OK) return status;
    status = check_host(&hop);
    if (status == KVF_OK) {
        bool nontemporal = (flags & KVF_COPY_NONTEMPORAL) != 0;
        for (uint32_t p = 0; p < hop.programs; p++) kvf_copy_whole(&hop.program[p], nontemporal);
        if (nontemporal) kvf_rows_fence();
        out[0] = (double)hop.bytes;
    }
    kvf_hop_free(&hop);
    return status;
}

/* ---- as a job ------------------------------------------------------------------------------------------------ */

typedef struct copy_program {
    kvf_ready ready;
    uint64_t start; /* its first byte on the hop's line */
    uint64_t left;  /* bytes that are still to be copied; atomic */
} copy_program;

typedef struct copy_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    bool nontemporal;
    uint32_t stopped; /* atomic: an item saw the cancellation and did nothing */
    uint32_t touched; /* atomic: an item copied */
    uint64_t item_bytes;
    uint64_t done; /* atomic: bytes copied */
    pthread_mutex_t order;
    uint32_t complete; /* under `order`: programs before this one are complete */
    copy_program *programs;
    kvf_hop hop;
} copy_job;

static void free_job(copy_job *job) {
    for (uint32_t p = 0; job->programs && p < job->hop.programs; p++) kvf_ready_free(&job->programs[p].ready);
    free(job->programs);
    pthread_mutex_destroy(&job->order);
    kvf_hop_free(&job->hop);
    free(job);
}

/* Which program holds this byte of the line? */
static uint32_t program_at(const copy_job *job, uint64_t byte) {
    uint32_t low = 0, high = job->hop.programs;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (job->programs[middle].start <= byte) low = middle;
        else high = middle;
    }
    return low;
}

/* Where item `index` begins: its nominal byte moved down to the begin of a row, or to an aligned place in a large one.
 * Neighbouring items compute the same boundary. */
static uint64_t begin_of_item(const copy_job *job, uint64_t index) {
    if (index >= job->task.items) return job->hop.bytes;
    uint64_t byte = index * job->item_bytes;
    const copy_program *program = &job->programs[program_at(job, byte)];
    uint64_t inside = (byte - program->start) % program->ready.program->row_bytes;
    if (program->ready.program->row_bytes > LEAST_SPLIT_ROW) inside %= SPLIT_ALIGNMENT;
    return byte - inside;
}

/* Counts `bytes` of program `p` as copied and says so. */
static void account(copy_job *job, uint32_t p, uint64_t bytes) {
    uint64_t done = __atomic_add_fetch(&job->done, bytes, __ATOMIC_RELAXED);
    uint32_t complete = 0;
    if (__atomic_sub_fetch(&job->programs[p].left, bytes, __ATOMIC_ACQ_REL) == 0) {
        pthread_mutex_lock(&job->order);
        while (job->complete < job->hop.programs &&
               __atomic_load_n(&job->programs[job->complete].left, __ATOMIC_ACQUIRE) == 0)
            job->complete++;
        complete = job->complete;
        pthread_mutex_unlock(&job->order);
    }
    kvf_job_progress(job->ctx, job->slot, complete, (double)done);
}

static void copy_item(kvf_task *task, uint64_t index) {
    copy_job *job = (copy_job *)task;
    if (kvf_job_cancelled(job->ctx, job->slot)) {
        __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
        return;
    }
    uint64_t from = begin_of_item(job, index), to = begin_of_item(job, index + 1);
    if (from >= to) return;
    __atomic_store_n(&job->touched, 1, __ATOMIC_RELAXED);
    for (uint32_t p = program_at(job, from); from < to; p++) {
        const copy_program *program = &job->programs[p];
        uint64_t end = program->start + program->ready.program->bytes;
        if (end > to) end = to;
        kvf_copy_range(&program->ready, from - program->start, end - program->start);
        if (job->nontemporal) kvf_rows_fence();
        account(job, p, end - from);
        from = end;
    }
}

static void end_copy(kvf_task *task) {
    copy_job *job = (copy_job *)task;
    kvf_context *ctx = job->ctx;
    uint32_t slot = job->slot;
    bool stopped = __atomic_load_n(&job->stopped, __ATOMIC_RELAXED) != 0;
    uint32_t flags = __atomic_load_n(&job->touched, __ATOMIC_RELAXED) ? KVF_DONE_TOUCHED : 0;
    uint64_t done = __atomic_load_n(&job->done, __ATOMIC_RELAXED);
    uint64_t all = job->hop.bytes;
    free_job(job);
    if (!stopped) kvf_job_finish(ctx, slot, KVF_OK, flags, (double)done);
    else
        kvf_job_fail(ctx, slot, KVF_E_CANCELLED, flags, "the copy was stopped after %llu of %llu bytes", (unsigned long long)done,
                     (unsigned long long)all);
}

/* Prepares the programs; false without memory. */
static bool ready_programs(copy_job *job) {
    uint64_t start = 0;
    job->programs = calloc(job->hop.programs ? job->hop.programs : 1, sizeof *job->programs);
    if (!job->programs) return false;
    for (uint32_t p = 0; p < job->hop.programs; p++) {
        copy_program *at = &job->programs[p];
        at->start = start;
        at->left = job->hop.program[p].bytes;
        start += at->left;
        if (!kvf_ready_make(&at->ready, &job->hop.program[p], job->nontemporal)) return false;
    }
    return true;
}

static void cut_into_items(copy_job *job, uint32_t threads) {
    uint64_t bytes = job->hop.bytes;
    uint64_t item = bytes / ((uint64_t)threads * ITEMS_PER_THREAD);
    item = item < LEAST_ITEM ? LEAST_ITEM : item > MOST_ITEM ? MOST_ITEM : item;
    job->item_bytes = item / LEAST_SPLIT_ROW * LEAST_SPLIT_ROW;
    job->task.items = bytes ? (bytes + job->item_bytes - 1) / job->item_bytes : 1;
    job->task.width = threads;
    job->task.item = copy_item;
    job->task.end = end_copy;
}

int32_t kvf_copy_job(kvf_word context, uint32_t slot, const double *words, kvf_word count, uint32_t flags, uint32_t threads, const uint32_t *sources,
                     const uint32_t *destinations, uint32_t ids) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    int32_t status = check_flags(flags);
    if (status != KVF_OK) return status;
    if (threads == 0) return kvf_refuse(KVF_E_INVALID, "kvf_copy_job: 0 threads");
    copy_job *job = calloc(1, sizeof *job);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory for a copy");
    pthread_mutex_init(&job->order, NULL);
    status = kvf_hop_parse_copy_beside(&job->hop, words, count, &(kvf_id_lists){{sources, destinations}, ids});
    if (status != KVF_OK) {
        pthread_mutex_destroy(&job->order);
        free(job);
        return status;
    }
    job->ctx = ctx;
    job->slot = slot;
    job->nontemporal = (flags & KVF_COPY_NONTEMPORAL) != 0;
    status = check_host(&job->hop);
    if (status == KVF_OK && !ready_programs(job)) status = kvf_refuse(KVF_E_NOMEM, "no memory for a copy");
    if (status == KVF_OK) {
        cut_into_items(job, threads);
        status = kvf_job_begin(ctx, slot);
    }
    if (status == KVF_OK) {
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    free_job(job);
    return status;
}
