#include "file_ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#define HAVE_RING 1
#endif
#endif

#ifdef HAVE_RING

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#endif

static void *map(int fd, size_t bytes, uint64_t offset) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)offset);
    return at == MAP_FAILED ? NULL : at;
}

bool kvf_ring_io_open(kvf_ring_io *ring, uint32_t entries) {
    memset(ring, 0, sizeof *ring);
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    long fd = syscall(SYS_io_uring_setup, entries, &params);
    if (fd < 0) return false;
    ring->fd = (int)fd;
    ring->entries = params.sq_entries;
    ring->sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    ring->cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    ring->sqe_bytes = params.sq_entries * sizeof(struct io_uring_sqe);
    if (params.features & IORING_FEAT_SINGLE_MMAP) {
        if (ring->cq_bytes > ring->sq_bytes) ring->sq_bytes = ring->cq_bytes;
        ring->sq_map = map(ring->fd, ring->sq_bytes, IORING_OFF_SQ_RING);
        ring->cq_map = ring->sq_map;
        ring->cq_bytes = 0;
    } else {
        ring->sq_map = map(ring->fd, ring->sq_bytes, IORING_OFF_SQ_RING);
        ring->cq_map = map(ring->fd, ring->cq_bytes, IORING_OFF_CQ_RING);
    }
    ring->sqes = map(ring->fd, ring->sqe_bytes, IORING_OFF_SQES);
    if (!ring->sq_map || !ring->cq_map || !ring->sqes) {
        kvf_ring_io_close(ring);
        return false;
    }
    uint8_t *sq = ring->sq_map, *cq = ring->cq_map;
    ring->sq_head = (uint32_t *)(void *)(sq + params.sq_off.head);
    ring->sq_tail = (uint32_t *)(void *)(sq + params.sq_off.tail);
    ring->sq_mask = (uint32_t *)(void *)(sq + params.sq_off.ring_mask);
    ring->sq_array = (uint32_t *)(void *)(sq + params.sq_off.array);
    ring->cq_head = (uint32_t *)(void *)(cq + params.cq_off.head);
    ring->cq_tail = (uint32_t *)(void *)(cq + params.cq_off.tail);
    ring->cq_mask = (uint32_t *)(void *)(cq + params.cq_off.ring_mask);
    ring->cqes = cq + params.cq_off.cqes;
    return true;
}

void kvf_ring_io_close(kvf_ring_io *ring) {
    if (ring->sqes) munmap(ring->sqes, ring->sqe_bytes);
    if (ring->cq_map && ring->cq_map != ring->sq_map) munmap(ring->cq_map, ring->cq_bytes);
    if (ring->sq_map) munmap(ring->sq_map, ring->sq_bytes);
    close(ring->fd);
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
}

static struct io_uring_sqe *entry(kvf_ring_io *ring) {
    uint32_t tail = *ring->sq_tail, head = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    if (tail - head >= ring->entries) return NULL;
    uint32_t at = tail & *ring->sq_mask;
    struct io_uring_sqe *sqe = (struct io_uring_sqe *)ring->sqes + at;
    memset(sqe, 0, sizeof *sqe);
    ring->sq_array[at] = at;
    return sqe;
}

static void push(kvf_ring_io *ring) {
    __atomic_store_n(ring->sq_tail, *ring->sq_tail + 1, __ATOMIC_RELEASE);
    ring->queued++;
}

bool kvf_ring_io_vector(kvf_ring_io *ring, bool write, int fd, const struct iovec *vectors, uint32_t count, uint64_t offset,
                        uint64_t tag) {
    struct io_uring_sqe *sqe = entry(ring);
    if (!sqe) return false;
    /* One vector goes without the list: the kernel need not copy it. */
    const bool plain = count == 1;
    sqe->opcode = plain ? (write ? IORING_OP_WRITE : IORING_OP_READ) : write ? IORING_OP_WRITEV : IORING_OP_READV;
    sqe->fd = fd;
    sqe->addr = plain ? (uint64_t)(uintptr_t)vectors[0].iov_base : (uint64_t)(uintptr_t)vectors;
    sqe->len = plain ? (uint32_t)vectors[0].iov_len : count;
    sqe->off = offset;
    sqe->user_data = tag;
    push(ring);
    return true;
}

bool kvf_ring_io_read(kvf_ring_io *ring, int fd, void *bytes, uint32_t length, uint64_t tag) {
    struct io_uring_sqe *sqe = entry(ring);
    if (!sqe) return false;
    sqe->opcode = IORING_OP_READ;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)bytes;
    sqe->len = length;
    sqe->user_data = tag;
    push(ring);
    return true;
}

int kvf_ring_io_enter(kvf_ring_io *ring, bool wait) {
    for (;;) {
        long taken = syscall(SYS_io_uring_enter, ring->fd, ring->queued, wait ? 1 : 0, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
        if (taken >= 0) {
            ring->queued -= (uint32_t)taken;
            return 0;
        }
        if (errno != EINTR) return errno;
    }
}

bool kvf_ring_io_take(kvf_ring_io *ring, uint64_t *tag, int32_t *result) {
    uint32_t head = *ring->cq_head;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) return false;
    const struct io_uring_cqe *cqe = (const struct io_uring_cqe *)ring->cqes + (head & *ring->cq_mask);
    *tag = cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

#else

bool kvf_ring_io_open(kvf_ring_io *ring, uint32_t entries) {
    (void)entries;
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    return false;
}
void kvf_ring_io_close(kvf_ring_io *ring) { (void)ring; }
bool kvf_ring_io_vector(kvf_ring_io *ring, bool write, int fd, const struct iovec *vectors, uint32_t count, uint64_t offset,
                        uint64_t tag) {
    (void)ring, (void)write, (void)fd, (void)vectors, (void)count, (void)offset, (void)tag;
    return false;
}
bool kvf_ring_io_read(kvf_ring_io *ring, int fd, void *bytes, uint32_t length, uint64_t tag) {
    (void)ring, (void)fd, (void)bytes, (void)length, (void)tag;
    return false;
}
int kvf_ring_io_enter(kvf_ring_io *ring, bool wait) {
    (void)ring, (void)wait;
    return ENOSYS;
}
bool kvf_ring_io_take(kvf_ring_io *ring, uint64_t *tag, int32_t *result) {
    (void)ring, (void)tag, (void)result;
    return false;
}

#endif
