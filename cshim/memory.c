#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fcntl.h>

#include "context.h"
#include "mapping.h"
#include "pool.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older ones refuse it and pages are written one by one */
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

#define MOST_BYTES ((uint64_t)1 << 53)
/* Small enough to share threads and to stop, large enough that a call for each does not count: MADV_COLLAPSE begins by
 * talking to every processor. Multiples of a huge page. */
#define TOUCH_LEAST ((uint64_t)16 << 20)
#define TOUCH_MOST ((uint64_t)64 << 20)

static uint64_t page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

/* ---- mapping ------------------------------------------------------------------------------------------------- */

/* A memory file of that size that can neither shrink nor grow any more; -1 with errno set. `open` leaves room for
 * another seal. */
static int sealed_file(uint64_t bytes, bool open) {
    int descriptor = memfd_create("kvferry", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (descriptor < 0) return -1;
    if (ftruncate(descriptor, (off_t)bytes) == 0 &&
        fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | (open ? 0 : F_SEAL_SEAL)) == 0)
        return descriptor;
    int why = errno;
    close(descriptor);
    errno = why;
    return -1;
}

/* The files of a mapping. */
typedef struct memory_files {
    uint32_t count;
    int descriptor[KVF_MEMORY_FILES];
} memory_files;

static int32_t close_files(const memory_files *files) {
    int32_t status = KVF_OK;
    for (uint32_t k = 0; k < files->count; k++)
        if (close(files->descriptor[k]) != 0 && status == KVF_OK) status = kvf_refuse_errno(errno, "close");
    return status;
}

/* Adds a file of that size and maps it, at `at` unless that is NULL. MAP_FAILED with the text set; the file is among the
 * files then if it was made. */
static void *map_file(memory_files *files, void *at, uint64_t bytes, bool guarded) {
    int descriptor = sealed_file(bytes, guarded);
    if (descriptor < 0) {
        kvf_refuse_errno(errno, "a memory file of %llu bytes", (unsigned long long)bytes);
        return MAP_FAILED;
    }
    files->descriptor[files->count++] = descriptor;
    void *mapped = mmap(at, bytes, PROT_READ | PROT_WRITE, at ? MAP_SHARED | MAP_FIXED : MAP_SHARED, descriptor, 0);
    if (mapped == MAP_FAILED) {
        kvf_refuse_errno(errno, "%llu bytes of memory", (unsigned long long)bytes);
        return MAP_FAILED;
    }
    /* The mapping above keeps its right to write; every later one, and every write to the file, is refused. */
    if (guarded && fcntl(descriptor, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
        kvf_refuse_errno(errno, "a memory file that others may only read");
        if (!at) munmap(mapped, bytes);
        return MAP_FAILED;
    }
    return mapped;
}

/* Maps what was asked for, at `at` unless that is NULL. MAP_FAILED with the text set. */
static void *map_all(memory_files *files, void *at, uint64_t bytes, uint64_t step, uint32_t flags) {
    if (!(flags & KVF_MEMORY_SHARED)) {
        int how = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
        void *mapped = mmap(at, bytes, PROT_READ | PROT_WRITE, how, -1, 0);
        if (mapped == MAP_FAILED) kvf_refuse_errno(errno, "%llu bytes of memory", (unsigned long long)bytes);
        return mapped;
    }
    const bool guarded = (flags & KVF_MEMORY_GUARDED) != 0;
    if (bytes <= step) return map_file(files, at, bytes, guarded);
    for (uint64_t from = 0; from < bytes; from += step) {
        uint64_t part = bytes - from < step ? bytes - from : step;
        if (map_file(files, (uint8_t *)at + from, part, guarded) == MAP_FAILED) return MAP_FAILED;
    }
    return at;
}

int32_t kvf_memory_map(kvf_word bytes, uint32_t flags, kvf_word step, double *out) {
    if (!out || bytes == 0 || bytes > MOST_BYTES || (flags & ~(KVF_MEMORY_HUGE | KVF_MEMORY_SHARED | KVF_MEMORY_GUARDED)))
        return kvf_refuse(KVF_E_INVALID, "kvf_memory_map: %llu bytes, flags %u", (unsigned long long)bytes, flags);
    uint64_t mapped = round_up(bytes, page_bytes());
    if (step == 0) step = round_up(mapped, KVF_HUGE_PAGE);
    if (step % KVF_HUGE_PAGE || (mapped - 1) / step >= KVF_MEMORY_FILES)
        return kvf_refuse(KVF_E_INVALID, "kvf_memory_map: %llu bytes in files of %llu", (unsigned long long)bytes, (unsigned long long)step);
    bool huge = (flags & KVF_MEMORY_HUGE) && bytes >= KVF_HUGE_PAGE;
    void *reserved = NULL;
    if (huge || ((flags & KVF_MEMORY_SHARED) && mapped > step)) reserved = kvf_mapping_reserve(mapped);
    if (reserved == MAP_FAILED) {
        kvf_refuse_errno(errno, "%llu bytes of addresses", (unsigned long long)mapped);
        return KVF_E_NOMEM;
    }
    memory_files files = {0};
    void *address = map_all(&files, reserved, mapped, step, flags);
    if (address == MAP_FAILED) {
        for (uint32_t k = 0; k < files.count; k++) close(files.descriptor[k]);
        if (reserved) munmap(reserved, mapped);
        return KVF_E_NOMEM;
    }
    if (huge) madvise(address, mapped, MADV_HUGEPAGE); /* advice only: a kernel without it maps small pages */
    out[0] = (double)(uintptr_t)address;
    out[1] = (double)mapped;
    out[2] = -1;
    for (uint32_t k = 0; k < files.count; k++) out[2 + k] = files.descriptor[k];
    return KVF_OK;
}

static int32_t check_mapping(const char *name, kvf_word address, kvf_word bytes) {
    uint64_t page = page_bytes();
    if (address == 0 || bytes == 0 || address % page || bytes % page || bytes > MOST_BYTES || address > MOST_BYTES)
        return kvf_refuse(KVF_E_INVALID, "%s: not whole pages of a mapping", name);
    return KVF_OK;
}

static int32_t files_from(const char *name, const double *descriptors, uint32_t count, memory_files *files) {
    if (count > KVF_MEMORY_FILES || (count > 0 && !descriptors)) return kvf_refuse(KVF_E_INVALID, "%s: %u descriptors", name, count);
    files->count = count;
    for (uint32_t k = 0; k < count; k++) files->descriptor[k] = (int)descriptors[k];
    return KVF_OK;
}

static int32_t unmap(uint64_t address, uint64_t bytes, const memory_files *files) {
    int32_t status = munmap((void *)(uintptr_t)address, bytes) == 0 ? KVF_OK : kvf_refuse_errno(errno, "munmap");
    int32_t closed = close_files(files);
    return status == KVF_OK ? closed : status;
}

int32_t kvf_memory_unmap(kvf_word address, kvf_word bytes, const double *descriptors, uint32_t count) {
    memory_files files = {0};
    int32_t status = check_mapping("kvf_memory_unmap", address, bytes);
    if (status == KVF_OK) status = files_from("kvf_memory_unmap", descriptors, count, &files);
    return status == KVF_OK ? unmap(address, bytes, &files) : status;
}

/* ---- as jobs ------------------------------------------------------------------------------------------------- */

typedef struct memory_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    uint64_t address;
    uint64_t bytes;
    memory_files files; /* to close */
    uint64_t step;      /* bytes of a file */
    uint64_t item_bytes;
    bool huge_only;
    uint32_t refused; /* atomic: the kernel has no huge pages, or no more of them */
    uint32_t stopped; /* atomic */
} memory_job;

static int32_t start(kvf_word context, uint32_t slot, const memory_job *wanted) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    memory_job *job = malloc(sizeof *job);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory for a job");
    *job = *wanted;
    job->ctx = ctx;
    job->slot = slot;
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        status = kvf_pool_submit(&job->task);
        if (status == KVF_OK) return KVF_OK;
        kvf_job_drop(ctx, slot);
    }
    free(job);
    return status;
}

static void unmap_item(kvf_task *task, uint64_t index) {
    (void)index;
    memory_job *job = (memory_job *)task;
    /* Not asked whether it was cancelled: memory that is to go must go, also while the context closes. */
    int32_t status = unmap(job->address, job->bytes, &job->files);
    if (status == KVF_OK) kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, (double)job->bytes);
    else kvf_job_fail(job->ctx, job->slot, status, 0, "%s", kvf_error_text());
}

static void end_unmap(kvf_task *task) { free(task); }

int32_t kvf_memory_unmap_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, const double *descriptors, uint32_t count) {
    memory_job job = {.task = {.item = unmap_item, .end = end_unmap, .items = 1, .width = 1}, .address = address, .bytes = bytes};
    int32_t status = check_mapping("kvf_memory_unmap_job", address, bytes);
    if (status == KVF_OK) status = files_from("kvf_memory_unmap_job", descriptors, count, &job.files);
    return status == KVF_OK ? start(context, slot, &job) : status;
}

/* A write that changes nothing, whoever else writes there. */
static void touch_byte(uint8_t *at) { __atomic_fetch_or(at, 0, __ATOMIC_RELAXED); }

/* One page of each huge page is touched, and the kernel asked to make huge pages of what is there: the rest of them it
 * fills with zeros. So shared memory gets huge pages even where the system's setting keeps them from it, and is ready ten
 * times as soon as page by page. False with errno set when not all of it could be had so. */
static bool touch_huge(uint8_t *at, uint64_t bytes) {
    errno = EINVAL;
    if ((uintptr_t)at % KVF_HUGE_PAGE || bytes % KVF_HUGE_PAGE) return false;
    for (uint64_t k = 0; k < bytes; k += KVF_HUGE_PAGE) touch_byte(at + k);
    return madvise(at, bytes, MADV_COLLAPSE) == 0;
}

static void touch_item(kvf_task *task, uint64_t index) {
    memory_job *job = (memory_job *)task;
    if (kvf_job_cancelled(job->ctx, job->slot)) {
        __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
        return;
    }
    /* Items that follow each other lie in different files: threads that are at work at the same time hardly meet. */
    uint64_t files = (job->bytes - 1) / job->step + 1;
    uint64_t file = index % files * job->step, part = index / files * job->item_bytes;
    uint64_t left = job->bytes - file < job->step ? job->bytes - file : job->step;
    if (part >= left) return; /* the last file is shorter than the others */
    uint64_t from = file + part;
    uint64_t bytes = left - part < job->item_bytes ? left - part : job->item_bytes;
    uint8_t *at = (uint8_t *)(uintptr_t)(job->address + from);
    uint64_t huge = bytes - bytes % KVF_HUGE_PAGE;
    if (job->huge_only) {
        /* Looking for more of what has run out takes long, and takes memory that others need. */
        if (huge > 0 && !__atomic_load_n(&job->refused, __ATOMIC_RELAXED) && !touch_huge(at, huge) && errno != EAGAIN)
            __atomic_store_n(&job->refused, 1, __ATOMIC_RELAXED);
        return;
    }
    if (huge > 0 && touch_huge(at, huge)) {
        at += huge;
        bytes -= huge;
    }
    if (bytes == 0 || madvise(at, bytes, MADV_POPULATE_WRITE) == 0) return;
    uint64_t page = page_bytes();
    for (uint64_t k = 0; k < bytes; k += page) touch_byte(at + k);
}

static void end_touch(kvf_task *task) {
    memory_job *job = (memory_job *)task;
    if (job->stopped) kvf_job_fail(job->ctx, job->slot, KVF_E_CANCELLED, 0, "touching memory was stopped");
    else kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, (double)job->bytes);
    free(job);
}

int32_t kvf_memory_touch_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, kvf_word step, uint32_t threads,
                             uint32_t flags) {
    int32_t status = check_mapping("kvf_memory_touch_job", address, bytes);
    if (status != KVF_OK) return status;
    if (step == 0 || step > bytes) step = bytes;
    if (threads == 0 || step % page_bytes() || (flags & ~KVF_TOUCH_HUGE))
        return kvf_refuse(KVF_E_INVALID, "kvf_memory_touch_job: %u threads, files of %llu, flags %u", threads, (unsigned long long)step, flags);
    uint64_t item = round_up(bytes / threads / 4 + 1, KVF_HUGE_PAGE);
    if (item < TOUCH_LEAST) item = TOUCH_LEAST;
    if (item > TOUCH_MOST) item = TOUCH_MOST;
    uint64_t parts = (step - 1) / item + 1, files = (bytes - 1) / step + 1;
    memory_job job = {.task = {.item = touch_item, .end = end_touch, .items = parts * files, .width = threads},
                      .address = address,
                      .bytes = bytes,
                      .step = step,
                      .item_bytes = item,
                      .huge_only = (flags & KVF_TOUCH_HUGE) != 0};
    return start(context, slot, &job);
}
