/*
 * file_io.c - the limit of rows F17: reads or writes of whole blocks at given offsets, past the page cache, so many in
 * flight from one thread by io_uring. What fio does with ioengine=io_uring, direct=1 and the same iodepth.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../cshim/file_ring.c"

#define HUGE ((uint64_t)2 << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Addresses of `bytes` bytes, all of which are the same `window` bytes of memory over and over: multiples of 2 MiB. In huge
 * pages where the kernel makes them. NULL when they cannot be had; they stay until the process ends. */
__attribute__((visibility("default"))) void *bench_window(uint64_t window, uint64_t bytes) {
    int fd = memfd_create("bench", MFD_CLOEXEC);
    if (fd < 0) return NULL;
    uint8_t *at = mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bool good = at != MAP_FAILED && ftruncate(fd, (off_t)window) == 0;
    if (good) at += (HUGE - (uintptr_t)at % HUGE) % HUGE;
    for (uint64_t k = 0; good && k < bytes; k += window) {
        good = mmap(at + k, window, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED;
        if (good && k == 0) {
            for (uint64_t j = 0; j < window; j += HUGE) at[j] = 1;
            madvise(at, window, MADV_COLLAPSE);
        }
        for (uint64_t j = 0; good && j < window; j += 4096) at[k + j] = (uint8_t)(j >> 12);
    }
    close(fd);
    return good ? at : NULL;
}

/* Moves `count` blocks of `bytes` bytes: block k between memory + inMemory[k] and the file at inFile[k]. Returns seconds,
 * or a negative errno. */
__attribute__((visibility("default"))) double bench_file(const char *path, uint32_t writing, uint8_t *memory, const double *inMemory,
                                                         const double *inFile, uint32_t count, uint32_t bytes, uint32_t depth) {
    int fd = open(path, (writing ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return -errno;
    kvf_ring_io ring;
    if (!kvf_ring_io_open(&ring, depth)) {
        close(fd);
        return -ENOSYS;
    }
    struct iovec *vectors = malloc(count * sizeof *vectors);
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    uint32_t next = 0, done = 0;
    double failed = 0;
    while (done < count && failed == 0) {
        while (next < count && next - done < depth) {
            vectors[next] = (struct iovec){memory + (uint64_t)inMemory[next], bytes};
            if (!kvf_ring_io_vector(&ring, writing != 0, fd, &vectors[next], 1, (uint64_t)inFile[next], next)) break;
            next++;
        }
        kvf_ring_io_enter(&ring, true);
        uint64_t tag;
        int32_t result;
        while (kvf_ring_io_take(&ring, &tag, &result)) {
            if (result != (int32_t)bytes) failed = result < 0 ? result : -EIO;
            done++;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    kvf_ring_io_close(&ring);
    free(vectors);
    close(fd);
    return failed < 0 ? failed : (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
}
