/*
 * cuda_driver.c - proves the pure half of the CUDA executor without a GPU: random copy programs are cut, brought to
 * slabs, walked, and expanded by the kernels' own body on a host loop over CTAs and threads, and every byte of the
 * destination is compared with a copy made by plain nested loops.
 *
 *   cuda_driver CASES SEED      prints one line of JSON; exit status 1 when a byte was wrong
 */
#include "cpu.h"
#include "cuda_nest.h"
#include "cuda_sample.h"
#include "hop.h"
#include "kernels/body.h"
#include "status.h"

static const char *doing = "";
static uint64_t misaligned;

void kvf_kernel_misaligned(kvf_u64 at, kvf_u32 width) {
    if (misaligned++ == 0) fprintf(stderr, "%s: access of %u bytes at 0x%llx\n", doing, width, (unsigned long long)at);
}

/* ---- ways to run it ---------------------------------------------------------------------------------------------------- */

static uint64_t largest; /* of the parts that were cut */

static int32_t by_walk(const kvf_nest *nest, void *argument) {
    (void)argument;
    kvf_walk walk;
    kvf_span span;
    uint64_t bytes = 0;
    kvf_walk_open(&walk, nest);
    while (kvf_walk_next(&walk, &span)) {
        memcpy((void *)(uintptr_t)span.dst, (const void *)(uintptr_t)span.src, span.bytes);
        bytes += span.bytes;
    }
    if (bytes > largest) largest = bytes;
    return bytes == kvf_nest_bytes(nest) ? KVF_OK : KVF_E_INVALID;
}

static uint64_t narrow, wide; /* programs in slices that were run, by the form of their pairs */

static int32_t by_kernel(const kvf_nest *nest, void *argument) {
    const int bulk = argument ? *(const int *)argument : 0;
    static uint32_t lists[1 << 14];
    kvf_kernel_program program;
    bool external;
    const uint32_t width = kvf_nest_alignment(nest, false);
    if (bulk && (width < 16 || nest->row % 16)) return by_walk(nest, NULL);
    const uint32_t piece = bulk ? 512 : below(2) ? KVF_KERNEL_PIECE : below(2) ? KVF_KERNEL_SLICE_PIECE : 1024;
    kvf_shape shape = bulk ? KVF_SHAPE_BULK : below(2) ? kvf_nest_shape(nest, width) : below(2) ? KVF_SHAPE_ROWS : KVF_SHAPE_PIECES;
    if (kvf_nest_slices(nest, shape, width) && below(4)) shape = KVF_SHAPE_SLICES;
    kvf_nest reaching = *nest;
    /* As a part of what reaches further than 16 bits of the unit. */
    if (below(2)) reaching.side[below(2)].most += INT64_C(1) << 30;
    int32_t status = kvf_nest_program(&reaching, (int)below(2), shape, width, piece, lists, &external, &program);
    if (status != KVF_OK) return status;
    if (external) program.lists = (kvf_u64)(uintptr_t)lists;
    else if (below(2)) {
        memcpy(lists, program.words, sizeof program.words);
        program.lists = (kvf_u64)(uintptr_t)lists;
        memset(program.words, 0xee, sizeof program.words);
    }
    kvf_u32 ctas = 1 + (kvf_u32)below(3);
    const kvf_u32 threads = 32u << below(3);
    if (shape == KVF_SHAPE_SLICES) {
        ctas = kvf_program_slice(&program, ctas, threads / 32);
        if (program.flags & KVF_KERNEL_PAIRS_NARROW) narrow++;
        else wide++;
    }
    for (kvf_u32 cta = 0; cta < ctas; cta++) {
        for (kvf_u32 thread = 0; thread < threads; thread++) {
            if (shape == KVF_SHAPE_SLICES) kvf_slices16(&program, cta, thread, threads, &program);
            else if (shape == KVF_SHAPE_BULK) kvf_bulk(&program, cta, ctas, thread, threads);
            else if (shape == KVF_SHAPE_ROWS && width == 16 && kvf_nest_vectors(nest, width) == 4) kvf_rows16x4(&program, cta, ctas, thread, threads);
            else if (shape == KVF_SHAPE_ROWS && width == 16 && kvf_nest_vectors(nest, width) == 2) kvf_rows16x2(&program, cta, ctas, thread, threads);
            else if (shape == KVF_SHAPE_ROWS && width == 16) kvf_rows16(&program, cta, ctas, thread, threads);
            else if (shape == KVF_SHAPE_ROWS) kvf_rowsn(&program, cta, ctas, thread, threads);
            else if (width == 16) kvf_pieces16(&program, cta, ctas, thread, threads);
            else kvf_piecesn(&program, cta, ctas, thread, threads);
        }
    }
    return KVF_OK;
}

typedef struct through {
    int side;
    unsigned char *slab;
} through;

static uint64_t far_rows, far_spans;

static int32_t by_slab(const kvf_nest *nest, void *argument) {
    through *t = argument;
    double offsets[MOST_PAIRS];
    kvf_nest near, far;
    kvf_nest_slab(nest, t->side, (uint64_t)(uintptr_t)t->slab, offsets, &near, &far);
    const kvf_nest *first = t->side == KVF_SRC ? &near : &far, *second = t->side == KVF_SRC ? &far : &near;
    kvf_walk walk;
    kvf_span span;
    kvf_walk_open(&walk, &far);
    far_rows += kvf_nest_rows(nest);
    while (kvf_walk_next(&walk, &span)) far_spans++;
    int32_t status = first == &near ? by_kernel(first, NULL) : by_walk(first, NULL);
    if (status != KVF_OK) return status;
    return second == &near ? by_kernel(second, NULL) : by_walk(second, NULL);
}

static uint64_t wrong_bytes(const sample *s) {
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < s->bytes[1]; i++) wrong += s->memory[1][i] != s->wanted[i];
    return wrong;
}

static int check(sample *s, const char *what, int32_t status) {
    uint64_t wrong = status == KVF_OK ? wrong_bytes(s) : s->bytes[1];
    memset(s->memory[1], 0xa5, s->bytes[1]);
    if (wrong == 0 && misaligned == 0) return 0;
    fprintf(stderr, "%s: %llu of %llu bytes wrong (status %d %s); bases %u pairs %u loops %u row %u runs %d\n", what, (unsigned long long)wrong,
            (unsigned long long)s->bytes[1], status, status ? kvf_error_text() : "", s->bases, s->pairs, s->loops, s->row, s->runs);
    misaligned = 0;
    return 1;
}

int main(int argc, char **argv) {
    const uint64_t cases = argc > 1 ? strtoull(argv[1], NULL, 10) : 500;
    random_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static double words[4096];
    uint64_t failures = 0, joined = 0, over = 0;
    for (uint64_t n = 0; n < cases && failures < 10; n++) {
        sample s;
        make(&s);
        kvf_cpu_limit((uint32_t)(n % 3));
        const uint64_t length = write_hop(&s, (uint64_t[2]){(uint64_t)(uintptr_t)s.memory[0], (uint64_t)(uintptr_t)s.memory[1]}, (uint32_t[2]){0, 0}, 0, words);
        kvf_hop hop;
        if (kvf_hop_parse(&hop, words, length) != KVF_OK) {
            fprintf(stderr, "case %llu: %s\n", (unsigned long long)n, kvf_error_text());
            failures++;
            discard(&s);
            continue;
        }
        kvf_nest nest, ordered;
        kvf_nest_from(&nest, &hop.program[0]);
        const uint64_t total = kvf_nest_bytes(&nest);
        if (total != hop.bytes) failures++, fprintf(stderr, "case %llu: %llu bytes of %llu\n", (unsigned long long)n, (unsigned long long)total, (unsigned long long)hop.bytes);
        if (kvf_nest_rows(&nest) < hop.rows) joined++;

        failures += (uint64_t)check(&s, doing = "walk", by_walk(&nest, NULL));
        ordered = nest;
        kvf_nest_order(&ordered, (int)below(2));
        failures += (uint64_t)check(&s, doing = "walk in order", by_walk(&ordered, NULL));
        failures += (uint64_t)check(&s, doing = "kernel", by_kernel(&ordered, NULL));
        int bulk = 1;
        failures += (uint64_t)check(&s, doing = "bulk", by_kernel(&nest, &bulk));
        const uint64_t most = 1 + below(total), pairs = 1 + below(MOST_PAIRS);
        largest = 0;
        failures += (uint64_t)check(&s, doing = "cut and walk", kvf_nest_cut(&nest, (int)below(2), most, pairs, by_walk, NULL));
        over += largest > most;
        failures += (uint64_t)check(&s, doing = "cut and kernel", kvf_nest_cut(&nest, (int)below(2), most, pairs, by_kernel, NULL));
        for (int side = 0; side < 2; side++) {
            through t = {side, aligned_alloc(256, (total + 255) / 256 * 256)};
            memset(t.slab, 0x5a, total);
            failures += (uint64_t)check(&s, doing = side ? "slab in" : "slab out", by_slab(&nest, &t));
            const uint64_t chunk = 1 + below(total);
            failures += (uint64_t)check(&s, doing = "slabs in chunks", kvf_nest_cut(&nest, 1 - side, chunk, pairs, by_slab, &t));
            free(t.slab);
        }
        kvf_hop_free(&hop);
        discard(&s);
    }
    printf("{\"cases\":%llu,\"failures\":%llu,\"joined\":%llu,\"over\":%llu,\"rows\":%llu,\"spans\":%llu,\"narrow\":%llu,\"wide\":%llu}\n", (unsigned long long)cases,
           (unsigned long long)failures, (unsigned long long)joined, (unsigned long long)over, (unsigned long long)far_rows, (unsigned long long)far_spans, (unsigned long long)narrow,
           (unsigned long long)wide);
    return failures || over ? 1 : 0;
}
