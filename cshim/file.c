#include "file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file_lane.h"
#include "pool.h"
#include "thread.h"

#define MOST_DEPTH 256u
#define CLOSE_NANOS 2000000000u

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static kvf_file *open_files;
static uint32_t last_number;

/* ---- references ---------------------------------------------------------------------------------------------- */

void kvf_file_release(kvf_file *file) {
    if (__atomic_sub_fetch(&file->references, 1, __ATOMIC_ACQ_REL) != 0) return;
    if (file->direct >= 0) close(file->direct);
    if (file->descriptor >= 0) close(file->descriptor);
    if (file->wake >= 0) close(file->wake);
    if (file->ctx) kvf_context_release(file->ctx);
    pthread_cond_destroy(&file->work);
    pthread_cond_destroy(&file->ended);
    pthread_mutex_destroy(&file->lock);
    free(file->path);
    free(file);
}

kvf_file *kvf_file_find(uint32_t number) {
    pthread_mutex_lock(&table_lock);
    kvf_file *at = open_files;
    while (at && at->number != number) at = at->next;
    if (at) __atomic_fetch_add(&at->references, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&table_lock);
    if (!at) kvf_set_error("file %u is closed or was never opened", number);
    return at;
}

/* Takes a file out of the table; the table's reference passes to the caller. */
static kvf_file *withdraw(uint32_t number) {
    pthread_mutex_lock(&table_lock);
    kvf_file **at = &open_files;
    while (*at && (*at)->number != number) at = &(*at)->next;
    kvf_file *found = *at;
    if (found) *at = found->next;
    pthread_mutex_unlock(&table_lock);
    return found;
}

/* ---- the context closes -------------------------------------------------------------------------------------- */

static void stop_member(kvf_member *member) {
    kvf_file *file = (kvf_file *)member;
    pthread_mutex_lock(&file->lock);
    file->closing = true;
    kvf_file_lane_wake(file);
    pthread_mutex_unlock(&file->lock);
}

static uint32_t wait_for_threads(kvf_file *file, uint64_t deadline) {
    pthread_mutex_lock(&file->lock);
    while (file->threads > 0 && kvf_condition_wait_until(&file->ended, &file->lock, deadline) == KVF_OK) {
    }
    uint32_t left = file->threads;
    pthread_mutex_unlock(&file->lock);
    return left;
}

static uint32_t join_member(kvf_member *member, uint64_t deadline) {
    kvf_file *file = (kvf_file *)member;
    uint32_t left = wait_for_threads(file, deadline);
    /* Nobody can name it any more. Threads that hang keep it. */
    kvf_file *listed = withdraw(file->number);
    if (listed) kvf_file_release(listed);
    return left;
}

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

typedef struct open_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    uint32_t flags;
    uint64_t bytes;
    kvf_file *file;
} open_job;

static void open_item(kvf_task *task, uint64_t index) {
    (void)index;
    open_job *job = (open_job *)task;
    kvf_file *file = job->file;
    uint32_t number = 0;
    int32_t status = kvf_file_open(file, job->flags, job->bytes);
    if (status == KVF_OK) {
        file->member.stop = stop_member;
        file->member.join = join_member;
        kvf_context_retain(job->ctx);
        file->ctx = job->ctx;
        /* Before the context knows it: its close takes what it knows out of the table. */
        pthread_mutex_lock(&table_lock);
        file->number = number = ++last_number;
        file->next = open_files;
        open_files = file;
        pthread_mutex_unlock(&table_lock);
        status = kvf_context_attach(job->ctx, &file->member);
        if (status != KVF_OK) {
            /* The context was closed meanwhile: nobody hears of the file, and nobody may find it. */
            withdraw(number);
            if (file->made) unlink(file->path);
        }
    }
    if (status != KVF_OK) {
        kvf_job_set_error(job->ctx, job->slot, "%s", kvf_error_text());
        kvf_file_release(file);
        kvf_job_finish(job->ctx, job->slot, status, 0, 0);
        return;
    }
    kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, number);
}

static void end_open(kvf_task *task) { free(task); }

int32_t kvf_file_open_job(kvf_word context, uint32_t slot, const char *path, uint32_t flags, kvf_word bytes, uint32_t depth) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    const uint32_t known = KVF_FILE_CREATE | KVF_FILE_TEMPORARY | KVF_FILE_REPLACE | KVF_FILE_BUFFERED | KVF_FILE_THREADS;
    if (!path || !*path || (flags & ~known) || bytes == 0 || bytes > INT64_MAX || depth == 0 || depth > MOST_DEPTH)
        return kvf_refuse(KVF_E_INVALID, "kvf_file_open_job: a path, known flags, bytes and a depth up to %u are needed", MOST_DEPTH);
    open_job *job = calloc(1, sizeof *job);
    kvf_file *file = calloc(1, sizeof *file);
    char *copy = strdup(path);
    if (!job || !file || !copy) {
        free(job);
        free(file);
        free(copy);
        return kvf_refuse(KVF_E_NOMEM, "no memory to open a file");
    }
    file->path = copy;
    file->descriptor = file->direct = file->wake = -1;
    file->references = 1;
    file->named = !(flags & KVF_FILE_TEMPORARY);
    file->no_ring = (flags & KVF_FILE_THREADS) != 0;
    file->depth = depth;
    pthread_mutex_init(&file->lock, NULL);
    pthread_cond_init(&file->work, NULL);
    kvf_condition_init(&file->ended);
    *job = (open_job){.task = {.item = open_item, .end = end_open, .items = 1, .width = 1},
                      .ctx = ctx,
                      .slot = slot,
                      .flags = flags,
                      .bytes = bytes,
                      .file = file};
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    kvf_file_release(file);
    free(job);
    return status;
}

static void close_item(kvf_task *task, uint64_t index) {
    (void)index;
    open_job *job = (open_job *)task;
    kvf_file *file = job->file;
    stop_member(&file->member);
    uint32_t left = wait_for_threads(file, kvf_now_nanos() + CLOSE_NANOS);
    if (left == 0 && file->named) fdatasync(file->descriptor);
    /* With nobody else left this closes the descriptors, and the lock on the file is gone when the job ends. */
    if (kvf_context_detach(job->ctx, &file->member)) kvf_file_release(file);
    else {
        /* The context closes and waits for the member itself, which may not go before. */
        pthread_mutex_lock(&table_lock);
        file->next = open_files;
        open_files = file;
        pthread_mutex_unlock(&table_lock);
    }
    kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, left);
}

int32_t kvf_file_close_job(kvf_word context, uint32_t slot, uint32_t number) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    open_job *job = calloc(1, sizeof *job);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory to close a file");
    kvf_file *file = withdraw(number);
    if (!file || file->ctx != ctx) {
        if (file) {
            pthread_mutex_lock(&table_lock);
            file->next = open_files;
            open_files = file;
            pthread_mutex_unlock(&table_lock);
        }
        free(job);
        return kvf_refuse(KVF_E_INVALID, "file %u is closed or was never opened here", number);
    }
    *job = (open_job){.task = {.item = close_item, .end = end_open, .items = 1, .width = 1}, .ctx = ctx, .slot = slot, .file = file};
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    pthread_mutex_lock(&table_lock);
    file->next = open_files;
    open_files = file;
    pthread_mutex_unlock(&table_lock);
    free(job);
    return status;
}

int32_t kvf_file_facts(uint32_t number, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_file_facts: no place for the result");
    kvf_file *file = kvf_file_find(number);
    if (!file) return KVF_E_INVALID;
    pthread_mutex_lock(&file->lock);
    out[0] = (double)file->bytes;
    out[1] = file->direct >= 0;
    out[2] = file->memory_alignment;
    out[3] = file->offset_alignment;
    out[4] = file->ring;
    out[5] = file->descriptor;
    pthread_mutex_unlock(&file->lock);
    kvf_file_release(file);
    return KVF_OK;
}
