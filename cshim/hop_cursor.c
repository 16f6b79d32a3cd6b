/* The cursor over the rows of a hop. */
#include "hop.h"

#include <string.h>

/* Addresses of the block at (base, pair, step), all loop indices zero. */
static void place_block(kvf_cursor *cursor) {
    const kvf_program *program = &cursor->hop->program[cursor->program];
    cursor->src = (uint64_t)((int64_t)program->src_base[cursor->base] + kvf_offset_of(&program->place[0], cursor->pair) +
                             (int64_t)cursor->step * program->src_run);
    cursor->dst = (uint64_t)((int64_t)program->dst_base[cursor->base] + kvf_offset_of(&program->place[1], cursor->pair) +
                             (int64_t)cursor->step * program->dst_run);
}

static void start_program(kvf_cursor *cursor) {
    cursor->base = cursor->pair = cursor->step = 0;
    memset(cursor->index, 0, sizeof cursor->index);
    if (cursor->program >= cursor->hop->programs) {
        cursor->left = 0;
        return;
    }
    cursor->left = cursor->hop->program[cursor->program].rows;
    place_block(cursor);
}

void kvf_cursor_open(kvf_cursor *cursor, const kvf_hop *hop) {
    cursor->hop = hop;
    cursor->program = 0;
    start_program(cursor);
}

/* Moves to the next row of the program; there is one. */
static void advance(kvf_cursor *cursor) {
    const kvf_program *program = &cursor->hop->program[cursor->program];
    for (uint32_t k = program->loops; k-- > 0;) {
        cursor->src += (uint64_t)program->src_stride[k];
        cursor->dst += (uint64_t)program->dst_stride[k];
        if (++cursor->index[k] < program->count[k]) return;
        cursor->src -= program->count[k] * (uint64_t)program->src_stride[k];
        cursor->dst -= program->count[k] * (uint64_t)program->dst_stride[k];
        cursor->index[k] = 0;
    }
    if (++cursor->step >= kvf_program_run(program, cursor->pair)) {
        cursor->step = 0;
        if (++cursor->pair >= program->pairs) {
            cursor->pair = 0;
            cursor->base++;
        }
    }
    place_block(cursor);
}

bool kvf_cursor_next(kvf_cursor *cursor, kvf_row *row) {
    if (cursor->program >= cursor->hop->programs) return false;
    *row = (kvf_row){.src = cursor->src,
                     .dst = cursor->dst,
                     .bytes = cursor->hop->program[cursor->program].row_bytes,
                     .program = cursor->program,
                     .last = --cursor->left == 0};
    if (!row->last) advance(cursor);
    else {
        cursor->program++;
        start_program(cursor);
    }
    return true;
}
