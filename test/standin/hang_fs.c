/*
 * hang_fs.c - a file system in memory that stops answering on demand, by the kernel's FUSE protocol: `hang_fs DIRECTORY`.
 *
 * Lines on standard input: `hang` leaves reads and writes of large files unanswered from then on, and who asks for their
 * room; `fail` answers reads and writes with EIO, `short` with a part of what was asked for, EINTR and EAGAIN in turn (files that are opened meanwhile pass no
 * page cache, which would take short answers for ends), `go` answers those that were left and goes on. Each line is
 * answered by `ok`, and so is the mount; `count` by the number of short answers. Ends, and unmounts, at the end of its
 * input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 16
#define FILE_BYTES ((size_t)4 << 20)
#define MESSAGE_BYTES ((size_t)2 << 20)
/* Smaller ones, headers for instance, are always served. */
#define LARGE 16384u
#define KEPT 256

typedef struct file {
    char name[256];
    uint8_t *bytes;
    uint64_t size;
    uint32_t links;
} file;

static file files[FILES]; /* inode k + 2 */
static int device;
static enum { GO, HANG, FAIL, SHORT } mode;
static uint32_t turns, shortened;
static uint8_t *kept[KEPT];
static size_t kept_count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void answer(uint64_t unique, int error, const void *body, size_t bytes) {
    struct fuse_out_header head = {.len = (uint32_t)(sizeof head + bytes), .error = -error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)(uintptr_t)body, bytes}};
    if (writev(device, parts, bytes ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV) perror("hang_fs: an answer");
}

static struct fuse_attr attributes(uint64_t inode) {
    struct fuse_attr attr = {.ino = inode, .mode = S_IFDIR | 0755, .nlink = 2, .blksize = 4096};
    if (inode == 1) return attr;
    const file *f = &files[inode - 2];
    attr.mode = S_IFREG | 0644;
    attr.nlink = f->links;
    attr.size = f->size;
    attr.blocks = (f->size + 511) / 512;
    return attr;
}

static uint64_t find(const char *name) {
    for (uint64_t k = 0; k < FILES; k++)
        if (files[k].links && strcmp(files[k].name, name) == 0) return k + 2;
    return 0;
}

static uint64_t make(const char *name) {
    for (uint64_t k = 0; k < FILES; k++) {
        if (files[k].bytes) continue;
        files[k].bytes = calloc(1, FILE_BYTES);
        snprintf(files[k].name, sizeof files[k].name, "%s", name);
        files[k].links = 1;
        return k + 2;
    }
    return 0;
}

static void rename_file(uint64_t unique, const char *names) {
    uint64_t from = find(names), to = find(names + strlen(names) + 1);
    if (from == 0) {
        answer(unique, ENOENT, NULL, 0);
        return;
    }
    if (to) files[to - 2].links = 0;
    snprintf(files[from - 2].name, sizeof files[0].name, "%s", names + strlen(names) + 1);
    answer(unique, 0, NULL, 0);
}

static struct fuse_entry_out entry(uint64_t inode) {
    return (struct fuse_entry_out){.nodeid = inode, .generation = 1, .attr = attributes(inode)};
}

/* True when it is answered. */
static bool data(const struct fuse_in_header *head, const uint8_t *body) {
    file *f = &files[head->nodeid - 2];
    const bool writing = head->opcode == FUSE_WRITE;
    if ((mode == HANG || mode == FAIL) && f->size >= LARGE) {
        if (mode == FAIL) answer(head->unique, EIO, NULL, 0);
        return mode == FAIL;
    }
    const struct fuse_write_in *in = (const void *)body;
    const struct fuse_read_in *out = (const void *)body;
    uint64_t at = writing ? in->offset : out->offset, bytes = writing ? in->size : out->size;
    if (mode == SHORT && f->size >= LARGE) {
        const uint32_t turn = turns++ % 5;
        if (turn < 2) {
            answer(head->unique, turn ? EAGAIN : EINTR, NULL, 0);
            return true;
        }
        /* Pages, and what is none. */
        if (turn < 4 && bytes > 4096) bytes = (bytes / 2 + 4095) / 4096 * 4096, shortened++;
        else if (bytes > 1) bytes -= bytes / 3, shortened++;
    }
    if (writing) {
        if (at + bytes > FILE_BYTES) {
            answer(head->unique, ENOSPC, NULL, 0);
            return true;
        }
        memcpy(f->bytes + at, body + sizeof *in, bytes);
        if (at + bytes > f->size) f->size = at + bytes;
        struct fuse_write_out written = {.size = (uint32_t)bytes};
        answer(head->unique, 0, &written, sizeof written);
        return true;
    }
    if (at > f->size) at = f->size;
    if (bytes > f->size - at) bytes = f->size - at;
    answer(head->unique, 0, f->bytes + at, bytes);
    return true;
}

static bool serve(const uint8_t *message) {
    const struct fuse_in_header *head = (const void *)message;
    const uint8_t *body = message + sizeof *head;
    const char *name = (const char *)body;
    uint64_t inode;
    switch (head->opcode) {
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT: return true;
        case FUSE_INIT: {
            struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = 131072, .max_write = 131072};
            answer(head->unique, 0, &out, sizeof out);
            return true;
        }
        case FUSE_LOOKUP: {
            inode = find(name);
            struct fuse_entry_out out = {0};
            if (inode) out = entry(inode);
            answer(head->unique, inode ? 0 : ENOENT, &out, inode ? sizeof out : 0);
            return true;
        }
        case FUSE_CREATE: {
            inode = make(name + sizeof(struct fuse_create_in));
            struct {
                struct fuse_entry_out entry;
                struct fuse_open_out open;
            } out = {0};
            if (inode) out.entry = entry(inode);
            if (mode == SHORT) out.open.open_flags = FOPEN_DIRECT_IO;
            answer(head->unique, inode ? 0 : ENOSPC, &out, inode ? sizeof out : 0);
            return true;
        }
        case FUSE_OPEN:
        case FUSE_OPENDIR: {
            struct fuse_open_out out = {0};
            if (mode == SHORT && head->opcode == FUSE_OPEN) out.open_flags = FOPEN_DIRECT_IO;
            answer(head->unique, 0, &out, sizeof out);
            return true;
        }
        case FUSE_SETATTR: {
            const struct fuse_setattr_in *in = (const void *)body;
            if ((in->valid & FATTR_SIZE) && head->nodeid > 1) files[head->nodeid - 2].size = in->size;
        }
        /* fall through */
        case FUSE_GETATTR: {
            struct fuse_attr_out out = {.attr = attributes(head->nodeid)};
            answer(head->unique, 0, &out, sizeof out);
            return true;
        }
        case FUSE_FALLOCATE: {
            const struct fuse_fallocate_in *in = (const void *)body;
            file *f = &files[head->nodeid - 2];
            if (mode == HANG && in->length >= LARGE) return false;
            if (in->offset + in->length > FILE_BYTES) answer(head->unique, ENOSPC, NULL, 0);
            else {
                if (in->offset + in->length > f->size) f->size = in->offset + in->length;
                answer(head->unique, 0, NULL, 0);
            }
            return true;
        }
        case FUSE_UNLINK:
            inode = find(name);
            if (inode) files[inode - 2].links = 0;
            answer(head->unique, inode ? 0 : ENOENT, NULL, 0);
            return true;
        case FUSE_RENAME: rename_file(head->unique, name + sizeof(struct fuse_rename_in)); return true;
        case FUSE_RENAME2: rename_file(head->unique, name + sizeof(struct fuse_rename2_in)); return true;
        case FUSE_READ:
        case FUSE_WRITE: return data(head, body);
        case FUSE_READDIR:
        case FUSE_FLUSH:
        case FUSE_FSYNC:
        case FUSE_RELEASE:
        case FUSE_RELEASEDIR: answer(head->unique, 0, NULL, 0); return true;
        default: answer(head->unique, ENOSYS, NULL, 0); return true;
    }
}

static void *serve_all(void *unused) {
    (void)unused;
    uint8_t *message = malloc(MESSAGE_BYTES);
    ssize_t length;
    while (message && ((length = read(device, message, MESSAGE_BYTES)) > 0 || errno == EINTR || errno == ENOENT)) {
        if (length <= 0) continue;
        pthread_mutex_lock(&mutex);
        if (!serve(message) && kept_count < KEPT && (kept[kept_count] = malloc((size_t)length)))
            memcpy(kept[kept_count++], message, (size_t)length);
        pthread_mutex_unlock(&mutex);
    }
    free(message);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%u,group_id=%u", device, geteuid(), getegid());
    if (device < 0 || mount("hang_fs", arguments[1], "fuse", MS_NOSUID | MS_NODEV, options) != 0) {
        perror("hang_fs: it cannot be mounted");
        return 1;
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve_all, NULL) != 0) return 1;
    puts("ok");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        pthread_mutex_lock(&mutex);
        if (line[0] == 'c') {
            printf("%u\n", shortened);
            fflush(stdout);
            pthread_mutex_unlock(&mutex);
            continue;
        }
        mode = line[0] == 'h' ? HANG : line[0] == 'f' ? FAIL : line[0] == 's' ? SHORT : GO;
        for (size_t k = 0; mode != HANG && k < kept_count; k++) {
            serve(kept[k]);
            free(kept[k]);
        }
        if (mode != HANG) kept_count = 0;
        pthread_mutex_unlock(&mutex);
        puts("ok");
        fflush(stdout);
    }
    umount2(arguments[1], MNT_DETACH);
    return 0;
}
