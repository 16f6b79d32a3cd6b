/*
 * driver_copies.h - copies against the definition of a hop, on every path: plain and non-temporal, every instruction set,
 * on the calling thread and as jobs, small rows, rows that are split, hops of many programs, cancelled ones.
 */
#ifndef KVF_DRIVER_COPIES_H
#define KVF_DRIVER_COPIES_H

#include "cpu.h"
#include "driver_hop.h"
#include "hop.h"

typedef struct oracle {
    const draft *from;
    uint8_t *expected;
    uint64_t rows;
} oracle;

static void copy_row(void *to, uint64_t src, uint64_t dst, uint64_t bytes, uint32_t program) {
    (void)program;
    oracle *self = to;
    const uint8_t *source = (const uint8_t *)(uintptr_t)src;
    uint8_t *target = self->expected + (dst - (uintptr_t)self->from->dst);
    for (uint64_t k = 0; k < bytes; k++) target[k] = source[k];
    self->rows++;
}

/* What the destination arena must hold after the hop. */
static uint8_t *expected_of(const draft *hop, uint64_t *rows) {
    oracle to = {.from = hop, .expected = malloc(hop->dst_bytes)};
    CHECK(to.expected);
    memset(to.expected, GUARD, hop->dst_bytes);
    visit_rows(hop->words, copy_row, &to);
    if (rows) *rows = to.rows;
    return to.expected;
}

static void run_job(client *js, draft *hop, uint32_t flags, uint32_t threads) {
    uint32_t slot = (uint32_t)below(js->slots);
    CHECK(kvf_copy_job(js->context, slot, hop->words, hop->used, flags, threads, NULL, NULL, 0) == KVF_OK);
    answer got = await(js);
    CHECK(got.slot == slot && got.status == KVF_OK && got.flags == KVF_DONE_TOUCHED);
    CHECK(got.value == hop->words[4]);
    CHECK(slot_record(js, slot)[0] == hop->programs);
    double bytes;
    memcpy(&bytes, slot_record(js, slot) + 4, 8);
    CHECK(bytes == hop->words[4]);
}

static void every_way(client *js, draft *hop) {
    uint64_t rows;
    uint8_t *expected = expected_of(hop, &rows);
    double out[2];
    CHECK(kvf_hop_check(hop->words, hop->used, out) == KVF_OK);
    CHECK(out[0] == (double)rows && out[1] == hop->words[4]);
    for (uint32_t way = 0; way < 5; way++) {
        kvf_cpu_limit(way % 3);
        memset(hop->dst, GUARD, hop->dst_bytes);
        if (way < 3) {
            CHECK(kvf_copy_run(hop->words, hop->used, way ? KVF_COPY_NONTEMPORAL : 0, out) == KVF_OK);
            CHECK(out[0] == hop->words[4]);
        } else {
            run_job(js, hop, way == 3 ? 0 : KVF_COPY_NONTEMPORAL, 1 + (uint32_t)below(4));
        }
        CHECK(memcmp(hop->dst, expected, hop->dst_bytes) == 0);
    }
    kvf_cpu_limit(KVF_CPU_AVX512);
    free(expected);
}

static void random_hops(uint32_t cases) {
    static draft hop;
    client js = open_client(64);
    for (uint32_t at = 0; at < cases; at++) {
        uint32_t programs = 1 + (uint32_t)below(4);
        begin_draft(&hop, programs, 1 << 20, 16 << 20);
        uint64_t most_row = (uint64_t[]){16, 300, 5000}[below(3)];
        for (uint32_t p = 0; p < programs; p++) random_program(&hop, p, most_row);
        hop.dst_bytes = hop.dst_used + 64;
        seal_draft(&hop);
        every_way(&js, &hop);
        end_draft(&hop);
    }
    CHECK(close_client(&js, 1000) == 0);
}

/* One program of flat rows, dense on both sides from an odd place on. */
static void flat_program(draft *hop, uint32_t index, uint64_t pairs, uint64_t row) {
    double *head = hop->words + KVF_HOP_HEADER_WORDS + (uint64_t)index * KVF_PROGRAM_WORDS;
    double *base = new_array(hop, 2), *offset = new_array(hop, 2 * pairs);
    base[0] = (double)(uintptr_t)hop->src;
    base[1] = (double)((uintptr_t)hop->dst + hop->dst_used);
    for (uint64_t p = 0; p < pairs; p++) {
        offset[p] = (double)(below(100) + (pairs - 1 - p) * row);
        offset[pairs + p] = (double)(3 + p * row);
    }
    hop->dst_used += 3 + pairs * row;
    CHECK(hop->dst_used <= hop->dst_bytes && pairs * row + 100 <= hop->src_bytes);
    head[0] = 1;
    head[1] = (double)pairs;
    head[3] = (double)row;
    head[28] = (double)(base - hop->words);
    head[29] = head[28] + 1;
    head[30] = (double)(offset - hop->words);
    head[31] = head[30] + (double)pairs;
    head[33] = (double)(pairs * row);
}

static void large_rows(void) {
    static draft hop;
    client js = open_client(64);
    begin_draft(&hop, 3, 6 << 20, 14 << 20);
    flat_program(&hop, 0, 2, (2 << 20) + 4100);
    flat_program(&hop, 1, 40, 100001);
    flat_program(&hop, 2, 1, 5 << 20);
    seal_draft(&hop);
    every_way(&js, &hop);
    end_draft(&hop);
    /* Items of 256 KiB: the last piece of each row is shorter than the way to the next cache line. */
    begin_draft(&hop, 1, 3 << 20, 3 << 20);
    flat_program(&hop, 0, 3, (3 << 18) + 4);
    seal_draft(&hop);
    every_way(&js, &hop);
    end_draft(&hop);
    CHECK(close_client(&js, 1000) == 0);
}

/* Whoever sees that k programs are done reads the right bytes of all of them, while others still run. */
static void programs_in_order(uint32_t cases) {
    static draft hop;
    client js = open_client(64);
    const uint32_t programs = 24;
    uint64_t end[24];
    begin_draft(&hop, programs, 1 << 20, 12 << 20);
    for (uint32_t p = 0; p < programs; p++) {
        flat_program(&hop, p, 1 + p % 3, p % 5 ? 90000 : 300000);
        end[p] = hop.dst_used;
    }
    seal_draft(&hop);
    uint8_t *expected = expected_of(&hop, NULL);
    for (uint32_t at = 0; at < cases; at++) {
        memset(hop.dst, GUARD, hop.dst_bytes);
        uint32_t seen = 0;
        CHECK(kvf_copy_job(js.context, 7, hop.words, hop.used, at % 2, 3, NULL, NULL, 0) == KVF_OK);
        while (seen < programs) {
            uint32_t done = __atomic_load_n(slot_record(&js, 7), __ATOMIC_SEQ_CST);
            CHECK(done >= seen && done <= programs);
            uint64_t from = seen ? end[seen - 1] : 0;
            if (done > seen) CHECK(memcmp(hop.dst + from, expected + from, end[done - 1] - from) == 0);
            seen = done;
        }
        CHECK(await(&js).status == KVF_OK);
    }
    free(expected);
    end_draft(&hop);
    CHECK(close_client(&js, 1000) == 0);
}

static void many_programs(void) {
    static draft hop;
    client js = open_client(64);
    begin_draft(&hop, 300, 1 << 20, 4 << 20);
    for (uint32_t p = 0; p < 300; p++) flat_program(&hop, p, 1 + below(3), 1 + below(p % 7 ? 600 : 30000));
    seal_draft(&hop);
    every_way(&js, &hop);
    end_draft(&hop);
    CHECK(close_client(&js, 1000) == 0);
}

/* Long lists of runs: the marks that find a block in the middle. */
static void many_runs(void) {
    static draft hop;
    client js = open_client(64);
    const uint64_t pairs = 3000, row = 512;
    begin_draft(&hop, 1, 1 << 20, 12 << 20);
    flat_program(&hop, 0, pairs, 256); /* the arrays; its figures are replaced below */
    double *head = hop.words + KVF_HOP_HEADER_WORDS;
    double *offset = hop.words + (uint64_t)head[30];
    double *runs = new_array(&hop, pairs / 2);
    uint64_t sum = 0;
    for (uint64_t p = 0; p < pairs; p++) {
        uint32_t steps = 1 + (uint32_t)below(9);
        memcpy((char *)runs + 4 * p, &steps, 4);
        offset[p] = (double)below((1 << 20) - 10 * row);
        offset[pairs + p] = (double)(sum * row);
        sum += steps;
    }
    CHECK(sum * row <= hop.dst_bytes);
    head[3] = (double)row;
    head[4] = head[5] = (double)row;
    head[32] = (double)(runs - hop.words);
    head[33] = (double)(sum * row);
    seal_draft(&hop);
    every_way(&js, &hop);
    end_draft(&hop);
    CHECK(close_client(&js, 1000) == 0);
}

/* Block ids that the call is given beside the hop, and that the caller overwrites as soon as it returns. */
static void lists_beside(void) {
    static draft hop;
    client js = open_client(64);
    const uint32_t pairs = 1999, row = 512;
    begin_draft(&hop, 1, 1 << 20, 2 << 20);
    flat_program(&hop, 0, pairs, row); /* the arrays; ids take the places of its offsets below */
    double *head = hop.words + KVF_HOP_HEADER_WORDS;
    const size_t bytes = pairs * sizeof(uint32_t);
    uint32_t *from = malloc(bytes), *to = malloc(bytes);
    CHECK(from && to);
    for (uint32_t p = 0; p < pairs; p++) {
        from[p] = (uint32_t)below(pairs);
        to[p] = pairs - 1 - p;
    }
    memcpy(hop.words + (uint64_t)head[30], from, bytes);
    memcpy(hop.words + (uint64_t)head[31], to, bytes);
    head[34] = 1;
    head[35] = head[36] = row;
    seal_draft(&hop);
    uint8_t *expected = expected_of(&hop, NULL);
    head[34] = 2;
    head[30] = head[31] = 0;
    uint32_t *lent = malloc(2 * bytes);
    CHECK(lent);
    for (uint32_t way = 0; way < 6; way++) {
        memcpy(lent, from, bytes);
        memcpy(lent + pairs, to, bytes);
        memset(hop.dst, GUARD, hop.dst_bytes);
        CHECK(kvf_copy_job(js.context, way, hop.words, hop.used, way % 2, 1 + way % 3, lent, lent + pairs, pairs) == KVF_OK);
        memset(lent, 0, 2 * bytes);
        CHECK(await(&js).status == KVF_OK);
        CHECK(memcmp(hop.dst, expected, hop.dst_bytes) == 0);
    }
    memset(hop.dst, GUARD, hop.dst_bytes);
    CHECK(kvf_copy_job(js.context, 7, hop.words, hop.used, 0, 2, from, to, pairs - 1) == KVF_E_INVALID);
    CHECK(kvf_copy_job(js.context, 7, hop.words, hop.used, 0, 2, NULL, to, pairs) == KVF_E_INVALID);
    CHECK(kvf_copy_job(js.context, 7, hop.words, hop.used, 0, 2, NULL, NULL, 0) == KVF_E_INVALID);
    for (uint64_t k = 0; k < hop.dst_bytes; k++) CHECK(hop.dst[k] == GUARD);
    free(lent);
    free(from);
    free(to);
    free(expected);
    end_draft(&hop);
    CHECK(close_client(&js, 1000) == 0);
}

/* ---- the cursor ---------------------------------------------------------------------------------------------- */

typedef struct walk {
    kvf_cursor cursor;
    const kvf_hop *hop;
} walk;

static void same_row(void *to, uint64_t src, uint64_t dst, uint64_t bytes, uint32_t program) {
    walk *self = to;
    kvf_row row;
    CHECK(kvf_cursor_next(&self->cursor, &row));
    CHECK(row.src == src && row.dst == dst && row.bytes == bytes && row.program == program);
    CHECK(row.last == (self->cursor.program != program));
}

static void cursor_walks_all_rows(uint32_t cases) {
    static draft hop;
    for (uint32_t at = 0; at < cases; at++) {
        begin_draft(&hop, 3, 1 << 20, 16 << 20);
        for (uint32_t p = 0; p < 3; p++) random_program(&hop, p, 300);
        seal_draft(&hop);
        kvf_hop parsed;
        CHECK(kvf_hop_parse_copy(&parsed, hop.words, hop.used) == KVF_OK);
        walk to = {.hop = &parsed};
        kvf_cursor_open(&to.cursor, &parsed);
        visit_rows(hop.words, same_row, &to);
        kvf_row row;
        CHECK(!kvf_cursor_next(&to.cursor, &row));
        kvf_hop_free(&parsed);
        end_draft(&hop);
    }
}

/* ---- cancelling ---------------------------------------------------------------------------------------------- */

static void cancelled_copies(uint32_t cases) {
    static draft hop;
    client js = open_client(64);
    begin_draft(&hop, 2, 3 << 20, 6 << 20);
    flat_program(&hop, 0, 40, 70000);
    flat_program(&hop, 1, 40, 70000);
    seal_draft(&hop);
    uint8_t *expected = expected_of(&hop, NULL);
    uint32_t cancelled = 0;
    for (uint32_t at = 0; at < cases; at++) {
        memset(hop.dst, GUARD, hop.dst_bytes);
        CHECK(kvf_copy_job(js.context, 5, hop.words, hop.used, at % 2, 1 + at % 3, NULL, NULL, 0) == KVF_OK);
        for (uint64_t spin = below(100000); spin > 0; spin--) __asm__ volatile("");
        CHECK(kvf_slot_cancel(js.context, 5) == KVF_OK);
        answer got = await(&js);
        CHECK(got.status == KVF_OK || got.status == KVF_E_CANCELLED);
        uint64_t arrived = 0;
        double done;
        memcpy(&done, slot_record(&js, 5) + 4, 8);
        /* The guard byte may also be data: what differs from it arrived, what arrived is right. */
        for (uint64_t k = 0; k < hop.dst_bytes; k++) {
            CHECK(hop.dst[k] == GUARD || hop.dst[k] == expected[k]);
            arrived += hop.dst[k] != GUARD;
        }
        CHECK(arrived <= (uint64_t)done);
        CHECK((got.flags == KVF_DONE_TOUCHED) == (done > 0));
        if (got.status == KVF_OK) CHECK(memcmp(hop.dst, expected, hop.dst_bytes) == 0);
        char text[200];
        CHECK(kvf_slot_error(js.context, 5, text, sizeof text) == KVF_OK);
        if (got.status == KVF_OK) continue;
        CHECK(strstr(text, "stopped"));
        CHECK(slot_record(&js, 5)[0] < 2);
        cancelled++;
    }
    CHECK(cancelled > 0);
    free(expected);
    end_draft(&hop);
    CHECK(close_client(&js, 1000) == 0);
}

#endif
