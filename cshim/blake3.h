/*
 * blake3.h - the BLAKE3 hash function (O'Connor, Aumasson, Neves and Wilcox-O'Hearn, 2020), 32 bytes, without a key.
 */
#ifndef KVF_BLAKE3_H
#define KVF_BLAKE3_H

#include <stdint.h>

/* Hashes one message on the calling thread. `out` gets 32 bytes. */
void kvf_blake3(const uint8_t *message, uint64_t bytes, uint8_t *out);

#endif
