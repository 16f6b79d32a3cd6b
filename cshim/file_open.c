/* How a file is found or made, how its space is reserved, and what its file system is good for. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define GUESSED_ALIGNMENT 4096u
#define TMPFS 0x01021994u
#define RAMFS 0x858458f6u
#define FUSE 0x65735546u
/* statx's field of this name is younger than many C libraries: mask, and offsets of two words in the result. */
#define DIOALIGN 0x2000u
#define DIO_MEMORY 0x98
#define DIO_OFFSET 0x9c
#define ZERO_BYTES ((size_t)1 << 20)

static int32_t refuse_file(int number, const char *path, const char *what) {
    kvf_refuse_errno(number, "%s: %s", path, what);
    return number == EWOULDBLOCK ? KVF_E_BUSY : KVF_E_IO;
}

static int32_t fill_with_zeros(int fd, const char *path, uint64_t bytes) {
    uint8_t *zeros = calloc(1, ZERO_BYTES);
    if (!zeros) return kvf_refuse(KVF_E_NOMEM, "%s: no memory to fill it with zeros", path);
    int32_t status = KVF_OK;
    for (uint64_t at = 0; at < bytes && status == KVF_OK;) {
        size_t part = bytes - at < ZERO_BYTES ? (size_t)(bytes - at) : ZERO_BYTES;
        ssize_t written = pwrite(fd, zeros, part, (off_t)at);
        if (written > 0) at += (uint64_t)written;
        else if (written == 0 || errno != EINTR) status = refuse_file(written == 0 ? ENOSPC : errno, path, "space could not be reserved");
    }
    free(zeros);
    return status;
}

/* Reserves the space now, so that a full device is found at registration and not at a write. */
static int32_t reserve(int fd, const char *path, uint64_t bytes) {
    if (ftruncate(fd, 0) != 0) return refuse_file(errno, path, "could not be emptied");
    int failed;
    do failed = fallocate(fd, 0, 0, (off_t)bytes) == 0 ? 0 : errno;
    while (failed == EINTR);
    if (failed == 0) return KVF_OK;
    if (failed == EOPNOTSUPP || failed == ENOSYS || failed == EINVAL) return fill_with_zeros(fd, path, bytes);
    return refuse_file(failed, path, "space could not be reserved");
}

/* What the file system is good for. When a FUSE server answers a ring's request short, the kernel (6.18) asks for the rest
 * from the wrong place and calls the whole done: such files are served by threads. */
static bool look_at_system(kvf_file *file) {
    struct statfs system;
    memset(&system, 0, sizeof system);
    const uint32_t kind = fstatfs(file->descriptor, &system) == 0 ? (uint32_t)system.f_type : FUSE; /* a server may not know */
    if (kind == FUSE) file->no_ring = true;
    return kind != TMPFS && kind != RAMFS;
}

/* Opens the file again for direct transfers, through /proc so that it is the same file whatever its name is by now. */
static void open_direct(kvf_file *file) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file->descriptor);
    int fd = open(link, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return;
    uint32_t facts[64];
    memset(facts, 0, sizeof facts);
    file->memory_alignment = file->offset_alignment = GUESSED_ALIGNMENT;
#ifdef SYS_statx
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, facts) == 0 && (facts[0] & DIOALIGN)) {
        file->memory_alignment = facts[DIO_MEMORY / 4];
        file->offset_alignment = facts[DIO_OFFSET / 4];
    }
#endif
    if (file->memory_alignment == 0 || file->offset_alignment == 0) {
        close(fd);
        return;
    }
    file->direct = fd;
}

static int32_t open_named(kvf_file *file, uint32_t flags, uint64_t bytes) {
    const char *path = file->path;
    /* Without O_NONBLOCK opening a pipe by mistake would never end. */
    const int how = O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    if (flags & KVF_FILE_CREATE) {
        file->descriptor = open(path, how | O_CREAT | O_EXCL, 0644);
        file->made = file->descriptor >= 0;
        if (!file->made && errno != EEXIST) return refuse_file(errno, path, "could not be made");
    }
    if (!file->made) file->descriptor = open(path, how);
    if (file->descriptor < 0) return refuse_file(errno, path, "could not be opened for reading and writing");
    struct stat facts;
    if (fstat(file->descriptor, &facts) != 0) return refuse_file(errno, path, "could not be looked at");
    if (!S_ISREG(facts.st_mode)) return kvf_refuse(KVF_E_IO, "%s: is not a regular file", path);
    /* Only the opening was not to wait: a ring would take the flag for "answer EAGAIN rather than wait for the device". */
    if (fcntl(file->descriptor, F_SETFL, fcntl(file->descriptor, F_GETFL) & ~O_NONBLOCK) != 0)
        return refuse_file(errno, path, "could not be made to wait");
    if (flock(file->descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return kvf_refuse(KVF_E_BUSY, "%s: another layout, of this process or another one, has it open", path);
    if (!(flags & KVF_FILE_CREATE)) {
        if ((uint64_t)facts.st_size == bytes) return KVF_OK;
        return kvf_refuse(KVF_E_IO, "%s: has %llu bytes, the layout needs %llu", path, (unsigned long long)facts.st_size,
                          (unsigned long long)bytes);
    }
    if (!file->made && facts.st_size > 0 && !(flags & KVF_FILE_REPLACE))
        return kvf_refuse(KVF_E_IO, "%s: is there already with %llu bytes and was not made for a layout", path,
                          (unsigned long long)facts.st_size);
    int32_t status = reserve(file->descriptor, path, bytes);
    if (status != KVF_OK && file->made) unlink(path);
    else if (status != KVF_OK && ftruncate(file->descriptor, 0) != 0) return status;
    return status;
}

/* `path` is a directory: a file without a name in it, or one whose name is taken away at once. */
static int32_t open_nameless(kvf_file *file, uint64_t bytes) {
    const char *folder = file->path;
    char name[4096];
    if (snprintf(name, sizeof name, "%s/kvferry-disk-cache-XXXXXX", folder) >= (int)sizeof name)
        return kvf_refuse(KVF_E_INVALID, "%s: is too long a path", folder);
    int fd = -1;
#ifdef O_TMPFILE
    fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
#endif
    if (fd < 0) {
        fd = mkostemp(name, O_CLOEXEC);
        if (fd < 0) return refuse_file(errno, folder, "no file could be made in it");
        unlink(name);
    }
    file->descriptor = fd;
    char shown[4096];
    snprintf(shown, sizeof shown, "%.4000s/(temporary file)", folder);
    char *copy = strdup(shown);
    if (copy) {
        free(file->path);
        file->path = copy;
    }
    return reserve(fd, file->path, bytes);
}

int32_t kvf_file_open(kvf_file *file, uint32_t flags, uint64_t bytes) {
    const bool nameless = (flags & (KVF_FILE_TEMPORARY | KVF_FILE_CREATE)) == KVF_FILE_TEMPORARY;
    int32_t status = nameless ? open_nameless(file, bytes) : open_named(file, flags, bytes);
    if (status != KVF_OK) return status;
    const bool may_be_direct = look_at_system(file);
    if (may_be_direct && !(flags & KVF_FILE_BUFFERED)) open_direct(file);
    file->bytes = bytes;
    return KVF_OK;
}
