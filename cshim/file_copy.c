/* Jobs that copy between host memory and files: how one begins, counts what is done, and ends. */
#include "file_copy.h"

#include <stdlib.h>

#include "file_lane.h"

/* Hops with more rows than this are prepared on another thread. */
#define INLINE_ROWS 4096u

static void free_job(kvf_file_job *job) {
    kvf_hop_free(&job->hop);
    pthread_mutex_destroy(&job->order);
    free(job->left);
    free(job);
}

void kvf_file_job_fail(kvf_file_job *job, int32_t status) {
    pthread_mutex_lock(&job->order);
    if (job->failed == KVF_OK) {
        job->failed = status;
        kvf_job_set_error(job->ctx, job->slot, "%s", kvf_error_text());
    }
    pthread_mutex_unlock(&job->order);
    __atomic_store_n(&job->stopped, 1, __ATOMIC_RELEASE);
}

void kvf_file_job_leave(kvf_file_job *job) {
    if (__atomic_sub_fetch(&job->parts, 1, __ATOMIC_ACQ_REL) != 0) return;
    kvf_context *ctx = job->ctx;
    uint32_t slot = job->slot;
    uint32_t flags = __atomic_load_n(&job->touched, __ATOMIC_RELAXED) ? KVF_DONE_TOUCHED : 0;
    uint64_t done = __atomic_load_n(&job->done, __ATOMIC_RELAXED), all = job->hop.bytes;
    int32_t failed = job->failed;
    free_job(job);
    if (failed != KVF_OK) kvf_job_finish(ctx, slot, failed, flags, 0);
    else if (done == all) kvf_job_finish(ctx, slot, KVF_OK, flags, (double)done);
    else
        kvf_job_fail(ctx, slot, KVF_E_CANCELLED, flags, "the copy was stopped after %llu of %llu bytes", (unsigned long long)done,
                     (unsigned long long)all);
}

void kvf_file_job_moved(kvf_file_job *job, uint32_t program, uint64_t bytes) {
    uint64_t done = __atomic_add_fetch(&job->done, bytes, __ATOMIC_RELAXED);
    uint32_t complete = 0;
    if (__atomic_sub_fetch(&job->left[program], bytes, __ATOMIC_ACQ_REL) == 0) {
        pthread_mutex_lock(&job->order);
        while (job->complete < job->hop.programs && __atomic_load_n(&job->left[job->complete], __ATOMIC_ACQUIRE) == 0) job->complete++;
        complete = job->complete;
        pthread_mutex_unlock(&job->order);
    }
    kvf_job_progress(job->ctx, job->slot, complete, (double)done);
}

/* Makes the parts and hands them to their lanes. */
static void start_job(kvf_file_job *job) {
    kvf_file_part *parts = NULL;
    int32_t status = kvf_file_parts_make(job, &parts);
    if (status != KVF_OK) kvf_file_job_fail(job, status);
    while (parts) {
        kvf_file_part *next = parts->next;
        if (status == KVF_OK) status = kvf_file_lane_submit(parts->file, parts);
        if (status != KVF_OK) {
            kvf_file_job_fail(job, status);
            kvf_file_part_free(parts);
        }
        parts = next;
    }
    kvf_file_job_leave(job);
}

static void start_item(kvf_task *task, uint64_t index) {
    (void)task;
    (void)index;
}

/* The end of the task, after which the pool does not look at it again. */
static void start_end(kvf_task *task) { start_job((kvf_file_job *)task); }

static int32_t check_sides(const kvf_hop *hop) {
    for (uint32_t p = 0; p < hop->programs; p++) {
        const kvf_program *at = &hop->program[p];
        const bool good = (at->src_kind == 2 && at->dst_kind == 0) || (at->src_kind == 0 && at->dst_kind == 2);
        if (!good) return kvf_refuse(KVF_E_INVALID, "hop: program %u: one side must be a file and the other host memory", p);
    }
    return KVF_OK;
}

int32_t kvf_file_copy_job(kvf_word context, uint32_t slot, const double *words, kvf_word count) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    kvf_file_job *job = calloc(1, sizeof *job);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory for a copy");
    pthread_mutex_init(&job->order, NULL);
    int32_t status = kvf_hop_parse_copy(&job->hop, words, count);
    if (status != KVF_OK) {
        pthread_mutex_destroy(&job->order);
        free(job);
        return status;
    }
    job->ctx = ctx;
    job->slot = slot;
    job->parts = 1;
    job->left = calloc(job->hop.programs ? job->hop.programs : 1, sizeof *job->left);
    status = job->left ? check_sides(&job->hop) : kvf_refuse(KVF_E_NOMEM, "no memory for a copy");
    for (uint32_t p = 0; status == KVF_OK && p < job->hop.programs; p++) job->left[p] = job->hop.program[p].bytes;
    if (status == KVF_OK) status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK && job->hop.rows <= INLINE_ROWS) {
        start_job(job);
        return KVF_OK;
    }
    if (status == KVF_OK) {
        job->task = (kvf_task){.item = start_item, .end = start_end, .items = 1, .width = 1};
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    free_job(job);
    return status;
}
