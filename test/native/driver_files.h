/*
 * driver_files.h - memory that lies in several files: one run of addresses, each file with its part of it, all of it given
 * back, also when only some of the files can be had.
 */
#ifndef KVF_DRIVER_FILES_H
#define KVF_DRIVER_FILES_H

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "driver.h"

#define FILES_STEP ((uint64_t)40 << 20)
#define HUGE ((uint64_t)2 << 20)

#define COLLAPSE 25       /* MADV_COLLAPSE */
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE */

/* What becomes of a file's huge page when the kernel is advised. Some emulators call it done, and do nothing. */
typedef enum { REFUSED, DONE, PRETENDED } advised;

static advised advise(int advice) {
    double out[3];
    struct stat found;
    CHECK(kvf_memory_map(2 * HUGE, KVF_MEMORY_HUGE | KVF_MEMORY_SHARED, 0, out) == KVF_OK);
    uint8_t *at = (uint8_t *)(uintptr_t)out[0];
    at[0] = 1;
    const bool said = madvise(at, HUGE, advice) == 0;
    CHECK(fstat((int)out[2], &found) == 0);
    CHECK(kvf_memory_unmap((kvf_word)out[0], (kvf_word)out[1], out + 2, 1) == KVF_OK);
    return !said ? REFUSED : (uint64_t)found.st_blocks * 512 >= HUGE ? DONE : PRETENDED;
}

/* Lowest descriptor that is free: what was opened and not closed before is below it. */
static int lowest_free(void) {
    int free_one = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(free_one >= 0 && close(free_one) == 0);
    return free_one;
}

static void check_file(int descriptor, uint64_t bytes, uint8_t first, uint8_t last) {
    struct stat found;
    CHECK(fstat(descriptor, &found) == 0 && (uint64_t)found.st_size == bytes);
    /* Every page is there: it was touched. */
    CHECK((uint64_t)found.st_blocks * 512 >= bytes || advise(POPULATE_WRITE) == PRETENDED);
    int seals = fcntl(descriptor, F_GET_SEALS);
    CHECK((seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
    CHECK(ftruncate(descriptor, 0) != 0 && ftruncate(descriptor, (off_t)bytes + 4096) != 0);
    CHECK(fcntl(descriptor, F_GETFD) == FD_CLOEXEC);
    uint8_t at_ends[2] = {0};
    CHECK(pread(descriptor, &at_ends[0], 1, 0) == 1 && pread(descriptor, &at_ends[1], 1, (off_t)bytes - 1) == 1);
    CHECK(at_ends[0] == first && at_ends[1] == last);
}

static void map_in_files(client *js, uint64_t bytes, uint32_t flags) {
    const int before = lowest_free(), maps = mapped_files();
    double out[2 + KVF_MEMORY_FILES];
    CHECK(kvf_memory_map(bytes, flags, FILES_STEP, out) == KVF_OK);
    const kvf_word address = (kvf_word)out[0], mapped = (kvf_word)out[1];
    const uint32_t count = (uint32_t)((mapped + FILES_STEP - 1) / FILES_STEP);
    CHECK(mapped >= bytes && mapped < bytes + ((uint64_t)1 << 16));
    if (count > 1) CHECK(address % ((kvf_word)2 << 20) == 0);
    uint8_t *at = (uint8_t *)(uintptr_t)address;
    CHECK(at[0] == 0 && at[mapped - 1] == 0);
    for (uint32_t k = 1; k < count; k++) { /* across every boundary at once */
        CHECK(at[k * FILES_STEP - 1] == 0 && at[k * FILES_STEP] == 0);
        memset(at + k * FILES_STEP - 1, 0x0f + (int)k, 2);
    }
    at[0] = 1;
    at[mapped - 1] = 2;
    CHECK(kvf_memory_touch_job(js->context, 3, address, mapped, FILES_STEP, 3, 0) == KVF_OK);
    CHECK(await(js).status == KVF_OK);
    for (uint32_t k = 0; k < count; k++) {
        uint64_t from = k * FILES_STEP, part = mapped - from < FILES_STEP ? mapped - from : FILES_STEP;
        check_file((int)out[2 + k], part, k == 0 ? 1 : (uint8_t)(0x10 + k - 1), k + 1 == count ? 2 : (uint8_t)(0x10 + k));
        if (!(flags & KVF_MEMORY_GUARDED)) continue;
        uint8_t one = 9;
        CHECK(pwrite((int)out[2 + k], &one, 1, 0) < 0);
        CHECK(mmap(NULL, part, PROT_READ | PROT_WRITE, MAP_SHARED, (int)out[2 + k], 0) == MAP_FAILED);
    }
    if (flags & KVF_MEMORY_HUGE) CHECK(kvf_memory_unmap(address, mapped, out + 2, count) == KVF_OK);
    else {
        CHECK(kvf_memory_unmap_job(js->context, 5, address, mapped, out + 2, count) == KVF_OK);
        CHECK(await(js).status == KVF_OK);
    }
    CHECK(lowest_free() == before && mapped_files() == maps);
}

/* Some of the files can be had and the next one not: nothing stays. */
static void too_few_descriptors(void) {
    const int before = lowest_free(), maps = mapped_files();
    struct rlimit usual, few;
    CHECK(getrlimit(RLIMIT_NOFILE, &usual) == 0);
    few = usual;
    double out[2 + KVF_MEMORY_FILES];
    for (int more = 0; more < 4; more++) {
        few.rlim_cur = (rlim_t)before + (rlim_t)more;
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        int32_t status = kvf_memory_map((uint64_t)8 << 20, KVF_MEMORY_SHARED, (uint64_t)2 << 20, out);
        CHECK(setrlimit(RLIMIT_NOFILE, &usual) == 0);
        CHECK(status == KVF_E_NOMEM && lowest_free() == before && mapped_files() == maps);
    }
}

/* How many huge pages the file has in one piece: of each of the others two small pages are there, which were written. */
static uint64_t in_one_piece(int descriptor, uint64_t huge_pages) {
    const uint64_t written = 2 * (uint64_t)sysconf(_SC_PAGESIZE), more = HUGE - written;
    struct stat found;
    CHECK(fstat(descriptor, &found) == 0);
    const uint64_t over = (uint64_t)found.st_blocks * 512 - huge_pages * written;
    CHECK(over % more == 0 && over / more <= huge_pages);
    return over / more;
}

/* Whole huge pages get their memory at once where the kernel makes them; what it makes none of stays as it was, as does what
 * is over at the end; not a byte is changed. */
static void only_huge(client *js) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), whole = FILES_STEP + 3 * HUGE, bytes = whole + 2 * page;
    double out[2 + KVF_MEMORY_FILES];
    CHECK(kvf_memory_map(bytes, KVF_MEMORY_HUGE | KVF_MEMORY_SHARED, FILES_STEP, out) == KVF_OK);
    const kvf_word address = (kvf_word)out[0], mapped = (kvf_word)out[1];
    uint8_t *at = (uint8_t *)(uintptr_t)address;
    for (uint64_t k = 0; k < whole; k += HUGE) memset(at + k + page - 1, 0x21 + (int)(k / HUGE), 2);
    CHECK(kvf_memory_touch_job(js->context, 3, address, mapped, FILES_STEP, 3, KVF_TOUCH_HUGE) == KVF_OK);
    CHECK(await(js).status == KVF_OK);
    const uint64_t made = in_one_piece((int)out[2], FILES_STEP / HUGE) + in_one_piece((int)out[3], 3);
    CHECK(made > 0 || advise(COLLAPSE) != DONE);
    for (uint64_t k = 0; k < whole; k += HUGE)
        for (uint64_t j = k + page - 1; j <= k + page; j++) {
            CHECK(at[j] == 0x21 + k / HUGE);
            at[j] = 0;
        }
    for (uint64_t k = 0; k < mapped; k++) CHECK(at[k] == 0);
    CHECK(kvf_memory_unmap(address, mapped, out + 2, 2) == KVF_OK);
}

static void memory_in_files(void) {
    double out[2 + KVF_MEMORY_FILES];
    CHECK(kvf_memory_map(8 << 20, KVF_MEMORY_SHARED, (2 << 20) + 4096, out) == KVF_E_INVALID);
    CHECK(kvf_memory_map((kvf_word)(2 << 20) * KVF_MEMORY_FILES + 1, KVF_MEMORY_SHARED, 2 << 20, out) == KVF_E_INVALID);
    CHECK(kvf_memory_unmap(4096, 4096, out, KVF_MEMORY_FILES + 1) == KVF_E_INVALID);
    CHECK(kvf_memory_unmap(4096, 4096, NULL, 1) == KVF_E_INVALID);
    client js = open_client(64);
    CHECK(kvf_memory_touch_job(js.context, 0, 4096, 1 << 20, 5000, 1, 0) == KVF_E_INVALID);
    CHECK(kvf_memory_touch_job(js.context, 0, 4096, 1 << 20, 4096, 1, 2) == KVF_E_INVALID);
    only_huge(&js);
    for (uint32_t flags = 0; flags < 8; flags++) {
        if (!(flags & KVF_MEMORY_SHARED)) continue;
        map_in_files(&js, 2 * FILES_STEP, flags);
        map_in_files(&js, 2 * FILES_STEP + 1, flags);
        if (flags < 4) map_in_files(&js, 2 * FILES_STEP + ((uint64_t)18 << 20) - 5, flags);
        map_in_files(&js, FILES_STEP - 1, flags);
    }
    too_few_descriptors();
    CHECK(close_client(&js, 1000) == 0);
}

#endif
