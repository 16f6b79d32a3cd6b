/*
 * cuda_nest_side.h - where the two sides of a nest lie; for the files that make and take nests apart.
 */
#ifndef KVF_CUDA_NEST_SIDE_H
#define KVF_CUDA_NEST_SIDE_H

#include "cuda_nest.h"

/* Brings a nest into its normal form again after it was changed. */
void kvf_nest_normalise(kvf_nest *nest);

static inline int64_t kvf_side_base(const kvf_side *side, uint64_t r) {
    return side->base ? (int64_t)side->base[r] : (int64_t)r * side->base_step;
}

/* Whether the places of pairs are a list. */
static inline bool kvf_side_listed(const kvf_side *side) {
    return side->place.offset || side->place.id;
}

static inline int64_t kvf_side_offset(const kvf_side *side, uint64_t p) {
    return kvf_side_listed(side) ? kvf_offset_of(&side->place, p) : (int64_t)p * side->offset_step;
}

static inline uint64_t kvf_nest_run(const kvf_nest *nest, uint64_t p) {
    return nest->run ? nest->run[p] : 1;
}

static inline uint64_t kvf_magnitude(int64_t value) {
    return value < 0 ? (uint64_t)-value : (uint64_t)value;
}

/* Distance between neighbouring bases on a side, for comparing with strides. */
static inline uint64_t kvf_nest_base_stride(const kvf_nest *nest, int side) {
    return nest->bases < 2 ? 0 : kvf_magnitude(kvf_side_base(&nest->side[side], 1) - kvf_side_base(&nest->side[side], 0));
}

/* Fills the bounds of a side's offsets where they are not known. */
static inline void kvf_side_bound(const kvf_nest *nest, kvf_side *side) {
    if (side->bounded) return;
    side->bounded = true;
    if (!kvf_side_listed(side)) { /* evenly spaced */
        const int64_t last = (int64_t)(nest->pairs - 1) * side->offset_step;
        side->least = last < 0 ? last : 0;
        side->most = last < 0 ? 0 : last;
        side->bits = nest->pairs > 1 ? (uint64_t)side->offset_step : 0;
        return;
    }
    side->bits = 0;
    side->least = INT64_MAX;
    side->most = INT64_MIN;
    for (uint64_t p = 0; p < nest->pairs; p++) {
        int64_t offset = kvf_side_offset(side, p);
        side->bits |= (uint64_t)offset;
        if (offset < side->least) side->least = offset;
        if (offset > side->most) side->most = offset;
    }
}

#endif
