/*
 * blake3_lanes.h - hashes LANES inputs of equal length side by side; included once for each instruction set.
 *
 * Needs LANES, VECTOR (a vector of LANES 32-bit words), LANES_NAME, LANES_TARGET and TRANSPOSE, which turns sixteen words
 * of each input into sixteen vectors. No include guard: it is a template.
 */
#define ADD(a, b) ((a) + (b))
#define ROTATE(x, bits) (((x) >> (bits)) | ((x) << (32 - (bits))))
#define MIX(a, b, c, d, x, y)                                                                                          \
    do {                                                                                                               \
        v[a] = ADD(ADD(v[a], v[b]), x);                                                                                \
        v[d] = ROTATE(v[d] ^ v[a], 16);                                                                                \
        v[c] = ADD(v[c], v[d]);                                                                                        \
        v[b] = ROTATE(v[b] ^ v[c], 12);                                                                                \
        v[a] = ADD(ADD(v[a], v[b]), y);                                                                                \
        v[d] = ROTATE(v[d] ^ v[a], 8);                                                                                 \
        v[c] = ADD(v[c], v[d]);                                                                                        \
        v[b] = ROTATE(v[b] ^ v[c], 7);                                                                                 \
    } while (0)

/* `input[lane]` has `blocks` blocks of 64 bytes. The counter of lane k is counter + k * step. `out` gets LANES x 32 bytes. */
LANES_TARGET static void LANES_NAME(const uint8_t *const *input, uint32_t blocks, uint64_t counter, uint32_t step, uint32_t flags,
                                    uint32_t first, uint32_t last, uint8_t *out) {
    VECTOR chain[8], low, high;
    for (uint32_t k = 0; k < 8; k++) chain[k] = (VECTOR){0} + initial[k];
    for (uint32_t lane = 0; lane < LANES; lane++) {
        uint64_t count = counter + (uint64_t)lane * step;
        low[lane] = (uint32_t)count;
        high[lane] = (uint32_t)(count >> 32);
    }
    for (uint32_t block = 0; block < blocks; block++) {
        VECTOR m[16], v[16];
        TRANSPOSE(m, input, (size_t)block * BLOCK_BYTES);
        uint32_t now = flags | (block == 0 ? first : 0) | (block + 1 == blocks ? last : 0);
        for (uint32_t k = 0; k < 8; k++) v[k] = chain[k];
        for (uint32_t k = 0; k < 4; k++) v[8 + k] = (VECTOR){0} + initial[k];
        v[12] = low;
        v[13] = high;
        v[14] = (VECTOR){0} + BLOCK_BYTES;
        v[15] = (VECTOR){0} + now;
#ifdef __clang__
#pragma clang loop unroll(full)
#else
#pragma GCC unroll 7
#endif
        for (uint32_t round = 0; round < 7; round++) {
            const uint8_t *s = schedule[round];
            MIX(0, 4, 8, 12, m[s[0]], m[s[1]]);
            MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
            MIX(2, 6, 10, 14, m[s[4]], m[s[5]]);
            MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
            MIX(0, 5, 10, 15, m[s[8]], m[s[9]]);
            MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
            MIX(2, 7, 8, 13, m[s[12]], m[s[13]]);
            MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
        }
        for (uint32_t k = 0; k < 8; k++) chain[k] = v[k] ^ v[8 + k];
    }
    for (uint32_t lane = 0; lane < LANES; lane++)
        for (uint32_t k = 0; k < 8; k++) {
            uint32_t word = chain[k][lane];
            memcpy(out + lane * OUT_BYTES + 4 * k, &word, 4);
        }
}

#undef ADD
#undef ROTATE
#undef MIX
#undef LANES
#undef VECTOR
#undef LANES_NAME
#undef LANES_TARGET
#undef TRANSPOSE
