/*
 * copy_range.h - copying any bytes of a program between host addresses.
 */
#ifndef KVF_COPY_RANGE_H
#define KVF_COPY_RANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "hop.h"
#include "store.h"

/* A program made ready: how its rows are stored and how its blocks are found. Borrows the program. */
typedef struct kvf_ready {
    const kvf_program *program;
    kvf_rows rows;
    uint64_t *marks; /* blocks before every so many pairs; NULL: count from the first pair */
} kvf_ready;

/* False without memory. */
bool kvf_ready_make(kvf_ready *ready, const kvf_program *program, bool nontemporal);
/* Frees what kvf_ready_make allocated; nothing where it failed, or never ran on zeroed memory. */
void kvf_ready_free(kvf_ready *ready);

/* Copies bytes [from, to) of the program, counted in program order; several threads may copy different ones. With
 * non-temporal stores kvf_rows_fence is the caller's to call. */
void kvf_copy_range(const kvf_ready *ready, uint64_t from, uint64_t to);

/* Copies all of a program, without anything to prepare or free. */
void kvf_copy_whole(const kvf_program *program, bool nontemporal);

#endif
