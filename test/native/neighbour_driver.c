/*
 * neighbour_driver.c - exercises neighbour objects without JavaScript, for sanitizers: messages, descriptors, mapping,
 * ends of processes, what strangers send, closing while messages fly. Prints a line for each part that held.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "driver.h"

typedef struct event {
    uint32_t kind, connection, length, count;
    int descriptors[KVF_NEIGHBOUR_DESCRIPTORS];
    uint8_t *payload;
} event;

/* One side: a context with a neighbour object and what was taken from it. */
typedef struct side {
    client js;
    kvf_word self;
    char name[64];
    uint8_t *buffer;
    size_t capacity, filled, at;
} side;

static void pause_micros(long micros) {
    struct timespec pause = {.tv_nsec = micros * 1000};
    nanosleep(&pause, NULL);
}

static side open_side(const char *name) {
    side made = {.js = open_client(64), .capacity = (size_t)64 << 20};
    double out[4];
    CHECK(kvf_neighbour_open(made.js.context, out) == KVF_OK);
    made.self = (kvf_word)out[0];
    made.buffer = malloc(made.capacity);
    CHECK(made.buffer);
    snprintf(made.name, sizeof made.name, "kvferry-driver-%d-%s", (int)getpid(), name);
    CHECK(kvf_neighbour_listen(made.self, made.name) == KVF_OK);
    return made;
}

static void close_side(side *self) {
    CHECK(kvf_neighbour_close(self->self) == KVF_OK);
    CHECK(kvf_neighbour_close(self->self) == KVF_E_CLOSED);
    CHECK(close_client(&self->js, 1000) == 0);
    free(self->buffer);
}

/* The next event; its payload is valid until the next call. */
static bool poll_event(side *self, event *to) {
    if (self->at == self->filled) {
        double out[3];
        if (kvf_neighbour_take(self->self, self->buffer, self->capacity, out) != KVF_OK) return false;
        self->filled = (size_t)out[0];
        self->at = 0;
    }
    const uint8_t *record = self->buffer + self->at;
    memcpy(&to->kind, record, 4);
    memcpy(&to->connection, record + 4, 4);
    memcpy(&to->length, record + 8, 4);
    memcpy(&to->count, record + 12, 4);
    memcpy(to->descriptors, record + 16, 4 * (size_t)to->count);
    to->payload = self->buffer + self->at + 16 + 4 * (size_t)to->count;
    self->at += (16 + 4 * (size_t)to->count + to->length + 3) & ~(size_t)3;
    return true;
}

static event next_event(side *self) {
    event got;
    for (int tries = 0; !poll_event(self, &got); tries++) {
        CHECK(tries < 100000);
        pause_micros(100);
    }
    return got;
}

static event expect_event(side *self, uint32_t kind) {
    event got = next_event(self);
    if (got.kind != kind) fprintf(stderr, "event %u instead of %u: %.*s\n", got.kind, kind, (int)got.length, got.payload);
    CHECK(got.kind == kind);
    return got;
}

static uint32_t connect_to(side *from, const side *to) {
    double out[4];
    CHECK(kvf_neighbour_connect(from->self, to->name, out) == KVF_OK);
    CHECK(out[1] == geteuid() && out[2] == getpid());
    return (uint32_t)out[0];
}

/* A socket that speaks no protocol. */
static int raw_socket(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path + 1, name, strlen(name));
    int end = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(end >= 0);
    CHECK(connect(end, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) == 0);
    return end;
}

static int open_descriptors(void) {
    int count = 0;
    for (int at = 0; at < 1024; at++) count += fcntl(at, F_GETFD) >= 0;
    return count;
}

/* ---- messages ------------------------------------------------------------------------------------------------ */

static void messages(void) {
    side a = open_side("a"), b = open_side("b");
    double out[4];
    CHECK(kvf_neighbour_listen(a.self, "again") == KVF_E_BUSY);
    CHECK(kvf_neighbour_connect(a.self, "kvferry-nobody-is-here", out) == KVF_E_PEER);
    CHECK(kvf_neighbour_connect(a.self, "", out) == KVF_E_INVALID);
    uint32_t to = connect_to(&a, &b);
    event accepted = expect_event(&b, KVF_NEIGHBOUR_ACCEPTED);
    uint32_t who[3];
    memcpy(who, accepted.payload, sizeof who);
    CHECK(accepted.length == 12 && who[0] == geteuid() && who[1] == (uint32_t)getpid() && who[2] == 1);
    uint32_t back = accepted.connection;
    static const size_t lengths[] = {0, 1, 3, 65535, 65536, 65537, 131072, 1000003, KVF_NEIGHBOUR_MESSAGE_BYTES};
    const size_t count = sizeof lengths / sizeof *lengths;
    uint8_t *bytes = malloc(KVF_NEIGHBOUR_MESSAGE_BYTES);
    CHECK(bytes);
    for (int direction = 0; direction < 2; direction++) {
        side *from = direction ? &b : &a, *at = direction ? &a : &b;
        for (size_t k = 0; k < count; k++) {
            memset(bytes, (int)(k + 1), lengths[k]);
            CHECK(kvf_neighbour_send(from->self, direction ? back : to, bytes, lengths[k], NULL, 0, out) == KVF_OK);
        }
        for (size_t k = 0; k < count; k++) {
            event got = expect_event(at, KVF_NEIGHBOUR_MESSAGE);
            CHECK(got.length == lengths[k] && got.count == 0);
            for (size_t j = 0; j < got.length; j += 997) CHECK(got.payload[j] == (uint8_t)(k + 1));
        }
    }
    CHECK(kvf_neighbour_send(a.self, to, bytes, KVF_NEIGHBOUR_MESSAGE_BYTES + 1, NULL, 0, out) == KVF_E_INVALID);
    CHECK(kvf_neighbour_send(a.self, to + 100, bytes, 1, NULL, 0, out) == KVF_E_PEER);
    /* What was sent before the end arrives before word of it. */
    CHECK(kvf_neighbour_send(a.self, to, bytes, 3000000, NULL, 0, out) == KVF_OK);
    CHECK(kvf_neighbour_shut(a.self, to) == KVF_OK);
    CHECK(kvf_neighbour_send(a.self, to, bytes, 1, NULL, 0, out) == KVF_E_PEER);
    CHECK(expect_event(&b, KVF_NEIGHBOUR_MESSAGE).length == 3000000);
    CHECK(expect_event(&b, KVF_NEIGHBOUR_CLOSED).connection == back);
    expect_event(&a, KVF_NEIGHBOUR_CLOSED);
    CHECK(kvf_neighbour_forget(b.self, back) == KVF_OK && kvf_neighbour_forget(b.self, back) == KVF_E_PEER);
    free(bytes);
    close_side(&a);
    close_side(&b);
}

/* Whoever looks itself leaves the thread asleep, and nothing is lost when it looks no longer. */
static void looking(void) {
    side a = open_side("a"), b = open_side("b");
    double out[4];
    CHECK(kvf_neighbour_look(b.self, 1, NULL) == KVF_E_INVALID);
    CHECK(kvf_neighbour_look(b.self, 1, out) == KVF_OK && out[0] == 0);
    uint32_t to = connect_to(&a, &b);
    event got;
    for (int way = 0; way < 2; way++) {
        if (way) CHECK(kvf_neighbour_send(a.self, to, (const uint8_t *)"one", 3, NULL, 0, out) == KVF_OK);
        pause_micros(20000);
        CHECK(!poll_event(&b, &got)); /* the thread was not woken */
        CHECK(kvf_neighbour_look(b.self, 1, out) == KVF_OK && out[0] > 0);
        expect_event(&b, way ? KVF_NEIGHBOUR_MESSAGE : KVF_NEIGHBOUR_ACCEPTED);
    }
    /* The thread is told of what came before. */
    CHECK(kvf_neighbour_send(a.self, to, (const uint8_t *)"two", 3, NULL, 0, out) == KVF_OK);
    CHECK(kvf_neighbour_look(b.self, 0, out) == KVF_OK);
    CHECK(memcmp(expect_event(&b, KVF_NEIGHBOUR_MESSAGE).payload, "two", 3) == 0);
    /* What the socket did not take at once goes out by the thread, though nobody looks again. */
    uint8_t *bytes = calloc(1, KVF_NEIGHBOUR_MESSAGE_BYTES);
    CHECK(bytes);
    CHECK(kvf_neighbour_look(a.self, 1, out) == KVF_OK);
    CHECK(kvf_neighbour_send(a.self, to, bytes, KVF_NEIGHBOUR_MESSAGE_BYTES, NULL, 0, out) == KVF_OK);
    CHECK(expect_event(&b, KVF_NEIGHBOUR_MESSAGE).length == KVF_NEIGHBOUR_MESSAGE_BYTES);
    free(bytes);
    close_side(&a);
    CHECK(kvf_neighbour_look(a.self, 1, out) == KVF_E_CLOSED);
    close_side(&b);
}

/* What was said before a connection ended is heard, whichever way its end is noticed. */
static void last_words(void) {
    for (int way = 0; way < 2; way++) {
        side a = open_side("a"), b = open_side("b");
        double out[4];
        uint32_t to = connect_to(&a, &b), back = expect_event(&b, KVF_NEIGHBOUR_ACCEPTED).connection;
        const uint8_t *word = (const uint8_t *)"word";
        /* Nobody reads for now. */
        CHECK(kvf_neighbour_look(a.self, 1, out) == KVF_OK && kvf_neighbour_look(b.self, 1, out) == KVF_OK);
        if (way) CHECK(kvf_neighbour_send(b.self, back, word, 4, NULL, 0, out) == KVF_OK); /* never read there: a reset here */
        for (int k = 0; k < 3; k++) CHECK(kvf_neighbour_send(a.self, to, word, 4, NULL, 0, out) == KVF_OK);
        CHECK(kvf_neighbour_shut(a.self, to) == KVF_OK && kvf_neighbour_forget(a.self, to) == KVF_OK);
        if (way) CHECK(kvf_neighbour_look(b.self, 1, out) == KVF_OK);
        else CHECK(kvf_neighbour_send(b.self, back, word, 4, NULL, 0, out) == KVF_E_PEER);
        for (int k = 0; k < 3; k++) expect_event(&b, KVF_NEIGHBOUR_MESSAGE);
        expect_event(&b, KVF_NEIGHBOUR_CLOSED);
        close_side(&a);
        close_side(&b);
    }
}

/* ---- descriptors and mapping --------------------------------------------------------------------------------- */

static int memory_file(size_t bytes, int seals) {
    int made = memfd_create("driver", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(made >= 0 && ftruncate(made, (off_t)bytes) == 0);
    if (seals) CHECK(fcntl(made, F_ADD_SEALS, seals) == 0);
    return made;
}

static int32_t map_one(int descriptor, kvf_word bytes, uint32_t flags, double *out) {
    const double file[] = {descriptor, (double)bytes};
    return kvf_neighbour_map(file, 1, flags, out);
}

static void descriptors(void) {
    int before = open_descriptors();
    side a = open_side("a"), b = open_side("b");
    double out[4], owned[3], guarded[3];
    const kvf_word bytes = 5 << 20;
    CHECK(kvf_memory_map(bytes, KVF_MEMORY_SHARED | KVF_MEMORY_HUGE, 0, owned) == KVF_OK);
    CHECK(kvf_memory_map(bytes, KVF_MEMORY_SHARED | KVF_MEMORY_GUARDED, 0, guarded) == KVF_OK);
    uint8_t *mine = (uint8_t *)(uintptr_t)owned[0], *kept = (uint8_t *)(uintptr_t)guarded[0];
    mine[0] = kept[0] = 7;
    uint32_t to = connect_to(&a, &b);
    expect_event(&b, KVF_NEIGHBOUR_ACCEPTED);
    const double pairs[] = {owned[2], 0, owned[2], 1, guarded[2], 1};
    CHECK(kvf_neighbour_send(a.self, to, (const uint8_t *)"hello", 5, pairs, 3, out) == KVF_OK);
    event got = expect_event(&b, KVF_NEIGHBOUR_MESSAGE);
    CHECK(got.count == 3 && got.length == 5 && memcmp(got.payload, "hello", 5) == 0);
    for (int k = 0; k < 3; k++) CHECK(fcntl(got.descriptors[k], F_GETFD) == FD_CLOEXEC);

    double there[2];
    CHECK(map_one(got.descriptors[0], bytes, 0, there) == KVF_OK);
    uint8_t *mapped = (uint8_t *)(uintptr_t)there[0];
    CHECK(mapped[0] == 7 && (uintptr_t)mapped % (2 << 20) == 0 && there[1] == (double)bytes);
    mapped[bytes - 1] = 9;
    CHECK(mine[bytes - 1] == 9 && fcntl(got.descriptors[0], F_GETFD) < 0);
    CHECK(kvf_memory_unmap((kvf_word)there[0], bytes, NULL, 0) == KVF_OK);

    /* For reading only: neither mapped for writing nor written, and what is guarded not even when it is opened anew. */
    CHECK(map_one(got.descriptors[1], bytes, KVF_NEIGHBOUR_KEEP, there) == KVF_E_SYSTEM);
    CHECK(write(got.descriptors[1], "x", 1) < 0);
    CHECK(map_one(got.descriptors[1], bytes, KVF_NEIGHBOUR_READ_ONLY, there) == KVF_OK);
    CHECK(*(uint8_t *)(uintptr_t)there[0] == 7 && mprotect((void *)(uintptr_t)there[0], bytes, PROT_READ | PROT_WRITE) != 0);
    CHECK(kvf_memory_unmap((kvf_word)there[0], bytes, NULL, 0) == KVF_OK);
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", got.descriptors[2]);
    int again = open(path, O_RDWR | O_CLOEXEC);
    CHECK(again < 0 || (mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED && write(again, "x", 1) < 0));
    if (again >= 0) close(again);
    CHECK(map_one(got.descriptors[2], bytes, KVF_NEIGHBOUR_READ_ONLY, there) == KVF_OK);
    kept[5] = 3;
    CHECK(((uint8_t *)(uintptr_t)there[0])[5] == 3);
    CHECK(kvf_memory_unmap((kvf_word)there[0], bytes, NULL, 0) == KVF_OK);

    /* As many as fit with one message, queued behind a socket that is full; those nobody took are closed at the end. */
    double many[2 * KVF_NEIGHBOUR_DESCRIPTORS];
    for (int k = 0; k < KVF_NEIGHBOUR_DESCRIPTORS; k++) {
        many[2 * k] = owned[2];
        many[2 * k + 1] = k % 2;
    }
    CHECK(kvf_neighbour_send(a.self, to, NULL, 0, many, KVF_NEIGHBOUR_DESCRIPTORS, out) == KVF_OK);
    got = expect_event(&b, KVF_NEIGHBOUR_MESSAGE);
    CHECK(got.count == KVF_NEIGHBOUR_DESCRIPTORS && got.length == 0);
    for (uint32_t k = 0; k < got.count; k++) close(got.descriptors[k]);
    CHECK(kvf_neighbour_send(a.self, to, NULL, 0, many, KVF_NEIGHBOUR_DESCRIPTORS, out) == KVF_OK);
    const double wrong[] = {owned[2], 0, 987654, 0};
    CHECK(kvf_neighbour_send(a.self, to, NULL, 0, wrong, 2, out) == KVF_E_SYSTEM);
    CHECK(kvf_memory_unmap((kvf_word)owned[0], bytes, owned + 2, 1) == KVF_OK);
    CHECK(kvf_memory_unmap((kvf_word)guarded[0], bytes, guarded + 2, 1) == KVF_OK);
    close_side(&a);
    close_side(&b);
    CHECK(open_descriptors() == before);
}

typedef struct shrinker {
    uint32_t turn; /* the round that is on, atomic */
    uint32_t done; /* the last round that it did, atomic */
    int descriptor;
    uint32_t wait; /* steps before it acts */
} shrinker;

static void *shrink(void *argument) {
    shrinker *self = argument;
    for (uint32_t round = 1;; round++) {
        uint32_t turn;
        while ((turn = __atomic_load_n(&self->turn, __ATOMIC_ACQUIRE)) < round) sched_yield();
        if (turn == UINT32_MAX) return NULL;
        for (uint32_t step = 0; step < self->wait; step++) __atomic_load_n(&self->turn, __ATOMIC_SEQ_CST);
        CHECK(ftruncate(self->descriptor, 0) == 0 && fcntl(self->descriptor, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
        __atomic_store_n(&self->done, round, __ATOMIC_RELEASE);
    }
}

/* A file that its owner shrinks and seals while it is looked at: either it is refused, or all of it can be used. */
static void shrunk_while_looked_at(uint32_t rounds) {
    const kvf_word bytes = 1 << 16;
    shrinker other = {0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, shrink, &other) == 0);
    for (uint32_t round = 1; round <= rounds; round++) {
        other.descriptor = memory_file(bytes, 0);
        other.wait = (uint32_t)below(200);
        double out[3];
        __atomic_store_n(&other.turn, round, __ATOMIC_RELEASE);
        int32_t status = KVF_E_INVALID;
        for (int tries = 0; tries < 5 && status == KVF_E_INVALID; tries++)
            status = map_one(other.descriptor, bytes, KVF_NEIGHBOUR_KEEP, out);
        while (__atomic_load_n(&other.done, __ATOMIC_ACQUIRE) < round) sched_yield();
        if (status == KVF_OK) { /* ends this process if there is no file behind it */
            *(volatile uint8_t *)(uintptr_t)((kvf_word)out[0] + bytes - 1) = 1;
            CHECK(kvf_memory_unmap((kvf_word)out[0], (kvf_word)out[1], NULL, 0) == KVF_OK);
        }
        close(other.descriptor);
    }
    __atomic_store_n(&other.turn, UINT32_MAX, __ATOMIC_RELEASE);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void refused_maps(void) {
    int before = open_descriptors();
    double out[3];
    const kvf_word bytes = 1 << 20;
    int pipes[2];
    CHECK(pipe2(pipes, O_CLOEXEC) == 0);
    CHECK(map_one(pipes[0], bytes, 0, out) == KVF_E_INVALID);
    close(pipes[1]);
    CHECK(map_one(open("/dev/zero", O_RDWR | O_CLOEXEC), bytes, 0, out) == KVF_E_INVALID);
    CHECK(map_one(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), bytes, KVF_NEIGHBOUR_READ_ONLY, out) == KVF_E_INVALID);
    CHECK(map_one(memory_file(bytes, 0), bytes, 0, out) == KVF_E_INVALID);
    CHECK(map_one(memory_file(bytes, F_SEAL_GROW), bytes, 0, out) == KVF_E_INVALID);
    CHECK(map_one(memory_file(bytes + 4096, F_SEAL_SHRINK), bytes, 0, out) == KVF_E_INVALID);
    CHECK(map_one(memory_file(bytes - 4096, F_SEAL_SHRINK), bytes, 0, out) == KVF_E_INVALID);
    CHECK(map_one(memory_file(bytes, F_SEAL_SHRINK | F_SEAL_WRITE), bytes, 0, out) == KVF_E_SYSTEM);
    CHECK(map_one(memory_file(bytes, F_SEAL_SHRINK), 0, 0, out) == KVF_E_INVALID);
    CHECK(map_one(-1, bytes, 0, out) == KVF_E_INVALID);
    int gone = memory_file(bytes, F_SEAL_SHRINK);
    close(gone);
    CHECK(map_one(gone, bytes, 0, out) == KVF_E_SYSTEM);
    shrunk_while_looked_at(1000);
    /* A caller's file: sealed where it can be. */
    int own = memory_file(bytes + 100, 0);
    CHECK(kvf_neighbour_inspect(own, out) == KVF_OK && out[0] == (double)bytes + 100 && out[1] == 1);
    close((int)out[2]);
    CHECK(ftruncate(own, 10) != 0);
    CHECK(map_one(own, bytes, KVF_NEIGHBOUR_OWN | KVF_NEIGHBOUR_KEEP, out) == KVF_OK);
    CHECK(kvf_memory_unmap((kvf_word)out[0], (kvf_word)out[1], NULL, 0) == KVF_OK);
    CHECK(map_one(own, bytes + 101, KVF_NEIGHBOUR_OWN, out) == KVF_E_INVALID);
    CHECK(open_descriptors() == before);
}

#include "neighbour_files.h"
#include "neighbour_hostile.h"
#include "neighbour_rings.h"
#include "neighbour_scribble.h"

/* ---- strangers ----------------------------------------------------------------------------------------------- */

static void strangers(void) {
    int before = open_descriptors();
    side b = open_side("b");
    static const struct {
        uint32_t word;
        size_t length;
    } packets[] = {{2, 8}, {0xffffffff, 64}, {0, 2}, {0, 3}};
    for (size_t k = 0; k < sizeof packets / sizeof *packets; k++) {
        int end = raw_socket(b.name);
        uint8_t packet[64] = {0};
        memcpy(packet, &packets[k].word, 4);
        CHECK(send(end, packet, packets[k].length, 0) == (ssize_t)packets[k].length);
        uint32_t number = expect_event(&b, KVF_NEIGHBOUR_ACCEPTED).connection;
        event closed = expect_event(&b, KVF_NEIGHBOUR_CLOSED);
        CHECK(closed.connection == number && closed.length > 0);
        CHECK(kvf_neighbour_forget(b.self, number) == KVF_OK);
        close(end);
    }
    /* A message without end, and one that nobody completes. */
    int end = raw_socket(b.name);
    uint8_t *packet = calloc(1, 4 + 65536);
    CHECK(packet);
    packet[0] = 1;
    int sent = 0;
    while (send(end, packet, 4 + 65536, MSG_NOSIGNAL) > 0) sent++;
    CHECK(sent >= KVF_NEIGHBOUR_MESSAGE_BYTES / 65536 && sent < 1000);
    expect_event(&b, KVF_NEIGHBOUR_ACCEPTED);
    expect_event(&b, KVF_NEIGHBOUR_CLOSED);
    close(end);
    end = raw_socket(b.name);
    CHECK(send(end, packet, 100, 0) == 100);
    expect_event(&b, KVF_NEIGHBOUR_ACCEPTED);
    close(end);
    expect_event(&b, KVF_NEIGHBOUR_CLOSED);
    /* Somebody who never reads: what is sent is queued, and goes with the connection. */
    end = raw_socket(b.name);
    uint32_t number = expect_event(&b, KVF_NEIGHBOUR_ACCEPTED).connection;
    double out[1] = {0};
    for (int k = 0; k < 100; k++) CHECK(kvf_neighbour_send(b.self, number, packet, 65536, NULL, 0, out) == KVF_OK);
    CHECK(out[0] > 4000000);
    close(end);
    expect_event(&b, KVF_NEIGHBOUR_CLOSED);
    CHECK(kvf_neighbour_send(b.self, number, packet, 1, NULL, 0, out) == KVF_E_PEER);
    free(packet);
    close_side(&b);
    CHECK(open_descriptors() == before);
}

/* ---- ends of processes ---------------------------------------------------------------------------------------- */

static void exits(int rounds) {
    int before = open_descriptors();
    side b = open_side("b");
    for (int round = 0; round < rounds; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            int end = raw_socket(b.name);
            uint32_t packet[2] = {0, 42};
            if (send(end, packet, sizeof packet, 0) != sizeof packet) _exit(1);
            if (round % 2) _exit(0);
            for (;;) pause();
        }
        event accepted = expect_event(&b, KVF_NEIGHBOUR_ACCEPTED);
        uint32_t who[3];
        memcpy(who, accepted.payload, sizeof who);
        CHECK(who[1] == (uint32_t)child && who[2] == 1);
        uint32_t number = accepted.connection;
        bool message = false, closed = false, exited = false;
        while (!message || !closed || !exited) {
            event got = next_event(&b);
            CHECK(got.connection == number);
            if (got.kind == KVF_NEIGHBOUR_MESSAGE) {
                CHECK(!message && !closed && got.length == 4);
                message = true;
                if (round % 2 == 0) kill(child, SIGKILL);
            } else if (got.kind == KVF_NEIGHBOUR_CLOSED) closed = true;
            else if (got.kind == KVF_NEIGHBOUR_EXITED) exited = true;
        }
        CHECK(waitpid(child, NULL, 0) == child);
        CHECK(kvf_neighbour_forget(b.self, number) == KVF_OK);
    }
    close_side(&b);
    CHECK(open_descriptors() == before);
}

/* ---- closing under fire ---------------------------------------------------------------------------------------- */

typedef struct attacker {
    pthread_t thread;
    char name[64];
    int descriptor;
    uint32_t stop; /* atomic */
} attacker;

/* Connects again and again and sends messages with descriptors. */
static void *attack(void *argument) {
    attacker *self = argument;
    while (__atomic_load_n(&self->stop, __ATOMIC_ACQUIRE) == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        memcpy(address.sun_path + 1, self->name, strlen(self->name));
        int end = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (connect(end, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(self->name))) == 0) {
            for (int k = 0; k < 20; k++) {
                uint32_t packet[4] = {k % 4 ? 0 : 1, 1, 2, 3};
                struct iovec piece = {packet, sizeof packet};
                union {
                    struct cmsghdr align;
                    char room[CMSG_SPACE(sizeof(int))];
                } control;
                memset(&control, 0, sizeof control);
                struct msghdr head = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
                struct cmsghdr *rights = CMSG_FIRSTHDR(&head);
                rights->cmsg_level = SOL_SOCKET;
                rights->cmsg_type = SCM_RIGHTS;
                rights->cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(rights), &self->descriptor, sizeof(int));
                if (sendmsg(end, &head, MSG_NOSIGNAL) < 0) break;
            }
        }
        close(end);
    }
    return NULL;
}

static void under_fire(int rounds) {
    int before = open_descriptors();
    for (int round = 0; round < rounds; round++) {
        side b = open_side("b");
        attacker attackers[3];
        int descriptor = memory_file(4096, F_SEAL_SHRINK);
        for (int k = 0; k < 3; k++) {
            memcpy(attackers[k].name, b.name, sizeof b.name);
            attackers[k].descriptor = descriptor;
            attackers[k].stop = 0;
            CHECK(pthread_create(&attackers[k].thread, NULL, attack, &attackers[k]) == 0);
        }
        uint64_t taken = 0;
        for (int tries = 0; taken < 2000; tries++) {
            CHECK(tries < 100000);
            event got;
            double found[1];
            CHECK(kvf_neighbour_look(b.self, tries % 7 < 3, found) == KVF_OK);
            for (int turn = 0; turn < 100 && poll_event(&b, &got); turn++) {
                taken++;
                for (uint32_t k = 0; k < got.count; k++) close(got.descriptors[k]);
                if (got.kind == KVF_NEIGHBOUR_CLOSED) kvf_neighbour_forget(b.self, got.connection);
                if (got.kind == KVF_NEIGHBOUR_MESSAGE && random_word() % 3 == 0) {
                    double out[1];
                    kvf_neighbour_send(b.self, got.connection, (const uint8_t *)"x", 1, NULL, 0, out);
                }
            }
            pause_micros(100);
        }
        event left;
        while (b.at < b.filled && poll_event(&b, &left))
            for (uint32_t k = 0; k < left.count; k++) close(left.descriptors[k]);
        if (round % 2) close_side(&b);
        else {
            CHECK(close_client(&b.js, 1000) == 0);
            CHECK(kvf_neighbour_close(b.self) == KVF_E_CLOSED);
            free(b.buffer);
        }
        for (int k = 0; k < 3; k++) {
            __atomic_store_n(&attackers[k].stop, 1, __ATOMIC_RELEASE);
            CHECK(pthread_join(attackers[k].thread, NULL) == 0);
        }
        close(descriptor);
    }
    CHECK(open_descriptors() == before);
}

int main(int count, char **arguments) {
    int percent = count > 1 ? atoi(arguments[1]) : 100;
    signal(SIGPIPE, SIG_DFL);
    messages();
    printf("held messages\n");
    looking();
    printf("held looking\n");
    last_words();
    printf("held last words\n");
    descriptors();
    printf("held descriptors\n");
    refused_maps();
    printf("held refused maps\n");
    several_files();
    printf("held several files\n");
    refused_files();
    printf("held refused files\n");
    rings((uint32_t)percent + 100);
    printf("held rings\n");
    full_rings((uint32_t)percent + 100);
    printf("held full rings\n");
    hostile_rings(percent / 30 + 1);
    printf("held hostile rings\n");
    scribbled_rings(percent / 3 + 3);
    printf("held scribbled rings\n");
    strangers();
    printf("held strangers\n");
    exits(percent / 5 + 2);
    printf("held ends of processes\n");
    under_fire(percent / 10 + 2);
    printf("held closing under fire\n");
    return 0;
}
