/*
 * pairs.c - one look at the ids of a transfer: in range, no destination twice, and how many continue each other.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "cpu.h"
#include "kvf.h"
#include "status.h"

/* Tables of at most so many entries for each pair are looked over as a whole once all pairs stand in them. */
#define DENSE 8
/* A table that is filled to more than one entry in so many is cleared as a whole. */
#define CLEARED_WHOLE 16
/* So many pairs, and narrow marks will do: what they mistake is too little then to change anything. */
#define MANY 2048

/* What the lists hold, before any table is touched. */
typedef struct extremes {
    uint32_t source_most, least, most; /* of the source's ids; of the destination's */
} extremes;

/* Entries that were filled, and those whose neighbour holds the next source. */
typedef struct filled {
    uint32_t entries, continued;
} filled;

/* Two ids at once, as they lie: the first is the lower half. */
static inline uint64_t two(const uint32_t *ids) {
    uint64_t both;
    memcpy(&both, ids, sizeof both);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    both = both << 32 | both >> 32;
#endif
    return both;
}

/* The entry of an id is the one behind its number, and holds a mark of the source's id; 0 means an empty entry. Wide marks are
 * the id plus one. Narrow ones are its last bits: some pairs seem to continue another that do not, never the other way round,
 * and a table of a quarter of the size stays in the nearest cache. */
#define WIDE(ID) ((ID) + 1)
#define NARROW(ID) ((ID) | 128)
#define FILL(NAME, TYPE, MARK)                                                                                             \
    static void fill_##NAME(const uint32_t *source, const uint32_t *destination, uint32_t count, TYPE *marks) {             \
        TYPE *at = marks + 1;                                                                                              \
        uint32_t p = 0;                                                                                                    \
        for (; p + 4 <= count; p += 4) {                                                                                   \
            const uint64_t to = two(destination + p), more = two(destination + p + 2), from = two(source + p), next = two(source + p + 2); \
            at[(uint32_t)to] = (TYPE)MARK((uint32_t)from);                                                                 \
            at[to >> 32] = (TYPE)MARK(from >> 32);                                                                         \
            at[(uint32_t)more] = (TYPE)MARK((uint32_t)next);                                                               \
            at[more >> 32] = (TYPE)MARK(next >> 32);                                                                       \
        }                                                                                                                  \
        for (; p < count; p++) at[destination[p]] = (TYPE)MARK(source[p]);                                                 \
    }
FILL(wide, uint32_t, WIDE)
FILL(narrow, uint8_t, NARROW)

/* Plain loops, which compilers turn into what each processor does many of at once. */
#define LOOKS(NAME, TARGET)                                                                                                \
    TARGET static extremes extremes_##NAME(const uint32_t *source, const uint32_t *destination, uint32_t count) {           \
        extremes found = {0, UINT32_MAX, 0};                                                                               \
        for (uint32_t p = 0; p < count; p++) {                                                                             \
            if (source[p] > found.source_most) found.source_most = source[p];                                              \
            if (destination[p] < found.least) found.least = destination[p];                                                \
            if (destination[p] > found.most) found.most = destination[p];                                                  \
        }                                                                                                                  \
        return found;                                                                                                      \
    }

/* Fills are counted, and cleared: as many at once as fit a vector, with a sum for each place in it; sums are added up before
 * those of a mark's own type can overflow. */
#define VECTOR_BYTES 32
typedef uint32_t wide_marks __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t narrow_marks __attribute__((vector_size(VECTOR_BYTES)));
#define AFTER_WIDE(MARK) ((MARK) + 1)
#define AFTER_NARROW(MARK) (((MARK) + 1) | 128)
#define SWEEP(NAME, TARGET, TYPE, VECTOR, AFTER)                                                                           \
    TARGET static filled sweep_##NAME(TYPE *marks, uint32_t from, uint32_t to) {                                            \
        const uint32_t lanes = VECTOR_BYTES / sizeof(TYPE);                                                                \
        filled found = {0, 0};                                                                                             \
        while (to - from >= lanes) {                                                                                       \
            const uint32_t whole = (to - from) / lanes, rounds = whole < 255 ? whole : 255;                                \
            VECTOR entries = {0}, continued = {0};                                                                         \
            for (uint32_t round = 0; round < rounds; round++, from += lanes) {                                             \
                VECTOR mark, next;                                                                                         \
                memcpy(&mark, marks + from, sizeof mark);                                                                  \
                memcpy(&next, marks + from + 1, sizeof next);                                                              \
                memset(marks + from, 0, sizeof mark);                                                                      \
                const VECTOR full = (VECTOR)(mark != 0), follows = (VECTOR)(next == AFTER(mark));                           \
                entries -= full;                                                                                           \
                continued -= full & follows;                                                                               \
            }                                                                                                              \
            for (uint32_t lane = 0; lane < lanes; lane++) {                                                                \
                found.entries += entries[lane];                                                                            \
                found.continued += continued[lane];                                                                        \
            }                                                                                                              \
        }                                                                                                                  \
        for (; from < to; from++) {                                                                                        \
            const TYPE mark = marks[from];                                                                                 \
            found.entries += mark != 0;                                                                                    \
            found.continued += (mark != 0) & (marks[from + 1] == (TYPE)AFTER(mark));                                       \
            marks[from] = 0;                                                                                               \
        }                                                                                                                  \
        return found;                                                                                                      \
    }

LOOKS(base, )
SWEEP(wide_base, , uint32_t, wide_marks, AFTER_WIDE)
SWEEP(narrow_base, , uint8_t, narrow_marks, AFTER_NARROW)
#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
LOOKS(avx2, AVX2)
SWEEP(wide_avx2, AVX2, uint32_t, wide_marks, AFTER_WIDE)
SWEEP(narrow_avx2, AVX2, uint8_t, narrow_marks, AFTER_NARROW)
#endif

/* Many pairs for the size of the table; all ids are in range. How many continue another, at least, or -1. */
static double scan_dense(const uint32_t *source, const uint32_t *destination, uint32_t count, const extremes *reach, uint32_t *marks) {
    filled found;
    if (count >= MANY) {
        uint8_t *narrow = (uint8_t *)marks;
        fill_narrow(source, destination, count, narrow);
        found = KVF_CPU_PICK(sweep_narrow)(narrow, reach->least + 1, reach->most + 2);
    } else {
        fill_wide(source, destination, count, marks);
        found = KVF_CPU_PICK(sweep_wide)(marks, reach->least + 1, reach->most + 2);
    }
    return found.entries == count ? (double)found.continued : -1; /* a destination that stands twice has one entry */
}

/* Puts zeros back where so many destinations were marked. */
static void clear_marks(uint32_t *marks, const uint32_t *destination, uint32_t count, const extremes *reach) {
    if ((uint64_t)count * CLEARED_WHOLE > reach->most - reach->least) memset(marks + reach->least + 1, 0, ((uint64_t)reach->most - reach->least + 1) * sizeof *marks);
    else
        for (uint32_t p = 0; p < count; p++) marks[destination[p] + 1] = 0;
}

/* Few: each meeting of two pairs is seen when the second of them comes. */
static double scan_sparse(const uint32_t *source, const uint32_t *destination, uint32_t count, const extremes *reach, uint32_t *marks) {
    uint32_t continued = 0, p = 0;
    for (; p < count; p++) {
        const uint32_t from = source[p];
        uint32_t *at = marks + destination[p];
        if (at[1]) break;
        at[1] = from + 1;
        continued += at[2] == from + 2;
        continued += from > 0 && at[0] == from;
    }
    clear_marks(marks, destination, p, reach);
    return p < count ? -1 : (double)continued;
}

int32_t kvf_list_number(double *out) {
    static atomic_uint_least64_t last;
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_list_number: no place for the result");
    out[0] = (double)(atomic_fetch_add(&last, 1) + 1);
    return KVF_OK;
}

int32_t kvf_ids_compare(const uint32_t *left, const uint32_t *right, uint32_t count) {
    if (!left || !right) return kvf_refuse(KVF_E_INVALID, "kvf_ids_compare: a list is missing");
    return memcmp(left, right, (size_t)count * sizeof *left) == 0 ? KVF_OK : KVF_AGAIN;
}

int32_t kvf_pairs_scan(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t source_limit, uint32_t destination_limit, uint32_t *marks,
                       uint32_t entries, double *out) {
    if (!source || !destination || !marks || !out || (uint64_t)destination_limit + 2 > entries)
        return kvf_refuse(KVF_E_INVALID, "kvf_pairs_scan: lists, a result, and %llu entries are wanted, not %u", (unsigned long long)destination_limit + 2, entries);
    out[0] = 0;
    if (count == 0) return KVF_OK;
    const extremes reach = KVF_CPU_PICK(extremes)(source, destination, count);
    if (reach.source_most >= source_limit || reach.most >= destination_limit) out[0] = -1;
    else if ((uint64_t)reach.most - reach.least < (uint64_t)count * DENSE) out[0] = scan_dense(source, destination, count, &reach, marks);
    else out[0] = scan_sparse(source, destination, count, &reach, marks);
    return KVF_OK;
}

int32_t kvf_pairs_runs(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t destination_limit, uint32_t *marks, uint32_t entries,
                       uint32_t *heads, uint32_t *lengths, double *out) {
    if (!source || !destination || !marks || !heads || !lengths || !out || (uint64_t)destination_limit + 2 > entries)
        return kvf_refuse(KVF_E_INVALID, "kvf_pairs_runs: lists, a result, and %llu entries are wanted, not %u", (unsigned long long)destination_limit + 2, entries);
    out[0] = out[1] = 0;
    if (count == 0) return KVF_OK;
    const extremes reach = KVF_CPU_PICK(extremes)(source, destination, count);
    if (reach.most >= destination_limit) return kvf_refuse(KVF_E_INVALID, "kvf_pairs_runs: destination %u is not below %u", reach.most, destination_limit);
    /* No id that continues a source may be the mark of an empty entry. */
    if ((uint64_t)reach.source_most + destination_limit + 2 > UINT32_MAX) return kvf_refuse(KVF_E_INVALID, "kvf_pairs_runs: source %u is too large", reach.source_most);
    fill_wide(source, destination, count, marks);
    uint32_t runs = 0;
    bool alike = true;
    for (uint32_t p = 0; p < count; p++) {
        const uint32_t from = source[p], *at = marks + destination[p] + 1;
        if (from > 0 && at[-1] == from) continue; /* it continues another one */
        uint32_t length = 1;
        while (at[length] == from + length + 1) length++;
        heads[runs] = p;
        lengths[runs] = length;
        alike = alike && length == lengths[0];
        runs++;
    }
    clear_marks(marks, destination, count, &reach);
    out[0] = runs;
    out[1] = runs > 0 && alike ? lengths[0] : 0;
    return KVF_OK;
}
