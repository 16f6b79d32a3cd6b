/*
 * cuda.c - a stand-in libcuda.so.1 for machines without a GPU. "Device" memory is host memory; every stream is a thread
 * that runs its copies, events, callbacks and kernels in order; the kernels are the library's own, compiled as C. It
 * proves how the library drives a driver, its order and its failures, and nothing about a GPU.
 *
 * Told by the environment, or while running through standin_tell with the same words:
 *   KVF_STANDIN_DEVICES=n  KVF_STANDIN_VERSION=12080  KVF_STANDIN_ARCH=90  KVF_STANDIN_MEMORY=bytes
 *   KVF_STANDIN_DELAY=micros           every operation of a stream takes that much longer
 *   KVF_STANDIN_FAIL=name:n:code       the n-th call of that entry (cuMemcpyAsync, ...) from now on answers the code
 *   KVF_STANDIN_HANG=n                 the n-th stream operation from now on does not end until standin_tell("RELEASE", "")
 *
 *   KVF_STANDIN_IPC=1                  other processes can open device memory, as files in memory
 *   KVF_STANDIN_IPC=2                  the driver has no IPC handles; only memory of the virtual memory API can be exported
 *
 * It checks what a driver would not forgive: descriptors of zero bytes, addresses outside of known memory, misaligned
 * accesses of kernels, driver calls from inside callbacks, calls without a current context.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cuda_driver.h"
#include "kernels/body.h"

#define API __attribute__((visibility("default")))
#define MOST_DEVICES 8
#define ILLEGAL_ADDRESS 700
#define MISALIGNED 716
#define INVALID_CONTEXT 201
#define ALREADY_MAPPED 208
#define INVALID_HANDLE 400
#define NOT_PERMITTED 800

API int standin_tell(const char *what, const char *value);
API uint64_t standin_calls(const char *name);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int device_count = 1, version = 13000, arch = 90;
static uint64_t memory_bytes = UINT64_C(64) << 30, delay_micros, hang_at, operations;
static bool hanging;
static int ipc;
static char fail_name[64];
static uint64_t fail_at, fail_code;

struct cu_context_s {
    int device;
    uint64_t used;
    cu_result sticky;
};
static struct cu_context_s contexts[MOST_DEVICES];
static _Thread_local struct cu_context_s *stack[32];
static _Thread_local int depth;
static _Thread_local bool in_callback;

/* ---- being told ---------------------------------------------------------------------------------------------------- */

static void tell_locked(const char *what, const char *value) {
    if (!strcmp(what, "DEVICES")) device_count = atoi(value);
    else if (!strcmp(what, "VERSION")) version = atoi(value);
    else if (!strcmp(what, "ARCH")) arch = atoi(value);
    else if (!strcmp(what, "MEMORY")) memory_bytes = strtoull(value, NULL, 10);
    else if (!strcmp(what, "DELAY")) delay_micros = strtoull(value, NULL, 10);
    else if (!strcmp(what, "IPC")) ipc = atoi(value);
    else if (!strcmp(what, "HANG")) hang_at = operations + strtoull(value, NULL, 10);
    else if (!strcmp(what, "RELEASE")) hanging = false, hang_at = 0;
    else if (!strcmp(what, "FAIL")) {
        unsigned long long at = 0, code = 0;
        fail_at = 0;
        if (sscanf(value, "%63[^:]:%llu:%llu", fail_name, &at, &code) == 3) fail_at = at, fail_code = code;
    }
    pthread_cond_broadcast(&changed);
}

API int standin_tell(const char *what, const char *value) {
    pthread_mutex_lock(&lock);
    tell_locked(what, value);
    pthread_mutex_unlock(&lock);
    return 0;
}

__attribute__((constructor)) static void read_environment(void) {
    static const char *const words[] = {"DEVICES", "VERSION", "ARCH", "MEMORY", "DELAY", "FAIL", "HANG", "IPC"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        char name[64];
        snprintf(name, sizeof name, "KVF_STANDIN_%s", words[i]);
        const char *value = getenv(name);
        if (value && *value) tell_locked(words[i], value);
    }
}

/* Counted calls by name, and the failure that was asked for. Called with the lock held. */
#define MOST_NAMES 128
static struct {
    const char *name;
    uint64_t calls;
} counted[MOST_NAMES];

static cu_result count_locked(const char *name) {
    for (int i = 0; i < MOST_NAMES; i++) {
        if (!counted[i].name) counted[i].name = name;
        if (strcmp(counted[i].name, name) == 0) {
            counted[i].calls++;
            break;
        }
    }
    if (fail_at && strcmp(name, fail_name) == 0 && --fail_at == 0) return (cu_result)fail_code;
    return CU_OK;
}

API uint64_t standin_calls(const char *name) {
    uint64_t calls = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST_NAMES && counted[i].name; i++) {
        if (strcmp(counted[i].name, name) == 0) calls = counted[i].calls;
    }
    pthread_mutex_unlock(&lock);
    return calls;
}

/* The beginning of an entry: counts, fails when told to, and refuses what the driver refuses. */
#define BEGIN(NAME)                                                 \
    if (in_callback) return NOT_PERMITTED;                          \
    pthread_mutex_lock(&lock);                                      \
    cu_result begun = count_locked(NAME);                           \
    if (begun != CU_OK) {                                           \
        if (kvf_sticky(begun) && depth) stack[depth - 1]->sticky = begun; \
        pthread_mutex_unlock(&lock);                                \
        return begun;                                               \
    }
#define BEGIN_IN_CONTEXT(NAME)                                      \
    BEGIN(NAME)                                                     \
    struct cu_context_s *own = depth ? stack[depth - 1] : NULL;     \
    if (!own || own->sticky) {                                      \
        cu_result why = own ? own->sticky : INVALID_CONTEXT;        \
        pthread_mutex_unlock(&lock);                                \
        return why;                                                 \
    }
#define END(RESULT)                     \
    do {                                \
        cu_result ending = (RESULT);    \
        pthread_mutex_unlock(&lock);    \
        return ending;                  \
    } while (0)

static bool kvf_sticky(cu_result result) { return result == ILLEGAL_ADDRESS || result == MISALIGNED || result == 719; }

/* ---- memory ------------------------------------------------------------------------------------------------------------ */

typedef struct range {
    uint64_t start, bytes;
    int kind; /* CU_MEMORY_* */
    int device;
    bool registered;
    int file;        /* memory file of device memory that others can open, or -1 */
    cu_ipc opened;   /* of another process's memory: the handle */
    bool foreign;
    struct physical *mapped; /* of the virtual memory API: what is mapped there */
    struct range *next;
} range;
static range *ranges;

static range *range_of(uint64_t at) {
    for (range *r = ranges; r; r = r->next)
        if (at >= r->start && at < r->start + r->bytes) return r;
    return NULL;
}

/* Whether the device side of a copy may touch [at, at + bytes): known memory whole, or memory the driver never heard of. */
static bool touchable(uint64_t at, uint64_t bytes) {
    range *r = range_of(at);
    return r ? at + bytes <= r->start + r->bytes : range_of(at + bytes - 1) == NULL;
}

static bool add_range(uint64_t start, uint64_t bytes, int kind, int device, bool registered) {
    range *r = malloc(sizeof *r);
    if (!r) return false;
    *r = (range){.start = start, .bytes = bytes, .kind = kind, .device = device, .registered = registered, .file = -1, .next = ranges};
    ranges = r;
    return true;
}

static range remove_range(uint64_t start) {
    for (range **at = &ranges; *at; at = &(*at)->next) {
        if ((*at)->start != start) continue;
        range *r = *at, copy = *r;
        *at = r->next;
        free(r);
        return copy;
    }
    return (range){0};
}

static cu_result get_pages(size_t bytes, uint64_t *out) {
    void *got = mmap(NULL, (bytes + 4095) & ~(size_t)4095, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) return CU_OUT_OF_MEMORY;
    *out = (uint64_t)(uintptr_t)got;
    return CU_OK;
}

static void give_pages(uint64_t at, size_t bytes) { munmap((void *)(uintptr_t)at, (bytes + 4095) & ~(size_t)4095); }

static cu_result mem_alloc(cu_pointer *out, size_t bytes) {
    BEGIN_IN_CONTEXT("cuMemAlloc")
    if (bytes == 0) END(CU_INVALID_VALUE);
    if (own->used + bytes > memory_bytes) END(CU_OUT_OF_MEMORY);
    int file = ipc == 1 ? memfd_create("standin", MFD_CLOEXEC) : -1;
    cu_result result = CU_OK;
    if (file < 0) result = get_pages(bytes, out);
    else if (ftruncate(file, (off_t)((bytes + 4095) & ~(size_t)4095)) != 0) result = CU_OUT_OF_MEMORY;
    else {
        void *got = mmap(NULL, (bytes + 4095) & ~(size_t)4095, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (got == MAP_FAILED) result = CU_OUT_OF_MEMORY;
        else *out = (uint64_t)(uintptr_t)got;
    }
    if (result == CU_OK) {
        own->used += bytes;
        add_range(*out, bytes, CU_MEMORY_DEVICE, own->device, false);
        ranges->file = file;
    } else if (file >= 0) close(file);
    END(result);
}

static cu_result mem_free(cu_pointer at) {
    BEGIN_IN_CONTEXT("cuMemFree")
    range *r = range_of(at);
    if (!r || r->start != at || r->kind != CU_MEMORY_DEVICE || r->foreign) END(CU_INVALID_VALUE);
    range gone = remove_range(at);
    if (gone.file >= 0) close(gone.file);
    own->used -= gone.bytes;
    give_pages(gone.start, gone.bytes);
    END(CU_OK);
}

static cu_result mem_host_alloc(void **out, size_t bytes, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuMemHostAlloc")
    uint64_t at = 0;
    cu_result result = bytes ? get_pages(bytes, &at) : CU_INVALID_VALUE;
    if (result == CU_OK) add_range(at, bytes, CU_MEMORY_HOST, own->device, false);
    *out = (void *)(uintptr_t)at;
    END(result);
}

static cu_result mem_host_free(void *at) {
    BEGIN_IN_CONTEXT("cuMemFreeHost")
    range *r = range_of((uint64_t)(uintptr_t)at);
    if (!r || r->kind != CU_MEMORY_HOST || r->registered) END(CU_INVALID_VALUE);
    range gone = remove_range((uint64_t)(uintptr_t)at);
    give_pages(gone.start, gone.bytes);
    END(CU_OK);
}

static cu_result mem_register(void *at, size_t bytes, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuMemHostRegister")
    if (range_of((uint64_t)(uintptr_t)at)) END(CU_ALREADY_REGISTERED);
    END(add_range((uint64_t)(uintptr_t)at, bytes, CU_MEMORY_HOST, own->device, true) ? CU_OK : CU_OUT_OF_MEMORY);
}

static cu_result mem_unregister(void *at) {
    BEGIN_IN_CONTEXT("cuMemHostUnregister")
    range *r = range_of((uint64_t)(uintptr_t)at);
    if (!r || !r->registered) END(713);
    remove_range((uint64_t)(uintptr_t)at);
    END(CU_OK);
}

static cu_result mem_info(size_t *available, size_t *total) {
    BEGIN_IN_CONTEXT("cuMemGetInfo")
    *total = memory_bytes;
    *available = memory_bytes - own->used;
    END(CU_OK);
}

static cu_result pointer_attribute(void *out, int attribute, cu_pointer at) {
    BEGIN("cuPointerGetAttribute")
    range *r = range_of(at);
    if (!r) END(CU_INVALID_VALUE);
    switch (attribute) {
        case CU_POINTER_TYPE: *(unsigned *)out = (unsigned)r->kind; break;
        case CU_POINTER_MANAGED: *(unsigned *)out = 0; break;
        case CU_POINTER_ORDINAL: *(int *)out = r->device; break;
        case CU_POINTER_START: *(cu_pointer *)out = r->start; break;
        case CU_POINTER_SIZE: *(size_t *)out = r->bytes; break;
        default: END(CU_INVALID_VALUE);
    }
    END(CU_OK);
}

/* ---- streams and events -------------------------------------------------------------------------------------------------- */

struct cu_event_s {
    uint64_t recorded, fired;
    struct cu_event_s *next; /* all of them, so that a leak checker sees them */
};
static struct cu_event_s *events;

typedef enum { COPY, SET, BOX, KERNEL, RECORD, WAIT, CALL, WRITE } kind_of;
typedef struct work {
    kind_of kind;
    uint64_t dst, src, bytes, number;
    cu_copy3d box;
    struct cu_event_s *event;
    void (*call)(void *);
    void *argument;
    int kernel;
    unsigned ctas, threads;
    kvf_kernel_program *program;
    struct work *next;
} work;

struct cu_stream_s {
    struct cu_context_s *context;
    work *first, **last;
    bool busy, closing;
    struct cu_stream_s *next;
    pthread_cond_t queued; /* its thread sleeps here; `changed` is for who waits for events and for the end */
};

static struct cu_stream_s *streams;

static bool any_busy(void) {
    for (struct cu_stream_s *stream = streams; stream; stream = stream->next)
        if (stream->busy) return true;
    return false;
}

static const char *const kernels[] = {"kvf_rows_16", "kvf_rows_n", "kvf_pieces_16", "kvf_pieces_n", "kvf_sleep", "kvf_fault", "kvf_bulk_16", "kvf_rows_16x2", "kvf_rows_16x4", "kvf_slices_16"};
struct cu_function_s {
    int kernel;
};
static struct cu_function_s functions[] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}};

static _Thread_local cu_result kernel_fault;
void kvf_kernel_misaligned(kvf_u64 at, kvf_u32 width) {
    (void)at;
    (void)width;
    kernel_fault = MISALIGNED;
}

/* Another process's memory can be touched by the one device in whose context it was opened. */
static bool misplaced(uint64_t at, const struct cu_context_s *own) {
    pthread_mutex_lock(&lock);
    const range *r = range_of(at);
    const bool found = r && r->foreign && r->device != own->device;
    pthread_mutex_unlock(&lock);
    return found;
}

static void run_kernel(work *w, const struct cu_context_s *own) {
    if (w->program && w->program->units > 0) {
        kvf_u32 first = 0;
        kvf_u64 src, dst;
        kvf_locate1(w->program, &first, &src, &dst);
        if (misplaced(src, own) || misplaced(dst, own)) {
            kernel_fault = ILLEGAL_ADDRESS;
            return;
        }
    }
    for (unsigned cta = 0; cta < w->ctas; cta++) {
        for (unsigned thread = 0; thread < w->threads; thread++) {
            switch (w->kernel) {
                case 0: kvf_rows16(w->program, cta, w->ctas, thread, w->threads); break;
                case 1: kvf_rowsn(w->program, cta, w->ctas, thread, w->threads); break;
                case 2: kvf_pieces16(w->program, cta, w->ctas, thread, w->threads); break;
                case 3: kvf_piecesn(w->program, cta, w->ctas, thread, w->threads); break;
                case 4: usleep((useconds_t)(w->number / 1000)); break;
                case 5: kernel_fault = ILLEGAL_ADDRESS; break;
                case 6: kvf_bulk(w->program, cta, w->ctas, thread, w->threads); break;
                case 7: kvf_rows16x2(w->program, cta, w->ctas, thread, w->threads); break;
                case 8: kvf_rows16x4(w->program, cta, w->ctas, thread, w->threads); break;
                case 9: kvf_slices16(w->program, cta, thread, w->threads, w->program); break;
                default: break;
            }
        }
    }
}

static void run_box(const cu_copy3d *box) {
    for (size_t z = 0; z < box->depth; z++)
        for (size_t y = 0; y < box->height; y++)
            memcpy((void *)(uintptr_t)(box->dst_device + (z * box->dst_height + y) * box->dst_pitch),
                   (void *)(uintptr_t)(box->src_device + (z * box->src_height + y) * box->src_pitch), box->width);
}

static void *stream_thread(void *argument) {
    struct cu_stream_s *stream = argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!stream->first && !stream->closing) pthread_cond_wait(&stream->queued, &lock);
        work *w = stream->first;
        if (!w) break;
        stream->busy = true;
        if (++operations == hang_at) hanging = true;
        while (hanging && operations >= hang_at) pthread_cond_wait(&changed, &lock);
        if (w->kind == WAIT) {
            while (w->event->fired < w->number && !stream->context->sticky) pthread_cond_wait(&changed, &lock);
        }
        cu_result fault = CU_OK;
        if (!stream->context->sticky) { /* a dead context runs nothing and calls nobody */
            uint64_t wait = delay_micros;
            pthread_mutex_unlock(&lock);
            if (wait && w->kind != WAIT && w->kind != RECORD) usleep((useconds_t)wait);
            kernel_fault = CU_OK;
            switch (w->kind) {
                case COPY:
                    if (misplaced(w->dst, stream->context) || misplaced(w->src, stream->context)) kernel_fault = ILLEGAL_ADDRESS;
                    else memcpy((void *)(uintptr_t)w->dst, (const void *)(uintptr_t)w->src, w->bytes);
                    break;
                case SET: memset((void *)(uintptr_t)w->dst, (int)w->number, w->bytes); break;
                case WRITE: __atomic_store_n((uint32_t *)(uintptr_t)w->dst, (uint32_t)w->number, __ATOMIC_RELEASE); break;
                case BOX: run_box(&w->box); break;
                case KERNEL: run_kernel(w, stream->context); break;
                case CALL:
                    in_callback = true;
                    w->call(w->argument);
                    in_callback = false;
                    break;
                default: break;
            }
            fault = kernel_fault;
            pthread_mutex_lock(&lock);
            if (w->kind == RECORD && w->number > w->event->fired) w->event->fired = w->number;
        }
        if (fault != CU_OK) stream->context->sticky = fault;
        stream->first = w->next;
        if (!stream->first) stream->last = &stream->first;
        stream->busy = stream->first != NULL;
        if (w->kind == RECORD || fault != CU_OK || !stream->busy) pthread_cond_broadcast(&changed);
        free(w->program);
        free(w);
    }
    struct cu_stream_s **at = &streams;
    while (*at != stream) at = &(*at)->next;
    *at = stream->next;
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&stream->queued);
    free(stream);
    return NULL;
}

static cu_result add_work(struct cu_stream_s *stream, work given) {
    if (!stream) return INVALID_HANDLE; /* the legacy stream is never used */
    work *w = malloc(sizeof *w);
    if (!w) return CU_OUT_OF_MEMORY;
    *w = given;
    w->next = NULL;
    *stream->last = w;
    stream->last = &w->next;
    stream->busy = true;
    pthread_cond_signal(&stream->queued);
    return CU_OK;
}

static cu_result stream_create(cu_stream *out, unsigned flags, int priority) {
    (void)flags;
    (void)priority;
    BEGIN_IN_CONTEXT("cuStreamCreateWithPriority")
    struct cu_stream_s *stream = calloc(1, sizeof *stream);
    if (!stream) END(CU_OUT_OF_MEMORY);
    stream->context = own;
    stream->last = &stream->first;
    pthread_cond_init(&stream->queued, NULL);
    pthread_t thread;
    if (pthread_create(&thread, NULL, stream_thread, stream) != 0) {
        free(stream);
        END(CU_OUT_OF_MEMORY);
    }
    pthread_detach(thread);
    stream->next = streams;
    streams = stream;
    *out = stream;
    END(CU_OK);
}

static cu_result stream_destroy(cu_stream stream) {
    BEGIN_IN_CONTEXT("cuStreamDestroy")
    stream->closing = true;
    pthread_cond_signal(&stream->queued);
    END(CU_OK);
}

static cu_result stream_synchronize(cu_stream stream) {
    BEGIN_IN_CONTEXT("cuStreamSynchronize")
    while (stream->busy && !own->sticky) pthread_cond_wait(&changed, &lock);
    END(own->sticky);
}

static cu_result stream_query(cu_stream stream) {
    BEGIN_IN_CONTEXT("cuStreamQuery")
    END(stream->busy ? CU_NOT_READY : CU_OK);
}

static cu_result stream_wait(cu_stream stream, cu_event event, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuStreamWaitEvent")
    END(event->recorded ? add_work(stream, (work){.kind = WAIT, .event = event, .number = event->recorded}) : CU_OK);
}

static cu_result stream_write(cu_stream stream, cu_pointer at, uint32_t value, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuStreamWriteValue32")
    range *r = range_of(at);
    END(r && at % 4 == 0 ? add_work(stream, (work){.kind = WRITE, .dst = at, .number = value}) : CU_INVALID_VALUE);
}

static cu_result stream_call(cu_stream stream, void (*call)(void *), void *argument) {
    BEGIN_IN_CONTEXT("cuLaunchHostFunc")
    END(add_work(stream, (work){.kind = CALL, .call = call, .argument = argument}));
}

static cu_result event_create(cu_event *out, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuEventCreate")
    struct cu_event_s *event = calloc(1, sizeof *event);
    if (!event) END(CU_OUT_OF_MEMORY);
    event->next = events;
    events = event;
    *out = event;
    END(CU_OK);
}

static cu_result event_destroy(cu_event event) {
    (void)event; /* kept: streams may still wait for it */
    BEGIN_IN_CONTEXT("cuEventDestroy")
    END(CU_OK);
}

static cu_result event_record(cu_event event, cu_stream stream) {
    BEGIN_IN_CONTEXT("cuEventRecord")
    END(add_work(stream, (work){.kind = RECORD, .event = event, .number = ++event->recorded}));
}

static cu_result event_query(cu_event event) {
    BEGIN_IN_CONTEXT("cuEventQuery")
    END(event->fired >= event->recorded ? CU_OK : CU_NOT_READY);
}

static cu_result event_synchronize(cu_event event) {
    BEGIN_IN_CONTEXT("cuEventSynchronize")
    while (event->fired < event->recorded && !own->sticky) pthread_cond_wait(&changed, &lock);
    END(own->sticky);
}

/* ---- copies and kernels ----------------------------------------------------------------------------------------------------- */

static cu_result copy_locked(cu_pointer dst, cu_pointer src, size_t bytes, cu_stream stream) {
    if (bytes == 0 || !dst || !src || !touchable(dst, bytes) || !touchable(src, bytes)) return CU_INVALID_VALUE;
    return add_work(stream, (work){.kind = COPY, .dst = dst, .src = src, .bytes = bytes});
}

static cu_result mem_copy(cu_pointer dst, cu_pointer src, size_t bytes, cu_stream stream) {
    BEGIN_IN_CONTEXT("cuMemcpyAsync")
    END(copy_locked(dst, src, bytes, stream));
}

static cu_result mem_copy3d(const cu_copy3d *box, cu_stream stream) {
    BEGIN_IN_CONTEXT("cuMemcpy3DAsync")
    if (!box->width || !box->height || !box->depth || box->src_pitch < box->width || box->dst_pitch < box->width || box->src_height < box->height ||
        box->dst_height < box->height || box->src_type != CU_MEMORY_UNIFIED || box->dst_type != CU_MEMORY_UNIFIED)
        END(CU_INVALID_VALUE);
    END(add_work(stream, (work){.kind = BOX, .box = *box}));
}

static cu_result mem_batch(cu_pointer *dst, cu_pointer *src, size_t *bytes, size_t count, cu_copy_attributes *attributes, size_t *at, size_t sets,
                           cu_stream stream) {
    BEGIN_IN_CONTEXT("cuMemcpyBatchAsync")
    if (count == 0 || count > 4096 || sets != 1 || at[0] != 0 || attributes->order < 1 || attributes->order > 3) END(CU_INVALID_VALUE);
    for (size_t i = 0; i < count; i++) {
        cu_result result = copy_locked(dst[i], src[i], bytes[i], stream);
        if (result != CU_OK) END(result);
    }
    END(CU_OK);
}

static cu_result mem_batch_old(cu_pointer *dst, cu_pointer *src, size_t *bytes, size_t count, cu_copy_attributes *attributes, size_t *at, size_t sets,
                               size_t *failed, cu_stream stream) {
    *failed = SIZE_MAX;
    return mem_batch(dst, src, bytes, count, attributes, at, sets, stream);
}

static cu_result mem_set(cu_pointer dst, unsigned char value, size_t bytes, cu_stream stream) {
    BEGIN_IN_CONTEXT("cuMemsetD8Async")
    if (!touchable(dst, bytes)) END(CU_INVALID_VALUE);
    END(add_work(stream, (work){.kind = SET, .dst = dst, .number = value, .bytes = bytes}));
}

static cu_result launch_with(const cu_launch *how, cu_function function, void **parameters, void **extra) {
    (void)extra;
    BEGIN_IN_CONTEXT("cuLaunchKernelEx")
    const unsigned gx = how->grid[0], gy = how->grid[1], gz = how->grid[2], bx = how->block[0], by = how->block[1], bz = how->block[2], shared = how->shared;
    for (unsigned i = 0; i < how->attribute_count; i++)
        if (how->attributes[i].id != CU_LAUNCH_EARLY || how->attributes[i].value.on != 1) END(CU_INVALID_VALUE);
    if (gy != 1 || gz != 1 || by != 1 || bz != 1 || gx == 0 || bx == 0 || bx > 1024 || shared > 227u << 10) END(CU_INVALID_VALUE);
    work w = {.kind = KERNEL, .kernel = function->kernel, .ctas = gx, .threads = bx};
    if (function->kernel == 4 || function->kernel == 5) w.number = *(uint64_t *)parameters[0];
    else {
        w.program = malloc(sizeof *w.program);
        if (!w.program) END(CU_OUT_OF_MEMORY);
        memcpy(w.program, parameters[0], sizeof *w.program);
    }
    cu_result result = add_work(how->stream, w);
    if (result != CU_OK) free(w.program);
    END(result);
}

static cu_result launch(cu_function function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, cu_stream stream,
                        void **parameters, void **extra) {
    return launch_with(&(cu_launch){{gx, gy, gz}, {bx, by, bz}, shared, stream, NULL, 0}, function, parameters, extra);
}

/* ---- devices, contexts, modules ------------------------------------------------------------------------------------------------ */

static cu_result init(unsigned flags) {
    (void)flags;
    BEGIN("cuInit")
    END(device_count > 0 ? CU_OK : 100);
}
static cu_result get_count(int *count) {
    BEGIN("cuDeviceGetCount")
    *count = device_count;
    END(CU_OK);
}
static cu_result device_get(cu_device *out, int ordinal) {
    BEGIN("cuDeviceGet")
    *out = ordinal;
    END(ordinal >= 0 && ordinal < device_count && ordinal < MOST_DEVICES ? CU_OK : 101);
}
static cu_result device_name(char *out, int capacity, cu_device device) {
    BEGIN("cuDeviceGetName")
    snprintf(out, (size_t)capacity, "Stand-in %d", device);
    END(CU_OK);
}
static cu_result device_attribute(int *out, int attribute, cu_device device) {
    (void)device;
    BEGIN("cuDeviceGetAttribute")
    switch (attribute) {
        case CU_ATTR_SMS: *out = 2; break;
        case CU_ATTR_INTEGRATED: *out = 0; break;
        case CU_ATTR_L2: *out = 1 << 20; break;
        case CU_ATTR_COPY_ENGINES: *out = 2; break;
        case CU_ATTR_MAJOR: *out = arch / 10; break;
        case CU_ATTR_MINOR: *out = arch % 10; break;
        case CU_ATTR_HOST_POINTERS: *out = 1; break;
        case CU_ATTR_SHARED_OPTIN: *out = 227 << 10; break;
        case CU_ATTR_NUMA_NODE: *out = -1; break;
        default: END(CU_INVALID_VALUE);
    }
    END(CU_OK);
}
static cu_result device_memory(size_t *out, cu_device device) {
    (void)device;
    BEGIN("cuDeviceTotalMem")
    *out = memory_bytes;
    END(CU_OK);
}
static cu_result device_pci(char *out, int capacity, cu_device device) {
    BEGIN("cuDeviceGetPCIBusId")
    snprintf(out, (size_t)capacity, "FFFF:%02X:00.0", device);
    END(CU_OK);
}
static cu_result device_uuid(cu_uuid *out, cu_device device) {
    BEGIN("cuDeviceGetUuid")
    memset(out, device + 1, sizeof *out);
    END(CU_OK);
}
static cu_result device_peer(int *can, cu_device device, cu_device peer) {
    BEGIN("cuDeviceCanAccessPeer")
    *can = device != peer;
    END(CU_OK);
}
static cu_result context_retain(cu_context *out, cu_device device) {
    BEGIN("cuDevicePrimaryCtxRetain")
    contexts[device].device = device;
    *out = &contexts[device];
    END(contexts[device].sticky);
}
static cu_result context_release(cu_device device) {
    (void)device;
    BEGIN("cuDevicePrimaryCtxRelease")
    END(CU_OK);
}
static cu_result context_push(cu_context context) {
    if (in_callback) return NOT_PERMITTED;
    if (depth == 32) return CU_OUT_OF_MEMORY;
    stack[depth++] = context;
    return CU_OK;
}
static cu_result context_pop(cu_context *out) {
    if (depth == 0) return INVALID_CONTEXT;
    *out = stack[--depth];
    return CU_OK;
}
static cu_result context_peer(cu_context peer, unsigned flags) {
    (void)peer;
    (void)flags;
    BEGIN_IN_CONTEXT("cuCtxEnablePeerAccess")
    END(CU_OK);
}
static cu_result context_synchronize(void) {
    BEGIN_IN_CONTEXT("cuCtxSynchronize")
    while (any_busy() && !own->sticky) pthread_cond_wait(&changed, &lock);
    END(own->sticky);
}
static cu_result stream_priorities(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return CU_OK;
}
static cu_result module_load(cu_module *out, const void *image) {
    BEGIN_IN_CONTEXT("cuModuleLoadData")
    const unsigned char *bytes = image;
    bool machine = bytes[0] == 0x7f && bytes[1] == 'E', text = bytes[0] == '/' || bytes[0] == '.';
    *out = (cu_module)(uintptr_t)8;
    END(machine || text ? CU_OK : 200);
}
static cu_result module_unload(cu_module module) {
    (void)module;
    BEGIN_IN_CONTEXT("cuModuleUnload")
    END(CU_OK);
}
static cu_result module_function(cu_function *out, cu_module module, const char *name) {
    (void)module;
    BEGIN_IN_CONTEXT("cuModuleGetFunction")
    for (int i = 0; i < (int)(sizeof kernels / sizeof *kernels); i++) {
        if (strcmp(name, kernels[i]) != 0 || (i == 6 && arch < 90)) continue;
        *out = &functions[i];
        END(CU_OK);
    }
    END(500);
}
static cu_result function_set(cu_function function, int attribute, int value) {
    (void)function;
    (void)attribute;
    (void)value;
    BEGIN_IN_CONTEXT("cuFuncSetAttribute")
    END(CU_OK);
}
static cu_result ipc_export(cu_ipc *out, cu_pointer at) {
    BEGIN_IN_CONTEXT("cuIpcGetMemHandle")
    if (ipc == 2) END(CU_NOT_SUPPORTED);
    range *r = range_of(at);
    if (!r || r->kind != CU_MEMORY_DEVICE || r->foreign) END(CU_INVALID_VALUE);
    const uint64_t words[4] = {r->start, r->bytes, (uint64_t)getpid(), (uint64_t)(int64_t)r->file};
    memset(out, 0, sizeof *out);
    memcpy(out, words, sizeof words);
    END(CU_OK);
}
/* As a driver does, it opens nothing of the own process, and nothing twice. */
static cu_result ipc_open(cu_pointer *at, cu_ipc handle, unsigned flags) {
    (void)flags;
    BEGIN_IN_CONTEXT("cuIpcOpenMemHandle")
    uint64_t words[4];
    memcpy(words, &handle, sizeof words);
    if ((int64_t)words[3] < 0) END(CU_NOT_SUPPORTED);
    if (words[2] == (uint64_t)getpid()) END(INVALID_CONTEXT);
    for (range *r = ranges; r; r = r->next)
        if (r->foreign && memcmp(&r->opened, &handle, sizeof handle) == 0) END(ALREADY_MAPPED);
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/fd/%d", (unsigned)words[2], (int)words[3]);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) END(CU_INVALID_VALUE);
    void *got = mmap(NULL, (words[1] + 4095) & ~(uint64_t)4095, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (got == MAP_FAILED) END(CU_OUT_OF_MEMORY);
    add_range((uint64_t)(uintptr_t)got, words[1], CU_MEMORY_DEVICE, own->device, false);
    ranges->foreign = true;
    ranges->opened = handle;
    *at = (uint64_t)(uintptr_t)got;
    END(CU_OK);
}
static cu_result ipc_close(cu_pointer at) {
    BEGIN_IN_CONTEXT("cuIpcCloseMemHandle")
    range *r = range_of(at);
    if (!r || r->start != at || !r->foreign || r->mapped) END(CU_INVALID_VALUE);
    range gone = remove_range(at);
    give_pages(gone.start, gone.bytes);
    END(CU_OK);
}
/* ---- virtual memory: allocations are memory files, mapped where addresses were reserved ----------------------------------- */

typedef struct physical {
    int file;
    uint64_t bytes;
    int device;
    int uses; /* the handle, and mappings */
} physical;

#define GRANULE ((uint64_t)2 << 20)

static void drop_physical(physical *p) {
    if (--p->uses > 0) return;
    contexts[p->device].used -= p->bytes;
    close(p->file);
    free(p);
}

static cu_result make_physical(int file, uint64_t bytes, int device, cu_allocation *out) {
    physical *p = malloc(sizeof *p);
    if (!p) return CU_OUT_OF_MEMORY;
    *p = (physical){.file = file, .bytes = bytes, .device = device, .uses = 1};
    contexts[device].used += bytes;
    *out = (uint64_t)(uintptr_t)p;
    return CU_OK;
}

static cu_result virtual_granularity(size_t *out, const cu_allocation_properties *what, int option) {
    (void)option;
    BEGIN("cuMemGetAllocationGranularity")
    *out = GRANULE;
    END(what->location.id < device_count ? CU_OK : CU_INVALID_VALUE);
}
static cu_result virtual_create(cu_allocation *out, size_t bytes, const cu_allocation_properties *what, uint64_t flags) {
    BEGIN("cuMemCreate")
    if (flags || bytes == 0 || bytes % GRANULE || what->type != CU_ALLOCATION_PINNED || what->handles != CU_HANDLE_DESCRIPTOR ||
        what->location.type != CU_LOCATION_DEVICE || what->location.id < 0 || what->location.id >= device_count)
        END(CU_INVALID_VALUE);
    if (contexts[what->location.id].used + bytes > memory_bytes) END(CU_OUT_OF_MEMORY);
    int file = memfd_create("standin", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0) {
        if (file >= 0) close(file);
        END(CU_OUT_OF_MEMORY);
    }
    END(make_physical(file, bytes, what->location.id, out));
}
static cu_result virtual_release(cu_allocation allocation) {
    BEGIN("cuMemRelease")
    drop_physical((physical *)(uintptr_t)allocation);
    END(CU_OK);
}
static cu_result virtual_reserve(cu_pointer *out, size_t bytes, size_t alignment, cu_pointer wanted, uint64_t flags) {
    BEGIN("cuMemAddressReserve")
    if (bytes == 0 || bytes % GRANULE || alignment || wanted || flags) END(CU_INVALID_VALUE);
    void *got = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) END(CU_OUT_OF_MEMORY);
    *out = (uint64_t)(uintptr_t)got;
    END(CU_OK);
}
static cu_result virtual_free(cu_pointer at, size_t bytes) {
    BEGIN("cuMemAddressFree")
    if (range_of(at)) END(CU_INVALID_VALUE); /* still mapped */
    munmap((void *)(uintptr_t)at, bytes);
    END(CU_OK);
}
/* Without access yet, as on a GPU. */
static cu_result virtual_map(cu_pointer at, size_t bytes, size_t offset, cu_allocation allocation, uint64_t flags) {
    BEGIN("cuMemMap")
    physical *p = (physical *)(uintptr_t)allocation;
    if (offset || flags || bytes != p->bytes || range_of(at)) END(CU_INVALID_VALUE);
    if (mmap((void *)(uintptr_t)at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, p->file, 0) == MAP_FAILED) END(CU_OUT_OF_MEMORY);
    if (!add_range(at, bytes, CU_MEMORY_DEVICE, p->device, false)) END(CU_OUT_OF_MEMORY);
    ranges->foreign = true;
    ranges->mapped = p;
    p->uses++;
    END(CU_OK);
}
static cu_result virtual_unmap(cu_pointer at, size_t bytes) {
    BEGIN("cuMemUnmap")
    range *r = range_of(at);
    if (!r || r->start != at || r->bytes != bytes || !r->mapped) END(CU_INVALID_VALUE);
    physical *p = r->mapped;
    remove_range(at);
    mmap((void *)(uintptr_t)at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    drop_physical(p);
    END(CU_OK);
}
static cu_result virtual_access(cu_pointer at, size_t bytes, const cu_access *access, size_t count) {
    BEGIN("cuMemSetAccess")
    range *r = range_of(at);
    if (!r || !r->mapped || r->start != at || r->bytes != bytes) END(CU_INVALID_VALUE);
    for (size_t i = 0; i < count; i++) {
        if (access[i].location.type != CU_LOCATION_DEVICE || access[i].location.id >= device_count || access[i].flags != CU_ACCESS_READ_WRITE)
            END(CU_INVALID_VALUE);
    }
    END(mprotect((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE) == 0 ? CU_OK : CU_INVALID_VALUE);
}
static cu_result virtual_export(void *out, cu_allocation allocation, int kind, uint64_t flags) {
    BEGIN("cuMemExportToShareableHandle")
    if (kind != CU_HANDLE_DESCRIPTOR || flags) END(CU_INVALID_VALUE);
    int own = fcntl(((physical *)(uintptr_t)allocation)->file, F_DUPFD_CLOEXEC, 3);
    memcpy(out, &own, sizeof own);
    END(own < 0 ? CU_OUT_OF_MEMORY : CU_OK);
}
static cu_result virtual_import(cu_allocation *out, void *handle, int kind) {
    BEGIN_IN_CONTEXT("cuMemImportFromShareableHandle")
    if (kind != CU_HANDLE_DESCRIPTOR) END(CU_INVALID_VALUE);
    struct stat found;
    int file = fcntl((int)(intptr_t)handle, F_DUPFD_CLOEXEC, 3);
    if (file < 0 || fstat(file, &found) != 0 || !S_ISREG(found.st_mode)) {
        if (file >= 0) close(file);
        END(CU_INVALID_VALUE);
    }
    END(make_physical(file, (uint64_t)found.st_size, own->device, out));
}
static cu_result ipc_event_export(cu_ipc *out, cu_event event) {
    (void)out, (void)event;
    BEGIN_IN_CONTEXT("cuIpcGetEventHandle")
    END(CU_NOT_SUPPORTED);
}
static cu_result ipc_event_open(cu_event *out, cu_ipc handle) {
    (void)out, (void)handle;
    BEGIN_IN_CONTEXT("cuIpcOpenEventHandle")
    END(CU_NOT_SUPPORTED);
}
static cu_result error_name(cu_result result, const char **out) {
    switch (result) {
        case CU_OK: *out = "CUDA_SUCCESS"; break;
        case CU_INVALID_VALUE: *out = "CUDA_ERROR_INVALID_VALUE"; break;
        case CU_OUT_OF_MEMORY: *out = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case ILLEGAL_ADDRESS: *out = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case MISALIGNED: *out = "CUDA_ERROR_MISALIGNED_ADDRESS"; break;
        case NOT_PERMITTED: *out = "CUDA_ERROR_NOT_PERMITTED"; break;
        default: *out = "CUDA_ERROR"; break;
    }
    return CU_OK;
}
static cu_result error_text(cu_result result, const char **out) {
    (void)result;
    *out = "said by the stand-in";
    return CU_OK;
}

API cu_result cuDriverGetVersion(int *out) {
    *out = version;
    return CU_OK;
}

API cu_result cuGetProcAddress_v2(const char *name, void **out, int wanted, uint64_t flags, int *found) {
    (void)flags;
    static const struct {
        const char *name;
        void *entry;
    } entries[] = {
        {"cuInit", (void *)init}, {"cuDriverGetVersion", (void *)cuDriverGetVersion}, {"cuDeviceGetCount", (void *)get_count},
        {"cuDeviceGet", (void *)device_get}, {"cuDeviceGetName", (void *)device_name}, {"cuDeviceGetAttribute", (void *)device_attribute},
        {"cuDeviceTotalMem", (void *)device_memory}, {"cuDeviceGetPCIBusId", (void *)device_pci}, {"cuDeviceGetUuid", (void *)device_uuid},
        {"cuDeviceCanAccessPeer", (void *)device_peer}, {"cuDevicePrimaryCtxRetain", (void *)context_retain},
        {"cuDevicePrimaryCtxRelease", (void *)context_release}, {"cuCtxPushCurrent", (void *)context_push}, {"cuCtxPopCurrent", (void *)context_pop},
        {"cuCtxEnablePeerAccess", (void *)context_peer}, {"cuCtxSynchronize", (void *)context_synchronize},
        {"cuCtxGetStreamPriorityRange", (void *)stream_priorities}, {"cuModuleLoadData", (void *)module_load}, {"cuModuleUnload", (void *)module_unload},
        {"cuModuleGetFunction", (void *)module_function}, {"cuFuncSetAttribute", (void *)function_set}, {"cuLaunchKernel", (void *)launch}, {"cuLaunchKernelEx", (void *)launch_with},
        {"cuMemAlloc", (void *)mem_alloc}, {"cuMemFree", (void *)mem_free}, {"cuMemHostAlloc", (void *)mem_host_alloc}, {"cuMemFreeHost", (void *)mem_host_free},
        {"cuMemHostRegister", (void *)mem_register}, {"cuMemHostUnregister", (void *)mem_unregister}, {"cuMemGetInfo", (void *)mem_info},
        {"cuPointerGetAttribute", (void *)pointer_attribute}, {"cuMemcpyAsync", (void *)mem_copy}, {"cuMemcpy3DAsync", (void *)mem_copy3d},
        {"cuMemsetD8Async", (void *)mem_set}, {"cuStreamCreateWithPriority", (void *)stream_create}, {"cuStreamDestroy", (void *)stream_destroy},
        {"cuStreamSynchronize", (void *)stream_synchronize}, {"cuStreamQuery", (void *)stream_query}, {"cuStreamWaitEvent", (void *)stream_wait},
        {"cuLaunchHostFunc", (void *)stream_call}, {"cuStreamWriteValue32", (void *)stream_write}, {"cuEventCreate", (void *)event_create}, {"cuEventDestroy", (void *)event_destroy},
        {"cuEventRecord", (void *)event_record}, {"cuEventQuery", (void *)event_query}, {"cuEventSynchronize", (void *)event_synchronize},
        {"cuIpcGetMemHandle", (void *)ipc_export}, {"cuIpcOpenMemHandle", (void *)ipc_open}, {"cuIpcCloseMemHandle", (void *)ipc_close},
        {"cuIpcGetEventHandle", (void *)ipc_event_export}, {"cuIpcOpenEventHandle", (void *)ipc_event_open}, {"cuGetErrorName", (void *)error_name},
        {"cuGetErrorString", (void *)error_text},
        {"cuMemGetAllocationGranularity", (void *)virtual_granularity}, {"cuMemCreate", (void *)virtual_create},
        {"cuMemRelease", (void *)virtual_release}, {"cuMemAddressReserve", (void *)virtual_reserve}, {"cuMemAddressFree", (void *)virtual_free},
        {"cuMemMap", (void *)virtual_map}, {"cuMemUnmap", (void *)virtual_unmap}, {"cuMemSetAccess", (void *)virtual_access},
        {"cuMemExportToShareableHandle", (void *)virtual_export}, {"cuMemImportFromShareableHandle", (void *)virtual_import},
    };
    *found = 0;
    *out = NULL;
    if (strcmp(name, "cuMemcpyBatchAsync") == 0) {
        if (wanted > version || wanted < 12080) return 500;
        *out = wanted >= 13000 ? (void *)mem_batch : (void *)mem_batch_old;
        return CU_OK;
    }
    for (size_t i = 0; i < sizeof entries / sizeof *entries && !*out; i++) {
        if (strcmp(entries[i].name, name) == 0) *out = entries[i].entry;
    }
    return *out ? CU_OK : 500;
}
