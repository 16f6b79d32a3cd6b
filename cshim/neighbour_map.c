/*
 * neighbour_map.c - mapping memory that another process handed over, and looking at what a caller's descriptor is.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "status.h"

#define HUGE_PAGE ((uint64_t)2 << 20)
/* Mappings at least this large are advised to use huge pages, as the owner's are. */
#define HUGE_FROM ((uint64_t)4 << 20)
#define MOST_BYTES ((uint64_t)1 << 53)

/* A file in memory of exactly that size that can no more shrink: then no access to the mapping can ever fail. Of a file
 * of its own a caller must know that itself. */
static int32_t look(int descriptor, uint64_t bytes, bool own) {
    /* Before its size is asked for: an owner could shrink it in between, and seal it then. */
    int seals = fcntl(descriptor, F_GET_SEALS);
    struct stat found;
    if (fstat(descriptor, &found) != 0) return kvf_refuse_errno(errno, "the descriptor that was handed over");
    if (own)
        return S_ISREG(found.st_mode) && (uint64_t)found.st_size >= bytes
                   ? KVF_OK
                   : kvf_refuse(KVF_E_INVALID, "descriptor %d is no file of %llu bytes or more", descriptor, (unsigned long long)bytes);
    if (!S_ISREG(found.st_mode) || seals < 0) return kvf_refuse(KVF_E_INVALID, "what was handed over is no memory file");
    if ((uint64_t)found.st_size != bytes)
        return kvf_refuse(KVF_E_INVALID, "the memory file that was handed over has %lld bytes instead of %llu", (long long)found.st_size, (unsigned long long)bytes);
    if (!(seals & F_SEAL_SHRINK)) return kvf_refuse(KVF_E_INVALID, "the memory file that was handed over is not sealed: it could shrink");
    return KVF_OK;
}

/* Maps the whole file at a multiple of a huge page, where its offsets then lie as they do in the file. */
static void *map_whole(int descriptor, uint64_t bytes, int rights) {
    if (bytes < HUGE_FROM) return mmap(NULL, bytes, rights, MAP_SHARED, descriptor, 0);
    uint8_t *reserved = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return MAP_FAILED;
    uint8_t *start = (uint8_t *)(((uintptr_t)reserved + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    uint8_t *mapped = mmap(start, bytes, rights, MAP_SHARED | MAP_FIXED, descriptor, 0);
    if (mapped == MAP_FAILED) {
        int why = errno;
        munmap(reserved, bytes + HUGE_PAGE);
        errno = why;
        return MAP_FAILED;
    }
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t whole = (bytes + page - 1) / page * page;
    if (start > reserved) munmap(reserved, (size_t)(start - reserved));
    uint64_t behind = bytes + HUGE_PAGE - (uint64_t)(start - reserved) - whole;
    if (behind > 0) munmap(start + whole, behind);
    madvise(mapped, bytes, MADV_HUGEPAGE); /* advice only */
    return mapped;
}

int32_t kvf_neighbour_map(int32_t descriptor, kvf_word bytes, uint32_t flags, double *out) {
    if (descriptor < 0) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_map: no descriptor");
    int32_t status = KVF_OK;
    if (!out || bytes == 0 || bytes > MOST_BYTES || (flags & ~(KVF_NEIGHBOUR_READ_ONLY | KVF_NEIGHBOUR_KEEP | KVF_NEIGHBOUR_OWN)))
        status = kvf_refuse(KVF_E_INVALID, "kvf_neighbour_map: %llu bytes, flags %u", (unsigned long long)bytes, flags);
    if (status == KVF_OK) status = look(descriptor, bytes, (flags & KVF_NEIGHBOUR_OWN) != 0);
    if (status == KVF_OK) {
        int rights = flags & KVF_NEIGHBOUR_READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE;
        void *mapped = map_whole(descriptor, bytes, rights);
        if (mapped == MAP_FAILED) status = kvf_refuse_errno(errno, "%llu bytes of another process's memory", (unsigned long long)bytes);
        else {
            /* A child of this process would keep the owner's memory alive after this process let go of it. */
            madvise(mapped, bytes, MADV_DONTFORK);
            uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
            out[0] = (double)(uintptr_t)mapped;
            out[1] = (double)((bytes + page - 1) / page * page);
        }
    }
    if (!(flags & KVF_NEIGHBOUR_KEEP)) close(descriptor);
    return status;
}

int32_t kvf_neighbour_inspect(int32_t descriptor, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_inspect: no place for the result");
    struct stat found;
    if (fstat(descriptor, &found) != 0) return kvf_refuse_errno(errno, "descriptor %d", descriptor);
    if (!S_ISREG(found.st_mode)) return kvf_refuse(KVF_E_INVALID, "descriptor %d is no file", descriptor);
    int seals = fcntl(descriptor, F_GET_SEALS);
    if (seals >= 0 && !(seals & F_SEAL_SHRINK) && fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK) == 0) seals |= F_SEAL_SHRINK;
    /* Its owner may have made it smaller until now. */
    if (fstat(descriptor, &found) != 0) return kvf_refuse_errno(errno, "descriptor %d", descriptor);
    out[0] = (double)found.st_size;
    out[1] = seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
    int own = fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
    if (own < 0) return kvf_refuse_errno(errno, "a descriptor for the same file as %d", descriptor);
    out[2] = own;
    return KVF_OK;
}
