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
#include <time.h>
#include <unistd.h>

#include "../../cshim/file_ring.c"

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
