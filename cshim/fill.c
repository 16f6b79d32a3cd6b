/*
 * fill.c - test patterns, the same on every machine.
 */
#include <stddef.h>
#include <string.h>

#include "status.h"

#define MOST_BYTES ((uint64_t)1 << 53)

/* The finaliser of SplitMix64 (Steele, Lea and Flood, 2014). */
static uint64_t mixed(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static void fill_sequential(uint8_t *at, uint64_t bytes, uint64_t first) {
    for (uint64_t k = 0; k < bytes; k++) at[k] = (uint8_t)(first + k);
}

/* Words of SplitMix64, little-endian, from a state that the four numbers decide. */
static void fill_random(uint8_t *at, uint64_t bytes, uint64_t seed, uint32_t block, uint32_t layer, uint32_t outer) {
    uint64_t state = mixed(mixed(mixed(mixed(seed) + block) + layer) + outer);
    for (uint64_t k = 0; k < bytes; k += 8) {
        state += 0x9e3779b97f4a7c15u;
        uint64_t word = mixed(state);
        uint8_t part[8];
        for (int byte = 0; byte < 8; byte++) part[byte] = (uint8_t)(word >> (8 * byte));
        memcpy(at + k, part, bytes - k < 8 ? bytes - k : 8);
    }
}

int32_t kvf_fill_block(kvf_word address, uint32_t pattern, kvf_word seed, uint32_t block, uint32_t layers, uint32_t outers,
                       kvf_word cellBytes) {
    unsigned __int128 all = (unsigned __int128)layers * outers * cellBytes;
    if (address == 0 || pattern > KVF_FILL_RANDOM || all > MOST_BYTES)
        return kvf_refuse(KVF_E_INVALID, "kvf_fill_block: pattern %u, %u layers, %u outers, %llu bytes in a cell", pattern, layers, outers,
                          (unsigned long long)cellBytes);
    uint8_t *at = (uint8_t *)(uintptr_t)address;
    if (pattern == KVF_FILL_CONSTANT) {
        memset(at, (int)(seed & 255), (size_t)all);
        return KVF_OK;
    }
    for (uint32_t layer = 0; layer < layers; layer++)
        for (uint32_t outer = 0; outer < outers; outer++, at += cellBytes) {
            if (pattern == KVF_FILL_SEQUENTIAL) fill_sequential(at, cellBytes, (uint64_t)block + layer);
            else fill_random(at, cellBytes, seed, block, layer, outer);
        }
    return KVF_OK;
}
