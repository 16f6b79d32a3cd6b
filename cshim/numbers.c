/*
 * numbers.c - the numbers of a hop block: whole ones, and the bounds of long lists of them.
 */
#include "numbers.h"

#include <string.h>

#include "cpu.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

bool kvf_whole(double value, int64_t *out) {
    if (!(value >= -(double)KVF_MOST_NUMBER && value <= (double)KVF_MOST_NUMBER)) return false;
    *out = (int64_t)value;
    return (double)*out == value;
}

bool kvf_natural(double value, uint64_t *out) {
    int64_t signed_value;
    if (!kvf_whole(value, &signed_value) || signed_value < 0) return false;
    *out = (uint64_t)signed_value;
    return true;
}

/* Smallest and largest of an array of whole numbers and all their bits or-ed; false when one of them is none. Runs over
 * every block of a hop: whole numbers up to 2^51 are told by adding and taking away 1.5 x 2^52, whose last mantissa bit
 * counts ones, two at a time (what every processor has); anything else is looked at singly. */
typedef double pair __attribute__((vector_size(16)));
typedef int64_t pair_bits __attribute__((vector_size(16)));
#define ROUNDER 0x1.8p52
#define HALF_MOST 0x1p51
#define LANES 4

typedef struct bounds {
    pair low, high;
    pair_bits good, all;
} bounds;

static inline void bound_two(bounds *b, const double *at) {
    const pair rounder = {ROUNDER, ROUNDER}, limit = {HALF_MOST, HALF_MOST};
    pair value;
    memcpy(&value, at, sizeof value);
    const pair sum = value + rounder;
    b->good &= (sum - rounder == value) & (value <= limit) & (value >= -limit);
    b->all |= (pair_bits)sum - (pair_bits)rounder;
#if defined(__SSE2__)
    b->low = _mm_min_pd(value, b->low);
    b->high = _mm_max_pd(value, b->high);
#else
    const pair_bits below = value < b->low, above = value > b->high;
    b->low = (pair)((below & (pair_bits)value) | (~below & (pair_bits)b->low));
    b->high = (pair)((above & (pair_bits)value) | (~above & (pair_bits)b->high));
#endif
}

static bool slow_bounds_of(const double *values, uint64_t count, int64_t *least, int64_t *most, uint64_t *bits) {
    for (uint64_t k = 0; k < count; k++) {
        int64_t value;
        if (!kvf_whole(values[k], &value)) return false;
        if (k == 0 || value < *least) *least = value;
        if (k == 0 || value > *most) *most = value;
        *bits |= (uint64_t)value;
    }
    return true;
}

bool kvf_bounds_of(const double *values, uint64_t count, int64_t *least, int64_t *most, uint64_t *bits) {
    *bits = 0;
    if (count < 2 * LANES) return slow_bounds_of(values, count, least, most, bits);
    bounds lane[LANES]; /* each waits for its own last step only */
    for (int i = 0; i < LANES; i++) lane[i] = (bounds){{values[0], values[0]}, {values[0], values[0]}, {-1, -1}, {0, 0}};
    for (uint64_t k = 0; k < count; k += 2 * LANES) {
        const double *at = values + (k + 2 * LANES <= count ? k : count - 2 * LANES);
        for (int i = 0; i < LANES; i++) bound_two(&lane[i], at + 2 * i);
    }
    double low = values[0], high = values[0];
    pair_bits good = {-1, -1}, all = {0, 0};
    for (int i = 0; i < LANES; i++) {
        good &= lane[i].good;
        all |= lane[i].all;
        for (int k = 0; k < 2; k++) {
            if (lane[i].low[k] < low) low = lane[i].low[k];
            if (lane[i].high[k] > high) high = lane[i].high[k];
        }
    }
    if (!(good[0] && good[1])) return slow_bounds_of(values, count, least, most, bits);
    *least = (int64_t)low;
    *most = (int64_t)high;
    *bits = (uint64_t)(all[0] | all[1]);
    return true;
}

/* The same for block ids, four at a time. Shifted by half their range they compare as signed numbers, which every
 * processor does. */
typedef int32_t quad __attribute__((vector_size(16)));
#define HALF_RANGE 0x80000000u

static void bound_ids(const uint32_t *ids, uint64_t count, uint32_t *least, uint32_t *most, uint32_t *bits) {
    const int32_t half = (int32_t)HALF_RANGE, first = (int32_t)(ids[0] ^ HALF_RANGE);
    const quad shift = {half, half, half, half};
    quad low = {first, first, first, first}, high = low, all = {0, 0, 0, 0};
    uint64_t k = 0;
    for (; k + 4 <= count; k += 4) {
        quad value;
        memcpy(&value, ids + k, sizeof value);
        all |= value;
        value ^= shift;
        const quad below = value < low, above = value > high;
        low = (below & value) | (~below & low);
        high = (above & value) | (~above & high);
    }
    *least = *most = ids[0];
    *bits = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t l = (uint32_t)low[i] ^ HALF_RANGE, h = (uint32_t)high[i] ^ HALF_RANGE;
        if (l < *least) *least = l;
        if (h > *most) *most = h;
        *bits |= (uint32_t)all[i];
    }
    for (; k < count; k++) {
        if (ids[k] < *least) *least = ids[k];
        if (ids[k] > *most) *most = ids[k];
        *bits |= ids[k];
    }
}

#if defined(__x86_64__)
/* A plain loop, of which the compiler makes smallest and largest of eight at a time: the older instructions have none. */
__attribute__((target("avx2"))) static void bound_ids_avx2(const uint32_t *ids, uint64_t count, uint32_t *least, uint32_t *most, uint32_t *bits) {
    uint32_t low = ids[0], high = ids[0], all = 0;
    for (uint64_t k = 0; k < count; k++) {
        if (ids[k] < low) low = ids[k];
        if (ids[k] > high) high = ids[k];
        all |= ids[k];
    }
    *least = low;
    *most = high;
    *bits = all;
}
#define WIDE_IDS 32 /* shorter lists are bounded as soon */

void kvf_bound_ids(const uint32_t *ids, uint64_t count, uint32_t *least, uint32_t *most, uint32_t *bits) {
    if (count < WIDE_IDS || kvf_cpu_level() == KVF_CPU_BASE) bound_ids(ids, count, least, most, bits);
    else bound_ids_avx2(ids, count, least, most, bits);
}
#else
void kvf_bound_ids(const uint32_t *ids, uint64_t count, uint32_t *least, uint32_t *most, uint32_t *bits) { bound_ids(ids, count, least, most, bits); }
#endif
