/*
 * driver_pairs.h - lists of block ids: looked over and bounded by every set of instructions, against plain definitions.
 */
#ifndef KVF_DRIVER_PAIRS_H
#define KVF_DRIVER_PAIRS_H

#include "cpu.h"
#include "driver.h"
#include "numbers.h"

#define MOST_IDS 3000u

/* How many pairs continue another by one on both sides, as far as the bits of `mask` tell of sources; -1 for ids out of range
 * or a destination that stands twice. */
static double defined_scan(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t source_limit, uint32_t destination_limit,
                           uint32_t mask) {
    uint32_t *at = calloc(destination_limit + 2, sizeof *at), continued = 0;
    bool good = true;
    CHECK(at);
    for (uint32_t p = 0; p < count && good; p++) {
        good = source[p] < source_limit && destination[p] < destination_limit && !at[destination[p]];
        if (good) at[destination[p]] = p + 1;
    }
    for (uint32_t p = 0; p < count && good; p++) {
        const uint32_t before = destination[p] > 0 ? at[destination[p] - 1] : 0;
        continued += before && ((source[p] - source[before - 1] - 1) & mask) == 0;
    }
    free(at);
    return good ? (double)continued : -1;
}

/* Destinations that differ, in pieces of neighbours in random order; sources that follow them more or less. Lists are as
 * long as they say, so that a sanitizer sees a read behind them. */
static uint32_t make_lists(uint32_t **source, uint32_t **destination, uint32_t limit) {
    const uint32_t most = limit < MOST_IDS ? limit : MOST_IDS, count = (uint32_t)below(most + 1), first = (uint32_t)below(limit - count + 1);
    const uint32_t piece = 1 + (uint32_t)below(9), keeps = (uint32_t)below(4), spread = 1 + (uint32_t)below(count ? (limit - first) / count : 1);
    *source = malloc((count ? count : 1) * sizeof **source);
    *destination = malloc((count ? count : 1) * sizeof **destination);
    CHECK(*source && *destination);
    for (uint32_t p = 0; p < count; p++) (*destination)[p] = first + p * spread;
    for (uint32_t pieces = count / piece, k = pieces; k > 1; k--)
        for (uint32_t other = (uint32_t)below(k), step = 0; step < piece; step++) {
            uint32_t *a = *destination + (k - 1) * piece + step, *b = *destination + other * piece + step, held = *a;
            *a = *b;
            *b = held;
        }
    for (uint32_t p = 0; p < count; p++) (*source)[p] = below(4) < keeps ? (*destination)[p] : (uint32_t)below(limit);
    return count;
}

static void pairs_are_looked_at(uint32_t cases) {
    uint32_t refused = 0, continuing = 0, sparse = 0, mistaken = 0;
    for (uint32_t n = 0; n < cases; n++) {
        const uint32_t limit = 1 + (uint32_t)below(n % 3 == 0 ? 40 : n % 3 == 1 ? 3000 : 90000);
        uint32_t *source, *destination, other = limit;
        const uint32_t count = make_lists(&source, &destination, limit);
        if (count > 0 && n % 4 == 0) destination[below(count)] = (uint32_t)below(limit); /* it may stand twice now */
        if (count > 0 && n % 16 == 1) (n % 32 == 1 ? source : destination)[below(count)] = limit + (uint32_t)below(3);
        if (count > 0 && n % 64 == 7) source[below(count)] = UINT32_MAX;
        if (n % 8 == 3) other = limit + (uint32_t)below(50);
        uint32_t *marks = calloc(other + 2, sizeof *marks);
        CHECK(marks);
        const double wanted = defined_scan(source, destination, count, limit, other, UINT32_MAX);
        /* Of many only the last bits are looked at. */
        const double seeming = count < 2048 ? wanted : defined_scan(source, destination, count, limit, other, 127);
        refused += wanted < 0;
        continuing += wanted > 0;
        sparse += count * 8 < limit;
        for (uint32_t level = 0; level < 3; level++) {
            double out[1] = {7};
            kvf_cpu_limit(level);
            CHECK(kvf_pairs_scan(source, destination, count, limit, other, marks, other + 2, out) == KVF_OK && (out[0] == wanted || out[0] == seeming));
            mistaken += out[0] != wanted;
            for (uint32_t k = 0; k < other + 2; k++) CHECK(marks[k] == 0);
            uint32_t least, most, bits, low = UINT32_MAX, high = 0, all = 0;
            if (count == 0) continue;
            kvf_bound_ids(source, count, &least, &most, &bits);
            for (uint32_t p = 0; p < count; p++) {
                if (source[p] < low) low = source[p];
                if (source[p] > high) high = source[p];
                all |= source[p];
            }
            CHECK(least == low && most == high && bits == all);
        }
        free(marks);
        free(source);
        free(destination);
    }
    kvf_cpu_limit(KVF_CPU_AVX512);
    CHECK(cases < 100 || (refused > cases / 20 && continuing > cases / 10 && sparse > cases / 10 && mistaken > 0));
}

#endif
