/* Copies between host memory and files: a hop is cut into parts, one for each file, and each file's lane runs them. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "file.h"
#include "file_ring.h"
#include "hop.h"
#include "pool.h"
#include "thread.h"

#define MOST_VECTORS 256u
#define REQUEST_BYTES ((uint64_t)1 << 20)
#define MOST_ACTIVE 64u
#define MOST_LANE_THREADS 8u
#define MOST_RETRIES 10000u
/* Hops with more rows than this are prepared on another thread. */
#define INLINE_ROWS 4096u
#define WAKE_TAG UINT64_MAX
/* How often a lane that is busy or hangs looks for parts that were cancelled before their turn. */
#define LOOK_NANOS 20000000u

typedef struct file_row {
    uint64_t at; /* in the file */
    uint64_t memory;
    uint64_t bytes;
    uint32_t program;
} file_row;

typedef struct file_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    kvf_hop hop;
    uint64_t *left;          /* bytes of each program that are not done, atomic */
    pthread_mutex_t order;   /* guards `complete`, `failed` and the slot's error text */
    uint32_t complete;       /* programs that are done, in order */
    int32_t failed;          /* KVF_OK, or why it fails */
    uint32_t stopped;        /* atomic: start nothing more */
    uint32_t touched;        /* atomic */
    uint32_t parts;          /* atomic: parts that have not ended, and one for whoever hands them out */
    uint64_t done;           /* atomic: bytes */
} file_job;

struct kvf_file_part {
    kvf_file_part *next;
    file_job *job;
    kvf_file *file;
    bool writing;
    bool buffered; /* some rows are not aligned: all of it goes through the page cache */
    file_row *rows;
    uint64_t count;
    uint64_t room;
    /* guarded by the file's lock */
    uint64_t row;    /* next row, and how much of it was started */
    uint64_t inside;
    uint32_t in_flight;
};

typedef struct file_request {
    kvf_file_part *part;
    uint64_t at;
    uint64_t bytes; /* of all vectors that are left */
    uint64_t all;
    uint32_t program;
    uint32_t first; /* vector */
    uint32_t count;
    uint32_t retries;
    int fd;
    struct iovec vectors[MOST_VECTORS];
} file_request;

/* ---- ends ------------------------------------------------------------------------------------------------------ */

static void free_job(file_job *job) {
    kvf_hop_free(&job->hop);
    pthread_mutex_destroy(&job->order);
    free(job->left);
    free(job);
}

static void fail_job(file_job *job, int32_t status) {
    pthread_mutex_lock(&job->order);
    if (job->failed == KVF_OK) {
        job->failed = status;
        kvf_job_set_error(job->ctx, job->slot, "%s", kvf_error_text());
    }
    pthread_mutex_unlock(&job->order);
    __atomic_store_n(&job->stopped, 1, __ATOMIC_RELEASE);
}

static void end_of_part(file_job *job) {
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

static void free_part(kvf_file_part *part) {
    kvf_file *file = part->file;
    file_job *job = part->job;
    free(part->rows);
    free(part);
    if (file) kvf_file_release(file);
    end_of_part(job);
}

static void account(file_job *job, uint32_t program, uint64_t bytes) {
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

static bool part_stopped(const kvf_file_part *part) {
    return __atomic_load_n(&part->job->stopped, __ATOMIC_ACQUIRE) != 0 || kvf_job_cancelled(part->job->ctx, part->job->slot);
}

/* ---- requests: the caller holds the file's lock ------------------------------------------------------------------ */

static bool spent(const kvf_file_part *part) { return part->row == part->count; }

/* Takes the next rows that continue each other in the file into one request. */
static void next_request(kvf_file_part *part, file_request *request) {
    const bool direct = part->file->direct >= 0 && !part->buffered;
    const file_row *row = &part->rows[part->row];
    request->part = part;
    request->at = row->at + part->inside;
    request->program = row->program;
    request->bytes = 0;
    request->first = request->count = request->retries = 0;
    request->fd = direct ? part->file->direct : part->file->descriptor;
    uint64_t memory_end = 0;
    while (part->row < part->count && request->bytes < REQUEST_BYTES) {
        row = &part->rows[part->row];
        uint64_t at = row->at + part->inside, memory = row->memory + part->inside, bytes = row->bytes - part->inside;
        if (at != request->at + request->bytes || row->program != request->program) break;
        if (bytes > REQUEST_BYTES - request->bytes) bytes = REQUEST_BYTES - request->bytes;
        if (request->count > 0 && memory == memory_end) request->vectors[request->count - 1].iov_len += bytes;
        else if (request->count < MOST_VECTORS)
            request->vectors[request->count++] = (struct iovec){(void *)(uintptr_t)memory, bytes};
        else break;
        memory_end = memory + bytes;
        request->bytes += bytes;
        part->inside += bytes;
        if (part->inside == row->bytes) {
            part->row++;
            part->inside = 0;
        }
    }
    request->all = request->bytes;
    part->in_flight++;
}

/* Moves waiting parts to the active ones. Buffered and direct requests are never in flight together: a page of the cache
 * could bring old bytes back over what went past it. Parts begin in the order in which they came. */
static void admit(kvf_file *file) {
    while (file->waiting_first && file->active_count < MOST_ACTIVE) {
        kvf_file_part *part = file->waiting_first;
        if (file->active && file->active->buffered != part->buffered) return;
        file->waiting_first = part->next;
        if (!part->next) file->waiting_last = NULL;
        if (file->active) {
            part->next = file->active->next;
            file->active->next = part;
        } else part->next = part;
        file->active = part; /* the newest is looked at last: its turn comes after `next` */
        file->active_count++;
    }
}

/* Takes a part that nothing is left to do for off the ring of active ones; its owner frees it without the lock. */
static void retire(kvf_file *file, kvf_file_part *part) {
    kvf_file_part *before = part;
    while (before->next != part) before = before->next;
    before->next = part->next;
    if (file->active == part) file->active = before == part ? NULL : before;
    file->active_count--;
}

/* Parts that were stopped before their turn; a list linked by `next`. */
static kvf_file_part *sweep(kvf_file *file) {
    kvf_file_part *gone = NULL, **at = &file->waiting_first, *last = NULL;
    while (*at) {
        kvf_file_part *part = *at;
        if (!part_stopped(part) && !file->closing) {
            last = part;
            at = &part->next;
            continue;
        }
        *at = part->next;
        part->next = gone;
        gone = part;
    }
    file->waiting_last = last;
    return gone;
}

/* The next request of the active parts in turn; false when there is none now. Parts that are over go to `gone`. */
static bool pick(kvf_file *file, file_request *request, kvf_file_part **gone) {
    for (;;) {
        admit(file);
        bool retired = false;
        for (uint32_t turns = file->active_count; turns > 0 && file->active; turns--) {
            kvf_file_part *part = file->active = file->active->next;
            bool over = spent(part) || part_stopped(part) || file->closing;
            if (over && part->in_flight == 0) {
                retire(file, part);
                part->next = *gone;
                *gone = part;
                retired = true;
                continue;
            }
            if (over) continue;
            next_request(part, request);
            __atomic_store_n(&part->job->touched, 1, __ATOMIC_RELAXED);
            return true;
        }
        if (!retired || !file->waiting_first) return false; /* a place for one that waits? look again */
    }
}

static void free_parts(kvf_file_part *parts) {
    while (parts) {
        kvf_file_part *next = parts->next;
        free_part(parts);
        parts = next;
    }
}

/* ---- results: without the lock ----------------------------------------------------------------------------------- */

static int32_t fail_request(const file_request *request, int number, const char *why) {
    const kvf_file_part *part = request->part;
    const char *verb = part->writing ? "writing" : "reading";
    if (number)
        kvf_refuse_errno(number, "%s: %s %llu bytes at offset %llu", part->file->path, verb, (unsigned long long)request->bytes,
                         (unsigned long long)request->at);
    else
        kvf_set_error("%s: %s %llu bytes at offset %llu: %s", part->file->path, verb, (unsigned long long)request->bytes,
                      (unsigned long long)request->at, why);
    return KVF_E_IO;
}

static bool aligned(const kvf_file *file, uint64_t at, uint64_t memory, uint64_t bytes) {
    return at % file->offset_alignment == 0 && bytes % file->offset_alignment == 0 && memory % file->memory_alignment == 0;
}

/* Takes what a request answered: a count of bytes or a negative errno. True when it is to be submitted again. */
static bool again(file_request *request, int64_t result) {
    kvf_file_part *part = request->part;
    kvf_file *file = part->file;
    if (result == -EINTR || result == -EAGAIN) {
        if (++request->retries <= MOST_RETRIES) {
            if (result == -EAGAIN) sched_yield();
            return true;
        }
        fail_job(part->job, fail_request(request, (int)-result, ""));
        return false;
    }
    if (result == -EINVAL && request->fd != file->descriptor) {
        /* The file system takes none past the page cache after all, so no such request is in flight that succeeds. */
        request->fd = file->descriptor;
        return true;
    }
    if (result < 0) {
        fail_job(part->job, fail_request(request, (int)-result, ""));
        return false;
    }
    if (result == 0) {
        fail_job(part->job, fail_request(request, 0, part->writing ? "the device took none of them" : "the file ends before them"));
        return false;
    }
    uint64_t moved = (uint64_t)result;
    request->at += moved;
    request->bytes -= moved;
    if (request->bytes == 0) {
        account(part->job, request->program, request->all);
        return false;
    }
    /* A short one: the rest goes on where it stopped. */
    while (moved >= request->vectors[request->first].iov_len) {
        moved -= request->vectors[request->first].iov_len;
        request->first++;
        request->count--;
    }
    struct iovec *vector = &request->vectors[request->first];
    vector->iov_base = (uint8_t *)vector->iov_base + moved;
    vector->iov_len -= moved;
    if (request->fd == file->direct && !aligned(file, request->at, (uint64_t)(uintptr_t)vector->iov_base, vector->iov_len))
        request->fd = file->descriptor;
    return !part_stopped(part);
}

/* ---- a lane of threads --------------------------------------------------------------------------------------------- */

static void thread_ended(kvf_file *file) {
    pthread_mutex_lock(&file->lock);
    file->threads--;
    pthread_cond_broadcast(&file->ended);
    pthread_mutex_unlock(&file->lock);
    kvf_file_release(file);
}

static void *work_by_calls(void *argument) {
    kvf_file *file = argument;
    file_request *request = malloc(sizeof *request);
    pthread_mutex_lock(&file->lock);
    while (request) {
        kvf_file_part *gone = sweep(file);
        bool found = pick(file, request, &gone);
        if (gone) {
            pthread_mutex_unlock(&file->lock);
            free_parts(gone);
            pthread_mutex_lock(&file->lock);
            if (!found) continue;
        }
        if (!found) {
            if (file->closing && !file->active && !file->waiting_first) break;
            if (file->waiting_first) {
                struct timespec until;
                clock_gettime(CLOCK_REALTIME, &until);
                until.tv_nsec += LOOK_NANOS;
                if (until.tv_nsec >= 1000000000) {
                    until.tv_sec++;
                    until.tv_nsec -= 1000000000;
                }
                pthread_cond_timedwait(&file->work, &file->lock, &until);
            } else pthread_cond_wait(&file->work, &file->lock);
            continue;
        }
        pthread_mutex_unlock(&file->lock);
        int64_t result;
        do {
            const struct iovec *vectors = request->vectors + request->first;
            result = request->part->writing ? pwritev(request->fd, vectors, (int)request->count, (off_t)request->at)
                                            : preadv(request->fd, vectors, (int)request->count, (off_t)request->at);
            if (result < 0) result = -errno;
        } while (again(request, result));
        pthread_mutex_lock(&file->lock);
        request->part->in_flight--;
        if (request->part->in_flight == 0) pthread_cond_broadcast(&file->work);
    }
    pthread_mutex_unlock(&file->lock);
    free(request);
    thread_ended(file);
    return NULL;
}

/* ---- a lane with an io_uring ------------------------------------------------------------------------------------------ */

typedef struct ring_lane {
    kvf_file *file;
    kvf_ring_io io;
    file_request *requests;
    uint32_t *free;
    uint32_t free_count;
    uint64_t woken; /* what the eventfd gives */
} ring_lane;

static bool push_request(ring_lane *lane, uint32_t index) {
    file_request *request = &lane->requests[index];
    return kvf_ring_io_vector(&lane->io, request->part->writing, request->fd, request->vectors + request->first, request->count,
                              request->at, index);
}

static void take_results(ring_lane *lane, bool *listening) {
    kvf_file *file = lane->file;
    uint64_t tag;
    int32_t result;
    while (kvf_ring_io_take(&lane->io, &tag, &result)) {
        if (tag == WAKE_TAG) {
            *listening = false;
            continue;
        }
        uint32_t index = (uint32_t)tag;
        file_request *request = &lane->requests[index];
        /* The queue has room: what was taken off it makes a place. */
        if (again(request, result) && push_request(lane, index)) continue;
        pthread_mutex_lock(&file->lock);
        request->part->in_flight--;
        pthread_mutex_unlock(&file->lock);
        lane->free[lane->free_count++] = index;
    }
}

static void *work_by_ring(void *argument) {
    ring_lane *lane = argument;
    kvf_file *file = lane->file;
    bool listening = false;
    for (;;) {
        kvf_file_part *gone;
        bool busy, over;
        pthread_mutex_lock(&file->lock);
        gone = sweep(file);
        while (lane->free_count > 0) {
            uint32_t index = lane->free[lane->free_count - 1];
            if (!pick(file, &lane->requests[index], &gone)) break;
            lane->free_count--;
            push_request(lane, index);
        }
        busy = lane->free_count < file->depth;
        over = file->closing && !file->active && !file->waiting_first;
        pthread_mutex_unlock(&file->lock);
        free_parts(gone);
        if (over && !busy) break;
        if (gone) continue;
        if (!listening) listening = kvf_ring_io_read(&lane->io, file->wake, &lane->woken, sizeof lane->woken, WAKE_TAG);
        int failed = kvf_ring_io_enter(&lane->io, true);
        /* EBUSY and EAGAIN: completions must be taken first. */
        if (failed && failed != EBUSY && failed != EAGAIN) sched_yield();
        take_results(lane, &listening);
    }
    kvf_ring_io_close(&lane->io); /* also ends the read of the eventfd */
    free(lane->requests);
    free(lane->free);
    free(lane);
    thread_ended(file);
    return NULL;
}

static ring_lane *make_ring_lane(kvf_file *file) {
    ring_lane *lane = calloc(1, sizeof *lane);
    if (!lane) return NULL;
    lane->file = file;
    lane->requests = malloc(file->depth * sizeof *lane->requests);
    lane->free = malloc(file->depth * sizeof *lane->free);
    if (file->wake < 0) file->wake = eventfd(0, EFD_CLOEXEC);
    uint32_t entries = 2;
    while (entries < file->depth + 1) entries *= 2;
    if (lane->requests && lane->free && file->wake >= 0 && kvf_ring_io_open(&lane->io, entries)) {
        for (uint32_t k = 0; k < file->depth; k++) lane->free[k] = k;
        lane->free_count = file->depth;
        return lane;
    }
    free(lane->requests);
    free(lane->free);
    free(lane);
    return NULL;
}

/* ---- lanes -------------------------------------------------------------------------------------------------------------- */

void kvf_file_lane_wake(kvf_file *file) {
    if (file->ring) {
        const uint64_t one = 1;
        if (write(file->wake, &one, sizeof one) < 0) sched_yield(); /* full: it is awake */
    } else pthread_cond_broadcast(&file->work);
}

static int32_t start_thread(kvf_file *file, void *(*run)(void *), void *argument) {
    pthread_t thread;
    __atomic_fetch_add(&file->references, 1, __ATOMIC_RELAXED);
    int32_t status = kvf_thread_start(&thread, "kvf-file", run, argument);
    if (status == KVF_OK) {
        pthread_detach(thread);
        file->threads++;
    } else __atomic_fetch_sub(&file->references, 1, __ATOMIC_RELAXED);
    return status;
}

static int32_t start_lane(kvf_file *file) {
    if (file->threads > 0) return KVF_OK;
    ring_lane *lane = file->no_ring ? NULL : make_ring_lane(file);
    if (lane) {
        int32_t status = start_thread(file, work_by_ring, lane);
        if (status == KVF_OK) {
            file->ring = true;
            return KVF_OK;
        }
        kvf_ring_io_close(&lane->io);
        free(lane->requests);
        free(lane->free);
        free(lane);
        return status;
    }
    uint32_t wanted = file->depth < MOST_LANE_THREADS ? file->depth : MOST_LANE_THREADS;
    int32_t status = KVF_OK;
    while (file->threads < wanted && status == KVF_OK) status = start_thread(file, work_by_calls, file);
    return file->threads > 0 ? KVF_OK : status;
}

int32_t kvf_file_lane_submit(kvf_file *file, kvf_file_part *part) {
    pthread_mutex_lock(&file->lock);
    int32_t status = file->closing ? kvf_refuse(KVF_E_CLOSED, "%s: is being closed", file->path) : start_lane(file);
    if (status == KVF_OK) {
        part->next = NULL;
        if (file->waiting_last) file->waiting_last->next = part;
        else file->waiting_first = part;
        file->waiting_last = part;
        kvf_file_lane_wake(file);
    }
    pthread_mutex_unlock(&file->lock);
    return status;
}

/* ---- preparing ------------------------------------------------------------------------------------------------------------ */

static int by_offset(const void *left, const void *right) {
    uint64_t a = ((const file_row *)left)->at, b = ((const file_row *)right)->at;
    return a < b ? -1 : a > b;
}

static bool add_row(kvf_file_part *part, const file_row *row) {
    if (part->count > 0) {
        file_row *last = &part->rows[part->count - 1];
        if (last->program == row->program && last->at + last->bytes == row->at && last->memory + last->bytes == row->memory) {
            last->bytes += row->bytes;
            return true;
        }
    }
    if (part->count == part->room) {
        uint64_t room = part->room ? part->room * 2 : 64;
        file_row *more = realloc(part->rows, room * sizeof *more);
        if (!more) return false;
        part->rows = more;
        part->room = room;
    }
    part->rows[part->count++] = *row;
    return true;
}

/* Brings the rows of each program into the file's order and joins what continues on both sides. */
static void order_rows(kvf_file_part *part) {
    uint64_t kept = 0;
    for (uint64_t from = 0, to; from < part->count; from = to) {
        bool sorted = true;
        for (to = from + 1; to < part->count && part->rows[to].program == part->rows[from].program; to++)
            sorted = sorted && part->rows[to - 1].at <= part->rows[to].at;
        if (!sorted) qsort(part->rows + from, to - from, sizeof *part->rows, by_offset);
        uint64_t begin = kept;
        for (uint64_t k = from; k < to; k++) {
            file_row *last = kept > begin ? &part->rows[kept - 1] : NULL;
            const file_row row = part->rows[k];
            if (last && last->at + last->bytes == row.at && last->memory + last->bytes == row.memory) last->bytes += row.bytes;
            else part->rows[kept++] = row;
        }
    }
    part->count = kept;
    part->buffered = false;
    if (part->file->direct < 0) return;
    for (uint64_t k = 0; k < part->count && !part->buffered; k++)
        part->buffered = !aligned(part->file, part->rows[k].at, part->rows[k].memory, part->rows[k].bytes);
}

/* Is the file still what was opened? */
static int32_t check_file(const kvf_file_part *part) {
    struct stat facts;
    const kvf_file *file = part->file;
    if (fstat(file->descriptor, &facts) != 0) {
        kvf_refuse_errno(errno, "%s: could not be looked at", file->path);
        return KVF_E_IO;
    }
    if (file->named && facts.st_nlink == 0) return kvf_refuse(KVF_E_IO, "%s: was removed", file->path);
    if ((uint64_t)facts.st_size < file->bytes)
        return kvf_refuse(KVF_E_IO, "%s: was cut to %llu of %llu bytes", file->path, (unsigned long long)facts.st_size,
                          (unsigned long long)file->bytes);
    const file_row *last = part->count ? &part->rows[0] : NULL;
    for (uint64_t k = 0; last && k < part->count; k++)
        if (part->rows[k].at + part->rows[k].bytes > file->bytes)
            return kvf_refuse(KVF_E_INVALID, "%s: offset %llu is past its %llu bytes", file->path, (unsigned long long)part->rows[k].at,
                              (unsigned long long)file->bytes);
    return KVF_OK;
}

static kvf_file_part *part_of(file_job *job, kvf_file_part **parts, uint32_t number, bool writing) {
    for (kvf_file_part *part = *parts; part; part = part->next)
        if (part->file->number == number && part->writing == writing) return part;
    kvf_file *file = kvf_file_find(number);
    if (!file) return NULL;
    kvf_file_part *part = calloc(1, sizeof *part);
    if (!part) {
        kvf_file_release(file);
        kvf_set_error("no memory for a copy");
        return NULL;
    }
    part->job = job;
    part->file = file;
    part->writing = writing;
    part->next = *parts;
    *parts = part;
    __atomic_fetch_add(&job->parts, 1, __ATOMIC_RELAXED);
    return part;
}

static int32_t make_parts(file_job *job, kvf_file_part **parts) {
    kvf_cursor cursor;
    kvf_row row;
    kvf_cursor_open(&cursor, &job->hop);
    uint32_t program = UINT32_MAX;
    kvf_file_part *part = NULL;
    bool writing = false;
    while (kvf_cursor_next(&cursor, &row)) {
        if (row.program != program) {
            const kvf_program *at = &job->hop.program[program = row.program];
            writing = at->dst_kind == 2;
            part = part_of(job, parts, writing ? at->dst_device : at->src_device, writing);
            if (!part) return KVF_E_INVALID;
        }
        const file_row wanted = {.at = writing ? row.dst : row.src,
                                 .memory = writing ? row.src : row.dst,
                                 .bytes = row.bytes,
                                 .program = row.program};
        if (!add_row(part, &wanted)) return kvf_refuse(KVF_E_NOMEM, "no memory for the rows of a copy");
    }
    for (part = *parts; part; part = part->next) {
        order_rows(part);
        int32_t status = check_file(part);
        if (status != KVF_OK) return status;
    }
    return KVF_OK;
}

/* Makes the parts and hands them to their lanes. */
static void start_job(file_job *job) {
    kvf_file_part *parts = NULL;
    int32_t status = make_parts(job, &parts);
    if (status != KVF_OK) fail_job(job, status);
    while (parts) {
        kvf_file_part *next = parts->next;
        if (status == KVF_OK) status = kvf_file_lane_submit(parts->file, parts);
        if (status != KVF_OK) {
            fail_job(job, status);
            free_part(parts);
        }
        parts = next;
    }
    end_of_part(job);
}

static void start_item(kvf_task *task, uint64_t index) {
    (void)task;
    (void)index;
}

/* The end of the task, after which the pool does not look at it again. */
static void start_end(kvf_task *task) { start_job((file_job *)task); }

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
    file_job *job = calloc(1, sizeof *job);
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
