/*
 * native_bench.c - what the CUDA executor reaches on a real GPU, beside the anchors: one large DMA, a loop of asynchronous
 * copies, batched calls, all in this process. Bytes are verified once for each method and case. Prints CSV:
 *
 *   id,variant,GB/s or us,ratio to the limit,submit us,bytes
 *
 *   native_bench SUITE...     link, small, device, both, wake, pinned, submit; sweep: more variants
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_device.h"
#include "cuda_memory.h"
#include "thread.h"

#define GIB (UINT64_C(1) << 30)
#define CHUNKS 160
#define GAPS (1u << 20) /* between regions, in all */

static const kvf_cuda_driver *cu;
static kvf_cuda_device *gpu;
static cu_stream stream, other_stream;
static uint64_t device_a, device_b, host_a;
static bool sweep;
static uint64_t random_state = 7;

static uint64_t draw(void) {
    uint64_t z = (random_state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void must(int32_t status, const char *what) {
    if (status == KVF_OK) return;
    char text[600];
    kvf_last_error(text, sizeof text);
    fprintf(stderr, "%s: %d %s\n", what, status, text);
    exit(1);
}
#define MUST(call) must((call), #call)

static void shuffle(uint32_t *ids, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) ids[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)(draw() % i), swap = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = swap;
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double median(double *values, uint32_t n) {
    qsort(values, n, sizeof *values, ascending);
    return values[n / 2];
}
static double now_micros(void) { return (double)kvf_now_nanos() / 1e3; }

/* ---- hops ------------------------------------------------------------------------------------------------------------ */

typedef struct hop {
    double *words;
    uint64_t length, bytes;
    double *p;
} hop;

static hop begin(uint64_t room) {
    hop h = {.words = calloc(64 + room, sizeof(double)), .length = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS};
    h.p = h.words + KVF_HOP_HEADER_WORDS;
    h.p[0] = h.p[1] = 1;
    return h;
}
static double *list(hop *h, int word, uint64_t n) {
    h->p[word] = (double)h->length;
    h->length += n;
    return h->words + h->length - n;
}
static void finish(hop *h, uint64_t bytes, uint32_t src_kind, uint32_t dst_kind) {
    h->p[24] = src_kind;
    h->p[26] = dst_kind;
    h->p[33] = h->words[4] = (double)bytes;
    h->words[0] = KVF_HOP_MAGIC;
    h->words[1] = KVF_HOP_VERSION;
    h->words[2] = 1;
    h->words[3] = (double)h->length;
    h->bytes = bytes;
}

/* Layers with memory of their own on the device, whole blocks on the host; or the other way round. */
static hop pool_hop(uint64_t device, uint64_t host, uint32_t blocks, uint64_t chunk, bool to_host) {
    hop h = begin(2 * CHUNKS + 2 * blocks);
    const uint64_t region = blocks * chunk;
    uint32_t *a = malloc(blocks * 4), *b = malloc(blocks * 4);
    shuffle(a, blocks);
    shuffle(b, blocks);
    const int d = to_host ? 0 : 1, s = 1 - d;
    double *bases[2], *offsets[2];
    h.p[0] = CHUNKS;
    h.p[1] = blocks;
    h.p[3] = (double)chunk;
    bases[0] = list(&h, 28, CHUNKS);
    bases[1] = list(&h, 29, CHUNKS);
    offsets[0] = list(&h, 30, blocks);
    offsets[1] = list(&h, 31, blocks);
    for (uint32_t r = 0; r < CHUNKS; r++) {
        bases[d][r] = (double)(device + r * region + (8 * r + r * r % 7) * 256);
        bases[s][r] = (double)(host + r * chunk);
    }
    for (uint32_t p = 0; p < blocks; p++) {
        offsets[d][p] = (double)(a[p] * chunk);
        offsets[s][p] = (double)(b[p] * chunk * CHUNKS);
    }
    free(a);
    free(b);
    finish(&h, (uint64_t)CHUNKS * blocks * chunk, to_host ? 1 : 0, to_host ? 0 : 1);
    return h;
}

static hop scattered_hop(uint64_t from, uint64_t to, uint32_t n, uint64_t chunk, uint32_t src_kind, uint32_t dst_kind) {
    hop h = begin(2 + 2 * (uint64_t)n);
    uint32_t *a = malloc(n * 4), *b = malloc(n * 4);
    shuffle(a, n);
    shuffle(b, n);
    h.p[1] = n;
    h.p[3] = (double)chunk;
    list(&h, 28, 1)[0] = (double)from;
    list(&h, 29, 1)[0] = (double)to;
    double *x = list(&h, 30, n), *y = list(&h, 31, n);
    for (uint32_t p = 0; p < n; p++) {
        x[p] = (double)(a[p] * chunk);
        y[p] = (double)(b[p] * chunk);
    }
    free(a);
    free(b);
    finish(&h, (uint64_t)n * chunk, src_kind, dst_kind);
    return h;
}

/* Scattered blocks of layers with memory of their own on both sides: few ids, many small runs. */
static hop layers_hop(uint64_t from, uint64_t to, uint32_t layers, uint32_t blocks, uint64_t run, uint32_t src_kind, uint32_t dst_kind) {
    hop h = begin(2 * layers + 2 * (uint64_t)blocks);
    uint32_t *a = malloc(blocks * 4), *b = malloc(blocks * 4);
    shuffle(a, blocks);
    shuffle(b, blocks);
    h.p[0] = layers;
    h.p[1] = blocks;
    h.p[3] = (double)run;
    double *x = list(&h, 28, layers), *y = list(&h, 29, layers), *u = list(&h, 30, blocks), *v = list(&h, 31, blocks);
    for (uint32_t r = 0; r < layers; r++) {
        x[r] = (double)(from + r * blocks * run + (8 * r + r * r % 7) * 256);
        y[r] = (double)(to + r * blocks * run + (8 * r + r * r % 5) * 256);
    }
    for (uint32_t p = 0; p < blocks; p++) {
        u[p] = (double)(a[p] * run);
        v[p] = (double)(b[p] * run);
    }
    free(a);
    free(b);
    finish(&h, (uint64_t)layers * blocks * run, src_kind, dst_kind);
    return h;
}

/* Reordering of whole blocks: source [layer][outer][page][head] of rows, destination in another order of the axes. */
static hop order_hop(uint64_t from, uint64_t to, uint32_t blocks, uint64_t head_bytes, bool universal) {
    const uint64_t layers = 16, outers = 2, pages = 16, heads = 8;
    const uint64_t block = layers * outers * pages * heads * head_bytes;
    hop h = begin(2 + 2 * (uint64_t)blocks);
    uint32_t *a = malloc(blocks * 4), *b = malloc(blocks * 4);
    shuffle(a, blocks);
    shuffle(b, blocks);
    h.p[1] = blocks;
    h.p[3] = (double)head_bytes;
    list(&h, 28, 1)[0] = (double)from;
    list(&h, 29, 1)[0] = (double)to;
    double *x = list(&h, 30, blocks), *y = list(&h, 31, blocks);
    for (uint32_t p = 0; p < blocks; p++) {
        x[p] = (double)(a[p] * block);
        y[p] = (double)(b[p] * block);
    }
    const double hb = (double)head_bytes;
    if (universal) { /* [head][layer][outer][page] */
        const double count[4] = {(double)layers, (double)outers, (double)pages, (double)heads};
        const double src[4] = {(double)(outers * pages * heads) * hb, (double)(pages * heads) * hb, (double)heads * hb, hb};
        const double dst[4] = {(double)(outers * pages) * hb, (double)pages * hb, hb, (double)(layers * outers * pages) * hb};
        h.p[2] = 4;
        for (int k = 0; k < 4; k++) h.p[6 + k] = count[k], h.p[12 + k] = src[k], h.p[18 + k] = dst[k];
    } else { /* [layer][outer][head][page] */
        const double count[3] = {(double)(layers * outers), (double)pages, (double)heads};
        const double src[3] = {(double)(pages * heads) * hb, (double)heads * hb, hb};
        const double dst[3] = {(double)(pages * heads) * hb, hb, (double)pages * hb};
        h.p[2] = 3;
        for (int k = 0; k < 3; k++) h.p[6 + k] = count[k], h.p[12 + k] = src[k], h.p[18 + k] = dst[k];
    }
    free(a);
    free(b);
    finish(&h, blocks * block, 1, 1);
    return h;
}

/* ---- measuring ------------------------------------------------------------------------------------------------------------ */

typedef struct figure {
    double micros, submit;
} figure;

static figure ours(const hop *h, uint32_t method, uint32_t width, uint32_t repeats) {
    double out[1 + 2 * 64], total[64], submit[64];
    MUST(kvf_cuda_test_copy(0, h->words, h->length, method, width, repeats + 2, out));
    for (uint32_t i = 0; i < repeats; i++) submit[i] = out[1 + 2 * (i + 2)], total[i] = out[2 + 2 * (i + 2)];
    return (figure){median(total, repeats), median(submit, repeats)};
}

/* One DMA of the same bytes, launch to event, the host waiting as eagerly as for ours. */
static figure one_dma(uint64_t dst, uint64_t src, uint64_t bytes, uint32_t repeats) {
    cu_event event;
    double total[64], submit[64];
    MUST(kvf_cuda_enter(gpu));
    cu->event_create(&event, CU_EVENT_NO_TIMING);
    for (uint32_t i = 0; i < repeats + 2; i++) {
        double begun = now_micros();
        if (cu->copy(dst, src, bytes, stream) != CU_OK) exit(3);
        cu->event_record(event, stream);
        double queued = now_micros();
        while (cu->event_query(event) == CU_NOT_READY) {}
        if (i >= 2) total[i - 2] = now_micros() - begun, submit[i - 2] = queued - begun;
    }
    cu->event_destroy(event);
    kvf_cuda_leave();
    return (figure){median(total, repeats), median(submit, repeats)};
}

static void line(const char *id, const char *variant, figure f, uint64_t bytes, double limit, bool time) {
    printf("%s,%s,%.2f,%.3f,%.1f,%llu\n", id, variant, time ? f.micros : (double)bytes / f.micros / 1e3, limit / f.micros, f.submit, (unsigned long long)bytes);
    fflush(stdout);
}

/* ---- verification: a hop's destination against plain loops over its own numbers --------------------------------------------- */

static unsigned char *shadow_src, *shadow_dst;
static uint64_t shadow_bytes;

static void fetch(unsigned char *to, uint64_t from, uint64_t bytes) {
    MUST(kvf_cuda_enter(gpu));
    if (cu->copy((uint64_t)(uintptr_t)to, from, bytes, stream) != CU_OK || cu->stream_synchronize(stream) != CU_OK) exit(4);
    kvf_cuda_leave();
}

static uint64_t verify(const hop *h, uint64_t src, uint64_t dst, uint64_t reach) {
    if (reach > shadow_bytes) reach = shadow_bytes;
    fetch(shadow_src, src, reach);
    fetch(shadow_dst, dst, reach);
    kvf_hop parsed;
    MUST(kvf_hop_parse(&parsed, h->words, h->length));
    kvf_cursor cursor;
    kvf_row row;
    kvf_cursor_open(&cursor, &parsed);
    uint64_t wrong = 0, rows = 0;
    while (kvf_cursor_next(&cursor, &row)) {
        if (row.src - src + row.bytes > reach || row.dst - dst + row.bytes > reach) wrong++;
        else wrong += memcmp(shadow_src + (row.src - src), shadow_dst + (row.dst - dst), row.bytes) != 0;
        rows++;
    }
    kvf_hop_free(&parsed);
    if (wrong) fprintf(stderr, "WRONG: %llu of %llu rows\n", (unsigned long long)wrong, (unsigned long long)rows);
    return wrong;
}

static uint64_t wrong_rows, verified;

static void refill(uint64_t at, uint64_t bytes) {
    MUST(kvf_cuda_memory_set(0, at, bytes, 0xa5));
}

static void verified_run(const char *id, const char *variant, const hop *h, uint32_t method, uint32_t width, uint64_t src, uint64_t dst, uint64_t reach, double limit,
                         uint32_t repeats, bool time, bool check) {
    if (check) refill(dst, reach);
    figure f = ours(h, method, width, repeats);
    line(id, variant, f, h->bytes, limit, time);
    if (check) {
        wrong_rows += verify(h, src, dst, reach);
        verified++;
    }
}

/* ---- suites ------------------------------------------------------------------------------------------------------------------- */

static void link_case(const char *name, uint64_t chunk, bool to_host, bool pool) {
    const uint64_t bytes = 256u << 20;
    char id[64];
    snprintf(id, sizeof id, "F1.%s.%s.%s", to_host ? "d2h" : "h2d", pool ? "pool" : "scattered", name);
    hop h;
    if (pool) h = pool_hop(device_a, host_a, (uint32_t)(bytes / (CHUNKS * chunk)), chunk, to_host);
    else h = layers_hop(to_host ? device_a : host_a, to_host ? host_a : device_a, CHUNKS, (uint32_t)(bytes / (CHUNKS * chunk)), chunk, to_host, !to_host);
    const uint64_t src = to_host ? device_a : host_a, dst = to_host ? host_a : device_a, reach = h.bytes + GAPS;
    figure dma = one_dma(dst, src, h.bytes, 9);
    line(id, "limit: one DMA", dma, h.bytes, dma.micros, false);
    kvf_cuda_tuning *t = &gpu->tuning;
    const kvf_cuda_tuning standard = *t;
    char variant[64];
    for (uint32_t ctas = 8; ctas <= 32; ctas *= 2) {
        if (!sweep && ctas != 16) continue;
        snprintf(variant, sizeof variant, "kernel %u", ctas);
        verified_run(id, variant, &h, KVF_CUDA_METHOD_KERNEL, ctas, src, dst, reach, dma.micros, 9, false, ctas == 16);
    }
    for (uint32_t stage = 4096; stage <= 8192 && sweep && gpu->kernel[KVF_KERNEL_BULK]; stage *= 2) {
        for (uint32_t ctas = 2; ctas <= 16; ctas *= 2) {
            if (!sweep && (stage != standard.bulk_stage || ctas != standard.bulk_ctas)) continue;
            if (stage > chunk && stage > 4096) continue;
            t->bulk_stage = stage;
            t->bulk_warps = stage >= 16384 ? 3 : 4;
            snprintf(variant, sizeof variant, "bulk %u x %u", ctas, stage);
            verified_run(id, variant, &h, KVF_CUDA_METHOD_BULK, ctas, src, dst, reach, dma.micros, 7, false, ctas == 8);
        }
    }
    *t = standard;
    for (uint64_t slab = 4; slab <= 16 && pool; slab *= 2) {
        for (uint32_t streams = 1; streams <= 2; streams++) {
            if (!sweep && slab < 8) continue;
            t->slab_chunk = slab << 20;
            t->slab_streams = streams;
            snprintf(variant, sizeof variant, "slab %llu MiB x %u", (unsigned long long)slab, streams);
            verified_run(id, variant, &h, KVF_CUDA_METHOD_SLAB, 0, src, dst, reach, dma.micros, 7, false, streams == 2);
        }
    }
    *t = standard;
    if (cu->batch8 || cu->batch9) verified_run(id, "batch", &h, KVF_CUDA_METHOD_BATCH, 0, src, dst, reach, dma.micros, 2, false, sweep);
    if (chunk >= 32768) verified_run(id, "loop", &h, KVF_CUDA_METHOD_DMA, 0, src, dst, reach, dma.micros, 2, false, sweep);
    free(h.words);
}

static void suite_link(void) {
    static const struct {
        const char *name;
        uint64_t chunk;
    } sizes[] = {{"4k", 4096}, {"8k", 8192}, {"16k", 16384}, {"32k", 32768}, {"64k", 65536}, {"256k", 262144}};
    for (int way = 0; way < 2; way++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            if (sweep && i != 0 && i != 2 && i != 4) continue;
            for (int pool = 1; pool >= 0; pool--) link_case(sizes[i].name, sizes[i].chunk, way == 0, pool == 1);
        }
}

static void suite_small(void) {
    static const struct {
        const char *name;
        uint32_t blocks;
        uint64_t chunk;
    } cases[] = {{"F2", 1, 32768}, {"F3", 8, 8192}, {"1x2k", 1, 2048}};
    for (size_t i = 0; i < 3; i++)
        for (int to_host = 1; to_host >= 0; to_host--) {
            char id[32];
            snprintf(id, sizeof id, "%s.%s", cases[i].name, to_host ? "d2h" : "h2d");
            hop h = pool_hop(device_a, host_a, cases[i].blocks, cases[i].chunk, to_host);
            const uint64_t src = to_host ? device_a : host_a, dst = to_host ? host_a : device_a, reach = h.bytes + GAPS;
            figure dma = one_dma(dst, src, h.bytes, 51);
            line(id, "limit: one DMA", dma, h.bytes, dma.micros, true);
            for (uint32_t side = sweep ? 0 : 1; side < 2; side++) {
                gpu->tuning.look = side;
                for (uint32_t ctas = 8; ctas <= 32; ctas *= 2) {
                    char variant[64];
                    snprintf(variant, sizeof variant, "kernel %u%s", ctas, side ? " look" : "");
                    verified_run(id, variant, &h, KVF_CUDA_METHOD_KERNEL, ctas, src, dst, reach, dma.micros, 51, true, ctas == 16 && side);
                    if (!gpu->kernel[KVF_KERNEL_BULK]) continue;
                    snprintf(variant, sizeof variant, "bulk %u%s", ctas, side ? " look" : "");
                    verified_run(id, variant, &h, KVF_CUDA_METHOD_BULK, ctas, src, dst, reach, dma.micros, 51, true, ctas == 16 && side);
                }
            }
            verified_run(id, "slab", &h, KVF_CUDA_METHOD_SLAB, 0, src, dst, reach, dma.micros, 21, true, true);
            if (cu->batch8 || cu->batch9) verified_run(id, "batch", &h, KVF_CUDA_METHOD_BATCH, 0, src, dst, reach, dma.micros, 21, true, true);
            free(h.words);
        }
}

static void device_case(const char *id, hop h) {
    const uint64_t reach = h.bytes + GAPS;
    figure dma = one_dma(device_b, device_a, h.bytes, 15);
    line(id, "limit: one copy", dma, h.bytes, dma.micros, false);
    kvf_cuda_tuning *t = &gpu->tuning;
    const kvf_cuda_tuning standard = *t;
    char variant[64];
    for (uint32_t threads = 256; threads <= 512; threads *= 2) {
        for (uint32_t per = 1; per <= 16; per *= 2) {
            if (!sweep && (threads != standard.device_threads || per == 1)) continue;
            t->device_threads = threads;
            snprintf(variant, sizeof variant, "kernel %u/SM x %u", per, threads);
            verified_run(id, variant, &h, KVF_CUDA_METHOD_KERNEL, per * (uint32_t)gpu->sms, device_a, device_b, reach, dma.micros, 9, false, per == 4 && threads == 512);
        }
    }
    *t = standard;
    for (uint32_t per = 1; per <= 2 && sweep && gpu->kernel[KVF_KERNEL_BULK]; per++) {
        for (uint32_t stage = 2048; stage <= 8192; stage *= 2) {
            if (!sweep && (per != 1 || stage != 4096)) continue;
            t->bulk_stage = stage;
            t->bulk_warps = per == 1 ? 6 : 3;
            snprintf(variant, sizeof variant, "bulk %u/SM x %u", per, stage);
            verified_run(id, variant, &h, KVF_CUDA_METHOD_BULK, per * (uint32_t)gpu->sms, device_a, device_b, reach, dma.micros, 5, false, per == 1 && stage == 4096);
        }
    }
    *t = standard;
    free(h.words);
}

static void suite_device(void) {
    device_case("F4.scatter.256", layers_hop(device_a, device_b, 256, 16384, 256, 1, 1));
    device_case("F4.scatter.2k", layers_hop(device_a, device_b, 160, 3277, 2048, 1, 1));
    device_case("F4.scatter.16k", layers_hop(device_a, device_b, 160, 410, 16384, 1, 1));
    device_case("F4.scatter.256k", scattered_hop(device_a, device_b, 4096, 262144, 1, 1));
    device_case("F4.scatter.1m", scattered_hop(device_a, device_b, 1024, 1 << 20, 1, 1));
    device_case("F4.nhd-hnd.64", order_hop(device_a, device_b, 2048, 128, false));
    device_case("F4.nhd-hnd.128", order_hop(device_a, device_b, 1024, 256, false));
    device_case("F4.nhd-universal.64", order_hop(device_a, device_b, 2048, 128, true));
    device_case("F4.nhd-universal.128", order_hop(device_a, device_b, 1024, 256, true));
}

static void suite_both(void) {
    hop a = pool_hop(device_a, host_a, 25, 65536, true), b = pool_hop(device_b, host_a + GIB, 25, 65536, false);
    MUST(kvf_cuda_enter(gpu));
    double total[15];
    for (int i = 0; i < 15; i++) {
        double begun = now_micros();
        cu->copy(host_a, device_a, a.bytes, stream);
        cu->copy(device_b, host_a + GIB, b.bytes, other_stream);
        cu->stream_synchronize(stream);
        cu->stream_synchronize(other_stream);
        total[i] = now_micros() - begun;
    }
    kvf_cuda_leave();
    figure dma = {median(total, 15), 0};
    line("F5.both", "limit: two DMAs", dma, a.bytes + b.bytes, dma.micros, false);
    static const struct {
        const char *name;
        uint32_t method;
    } ways[] = {{"slab", KVF_CUDA_METHOD_SLAB}, {"kernel", KVF_CUDA_METHOD_KERNEL}, {"bulk", KVF_CUDA_METHOD_BULK}};
    for (int w = 0; w < 3; w++) {
        if (ways[w].method == KVF_CUDA_METHOD_BULK && !gpu->kernel[KVF_KERNEL_BULK]) continue;
        double made[3], left;
        MUST(kvf_context_open(64, made));
        uint32_t *shared = (uint32_t *)(uintptr_t)(uint64_t)made[1];
        for (int i = -2; i < 15; i++) {
            const uint32_t head = __atomic_load_n(&shared[0], __ATOMIC_ACQUIRE);
            double begun = now_micros();
            MUST(kvf_cuda_copy_job((kvf_word)made[0], 0, 0, a.words, a.length, ways[w].method, 0, 0, 0, NULL, 0, NULL, NULL, 0));
            MUST(kvf_cuda_copy_job((kvf_word)made[0], 1, 0, b.words, b.length, ways[w].method, 0, 0, 0, NULL, 0, NULL, NULL, 0));
            while (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) != head + 2) {}
            if (i >= 0) total[i] = now_micros() - begun;
            __atomic_store_n(&shared[1], head + 2, __ATOMIC_RELEASE);
        }
        figure f = {median(total, 15), 0};
        line("F5.both", ways[w].name, f, a.bytes + b.bytes, dma.micros, false);
        kvf_context_close((kvf_word)made[0], 1000, &left);
    }
    free(a.words);
    free(b.words);
}

/* From bytes that the device wrote to the completion on the ring. */
static void suite_wake(void) {
    double made[3];
    MUST(kvf_context_open(64, made));
    uint32_t *shared = (uint32_t *)(uintptr_t)(uint64_t)made[1];
    volatile uint32_t *flag = (volatile uint32_t *)(uintptr_t)host_a;
    MUST(kvf_cuda_memory_set(0, device_a, 4096, 1));
    hop h = begin(8);
    h.p[3] = 4096;
    list(&h, 28, 1)[0] = (double)device_a;
    list(&h, 29, 1)[0] = (double)host_a;
    list(&h, 30, 1)[0] = 0;
    list(&h, 31, 1)[0] = 0;
    finish(&h, 4096, 1, 0);
    for (uint32_t side = 0; side < 2; side++) {
        gpu->tuning.look = side;
        double late[201];
        for (int i = 0; i < 201; i++) {
            flag[1023] = 0;
            usleep(side ? 300 : 300);
            uint32_t head = __atomic_load_n(&shared[0], __ATOMIC_ACQUIRE);
            MUST(kvf_cuda_test_sleep(0, (kvf_word)(uintptr_t)stream, 200));
            MUST(kvf_cuda_copy_job((kvf_word)made[0], 0, 0, h.words, h.length, KVF_CUDA_METHOD_KERNEL, 1, 0, (kvf_word)(uintptr_t)stream, NULL, 0, NULL, NULL, 0));
            while (!flag[1023]) {}
            double begun = now_micros();
            while (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) == head) {}
            late[i] = now_micros() - begun;
            __atomic_store_n(&shared[1], head + 1, __ATOMIC_RELEASE);
        }
        double middle = median(late, 201);
        printf("F6.native,%s,%.1f,0,%.1f,4096\n", side ? "watched flag (p50 p99)" : "host function (p50 p99)", middle, late[198]);
    }
    gpu->tuning.look = 1;
    /* A thread of ours in a blocking wait, the alternative. */
    MUST(kvf_cuda_enter(gpu));
    cu_event event;
    cu->event_create(&event, CU_EVENT_NO_TIMING | CU_EVENT_BLOCKING);
    double late[201];
    for (int i = 0; i < 201; i++) {
        cu->event_record(event, stream);
        flag[0] = 0;
        usleep(300);
        MUST(kvf_cuda_test_sleep(0, (kvf_word)(uintptr_t)stream, 200));
        cu->copy(host_a, device_a, 4096, stream);
        cu->event_record(event, stream);
        double begun = now_micros();
        cu->event_synchronize(event);
        late[i] = now_micros() - begun - 200;
    }
    double middle = median(late, 201);
    printf("F6.native,blocking event wait over the 200 us (p50 p99; launch and copy included),%.1f,0,%.1f,4096\n", middle, late[198]);
    for (int i = 0; i < 201; i++) {
        usleep(300);
        MUST(kvf_cuda_test_sleep(0, (kvf_word)(uintptr_t)stream, 200));
        cu->copy(host_a, device_a, 4096, stream);
        cu->event_record(event, stream);
        double begun = now_micros();
        while (cu->event_query(event) == CU_NOT_READY) {}
        late[i] = now_micros() - begun - 200;
    }
    middle = median(late, 201);
    printf("F6.native,spinning event wait over the 200 us (the same base),%.1f,0,%.1f,4096\n", middle, late[198]);
    cu->event_destroy(event);
    kvf_cuda_leave();
    double left;
    kvf_context_close((kvf_word)made[0], 1000, &left);
    free(h.words);
}

static void suite_submit(void) {
    static const uint32_t counts[] = {1, 64, 512, 4096, 16384};
    for (int i = 0; i < 5; i++) {
        hop h = scattered_hop(device_a, host_a, counts[i], 4096, 1, 0);
        figure f = ours(&h, KVF_CUDA_METHOD_KERNEL, 0, 41);
        printf("F7.native.%u,kernel: submit us and us in all,%.1f,0,%.1f,%llu\n", counts[i], f.micros, f.submit, (unsigned long long)h.bytes);
        if ((cu->batch8 || cu->batch9) && counts[i] <= 4096) {
            f = ours(&h, KVF_CUDA_METHOD_BATCH, 0, 11);
            printf("F7.native.%u,batch: submit us and us in all,%.1f,0,%.1f,%llu\n", counts[i], f.micros, f.submit, (unsigned long long)h.bytes);
        }
        free(h.words);
    }
}

/* What single calls of the driver cost, and the library's steps around them. */
static void suite_calls(void) {
    MUST(kvf_cuda_enter(gpu));
    cu_event event;
    cu->event_create(&event, CU_EVENT_NO_TIMING);
    hop h = pool_hop(device_a, host_a, 1, 4096, true);
    kvf_hop parsed;
    MUST(kvf_hop_parse(&parsed, h.words, h.length));
    kvf_nest nest;
    static kvf_kernel_program program;
    bool external;
    uint64_t nothing = 0;
    void *big[] = {&program}, *small[] = {&nothing};
    for (int what = 0; what < 9; what++) {
        static const char *const names[] = {"launch 4 KiB of parameters", "launch 8 bytes of parameters", "event record", "stream write", "event wait", "host function",
                                            "copy 4 KiB to the device", "push and pop", "parse, nest, check, program of 160 bases"};
        double each[200];
        for (int i = 0; i < 200; i++) {
            kvf_nest_from(&nest, &parsed.program[0]);
            kvf_nest_program(&nest, KVF_DST, KVF_SHAPE_PIECES, 16, 4096, NULL, &external, &program);
            cu->stream_synchronize(stream);
            uint64_t low, high;
            const double begun = now_micros();
            switch (what) {
                case 0: cu->launch(gpu->kernel[KVF_KERNEL_PIECES_16], 8, 1, 1, 512, 1, 1, 0, stream, big, NULL); break;
                case 1: cu->launch(gpu->kernel[KVF_KERNEL_SLEEP], 1, 1, 1, 1, 1, 1, 0, stream, small, NULL); break;
                case 2: cu->event_record(event, stream); break;
                case 3: cu->stream_write(stream, (cu_pointer)(uintptr_t)gpu->flags, 0, 0); break;
                case 4: cu->stream_wait(stream, event, 0); break;
                case 5: cu->stream_call(stream, free, NULL); break;
                case 6: cu->copy(device_b, host_a, 4096, stream); break;
                case 7: kvf_cuda_enter(gpu), kvf_cuda_leave(); break;
                default:
                    kvf_hop_parse(&parsed, h.words, h.length);
                    kvf_nest_from(&nest, &parsed.program[0]);
                    kvf_cuda_knows_side(gpu, &parsed.program[0], 0, &low, &high);
                    kvf_cuda_knows_side(gpu, &parsed.program[0], 1, &low, &high);
                    kvf_nest_program(&nest, KVF_DST, KVF_SHAPE_PIECES, 16, 4096, NULL, &external, &program);
            }
            each[i] = now_micros() - begun;
        }
        printf("calls,%s (us),%.2f,0,0,0\n", names[what], median(each, 200));
    }
    cu->event_destroy(event);
    kvf_cuda_leave();
    free(h.words);
}

typedef struct touch {
    unsigned char *at;
    uint64_t bytes;
    bool registers;
} touch;

static void *run_touch(void *argument) {
    touch *own = argument;
    if (madvise(own->at, own->bytes, 23 /* MADV_POPULATE_WRITE */) != 0)
        for (uint64_t i = 0; i < own->bytes; i += 4096) own->at[i] = 0;
    if (own->registers) MUST(kvf_cuda_memory_register(0, (uint64_t)(uintptr_t)own->at, own->bytes));
    return NULL;
}

static void suite_pinned(void) {
    const uint64_t bytes = 8 * GIB;
    double at;
    double begun = now_micros();
    MUST(kvf_cuda_pinned_alloc(0, bytes, &at));
    double driver = now_micros() - begun;
    printf("F12.pinned,driver's allocation (ms),%.0f,1,0,%llu\n", driver / 1e3, (unsigned long long)bytes);
    MUST(kvf_cuda_pinned_free(0, (uint64_t)at));
    static const struct {
        int threads;
        bool huge, shared, together;
    } ways[] = {{4, true, false, false}, {16, true, false, false}, {16, true, true, false}, {16, true, false, true}, {16, false, false, false}};
    for (int w = 0; w < 5; w++) {
        void *map = MAP_FAILED;
        int fd = -1;
        if (ways[w].shared) {
            fd = memfd_create("kvf", 0);
            if (ftruncate(fd, (off_t)bytes) == 0) map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        } else map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) continue;
        begun = now_micros();
        if (ways[w].huge) madvise(map, bytes, MADV_HUGEPAGE);
        pthread_t thread[16];
        touch parts[16];
        const uint64_t part = bytes / (uint64_t)ways[w].threads;
        for (int i = 0; i < ways[w].threads; i++) {
            parts[i] = (touch){(unsigned char *)map + (uint64_t)i * part, part, ways[w].together};
            pthread_create(&thread[i], NULL, run_touch, &parts[i]);
        }
        for (int i = 0; i < ways[w].threads; i++) pthread_join(thread[i], NULL);
        double touched = now_micros() - begun;
        if (!ways[w].together) MUST(kvf_cuda_memory_register(0, (uint64_t)(uintptr_t)map, bytes));
        double all = now_micros() - begun;
        printf("F12.pinned,touched by %d threads%s%s%s then registered (ms; touching alone),%.0f,%.3f,%.0f,%llu\n", ways[w].threads, ways[w].huge ? " huge pages" : "",
               ways[w].shared ? " shared" : "", ways[w].together ? " each registering its part" : "", all / 1e3, driver / all, touched / 1e3, (unsigned long long)bytes);
        if (ways[w].together) for (int i = 0; i < ways[w].threads; i++) MUST(kvf_cuda_memory_unregister(0, (uint64_t)(uintptr_t)parts[i].at));
        else MUST(kvf_cuda_memory_unregister(0, (uint64_t)(uintptr_t)map));
        munmap(map, bytes);
        if (fd >= 0) close(fd);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    MUST(kvf_cuda_driver_load(getenv("KVFERRY_CUDA_LIBRARY")));
    cu = kvf_cuda_driver_get();
    MUST(kvf_cuda_device_open(0));
    gpu = kvf_cuda_device_get(0);
    MUST(kvf_cuda_enter(gpu));
    cu->stream_create(&stream, CU_STREAM_NON_BLOCKING, 0);
    cu->stream_create(&other_stream, CU_STREAM_NON_BLOCKING, 0);
    kvf_cuda_leave();
    double at;
    const uint64_t size = 2 * GIB;
    MUST(kvf_cuda_memory_alloc(0, size, &at));
    device_a = (uint64_t)at;
    MUST(kvf_cuda_memory_alloc(0, size, &at));
    device_b = (uint64_t)at;
    MUST(kvf_cuda_pinned_alloc(0, size, &at));
    host_a = (uint64_t)at;
    shadow_bytes = GIB + (64 << 20);
    shadow_src = mmap(NULL, shadow_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shadow_dst = mmap(NULL, shadow_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint64_t i = 0; i < shadow_bytes; i += 8) *(uint64_t *)(void *)(shadow_src + i) = draw();
    MUST(kvf_cuda_enter(gpu));
    cu->copy(device_a, (uint64_t)(uintptr_t)shadow_src, shadow_bytes, stream);
    cu->stream_synchronize(stream);
    cu->copy(host_a, device_a, shadow_bytes, stream);
    cu->stream_synchronize(stream);
    kvf_cuda_leave();
    printf("id,variant,figure,ratio,submit,bytes\n");
    for (int i = 1; i < argc; i++) {
        double begun = now_micros();
        if (!strcmp(argv[i], "sweep")) sweep = true;
        else if (!strcmp(argv[i], "plain")) sweep = false;
        else if (!strcmp(argv[i], "link")) suite_link();
        else if (!strcmp(argv[i], "small")) suite_small();
        else if (!strcmp(argv[i], "device")) suite_device();
        else if (!strcmp(argv[i], "both")) suite_both();
        else if (!strcmp(argv[i], "wake")) suite_wake();
        else if (!strcmp(argv[i], "submit")) suite_submit();
        else if (!strcmp(argv[i], "calls")) suite_calls();
        else if (!strcmp(argv[i], "pinned")) suite_pinned();
        else return 2;
        fprintf(stderr, "%s: %.1f s\n", argv[i], (now_micros() - begun) / 1e6);
    }
    fprintf(stderr, "verified %llu runs, %llu rows wrong\n", (unsigned long long)verified, (unsigned long long)wrong_rows);
    return wrong_rows ? 1 : 0;
}
