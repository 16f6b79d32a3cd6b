/*
 * nixl_anchor.c - what a plain C program gets out of NIXL between two processes: the limit and the anchor of rows F8 and
 * F13 of the benchmarks. It loads the same library, uses one agent in each process, one thread, one request a transfer,
 * and no part of kvferry but the types in cshim/nixl_api.h.
 *
 *   cc -O2 -std=c17 -I../../cshim nixl_anchor.c -o nixl_anchor -ldl -lpthread
 *   nixl_anchor LIBRARY                      then commands on stdin, one JSON line on stdout for each:
 *     run CASE SAMPLES [BATCH [DEPTH]]       {"id":...,"bytes":...,"descriptors":...,"batch":...,"verified":true,"seconds":[...]}
 *     quit
 *   nixl_anchor LIBRARY CASE...              20 samples of each case after warm-up, then ends
 *   nixl_anchor LIBRARY start                F13.start-nixl: {"id":"start","seconds":[main to first finished transfer]}
 *
 * Cases: write.1m write.16m write.64m write.256m, read.*, scatter.16k (10,000 chunks, order random on both sides, one
 * descriptor a chunk), contiguous.16k (the same chunks in order, one descriptor a chunk), contiguous.16k.merged (as one
 * descriptor). A sample is BATCH transfers, each created, posted, awaited and released, at most DEPTH of them at once.
 * The process that serves the memory is forked before anything is loaded and does nothing but keep its agent alive.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "nixl_api.h"

#define MIB ((size_t)1 << 20)
#define REGION (256 * MIB)
#define CHUNK ((size_t)16384)
#define CHUNKS 10000u
#define MAX_DEPTH 16u

static nixl_functions api;

static void die(const char *what) {
    fprintf(stderr, "nixl_anchor: %s\n", what);
    exit(1);
}

static void must(nixl_status status, const char *what) {
    if (status != NIXL_SUCCESS) {
        fprintf(stderr, "nixl_anchor: %s answered %d\n", what, status);
        exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void load(const char *path) {
    setenv("UCX_MEM_EVENTS", "n", 0);
    setenv("UCX_LOG_LEVEL", "fatal", 0);
    setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
    setenv("NIXL_LOG_LEVEL", "FATAL", 0);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) die(dlerror());
    void *symbol;
#define RESOLVE(name, parameters)                                                                                      \
    symbol = dlsym(library, "nixl_capi_" #name);                                                                       \
    if (!symbol) die("missing nixl_capi_" #name);                                                                      \
    memcpy(&api.name, &symbol, sizeof symbol);
    NIXL_NEEDED(RESOLVE)
}

static unsigned char *map(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("mmap failed");
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
    return memory;
}

static nixl_agent make_agent(const char *name, unsigned char *memory, size_t bytes) {
    nixl_agent_config config;
    memset(&config, 0, sizeof config);
    config.progress_thread = true;
    config.sync = NIXL_SYNC_RW;
    config.workers = 1;
    config.progress_micros = 10000;
    nixl_agent agent = NULL;
    must(api.create_configured_agent(name, &config, &agent), "create_configured_agent");
    nixl_params params = NULL;
    nixl_backend backend = NULL;
    must(api.create_params(&params), "create_params");
    must(api.create_backend(agent, "UCX", params, &backend), "create_backend");
    api.destroy_params(params);
    nixl_reg_dlist list = NULL;
    must(api.create_reg_dlist(0, &list), "create_reg_dlist");
    must(api.reg_dlist_add_desc(list, (uintptr_t)memory, bytes, 0, NULL, 0), "reg_dlist_add_desc");
    must(api.register_mem(agent, list, NULL), "register_mem");
    api.destroy_reg_dlist(list);
    return agent;
}

static void write_all(int fd, const void *data, size_t bytes) {
    for (const char *at = data; bytes > 0;) {
        ssize_t n = write(fd, at, bytes);
        if (n <= 0) die("pipe closed");
        at += n;
        bytes -= (size_t)n;
    }
}

static void read_all(int fd, void *data, size_t bytes) {
    for (char *at = data; bytes > 0;) {
        ssize_t n = read(fd, at, bytes);
        if (n <= 0) die("pipe closed");
        at += n;
        bytes -= (size_t)n;
    }
}

static void send_blob(int fd, nixl_agent agent, const void *address) {
    void *data = NULL;
    size_t bytes = 0;
    must(api.get_local_md(agent, &data, &bytes), "get_local_md");
    uint64_t head[2] = {bytes, (uint64_t)(uintptr_t)address};
    write_all(fd, head, sizeof head);
    write_all(fd, data, bytes);
    free(data);
}

static uint64_t load_blob(int fd, nixl_agent agent) {
    uint64_t head[2];
    read_all(fd, head, sizeof head);
    void *data = malloc(head[0]);
    if (!data) die("out of memory");
    read_all(fd, data, head[0]);
    char *name = NULL;
    must(api.load_remote_md(agent, data, head[0], &name), "load_remote_md");
    free(name);
    free(data);
    return head[1];
}

static void serve(const char *library, int in, int out) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    load(library);
    unsigned char *memory = map(REGION);
    nixl_agent agent = make_agent("anchor-target", memory, REGION);
    send_blob(out, agent, memory);
    char byte;
    if (read(in, &byte, 1) < 0) die("pipe failed"); /* until the other side closes it */
    api.destroy_agent(agent);
    _exit(0);
}

typedef struct state {
    nixl_agent agent;
    unsigned char *local;   /* REGION of source and sink, then REGION to verify with */
    uint64_t remote;
    nixl_xfer_dlist from;
    nixl_xfer_dlist to;
    uint32_t *order[2];
} state;

typedef struct shape {
    const char *id;
    uint32_t operation;
    size_t bytes;           /* of one descriptor */
    uint32_t descriptors;
    bool scattered;
} shape;

static const shape shapes[] = {
    {"write.1m", 1, 1 * MIB, 1, false},        {"write.16m", 1, 16 * MIB, 1, false},
    {"write.64m", 1, 64 * MIB, 1, false},      {"write.256m", 1, 256 * MIB, 1, false},
    {"read.1m", 0, 1 * MIB, 1, false},         {"read.16m", 0, 16 * MIB, 1, false},
    {"read.64m", 0, 64 * MIB, 1, false},       {"read.256m", 0, 256 * MIB, 1, false},
    {"scatter.16k", 1, CHUNK, CHUNKS, true},   {"contiguous.16k", 1, CHUNK, CHUNKS, false},
    {"contiguous.16k.merged", 1, CHUNK * CHUNKS, 1, false},
};

static uint32_t *shuffled(unsigned seed) {
    uint32_t *order = malloc(CHUNKS * sizeof *order);
    if (!order) die("out of memory");
    for (uint32_t i = 0; i < CHUNKS; i++) order[i] = i;
    for (uint32_t i = CHUNKS - 1; i > 0; i--) {
        uint32_t j = (uint32_t)rand_r(&seed) % (i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    return order;
}

static nixl_xfer_req create(state *s, const shape *sh, uint64_t number, size_t local_shift, uint32_t operation) {
    api.xfer_dlist_clear(s->from);
    api.xfer_dlist_clear(s->to);
    size_t whole = sh->bytes * sh->descriptors;
    size_t offset = (number * whole) % REGION;
    if (offset + whole > REGION) offset = 0;
    for (uint32_t i = 0; i < sh->descriptors; i++) {
        size_t a = offset + sh->bytes * (sh->scattered ? s->order[0][i] : i);
        size_t b = offset + sh->bytes * (sh->scattered ? s->order[1][i] : i);
        api.xfer_dlist_add_desc(s->from, (uintptr_t)s->local + local_shift + a, sh->bytes, 0);
        api.xfer_dlist_add_desc(s->to, s->remote + b, sh->bytes, 0);
    }
    nixl_xfer_req request = NULL;
    must(api.create_xfer_req(s->agent, operation, s->from, s->to, "anchor-target", &request, NULL), "create_xfer_req");
    return request;
}

static nixl_status finish(state *s, nixl_xfer_req request, nixl_status status) {
    while (status == NIXL_IN_PROGRESS) status = api.get_xfer_status(s->agent, request);
    must(status, "transfer");
    must(api.release_xfer_req(s->agent, request), "release_xfer_req");
    return api.destroy_xfer_req(request);
}

static uint64_t turn;

static double sample(state *s, const shape *sh, uint32_t batch, uint32_t depth) {
    nixl_xfer_req ring[MAX_DEPTH];
    nixl_status status[MAX_DEPTH];
    double start = now();
    for (uint32_t i = 0; i < batch + depth; i++) {
        if (i >= depth && i - depth < batch) finish(s, ring[i % depth], status[i % depth]);
        if (i >= batch) continue;
        ring[i % depth] = create(s, sh, turn++, 0, sh->operation);
        status[i % depth] = api.post_xfer_req(s->agent, ring[i % depth], NULL);
        if (status[i % depth] < 0) must(status[i % depth], "post_xfer_req");
    }
    return now() - start;
}

/* Writes (or plants) known bytes, moves them as the case does, fetches them back and compares. */
static bool verify(state *s, const shape *sh) {
    uint64_t x = 88172645463325252ull + turn;
    uint64_t *words = (uint64_t *)s->local;
    for (size_t i = 0; i < REGION / 8; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        words[i] = x;
    }
    memset(s->local + REGION, 0, REGION);
    size_t whole = sh->bytes * sh->descriptors;
    if (sh->operation == 0) {
        shape plant = *sh;
        nixl_xfer_req request = create(s, &plant, 0, 0, 1);
        finish(s, request, api.post_xfer_req(s->agent, request, NULL));
    } else {
        nixl_xfer_req request = create(s, sh, 0, 0, 1);
        finish(s, request, api.post_xfer_req(s->agent, request, NULL));
    }
    nixl_xfer_req request = create(s, sh, 0, REGION, 0);
    finish(s, request, api.post_xfer_req(s->agent, request, NULL));
    return memcmp(s->local, s->local + REGION, whole) == 0;
}

static void run(state *s, const char *id, uint32_t samples, uint32_t batch, uint32_t depth) {
    const shape *sh = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(shapes[i].id, id) == 0) sh = &shapes[i];
    }
    if (!sh) {
        printf("{\"error\":\"no case %s\"}\n", id);
        fflush(stdout);
        return;
    }
    if (batch < 1) batch = 1;
    if (depth < 1) depth = 1;
    if (depth > MAX_DEPTH) depth = MAX_DEPTH;
    if (depth > batch) depth = batch;
    static const shape *verified;
    static bool right;
    if (verified != sh) {
        right = verify(s, sh);
        verified = sh;
        for (int i = 0; i < 3; i++) sample(s, sh, batch, depth);
    }
    printf("{\"id\":\"%s\",\"bytes\":%zu,\"descriptors\":%u,\"batch\":%u,\"depth\":%u,\"verified\":%s,\"seconds\":[", sh->id,
           sh->bytes * sh->descriptors, sh->descriptors, batch, depth, right ? "true" : "false");
    for (uint32_t i = 0; i < samples; i++) printf("%s%.9f", i ? "," : "", sample(s, sh, batch, depth));
    printf("]}\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 2) die("usage: nixl_anchor LIBRARY [CASE...]");
    int down[2], up[2];
    if (pipe(down) != 0 || pipe(up) != 0) die("pipe failed");
    pid_t child = fork();
    if (child == 0) {
        close(down[1]);
        close(up[0]);
        serve(argv[1], down[0], up[1]);
    }
    close(down[0]);
    close(up[1]);
    bool only_start = argc > 2 && strcmp(argv[2], "start") == 0;
    uint64_t head[2];
    if (only_start) read_all(up[0], head, sizeof head); /* the peer is already up */
    double begin = now();
    load(argv[1]);
    state s;
    memset(&s, 0, sizeof s);
    size_t bytes = only_start ? MIB : 2 * REGION;
    s.local = map(bytes);
    s.agent = make_agent("anchor-source", s.local, bytes);
    if (only_start) {
        void *data = malloc(head[0]);
        char *name = NULL;
        if (!data) die("out of memory");
        read_all(up[0], data, head[0]);
        must(api.load_remote_md(s.agent, data, head[0], &name), "load_remote_md");
        s.remote = head[1];
    } else {
        s.remote = load_blob(up[0], s.agent);
    }
    must(api.create_xfer_dlist(0, &s.from), "create_xfer_dlist");
    must(api.create_xfer_dlist(0, &s.to), "create_xfer_dlist");
    if (only_start) {
        sample(&s, &shapes[0], 1, 1);
        printf("{\"id\":\"start\",\"seconds\":[%.9f]}\n", now() - begin);
        fflush(stdout);
    } else {
        s.order[0] = shuffled(1);
        s.order[1] = shuffled(2);
        char line[256], id[64];
        for (int i = 2; i < argc; i++) run(&s, argv[i], 20, 1, 1);
        while (argc == 2 && fgets(line, sizeof line, stdin)) {
            unsigned samples = 20, batch = 1, depth = 1;
            if (sscanf(line, "run %63s %u %u %u", id, &samples, &batch, &depth) >= 1) run(&s, id, samples, batch, depth);
            else if (strncmp(line, "quit", 4) == 0) break;
        }
    }
    close(down[1]);
    waitpid(child, NULL, 0);
    api.destroy_agent(s.agent);
    fflush(stdout);
    /* Where a system has RDMA libraries of its own, the end functions of those that NIXL brings may crash. */
    _exit(0);
}
