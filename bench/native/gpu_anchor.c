/*
 * gpu_anchor.c - what plain C on the CUDA driver does with the same bytes: one large DMA, a loop of asynchronous copies,
 * one batched call, a plain zero-copy kernel over tables of addresses, fresh memory touched by threads, and when bytes
 * arrived in host memory. Works in the primary context of the device, so addresses of the process are its own.
 *
 * Every function answers a negative CUDA result (or -1) on failure, else 0; results go to out-parameters, microseconds.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define NOT_READY 600
#define BATCH 4096

typedef struct attributes {
    int order;
    struct { int type, id; } src, dst;
    unsigned flags;
} attributes;

static struct {
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*retain)(void **, int);
    int (*current)(void *);
    int (*stream)(void **, unsigned);
    int (*stream_wait)(void *);
    int (*event)(void **, unsigned);
    int (*record)(void *, void *);
    int (*query)(void *);
    int (*copy)(uint64_t, uint64_t, size_t, void *);
    int (*alloc)(uint64_t *, size_t);
    int (*free)(uint64_t);
    int (*load)(void **, const void *);
    int (*function)(void **, void *, const char *);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
    int (*version)(int *);
    int (*resolve)(const char *, void **, int, uint64_t, int *);
    int (*batch8)(uint64_t *, uint64_t *, size_t *, size_t, attributes *, size_t *, size_t, void *);
    int (*batch9)(uint64_t *, uint64_t *, size_t *, size_t, attributes *, size_t *, size_t, size_t *, void *);
} cu;
static void *context, *streams[2], *event, *kernel;

/* A warp for each chunk, 16-byte loads and stores with streaming hints, four in flight for each lane. */
static const char text[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry plain(.param .u64 psrc, .param .u64 pdst, .param .u64 pbytes, .param .u32 pcount) {\n"
    " .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %d<16>; .reg .b32 %v<16>;\n"
    " ld.param.u64 %d0, [psrc]; ld.param.u64 %d1, [pdst]; ld.param.u64 %d2, [pbytes]; ld.param.u32 %r0, [pcount];\n"
    " mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mov.u32 %r4, %nctaid.x;\n"
    " mad.lo.u32 %r5, %r1, %r2, %r3; shr.u32 %r5, %r5, 5; mul.lo.u32 %r6, %r4, %r2; shr.u32 %r6, %r6, 5;\n"
    " and.b32 %r7, %r3, 31; mul.wide.u32 %d3, %r7, 16;\n"
    "CHUNK: setp.ge.u32 %p0, %r5, %r0; @%p0 bra DONE;\n"
    " mul.wide.u32 %d4, %r5, 8; add.u64 %d5, %d0, %d4; add.u64 %d6, %d1, %d4;\n"
    " ld.global.u64 %d7, [%d5]; ld.global.u64 %d8, [%d6]; mov.u64 %d9, %d3;\n"
    "FOUR: add.u64 %d10, %d9, 1536; setp.ge.u64 %p1, %d10, %d2; @%p1 bra ONE;\n"
    " add.u64 %d11, %d7, %d9; add.u64 %d12, %d8, %d9;\n"
    " ld.global.cs.v4.u32 {%v0,%v1,%v2,%v3}, [%d11]; ld.global.cs.v4.u32 {%v4,%v5,%v6,%v7}, [%d11+512];\n"
    " ld.global.cs.v4.u32 {%v8,%v9,%v10,%v11}, [%d11+1024]; ld.global.cs.v4.u32 {%v12,%v13,%v14,%v15}, [%d11+1536];\n"
    " st.global.cs.v4.u32 [%d12], {%v0,%v1,%v2,%v3}; st.global.cs.v4.u32 [%d12+512], {%v4,%v5,%v6,%v7};\n"
    " st.global.cs.v4.u32 [%d12+1024], {%v8,%v9,%v10,%v11}; st.global.cs.v4.u32 [%d12+1536], {%v12,%v13,%v14,%v15};\n"
    " add.u64 %d9, %d9, 2048; bra FOUR;\n"
    "ONE: setp.ge.u64 %p2, %d9, %d2; @%p2 bra NEXT;\n"
    " add.u64 %d11, %d7, %d9; add.u64 %d12, %d8, %d9;\n"
    " ld.global.cs.v4.u32 {%v0,%v1,%v2,%v3}, [%d11]; st.global.cs.v4.u32 [%d12], {%v0,%v1,%v2,%v3};\n"
    " add.u64 %d9, %d9, 512; bra ONE;\n"
    "NEXT: add.u32 %r5, %r5, %r6; bra CHUNK;\n"
    "DONE: ret;\n}\n";

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e6 + (double)at.tv_nsec / 1e3;
}

#define TRY(call)                              \
    do {                                       \
        int tried = (call);                    \
        if (tried != 0) return -tried;         \
    } while (0)

/* Opens the device's primary context; 0 when done. `path` "": libcuda.so.1. */
API int anchor_open(const char *path, int ordinal) {
    if (context) return 0;
    void *library = dlopen(*path ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return -1;
    static const struct { void **to; const char *name; } names[] = {
        {(void **)&cu.init, "cuInit"}, {(void **)&cu.device, "cuDeviceGet"}, {(void **)&cu.retain, "cuDevicePrimaryCtxRetain"},
        {(void **)&cu.current, "cuCtxSetCurrent"}, {(void **)&cu.stream, "cuStreamCreate"}, {(void **)&cu.stream_wait, "cuStreamSynchronize"},
        {(void **)&cu.event, "cuEventCreate"}, {(void **)&cu.record, "cuEventRecord"}, {(void **)&cu.query, "cuEventQuery"},
        {(void **)&cu.copy, "cuMemcpyAsync"}, {(void **)&cu.alloc, "cuMemAlloc_v2"}, {(void **)&cu.free, "cuMemFree_v2"},
        {(void **)&cu.load, "cuModuleLoadData"}, {(void **)&cu.function, "cuModuleGetFunction"}, {(void **)&cu.launch, "cuLaunchKernel"},
        {(void **)&cu.version, "cuDriverGetVersion"}, {(void **)&cu.resolve, "cuGetProcAddress_v2"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!(*names[i].to = dlsym(library, names[i].name))) return -1;
    int device, version = 0, found;
    void *module;
    TRY(cu.init(0));
    TRY(cu.device(&device, ordinal));
    TRY(cu.retain(&context, device));
    TRY(cu.current(context));
    TRY(cu.stream(&streams[0], 1));
    TRY(cu.stream(&streams[1], 1));
    TRY(cu.event(&event, 2));
    TRY(cu.load(&module, text));
    TRY(cu.function(&kernel, module, "plain"));
    cu.version(&version);
    if (version >= 13000) cu.resolve("cuMemcpyBatchAsync", (void **)&cu.batch8, 13000, 0, &found);
    else if (version >= 12080) cu.resolve("cuMemcpyBatchAsync", (void **)&cu.batch9, 12080, 0, &found);
    return 0;
}

/* Waits for all that was queued, as eagerly as can be. */
static int spin(void *stream) {
    TRY(cu.record(event, stream));
    int result;
    while ((result = cu.query(event)) == NOT_READY) {}
    return -result;
}

/* One DMA, launch to event. */
API int anchor_dma(uint64_t dst, uint64_t src, uint64_t bytes, double *micros) {
    TRY(cu.current(context));
    double begun = now();
    TRY(cu.copy(dst, src, bytes, streams[0]));
    int result = spin(streams[0]);
    *micros = now() - begun;
    return result;
}

/* Two DMAs at once. */
API int anchor_two(uint64_t dst0, uint64_t src0, uint64_t dst1, uint64_t src1, uint64_t bytes, double *micros) {
    TRY(cu.current(context));
    double begun = now();
    TRY(cu.copy(dst0, src0, bytes, streams[0]));
    TRY(cu.copy(dst1, src1, bytes, streams[1]));
    int result = spin(streams[0]);
    if (result == 0) result = spin(streams[1]);
    *micros = now() - begun;
    return result;
}

/* A loop of asynchronous copies. */
API int anchor_loop(const uint64_t *dst, const uint64_t *src, uint32_t count, uint64_t bytes, double *micros) {
    TRY(cu.current(context));
    double begun = now();
    for (uint32_t i = 0; i < count; i++) TRY(cu.copy(dst[i], src[i], bytes, streams[0]));
    int result = spin(streams[0]);
    *micros = now() - begun;
    return result;
}

/* Batched calls of 4,096 descriptors. `submit` gets the time until the last call returned. */
API int anchor_batch(uint64_t *dst, uint64_t *src, uint32_t count, uint64_t bytes, double *micros, double *submit) {
    static size_t sizes[BATCH];
    if (!cu.batch8 && !cu.batch9) return -1;
    TRY(cu.current(context));
    for (uint32_t i = 0; i < BATCH; i++) sizes[i] = bytes;
    double begun = now();
    for (uint32_t at = 0; at < count; at += BATCH) {
        size_t n = count - at < BATCH ? count - at : BATCH, first = 0, wrong = 0;
        attributes how = {.order = 1, .flags = bytes <= 128u << 10 ? 1 : 0};
        if (cu.batch8) TRY(cu.batch8(dst + at, src + at, sizes, n, &how, &first, 1, streams[0]));
        else TRY(cu.batch9(dst + at, src + at, sizes, n, &how, &first, 1, &wrong, streams[0]));
    }
    *submit = now() - begun;
    int result = spin(streams[0]);
    *micros = now() - begun;
    return result;
}

/* The plain kernel over tables of addresses that were uploaded before. */
API int anchor_kernel(uint64_t dst_table, uint64_t src_table, uint32_t count, uint64_t bytes, uint32_t ctas, uint32_t threads, double *micros) {
    TRY(cu.current(context));
    void *parameters[] = {&src_table, &dst_table, &bytes, &count};
    double begun = now();
    TRY(cu.launch(kernel, ctas, 1, 1, threads, 1, 1, 0, streams[0], parameters, NULL));
    int result = spin(streams[0]);
    *micros = now() - begun;
    return result;
}

/* Copies a table of addresses to the device; out[0] = its address there. */
API int anchor_upload(const uint64_t *table, uint32_t count, double *out) {
    uint64_t at = 0;
    TRY(cu.current(context));
    TRY(cu.alloc(&at, 8 * (size_t)count));
    TRY(cu.copy(at, (uint64_t)(uintptr_t)table, 8 * (size_t)count, streams[0]));
    TRY(cu.stream_wait(streams[0]));
    *out = (double)at;
    return 0;
}

API int anchor_release(uint64_t table) {
    TRY(cu.current(context));
    TRY(cu.free(table));
    return 0;
}

/* ---- fresh memory touched by threads -------------------------------------------------------------------------- */

typedef struct part {
    unsigned char *at;
    uint64_t bytes;
} part;

static void *touch(void *argument) {
    part *own = argument;
    if (madvise(own->at, own->bytes, 23 /* MADV_POPULATE_WRITE */) != 0)
        for (uint64_t i = 0; i < own->bytes; i += 4096) own->at[i] = 0;
    return NULL;
}

/* Maps shareable memory and touches it from `threads` threads. */
API int anchor_touch(uint64_t bytes, uint32_t threads, double *micros) {
    pthread_t thread[64];
    part parts[64];
    int descriptor = memfd_create("anchor", 0);
    if (descriptor < 0 || threads == 0 || threads > 64) return -1;
    double begun = now();
    if (ftruncate(descriptor, (off_t)bytes) != 0) return -1;
    unsigned char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (at == MAP_FAILED) return -1;
    madvise(at, bytes, MADV_HUGEPAGE);
    uint64_t share = (bytes / threads + 4095) & ~UINT64_C(4095);
    for (uint32_t i = 0; i < threads; i++) {
        uint64_t from = share * i < bytes ? share * i : bytes;
        parts[i] = (part){at + from, bytes - from < share ? bytes - from : share};
        if (pthread_create(&thread[i], NULL, touch, &parts[i]) != 0) return -1;
    }
    for (uint32_t i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    *micros = now() - begun;
    munmap(at, bytes);
    close(descriptor);
    return 0;
}

/* ---- when bytes arrived --------------------------------------------------------------------------------------- */

static _Atomic(uint64_t) watched;
static _Atomic(uint32_t) wanted;
static _Atomic(double) seen;
static atomic_bool watching, bare;
static void (*waked)(void);

static void *watch(void *unused) {
    (void)unused;
    for (;;) {
        uint64_t at = atomic_load(&watched);
        if (!at) {
            usleep(20);
            continue;
        }
        if (atomic_load(&bare)) {
            usleep(300);
            atomic_store(&watched, 0);
            atomic_store(&seen, now());
            waked();
            continue;
        }
        if (*(volatile uint32_t *)(uintptr_t)at != atomic_load(&wanted)) continue;
        atomic_store(&seen, now());
        atomic_store(&watched, 0);
    }
    return NULL;
}

static int start_watching(void) {
    if (atomic_exchange(&watching, true)) return 0;
    pthread_t thread;
    return pthread_create(&thread, NULL, watch, NULL) == 0 ? 0 : -1;
}

/* Notes when the 32-bit word at `at` becomes `value`. */
API int anchor_watch(uint64_t at, uint32_t value) {
    atomic_store(&bare, false);
    atomic_store(&wanted, value);
    atomic_store(&seen, 0);
    atomic_store(&watched, at);
    return start_watching();
}

/* Calls `callback`, safe from any thread, a moment later: what it takes to wake JavaScript at the least. */
API int anchor_wake(uint64_t callback) {
    waked = (void (*)(void))(uintptr_t)callback;
    atomic_store(&seen, 0);
    atomic_store(&bare, true);
    atomic_store(&watched, 1);
    return start_watching();
}

/* Microseconds since what was watched for came; -1 when it did not. */
API int anchor_since(double *micros) {
    double at = atomic_load(&seen);
    *micros = at == 0 ? -1 : now() - at;
    return 0;
}
