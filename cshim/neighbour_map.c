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

#include "mapping.h"
#include "neighbour.h"
#include "status.h"

/* Mappings at least this large are advised to use huge pages, as the owner's are. */
#define HUGE_FROM ((uint64_t)4 << 20)
#define MOST_BYTES ((uint64_t)1 << 53)

int32_t kvf_memory_file_check(int descriptor, uint64_t bytes) {
    /* Before its size is asked for: an owner could shrink it in between, and seal it then. */
    int seals = fcntl(descriptor, F_GET_SEALS);
    struct stat found;
    if (fstat(descriptor, &found) != 0) return kvf_refuse_errno(errno, "the descriptor that was handed over");
    if (!S_ISREG(found.st_mode) || seals < 0) return kvf_refuse(KVF_E_INVALID, "what was handed over is no memory file");
    if ((uint64_t)found.st_size != bytes)
        return kvf_refuse(KVF_E_INVALID, "the memory file that was handed over has %lld bytes instead of %llu", (long long)found.st_size, (unsigned long long)bytes);
    if (!(seals & F_SEAL_SHRINK)) return kvf_refuse(KVF_E_INVALID, "the memory file that was handed over is not sealed: it could shrink");
    return KVF_OK;
}

/* Of a file of its own a caller must know itself that it does not shrink. */
static int32_t check_own(int descriptor, uint64_t bytes) {
    struct stat found;
    if (fstat(descriptor, &found) != 0) return kvf_refuse_errno(errno, "the descriptor that was handed over");
    return S_ISREG(found.st_mode) && (uint64_t)found.st_size >= bytes
               ? KVF_OK
               : kvf_refuse(KVF_E_INVALID, "descriptor %d is no file of %llu bytes or more", descriptor, (unsigned long long)bytes);
}

static int descriptor_of(const double *files, uint32_t at) { return (int)files[2 * (size_t)at]; }

/* Bytes of a file; 0 for what is none. */
static uint64_t bytes_of(const double *files, uint32_t at) {
    double bytes = files[2 * (size_t)at + 1];
    return bytes >= 1 && bytes <= (double)MOST_BYTES ? (uint64_t)bytes : 0;
}

static uint64_t page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

/* Bytes that the files are mapped in, whole pages. */
static int32_t measure(const double *files, uint32_t count, uint64_t *all) {
    uint64_t sum = 0;
    for (uint32_t at = 0; at < count; at++) {
        uint64_t bytes = bytes_of(files, at);
        if (bytes == 0 || descriptor_of(files, at) < 0) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_map: %llu bytes of descriptor %d", (unsigned long long)bytes, descriptor_of(files, at));
        if (at + 1 < count && bytes % KVF_HUGE_PAGE)
            return kvf_refuse(KVF_E_INVALID, "a memory file of %llu bytes was handed over, with another one behind it that could not follow at once", (unsigned long long)bytes);
        if (bytes > MOST_BYTES - sum) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_map: more than %llu bytes", (unsigned long long)MOST_BYTES);
        sum += bytes;
    }
    *all = (sum + page_bytes() - 1) / page_bytes() * page_bytes();
    return KVF_OK;
}

/* Maps the files one after the other, large ones at a multiple of a huge page, where their offsets then lie as they do in
 * the files. MAP_FAILED with errno set. */
static void *map_all(const double *files, uint32_t count, uint64_t all, int rights) {
    if (count == 1 && all < HUGE_FROM) return mmap(NULL, bytes_of(files, 0), rights, MAP_SHARED, descriptor_of(files, 0), 0);
    uint8_t *reserved = kvf_mapping_reserve(all);
    if (reserved == MAP_FAILED) return MAP_FAILED;
    uint64_t from = 0;
    for (uint32_t at = 0; at < count; at++) {
        if (mmap(reserved + from, bytes_of(files, at), rights, MAP_SHARED | MAP_FIXED, descriptor_of(files, at), 0) == MAP_FAILED) {
            int why = errno;
            munmap(reserved, all);
            errno = why;
            return MAP_FAILED;
        }
        from += bytes_of(files, at);
    }
    madvise(reserved, all, MADV_HUGEPAGE); /* advice only */
    return reserved;
}

static int32_t map_files(const double *files, uint32_t count, uint32_t flags, double *out) {
    uint64_t all = 0;
    int32_t status = measure(files, count, &all);
    for (uint32_t at = 0; at < count && status == KVF_OK; at++)
        status = (flags & KVF_NEIGHBOUR_OWN ? check_own : kvf_memory_file_check)(descriptor_of(files, at), bytes_of(files, at));
    if (status != KVF_OK) return status;
    void *mapped = map_all(files, count, all, flags & KVF_NEIGHBOUR_READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE);
    if (mapped == MAP_FAILED) return kvf_refuse_errno(errno, "%llu bytes of another process's memory", (unsigned long long)all);
    /* A child of this process would keep the owner's memory alive after this process let go of it. */
    madvise(mapped, all, MADV_DONTFORK);
    out[0] = (double)(uintptr_t)mapped;
    out[1] = (double)all;
    return KVF_OK;
}

int32_t kvf_neighbour_map(const double *files, uint32_t count, uint32_t flags, double *out) {
    if (!files || count == 0 || count > KVF_NEIGHBOUR_DESCRIPTORS) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_map: %u files", count);
    int32_t status = !out || (flags & ~(KVF_NEIGHBOUR_READ_ONLY | KVF_NEIGHBOUR_KEEP | KVF_NEIGHBOUR_OWN))
                         ? kvf_refuse(KVF_E_INVALID, "kvf_neighbour_map: flags %u", flags)
                         : map_files(files, count, flags, out);
    for (uint32_t at = 0; at < count && !(flags & KVF_NEIGHBOUR_KEEP); at++)
        if (descriptor_of(files, at) >= 0) close(descriptor_of(files, at));
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
