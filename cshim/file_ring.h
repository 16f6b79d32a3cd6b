/*
 * file_ring.h - one io_uring through raw system calls: no library is needed, and a kernel that refuses is told apart.
 */
#ifndef KVF_FILE_RING_H
#define KVF_FILE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Used by one thread only. */
typedef struct kvf_ring_io {
    int fd;
    uint32_t entries;
    uint32_t *sq_head, *sq_tail, *sq_mask, *sq_array;
    uint32_t *cq_head, *cq_tail, *cq_mask;
    void *sqes;
    void *cqes;
    void *sq_map, *cq_map;
    size_t sq_bytes, cq_bytes, sqe_bytes;
    uint32_t queued; /* filled and not yet given to the kernel */
} kvf_ring_io;

/* False where the kernel has no io_uring or forbids it. */
bool kvf_ring_io_open(kvf_ring_io *ring, uint32_t entries);
void kvf_ring_io_close(kvf_ring_io *ring);
/* Fills an entry: a vectored read or write. The vectors must stay until its completion. False when the queue is full. */
bool kvf_ring_io_vector(kvf_ring_io *ring, bool write, int fd, const struct iovec *vectors, uint32_t count, uint64_t offset,
                        uint64_t tag);
/* Fills an entry: a plain read, used for the eventfd that wakes the lane. */
bool kvf_ring_io_read(kvf_ring_io *ring, int fd, void *bytes, uint32_t length, uint64_t tag);
/* Gives what was filled to the kernel and waits for at least one completion. 0 or an errno. */
int kvf_ring_io_enter(kvf_ring_io *ring, bool wait);
/* Takes one completion; false when there is none. */
bool kvf_ring_io_take(kvf_ring_io *ring, uint64_t *tag, int32_t *result);

#endif
