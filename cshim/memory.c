#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fcntl.h>

#include "context.h"
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

#define HUGE_PAGE ((uint64_t)2 << 20)
#define MOST_BYTES ((uint64_t)1 << 53)
/* Small enough to share threads and to stop, large enough that a call for each does not count: MADV_COLLAPSE begins by
 * talking to every processor. Multiples of a huge page. */
#define TOUCH_LEAST ((uint64_t)16 << 20)
#define TOUCH_MOST ((uint64_t)64 << 20)

static uint64_t page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

/* ---- mapping ------------------------------------------------------------------------------------------------- */

/* Maps at a multiple of a huge page: more is reserved than needed, and what is over is given back. */
static void *map_aligned(uint64_t bytes, int flags, int descriptor) {
    uint8_t *reserved = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return MAP_FAILED;
    uint8_t *start = (uint8_t *)(uintptr_t)round_up((uintptr_t)reserved, HUGE_PAGE);
    uint8_t *mapped = mmap(start, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, descriptor, 0);
    if (mapped == MAP_FAILED) {
        int why = errno;
        munmap(reserved, bytes + HUGE_PAGE);
        errno = why;
        return MAP_FAILED;
    }
    if (start > reserved) munmap(reserved, (size_t)(start - reserved));
    uint64_t behind = HUGE_PAGE - (uint64_t)(start - reserved);
    if (behind > 0) munmap(start + bytes, behind);
    return mapped;
}

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

int32_t kvf_memory_map(kvf_word bytes, uint32_t flags, double *out) {
    if (!out || bytes == 0 || bytes > MOST_BYTES || (flags & ~(KVF_MEMORY_HUGE | KVF_MEMORY_SHARED | KVF_MEMORY_GUARDED)))
        return kvf_refuse(KVF_E_INVALID, "kvf_memory_map: %llu bytes, flags %u", (unsigned long long)bytes, flags);
    bool huge = (flags & KVF_MEMORY_HUGE) && bytes >= HUGE_PAGE;
    uint64_t mapped = round_up(bytes, page_bytes());
    int descriptor = -1;
    int how = MAP_PRIVATE | MAP_ANONYMOUS;
    if (flags & KVF_MEMORY_SHARED) {
        descriptor = sealed_file(mapped, (flags & KVF_MEMORY_GUARDED) != 0);
        if (descriptor < 0) {
            kvf_refuse_errno(errno, "a memory file of %llu bytes", (unsigned long long)mapped);
            return KVF_E_NOMEM;
        }
        how = MAP_SHARED;
    }
    void *address = huge ? map_aligned(mapped, how, descriptor) : mmap(NULL, mapped, PROT_READ | PROT_WRITE, how, descriptor, 0);
    if (address == MAP_FAILED) {
        kvf_refuse_errno(errno, "%llu bytes of memory", (unsigned long long)mapped);
        if (descriptor >= 0) close(descriptor);
        return KVF_E_NOMEM;
    }
    /* The mapping above keeps its right to write; every later one, and every write to the file, is refused. */
    if ((flags & KVF_MEMORY_SHARED) && (flags & KVF_MEMORY_GUARDED) &&
        fcntl(descriptor, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
        kvf_refuse_errno(errno, "a memory file that others may only read");
        munmap(address, mapped);
        close(descriptor);
        return KVF_E_NOMEM;
    }
    if (huge) madvise(address, mapped, MADV_HUGEPAGE); /* advice only: a kernel without it maps small pages */
    out[0] = (double)(uintptr_t)address;
    out[1] = (double)mapped;
    out[2] = descriptor;
    return KVF_OK;
}

static int32_t check_mapping(const char *name, kvf_word address, kvf_word bytes) {
    uint64_t page = page_bytes();
    if (address == 0 || bytes == 0 || address % page || bytes % page || bytes > MOST_BYTES || address > MOST_BYTES)
        return kvf_refuse(KVF_E_INVALID, "%s: not whole pages of a mapping", name);
    return KVF_OK;
}

static int32_t unmap(uint64_t address, uint64_t bytes, int32_t descriptor) {
    int32_t status = munmap((void *)(uintptr_t)address, bytes) == 0 ? KVF_OK : kvf_refuse_errno(errno, "munmap");
    if (descriptor >= 0 && close(descriptor) != 0 && status == KVF_OK) status = kvf_refuse_errno(errno, "close");
    return status;
}

int32_t kvf_memory_unmap(kvf_word address, kvf_word bytes, int32_t descriptor) {
    int32_t status = check_mapping("kvf_memory_unmap", address, bytes);
    return status == KVF_OK ? unmap(address, bytes, descriptor) : status;
}

/* ---- as jobs ------------------------------------------------------------------------------------------------- */

typedef struct memory_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    uint64_t address;
    uint64_t bytes;
    int32_t descriptor;
    uint64_t item_bytes;
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
    int32_t status = unmap(job->address, job->bytes, job->descriptor);
    if (status == KVF_OK) kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, (double)job->bytes);
    else kvf_job_fail(job->ctx, job->slot, status, 0, "%s", kvf_error_text());
}

static void end_unmap(kvf_task *task) { free(task); }

int32_t kvf_memory_unmap_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, int32_t descriptor) {
    int32_t status = check_mapping("kvf_memory_unmap_job", address, bytes);
    if (status != KVF_OK) return status;
    memory_job job = {.task = {.item = unmap_item, .end = end_unmap, .items = 1, .width = 1},
                      .address = address,
                      .bytes = bytes,
                      .descriptor = descriptor};
    return start(context, slot, &job);
}

/* A write that changes nothing, whoever else writes there. */
static void touch_byte(uint8_t *at) { __atomic_fetch_or(at, 0, __ATOMIC_RELAXED); }

/* One page of each huge page is touched, and the kernel asked to make huge pages of what is there: the rest of them it
 * fills with zeros. So shared memory gets huge pages even where the system's setting keeps them from it, and is ready ten
 * times as soon as page by page. False when not all of it could be had so. */
static bool touch_huge(uint8_t *at, uint64_t bytes) {
    if ((uintptr_t)at % HUGE_PAGE || bytes % HUGE_PAGE) return false;
    for (uint64_t k = 0; k < bytes; k += HUGE_PAGE) touch_byte(at + k);
    return madvise(at, bytes, MADV_COLLAPSE) == 0;
}

static void touch_item(kvf_task *task, uint64_t index) {
    memory_job *job = (memory_job *)task;
    if (kvf_job_cancelled(job->ctx, job->slot)) {
        __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
        return;
    }
    uint64_t from = index * job->item_bytes;
    uint64_t bytes = job->bytes - from < job->item_bytes ? job->bytes - from : job->item_bytes;
    uint8_t *at = (uint8_t *)(uintptr_t)(job->address + from);
    uint64_t huge = bytes - bytes % HUGE_PAGE;
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

int32_t kvf_memory_touch_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, uint32_t threads) {
    int32_t status = check_mapping("kvf_memory_touch_job", address, bytes);
    if (status != KVF_OK) return status;
    if (threads == 0) return kvf_refuse(KVF_E_INVALID, "kvf_memory_touch_job: 0 threads");
    uint64_t item = round_up(bytes / threads / 4 + 1, HUGE_PAGE);
    if (item < TOUCH_LEAST) item = TOUCH_LEAST;
    if (item > TOUCH_MOST) item = TOUCH_MOST;
    memory_job job = {.task = {.item = touch_item, .end = end_touch, .items = (bytes + item - 1) / item, .width = threads},
                      .address = address,
                      .bytes = bytes,
                      .descriptor = -1,
                      .item_bytes = item};
    return start(context, slot, &job);
}
