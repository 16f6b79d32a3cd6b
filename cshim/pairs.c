/*
 * pairs.c - one look at the ids of a transfer: in range, no destination twice, and how many continue each other.
 */
#include <string.h>

#include "kvf.h"
#include "status.h"

/* A table that is filled to more than one entry in so many is cleared as a whole. */
#define DENSE 16

static void clear(uint32_t *marks, const uint32_t *destination, uint32_t marked, uint32_t limit) {
    if ((uint64_t)marked * DENSE > limit) memset(marks, 0, ((uint64_t)limit + 2) * sizeof *marks);
    else
        for (uint32_t p = 0; p < marked; p++) marks[destination[p] + 1] = 0;
}

int32_t kvf_pairs_scan(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t source_limit, uint32_t destination_limit, uint32_t *marks,
                       uint32_t entries, double *out) {
    if (!source || !destination || !marks || !out || (uint64_t)destination_limit + 2 > entries)
        return kvf_refuse(KVF_E_INVALID, "kvf_pairs_scan: lists, a result, and %llu entries are wanted, not %u", (unsigned long long)destination_limit + 2, entries);
    uint32_t continued = 0, p = 0;
    /* The entry of an id is the one behind its number, and holds the source's id plus one; 0 means an empty entry. Each
     * meeting of two pairs is seen when the second of them comes. */
    for (; p < count; p++) {
        const uint32_t from = source[p], to = destination[p];
        if (from >= source_limit || to >= destination_limit) break;
        uint32_t *at = marks + to;
        if (at[1]) break;
        at[1] = from + 1;
        continued += at[2] == from + 2;
        continued += from > 0 && at[0] == from;
    }
    clear(marks, destination, p, destination_limit);
    out[0] = p < count ? -1 : (double)continued;
    return KVF_OK;
}
