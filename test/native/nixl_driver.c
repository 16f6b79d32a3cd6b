/*
 * nixl_driver.c - kvferry's NIXL part between two processes over a real libnixl_capi.so.
 *
 *   nixl_driver LIBRARY                 named cases, a line each: `ok NAME | facts` or `not ok NAME | why`
 *   nixl_driver LIBRARY tcp             the cases that need a transport which the peer takes part in (set UCX_TLS)
 *   nixl_driver LIBRARY bench [CASE [BATCH [DEPTH]]]    figures beside bench/native/nixl_anchor.c, the same work
 *
 * Peers are forked before anything is loaded and wait until they are wanted. Their memory is a shared mapping, so that both
 * sides can look at it; NIXL knows nothing of that and moves the bytes between the processes.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nixl_jobs.h"

#define MIB ((size_t)1 << 20)
#define REGION (256 * MIB)
#define CHUNK 16384u
#define CHUNKS 10000u

static const char *library;
static unsigned char *mine;  /* this process's region, and a shadow behind it */
static unsigned char *peers; /* the peer's region */
static kvf_word agent;
static pid_t peer_pid;
static char peer_name[64];

/* ---- the peer --------------------------------------------------------------------------------------------------- */

static void write_blob(int fd, const void *data, size_t bytes) {
    uint64_t head = bytes;
    if (write(fd, &head, 8) != 8 || write(fd, data, bytes) != (ssize_t)bytes) _exit(2);
}

static uint8_t *read_blob(int fd, size_t *bytes) {
    uint64_t head;
    if (read(fd, &head, 8) != 8) _exit(3);
    uint8_t *data = malloc(head);
    for (size_t at = 0; data && at < head;) {
        ssize_t n = read(fd, data + at, head - at);
        if (n <= 0) _exit(4);
        at += (size_t)n;
    }
    *bytes = head;
    return data;
}

static void load_library(void) {
    outcome o = await(kvf_nixl_load_job(context, 0, library), 0);
    if (o.status != KVF_OK) {
        fprintf(stderr, "load: %d %s\n", o.status, o.text);
        exit(1);
    }
}

/* Serves its memory; answers "verify SEED BYTES" with right or wrong and "echo ..." with the same. */
static void serve(const char *name, int in, int out) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    size_t length;
    free(read_blob(in, &length));
    memset(peers, 1, REGION);
    open_context();
    load_library();
    kvf_word own = make_agent(name, 1, "");
    register_memory(own, peers, REGION);
    uint8_t *blob = export_of(own, &length);
    write_blob(out, blob, length);
    free(blob);
    blob = read_blob(in, &length);
    outcome o = await(kvf_nixl_load_peer_job(context, 0, own, blob, length, "driver"), 0);
    if (o.status != KVF_OK) _exit(5);
    write_blob(out, "ready", 5);
    kvf_nixl_listen(own, 1);
    static char from[256], text[1 << 17];
    for (;;) {
        long got = next_notification(own, from, text, sizeof text, 3600);
        unsigned long long seed, bytes;
        const char *answer = text;
        if (got == 0) answer = "empty", got = 5;
        if (sscanf(text, "verify %llu %llu", &seed, &bytes) == 2) {
            answer = "right";
            for (size_t i = 0; i + 8 <= bytes; i += 8) {
                uint64_t word = mix(seed * 0x100000001b3ull + i);
                if (memcmp(peers + i, &word, 8) != 0) answer = "wrong";
            }
            got = 5;
        }
        if (strcmp(text, "quit") == 0) break;
        await(kvf_nixl_notify_job(context, 1, own, from, (const uint8_t *)answer, (uint32_t)got), 1);
    }
    o = await(kvf_nixl_agent_close_job(context, 0, own), 0);
    double left;
    kvf_context_close(context, 1000, &left);
    _exit(o.status == KVF_OK && o.value == 0 && left == 0 ? 0 : 6);
}

/* ---- this side -------------------------------------------------------------------------------------------------- */

typedef struct spare {
    pid_t pid;
    int in;
    int out;
} spare;

static spare spares[8];
static uint32_t used;
static int peer_in, peer_out;

static void fork_spares(uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        int down[2], up[2];
        char name[64];
        if (pipe(down) != 0 || pipe(up) != 0) abort();
        snprintf(name, sizeof name, "peer-%u", i);
        spares[i] = (spare){fork(), up[0], down[1]};
        if (spares[i].pid == 0) {
            close(down[1]);
            close(up[0]);
            for (uint32_t k = 0; k < i; k++) close(spares[k].in), close(spares[k].out);
            serve(name, down[0], up[1]);
        }
        close(down[0]);
        close(up[1]);
    }
}

static void next_peer(void) {
    snprintf(peer_name, sizeof peer_name, "peer-%u", used);
    peer_pid = spares[used].pid;
    peer_in = spares[used].in;
    peer_out = spares[used].out;
    used++;
    write_blob(peer_out, "go", 2);
}

/* Exchanges metadata with the peer and waits until it is ready. */
static outcome meet(void) {
    size_t length;
    uint8_t *blob = read_blob(peer_in, &length);
    outcome o = await(kvf_nixl_load_peer_job(context, 0, agent, blob, length, peer_name), 0);
    free(blob);
    blob = export_of(agent, &length);
    write_blob(peer_out, blob, length);
    free(blob);
    free(read_blob(peer_in, &length));
    return o;
}

static outcome move(uint32_t operation, const void *src, const void *dst, const uint32_t *a, const uint32_t *b,
                    uint32_t pairs, double row, const char *notification) {
    kvf_word words;
    double *hop = rows_hop((uint64_t)(uintptr_t)src, (uint64_t)(uintptr_t)dst, a, b, pairs, row, &words);
    outcome o = await(kvf_nixl_transfer_job(context, 2, agent, peer_name, operation, hop, words, 0, 0,
                                            (const uint8_t *)notification, notification ? (uint32_t)strlen(notification) : 0,
                                            notification != NULL),
                      2);
    free(hop);
    return o;
}

static bool hears(const char *expected) {
    static char from[256], text[1 << 17];
    long got = next_notification(agent, from, text, sizeof text, 10);
    return got == (long)strlen(expected) && strcmp(text, expected) == 0 && strcmp(from, peer_name) == 0;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

static void case_push(void) {
    paint(mine, REGION, 11);
    memset(peers, 0xee, REGION);
    char text[64];
    snprintf(text, sizeof text, "verify 11 %zu", REGION);
    outcome o = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 1, (double)REGION, text);
    bool heard = hears("right");
    verdict("push: 256 MiB are complete when their notification arrives",
            o.status == KVF_OK && o.flags == 0 && o.value == (double)REGION && heard && memcmp(mine, peers, REGION) == 0,
            "status %d %s, heard %d, %.2f GB/s", o.status, o.text, heard, (double)REGION / o.micros / 1e3);
}

static void case_pull(void) {
    paint(peers, REGION, 12);
    memset(mine, 0xee, REGION);
    outcome o = move(KVF_NIXL_READ, peers, mine, NULL, NULL, 1, (double)REGION, NULL);
    verdict("pull: 256 MiB arrive whole", o.status == KVF_OK && memcmp(mine, peers, REGION) == 0,
            "status %d %s, %.2f GB/s", o.status, o.text, (double)REGION / o.micros / 1e3);
}

/* Every other slot of the destination stays as it was. */
static void case_scattered(uint32_t operation, const char *name) {
    unsigned char *src = operation == KVF_NIXL_WRITE ? mine : peers;
    unsigned char *dst = operation == KVF_NIXL_WRITE ? peers : mine;
    unsigned char *shadow = mine + REGION;
    uint32_t *a = permutation(CHUNKS, 1), *b = permutation(CHUNKS, 2);
    paint(src, REGION, 13);
    memset(dst, 0xee, REGION);
    memset(shadow, 0xee, REGION);
    for (uint32_t i = 0; i < CHUNKS; i++) memcpy(shadow + (size_t)b[i] * CHUNK, src + (size_t)a[i] * CHUNK, CHUNK);
    outcome o = move(operation, src, dst, a, b, CHUNKS, CHUNK, NULL);
    bool same = memcmp(shadow, dst, REGION) == 0;
    verdict(name, o.status == KVF_OK && same && progress_programs(2) == 1 && progress_bytes(2) == (double)CHUNKS * CHUNK,
            "status %d %s, same %d, %.2f GB/s", o.status, o.text, same, (double)CHUNKS * CHUNK / o.micros / 1e3);
    free(a);
    free(b);
}

static void case_notifications(void) {
    outcome o = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 0, 0, "echo without data");
    bool heard = hears("echo without data");
    verdict("notification: a hop without bytes sends one", o.status == KVF_OK && heard, "status %d %s", o.status, o.text);
    o = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 1, 4096, "");
    heard = hears("empty");
    verdict("notification: an empty one is delivered", o.status == KVF_OK && heard, "status %d %s", o.status, o.text);
    static char large[60001];
    memset(large, 'x', sizeof large - 1);
    memcpy(large, "echo", 4);
    o = await(kvf_nixl_notify_job(context, 3, agent, peer_name, (const uint8_t *)large, sizeof large - 1), 3);
    heard = hears(large);
    verdict("notification: 60,000 bytes come back whole", o.status == KVF_OK && heard, "status %d %s", o.status, o.text);
    uint32_t wrong = 0;
    char text[32];
    for (uint32_t i = 0; i < 500; i++) {
        snprintf(text, sizeof text, "echo %u", i);
        o = await(kvf_nixl_notify_job(context, 3, agent, peer_name, (const uint8_t *)text, (uint32_t)strlen(text)), 3);
        wrong += o.status != KVF_OK;
    }
    for (uint32_t i = 0; i < 500; i++) {
        snprintf(text, sizeof text, "echo %u", i);
        wrong += !hears(text);
    }
    verdict("notification: 500 keep their order", wrong == 0, "%u wrong", wrong);
}

static void case_refusals(void) {
    unsigned char *foreign = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    outcome o = move(KVF_NIXL_WRITE, foreign, peers, NULL, NULL, 1, (double)MIB, NULL);
    verdict("refused: memory that was not registered never starts", o.status == KVF_E_NIXL && o.flags == 0, "status %d, %s",
            o.status, o.text);
    munmap(foreign, MIB);
    char name[64];
    memcpy(name, peer_name, sizeof name);
    strcpy(peer_name, "nobody");
    o = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 1, (double)MIB, NULL);
    memcpy(peer_name, name, sizeof name);
    verdict("refused: an unknown peer never starts", o.status == KVF_E_PEER && o.flags == 0, "status %d, %s", o.status,
            o.text);
    o = await(kvf_nixl_notify_job(context, 3, agent, "nobody", (const uint8_t *)"x", 1), 3);
    verdict("refused: a notification to an unknown peer", o.status == KVF_E_PEER, "status %d, %s", o.status, o.text);
    uint8_t garbage[64] = "garbage";
    o = await(kvf_nixl_load_peer_job(context, 3, agent, garbage, sizeof garbage, "x"), 3);
    verdict("refused: garbage as metadata", o.status == KVF_E_NIXL, "status %d, %s", o.status, o.text);
    double region[3] = {(double)(uintptr_t)foreign, MIB, 0};
    o = await(kvf_nixl_deregister_job(context, 3, agent, KVF_MEM_DRAM, region, 1), 3);
    verdict("refused: deregistering what is not registered", o.status == KVF_E_NIXL, "status %d, %s", o.status, o.text);
}

static void case_cancel(void) {
    kvf_word words;
    double *hop = rows_hop((uintptr_t)mine, (uintptr_t)peers, NULL, NULL, 1, (double)REGION, &words);
    int32_t started =
        kvf_nixl_transfer_job(context, 2, agent, peer_name, KVF_NIXL_WRITE, hop, words, MIB, 0, NULL, 0, 0);
    while (started == KVF_OK && progress_bytes(2) < 2.0 * (double)MIB) nap(10e-6);
    kvf_slot_cancel(context, 2);
    outcome o = await(started, 2);
    double moved = progress_bytes(2);
    verdict("cancel: a running transfer stops between pieces, touched and not in doubt",
            o.status == KVF_E_CANCELLED && o.flags == KVF_DONE_TOUCHED && moved < (double)REGION && moved >= 2.0 * (double)MIB,
            "status %d, flags %u, %.0f of %zu MiB", o.status, o.flags, moved / (double)MIB, REGION / MIB);
    free(hop);
}

static void case_forget(void) {
    outcome o = await(kvf_nixl_forget_peer_job(context, 3, agent, peer_name), 3);
    outcome after = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 1, (double)MIB, NULL);
    outcome again = await(kvf_nixl_forget_peer_job(context, 3, agent, peer_name), 3);
    verdict("forget: the peer is gone and forgetting twice is harmless",
            o.status == KVF_OK && o.value == 1 && after.status == KVF_E_PEER && after.flags == 0 && again.status == KVF_OK &&
                again.value == 0,
            "status %d %s, then %d %s, then %d", o.status, o.text, after.status, after.text, again.status);
}

static double cpu_seconds(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)use.ru_utime.tv_sec + (double)use.ru_stime.tv_sec +
           ((double)use.ru_utime.tv_usec + (double)use.ru_stime.tv_usec) * 1e-6;
}

static void case_idle(void) {
    kvf_nixl_listen(agent, 0);
    nap(0.2);
    double cpu = cpu_seconds(), begin = seconds();
    nap(1.5);
    double share = (cpu_seconds() - cpu) / (seconds() - begin);
    verdict("idle: an agent with nothing to do leaves the core alone", share < 0.1, "%.2f %% of a core", share * 100);
    kvf_nixl_listen(agent, 1);
}

/* SIGKILL in the middle: the transfer ends, says that the peer is gone, and a new peer is as good as the old one. */
static void case_kill(uint32_t round) {
    char name[96];
    kvf_word words;
    bool pull = round % 2;
    double *hop = rows_hop((uintptr_t)(pull ? peers : mine), (uintptr_t)(pull ? mine : peers), NULL, NULL, 1, (double)REGION,
                           &words);
    int32_t started = kvf_nixl_transfer_job(context, 2, agent, peer_name, pull ? KVF_NIXL_READ : KVF_NIXL_WRITE, hop, words,
                                            0, 0, (const uint8_t *)"x", 1, 1);
    double mark = (double)(round % 5) * 3e-3;
    nap(mark);
    kill(peer_pid, SIGKILL);
    waitpid(peer_pid, NULL, 0);
    double begin = seconds();
    outcome o = await(started, 2);
    double took = seconds() - begin;
    outcome after = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 1, (double)MIB, NULL);
    outcome forgot = await(kvf_nixl_forget_peer_job(context, 3, agent, peer_name), 3);
    snprintf(name, sizeof name, "kill %u: a transfer to a killed peer ends and a new peer is met", round);
    close(peer_in);
    close(peer_out);
    next_peer();
    outcome met = meet();
    outcome moved = move(KVF_NIXL_WRITE, mine, peers, NULL, NULL, 1, (double)MIB, "echo again");
    bool heard = hears("echo again");
    bool ended = o.status == KVF_OK || (o.status == KVF_E_PEER && (o.flags == 0 || (o.flags & KVF_DONE_TOUCHED)));
    verdict(name,
            ended && after.status == KVF_E_PEER && forgot.status == KVF_OK && met.status == KVF_OK &&
                moved.status == KVF_OK && heard && memcmp(mine, peers, MIB) == 0,
            "%d (flags %u) after %.0f ms: %s; then %d %s; forgot %d, met %d, moved %d", o.status, o.flags, took * 1e3, o.text,
            after.status, after.text, forgot.status, met.status, moved.status);
    free(hop);
}

/* A stopped peer over a transport that it takes part in: nothing ends, so the transfer is given up. */
static void case_stopped(void) {
    kvf_word words;
    double *hop = rows_hop((uintptr_t)mine, (uintptr_t)peers, NULL, NULL, 1, (double)REGION, &words);
    kill(peer_pid, SIGSTOP);
    int32_t started = kvf_nixl_transfer_job(context, 2, agent, peer_name, KVF_NIXL_WRITE, hop, words, 0, 0, NULL, 0, 0);
    nap(0.3);
    kvf_slot_cancel(context, 2);
    outcome o = await_for(started, 2, 0.3);
    int32_t gave = kvf_nixl_abandon(context, 2);
    /* The one lane is stuck; its replacement serves this agent's own memory. */
    double *own = rows_hop((uintptr_t)mine, (uintptr_t)(mine + REGION), NULL, NULL, 1, (double)MIB, &words);
    outcome self = await(kvf_nixl_transfer_job(context, 4, agent, "driver", KVF_NIXL_WRITE, own, words, 0, 0, NULL, 0, 0), 4);
    verdict("stopped: a lane that is given up is replaced",
            o.status == 1000 && gave == KVF_OK && self.status == KVF_OK && memcmp(mine, mine + REGION, MIB) == 0,
            "status %d, abandon %d, other transfer %d %s", o.status, gave, self.status, self.text);
    kill(peer_pid, SIGCONT);
    outcome late = await(KVF_OK, 2);
    verdict("stopped: what was given up still ends in one completion",
            late.status == KVF_E_CANCELLED && (late.flags & KVF_DONE_TOUCHED), "status %d, flags %u: %s", late.status,
            late.flags, late.text);
    free(hop);
    free(own);
}

/* Closing with a transfer that cannot end: bounded, in doubt, and the agent goes all the same. */
static void case_close_stopped(void) {
    kvf_word words;
    double *hop = rows_hop((uintptr_t)mine, (uintptr_t)peers, NULL, NULL, 1, (double)REGION, &words);
    kill(peer_pid, SIGSTOP);
    int32_t started = kvf_nixl_transfer_job(context, 2, agent, peer_name, KVF_NIXL_WRITE, hop, words, 0, 0, NULL, 0, 0);
    nap(0.2);
    double begin = seconds();
    outcome closed = await(kvf_nixl_agent_close_job(context, 3, agent), 3);
    double took = seconds() - begin;
    outcome o = await_for(started, 2, 5);
    verdict("close: a transfer that cannot end does not hold it up",
            closed.status == KVF_OK && o.status == KVF_E_CLOSED && (o.flags & KVF_DONE_IN_DOUBT),
            "closed %d (%.0f lanes left) after %.0f ms; transfer %d, flags %u: %s", closed.status, closed.value, took * 1e3,
            o.status, o.flags, o.text);
    kill(peer_pid, SIGKILL);
    free(hop);
}

static void case_close(void) {
    await(kvf_nixl_notify_job(context, 3, agent, peer_name, (const uint8_t *)"quit", 4), 3);
    int ended = 0;
    waitpid(peer_pid, &ended, 0);
    outcome o = await(kvf_nixl_agent_close_job(context, 3, agent), 3);
    double out[3];
    int32_t taken = kvf_nixl_take_notifications(agent, (uint8_t *)out, 0, out);
    int32_t second = kvf_nixl_agent_close_job(context, 3, agent);
    verdict("close: both agents end and their words are refused afterwards",
            WIFEXITED(ended) && WEXITSTATUS(ended) == 0 && o.status == KVF_OK && o.value == 0 && taken == KVF_E_CLOSED &&
                second == KVF_E_CLOSED,
            "peer %d, close %d with %.0f left, then %d and %d", ended, o.status, o.value, taken, second);
}

/* ---- bench ------------------------------------------------------------------------------------------------------ */

typedef struct shape {
    const char *id;
    uint32_t operation;
    double row;
    uint32_t pairs;
    bool scattered;
} shape;

static const shape shapes[] = {
    {"write.1m", 1, 1 << 20, 1, false},   {"write.16m", 1, 16 << 20, 1, false},   {"write.64m", 1, 64 << 20, 1, false},
    {"write.256m", 1, 256 << 20, 1, false}, {"read.1m", 0, 1 << 20, 1, false},    {"read.16m", 0, 16 << 20, 1, false},
    {"read.64m", 0, 64 << 20, 1, false},  {"read.256m", 0, 256 << 20, 1, false},  {"scatter.16k", 1, CHUNK, CHUNKS, true},
    {"contiguous.16k", 1, CHUNK, CHUNKS, false},
};

/* Begins one transfer of a shape in slot 8 + number % depth. */
static int32_t begin_one(const shape *sh, const uint32_t *a, const uint32_t *b, size_t number, uint32_t depth) {
    size_t whole = (size_t)(sh->row * sh->pairs), offset = number * whole % REGION;
    if (offset + whole > REGION) offset = 0;
    unsigned char *src = (sh->operation ? mine : peers) + offset, *dst = (sh->operation ? peers : mine) + offset;
    kvf_word words;
    double *hop = rows_hop((uintptr_t)src, (uintptr_t)dst, sh->scattered ? a : NULL, sh->scattered ? b : NULL, sh->pairs,
                           sh->row, &words);
    int32_t started = kvf_nixl_transfer_job(context, 8 + (uint32_t)(number % depth), agent, peer_name, sh->operation, hop,
                                            words, 0, 0, NULL, 0, 0);
    free(hop);
    return started;
}

/* Samples of `batch` transfers, at most `depth` at once: the anchor's protocol. */
static void bench(const char *only, uint32_t batch, uint32_t depth) {
    uint32_t *a = permutation(CHUNKS, 1), *b = permutation(CHUNKS, 2);
    size_t turn = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const shape *sh = &shapes[s];
        if (only && strcmp(only, sh->id) != 0) continue;
        printf("{\"id\":\"%s\",\"bytes\":%.0f,\"batch\":%u,\"depth\":%u,\"seconds\":[", sh->id, sh->row * sh->pairs, batch, depth);
        for (int i = -3; i < 20; i++) {
            double begin = seconds();
            int32_t started[16];
            for (uint32_t k = 0; k < batch + depth; k++) {
                if (k >= depth && k - depth < batch) {
                    size_t number = turn + k - depth;
                    outcome o = await(started[number % depth], 8 + (uint32_t)(number % depth));
                    if (o.status != KVF_OK) fprintf(stderr, "%s: %d %s\n", sh->id, o.status, o.text);
                }
                if (k < batch) started[(turn + k) % depth] = begin_one(sh, a, b, turn + k, depth);
            }
            turn += batch;
            if (i >= 0) printf("%s%.9f", i ? "," : "", seconds() - begin);
        }
        printf("]}\n");
        fflush(stdout);
    }
    free(a);
    free(b);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: nixl_driver LIBRARY [tcp | bench [CASE [BATCH [DEPTH]]]]\n");
        return 2;
    }
    library = argv[1];
    const char *mode = argc > 2 ? argv[2] : "";
    mine = mmap(NULL, 2 * REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* For figures the peer has memory of its own: pages of a shared mapping are small, and pinning them slow. */
    int sharing = strcmp(mode, "bench") == 0 ? MAP_PRIVATE : MAP_SHARED;
    peers = mmap(NULL, REGION, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
    if (mine == MAP_FAILED || peers == MAP_FAILED) return 2;
    madvise(mine, 2 * REGION, MADV_HUGEPAGE);
    madvise(peers, REGION, MADV_HUGEPAGE);
    fork_spares(strcmp(mode, "bench") == 0 ? 1 : 6);
    next_peer();
    open_context();
    load_library();
    const char *lanes = getenv("LANES");
    agent = make_agent("driver", lanes ? (uint32_t)atoi(lanes) : strcmp(mode, "tcp") == 0 ? 1 : 2, "");
    outcome o = register_memory(agent, mine, 2.0 * (double)REGION);
    if (o.status != KVF_OK) fprintf(stderr, "register: %d %s\n", o.status, o.text);
    o = meet();
    if (o.status != KVF_OK) fprintf(stderr, "meet: %d %s\n", o.status, o.text);
    kvf_nixl_listen(agent, 1);
    memset(mine, 1, 2 * REGION);
    memset(peers, 1, REGION);
    if (strcmp(mode, "bench") == 0) {
        uint32_t batch = argc > 4 ? (uint32_t)atoi(argv[4]) : 1, depth = argc > 5 ? (uint32_t)atoi(argv[5]) : 1;
        kvf_nixl_listen(agent, 0);
        bench(argc > 3 ? argv[3] : NULL, batch < 1 ? 1 : batch, depth < 1 ? 1 : depth > 16 ? 16 : depth);
        case_close();
    } else if (strcmp(mode, "tcp") == 0) {
        case_push();
        case_scattered(KVF_NIXL_WRITE, "push: 10,000 scattered chunks, the bytes between them untouched");
        case_cancel();
        case_stopped();
        for (uint32_t i = 0; i < 2; i++) case_kill(i);
        case_close_stopped();
    } else {
        case_push();
        case_pull();
        case_scattered(KVF_NIXL_WRITE, "push: 10,000 scattered chunks, the bytes between them untouched");
        case_scattered(KVF_NIXL_READ, "pull: 10,000 scattered chunks, the bytes between them untouched");
        case_notifications();
        case_refusals();
        case_cancel();
        case_idle();
        for (uint32_t i = 0; i < 4; i++) case_kill(i);
        case_forget();
        next_peer();
        meet();
        case_close();
    }
    double left;
    kvf_context_close(context, 1000, &left);
    for (uint32_t i = 0; i < 8; i++) {
        /* Those that a case has killed and reaped are gone; nobody else can have their numbers as our children. */
        if (spares[i].pid > 0 && waitpid(spares[i].pid, NULL, WNOHANG) == 0) {
            kill(spares[i].pid, SIGKILL);
            waitpid(spares[i].pid, NULL, 0);
        }
    }
    printf("%s\n", failures ? "failed" : "passed");
    fflush(stdout);
    /* As Bun leaves: where a system has RDMA libraries of its own, the end functions of those that NIXL brings may crash. */
    _exit(failures != 0);
}
