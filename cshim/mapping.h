/*
 * mapping.h - addresses for files in memory that are mapped one after the other.
 */
#ifndef KVF_MAPPING_H
#define KVF_MAPPING_H

#include <stdint.h>

#define KVF_HUGE_PAGE ((uint64_t)2 << 20)

/* Reserves `bytes` bytes of addresses (whole pages) from a multiple of a huge page on, to map over with MAP_FIXED. They
 * go with one munmap, whatever of them was mapped over. MAP_FAILED with errno set when there are none. */
void *kvf_mapping_reserve(uint64_t bytes);

#endif
