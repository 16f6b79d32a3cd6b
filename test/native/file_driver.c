/*
 * file_driver.c - files without JavaScript: every way of serving them, many jobs at once, bytes against plain reads, jobs
 * that are cancelled, files and contexts that are closed while jobs run.
 *
 *   file_driver FOLDER ROUNDS      one line for each part that held; exit status 1 at the first mistake
 */
#include "file_jobs.h"

#include <fcntl.h>
#include <unistd.h>

#define JOBS 12u

static const char *folder;

/* Many jobs at once write and read cells of one file, each cell of its own, in every mode. */
static void random_copies(uint32_t flags, uint64_t cell, uint32_t depth) {
    client self = open_client(64);
    char path[512];
    snprintf(path, sizeof path, "%s/copies.bin", folder);
    const uint64_t bytes = cell * CELLS * JOBS;
    const uint64_t whole = (bytes + 4095) / 4096 * 4096;
    uint32_t file = open_file(&self, path, KVF_FILE_CREATE | KVF_FILE_REPLACE | flags, whole, depth);
    uint8_t *memory = aligned_alloc(4096, whole), *back = aligned_alloc(4096, whole), *there = malloc(bytes);
    CHECK(memory && back && there);
    for (uint64_t k = 0; k < bytes; k++) memory[k] = (uint8_t)random_word();
    memset(back, 0xa5, whole);
    static double words[WORDS];
    static uint32_t in_file[CELLS * JOBS], in_memory[CELLS * JOBS];
    shuffle(in_file, CELLS * JOBS);
    shuffle(in_memory, CELLS * JOBS);
    for (int reading = 0; reading < 2; reading++) {
        for (uint32_t job = 0; job < JOBS; job++) {
            make_hop(words, !reading, file, reading ? back : memory, cell, in_file + job * CELLS, in_memory + job * CELLS, CELLS);
            CHECK(kvf_file_copy_job(self.context, job, words, (kvf_word)words[3]) == KVF_OK);
        }
        for (uint32_t job = 0; job < JOBS; job++) {
            answer got = await(&self);
            CHECK(got.status == KVF_OK && got.value == (double)(cell * CELLS) && got.flags == KVF_DONE_TOUCHED);
        }
        int plain = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(plain >= 0 && pread(plain, there, bytes, 0) == (ssize_t)bytes);
        close(plain);
        for (uint32_t k = 0; k < CELLS * JOBS; k++)
            CHECK(memcmp(there + in_file[k] * cell, memory + in_memory[k] * cell, cell) == 0);
    }
    CHECK(memcmp(back, memory, bytes) == 0);
    double facts[6];
    CHECK(kvf_file_facts(file, facts) == KVF_OK && facts[0] == (double)whole);
    if (flags & KVF_FILE_THREADS) CHECK(facts[4] == 0);
    if (flags & KVF_FILE_BUFFERED) CHECK(facts[1] == 0);
    close_file(&self, file);
    CHECK(close_client(&self, 1000) == 0);
    free(memory);
    free(back);
    free(there);
    unlink(path);
}

/* Jobs that are cancelled at any time end once each, as done or as stopped. */
static void cancelled(uint32_t flags) {
    client self = open_client(64);
    const uint64_t cell = 65536;
    uint32_t file = open_file(&self, folder, KVF_FILE_TEMPORARY | flags, cell * CELLS, 4);
    uint8_t *memory = aligned_alloc(4096, cell * CELLS);
    CHECK(memory);
    memset(memory, 1, cell * CELLS);
    static double words[WORDS];
    static uint32_t ids[CELLS];
    shuffle(ids, CELLS);
    for (uint32_t job = 0; job < JOBS; job++) {
        make_hop(words, true, file, memory, cell, ids, ids, CELLS);
        CHECK(kvf_file_copy_job(self.context, job, words, (kvf_word)words[3]) == KVF_OK);
        if (job % 2) CHECK(kvf_slot_cancel(self.context, job) == KVF_OK);
    }
    for (uint32_t job = 0; job < JOBS; job++) {
        answer got = await(&self);
        CHECK(got.status == KVF_OK || (got.slot % 2 && got.status == KVF_E_CANCELLED));
    }
    close_file(&self, file);
    CHECK(close_client(&self, 1000) == 0);
    free(memory);
}

/* A context that closes while its files are busy ends their jobs and threads, and lets the files go. */
static void closing(uint32_t flags) {
    client self = open_client(64);
    const uint64_t cell = 65536;
    uint32_t file = open_file(&self, folder, KVF_FILE_TEMPORARY | flags, cell * CELLS, 8);
    /* Those that write share the first part, each that reads has one of its own: they run at once. */
    uint8_t *memory = aligned_alloc(4096, cell * CELLS * (1 + JOBS));
    CHECK(memory);
    memset(memory, 2, cell * CELLS * (1 + JOBS));
    static double words[WORDS];
    static uint32_t ids[CELLS];
    shuffle(ids, CELLS);
    for (uint32_t job = 0; job < JOBS; job++) {
        const bool writing = job % 2;
        make_hop(words, writing, file, memory + (writing ? 0 : cell * CELLS * (1 + job)), cell, ids, ids, CELLS);
        CHECK(kvf_file_copy_job(self.context, job, words, (kvf_word)words[3]) == KVF_OK);
    }
    CHECK(close_client(&self, 20000) == 0);
    double facts[6];
    CHECK(kvf_file_facts(file, facts) == KVF_E_INVALID);
    free(memory);
}

/* A file that has a name until the caller takes it away is moved to and from ever after; one that keeps its name is not. */
static void unnamed(void) {
    client self = open_client(64);
    char path[512];
    snprintf(path, sizeof path, "%s/unnamed.bin", folder);
    static uint8_t memory[8192];
    static double words[WORDS];
    uint32_t none = 0;
    for (uint32_t keeps = 0; keeps < 2; keeps++) {
        uint32_t file = open_file(&self, path, KVF_FILE_CREATE | (keeps ? 0 : KVF_FILE_TEMPORARY), sizeof memory, 4);
        double facts[6];
        CHECK(kvf_file_facts(file, facts) == KVF_OK);
        char link[64], there[512] = "";
        snprintf(link, sizeof link, "/proc/self/fd/%d", (int)facts[5]);
        CHECK(readlink(link, there, sizeof there - 1) > 0 && strcmp(there, path) == 0);
        CHECK(unlink(path) == 0);
        memset(memory, 5, sizeof memory);
        make_hop(words, true, file, memory, 4096, &none, &none, 1);
        int32_t began = kvf_file_copy_job(self.context, 0, words, (kvf_word)words[3]);
        CHECK(began == KVF_OK && await(&self).status == (keeps ? KVF_E_IO : KVF_OK));
        close_file(&self, file);
    }
    CHECK(close_client(&self, 1000) == 0);
}

static void refusals(void) {
    client self = open_client(64);
    char path[512], text[512];
    snprintf(path, sizeof path, "%s/refused.bin", folder);
    CHECK(kvf_file_open_job(self.context, 0, "", KVF_FILE_CREATE, 4096, 4) == KVF_E_INVALID);
    CHECK(kvf_file_open_job(self.context, 0, path, 1u << 20, 4096, 4) == KVF_E_INVALID);
    CHECK(kvf_file_open_job(self.context, 0, path, KVF_FILE_CREATE, 0, 4) == KVF_E_INVALID);
    CHECK(kvf_file_open_job(self.context, 0, path, KVF_FILE_CREATE, 4096, 0) == KVF_E_INVALID);
    CHECK(kvf_file_close_job(self.context, 0, 4000000) == KVF_E_INVALID);
    uint32_t file = open_file(&self, path, KVF_FILE_CREATE, 8192, 4);
    /* A second opening is refused by name while the first one lives. */
    CHECK(kvf_file_open_job(self.context, 1, path, 0, 8192, 4) == KVF_OK);
    CHECK(await(&self).status == KVF_E_BUSY);
    CHECK(kvf_slot_error(self.context, 1, text, sizeof text) == KVF_OK && strstr(text, path));
    static double words[WORDS];
    static uint8_t memory[8192];
    uint32_t last = 1, none = 0;
    /* Past the end of the file, an unknown file, two host sides. */
    make_hop(words, true, file, memory, 8192, &last, &none, 1);
    CHECK(kvf_file_copy_job(self.context, 2, words, (kvf_word)words[3]) == KVF_OK);
    answer got = await(&self);
    CHECK(got.status == KVF_E_INVALID && got.flags == 0);
    make_hop(words, true, 4000000, memory, 8192, &none, &none, 1);
    CHECK(kvf_file_copy_job(self.context, 2, words, (kvf_word)words[3]) == KVF_OK);
    CHECK(await(&self).status == KVF_E_INVALID);
    make_hop(words, true, file, memory, 64, &last, &none, 1);
    words[KVF_HOP_HEADER_WORDS + 26] = 0;
    words[KVF_HOP_HEADER_WORDS + KVF_PROGRAM_WORDS + 1] = (double)(uintptr_t)(memory + 4096);
    CHECK(kvf_file_copy_job(self.context, 2, words, (kvf_word)words[3]) == KVF_E_INVALID);
    /* Cut under the library: the rest is not taken for zeros. */
    CHECK(truncate(path, 4096) == 0);
    make_hop(words, false, file, memory, 4096, &last, &none, 1);
    CHECK(kvf_file_copy_job(self.context, 2, words, (kvf_word)words[3]) == KVF_OK);
    CHECK(await(&self).status == KVF_E_IO);
    CHECK(kvf_slot_error(self.context, 2, text, sizeof text) == KVF_OK && strstr(text, path));
    close_file(&self, file);
    CHECK(close_client(&self, 1000) == 0);
    unlink(path);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    folder = argv[1];
    const int rounds = atoi(argv[2]);
    static const uint64_t cells[] = {4096, 512, 100, 12288, 16384};
    static const uint32_t modes[] = {0, KVF_FILE_THREADS, KVF_FILE_BUFFERED, KVF_FILE_THREADS | KVF_FILE_BUFFERED};
    for (int round = 0; round < rounds; round++)
        for (unsigned mode = 0; mode < 4; mode++)
            random_copies(modes[mode], cells[(round + (int)mode) % 5], 1 + (uint32_t)below(40));
    puts("held random copies");
    for (int round = 0; round < rounds; round++) cancelled(modes[round % 4]);
    puts("held cancelled copies");
    for (int round = 0; round < rounds; round++) closing(modes[round % 4]);
    puts("held closing while jobs run");
    refusals();
    puts("held refusals");
    unnamed();
    puts("held files that lose their name");
    return 0;
}
