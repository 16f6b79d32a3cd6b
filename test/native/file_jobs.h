/*
 * file_jobs.h - what the drivers of file lanes share: a hop between a file and memory, opening and closing.
 */
#ifndef KVF_FILE_JOBS_H
#define KVF_FILE_JOBS_H

#include "driver.h"

#define CELLS 48u
#define WORDS (KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + 2 + 2 * CELLS)

/* Cells of `cell` bytes: cell from[k] of the source goes to cell to[k] of the destination. */
static inline void make_hop(double *words, bool writing, uint32_t file, const uint8_t *memory, uint64_t cell, const uint32_t *in_file,
                     const uint32_t *in_memory, uint32_t count) {
    memset(words, 0, WORDS * sizeof *words);
    words[0] = KVF_HOP_MAGIC;
    words[1] = KVF_HOP_VERSION;
    words[2] = 1;
    words[3] = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + 2 + 2 * count;
    words[4] = (double)(cell * count);
    double *program = words + KVF_HOP_HEADER_WORDS;
    const uint32_t arrays = KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS;
    program[0] = 1;
    program[1] = count;
    program[3] = (double)cell;
    program[24] = writing ? 0 : 2;
    program[25] = writing ? 0 : file;
    program[26] = writing ? 2 : 0;
    program[27] = writing ? file : 0;
    program[28] = arrays;
    program[29] = arrays + 1;
    program[30] = arrays + 2;
    program[31] = arrays + 2 + count;
    program[33] = (double)(cell * count);
    words[arrays + (writing ? 0 : 1)] = (double)(uintptr_t)memory;
    for (uint32_t k = 0; k < count; k++) {
        words[arrays + 2 + k] = (double)(cell * (writing ? in_memory[k] : in_file[k]));
        words[arrays + 2 + count + k] = (double)(cell * (writing ? in_file[k] : in_memory[k]));
    }
}

static inline void shuffle(uint32_t *ids, uint32_t count) {
    for (uint32_t k = 0; k < count; k++) ids[k] = k;
    for (uint32_t k = count; k > 1; k--) {
        uint32_t other = (uint32_t)below(k), kept = ids[k - 1];
        ids[k - 1] = ids[other];
        ids[other] = kept;
    }
}

static inline uint32_t open_file(client *self, const char *path, uint32_t flags, uint64_t bytes, uint32_t depth) {
    CHECK(kvf_file_open_job(self->context, 0, path, flags, bytes, depth) == KVF_OK);
    answer got = await(self);
    if (got.status != KVF_OK) {
        char text[512];
        kvf_slot_error(self->context, 0, text, sizeof text);
        fprintf(stderr, "open %s: %s\n", path, text);
    }
    CHECK(got.status == KVF_OK && got.value >= 1);
    return (uint32_t)got.value;
}

static inline void close_file(client *self, uint32_t file) {
    CHECK(kvf_file_close_job(self->context, 0, file) == KVF_OK);
    answer got = await(self);
    CHECK(got.status == KVF_OK && got.value == 0);
}

#endif
