/*
 * neighbour_hostile.h - neighbours that write nonsense into rings, tear records, claim what cannot be, never read: it costs
 * them the connection and nobody anything else.
 */
#ifndef KVF_NEIGHBOUR_HOSTILE_H
#define KVF_NEIGHBOUR_HOSTILE_H

#include "neighbour_object.h"
#include "neighbour_rings.h"

#define PACKET_KNOCK 2u
#define PACKET_RING 4u

/* ---- hostile ends ----------------------------------------------------------------------------------------------- */

/* A neighbour that speaks by hand: its socket, the ring that it writes to and the one that it should read from. */
typedef struct villain {
    int end;
    uint32_t number; /* of its connection at the other end */
    kvf_byte_ring out, in;
} villain;

static void send_packet(int end, uint32_t word, size_t more, const int *descriptor) {
    static uint8_t zeros[64];
    struct iovec pieces[2] = {{.iov_base = &word, .iov_len = sizeof word}, {.iov_base = zeros, .iov_len = more}};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr head = {.msg_iov = pieces, .msg_iovlen = more ? 2 : 1};
    if (descriptor) {
        head.msg_control = control.room;
        head.msg_controllen = sizeof control.room;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&head);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), descriptor, sizeof(int));
    }
    ssize_t sent = sendmsg(end, &head, MSG_NOSIGNAL);
    (void)sent; /* the other end may have broken off */
}

static void knock(const villain *who) { send_packet(who->end, PACKET_KNOCK, 0, NULL); }

/* The file of the other end's ring. */
static int receive_file(int end) {
    for (;;) {
        uint32_t word = 0;
        struct iovec piece = {&word, sizeof word};
        union {
            struct cmsghdr align;
            char room[CMSG_SPACE(sizeof(int))];
        } control;
        struct msghdr head = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
        CHECK(recvmsg(end, &head, MSG_CMSG_CLOEXEC) == sizeof word);
        if (word == PACKET_KNOCK) continue;
        CHECK(word == PACKET_RING && CMSG_FIRSTHDR(&head));
        int descriptor;
        memcpy(&descriptor, CMSG_DATA(CMSG_FIRSTHDR(&head)), sizeof descriptor);
        return descriptor;
    }
}

static villain connect_villain(side *to, bool let_in) {
    villain who = {.end = raw_socket(to->name)};
    who.number = expect_event(to, KVF_NEIGHBOUR_ACCEPTED).connection;
    if (let_in) CHECK(kvf_neighbour_ring(to->self, who.number, 0) == KVF_OK);
    return who;
}

static villain ringed_villain(side *to) {
    villain who = connect_villain(to, true);
    int descriptor;
    CHECK(kvf_byte_ring_make(&who.out, &descriptor) == KVF_OK);
    send_packet(who.end, PACKET_RING, 0, &descriptor);
    close(descriptor);
    descriptor = receive_file(who.end);
    CHECK(kvf_byte_ring_open(&who.in, descriptor) == KVF_OK);
    close(descriptor);
    return who;
}

static void drop_villain(villain *who) {
    close(who->end);
    kvf_byte_ring_close(&who->out);
    kvf_byte_ring_close(&who->in);
}

static kvf_byte_ring_words *shared(kvf_byte_ring *ring) { return (kvf_byte_ring_words *)(void *)ring->memory; }

/* Writes the head of a record, and how far the ring is said to be written. */
static void put(villain *who, uint64_t length, uint64_t kind, uint64_t head) {
    *(uint64_t *)(void *)(who->out.memory + KVF_BYTE_RING_FIRST + who->out.own % KVF_BYTE_RING_BYTES) = length | kind << 32;
    __atomic_store_n(&shared(&who->out)->head, head, __ATOMIC_SEQ_CST);
    knock(who);
}

static void say_one(villain *who) {
    size_t sent = 0;
    CHECK(kvf_byte_ring_write(&who->out, false, (const uint8_t *)"good", 4, &sent) == KVF_LINK_MORE);
    knock(who);
}

static void expect_broken(side *at, villain *who, const char *why) {
    event got;
    do got = next_event(at);
    while (got.kind == KVF_NEIGHBOUR_MESSAGE && got.connection == who->number);
    CHECK(got.kind == KVF_NEIGHBOUR_CLOSED && got.connection == who->number);
    if (got.length != strlen(why) || memcmp(got.payload, why, got.length) != 0) fprintf(stderr, "%.*s instead of %s\n", (int)got.length, got.payload, why);
    CHECK(got.length == strlen(why) && memcmp(got.payload, why, got.length) == 0);
    CHECK(kvf_neighbour_forget(at->self, who->number) == KVF_OK);
    drop_villain(who);
}

static void forged_records(side *b) {
    const uint64_t all = KVF_BYTE_RING_BYTES;
    const struct {
        uint64_t length, kind, head;
    } records[] = {
        {0, 0, 4}, {0, 0, all + 8}, {0, 0, UINT64_MAX - 7}, {9, 0, 16}, {UINT32_MAX, 0, all}, {all, 0, all}, {8, 3, 16}, {0, UINT32_MAX, 8}, {0, 1, 8}, {8, 2, 16},
    };
    for (int after = 0; after < 2; after++)
        for (size_t k = 0; k < sizeof records / sizeof *records; k++) {
            villain who = ringed_villain(b);
            if (after) {
                say_one(&who);
                CHECK(expect_event(b, KVF_NEIGHBOUR_MESSAGE).length == 4);
            }
            put(&who, records[k].length, records[k].kind, who.out.own + records[k].head);
            expect_broken(b, &who, "what arrived is no record");
        }
    /* A message without end, in records as long as there can be. */
    villain who = ringed_villain(b);
    event got;
    uint32_t turns = 0;
    for (bool ended = false; !ended; turns++) {
        CHECK(turns < 100000);
        if (__atomic_load_n(&shared(&who.out)->tail, __ATOMIC_SEQ_CST) == who.out.own) {
            put(&who, all - 8, KVF_RECORD_MORE, who.out.own + all);
            who.out.own += all;
        } else pause_micros(100);
        if (!poll_event(b, &got)) continue;
        CHECK(got.kind == KVF_NEIGHBOUR_CLOSED && memcmp(got.payload, "what arrives is longer than any message", got.length) == 0);
        ended = true;
    }
    CHECK(who.out.own >= KVF_NEIGHBOUR_MESSAGE_BYTES && who.out.own <= KVF_NEIGHBOUR_MESSAGE_BYTES + 4 * all);
    CHECK(kvf_neighbour_forget(b->self, who.number) == KVF_OK);
    drop_villain(&who);
}

static void forged_order(side *b) {
    int descriptor = memory_file(4096, F_SEAL_SHRINK);
    villain who = ringed_villain(b);
    put(&who, 0, KVF_RECORD_SOCKET, 8);
    expect_broken(b, &who, "what arrived stands for a message that did not");
    who = ringed_villain(b); /* only a part of it */
    send_packet(who.end, 1, 8, &descriptor);
    put(&who, 0, KVF_RECORD_SOCKET, 8);
    expect_broken(b, &who, "what arrived stands for a message that did not");
    who = ringed_villain(b); /* in the middle of another one */
    send_packet(who.end, 0, 8, &descriptor);
    put(&who, 8, KVF_RECORD_MORE, 16);
    who.out.own = 16;
    put(&who, 0, KVF_RECORD_SOCKET, 24);
    expect_broken(b, &who, "what arrived is no record");
    who = ringed_villain(b); /* without a record */
    send_packet(who.end, 0, 8, &descriptor);
    send_packet(who.end, 0, 8, &descriptor);
    expect_broken(b, &who, "what arrived is due before what was sent");
    who = ringed_villain(b); /* and the connection ends with it */
    send_packet(who.end, 0, 8, &descriptor);
    shutdown(who.end, SHUT_RDWR);
    expect_broken(b, &who, "the other end closed");
    close(descriptor);
}

static void forged_files(side *b) {
    static const char refusal[] = "what it sent is no ring", packet[] = "what arrived is no packet";
    int good = memory_file(KVF_BYTE_RING_FILE, F_SEAL_SHRINK), shrunk = memory_file(KVF_BYTE_RING_FILE, 0), pipes[2];
    CHECK(pipe2(pipes, O_CLOEXEC) == 0 && ftruncate(shrunk, 4096) == 0 && fcntl(shrunk, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    int files[] = {pipes[0], shrunk, memory_file(KVF_BYTE_RING_FILE, 0), memory_file(KVF_BYTE_RING_FILE + 4096, F_SEAL_SHRINK),
                   memory_file(KVF_BYTE_RING_FILE, F_SEAL_SHRINK | F_SEAL_WRITE), open("/proc/self/exe", O_RDONLY | O_CLOEXEC)};
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        villain who = connect_villain(b, true);
        send_packet(who.end, PACKET_RING, 0, &files[k]);
        expect_broken(b, &who, refusal);
        close(files[k]);
    }
    close(pipes[1]);
    for (int way = 0; way < 5; way++) {
        villain who = way == 1 ? ringed_villain(b) : connect_villain(b, way > 1);
        if (way < 2) send_packet(who.end, PACKET_RING, 0, &good);  /* before it was let in; a second one */
        if (way == 2) send_packet(who.end, PACKET_RING, 8, &good); /* with bytes */
        if (way == 3) send_packet(who.end, PACKET_RING, 0, NULL);
        if (way == 4) knock(&who); /* without a ring */
        expect_broken(b, &who, packet);
    }
    villain who = ringed_villain(b);
    send_packet(who.end, PACKET_KNOCK, 0, &good);
    expect_broken(b, &who, packet);
    close(good);
}

/* A reader that claims what it cannot have read, or reads nothing. */
static void forged_readers(side *b) {
    double out[1];
    uint8_t *bytes = calloc(1, KVF_BYTE_RING_BYTES);
    CHECK(bytes);
    for (int way = 0; way < 4; way++) {
        villain who = ringed_villain(b);
        CHECK(kvf_neighbour_send(b->self, who.number, bytes, KVF_BYTE_RING_BYTES - 16, NULL, 0, out) == KVF_OK && out[0] == 0);
        if (way < 3) {
            const uint64_t tails[] = {4, KVF_BYTE_RING_BYTES, UINT64_MAX - 7};
            __atomic_store_n(&shared(&who.in)->tail, tails[way], __ATOMIC_SEQ_CST);
            CHECK(kvf_neighbour_send(b->self, who.number, bytes, 1000, NULL, 0, out) == KVF_E_PEER);
            expect_broken(b, &who, "the other end is gone");
        } else {
            for (int k = 0; k < 100; k++) CHECK(kvf_neighbour_send(b->self, who.number, bytes, 65536, NULL, 0, out) == KVF_OK);
            CHECK(out[0] >= 99 * 65536.0);
            for (int k = 0; k < 3000; k++) knock(&who);
            say_one(&who);
            CHECK(expect_event(b, KVF_NEIGHBOUR_MESSAGE).length == 4);
            shutdown(who.end, SHUT_RDWR);
            expect_broken(b, &who, "the other end closed");
        }
    }
    free(bytes);
}

/* A reader that sleeps says so, looks once more before, and is not to be woken while it looks by itself. */
static void readers_that_sleep(side *b) {
    villain who = ringed_villain(b);
    kvf_byte_ring_words *words = shared(&who.out);
    double found[1];
    event got;
    for (int round = 0; round < 3; round++) {
        for (int tries = 0; __atomic_load_n(&words->reader_waits, __ATOMIC_SEQ_CST) != 1; tries++) {
            CHECK(tries < 10000);
            pause_micros(100);
        }
        CHECK(kvf_neighbour_look(b->self, 1, found) == KVF_OK && found[0] == 0);
        CHECK(__atomic_load_n(&words->reader_waits, __ATOMIC_SEQ_CST) == 0);
        for (int unseen = 0; unseen < 2; unseen++) {
            size_t sent = 0; /* nobody knocks */
            CHECK(kvf_byte_ring_write(&who.out, false, (const uint8_t *)"good", 4, &sent) == KVF_LINK_MORE);
            pause_micros(1000);
            CHECK(!poll_event(b, &got));
            CHECK(kvf_neighbour_look(b->self, !unseen, found) == KVF_OK && (unseen || found[0] > 0));
            CHECK(expect_event(b, KVF_NEIGHBOUR_MESSAGE).length == 4);
        }
    }
    shutdown(who.end, SHUT_RDWR);
    expect_broken(b, &who, "the other end closed");
}

/* What is written between a look at the ring and the end of the socket is heard. */
static void written_last(side *b) {
    villain who = ringed_villain(b);
    double found[1];
    CHECK(kvf_neighbour_look(b->self, 1, found) == KVF_OK && found[0] == 0); /* the thread sleeps on */
    kvf_neighbour *self = kvf_neighbour_from(b->self);
    CHECK(self && pthread_mutex_lock(&self->lock) == 0);
    kvf_connection *at = kvf_connection_find(self, who.number);
    CHECK(at);
    size_t sent = 0;
    kvf_connection_read(self, at);
    CHECK(kvf_byte_ring_write(&who.out, false, (const uint8_t *)"last", 4, &sent) == KVF_LINK_MORE);
    shutdown(who.end, SHUT_RDWR);
    CHECK(!kvf_connection_receive_packet(self, at));
    pthread_mutex_unlock(&self->lock);
    CHECK(memcmp(expect_event(b, KVF_NEIGHBOUR_MESSAGE).payload, "last", 4) == 0);
    expect_broken(b, &who, "the other end closed");
    CHECK(kvf_neighbour_look(b->self, 0, found) == KVF_OK);
}

/* What was written whole arrives, and what its writer died over does not. */
static void torn_records(side *b) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        villain who = {.end = raw_socket(b->name)};
        char go;
        int descriptor;
        if (kvf_byte_ring_make(&who.out, &descriptor) != KVF_OK || recv(who.end, &go, 1, 0) < 1) _exit(1);
        send_packet(who.end, PACKET_RING, 0, &descriptor);
        for (int k = 0; k < 3; k++) {
            size_t sent = 0;
            kvf_byte_ring_write(&who.out, false, (const uint8_t *)"whole", 5, &sent);
        }
        memcpy(who.out.memory + KVF_BYTE_RING_FIRST + who.out.own + 8, "torn", 4);
        raise(SIGKILL);
    }
    uint32_t number = expect_event(b, KVF_NEIGHBOUR_ACCEPTED).connection;
    double out[1];
    CHECK(kvf_neighbour_ring(b->self, number, 0) == KVF_OK);
    CHECK(kvf_neighbour_send(b->self, number, (const uint8_t *)"go", 2, NULL, 0, out) == KVF_OK);
    int whole = 0, ends = 0;
    while (ends < 2) {
        event got = next_event(b);
        CHECK(got.connection == number);
        if (got.kind == KVF_NEIGHBOUR_MESSAGE) CHECK(ends == 0 && got.length == 5 && memcmp(got.payload, "whole", 5) == 0 && ++whole);
        else ends++;
    }
    CHECK(whole == 3 && waitpid(child, NULL, 0) == child);
    CHECK(kvf_neighbour_forget(b->self, number) == KVF_OK);
}

static void hostile_rings(int rounds) {
    const int before = open_descriptors(), maps = mapped_files();
    side b = open_side("b");
    for (int round = 0; round < rounds; round++) {
        forged_records(&b);
        forged_order(&b);
        forged_files(&b);
        forged_readers(&b);
        torn_records(&b);
        readers_that_sleep(&b);
        written_last(&b);
        CHECK(mapped_files() == maps);
    }
    close_side(&b);
    CHECK(open_descriptors() == before && mapped_files() == maps);
}

#endif
