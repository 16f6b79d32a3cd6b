#include "hop.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "numbers.h"
#include "status.h"

typedef __int128 wide;

#define HUGE_PAGE ((uint64_t)2 << 20)
#define LEAST_HUGE (2 * HUGE_PAGE)

/* ---- one program --------------------------------------------------------------------------------------------- */

typedef struct span {
    wide low;
    wide high;
} span;

static void widen(span *extent, uint64_t count, int64_t stride) {
    wide reach = (wide)(count - 1) * stride;
    if (reach < 0) extent->low += reach;
    else extent->high += reach;
}

static int32_t malformed(uint32_t program, const char *what) {
    return kvf_refuse(KVF_E_INVALID, "hop: program %u: %s", program, what);
}

/* Fits `count` words from word `at` on into the block? */
static const double *array_at(const kvf_hop *hop, uint64_t at, uint64_t count) {
    uint64_t first = KVF_HOP_HEADER_WORDS + (uint64_t)hop->programs * KVF_PROGRAM_WORDS;
    if (at < first || at > hop->word_count || count > hop->word_count - at) return NULL;
    return hop->words + at;
}

/* Finds the lists of pairs: offsets (0), or block ids, two to a word (1) or beside the block (2). */
static bool find_places(const kvf_hop *hop, kvf_program *program, const uint64_t at[2], uint64_t ids) {
    for (int side = 0; side < 2; side++) {
        if (ids == 2) {
            if (at[side] != 0 || program->pairs > hop->lists.count) return false;
            program->place[side].offset = NULL;
            program->place[side].id = hop->lists.id[side];
            program->place[side].number = hop->list_number[side];
            continue;
        }
        const double *list = array_at(hop, at[side], ids ? (program->pairs + 1) / 2 : program->pairs);
        if (!list) return false;
        program->place[side].offset = ids ? NULL : list;
        program->place[side].id = ids ? (const uint32_t *)list : NULL;
        program->place[side].number = 0;
    }
    return true;
}

/* Bounds of ids, as kvf_bound_ids gives them. */
typedef struct id_bounds {
    uint64_t number, pairs;
    uint32_t low, high, bits;
} id_bounds;

/* What a thread found in the last list of each side: engines move layer after layer by the same ids. */
static const id_bounds *bounds_of(const kvf_places *place, uint64_t pairs, int side) {
    static _Thread_local id_bounds last[2];
    id_bounds *known = &last[side];
    if (place->number != 0 && place->number == known->number && pairs == known->pairs) return known;
    known->number = place->number;
    known->pairs = pairs;
    kvf_bound_ids(place->id, pairs, &known->low, &known->high, &known->bits);
    return known;
}

/* Finds how far the pairs of a side lie apart; false where a number is none, or out of bounds. */
static bool bound_places(kvf_program *program, int side) {
    const kvf_places *place = &program->place[side];
    int64_t *least = &program->offset_least[side], *most = &program->offset_most[side];
    if (place->offset) return kvf_bounds_of(place->offset, program->pairs, least, most, &program->offset_bits[side]);
    const id_bounds *ids = bounds_of(place, program->pairs, side);
    const wide first = (wide)ids->low * place->stride, last = (wide)ids->high * place->stride;
    if (first < -(wide)KVF_MOST_NUMBER || first > (wide)KVF_MOST_NUMBER || last < -(wide)KVF_MOST_NUMBER || last > (wide)KVF_MOST_NUMBER) return false;
    *least = (int64_t)(first < last ? first : last);
    *most = (int64_t)(first < last ? last : first);
    program->offset_bits[side] = (uint64_t)ids->bits * (uint64_t)place->stride;
    return true;
}

/* Sums the runs and finds how far the two sides reach with them. */
static bool sum_runs(kvf_program *program) {
    uint64_t sum = 0;
    uint32_t longest = 0;
    for (uint64_t p = 0; p < program->pairs; p++) {
        uint32_t run = program->run[p];
        if (run == 0) return false;
        sum += run;
        longest = run > longest ? run : longest;
    }
    program->blocks = sum;
    /* With the longest run inside the limits the others fit 64 bits as well. */
    wide limit = KVF_MOST_NUMBER;
    if ((wide)(longest - 1) * llabs(program->src_run) > limit || (wide)(longest - 1) * llabs(program->dst_run) > limit) return false;
    int64_t src_low = INT64_MAX, src_high = INT64_MIN, dst_low = INT64_MAX, dst_high = INT64_MIN;
    for (uint64_t p = 0; p < program->pairs; p++) {
        int64_t steps = (int64_t)program->run[p] - 1;
        int64_t from = kvf_offset_of(&program->place[0], p), to = from + steps * program->src_run;
        if (from < src_low) src_low = from;
        if (to < src_low) src_low = to;
        if (from > src_high) src_high = from;
        if (to > src_high) src_high = to;
        from = kvf_offset_of(&program->place[1], p);
        to = from + steps * program->dst_run;
        if (from < dst_low) dst_low = from;
        if (to < dst_low) dst_low = to;
        if (from > dst_high) dst_high = from;
        if (to > dst_high) dst_high = to;
    }
    program->reach_least[0] = src_low;
    program->reach_most[0] = src_high;
    program->reach_least[1] = dst_low;
    program->reach_most[1] = dst_high;
    return true;
}

static bool in_memory(const span *extent, uint32_t kind) {
    return extent->low >= (kind == 2 ? 0 : 1) && extent->high <= (wide)KVF_MOST_NUMBER;
}

static int32_t parse_program(kvf_hop *hop, uint32_t index) {
    kvf_program *program = &hop->program[index];
    const double *word = hop->words + KVF_HOP_HEADER_WORDS + (uint64_t)index * KVF_PROGRAM_WORDS;
    uint64_t loops, kinds[4], at[5], ids, bytes;
    if (!kvf_natural(word[0], &program->bases) || program->bases == 0) return malformed(index, "bases");
    if (!kvf_natural(word[1], &program->pairs) || program->pairs == 0) return malformed(index, "pairs");
    if (!kvf_natural(word[2], &loops) || loops > KVF_MAX_LOOPS) return malformed(index, "loops");
    if (!kvf_natural(word[3], &program->row_bytes) || program->row_bytes == 0) return malformed(index, "row bytes");
    if (!kvf_whole(word[4], &program->src_run) || !kvf_whole(word[5], &program->dst_run)) return malformed(index, "run strides");
    program->loops = (uint32_t)loops;
    for (int k = 0; k < 4; k++)
        if (!kvf_natural(word[24 + k], &kinds[k]) || kinds[k] > (k % 2 ? UINT32_MAX : 2)) return malformed(index, "memory kind or device");
    program->src_kind = (uint32_t)kinds[0];
    program->src_device = (uint32_t)kinds[1];
    program->dst_kind = (uint32_t)kinds[2];
    program->dst_device = (uint32_t)kinds[3];
    for (int k = 37; k < KVF_PROGRAM_WORDS; k++)
        if (word[k] != 0) return malformed(index, "reserved words are not zero");

    if (!kvf_natural(word[34], &ids) || ids > 2) return malformed(index, "kind of its offsets");
    for (int side = 0; side < 2; side++) {
        int64_t *stride = &program->place[side].stride;
        if (!kvf_whole(word[35 + side], stride) || (!ids && *stride != 0)) return malformed(index, "strides of block ids");
    }

    span src = {0, (wide)program->row_bytes}, dst = src;
    wide rows_per_block = 1;
    for (uint32_t k = 0; k < program->loops; k++) {
        if (!kvf_natural(word[6 + k], &program->count[k]) || program->count[k] == 0) return malformed(index, "loop count");
        if (!kvf_whole(word[12 + k], &program->src_stride[k]) || !kvf_whole(word[18 + k], &program->dst_stride[k]))
            return malformed(index, "loop strides");
        rows_per_block *= program->count[k];
        if (rows_per_block > KVF_MOST_NUMBER) return malformed(index, "more rows than 2^53");
        widen(&src, program->count[k], program->src_stride[k]);
        widen(&dst, program->count[k], program->dst_stride[k]);
    }
    program->rows_per_block = (uint64_t)rows_per_block;

    for (int k = 0; k < 5; k++)
        if (!kvf_natural(word[28 + k], &at[k])) return malformed(index, "place of an array");
    program->src_base = array_at(hop, at[0], program->bases);
    program->dst_base = array_at(hop, at[1], program->bases);
    program->run = at[4] == 0 ? NULL : (const uint32_t *)array_at(hop, at[4], (program->pairs + 1) / 2);
    if (!program->src_base || !program->dst_base || (at[4] && !program->run) || !find_places(hop, program, at + 2, ids))
        return malformed(index, ids == 2 ? "it has more pairs than there are ids beside the block" : "an array lies outside the block");

    int64_t low, high;
    uint64_t bits;
    if (!kvf_bounds_of(program->src_base, program->bases, &low, &high, &bits)) return malformed(index, "source bases");
    src.low += low;
    src.high += high;
    if (!kvf_bounds_of(program->dst_base, program->bases, &low, &high, &bits)) return malformed(index, "destination bases");
    dst.low += low;
    dst.high += high;
    int64_t *least = program->offset_least, *most = program->offset_most;
    for (int side = 0; side < 2; side++)
        if (!bound_places(program, side)) return malformed(index, side == 0 ? "source offsets" : "destination offsets");
    if (program->run) {
        if (!sum_runs(program)) return malformed(index, "runs");
    } else {
        program->blocks = program->pairs;
        for (int side = 0; side < 2; side++) {
            program->reach_least[side] = least[side];
            program->reach_most[side] = most[side];
        }
    }
    src.low += program->reach_least[0];
    src.high += program->reach_most[0];
    dst.low += program->reach_least[1];
    dst.high += program->reach_most[1];
    if (!in_memory(&src, program->src_kind)) return malformed(index, "source addresses outside 1 to 2^53");
    if (!in_memory(&dst, program->dst_kind)) return malformed(index, "destination addresses outside 1 to 2^53");

    wide rows = (wide)program->bases * program->blocks;
    if (rows > KVF_MOST_NUMBER || (rows *= rows_per_block) > KVF_MOST_NUMBER || rows * program->row_bytes > KVF_MOST_NUMBER)
        return malformed(index, "more bytes than 2^53");
    program->rows = (uint64_t)rows;
    program->bytes = program->rows * program->row_bytes;
    if (!kvf_natural(word[33], &bytes) || bytes != program->bytes) return malformed(index, "its bytes are not what its loops move");
    return KVF_OK;
}

/* ---- hops ---------------------------------------------------------------------------------------------------- */

static int32_t parse_header(kvf_hop *hop, uint64_t *bytes) {
    uint64_t programs, words;
    const double *word = hop->words;
    if (hop->word_count < KVF_HOP_HEADER_WORDS) return kvf_refuse(KVF_E_INVALID, "hop: shorter than its header");
    if (word[0] != (double)KVF_HOP_MAGIC) return kvf_refuse(KVF_E_INVALID, "hop: the magic number is wrong");
    if (word[1] != (double)KVF_HOP_VERSION) return kvf_refuse(KVF_E_INVALID, "hop: version %g; %d is known", word[1], KVF_HOP_VERSION);
    if (!kvf_natural(word[3], &words) || words != hop->word_count)
        return kvf_refuse(KVF_E_INVALID, "hop: it says %g words, %llu were given", word[3], (unsigned long long)hop->word_count);
    if (!kvf_natural(word[2], &programs) || programs > (words - KVF_HOP_HEADER_WORDS) / KVF_PROGRAM_WORDS)
        return kvf_refuse(KVF_E_INVALID, "hop: %g programs do not fit", word[2]);
    if (!kvf_natural(word[4], bytes)) return kvf_refuse(KVF_E_INVALID, "hop: bytes");
    for (int side = 0; side < 2; side++)
        if (!kvf_natural(word[5 + side], &hop->list_number[side]) || (hop->list_number[side] && !hop->lists.count))
            return kvf_refuse(KVF_E_INVALID, "hop: numbers of lists that are not beside it");
    if (word[7] != 0) return kvf_refuse(KVF_E_INVALID, "hop: a reserved word is not zero");
    hop->programs = (uint32_t)programs;
    return programs > UINT32_MAX ? kvf_refuse(KVF_E_INVALID, "hop: too many programs") : KVF_OK;
}

int32_t kvf_hop_parse(kvf_hop *hop, const double *words, uint64_t count) {
    return kvf_hop_parse_beside(hop, words, count, &(kvf_id_lists){{NULL, NULL}, 0});
}

int32_t kvf_hop_parse_beside(kvf_hop *hop, const double *words, uint64_t count, const kvf_id_lists *lists) {
    hop->words = words;
    hop->word_count = count;
    hop->lists = *lists;
    hop->programs = 0;
    hop->rows = hop->bytes = 0;
    hop->owned = NULL;
    hop->program = hop->few;
    if (!words || (uintptr_t)words % sizeof(double)) return kvf_refuse(KVF_E_INVALID, "hop: no block, or not aligned to 8 bytes");
    if (lists->count > 0 && (!lists->id[0] || !lists->id[1]))
        return kvf_refuse(KVF_E_INVALID, "hop: lists of %llu ids beside it are missing", (unsigned long long)lists->count);
    uint64_t bytes = 0;
    int32_t status = parse_header(hop, &bytes);
    if (status != KVF_OK) return status;
    if (hop->programs > sizeof hop->few / sizeof *hop->few) {
        hop->program = malloc(hop->programs * sizeof *hop->program);
        if (!hop->program) return kvf_refuse(KVF_E_NOMEM, "no memory for %u programs", hop->programs);
    }
    for (uint32_t p = 0; p < hop->programs && status == KVF_OK; p++) {
        status = parse_program(hop, p);
        if (status != KVF_OK) break;
        hop->rows += hop->program[p].rows;
        hop->bytes += hop->program[p].bytes;
        if (hop->bytes > (uint64_t)KVF_MOST_NUMBER) status = kvf_refuse(KVF_E_INVALID, "hop: more bytes than 2^53");
    }
    if (status == KVF_OK && hop->bytes != bytes) status = kvf_refuse(KVF_E_INVALID, "hop: its bytes are not what its programs move");
    if (status != KVF_OK) kvf_hop_free(hop);
    return status;
}

/* Room for a private copy. A large one is asked for in huge pages: taking 16 MiB in small ones costs more than filling it. */
static double *room_for(uint64_t bytes) {
    void *room = NULL;
    if (bytes < LEAST_HUGE) return malloc(bytes);
    if (posix_memalign(&room, HUGE_PAGE, bytes) != 0) return NULL;
    madvise(room, bytes, MADV_HUGEPAGE);
    return room;
}

int32_t kvf_hop_parse_copy(kvf_hop *hop, const double *words, uint64_t count) {
    return kvf_hop_parse_copy_beside(hop, words, count, &(kvf_id_lists){{NULL, NULL}, 0});
}

int32_t kvf_hop_parse_copy_beside(kvf_hop *hop, const double *words, uint64_t count, const kvf_id_lists *lists) {
    if (!words || (uintptr_t)words % sizeof(double) || count < KVF_HOP_HEADER_WORDS || count > (uint64_t)KVF_MOST_NUMBER / sizeof(double))
        return kvf_refuse(KVF_E_INVALID, "hop: no block, not aligned to 8 bytes, or shorter than its header");
    const uint64_t ids = lists->count * sizeof(uint32_t);
    double *copy = room_for(count * sizeof(double) + 2 * ids);
    if (!copy) return kvf_refuse(KVF_E_NOMEM, "no memory for a hop of %llu words", (unsigned long long)count);
    memcpy(copy, words, count * sizeof(double));
    kvf_id_lists own = {{NULL, NULL}, lists->count};
    for (int side = 0; side < 2; side++)
        if (lists->id[side]) own.id[side] = memcpy((char *)(copy + count) + (uint64_t)side * ids, lists->id[side], ids);
    int32_t status = kvf_hop_parse_beside(hop, copy, count, &own);
    if (status != KVF_OK) free(copy);
    else hop->owned = copy;
    return status;
}

void kvf_hop_free(kvf_hop *hop) {
    if (hop->program != hop->few) free(hop->program);
    free(hop->owned);
    hop->program = hop->few;
    hop->owned = NULL;
    hop->programs = 0;
}

int32_t kvf_hop_check(const double *words, kvf_word count, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_hop_check: no place for the result");
    kvf_hop hop;
    int32_t status = kvf_hop_parse(&hop, words, count);
    if (status != KVF_OK) return status;
    out[0] = (double)hop.rows;
    out[1] = (double)hop.bytes;
    kvf_hop_free(&hop);
    return KVF_OK;
}
