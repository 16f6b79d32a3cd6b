/*
 * driver.c - exercises the native library without JavaScript, for sanitizers. Prints a line for each part that held and
 * ends with status 0; says what did not hold and ends with 1. The argument is how many cases to try, in percent.
 */
#include <sys/mman.h>

#include "blake3.h"
#include "driver.h"
#include "driver_contexts.h"
#include "driver_copies.h"
#include "driver_files.h"
#include "driver_pairs.h"
#include "driver_refusals.h"

/* ---- memory -------------------------------------------------------------------------------------------------- */

static void memory(void) {
    double out[3];
    client js = open_client(64);
    CHECK(kvf_memory_map(0, 0, 0, out) == KVF_E_INVALID && kvf_memory_map(1, 8, 0, out) == KVF_E_INVALID);
    CHECK(kvf_memory_map((kvf_word)1 << 52, 0, 0, out) == KVF_E_NOMEM);
    for (uint32_t flags = 0; flags < 4; flags++) {
        CHECK(kvf_memory_map((5 << 20) + 1, flags, 0, out) == KVF_OK);
        kvf_word address = (kvf_word)out[0], bytes = (kvf_word)out[1];
        int32_t descriptor = (int32_t)out[2];
        CHECK(bytes > 5 << 20 && bytes % 4096 == 0 && address % 4096 == 0);
        if (flags & KVF_MEMORY_HUGE) CHECK(address % (2 << 20) == 0);
        CHECK((descriptor >= 0) == ((flags & KVF_MEMORY_SHARED) != 0));
        uint8_t *at = (uint8_t *)(uintptr_t)address;
        for (uint64_t k = 0; k < bytes; k += 509) CHECK(at[k] == 0);
        at[0] = 7;
        at[bytes - 1] = 9;
        CHECK(kvf_memory_touch_job(js.context, flags, address, bytes, 0, 2, 0) == KVF_OK);
        CHECK(await(&js).status == KVF_OK && at[0] == 7 && at[bytes - 1] == 9);
        if (descriptor >= 0) {
            CHECK(ftruncate(descriptor, 4096) != 0 && ftruncate(descriptor, 1 << 24) != 0);
            uint8_t *twice = mmap(NULL, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
            CHECK(twice != MAP_FAILED && twice[0] == 7);
            munmap(twice, bytes);
        }
        CHECK(kvf_memory_unmap(address + 1, bytes, NULL, 0) == KVF_E_INVALID);
        if (flags % 2) CHECK(kvf_memory_unmap(address, bytes, out + 2, descriptor >= 0) == KVF_OK);
        else {
            CHECK(kvf_memory_unmap_job(js.context, 9, address, bytes, out + 2, descriptor >= 0) == KVF_OK);
            CHECK(await(&js).status == KVF_OK);
        }
    }
    CHECK(close_client(&js, 1000) == 0);
}

/* ---- BLAKE3 -------------------------------------------------------------------------------------------------- */

/* Digests of the first bytes of 0, 1, ..., 250, 0, 1, ...: the input of the published test vectors. */
static const struct {
    uint64_t bytes;
    const char *digest;
} vectors[] = {
    {0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
    {1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"},
    {63, "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b"},
    {64, "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98"},
    {65, "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee"},
    {1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"},
    {1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"},
    {1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"},
    {2048, "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"},
    {2049, "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"},
    {3073, "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3"},
    {8192, "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63"},
    {8193, "bab6c09cb8ce8cf459261398d2e7aef35700bf488116ceb94a36d0f5f1b7bc3b"},
    {31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"},
    {65536, "68d647e619a930e7b1082f74f334b0c65a315725569bdc123f0ee11881717bfe"},
    {65537, "7c99f9840a73dfcb6e5bfe4ff6d1558acab7e015640790c26411818bdbe17eca"},
    {66561, "c0dafa3c0ad175a596c908dd503c069c2230b1b1f8bcfa7c80762d1f6b735be0"},
    {102400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"},
    {131073, "f837d4254d24ba3d50fe3743d46e4af6db5f5d6ab0469197d94e7ba1e906c4d8"},
    {200000, "55409142cced2ec79897459f170b6d22565daf883710b4ad7aeeddaef54244b4"},
    {300001, "ac69f8086484814f8b5062bcaa846bde9011e3f931eaa83275c85c4d7f435f10"},
};

static void hex_of(const uint8_t *digest, char *out) {
    for (int k = 0; k < 32; k++) snprintf(out + 2 * k, 3, "%02x", digest[k]);
}

static void blake3(void) {
    uint64_t most = vectors[sizeof vectors / sizeof *vectors - 1].bytes;
    uint8_t *input = malloc(most), digest[32];
    char text[65];
    CHECK(input);
    for (uint64_t k = 0; k < most; k++) input[k] = (uint8_t)(k % 251);
    for (uint32_t level = 0; level < 3; level++) {
        kvf_cpu_limit(level);
        for (size_t k = 0; k < sizeof vectors / sizeof *vectors; k++) {
            /* An exact-size copy, so that a sanitizer sees a read past the end. */
            uint8_t *exact = malloc(vectors[k].bytes ? vectors[k].bytes : 1);
            CHECK(exact);
            memcpy(exact, input, vectors[k].bytes);
            kvf_blake3(exact, vectors[k].bytes, digest);
            free(exact);
            hex_of(digest, text);
            CHECK(strcmp(text, vectors[k].digest) == 0);
        }
    }
    client js = open_client(64);
    const uint64_t bytes = 5000, stride = 7001, count = 31;
    CHECK(kvf_blake3_job(js.context, 2, (uintptr_t)input, bytes, stride, count, 3) == KVF_OK);
    CHECK(await(&js).status == KVF_OK);
    uint8_t all[31 * 32];
    double out[1];
    CHECK(kvf_slot_result(js.context, 2, all, sizeof all, out) == KVF_OK && out[0] == sizeof all);
    for (uint64_t k = 0; k < count; k++) {
        kvf_blake3(input + k * stride, bytes, digest);
        CHECK(memcmp(digest, all + 32 * k, 32) == 0);
    }
    CHECK(close_client(&js, 1000) == 0);
    free(input);
}

/* ---- patterns ------------------------------------------------------------------------------------------------ */

static void fills(void) {
    uint8_t block[2 * 2 * 37], other[2 * 2 * 37];
    kvf_word at = (uintptr_t)block;
    CHECK(kvf_fill_block(at, 3, 0, 0, 2, 2, 37) == KVF_E_INVALID && kvf_fill_block(0, 0, 0, 0, 2, 2, 37) == KVF_E_INVALID);
    CHECK(kvf_fill_block(at, KVF_FILL_CONSTANT, 0xab, 0, 2, 2, 37) == KVF_OK && block[0] == 0xab && block[147] == 0xab);
    CHECK(kvf_fill_block(at, KVF_FILL_SEQUENTIAL, 0, 250, 2, 2, 37) == KVF_OK);
    for (int cell = 0; cell < 4; cell++)
        for (int k = 0; k < 37; k++) CHECK(block[cell * 37 + k] == (uint8_t)(250 + cell / 2 + k));
    CHECK(kvf_fill_block(at, KVF_FILL_RANDOM, 42, 3, 2, 2, 37) == KVF_OK);
    for (int cell = 1; cell < 4; cell++) CHECK(memcmp(block, block + 37 * cell, 37) != 0);
    CHECK(kvf_fill_block((uintptr_t)other, KVF_FILL_RANDOM, 42, 3, 2, 2, 37) == KVF_OK && memcmp(block, other, sizeof block) == 0);
    CHECK(kvf_fill_block((uintptr_t)other, KVF_FILL_RANDOM, 43, 3, 2, 2, 37) == KVF_OK && memcmp(block, other, sizeof block) != 0);
    CHECK(kvf_fill_block((uintptr_t)other, KVF_FILL_RANDOM, 42, 4, 2, 2, 37) == KVF_OK && memcmp(block, other, sizeof block) != 0);
}

static void held(const char *name) {
    printf("held %s\n", name);
    fflush(stdout);
}

int main(int count, char **arguments) {
    uint32_t percent = count > 1 ? (uint32_t)atoi(arguments[1]) : 100;
    contexts_and_slots();
    full_ring();
    held("contexts and slots");
    many_producers(100 * percent);
    held("ring under many producers");
    pool_widths(10 * percent);
    held("pool widths");
    socket_doorbell();
    held("socket doorbell");
    closing_with_a_stuck_job();
    closing_while_copies_run(percent / 4);
    held("closing while jobs run");
    memory();
    held("memory");
    memory_in_files();
    held("memory in files");
    blake3();
    held("blake3");
    fills();
    held("patterns");
    pairs_are_looked_at(40 * percent);
    held("pairs of block ids");
    random_hops(percent);
    held("random hops");
    large_rows();
    many_programs();
    many_runs();
    lists_beside();
    held("split rows, many programs, many runs");
    programs_in_order(percent / 2);
    held("programs in order");
    cursor_walks_all_rows(percent / 3);
    held("cursor");
    consistent_mistakes();
    bad_hops_are_refused(percent / 2);
    held("bad hops");
    cancelled_copies(percent);
    held("cancelled copies");
    return 0;
}
