/*
 * pairs.c - one look at the ids of a transfer: in range, no destination twice, and how many continue each other.
 */
#include <stdbool.h>
#include <string.h>

#include "cpu.h"
#include "kvf.h"
#include "status.h"

/* Tables of at most so many entries for each pair are looked over as a whole once all pairs stand in them. */
#define DENSE 8
/* A table that is filled to more than one entry in so many is cleared as a whole. */
#define CLEARED_WHOLE 16
/* Bytes that are looked at and cleared before the next: they stay in the nearest cache meanwhile. */
#define PIECE 8192u

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

/* The entry of an id is the one behind its number, and holds the source's id plus one; 0 means an empty entry. Narrow entries
 * do where all of that is below 65,536: a table of half the size stays in the nearest cache. */
#define FILL(WIDTH)                                                                                                        \
    static void fill_##WIDTH(const uint32_t *source, const uint32_t *destination, uint32_t count, uint##WIDTH##_t *marks) { \
        uint##WIDTH##_t *at = marks + 1;                                                                                   \
        uint32_t p = 0;                                                                                                    \
        for (; p + 4 <= count; p += 4) {                                                                                   \
            const uint64_t to = two(destination + p), more = two(destination + p + 2), from = two(source + p), next = two(source + p + 2); \
            at[(uint32_t)to] = (uint##WIDTH##_t)((uint32_t)from + 1);                                                      \
            at[to >> 32] = (uint##WIDTH##_t)((from >> 32) + 1);                                                            \
            at[(uint32_t)more] = (uint##WIDTH##_t)((uint32_t)next + 1);                                                    \
            at[more >> 32] = (uint##WIDTH##_t)((next >> 32) + 1);                                                          \
        }                                                                                                                  \
        for (; p < count; p++) at[destination[p]] = (uint##WIDTH##_t)(source[p] + 1);                                      \
    }
FILL(16)
FILL(32)

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

/* Fills are counted, and cleared. */
#define SWEEP(NAME, TARGET, WIDTH)                                                                                         \
    TARGET static filled sweep_##WIDTH##_##NAME(uint##WIDTH##_t *marks, uint32_t from, uint32_t to) {                       \
        filled found = {0, 0};                                                                                             \
        while (from < to) {                                                                                                \
            const uint32_t piece = PIECE / sizeof *marks, end = to - from < piece ? to : from + piece;                     \
            uint##WIDTH##_t entries = 0, continued = 0; /* at most a piece's */                                            \
            for (uint32_t at = from; at < end; at++) {                                                                     \
                const uint##WIDTH##_t mark = marks[at], follower = (uint##WIDTH##_t)(mark + 1);                            \
                entries = (uint##WIDTH##_t)(entries + (mark != 0));                                                        \
                continued = (uint##WIDTH##_t)(continued + ((mark != 0) & (marks[at + 1] == follower)));                    \
            }                                                                                                              \
            found.entries += entries;                                                                                      \
            found.continued += continued;                                                                                  \
            memset(marks + from, 0, (end - from) * sizeof *marks);                                                         \
            from = end;                                                                                                    \
        }                                                                                                                  \
        return found;                                                                                                      \
    }

LOOKS(base, )
SWEEP(base, , 16)
SWEEP(base, , 32)
#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
LOOKS(avx2, AVX2)
SWEEP(avx2, AVX2, 16)
SWEEP(avx2, AVX2, 32)
#define PICK(WHICH) (kvf_cpu_level() == KVF_CPU_BASE ? WHICH##_base : WHICH##_avx2)
#else
#define PICK(WHICH) WHICH##_base
#endif

/* Many pairs for the size of the table; all ids are in range. How many continue another, or -1. */
static double scan_dense(const uint32_t *source, const uint32_t *destination, uint32_t count, const extremes *reach, uint32_t *marks) {
    filled found;
    if (reach->source_most < UINT16_MAX - 1) { /* one more is left: the mark that would follow the last */
        uint16_t *narrow = (uint16_t *)(void *)marks;
        fill_16(source, destination, count, narrow);
        found = PICK(sweep_16)(narrow, reach->least + 1, reach->most + 2);
    } else {
        fill_32(source, destination, count, marks);
        found = PICK(sweep_32)(marks, reach->least + 1, reach->most + 2);
    }
    return found.entries == count ? (double)found.continued : -1; /* a destination that stands twice has one entry */
}

/* Few: each meeting of two pairs is seen when the second of them comes. */
static double scan_sparse(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t limit, uint32_t *marks) {
    uint32_t continued = 0, p = 0;
    for (; p < count; p++) {
        const uint32_t from = source[p];
        uint32_t *at = marks + destination[p];
        if (at[1]) break;
        at[1] = from + 1;
        continued += at[2] == from + 2;
        continued += from > 0 && at[0] == from;
    }
    if ((uint64_t)p * CLEARED_WHOLE > limit) memset(marks, 0, ((uint64_t)limit + 2) * sizeof *marks);
    else
        for (uint32_t k = 0; k < p; k++) marks[destination[k] + 1] = 0;
    return p < count ? -1 : (double)continued;
}

int32_t kvf_pairs_scan(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t source_limit, uint32_t destination_limit, uint32_t *marks,
                       uint32_t entries, double *out) {
    if (!source || !destination || !marks || !out || (uint64_t)destination_limit + 2 > entries)
        return kvf_refuse(KVF_E_INVALID, "kvf_pairs_scan: lists, a result, and %llu entries are wanted, not %u", (unsigned long long)destination_limit + 2, entries);
    out[0] = 0;
    if (count == 0) return KVF_OK;
    const extremes reach = PICK(extremes)(source, destination, count);
    if (reach.source_most >= source_limit || reach.most >= destination_limit) out[0] = -1;
    else if ((uint64_t)reach.most - reach.least < (uint64_t)count * DENSE) out[0] = scan_dense(source, destination, count, &reach, marks);
    else out[0] = scan_sparse(source, destination, count, destination_limit, marks);
    return KVF_OK;
}
