#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "file_lane.h"
#include "pool.h"
#include "thread.h"

#define MOST_DEPTH 256u
#define CLOSE_NANOS 2000000000u
#define GUESSED_ALIGNMENT 4096u
#define TMPFS 0x01021994u
#define RAMFS 0x858458f6u
#define FUSE 0x65735546u
/* statx's field of this name is younger than many C libraries: mask, and offsets of two words in the result. */
#define DIOALIGN 0x2000u
#define DIO_MEMORY 0x98
#define DIO_OFFSET 0x9c
#define ZERO_BYTES ((size_t)1 << 20)

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

/* ---- opening ------------------------------------------------------------------------------------------------- */

static int32_t refuse_file(int number, const char *path, const char *what) {
    kvf_refuse_errno(number, "%s: %s", path, what);
    return number == EWOULDBLOCK ? KVF_E_BUSY : KVF_E_IO;
}

static int32_t fill_with_zeros(int fd, const char *path, uint64_t bytes) {
    uint8_t *zeros = calloc(1, ZERO_BYTES);
    if (!zeros) return kvf_refuse(KVF_E_NOMEM, "%s: no memory to fill it with zeros", path);
    int32_t status = KVF_OK;
    for (uint64_t at = 0; at < bytes && status == KVF_OK;) {
        size_t part = bytes - at < ZERO_BYTES ? (size_t)(bytes - at) : ZERO_BYTES;
        ssize_t written = pwrite(fd, zeros, part, (off_t)at);
        if (written > 0) at += (uint64_t)written;
        else if (written == 0 || errno != EINTR) status = refuse_file(written == 0 ? ENOSPC : errno, path, "space could not be reserved");
    }
    free(zeros);
    return status;
}

/* Reserves the space now, so that a full device is found at registration and not at a write. */
static int32_t reserve(int fd, const char *path, uint64_t bytes) {
    if (ftruncate(fd, 0) != 0) return refuse_file(errno, path, "could not be emptied");
    int failed;
    do failed = fallocate(fd, 0, 0, (off_t)bytes) == 0 ? 0 : errno;
    while (failed == EINTR);
    if (failed == 0) return KVF_OK;
    if (failed == EOPNOTSUPP || failed == ENOSYS || failed == EINVAL) return fill_with_zeros(fd, path, bytes);
    return refuse_file(failed, path, "space could not be reserved");
}

/* What the file system is good for. When a FUSE server answers a ring's request short, the kernel (6.18) asks for the rest
 * from the wrong place and calls the whole done: such files are served by threads. */
static bool look_at_system(kvf_file *file) {
    struct statfs system;
    memset(&system, 0, sizeof system);
    const uint32_t kind = fstatfs(file->descriptor, &system) == 0 ? (uint32_t)system.f_type : FUSE; /* a server may not know */
    if (kind == FUSE) file->no_ring = true;
    return kind != TMPFS && kind != RAMFS;
}

/* Opens the file again for direct transfers, through /proc so that it is the same file whatever its name is by now. */
static void open_direct(kvf_file *file) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file->descriptor);
    int fd = open(link, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return;
    uint32_t facts[64];
    memset(facts, 0, sizeof facts);
    file->memory_alignment = file->offset_alignment = GUESSED_ALIGNMENT;
#ifdef SYS_statx
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, facts) == 0 && (facts[0] & DIOALIGN)) {
        file->memory_alignment = facts[DIO_MEMORY / 4];
        file->offset_alignment = facts[DIO_OFFSET / 4];
    }
#endif
    if (file->memory_alignment == 0 || file->offset_alignment == 0) {
        close(fd);
        return;
    }
    file->direct = fd;
}

static int32_t open_named(kvf_file *file, uint32_t flags, uint64_t bytes) {
    const char *path = file->path;
    /* Without O_NONBLOCK opening a pipe by mistake would never end. */
    const int how = O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    bool made = false;
    if (flags & KVF_FILE_CREATE) {
        file->descriptor = open(path, how | O_CREAT | O_EXCL, 0644);
        made = file->descriptor >= 0;
        if (!made && errno != EEXIST) return refuse_file(errno, path, "could not be made");
    }
    if (!made) file->descriptor = open(path, how);
    if (file->descriptor < 0) return refuse_file(errno, path, "could not be opened for reading and writing");
    struct stat facts;
    if (fstat(file->descriptor, &facts) != 0) return refuse_file(errno, path, "could not be looked at");
    if (!S_ISREG(facts.st_mode)) return kvf_refuse(KVF_E_IO, "%s: is not a regular file", path);
    /* Only the opening was not to wait: a ring would take the flag for "answer EAGAIN rather than wait for the device". */
    if (fcntl(file->descriptor, F_SETFL, fcntl(file->descriptor, F_GETFL) & ~O_NONBLOCK) != 0)
        return refuse_file(errno, path, "could not be made to wait");
    if (flock(file->descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return kvf_refuse(KVF_E_BUSY, "%s: another layout, of this process or another one, has it open", path);
    if (!(flags & KVF_FILE_CREATE)) {
        if ((uint64_t)facts.st_size == bytes) return KVF_OK;
        return kvf_refuse(KVF_E_IO, "%s: has %llu bytes, the layout needs %llu", path, (unsigned long long)facts.st_size,
                          (unsigned long long)bytes);
    }
    if (!made && facts.st_size > 0 && !(flags & KVF_FILE_REPLACE))
        return kvf_refuse(KVF_E_IO, "%s: is there already with %llu bytes and was not made for a layout", path,
                          (unsigned long long)facts.st_size);
    int32_t status = reserve(file->descriptor, path, bytes);
    if (status != KVF_OK && made) unlink(path);
    else if (status != KVF_OK && ftruncate(file->descriptor, 0) != 0) return status;
    return status;
}

/* `path` is a directory: a file without a name in it, or one whose name is taken away at once. */
static int32_t open_nameless(kvf_file *file, uint64_t bytes) {
    const char *folder = file->path;
    char name[4096];
    if (snprintf(name, sizeof name, "%s/kvferry-disk-cache-XXXXXX", folder) >= (int)sizeof name)
        return kvf_refuse(KVF_E_INVALID, "%s: is too long a path", folder);
    int fd = -1;
#ifdef O_TMPFILE
    fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
#endif
    if (fd < 0) {
        fd = mkostemp(name, O_CLOEXEC);
        if (fd < 0) return refuse_file(errno, folder, "no file could be made in it");
        unlink(name);
    }
    file->descriptor = fd;
    char shown[4096];
    snprintf(shown, sizeof shown, "%.4000s/(temporary file)", folder);
    char *copy = strdup(shown);
    if (copy) {
        free(file->path);
        file->path = copy;
    }
    return reserve(fd, file->path, bytes);
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
    pthread_mutex_lock(&file->lock);
    file->detached = true;
    pthread_mutex_unlock(&file->lock);
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
    const bool nameless = (job->flags & (KVF_FILE_TEMPORARY | KVF_FILE_CREATE)) == KVF_FILE_TEMPORARY;
    int32_t status = nameless ? open_nameless(file, job->bytes) : open_named(file, job->flags, job->bytes);
    if (status == KVF_OK) {
        const bool may_be_direct = look_at_system(file);
        if (may_be_direct && !(job->flags & KVF_FILE_BUFFERED)) open_direct(file);
        file->bytes = job->bytes;
        file->member.stop = stop_member;
        file->member.join = join_member;
        kvf_context_retain(job->ctx);
        file->ctx = job->ctx;
        pthread_mutex_lock(&table_lock);
        file->number = ++last_number;
        pthread_mutex_unlock(&table_lock);
        status = kvf_context_attach(job->ctx, &file->member);
    }
    if (status != KVF_OK) {
        kvf_job_set_error(job->ctx, job->slot, "%s", kvf_error_text());
        kvf_file_release(file);
        kvf_job_finish(job->ctx, job->slot, status, 0, 0);
        return;
    }
    pthread_mutex_lock(&table_lock);
    file->next = open_files;
    open_files = file;
    uint32_t number = file->number;
    pthread_mutex_unlock(&table_lock);
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
