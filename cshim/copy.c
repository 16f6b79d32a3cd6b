/*
 * copy.c - running a hop between host addresses, on the calling thread or cut into items for the copy pool.
 *
 * The bytes of a hop, in program order, are one line from 0 to hop.bytes. An item is a piece of that line, so small programs
 * share an item and a large row is split over several, with the same code.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "hop.h"
#include "pool.h"
#include "store.h"

#define LEAST_ITEM ((uint64_t)256 << 10)
#define MOST_ITEM ((uint64_t)1 << 20)
#define ITEMS_PER_THREAD 8u
/* Rows above this are split, at multiples of SPLIT_ALIGNMENT. */
#define LEAST_SPLIT_ROW ((uint64_t)64 << 10)
#define SPLIT_ALIGNMENT 4096u
/* Every so many pairs the number of blocks before the pair is kept, to find a block quickly. */
#define MARK_EVERY 256u

/* ---- where a block lies -------------------------------------------------------------------------------------- */

/* A program made ready: how its rows are stored and how its blocks are found. */
typedef struct ready_program {
    const kvf_program *program;
    kvf_rows rows;
    uint64_t *marks; /* blocks before pair MARK_EVERY * k; NULL: count from the first pair */
} ready_program;

typedef struct place {
    uint64_t base;
    uint64_t pair;
    uint64_t step;
} place;

static place place_of(const ready_program *ready, uint64_t block) {
    const kvf_program *program = ready->program;
    place at = {.base = block / program->blocks};
    uint64_t left = block % program->blocks;
    if (!program->run) {
        at.pair = left;
        return at;
    }
    if (ready->marks) {
        uint64_t low = 0, high = (program->pairs + MARK_EVERY - 1) / MARK_EVERY;
        while (high - low > 1) {
            uint64_t middle = low + (high - low) / 2;
            if (ready->marks[middle] <= left) low = middle;
            else high = middle;
        }
        at.pair = low * MARK_EVERY;
        left -= ready->marks[low];
    }
    while (left >= program->run[at.pair]) left -= program->run[at.pair++];
    at.step = left;
    return at;
}

static bool mark_pairs(ready_program *ready) {
    const kvf_program *program = ready->program;
    ready->marks = NULL;
    if (!program->run || program->pairs <= MARK_EVERY) return true;
    ready->marks = malloc((program->pairs + MARK_EVERY - 1) / MARK_EVERY * sizeof(uint64_t));
    if (!ready->marks) return false;
    uint64_t blocks = 0;
    for (uint64_t p = 0; p < program->pairs; p++) {
        if (p % MARK_EVERY == 0) ready->marks[p / MARK_EVERY] = blocks;
        blocks += program->run[p];
    }
    return true;
}

/* To the first step of the next pair. */
static void next_pair(const kvf_program *program, place *at) {
    at->step = 0;
    if (++at->pair < program->pairs) return;
    at->pair = 0;
    at->base++;
}

static void next_block(const kvf_program *program, place *at) {
    if (++at->step >= kvf_program_run(program, at->pair)) next_pair(program, at);
}

static const uint8_t *source_of(const kvf_program *program, const place *at) {
    return (const uint8_t *)(uintptr_t)((int64_t)program->src_base[at->base] + kvf_offset_of(&program->place[0], at->pair) +
                                        (int64_t)at->step * program->src_run);
}

static uint8_t *destination_of(const kvf_program *program, const place *at) {
    return (uint8_t *)(uintptr_t)((int64_t)program->dst_base[at->base] + kvf_offset_of(&program->place[1], at->pair) +
                                  (int64_t)at->step * program->dst_run);
}

/* ---- copying a part of a program ----------------------------------------------------------------------------- */

/* Rows [first, first + count) of one block whose addresses with all loop indices zero are given. */
static void copy_rows_of_block(const ready_program *ready, uint8_t *dst, const uint8_t *src, uint64_t first, uint64_t count) {
    const kvf_program *program = ready->program;
    if (program->loops == 0) {
        ready->rows(dst, src, program->row_bytes, 1, 0, 0, NULL);
        return;
    }
    uint32_t inner = program->loops - 1;
    uint64_t index[KVF_MAX_LOOPS];
    for (uint32_t k = program->loops; k-- > 0; first /= program->count[k]) {
        index[k] = first % program->count[k];
        dst += (int64_t)index[k] * program->dst_stride[k];
        src += (int64_t)index[k] * program->src_stride[k];
    }
    while (count > 0) {
        uint64_t take = program->count[inner] - index[inner];
        if (take > count) take = count;
        ready->rows(dst, src, program->row_bytes, take, program->dst_stride[inner], program->src_stride[inner], NULL);
        count -= take;
        if (count == 0) return;
        /* The inner loop is through: back to its start, and on with the loops around it. */
        dst -= (int64_t)index[inner] * program->dst_stride[inner];
        src -= (int64_t)index[inner] * program->src_stride[inner];
        index[inner] = 0;
        for (uint32_t k = inner; k-- > 0;) {
            dst += program->dst_stride[k];
            src += program->src_stride[k];
            if (++index[k] < program->count[k]) break;
            dst -= (int64_t)program->count[k] * program->dst_stride[k];
            src -= (int64_t)program->count[k] * program->src_stride[k];
            index[k] = 0;
        }
    }
}

/* Whole blocks that are one row each: the steps of a run are the rows. */
static void copy_flat_blocks(const ready_program *ready, place at, uint64_t count) {
    const kvf_program *program = ready->program;
    while (count > 0) {
        uint64_t take = kvf_program_run(program, at.pair) - at.step;
        if (take > count) take = count;
        const uint8_t *src = source_of(program, &at);
        uint8_t *dst = destination_of(program, &at);
        count -= take;
        next_pair(program, &at);
        ready->rows(dst, src, program->row_bytes, take, program->dst_run, program->src_run, count > 0 ? source_of(program, &at) : NULL);
    }
}

static void copy_blocks(const ready_program *ready, place at, uint64_t count) {
    const kvf_program *program = ready->program;
    if (program->loops == 0) {
        copy_flat_blocks(ready, at, count);
        return;
    }
    for (; count > 0; count--, next_block(program, &at)) {
        const uint8_t *src = source_of(program, &at);
        uint8_t *dst = destination_of(program, &at);
        if (program->loops == 1) {
            ready->rows(dst, src, program->row_bytes, program->count[0], program->dst_stride[0], program->src_stride[0], NULL);
        } else if (program->loops == 2) {
            for (uint64_t k = program->count[0]; k > 0; k--, dst += program->dst_stride[0], src += program->src_stride[0])
                ready->rows(dst, src, program->row_bytes, program->count[1], program->dst_stride[1], program->src_stride[1], NULL);
        } else {
            copy_rows_of_block(ready, dst, src, 0, program->rows_per_block);
        }
    }
}

static void copy_rows(const ready_program *ready, uint64_t row, uint64_t count) {
    const kvf_program *program = ready->program;
    uint64_t per_block = program->rows_per_block;
    uint64_t inside = row % per_block;
    if (inside > 0 && count > 0) {
        uint64_t take = count < per_block - inside ? count : per_block - inside;
        place at = place_of(ready, row / per_block);
        copy_rows_of_block(ready, destination_of(program, &at), source_of(program, &at), inside, take);
        row += take;
        count -= take;
    }
    uint64_t blocks = count / per_block;
    if (blocks > 0) copy_blocks(ready, place_of(ready, row / per_block), blocks);
    row += blocks * per_block;
    count -= blocks * per_block;
    if (count > 0) {
        place at = place_of(ready, row / per_block);
        copy_rows_of_block(ready, destination_of(program, &at), source_of(program, &at), 0, count);
    }
}

/* `bytes` bytes of one row from `skip` on. */
static void copy_part_of_row(const ready_program *ready, uint64_t row, uint64_t skip, uint64_t bytes) {
    const kvf_program *program = ready->program;
    place at = place_of(ready, row / program->rows_per_block);
    int64_t dst = (int64_t)(uintptr_t)destination_of(program, &at);
    int64_t src = (int64_t)(uintptr_t)source_of(program, &at);
    uint64_t rest = row % program->rows_per_block;
    for (uint32_t k = program->loops; k-- > 0; rest /= program->count[k]) {
        dst += (int64_t)(rest % program->count[k]) * program->dst_stride[k];
        src += (int64_t)(rest % program->count[k]) * program->src_stride[k];
    }
    ready->rows((uint8_t *)(uintptr_t)dst + skip, (const uint8_t *)(uintptr_t)src + skip, bytes, 1, 0, 0, NULL);
}

/* Bytes [from, to) of a program. Only rows above LEAST_SPLIT_ROW may be cut. */
static void copy_range(const ready_program *ready, uint64_t from, uint64_t to) {
    uint64_t row_bytes = ready->program->row_bytes;
    uint64_t row = from / row_bytes;
    uint64_t skip = from % row_bytes;
    if (skip > 0) {
        uint64_t part = row_bytes - skip < to - from ? row_bytes - skip : to - from;
        copy_part_of_row(ready, row, skip, part);
        from += part;
        row++;
    }
    uint64_t whole = (to - from) / row_bytes;
    copy_rows(ready, row, whole);
    uint64_t rest = (to - from) % row_bytes;
    if (rest > 0) copy_part_of_row(ready, row + whole, 0, rest);
}

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
        for (uint32_t p = 0; p < hop.programs; p++) {
            ready_program ready = {.program = &hop.program[p], .rows = kvf_rows_for(hop.program[p].row_bytes, nontemporal)};
            place first = {0, 0, 0};
            copy_blocks(&ready, first, ready.program->bases * ready.program->blocks);
        }
        if (nontemporal) kvf_rows_fence();
        out[0] = (double)hop.bytes;
    }
    kvf_hop_free(&hop);
    return status;
}

/* ---- as a job ------------------------------------------------------------------------------------------------ */

typedef struct copy_program {
    ready_program ready;
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
    for (uint32_t p = 0; job->programs && p < job->hop.programs; p++) free(job->programs[p].ready.marks);
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
        copy_range(&program->ready, from - program->start, end - program->start);
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
        at->ready.program = &job->hop.program[p];
        at->ready.rows = kvf_rows_for(at->ready.program->row_bytes, job->nontemporal);
        at->start = start;
        at->left = at->ready.program->bytes;
        start += at->left;
        if (!mark_pairs(&at->ready)) return false;
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

int32_t kvf_copy_job(kvf_word context, uint32_t slot, const double *words, kvf_word count, uint32_t flags, uint32_t threads) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    int32_t status = check_flags(flags);
    if (status != KVF_OK) return status;
    if (threads == 0) return kvf_refuse(KVF_E_INVALID, "kvf_copy_job: 0 threads");
    copy_job *job = calloc(1, sizeof *job);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory for a copy");
    pthread_mutex_init(&job->order, NULL);
    status = kvf_hop_parse_copy(&job->hop, words, count);
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
