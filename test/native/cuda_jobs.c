/*
 * cuda_jobs.c - runs the CUDA jobs of kvf.h against whichever driver library it is given: a real one on a GPU, or the
 * stand-in of test/standin, which proves the logic and nothing about a GPU. Every copy's destination is compared with
 * plain nested loops, gaps included.
 *
 *   cuda_jobs LIBRARY CASES SEED [fault | inject | plain]   LIBRARY "": libcuda.so.1. `fault` poisons the device at the end;
 *                                                   `inject` makes calls of the stand-in fail or never end.
 *
 * Prints a line for each test and one of JSON at the end; exit status 1 when anything was wrong.
 */
#include "cuda_sample.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <unistd.h>

#include "cuda_driver.h"
#include "thread.h"

#define SLOTS 64

static kvf_word context;
static uint32_t *block;
static uint32_t failures, tests;

typedef struct completion {
    int32_t status;
    uint32_t flags;
    double value;
    double micros;
} completion;

static completion done[SLOTS];
static bool over[SLOTS];

/* ---- waiting for jobs -------------------------------------------------------------------------------------------- */

static void drain(void) {
    uint32_t head = __atomic_load_n(&block[0], __ATOMIC_ACQUIRE);
    for (uint32_t tail = block[1]; tail != head; tail++) {
        const uint32_t *c = block + 16 + 8 * (tail % SLOTS);
        completion *to = &done[c[0]];
        to->status = (int32_t)c[1];
        to->flags = c[2];
        memcpy(&to->value, c + 4, 8);
        memcpy(&to->micros, c + 6, 8);
        over[c[0]] = true;
        __atomic_store_n(&block[1], tail + 1, __ATOMIC_RELEASE);
    }
}

static bool wait_slot(uint32_t slot, uint32_t millis) {
    const uint64_t end = kvf_now_nanos() + millis * UINT64_C(1000000);
    while (!over[slot] && kvf_now_nanos() < end) {
        drain();
        if (!over[slot]) usleep(20);
    }
    return over[slot];
}

/* Starts are expressions that return a status: JOB(kvf_x_job(context, 0, ...)). */
static const char *failure(uint32_t slot) {
    static char text[600];
    kvf_slot_error(context, slot, text, sizeof text);
    return text;
}

static completion run(uint32_t slot, int32_t started) {
    if (started != KVF_OK) {
        char text[600];
        kvf_last_error(text, sizeof text);
        return (completion){.status = started};
    }
    if (!wait_slot(slot, 20000)) {
        fprintf(stderr, "slot %u never ended\n", slot);
        exit(2);
    }
    return done[slot];
}

#define JOB(call) (over[0] = false, run(0, (call)))

static bool expect_at(bool good, int line, const char *what) {
    tests++;
    if (!good) {
        char text[600];
        kvf_last_error(text, sizeof text);
        failures++;
        fprintf(stderr, "line %d: %s; last text: %s; slot 0: %s\n", line, what, text, failure(0));
    }
    return good;
}
#define EXPECT(condition) expect_at((condition), __LINE__, #condition)

/* ---- memory ------------------------------------------------------------------------------------------------------- */

/* Where a side of a copy may lie. */
typedef enum place_kind { DEVICE, DRIVER_PINNED, REGISTERED_PINNED, PAGEABLE, PLACES } place_kind;
static const char *const place_names[PLACES] = {"device", "pinned", "registered", "pageable"};

#define ARENA (UINT64_C(64) << 20)
static uint64_t arena[2][PLACES];
static double mapped[2][3];
static kvf_word stream;
static const kvf_cuda_driver *cu;
static cu_context own_context;

static void put(uint64_t to, const void *from, uint64_t bytes, bool device) {
    if (!device) {
        memcpy((void *)(uintptr_t)to, from, bytes);
        return;
    }
    cu->context_push(own_context);
    EXPECT(cu->copy(to, (uint64_t)(uintptr_t)from, bytes, (cu_stream)(uintptr_t)stream) == CU_OK);
    EXPECT(cu->stream_synchronize((cu_stream)(uintptr_t)stream) == CU_OK);
    cu->context_pop(&(cu_context){0});
}

static void get(void *to, uint64_t from, uint64_t bytes, bool device) {
    if (!device) {
        memcpy(to, (void *)(uintptr_t)from, bytes);
        return;
    }
    cu->context_push(own_context);
    EXPECT(cu->copy((uint64_t)(uintptr_t)to, from, bytes, (cu_stream)(uintptr_t)stream) == CU_OK);
    EXPECT(cu->stream_synchronize((cu_stream)(uintptr_t)stream) == CU_OK);
    cu->context_pop(&(cu_context){0});
}

static void make_arenas(void) {
    for (int side = 0; side < 2; side++) {
        completion c = JOB(kvf_cuda_alloc_job(context, 0, 0, ARENA));
        EXPECT(c.status == KVF_OK);
        arena[side][DEVICE] = (uint64_t)c.value;
        EXPECT(JOB(kvf_cuda_set_job(context, 0, 0, (kvf_word)c.value, ARENA, 0x5a)).status == KVF_OK);
        c = JOB(kvf_cuda_pinned_alloc_job(context, 0, 0, ARENA));
        EXPECT(c.status == KVF_OK);
        arena[side][DRIVER_PINNED] = (uint64_t)c.value;
        EXPECT(kvf_memory_map(ARENA, KVF_MEMORY_SHARED, 0, mapped[side]) == KVF_OK);
        arena[side][REGISTERED_PINNED] = (uint64_t)mapped[side][0];
        c = JOB(kvf_cuda_register_job(context, 0, 0, (kvf_word)mapped[side][0], (kvf_word)mapped[side][1]));
        EXPECT(c.status == KVF_OK);
        arena[side][PAGEABLE] = (uint64_t)(uintptr_t)aligned_alloc(4096, ARENA);
    }
}

static void free_arenas(void) {
    for (int side = 0; side < 2; side++) {
        EXPECT(JOB(kvf_cuda_free_job(context, 0, 0, arena[side][DEVICE])).status == KVF_OK);
        EXPECT(JOB(kvf_cuda_pinned_free_job(context, 0, 0, arena[side][DRIVER_PINNED])).status == KVF_OK);
        EXPECT(JOB(kvf_cuda_unregister_job(context, 0, 0, arena[side][REGISTERED_PINNED])).status == KVF_OK);
        EXPECT(kvf_memory_unmap((kvf_word)mapped[side][0], (kvf_word)mapped[side][1], mapped[side] + 2, 1) == KVF_OK);
        free((void *)(uintptr_t)arena[side][PAGEABLE]);
    }
}

/* ---- copies against the oracle ------------------------------------------------------------------------------------------ */

static uint32_t ran[8], refused[8];
static unsigned char *back;

static void copy_cases(uint64_t cases) {
    static double words[4096];
    static const uint32_t methods[] = {KVF_CUDA_METHOD_DMA,    KVF_CUDA_METHOD_PITCHED, KVF_CUDA_METHOD_BATCH,
                                       KVF_CUDA_METHOD_KERNEL, KVF_CUDA_METHOD_SLAB,    KVF_CUDA_METHOD_BULK};
    for (uint64_t n = 0; n < cases && failures < 20; n++) {
        sample s;
        make(&s);
        if (s.bytes[0] > ARENA || s.bytes[1] > ARENA) {
            discard(&s);
            continue;
        }
        place_kind from = (place_kind)below(PLACES), to = (place_kind)below(PLACES);
        if (from != DEVICE && to != DEVICE && below(2)) *(below(2) ? &from : &to) = DEVICE;
        const uint64_t at[2] = {arena[0][from], arena[1][to]};
        const uint32_t kinds[2] = {from == DEVICE, to == DEVICE};
        const uint64_t length = write_hop(&s, at, kinds, 0, words);
        put(at[0], s.memory[0], s.bytes[0], from == DEVICE);
        for (size_t m = 0; m < sizeof methods / sizeof *methods; m++) {
            const uint32_t method = methods[m];
            memset(s.memory[1], 0xa5, s.bytes[1]);
            put(at[1], s.memory[1], s.bytes[1], to == DEVICE);
            uint32_t flags = below(3) == 0 ? KVF_CUDA_THREAD : below(3) == 0 ? KVF_CUDA_INLINE : 0;
            completion c = JOB(kvf_cuda_copy_job(context, 0, 0, words, length, method, (uint32_t)below(3) * 5, flags, below(4) ? 0 : stream, NULL, 0, NULL, NULL, 0));
            const bool pageable = from == PAGEABLE || to == PAGEABLE, by_kernel = method == KVF_CUDA_METHOD_KERNEL || method == KVF_CUDA_METHOD_BULK;
            if (c.status == KVF_E_INVALID &&
                (method == KVF_CUDA_METHOD_PITCHED || method == KVF_CUDA_METHOD_BULK || (by_kernel && pageable) ||
                 (method == KVF_CUDA_METHOD_SLAB && (from == DEVICE) == (to == DEVICE)))) {
                refused[method]++;
                continue;
            }
            if (c.status == KVF_E_UNAVAILABLE && method == KVF_CUDA_METHOD_BULK) {
                refused[method]++;
                continue;
            }
            ran[method]++;
            tests++;
            get(back, at[1], s.bytes[1], to == DEVICE);
            uint64_t wrong = 0;
            for (uint64_t i = 0; i < s.bytes[1]; i++) wrong += back[i] != s.wanted[i];
            if (c.status != KVF_OK || wrong || c.value != words[4] || (by_kernel && pageable)) {
                failures++;
                fprintf(stderr, "case %llu, method %u, %s to %s: status %d (%s), %llu of %llu bytes wrong; bases %u pairs %u loops %u row %u runs %d\n",
                        (unsigned long long)n, method, place_names[from], place_names[to], c.status, failure(0), (unsigned long long)wrong,
                        (unsigned long long)s.bytes[1], s.bases, s.pairs, s.loops, s.row, s.runs);
            }
        }
        discard(&s);
    }
}

/* A program of `rows` rows of `row` bytes each, every second row of the source to the next of the destination. */
static uint64_t strided_hop(double *words, const uint64_t at[2], const uint32_t kinds[2], uint32_t programs, uint64_t rows, uint64_t row) {
    uint64_t next = KVF_HOP_HEADER_WORDS + programs * KVF_PROGRAM_WORDS;
    memset(words, 0, next * sizeof *words);
    for (uint32_t i = 0; i < programs; i++) {
        double *p = words + KVF_HOP_HEADER_WORDS + i * KVF_PROGRAM_WORDS;
        p[0] = p[1] = p[2] = 1;
        p[3] = (double)row;
        p[6] = (double)rows;
        p[12] = 2.0 * (double)row;
        p[18] = (double)row;
        for (int side = 0; side < 2; side++) {
            p[24 + 2 * side] = kinds[side];
            p[28 + side] = (double)next;
            words[next++] = (double)(at[side] + i * rows * row * (side ? 1 : 2));
        }
        for (int side = 0; side < 2; side++) {
            p[30 + side] = (double)next;
            words[next++] = 0;
        }
        p[33] = (double)(rows * row);
    }
    words[0] = KVF_HOP_MAGIC;
    words[1] = KVF_HOP_VERSION;
    words[2] = programs;
    words[3] = (double)next;
    words[4] = (double)(programs * rows * row);
    return next;
}

/* ---- lists that do not fit a kernel's parameter, several in flight -------------------------------------------------------- */

#define MANY 3000
#define COPIES 16 /* at once */

static void many_pairs(void) {
    static double words[KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + 4 + 2 * MANY];
    const uint64_t row = 1040; /* not a multiple of a warp's reach */
    static uint32_t ids[2][MANY];
    unsigned char *source = malloc(MANY * row);
    uint32_t order[MANY];
    for (uint32_t p = 0; p < MANY; p++) order[p] = p;
    for (uint32_t i = MANY; i > 1; i--) {
        uint32_t j = (uint32_t)below(i), swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
    for (uint64_t i = 0; i < MANY * row; i++) source[i] = (unsigned char)draw();
    put(arena[0][DEVICE], source, MANY * row, true);
    static const uint32_t methods[] = {KVF_CUDA_METHOD_KERNEL, KVF_CUDA_METHOD_SLAB, KVF_CUDA_METHOD_BATCH, KVF_CUDA_METHOD_KERNEL};
    for (uint32_t slot = 0; slot < COPIES; slot++) {
        double *p = words + KVF_HOP_HEADER_WORDS;
        uint64_t next = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS;
        memset(words, 0, next * sizeof *words);
        p[0] = 1;
        p[1] = MANY;
        p[3] = (double)row;
        p[24] = 1;
        p[28] = (double)next;
        words[next++] = (double)arena[0][DEVICE];
        p[29] = (double)next;
        words[next++] = (double)(arena[1][DRIVER_PINNED] + slot * (ARENA / COPIES));
        const bool beside = slot % 2; /* the places are block ids, in lists beside the hop */
        /* Each copy has a list of its own: one in the place of another moves rows to where they do not belong. */
        for (uint32_t i = 0; i < MANY; i++) {
            ids[0][i] = MANY - 1 - i;
            ids[1][i] = order[(i + slot * 97) % MANY];
        }
        if (beside) {
            p[34] = 2;
            p[35] = p[36] = (double)row;
        }
        for (int side = 0; side < 2 && !beside; side++) {
            p[30 + side] = (double)next;
            for (uint32_t i = 0; i < MANY; i++) words[next++] = (double)(ids[side][i] * row);
        }
        p[33] = words[4] = (double)(MANY * row);
        words[0] = KVF_HOP_MAGIC;
        words[1] = KVF_HOP_VERSION;
        words[2] = 1;
        words[3] = (double)next;
        memset((void *)(uintptr_t)(arena[1][DRIVER_PINNED] + slot * (ARENA / COPIES)), 0, MANY * row);
        over[slot] = false;
        const int32_t status = kvf_cuda_copy_job(context, slot, 0, words, next, methods[slot % 4], 0, 0, 0, NULL, 0, beside ? ids[0] : NULL,
                                                 beside ? ids[1] : NULL, beside ? MANY : 0);
        EXPECT(status == KVF_OK);
        /* The hop and its lists were copied or are no longer needed. */
        memset(words, 0xff, sizeof words);
        memset(ids, 0xff, sizeof ids);
    }
    for (uint32_t slot = 0; slot < COPIES; slot++) {
        EXPECT(wait_slot(slot, 20000) && done[slot].status == KVF_OK);
        if (done[slot].status != KVF_OK) fprintf(stderr, "slot %u: %s\n", slot, failure(slot));
    }
    for (uint32_t slot = 0; slot < COPIES; slot++) {
        const unsigned char *moved = (const unsigned char *)(uintptr_t)(arena[1][DRIVER_PINNED] + slot * (ARENA / COPIES));
        uint32_t wrong = 0;
        for (uint32_t i = 0; i < MANY; i++) wrong += memcmp(moved + order[(i + slot * 97) % MANY] * row, source + (MANY - 1 - i) * row, row) != 0;
        EXPECT(wrong == 0);
    }
    free(source);
}

/* A list's number, as whoever keeps lists has them. */
static double number(void) {
    double out[1] = {0};
    EXPECT(kvf_list_number(out) == KVF_OK && out[0] >= 1);
    return out[0];
}

/* Long rows within the device: CTAs take slices of the list, of more pairs than they fetch at once where there are few CTAs;
 * pairs of one word and of two; in two launches, of which the second may begin before the first ends. Each list comes once
 * more under its numbers, when its pairs lie there, once more, when they lie on the device, and again under others after half
 * of it has changed. */
#define SLICED 5000
static void slices(void) {
    static uint32_t ids[2][SLICED];
    double words[KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + 2];
    const uint64_t bytes = ARENA / 2;
    unsigned char *source = malloc(bytes), *wanted = malloc(bytes), *moved = malloc(bytes);
    for (uint64_t i = 0; i < bytes; i++) source[i] = (unsigned char)(i * 31 + i / 997);
    put(arena[0][DEVICE], source, bytes, true);
    for (uint32_t turn = 0; turn < 6; turn++) {
        static const uint32_t widths[3] = {0, 1, 3};
        /* Two pieces, or the beginning of a third one with ids of 16 bytes, which reach beyond 16 bits; rows must not meet, so that
         * every id is a multiple of what a row takes. */
        const bool wide = turn >= 3;
        const uint64_t row = wide ? 4112 : 4096, stride = wide ? 16 : row, step = row / stride, places = bytes / row - 1;
        for (int side = 0; side < 2; side++) {
            uint32_t order[8192];
            for (uint32_t p = 0; p < places; p++) order[p] = p;
            for (uint32_t i = (uint32_t)places; i > 1; i--) {
                const uint32_t j = (uint32_t)below(i), swap = order[i - 1];
                order[i - 1] = order[j];
                order[j] = swap;
            }
            for (uint32_t i = 0; i < SLICED; i++) ids[side][i] = (uint32_t)(order[i] * step);
        }
        memset(words, 0, sizeof words);
        double *p = words + KVF_HOP_HEADER_WORDS;
        p[0] = 1;
        p[1] = SLICED;
        p[3] = (double)row;
        p[24] = p[26] = 1;
        for (int side = 0; side < 2; side++) {
            p[28 + side] = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + side;
            words[KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + side] = (double)arena[side][DEVICE];
        }
        p[34] = 2;
        p[35] = p[36] = (double)stride;
        p[33] = words[4] = (double)(SLICED * row);
        words[0] = KVF_HOP_MAGIC;
        words[1] = KVF_HOP_VERSION;
        words[2] = 1;
        words[3] = sizeof words / sizeof *words;
        for (int round = 0; round < 4; round++) {
            if (round % 3 == 0) for (int side = 0; side < 2; side++) words[5 + side] = number();
            if (round == 3)
                for (uint32_t i = 0; i < SLICED / 2; i++) {
                    const uint32_t swap = ids[1][i];
                    ids[1][i] = ids[1][SLICED - 1 - i];
                    ids[1][SLICED - 1 - i] = swap;
                }
            memset(wanted, 0xa5 + round, bytes);
            put(arena[1][DEVICE], wanted, bytes, true);
            for (uint32_t i = 0; i < SLICED; i++) memcpy(wanted + ids[1][i] * stride, source + ids[0][i] * stride, row);
            EXPECT(JOB(kvf_cuda_copy_job(context, 0, 0, words, sizeof words / sizeof *words, KVF_CUDA_METHOD_KERNEL, widths[turn % 3], 0, 0, NULL, 0, ids[0], ids[1],
                                         SLICED)).status == KVF_OK);
            get(moved, arena[1][DEVICE], bytes, true);
            EXPECT(memcmp(moved, wanted, bytes) == 0);
        }
    }
    free(source);
    free(wanted);
    free(moved);
}

/* ---- order, progress, events -------------------------------------------------------------------------------------------------- */

static void order_and_events(uint64_t sleep_micros) {
    static double words[1024];
    const uint32_t kinds[2] = {1, 0};
    const uint64_t at[2] = {arena[0][DEVICE], arena[1][DRIVER_PINNED]};

    /* A job for any event: queued at once, over when the event is. */
    double event[1];
    EXPECT(kvf_cuda_test_sleep(0, stream, sleep_micros) == KVF_OK);
    EXPECT(kvf_cuda_test_event(0, stream, NULL, event) == KVF_OK);
    over[1] = false;
    EXPECT(kvf_cuda_event_job(context, 1, 0, (kvf_word)event[0]) == KVF_OK);
    drain();
    EXPECT(!over[1]);
    EXPECT(wait_slot(1, 20000) && done[1].status == KVF_OK);
    printf("event: awaited %.0f us of a sleep of %llu us\n", done[1].micros, (unsigned long long)sleep_micros);
    cu->context_push(own_context);
    EXPECT(cu->event_query((cu_event)(uintptr_t)event[0]) == CU_OK);
    cu->context_pop(&(cu_context){0});
    EXPECT(JOB(kvf_cuda_event_close_job(context, 0, 0, (kvf_word)event[0])).status == KVF_OK);

    /* After the caller's stream: what the stream writes late is what is copied. */
    for (uint32_t method = KVF_CUDA_METHOD_DMA; method <= KVF_CUDA_METHOD_BULK; method++) {
        const uint64_t length = strided_hop(words, at, kinds, 1, 512, 1024);
        memset((void *)(uintptr_t)at[1], 0, 512 * 1024);
        cu->context_push(own_context);
        EXPECT(cu->set8(at[0], 0x11, 1 << 20, (cu_stream)(uintptr_t)stream) == CU_OK);
        EXPECT(cu->stream_synchronize((cu_stream)(uintptr_t)stream) == CU_OK);
        EXPECT(kvf_cuda_test_sleep(0, stream, 50000) == KVF_OK);
        EXPECT(cu->set8(at[0], 0x77, 1 << 20, (cu_stream)(uintptr_t)stream) == CU_OK);
        over[2] = false;
        const int32_t status = kvf_cuda_copy_job(context, 2, 0, words, length, method, 0, 0, stream, NULL, 0, NULL, NULL, 0);
        if (method == KVF_CUDA_METHOD_BULK && status != KVF_OK) { /* refused before anything was claimed */
            EXPECT(cu->stream_synchronize((cu_stream)(uintptr_t)stream) == CU_OK);
            cu->context_pop(&(cu_context){0});
            continue;
        }
        EXPECT(status == KVF_OK);
        /* While it waits, work without an event is not held up. */
        over[3] = false;
        const uint64_t there[2] = {arena[0][DEVICE] + (32u << 20), arena[1][DRIVER_PINNED] + (32u << 20)};
        static double others[1024];
        const uint64_t second = strided_hop(others, there, kinds, 1, 4, 1024);
        EXPECT(kvf_cuda_copy_job(context, 3, 0, others, second, method, 0, 0, 0, NULL, 0, NULL, NULL, 0) == KVF_OK);
        EXPECT(wait_slot(3, 20000));
        const bool ended = over[2];
        if (cu->stream_query((cu_stream)(uintptr_t)stream) == CU_NOT_READY) EXPECT(!ended); /* else this machine was too slow to tell */
        EXPECT(wait_slot(2, 20000) && (done[2].status == KVF_OK || method == KVF_CUDA_METHOD_BULK));
        cu->context_pop(&(cu_context){0});
        const unsigned char *bytes = (const unsigned char *)(uintptr_t)at[1];
        EXPECT(done[2].status != KVF_OK || (bytes[0] == 0x77 && bytes[512 * 1024 - 1] == 0x77));
    }

    /* Programs wait for events of their own and are reported in order. */
    const uint64_t length = strided_hop(words, at, kinds, 4, 64, 4096);
    double waits[4];
    EXPECT(kvf_cuda_test_sleep(0, stream, 30000) == KVF_OK);
    EXPECT(kvf_cuda_test_event(0, stream, NULL, &waits[1]) == KVF_OK);
    EXPECT(kvf_cuda_test_sleep(0, stream, 60000) == KVF_OK);
    EXPECT(kvf_cuda_test_event(0, stream, NULL, &waits[3]) == KVF_OK);
    waits[0] = 1;
    waits[2] = 3;
    volatile uint32_t *records = block + 16 + 8 * SLOTS;
    for (uint32_t round = 0; round < 2; round++) {
        const uint32_t method = round ? KVF_CUDA_METHOD_SLAB : KVF_CUDA_METHOD_KERNEL;
        over[4] = false;
        records[8 * 4 + 1] = 1;
        EXPECT(kvf_cuda_copy_job(context, 4, 0, words, length, method, 0, KVF_CUDA_WATCH, 0, round ? NULL : waits, round ? 0 : 2, NULL, NULL, 0) == KVF_OK);
        uint32_t seen = 0, steps = 0;
        while (!over[4]) {
            const uint32_t now = __atomic_load_n(&block[16 + 8 * SLOTS + 8 * 4], __ATOMIC_ACQUIRE);
            EXPECT(now >= seen);
            steps += now > seen;
            seen = now;
            drain();
            usleep(50);
        }
        EXPECT(done[4].status == KVF_OK);
        printf("progress: %u steps, method %u\n", steps, method);
    }
    EXPECT(JOB(kvf_cuda_event_close_job(context, 0, 0, (kvf_word)waits[1])).status == KVF_OK);
    EXPECT(JOB(kvf_cuda_event_close_job(context, 0, 0, (kvf_word)waits[3])).status == KVF_OK);

    /* The caller's stream waits for the copy: what it overwrites later was copied before. */
    const uint64_t small = strided_hop(words, at, kinds, 1, 512, 1024);
    cu->context_push(own_context);
    EXPECT(cu->set8(at[0], 0x22, 1 << 20, (cu_stream)(uintptr_t)stream) == CU_OK);
    over[5] = false;
    EXPECT(kvf_cuda_copy_job(context, 5, 0, words, small, KVF_CUDA_METHOD_KERNEL, 0, KVF_CUDA_CALLER_WAITS, stream, NULL, 0, NULL, NULL, 0) == KVF_OK);
    EXPECT(cu->set8(at[0], 0x99, 1 << 20, (cu_stream)(uintptr_t)stream) == CU_OK);
    EXPECT(cu->stream_synchronize((cu_stream)(uintptr_t)stream) == CU_OK);
    cu->context_pop(&(cu_context){0});
    EXPECT(wait_slot(5, 20000) && ((unsigned char *)(uintptr_t)at[1])[512 * 1024 - 1] == 0x22);
}

/* Copies whose submitter wakes the looking thread afterwards, or forgets to: all of them end, and their bytes are there. */
static void woken_later(void) {
    static double words[1024];
    const uint64_t at[2] = {arena[0][DEVICE], arena[1][DRIVER_PINNED]};
    const uint64_t length = strided_hop(words, at, (uint32_t[2]){1, 0}, 1, 64, 4096);
    const unsigned char *bytes = (const unsigned char *)(uintptr_t)at[1];
    uint32_t asleep[2] = {0, 0}; /* how often the thread slept, and was woken or forgotten */
    for (uint32_t n = 0; n < 1000 && (n < 20 || asleep[0] < 3 || asleep[1] < 3); n++) {
        const bool forgets = n % 2;
        EXPECT(JOB(kvf_cuda_set_job(context, 0, 0, at[0], 1 << 20, n % 251)).status == KVF_OK);
        usleep(2000);
        over[5] = false;
        const int32_t status = kvf_cuda_copy_job(context, 5, 0, words, length, KVF_CUDA_METHOD_KERNEL, 0, KVF_CUDA_WAKES, 0, NULL, 0, NULL, NULL, 0);
        if (!EXPECT(status == KVF_OK || status == KVF_AGAIN)) return;
        asleep[forgets] += status == KVF_AGAIN;
        if (!forgets) EXPECT(kvf_cuda_wake(0) == KVF_OK);
        EXPECT(wait_slot(5, 20000) && done[5].status == KVF_OK && bytes[0] == n % 251 && bytes[64 * 4096 - 1] == n % 251);
    }
    EXPECT(asleep[0] > 0 && asleep[1] > 0);
    EXPECT(kvf_cuda_wake(-1) == KVF_OK && kvf_cuda_wake(63) == KVF_OK && kvf_cuda_wake(0) == KVF_OK);
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------------ */

static void refusals(void) {
    static double words[1024];
    const uint32_t to_host[2] = {1, 0};
    const uint64_t beyond[2] = {arena[0][DEVICE] + ARENA - 4096, arena[1][DRIVER_PINNED]};
    uint64_t length = strided_hop(words, beyond, to_host, 1, 64, 4096);
    for (uint32_t method = KVF_CUDA_METHOD_KERNEL; method <= KVF_CUDA_METHOD_BULK; method++) {
        completion c = JOB(kvf_cuda_copy_job(context, 0, 0, words, length, method, 0, 0, 0, NULL, 0, NULL, NULL, 0));
        EXPECT(c.status == KVF_E_INVALID && c.flags == 0);
    }
    const uint64_t pageable[2] = {arena[0][DEVICE], arena[1][PAGEABLE]};
    /* Lists beside a hop that are missing, too short, or in the place of a list in it. */
    const uint32_t ids[4] = {0, 1, 2, 3};
    double *program = words + KVF_HOP_HEADER_WORDS;
    for (uint32_t how = 0; how < 6; how++) {
        length = strided_hop(words, (const uint64_t[2]){arena[0][DEVICE], arena[1][DRIVER_PINNED]}, to_host, 1, 64, 4096);
        EXPECT(program[1] == 1);
        program[34] = how == 4 ? 3 : 2;
        program[35] = program[36] = 4096;
        if (how != 3) program[30] = program[31] = 0;
        if (how == 1) {
            program[1] = 5;
            program[33] = words[4] = program[33] * 5;
        }
        const completion c = JOB(kvf_cuda_copy_job(context, 0, 0, words, length, KVF_CUDA_METHOD_KERNEL, 0, 0, 0, NULL, 0, how == 2 ? NULL : ids, ids, how == 0 ? 0 : 4));
        EXPECT(c.status == (how == 5 ? KVF_OK : KVF_E_INVALID));
        EXPECT(kvf_hop_check(words, length, (double[2]){0}) == KVF_E_INVALID);
    }
    length = strided_hop(words, pageable, to_host, 1, 64, 4096);
    EXPECT(JOB(kvf_cuda_copy_job(context, 0, 0, words, length, KVF_CUDA_METHOD_KERNEL, 0, 0, 0, NULL, 0, NULL, NULL, 0)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_copy_job(context, 0, 0, words, length, 99, 0, 0, 0, NULL, 0, NULL, NULL, 0)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_copy_job(context, 0, 7, words, length, KVF_CUDA_METHOD_DMA, 0, 0, 0, NULL, 0, NULL, NULL, 0)).status == KVF_E_CUDA);
    EXPECT(JOB(kvf_cuda_copy_job(context, 0, 0, words, length, KVF_CUDA_METHOD_DMA, 0, 0, 0, (double[]){5, 4096}, 1, NULL, NULL, 0)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_alloc_job(context, 0, 0, UINT64_C(1) << 50)).status == KVF_E_NOMEM);
    EXPECT(JOB(kvf_cuda_alloc_job(context, 0, 0, 0)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_free_job(context, 0, 0, 4096)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_device_open_job(context, 0, 4711)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_register_job(context, 0, 0, arena[1][DRIVER_PINNED], 4096)).status == KVF_E_CUDA);
    EXPECT(JOB(kvf_cuda_adopt_job(context, 0, 0, arena[0][DEVICE], ARENA + 1, KVF_CUDA_POINTER_DEVICE)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_adopt_job(context, 0, 0, arena[0][PAGEABLE], 4096, KVF_CUDA_POINTER_PINNED)).status == KVF_E_INVALID);
    EXPECT(JOB(kvf_cuda_adopt_job(context, 0, 0, arena[0][DEVICE] + 4096, 8192, KVF_CUDA_POINTER_DEVICE)).status == KVF_OK);
    EXPECT(kvf_cuda_disown(arena[0][DEVICE] + 4096) == KVF_OK);
    EXPECT(kvf_cuda_disown(arena[0][DEVICE] + 4096) == KVF_E_INVALID);
    double out[4];
    EXPECT(kvf_cuda_pointer(arena[0][DEVICE] + 12345, out) == KVF_OK && out[0] == KVF_CUDA_POINTER_DEVICE && out[1] == 0 &&
           out[2] == (double)arena[0][DEVICE] && out[3] >= (double)ARENA);
    EXPECT(kvf_cuda_pointer(arena[0][DRIVER_PINNED], out) == KVF_OK && out[0] == KVF_CUDA_POINTER_PINNED);
    EXPECT(kvf_cuda_pointer(arena[0][REGISTERED_PINNED] + 5, out) == KVF_OK && out[0] == KVF_CUDA_POINTER_PINNED);
    EXPECT(kvf_cuda_pointer(arena[0][PAGEABLE], out) == KVF_OK && out[0] == KVF_CUDA_POINTER_PAGEABLE);
    EXPECT(kvf_cuda_memory_info(0, out) == KVF_OK && out[0] > 0 && out[1] >= out[0]);
    /* After all that the device still works. */
    const uint64_t good[2] = {arena[0][DEVICE], arena[1][DRIVER_PINNED]};
    length = strided_hop(words, good, to_host, 1, 64, 4096);
    EXPECT(JOB(kvf_cuda_set_job(context, 0, 0, arena[0][DEVICE], 1 << 20, 0x3c)).status == KVF_OK);
    EXPECT(JOB(kvf_cuda_copy_job(context, 0, 0, words, length, KVF_CUDA_METHOD_KERNEL, 0, 0, 0, NULL, 0, NULL, NULL, 0)).status == KVF_OK);
    EXPECT(((unsigned char *)(uintptr_t)good[1])[64 * 4096 - 1] == 0x3c);
    completion c = JOB(kvf_cuda_ipc_export_job(context, 0, 0, arena[0][DEVICE] + 512));
    EXPECT(c.status == KVF_OK && c.value == 512);
}

/* ---- calls that fail, operations that do not end (the stand-in only) ------------------------------------------------------ */

static int (*tell)(const char *, const char *);

/* Every copy ends exactly once, with success and the right bytes or with a failure, and the device goes on working. */
static void inject(const char *library) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    tell = handle ? (int (*)(const char *, const char *))dlsym(handle, "standin_tell") : NULL;
    if (!EXPECT(tell != NULL)) return;
    static double words[1024];
    static const char *const names[] = {"cuLaunchKernelEx", "cuMemcpyAsync",      "cuMemcpyBatchAsync",   "cuMemcpy3DAsync", "cuEventRecord",
                                        "cuStreamWaitEvent", "cuLaunchHostFunc", "cuStreamWriteValue32", "cuEventCreate"};
    const uint32_t kinds[2] = {1, 0};
    const uint64_t at[2] = {arena[0][DEVICE], arena[1][DRIVER_PINNED]};
    const unsigned char *bytes = (const unsigned char *)(uintptr_t)at[1];
    uint32_t failed = 0, succeeded = 0;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        for (uint32_t nth = 1; nth <= 3; nth++) {
            for (uint32_t method = KVF_CUDA_METHOD_DMA; method <= KVF_CUDA_METHOD_SLAB; method++) {
                const uint64_t length = strided_hop(words, at, kinds, 3, 16, 4096);
                const unsigned char value = (unsigned char)(16 * n + 4 * nth + method);
                EXPECT(JOB(kvf_cuda_set_job(context, 0, 0, at[0], 1 << 20, value)).status == KVF_OK);
                memset((void *)(uintptr_t)at[1], 0xff, 3 * 16 * 4096);
                char order[64];
                snprintf(order, sizeof order, "%s:%u:999", names[n], nth);
                tell("FAIL", order);
                const uint32_t flags = (nth & 1 ? KVF_CUDA_THREAD : KVF_CUDA_INLINE) | (method & 1 ? KVF_CUDA_WATCH : 0);
                const completion c = JOB(kvf_cuda_copy_job(context, 0, 0, words, length, method, 0, flags, nth == 2 ? stream : 0, NULL, 0, NULL, NULL, 0));
                tell("FAIL", "");
                if (c.status == KVF_OK) {
                    succeeded++;
                    EXPECT(bytes[0] == value && bytes[3 * 16 * 4096 - 1] == value);
                } else {
                    failed++;
                    EXPECT(c.status == KVF_E_CUDA);
                    EXPECT(c.flags != 0 || (bytes[0] == 0xff && bytes[3 * 16 * 4096 - 1] == 0xff)); /* never started: nothing moved */
                }
                if (c.flags & KVF_DONE_IN_DOUBT) { /* what was queued may still run: the bytes are ours again after this */
                    cu->context_push(own_context);
                    EXPECT(cu->context_synchronize() == CU_OK);
                    cu->context_pop(&(cu_context){0});
                }
                over[0] = false;
                usleep(300);
                drain();
                EXPECT(!over[0]); /* no second completion */
                const completion after = JOB(kvf_cuda_copy_job(context, 0, 0, words, length, method, 0, 0, 0, NULL, 0, NULL, NULL, 0));
                EXPECT(after.status == KVF_OK && bytes[0] == value && bytes[3 * 16 * 4096 - 1] == value);
            }
        }
    }
    printf("inject: %u failed, %u went on\n", failed, succeeded);
    EXPECT(failed >= 20);

    /* Out of memory is told apart; a stuck operation holds its own job only until it is released. */
    tell("FAIL", "cuMemAlloc:1:2");
    EXPECT(JOB(kvf_cuda_alloc_job(context, 0, 0, 4096)).status == KVF_E_NOMEM);
    const uint64_t length = strided_hop(words, at, kinds, 1, 16, 4096);
    tell("HANG", "1");
    over[6] = false;
    EXPECT(kvf_cuda_copy_job(context, 6, 0, words, length, KVF_CUDA_METHOD_KERNEL, 0, 0, 0, NULL, 0, NULL, NULL, 0) == KVF_OK);
    EXPECT(!wait_slot(6, 60)); /* longer than anybody watches its flag */
    EXPECT(JOB(kvf_cuda_info_job(context, 0)).status == KVF_OK);
    EXPECT(JOB(kvf_cuda_device_close_job(context, 0, 0)).status == KVF_E_BUSY);
    tell("RELEASE", "");
    EXPECT(wait_slot(6, 20000) && done[6].status == KVF_OK);

    /* Slow operations and an odd order of ends. */
    tell("DELAY", "3000");
    for (uint32_t slot = 20; slot < 28; slot++) {
        const uint64_t apart[2] = {at[0], at[1] + slot * UINT64_C(1000000)};
        over[slot] = false;
        EXPECT(strided_hop(words, apart, kinds, 1, 16, 4096) == length);
        EXPECT(kvf_cuda_copy_job(context, slot, 0, words, length, 1 + slot % 5, 0, 0, 0, NULL, 0, NULL, NULL, 0) == KVF_OK);
    }
    for (uint32_t slot = 20; slot < 28; slot++) EXPECT(wait_slot(slot, 20000) && done[slot].status == KVF_OK);
    tell("DELAY", "0");
}

/* ---- a device that is lost -------------------------------------------------------------------------------------------------------- */

static void fault(void) {
    static double words[1024];
    const uint32_t to_host[2] = {1, 0};
    const uint64_t at[2] = {arena[0][DEVICE], arena[1][DRIVER_PINNED]};
    const uint64_t length = strided_hop(words, at, to_host, 1, 64, 4096);
    EXPECT(kvf_cuda_test_sleep(0, stream, 100000) == KVF_OK);
    EXPECT(kvf_cuda_test_fault(0, stream) == KVF_OK);
    for (uint32_t slot = 10; slot < 14; slot++) {
        over[slot] = false;
        EXPECT(kvf_cuda_copy_job(context, slot, 0, words, length, slot & 1 ? KVF_CUDA_METHOD_KERNEL : KVF_CUDA_METHOD_DMA, 0, 0, stream, NULL, 0, NULL, NULL, 0) == KVF_OK);
    }
    for (uint32_t slot = 10; slot < 14; slot++) {
        EXPECT(wait_slot(slot, 20000));
        /* In doubt where something was queued; a copy that was still on its way to the queue touched nothing. */
        EXPECT(done[slot].status == KVF_E_CUDA && (done[slot].flags == (KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT) || (slot > 11 && done[slot].flags == 0)));
        if (slot == 10) printf("fault: %s\n", failure(slot));
    }
    EXPECT(kvf_cuda_copy_job(context, 0, 0, words, length, KVF_CUDA_METHOD_DMA, 0, 0, 0, NULL, 0, NULL, NULL, 0) == KVF_E_CUDA);
    char text[600];
    kvf_last_error(text, sizeof text);
    printf("refused: %s\n", text);
    EXPECT(strstr(text, "lost") != NULL);
    EXPECT(JOB(kvf_cuda_alloc_job(context, 0, 0, 4096)).status == KVF_E_CUDA);
    EXPECT(JOB(kvf_cuda_info_job(context, 0)).status == KVF_OK); /* the library answers on */
}

int main(int argc, char **argv) {
    const uint64_t cases = argc > 2 ? strtoull(argv[2], NULL, 10) : 100;
    random_state = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    const bool faulty = argc > 4 && strcmp(argv[4], "fault") == 0;
    double made[3];
    if (kvf_context_open(SLOTS, made) != KVF_OK) return 2;
    context = (kvf_word)made[0];
    block = (uint32_t *)(uintptr_t)(uint64_t)made[1];
    if (!EXPECT(JOB(kvf_cuda_load_job(context, 0, argc > 1 ? argv[1] : "")).status == KVF_OK)) return 2;
    static uint8_t text[65536];
    double length = 0;
    EXPECT(kvf_slot_result(context, 0, text, sizeof text, &length) == KVF_OK);
    printf("%.*s\n", (int)length, (char *)text);
    if (!EXPECT(JOB(kvf_cuda_device_open_job(context, 0, 0)).status == KVF_OK)) return 2;
    EXPECT(JOB(kvf_cuda_device_open_job(context, 0, 0)).status == KVF_OK);
    EXPECT(JOB(kvf_cuda_device_close_job(context, 0, 0)).status == KVF_OK);
    cu = kvf_cuda_driver_get();
    if (argc > 4 && strcmp(argv[4], "plain") == 0) {
        kvf_cuda_driver *driver = (kvf_cuda_driver *)cu;
        driver->batch8 = NULL;
        driver->batch9 = NULL;
    }
    double out[1];
    EXPECT(kvf_cuda_test_context(0, out) == KVF_OK);
    own_context = (cu_context)(uintptr_t)out[0];
    EXPECT(kvf_cuda_test_stream(0, out) == KVF_OK);
    stream = (kvf_word)out[0];
    back = malloc(ARENA);
    make_arenas();

    copy_cases(cases);
    printf("copies: ran %u %u %u %u %u %u, refused %u %u %u %u %u %u\n", ran[1], ran[2], ran[3], ran[4], ran[5], ran[6], refused[1], refused[2], refused[3], refused[4],
           refused[5], refused[6]);
    many_pairs();
    slices();
    order_and_events(faulty ? 600000 : 50000);
    woken_later();
    refusals();
    if (argc > 4 && strcmp(argv[4], "inject") == 0) inject(argv[1]);
    if (faulty) fault();
    else {
        free_arenas();
        EXPECT(kvf_cuda_test_stream_close(0, stream) == KVF_OK);
        EXPECT(JOB(kvf_cuda_device_close_job(context, 0, 0)).status == KVF_OK);
        EXPECT(JOB(kvf_cuda_device_close_job(context, 0, 0)).status == KVF_E_INVALID);
    }
    free(back);
    double left = -1;
    EXPECT(kvf_context_close(context, 5000, &left) == KVF_OK && left == 0);
    printf("{\"tests\":%u,\"failures\":%u,\"copies\":%u}\n", tests, failures, ran[1] + ran[2] + ran[3] + ran[4] + ran[5] + ran[6]);
    return failures ? 1 : 0;
}
