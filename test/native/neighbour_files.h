/*
 * neighbour_files.h - memory in several files at the other end: one run of addresses with the same bytes, and whatever is
 * wrong with any one of the files, nothing of them stays.
 */
#ifndef KVF_NEIGHBOUR_FILES_H
#define KVF_NEIGHBOUR_FILES_H

#define STEP ((kvf_word)2 << 20)

/* Descriptors and sizes, as kvf_neighbour_map takes them. */
static void pairs_of(const double *owned, kvf_word bytes, const int *descriptors, double *to) {
    for (uint32_t k = 0; k * STEP < bytes; k++) {
        to[2 * k] = descriptors ? descriptors[k] : (int)owned[2 + k];
        to[2 * k + 1] = (double)(bytes - k * STEP < STEP ? bytes - k * STEP : STEP);
    }
}

static void several_files(void) {
    const int before = open_descriptors(), maps = mapped_files();
    side a = open_side("a"), b = open_side("b");
    for (int reading = 0; reading < 2; reading++) {
        const kvf_word bytes = 3 * STEP + 12288;
        double out[4], owned[2 + KVF_MEMORY_FILES], pairs[8], files[8], there[2];
        CHECK(kvf_memory_map(bytes, KVF_MEMORY_SHARED | (reading ? KVF_MEMORY_GUARDED : KVF_MEMORY_HUGE), STEP, owned) == KVF_OK);
        uint8_t *mine = (uint8_t *)(uintptr_t)owned[0];
        for (kvf_word k = 0; k < bytes; k++) mine[k] = (uint8_t)(k * 2654435761u >> 24);
        uint32_t to = connect_to(&a, &b);
        expect_event(&b, KVF_NEIGHBOUR_ACCEPTED);
        for (int k = 0; k < 4; k++) pairs[2 * k] = owned[2 + k], pairs[2 * k + 1] = reading;
        CHECK(kvf_neighbour_send(a.self, to, (const uint8_t *)"files", 5, pairs, 4, out) == KVF_OK);
        event got = expect_event(&b, KVF_NEIGHBOUR_MESSAGE);
        CHECK(got.count == 4);
        pairs_of(owned, bytes, got.descriptors, files);
        /* What came for reading cannot be mapped for writing, not one of them. */
        if (reading) CHECK(kvf_neighbour_map(files, 4, KVF_NEIGHBOUR_KEEP, there) == KVF_E_SYSTEM && mapped_files() == maps + 4);
        CHECK(kvf_neighbour_map(files, 4, reading ? KVF_NEIGHBOUR_READ_ONLY : 0, there) == KVF_OK);
        CHECK(there[1] == (double)bytes && (kvf_word)there[0] % STEP == 0 && mapped_files() == maps + 8);
        for (int k = 0; k < 4; k++) CHECK(fcntl(got.descriptors[k], F_GETFD) < 0);
        uint8_t *theirs = (uint8_t *)(uintptr_t)there[0];
        CHECK(memcmp(theirs, mine, bytes) == 0);
        for (kvf_word at = STEP; at < bytes; at += STEP) {
            memset(mine + at - 3, 0x77, 6);
            CHECK(memcmp(theirs + at - 4, mine + at - 4, 8) == 0 && theirs[at - 1] == 0x77 && theirs[at] == 0x77);
            if (reading) continue;
            memset(theirs + at - 2, 0x55, 4);
            CHECK(memcmp(mine + at - 4, theirs + at - 4, 8) == 0 && mine[at - 1] == 0x55 && mine[at] == 0x55 && mine[at + 2] == 0x77);
        }
        if (reading) CHECK(mprotect(theirs, bytes, PROT_READ | PROT_WRITE) != 0);
        CHECK(kvf_memory_unmap((kvf_word)there[0], (kvf_word)there[1], NULL, 0) == KVF_OK && mapped_files() == maps + 4);
        CHECK(kvf_memory_unmap((kvf_word)owned[0], (kvf_word)owned[1], owned + 2, 4) == KVF_OK);
    }
    close_side(&a);
    close_side(&b);
    CHECK(open_descriptors() == before && mapped_files() == maps);
}

/* Three good files but for the k-th. */
static void one_bad_file(int bad, int descriptor, double bytes, int32_t status) {
    double files[6], out[2];
    for (int k = 0; k < 3; k++) {
        files[2 * k] = k == bad ? descriptor : memory_file(STEP, F_SEAL_SHRINK);
        files[2 * k + 1] = k == bad ? bytes : (double)STEP;
    }
    CHECK(kvf_neighbour_map(files, 3, 0, out) == status);
}

static void refused_files(void) {
    const int before = open_descriptors(), maps = mapped_files();
    double out[2], many[2 * (KVF_NEIGHBOUR_DESCRIPTORS + 1)] = {0};
    CHECK(kvf_neighbour_map(many, 0, 0, out) == KVF_E_INVALID && kvf_neighbour_map(NULL, 1, 0, out) == KVF_E_INVALID);
    CHECK(kvf_neighbour_map(many, KVF_NEIGHBOUR_DESCRIPTORS + 1, 0, out) == KVF_E_INVALID);
    for (int k = 0; k < 3; k++) {
        one_bad_file(k, memory_file(2 * STEP, F_SEAL_SHRINK), (double)STEP, KVF_E_INVALID);
        one_bad_file(k, memory_file(STEP - 4096, F_SEAL_SHRINK), (double)STEP, KVF_E_INVALID);
        one_bad_file(k, memory_file(STEP, 0), (double)STEP, KVF_E_INVALID);
        one_bad_file(k, memory_file(STEP, F_SEAL_SHRINK | F_SEAL_WRITE), (double)STEP, KVF_E_SYSTEM);
        one_bad_file(k, -1, (double)STEP, KVF_E_INVALID);
        one_bad_file(k, memory_file(STEP, F_SEAL_SHRINK), 0, KVF_E_INVALID);
        one_bad_file(k, memory_file(STEP, F_SEAL_SHRINK), -1, KVF_E_INVALID);
        one_bad_file(k, memory_file(STEP, F_SEAL_SHRINK), 9007199254740992.0, KVF_E_INVALID);
        /* Another file could not follow it at once. */
        if (k < 2) one_bad_file(k, memory_file(STEP + 4096, F_SEAL_SHRINK), (double)STEP + 4096, KVF_E_INVALID);
        /* It was shrunk, and sealed then. */
        int shrunk = memory_file(STEP, 0);
        CHECK(ftruncate(shrunk, 4096) == 0 && fcntl(shrunk, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
        one_bad_file(k, shrunk, (double)STEP, KVF_E_INVALID);
        CHECK(open_descriptors() == before && mapped_files() == maps);
    }
}

#endif
