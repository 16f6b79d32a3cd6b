/*
 * copy_range.c - copying any bytes of a program between host addresses, in program order, on the calling thread.
 */
#include "copy_range.h"

#include <stdlib.h>

/* Every so many pairs the number of blocks before the pair is kept, to find a block quickly. */
#define MARK_EVERY 256u

bool kvf_ready_make(kvf_ready *ready, const kvf_program *program, bool nontemporal) {
    *ready = (kvf_ready){.program = program, .rows = kvf_rows_for(program->row_bytes, nontemporal)};
    if (!program->run || program->pairs <= MARK_EVERY) return true;
    ready->marks = malloc((program->pairs + MARK_EVERY - 1) / MARK_EVERY * sizeof(uint64_t));
    if (!ready->marks) return false;
    uint64_t blocks = 0;
    for (uint64_t p = 0; p < program->pairs; p++) {
        if (p % MARK_EVERY == 0) ready->marks[p / MARK_EVERY] = blocks;
        blocks += program->run[p];
    }
    return true;
}

void kvf_ready_free(kvf_ready *ready) {
    free(ready->marks);
}

/* ---- where a block lies -------------------------------------------------------------------------------------- */

typedef struct place {
    uint64_t base;
    uint64_t pair;
    uint64_t step;
} place;

static place place_of(const kvf_ready *ready, uint64_t block) {
    const kvf_program *program = ready->program;
    place at = {.base = block / program->blocks};
    uint64_t left = block % program->blocks;
    if (!program->run) {
        at.pair = left;
        return at;
    }
    if (ready->marks) {
        uint64_t low = 0, high = (program->pairs + MARK_EVERY - 1) / MARK_EVERY;
        while (high - low > 1) {
            uint64_t middle = low + (high - low) / 2;
            if (ready->marks[middle] <= left) low = middle;
            else high = middle;
        }
        at.pair = low * MARK_EVERY;
        left -= ready->marks[low];
    }
    while (left >= program->run[at.pair]) left -= program->run[at.pair++];
    at.step = left;
    return at;
}

/* To the first step of the next pair. */
static void next_pair(const kvf_program *program, place *at) {
    at->step = 0;
    if (++at->pair < program->pairs) return;
    at->pair = 0;
    at->base++;
}

static void next_block(const kvf_program *program, place *at) {
    if (++at->step >= kvf_program_run(program, at->pair)) next_pair(program, at);
}

static const uint8_t *source_of(const kvf_program *program, const place *at) {
    return (const uint8_t *)(uintptr_t)((int64_t)program->src_base[at->base] + kvf_offset_of(&program->place[0], at->pair) +
                                        (int64_t)at->step * program->src_run);
}

static uint8_t *destination_of(const kvf_program *program, const place *at) {
    return (uint8_t *)(uintptr_t)((int64_t)program->dst_base[at->base] + kvf_offset_of(&program->place[1], at->pair) +
                                  (int64_t)at->step * program->dst_run);
}

/* ---- copying a part of a program ----------------------------------------------------------------------------- */

/* Rows [first, first + count) of one block whose addresses with all loop indices zero are given. */
static void copy_rows_of_block(const kvf_ready *ready, uint8_t *dst, const uint8_t *src, uint64_t first, uint64_t count) {
    const kvf_program *program = ready->program;
    if (program->loops == 0) {
        ready->rows(dst, src, program->row_bytes, 1, 0, 0, NULL);
        return;
    }
    uint32_t inner = program->loops - 1;
    uint64_t index[KVF_MAX_LOOPS];
    for (uint32_t k = program->loops; k-- > 0; first /= program->count[k]) {
        index[k] = first % program->count[k];
        dst += (int64_t)index[k] * program->dst_stride[k];
        src += (int64_t)index[k] * program->src_stride[k];
    }
    while (count > 0) {
        uint64_t take = program->count[inner] - index[inner];
        if (take > count) take = count;
        ready->rows(dst, src, program->row_bytes, take, program->dst_stride[inner], program->src_stride[inner], NULL);
        count -= take;
        if (count == 0) return;
        /* The inner loop is through: back to its start, and on with the loops around it. */
        dst -= (int64_t)index[inner] * program->dst_stride[inner];
        src -= (int64_t)index[inner] * program->src_stride[inner];
        index[inner] = 0;
        for (uint32_t k = inner; k-- > 0;) {
            dst += program->dst_stride[k];
            src += program->src_stride[k];
            if (++index[k] < program->count[k]) break;
            dst -= (int64_t)program->count[k] * program->dst_stride[k];
            src -= (int64_t)program->count[k] * program->src_stride[k];
            index[k] = 0;
        }
    }
}

/* Whole blocks that are one row each: the steps of a run are the rows. */
static void copy_flat_blocks(const kvf_ready *ready, place at, uint64_t count) {
    const kvf_program *program = ready->program;
    while (count > 0) {
        uint64_t take = kvf_program_run(program, at.pair) - at.step;
        if (take > count) take = count;
        const uint8_t *src = source_of(program, &at);
        uint8_t *dst = destination_of(program, &at);
        count -= take;
        next_pair(program, &at);
        ready->rows(dst, src, program->row_bytes, take, program->dst_run, program->src_run, count > 0 ? source_of(program, &at) : NULL);
    }
}

static void copy_blocks(const kvf_ready *ready, place at, uint64_t count) {
    const kvf_program *program = ready->program;
    if (program->loops == 0) {
        copy_flat_blocks(ready, at, count);
        return;
    }
    for (; count > 0; count--, next_block(program, &at)) {
        const uint8_t *src = source_of(program, &at);
        uint8_t *dst = destination_of(program, &at);
        if (program->loops == 1) {
            ready->rows(dst, src, program->row_bytes, program->count[0], program->dst_stride[0], program->src_stride[0], NULL);
        } else if (program->loops == 2) {
            for (uint64_t k = program->count[0]; k > 0; k--, dst += program->dst_stride[0], src += program->src_stride[0])
                ready->rows(dst, src, program->row_bytes, program->count[1], program->dst_stride[1], program->src_stride[1], NULL);
        } else {
            copy_rows_of_block(ready, dst, src, 0, program->rows_per_block);
        }
    }
}

static void copy_rows(const kvf_ready *ready, uint64_t row, uint64_t count) {
    const kvf_program *program = ready->program;
    uint64_t per_block = program->rows_per_block;
    uint64_t inside = row % per_block;
    if (inside > 0 && count > 0) {
        uint64_t take = count < per_block - inside ? count : per_block - inside;
        place at = place_of(ready, row / per_block);
        copy_rows_of_block(ready, destination_of(program, &at), source_of(program, &at), inside, take);
        row += take;
        count -= take;
    }
    uint64_t blocks = count / per_block;
    if (blocks > 0) copy_blocks(ready, place_of(ready, row / per_block), blocks);
    row += blocks * per_block;
    count -= blocks * per_block;
    if (count > 0) {
        place at = place_of(ready, row / per_block);
        copy_rows_of_block(ready, destination_of(program, &at), source_of(program, &at), 0, count);
    }
}

/* `bytes` bytes of one row from `skip` on. */
static void copy_part_of_row(const kvf_ready *ready, uint64_t row, uint64_t skip, uint64_t bytes) {
    const kvf_program *program = ready->program;
    place at = place_of(ready, row / program->rows_per_block);
    int64_t dst = (int64_t)(uintptr_t)destination_of(program, &at);
    int64_t src = (int64_t)(uintptr_t)source_of(program, &at);
    uint64_t rest = row % program->rows_per_block;
    for (uint32_t k = program->loops; k-- > 0; rest /= program->count[k]) {
        dst += (int64_t)(rest % program->count[k]) * program->dst_stride[k];
        src += (int64_t)(rest % program->count[k]) * program->src_stride[k];
    }
    ready->rows((uint8_t *)(uintptr_t)dst + skip, (const uint8_t *)(uintptr_t)src + skip, bytes, 1, 0, 0, NULL);
}

void kvf_copy_range(const kvf_ready *ready, uint64_t from, uint64_t to) {
    uint64_t row_bytes = ready->program->row_bytes;
    uint64_t row = from / row_bytes;
    uint64_t skip = from % row_bytes;
    if (skip > 0) {
        uint64_t part = row_bytes - skip < to - from ? row_bytes - skip : to - from;
        copy_part_of_row(ready, row, skip, part);
        from += part;
        row++;
    }
    uint64_t whole = (to - from) / row_bytes;
    copy_rows(ready, row, whole);
    uint64_t rest = (to - from) % row_bytes;
    if (rest > 0) copy_part_of_row(ready, row + whole, 0, rest);
}

void kvf_copy_whole(const kvf_program *program, bool nontemporal) {
    const kvf_ready ready = {.program = program, .rows = kvf_rows_for(program->row_bytes, nontemporal)};
    copy_blocks(&ready, (place){0, 0, 0}, program->bases * program->blocks);
}
