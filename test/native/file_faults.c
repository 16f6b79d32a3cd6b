/*
 * file_faults.c - file lanes over a kernel that is made to answer short, interrupted, busy or with an error: this program's
 * own preadv, pwritev and syscall stand before the C library's, for lanes of threads and for those with an io_uring.
 *
 *   file_faults FOLDER ROUNDS      one line for each part that held; exit status 1 at the first mistake
 *
 * What is answered short was moved short, and what is answered with an error was not moved: a lane that took the one for
 * done or the other for moved leaves wrong bytes behind.
 */
#include "file_jobs.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define JOBS 6u
#define MOST_DEPTH 64u
#define MOST_VECTORS 256u
/* What a device may ask of offsets and lengths past the page cache, in this driver. */
#define ALIGNMENT 4096u

static const char *folder;

/* ---- what is answered --------------------------------------------------------------------------------------------- */

enum fault { WHOLE, SHORT, ODD, INTERRUPTED, BUSY, REFUSED, NOTHING };

static struct {
    bool mixed;        /* short, interrupted and busy in turn */
    int refuse;        /* answer with this errno from then on, or -1: with nothing */
    int32_t refuse_in; /* after so many requests */
    bool direct_only;  /* refuse only what goes past the page cache */
} plan;                /* set while no request is in flight */
static uint32_t turn;  /* atomic */
static uint32_t counts[NOTHING + 1], enters_refused, enters_cut; /* atomic */
static bool direct_seen; /* atomic: the file system has a way past the page cache */

static bool is_direct(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    CHECK((flags & O_NONBLOCK) == 0); /* kernels answer a ring with EAGAIN then, again and again */
    return (flags & O_DIRECT) != 0;
}

static enum fault next_fault(bool direct) {
    uint32_t now = __atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED);
    enum fault fault = WHOLE;
    if (plan.refuse && (direct || !plan.direct_only) && __atomic_sub_fetch(&plan.refuse_in, 1, __ATOMIC_RELAXED) < 0)
        fault = plan.refuse < 0 ? NOTHING : REFUSED;
    else if (plan.mixed) {
        static const enum fault cycle[] = {SHORT, INTERRUPTED, SHORT, ODD, BUSY, WHOLE, SHORT};
        fault = cycle[now % 7];
    }
    if (direct) __atomic_store_n(&direct_seen, true, __ATOMIC_RELAXED);
    if (fault == ODD && !direct) fault = SHORT;
    __atomic_fetch_add(&counts[fault], 1, __ATOMIC_RELAXED);
    return fault;
}

static int error_of(enum fault fault) { return fault == INTERRUPTED ? EINTR : fault == BUSY ? EAGAIN : plan.refuse; }

/* The beginning of a list of vectors, some of its bytes; what a device past the page cache takes of it. */
static uint32_t shorten(struct iovec *to, const struct iovec *from, uint32_t count, bool direct) {
    uint64_t all = 0;
    for (uint32_t k = 0; k < count; k++) all += from[k].iov_len;
    uint64_t wanted = all * (1 + __atomic_load_n(&turn, __ATOMIC_RELAXED) % 3) / 4;
    if (direct) wanted = wanted / ALIGNMENT * ALIGNMENT;
    if (wanted == 0) wanted = direct ? ALIGNMENT : 1;
    uint32_t kept = 0;
    for (; kept < count && wanted > 0; kept++) {
        to[kept] = from[kept];
        if (to[kept].iov_len > wanted) to[kept].iov_len = wanted;
        wanted -= to[kept].iov_len;
    }
    return kept;
}

/* ---- calls ---------------------------------------------------------------------------------------------------------- */

typedef ssize_t vector_call(int, const struct iovec *, int, off_t);

static ssize_t answer_call(vector_call *real, int fd, const struct iovec *vectors, int count, off_t at) {
    const bool direct = is_direct(fd);
    struct iovec cut[MOST_VECTORS];
    enum fault fault = next_fault(direct);
    switch (fault) {
        case WHOLE: return real(fd, vectors, count, at);
        case SHORT: return real(fd, cut, (int)shorten(cut, vectors, (uint32_t)count, direct), at);
        case ODD: {
            ssize_t moved = real(fd, cut, (int)shorten(cut, vectors, (uint32_t)count, direct), at);
            return moved > 100 ? moved - 100 : moved;
        }
        case NOTHING: return 0;
        default: errno = error_of(fault); return -1;
    }
}

ssize_t preadv(int fd, const struct iovec *vectors, int count, off_t at) {
    return answer_call((vector_call *)dlsym(RTLD_NEXT, "preadv"), fd, vectors, count, at);
}

ssize_t pwritev(int fd, const struct iovec *vectors, int count, off_t at) {
    return answer_call((vector_call *)dlsym(RTLD_NEXT, "pwritev"), fd, vectors, count, at);
}

/* ---- rings: their memory is mapped once more, and entries are changed before the kernel takes them ------------------------ */

static struct {
    uint32_t *sq_head, *sq_tail, *cq_tail;
    uint32_t sq_mask, cq_mask;
    uint32_t sq_seen, cq_seen;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint32_t enters;
    enum fault fault[MOST_DEPTH];
    int32_t error[MOST_DEPTH];
    struct iovec cut[MOST_DEPTH][MOST_VECTORS];
} ring; /* one at a time; its lane's thread uses it, after whoever opened it */
static uint32_t rings; /* opened */

typedef long system_call(long, ...);

static void *map_again(int fd, size_t bytes, uint64_t offset) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    CHECK(at != MAP_FAILED);
    return at;
}

static void note_ring(int fd, const struct io_uring_params *params) {
    memset(&ring, 0, sizeof ring);
    uint8_t *sq = map_again(fd, params->sq_off.array + params->sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
    uint8_t *cq = map_again(fd, params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
    ring.sqes = map_again(fd, params->sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    ring.sq_head = (uint32_t *)(void *)(sq + params->sq_off.head);
    ring.sq_tail = (uint32_t *)(void *)(sq + params->sq_off.tail);
    ring.sq_mask = *(uint32_t *)(void *)(sq + params->sq_off.ring_mask);
    ring.cq_tail = (uint32_t *)(void *)(cq + params->cq_off.tail);
    ring.cq_mask = *(uint32_t *)(void *)(cq + params->cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(void *)(cq + params->cq_off.cqes);
    rings++;
}

static void change_entry(struct io_uring_sqe *sqe) {
    const uint64_t tag = sqe->user_data;
    if (tag >= MOST_DEPTH) return; /* the read that wakes the lane */
    const bool direct = is_direct(sqe->fd);
    const bool plain = sqe->opcode == IORING_OP_READ || sqe->opcode == IORING_OP_WRITE;
    enum fault fault = ring.fault[tag] = next_fault(direct);
    if (fault == WHOLE) return;
    if (fault != SHORT && fault != ODD) {
        ring.error[tag] = fault == NOTHING ? 0 : -error_of(fault);
        memset(sqe, 0, sizeof *sqe);
        sqe->opcode = IORING_OP_NOP;
        sqe->user_data = tag;
        return;
    }
    struct iovec one = {.iov_base = (void *)(uintptr_t)sqe->addr, .iov_len = sqe->len};
    const struct iovec *vectors = plain ? &one : (const struct iovec *)(uintptr_t)sqe->addr;
    const uint32_t kept = shorten(ring.cut[tag], vectors, plain ? 1 : sqe->len, direct);
    sqe->addr = plain ? sqe->addr : (uint64_t)(uintptr_t)ring.cut[tag];
    sqe->len = plain ? (uint32_t)ring.cut[tag][0].iov_len : kept;
}

static void change_results(void) {
    const uint32_t tail = __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE);
    for (; ring.cq_seen != tail; ring.cq_seen++) {
        struct io_uring_cqe *cqe = &ring.cqes[ring.cq_seen & ring.cq_mask];
        if (cqe->user_data >= MOST_DEPTH) continue;
        const enum fault fault = ring.fault[cqe->user_data];
        if (fault == ODD && cqe->res > 100) cqe->res -= 100;
        else if (fault == INTERRUPTED || fault == BUSY || fault == REFUSED) cqe->res = ring.error[cqe->user_data];
    }
}

static long enter(system_call *real, long fd, long submit, long least, long flags) {
    const uint32_t now = ring.enters++;
    if (plan.mixed && now % 5 == 1) {
        static const int answers[] = {EINTR, EAGAIN, EBUSY};
        __atomic_fetch_add(&enters_refused, 1, __ATOMIC_RELAXED);
        errno = answers[now / 5 % 3];
        return -1;
    }
    for (uint32_t tail = *ring.sq_tail; ring.sq_seen != tail; ring.sq_seen++) change_entry(&ring.sqes[ring.sq_seen & ring.sq_mask]);
    /* A kernel that takes only some does not wait either. */
    const bool cut = plan.mixed && submit > 1 && now % 5 == 3;
    if (cut) __atomic_fetch_add(&enters_cut, 1, __ATOMIC_RELAXED);
    const long taken = cut ? real(SYS_io_uring_enter, fd, submit - 1, 0L, 0L, NULL, 0L)
                           : real(SYS_io_uring_enter, fd, submit, least, flags, NULL, 0L);
    const int failed = errno;
    change_results();
    errno = failed;
    return taken;
}

long syscall(long number, ...) {
    long words[6];
    va_list list;
    va_start(list, number);
    for (int k = 0; k < 6; k++) words[k] = va_arg(list, long);
    va_end(list);
    system_call *real = (system_call *)dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_io_uring_enter) return enter(real, words[0], words[1], words[2], words[3]);
    const long result = real(number, words[0], words[1], words[2], words[3], words[4], words[5]);
    if (number == SYS_io_uring_setup && result >= 0) note_ring((int)result, (const void *)(uintptr_t)words[1]);
    return result;
}

/* ---- parts ------------------------------------------------------------------------------------------------------------ */

typedef struct world {
    client self;
    char path[512];
    uint32_t file;
    uint64_t cell;
    uint64_t bytes;
    uint8_t *memory, *back, *there;
    uint32_t in_file[CELLS * JOBS], in_memory[CELLS * JOBS];
} world;

static void set_up(world *to, uint32_t flags, uint64_t cell, uint32_t depth) {
    memset(&plan, 0, sizeof plan);
    to->self = open_client(64);
    to->cell = cell;
    to->bytes = cell * CELLS * JOBS;
    const uint64_t whole = (to->bytes + 4095) / 4096 * 4096;
    snprintf(to->path, sizeof to->path, "%s/faults.bin", folder);
    to->file = open_file(&to->self, to->path, KVF_FILE_CREATE | flags, whole, depth);
    to->memory = aligned_alloc(4096, whole);
    to->back = aligned_alloc(4096, whole);
    to->there = malloc(to->bytes);
    CHECK(to->memory && to->back && to->there);
    for (uint64_t k = 0; k < to->bytes; k++) to->memory[k] = (uint8_t)random_word();
    memset(to->back, 0xa5, whole);
    shuffle(to->in_memory, CELLS * JOBS);
    /* The first job's cells continue each other in the file and not in memory: requests of several vectors. */
    for (uint32_t k = 0; k < CELLS; k++) to->in_file[k] = k;
    shuffle(to->in_file + CELLS, CELLS * (JOBS - 1));
    for (uint32_t k = CELLS; k < CELLS * JOBS; k++) to->in_file[k] += CELLS;
}

static void tear_down(world *of) {
    memset(&plan, 0, sizeof plan);
    close_file(&of->self, of->file);
    CHECK(close_client(&of->self, 1000) == 0);
    free(of->memory);
    free(of->back);
    free(of->there);
    unlink(of->path);
}

static void start(world *in, uint32_t job, bool writing) {
    static double words[WORDS];
    make_hop(words, writing, in->file, writing ? in->memory : in->back, in->cell, in->in_file + job * CELLS,
             in->in_memory + job * CELLS, CELLS);
    CHECK(kvf_file_copy_job(in->self.context, job, words, (kvf_word)words[3]) == KVF_OK);
}

static void look(const world *in, uint32_t jobs) {
    int plain = open(in->path, O_RDONLY | O_CLOEXEC);
    CHECK(plain >= 0 && pread(plain, in->there, in->bytes, 0) == (ssize_t)in->bytes);
    close(plain);
    for (uint32_t k = 0; k < CELLS * jobs; k++)
        CHECK(memcmp(in->there + in->in_file[k] * in->cell, in->memory + in->in_memory[k] * in->cell, in->cell) == 0);
}

/* Jobs at once, whose requests are answered short, interrupted and busy in turn: each ends well and moves its bytes. */
static void resumed(uint32_t flags, uint64_t cell, uint32_t depth) {
    world in;
    set_up(&in, flags, cell, depth);
    plan.mixed = true;
    for (int reading = 0; reading < 2; reading++) {
        for (uint32_t job = 0; job < JOBS; job++) start(&in, job, !reading);
        for (uint32_t job = 0; job < JOBS; job++) {
            answer got = await(&in.self);
            CHECK(got.status == KVF_OK && got.value == (double)(cell * CELLS) && got.flags == KVF_DONE_TOUCHED);
        }
        look(&in, JOBS);
    }
    CHECK(memcmp(in.back, in.memory, in.bytes) == 0);
    tear_down(&in);
}

/* A device that refuses after some requests: its jobs end with the file's name and the reason, whatever was under way ends
 * too, and the same jobs are done once it is well again. */
static void refused(uint32_t flags, uint64_t cell, uint32_t depth, int refuse, const char *why) {
    world in;
    set_up(&in, flags, cell, depth);
    for (int reading = 0; reading < 2; reading++) {
        plan.refuse = refuse;
        plan.refuse_in = 5;
        for (uint32_t job = 0; job < JOBS; job++) start(&in, job, !reading);
        uint32_t failed = 0;
        for (uint32_t job = 0; job < JOBS; job++) {
            answer got = await(&in.self);
            if (got.status == KVF_OK) continue;
            char text[1024];
            CHECK(kvf_slot_error(in.self.context, got.slot, text, sizeof text) == KVF_OK);
            if (got.status != KVF_E_IO || got.flags != KVF_DONE_TOUCHED || !strstr(text, in.path) || !strstr(text, why) ||
                !strstr(text, reading ? "reading" : "writing")) {
                fprintf(stderr, "ended with %d, flags %u: %s\n", got.status, got.flags, text);
                exit(1);
            }
            failed++;
        }
        CHECK(failed > 0);
        plan.refuse = 0;
        for (uint32_t job = 0; job < JOBS; job++) start(&in, job, !reading);
        for (uint32_t job = 0; job < JOBS; job++) CHECK(await(&in.self).status == KVF_OK);
        look(&in, JOBS);
    }
    CHECK(memcmp(in.back, in.memory, in.bytes) == 0);
    tear_down(&in);
}

/* A file system that says only at a request that it takes nothing past the page cache. */
static void direct_refused(uint32_t flags, uint32_t depth) {
    world in;
    set_up(&in, flags, 4096, depth);
    plan.mixed = true;
    plan.refuse = EINVAL;
    plan.direct_only = true;
    for (int reading = 0; reading < 2; reading++) {
        for (uint32_t job = 0; job < JOBS; job++) start(&in, job, !reading);
        for (uint32_t job = 0; job < JOBS; job++) CHECK(await(&in.self).status == KVF_OK);
        look(&in, JOBS);
    }
    CHECK(memcmp(in.back, in.memory, in.bytes) == 0);
    tear_down(&in);
}

/* What was never made to happen was not tried. */
static void demand(enum fault fault) {
    CHECK(counts[fault] > 0);
    counts[fault] = 0;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    folder = argv[1];
    const int rounds = atoi(argv[2]);
    static const uint64_t cells[] = {4096, 100, 12288, 65536};
    static const uint32_t modes[] = {KVF_FILE_THREADS, KVF_FILE_THREADS | KVF_FILE_BUFFERED, 0, KVF_FILE_BUFFERED};
    for (int round = 0; round < rounds; round++)
        for (unsigned mode = 0; mode < 4; mode++)
            resumed(modes[mode], cells[(round + (int)mode) % 4], 1 + (uint32_t)below(40));
    for (enum fault fault = SHORT; fault <= BUSY; fault++)
        if (fault != ODD || direct_seen) demand(fault);
    if (rings > 0) CHECK(enters_refused > 0 && enters_cut > 0);
    puts("held short, interrupted and busy answers");
    for (unsigned mode = 0; mode < 4; mode++) {
        refused(modes[mode], 4096, 8, ENOSPC, "No space left on device");
        refused(modes[mode], 65536, 3, EIO, "Input/output error");
        refused(modes[mode], 100, 3, -1, "");
    }
    demand(REFUSED);
    demand(NOTHING);
    puts("held a device that refuses");
    /* Busy for ever is not waited for for ever. */
    for (unsigned mode = 0; mode < 4; mode += 2) refused(modes[mode], 4096, 2, EAGAIN, "Resource temporarily unavailable");
    puts("held a device that stays busy");
    direct_refused(KVF_FILE_THREADS, 8);
    direct_refused(0, 8);
    puts("held a page cache that cannot be passed");
    return 0;
}
