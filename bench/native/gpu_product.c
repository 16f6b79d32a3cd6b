/*
 * gpu_product.c - a matrix product in this process: 8192 x 8192 x 8192 of bf16 by cuBLAS, on a stream of its own in the
 * device's primary context, queued by one call and asked after by another, so that the caller moves blocks meanwhile.
 *
 * Every function answers a negative CUDA result, or one of the numbers below, on failure, else 0.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define SIZE 8192
#define BYTES ((size_t)SIZE * SIZE * 2)
/* What cuBLAS asks for on Hopper is half of it. */
#define WORKSPACE ((size_t)64 << 20)
#define WARM 20
#define NOT_READY 600
#define NO_LIBRARY (-10001)
#define NO_ENTRY (-10002)
#define WRONG_PRODUCT (-10003)
#define NO_MEMORY (-10004)
#define CUBLAS(status) (-20000 - (status))

/* Of library_types.h and cublas_api.h. */
#define BF16 14
#define COMPUTE_32F 68
#define ALGORITHM_DEFAULT (-1)
#define NOT_TRANSPOSED 0

static struct {
    int (*resolve)(const char *, void **, int, uint64_t, int *);
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*retain)(void **, int);
    int (*push)(void *);
    int (*pop)(void **);
    int (*stream)(void **, unsigned, int);
    int (*stream_wait)(void *);
    int (*event)(void **, unsigned);
    int (*record)(void *, void *);
    int (*query)(void *);
    int (*elapsed)(float *, void *, void *);
    int (*copy)(uint64_t, uint64_t, size_t, void *);
    int (*alloc)(uint64_t *, size_t);
} cu;

static struct {
    int (*create)(void **);
    int (*version)(void *, int *);
    int (*set_stream)(void *, void *);
    int (*set_workspace)(void *, void *, size_t);
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int, const void *, void *, int, int,
                int, int);
} blas;

static void *context, *stream, *events[2], *handle;
static uint64_t left, right, out, workspace;
static bool entered, ready;
static char failure[512];

#define TRY(call)                      \
    do {                               \
        int tried = (call);            \
        if (tried != 0) return -tried; \
    } while (0)

#define TRY_BLAS(call)                         \
    do {                                       \
        int tried = (call);                    \
        if (tried != 0) return CUBLAS(tried);  \
    } while (0)

static int load_driver(const char *path) {
    void *library = dlopen(*path ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(failure, sizeof failure, "%s", dlerror());
        return NO_LIBRARY;
    }
    *(void **)&cu.resolve = dlsym(library, "cuGetProcAddress_v2");
    if (!cu.resolve) return NO_ENTRY;
    static const struct { void *to; const char *name; } names[] = {
        {&cu.init, "cuInit"}, {&cu.device, "cuDeviceGet"}, {&cu.retain, "cuDevicePrimaryCtxRetain"}, {&cu.push, "cuCtxPushCurrent"},
        {&cu.pop, "cuCtxPopCurrent"}, {&cu.stream, "cuStreamCreateWithPriority"}, {&cu.stream_wait, "cuStreamSynchronize"},
        {&cu.event, "cuEventCreate"}, {&cu.record, "cuEventRecord"}, {&cu.query, "cuEventQuery"}, {&cu.elapsed, "cuEventElapsedTime"},
        {&cu.copy, "cuMemcpyAsync"}, {&cu.alloc, "cuMemAlloc"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int found = 0;
        void *entry = NULL;
        if (cu.resolve(names[i].name, &entry, 12000, 0, &found) != 0 || !entry) {
            snprintf(failure, sizeof failure, "the driver has no %s", names[i].name);
            return NO_ENTRY;
        }
        memcpy(names[i].to, &entry, sizeof entry);
    }
    return 0;
}

static int load_blas(const char *path, const char *part) {
    /* The library asks for this part by its bare name, which finds it only where it was loaded before. */
    if (*part) dlopen(part, RTLD_NOW | RTLD_GLOBAL);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(failure, sizeof failure, "%s", dlerror());
        return NO_LIBRARY;
    }
    static const struct { void *to; const char *name; } names[] = {
        {&blas.create, "cublasCreate_v2"}, {&blas.version, "cublasGetVersion_v2"}, {&blas.set_stream, "cublasSetStream_v2"},
        {&blas.set_workspace, "cublasSetWorkspace_v2"}, {&blas.gemm, "cublasGemmEx"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *entry = dlsym(library, names[i].name);
        if (!entry) {
            snprintf(failure, sizeof failure, "%s has no %s", path, names[i].name);
            return NO_ENTRY;
        }
        memcpy(names[i].to, &entry, sizeof entry);
    }
    return 0;
}

/* ---- numbers ------------------------------------------------------------------------------------------------------- */

static float wide(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Near enough to a normal distribution, as PyTorch's randn gives it: what the numbers are decides how much power a product takes. */
static void fill(uint16_t *at, uint64_t state) {
    for (size_t i = 0; i < (size_t)SIZE * SIZE; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t sum = (uint32_t)(state & 0xffff) + (uint32_t)(state >> 16 & 0xffff) + (uint32_t)(state >> 32 & 0xffff) + (uint32_t)(state >> 48);
        float number = ((float)sum / 65536.0f - 2.0f) * 1.7320508f;
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        at[i] = (uint16_t)(bits >> 16);
    }
}

static int multiply(uint32_t count) {
    static const float one = 1, zero = 0;
    for (uint32_t i = 0; i < count; i++)
        TRY_BLAS(blas.gemm(handle, NOT_TRANSPOSED, NOT_TRANSPOSED, SIZE, SIZE, SIZE, &one, (const void *)(uintptr_t)left, BF16, SIZE,
                           (const void *)(uintptr_t)right, BF16, SIZE, &zero, (void *)(uintptr_t)out, BF16, SIZE, COMPUTE_32F,
                           ALGORITHM_DEFAULT));
    return 0;
}

/* One number of the product, against the sum that it is: matrices lie column after column. */
static int verify(const uint16_t *a, const uint16_t *b) {
    static const size_t row = 4321, column = 1234;
    uint16_t got = 0;
    TRY(cu.copy((uint64_t)(uintptr_t)&got, out + 2 * (column * SIZE + row), 2, stream));
    TRY(cu.stream_wait(stream));
    double wanted = 0;
    for (size_t k = 0; k < SIZE; k++) wanted += (double)wide(a[k * SIZE + row]) * (double)wide(b[column * SIZE + k]);
    if (fabs(wanted - (double)wide(got)) <= 0.01 * fabs(wanted) + 0.1) return 0;
    snprintf(failure, sizeof failure, "the product has %g where %g is right", (double)wide(got), wanted);
    return WRONG_PRODUCT;
}

static int prepare(int ordinal, uint16_t *a, uint16_t *b) {
    int device;
    TRY(cu.init(0));
    TRY(cu.device(&device, ordinal));
    TRY(cu.retain(&context, device));
    TRY(cu.push(context));
    entered = true;
    TRY(cu.stream(&stream, 1, 0)); /* not ordered after the default stream; of the lowest priority */
    for (int i = 0; i < 2; i++) TRY(cu.event(&events[i], 0));
    TRY(cu.alloc(&left, BYTES));
    TRY(cu.alloc(&right, BYTES));
    TRY(cu.alloc(&out, BYTES));
    TRY(cu.alloc(&workspace, WORKSPACE));
    fill(a, UINT64_C(0x9e3779b97f4a7c15));
    fill(b, UINT64_C(0xbf58476d1ce4e5b9));
    TRY(cu.copy(left, (uint64_t)(uintptr_t)a, BYTES, stream));
    TRY(cu.copy(right, (uint64_t)(uintptr_t)b, BYTES, stream));
    TRY(cu.stream_wait(stream));
    TRY_BLAS(blas.create(&handle));
    TRY_BLAS(blas.set_stream(handle, stream));
    TRY_BLAS(blas.set_workspace(handle, (void *)(uintptr_t)workspace, WORKSPACE));
    TRY(-multiply(WARM));
    TRY(cu.stream_wait(stream));
    return verify(a, b);
}

/*
 * Makes the matrices and multiplies them a few times. `driver` "": libcuda.so.1. `part`: libcublasLt beside `cublas`, or
 * "". *version gets what cuBLAS calls itself.
 */
API int product_open(const char *driver, const char *cublas, const char *part, int ordinal, double *version) {
    failure[0] = 0;
    if (ready) return 0;
    int status = cu.alloc ? 0 : load_driver(driver);
    if (status == 0) status = load_blas(cublas, part);
    if (status != 0) return status;
    uint16_t *a = malloc(BYTES), *b = malloc(BYTES);
    status = a && b ? prepare(ordinal, a, b) : NO_MEMORY;
    free(a);
    free(b);
    void *popped;
    if (entered) cu.pop(&popped);
    entered = false;
    ready = status == 0;
    int number = 0;
    if (ready) blas.version(handle, &number);
    *version = number;
    return status;
}

/* Queues `count` products and returns. */
API int product_queue(uint32_t count) {
    void *popped;
    TRY(cu.push(context));
    int status = -cu.record(events[0], stream);
    if (status == 0) status = multiply(count);
    if (status == 0) status = -cu.record(events[1], stream);
    cu.pop(&popped);
    return status;
}

/* 1 while the queued products run; else 0, and *millis gets the time from the first one's start to the last one's end. */
API int product_over(double *millis) {
    void *popped;
    float taken = 0;
    TRY(cu.push(context));
    int result = cu.query(events[1]);
    if (result == 0) result = cu.elapsed(&taken, events[0], events[1]);
    cu.pop(&popped);
    *millis = taken;
    return result == NOT_READY ? 1 : -result;
}

/* What is known of the last failure beside its number. */
API int product_failure(char *text, uint32_t room) {
    snprintf(text, room, "%s", failure);
    return 0;
}
