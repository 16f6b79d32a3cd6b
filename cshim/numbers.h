/*
 * numbers.h - the numbers of a hop block (kvf.h), which are doubles that hold whole ones.
 */
#ifndef KVF_NUMBERS_H
#define KVF_NUMBERS_H

#include <stdbool.h>
#include <stdint.h>

/* 2^53: every number in a hop lies between its negative and itself. */
#define KVF_MOST_NUMBER 9007199254740992

/* The number as an integer; false where it is none, or too large. */
bool kvf_whole(double value, int64_t *out);
/* The same, and not negative. */
bool kvf_natural(double value, uint64_t *out);

/* Smallest and largest of a list, which is not empty, and all their bits or-ed; false where one of them is no whole number. */
bool kvf_bounds_of(const double *values, uint64_t count, int64_t *least, int64_t *most, uint64_t *bits);
/* The same for block ids. */
void kvf_bound_ids(const uint32_t *ids, uint64_t count, uint32_t *least, uint32_t *most, uint32_t *bits);

#endif
