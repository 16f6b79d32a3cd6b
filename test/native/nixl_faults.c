/*
 * nixl_faults.c - kvferry's NIXL part against the stand-in (test/standin/nixl_capi.c): everything that can fail is made to.
 *
 *   nixl_faults STANDIN EMPTY     EMPTY: a shared library without any function
 *
 * One line for each named case: `ok NAME | facts` or `not ok NAME | why`.
 */
#include <dlfcn.h>
#include <sys/mman.h>

#include "nixl_agent.h"
#include "nixl_jobs.h"

#define KIB ((size_t)1024)
#define AREA (4096 * KIB)

static long (*control)(const char *command);
static unsigned char *here;  /* of agent a */
static unsigned char *there; /* of agent b */
static unsigned char *shadow;
static kvf_word a, b;

/* ---- the world: two agents that know each other ----------------------------------------------------------------- */

static outcome acquaint(kvf_word to, kvf_word from, const char *expected) {
    outcome o = await(kvf_nixl_metadata_job(context, 0, from, 0, 0, NULL, 0), 0);
    if (o.status != KVF_OK) return o;
    static uint8_t bytes[1 << 16];
    double out[1];
    kvf_slot_result(context, 0, bytes, sizeof bytes, out);
    return await(kvf_nixl_load_peer_job(context, 0, to, bytes, (kvf_word)out[0], expected), 0);
}

static void set_up(uint32_t lanes) {
    control("reset");
    a = make_agent("a", lanes, "");
    b = make_agent("b", 1, "");
    outcome o[4] = {register_memory(a, here, AREA), register_memory(b, there, AREA), acquaint(a, b, "b"), acquaint(b, a, "a")};
    for (int i = 0; i < 4; i++) {
        if (o[i].status != KVF_OK) verdict("set-up", false, "step %d: %d %s", i, o[i].status, o[i].text);
    }
    paint(here, AREA, 1);
    memset(there, 0xee, AREA);
}

static outcome close_agent(kvf_word agent) {
    return await(kvf_nixl_agent_close_job(context, 1, agent), 1);
}

/* Both agents closed, nothing of NIXL left alive. */
static void tear_down(const char *name) {
    control("reset");
    outcome one = close_agent(a), two = close_agent(b);
    long live = control("live");
    if (one.status != KVF_OK || two.status != KVF_OK || one.value + two.value > 0 || live != 0) {
        verdict(name, false, "tear-down: %d %s, %d %s, %ld objects live", one.status, one.text, two.status, two.text, live);
    }
}

static size_t shift; /* of what `start` moves, on both sides */

/* Moves AREA bytes or rows of it in the background; finish with await(started, slot). */
static int32_t start(uint32_t slot, uint32_t operation, uint32_t pairs, double row, double piece_bytes, uint32_t piece_rows,
                     const char *note) {
    kvf_word words;
    uint32_t *order = pairs > 1 ? permutation(pairs, 5) : NULL;
    uint64_t src = (uintptr_t)(operation == KVF_NIXL_WRITE ? here : there) + shift;
    uint64_t dst = (uintptr_t)(operation == KVF_NIXL_WRITE ? there : here) + shift;
    double *hop = rows_hop(src, dst, order, order, pairs, row, &words);
    int32_t started = kvf_nixl_transfer_job(context, slot, a, "b", operation, hop, words, (kvf_word)piece_bytes, piece_rows,
                                            (const uint8_t *)note, note ? (uint32_t)strlen(note) : 0, note != NULL);
    free(hop);
    free(order);
    return started;
}

static outcome run(uint32_t pairs, double row, double piece_bytes, uint32_t piece_rows, const char *note) {
    return await(start(2, KVF_NIXL_WRITE, pairs, row, piece_bytes, piece_rows, note), 2);
}

static bool heard(kvf_word agent, const char *expected) {
    static char from[256], text[1 << 16];
    long got = next_notification(agent, from, text, sizeof text, 5);
    return got == (long)strlen(expected) && memcmp(text, expected, (size_t)got) == 0;
}

static void until_blocked(const char *function) {
    char command[64];
    snprintf(command, sizeof command, "blocked %s", function);
    for (int i = 0; i < 100000 && control(command) < 1; i++) nap(50e-6);
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

static void case_load(const char *standin, const char *empty) {
    setenv("UCX_LOG_LEVEL", "warn", 1);
    outcome relative = await(kvf_nixl_load_job(context, 0, "some/libnixl_capi.so"), 0);
    outcome missing = await(kvf_nixl_load_job(context, 0, "/nowhere/libnixl_capi.so"), 0);
    outcome hollow = await(kvf_nixl_load_job(context, 0, empty), 0);
    outcome early = await(kvf_nixl_agent_job(context, 0, "early", 10000, 1), 0);
    verdict("load: refusals name what is missing",
            relative.status == KVF_E_INVALID && missing.status == KVF_E_UNAVAILABLE && strstr(missing.text, "/nowhere/") &&
                hollow.status == KVF_E_UNAVAILABLE && strstr(hollow.text, "nixl_capi_create_configured_agent") &&
                early.status == KVF_E_UNAVAILABLE,
            "%s | %s | %s | %s", relative.text, missing.text, hollow.text, early.text);
    outcome good = await(kvf_nixl_load_job(context, 0, standin), 0);
    char path[4096] = "";
    double out[1];
    kvf_slot_result(context, 0, (uint8_t *)path, sizeof path, out);
    outcome again = await(kvf_nixl_load_job(context, 0, empty), 0);
    const char *events = getenv("UCX_MEM_EVENTS"), *signo = getenv("UCX_DEBUG_SIGNO"), *level = getenv("UCX_LOG_LEVEL");
    const char *connects = getenv("UCX_TCP_CONN_NB");
    verdict("load: once, with the environment set and the user's own kept",
            good.status == KVF_OK && strcmp(path, standin) == 0 && again.status == KVF_OK && events &&
                strcmp(events, "n") == 0 && signo && strcmp(signo, "0") == 0 && connects &&
                strcmp(connects, "y") == 0 && strcmp(level, "warn") == 0,
            "%d %s, path %s", good.status, good.text, path);
    void *library = dlopen(standin, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "standin_control") : NULL;
    if (!symbol) abort();
    memcpy(&control, &symbol, sizeof symbol);
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

static void case_bytes(void) {
    const char *name = "bytes: rows, pieces and caps of any size arrive whole, in both directions";
    bool good = true;
    set_up(2);
    for (int pending = 0; pending < 2; pending++) {
        control(pending ? "mode pending 3" : "mode inline");
        const double shapes[][4] = {{1, AREA, 0, 0},       {1, AREA, 100001, 0},  {64, 4096, 0, 0},   {64, 4096, 1000, 0},
                                    {64, 4096, 0, 1},      {999, 104, 4096, 7},   {999, 104, 1, 0},   {512, 8192, 65536, 3},
                                    {1, 8, 0, 0},          {2, 1048576, 999999, 1}};
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            const double *s = shapes[i];
            if (s[2] == 1 && pending) continue; /* a piece a byte: once is enough */
            size_t bytes = (size_t)(s[0] * s[1]);
            for (uint32_t operation = 0; operation < 2; operation++) {
                unsigned char *src = operation ? here : there, *dst = operation ? there : here;
                paint(src, AREA, 100 + i);
                memset(dst, 0xee, AREA);
                memset(shadow, 0xee, AREA);
                memcpy(shadow, src, bytes);
                outcome o = await(start(2, operation, (uint32_t)s[0], s[1], s[2], (uint32_t)s[3], NULL), 2);
                bool same = memcmp(dst, shadow, AREA) == 0;
                if (o.status == KVF_OK && same && o.value == (double)bytes && progress_bytes(2) == (double)bytes) continue;
                good = false;
                verdict(name, false, "shape %zu, operation %u: %d %s, same %d", i, operation, o.status, o.text, same);
            }
        }
    }
    if (good) verdict(name, true, "20 shapes twice");
    tear_down(name);
}

/* Contiguous rows become one descriptor, but not across bases: each base here is a registration of its own. */
static void case_merging(void) {
    const char *name = "merging: rows that continue each other become one descriptor, never across bases";
    control("reset");
    a = make_agent("a", 1, "");
    b = make_agent("b", 1, "");
    for (int i = 0; i < 4; i++) {
        register_memory(a, here + (size_t)i * AREA / 4, AREA / 4);
        register_memory(b, there + (size_t)i * AREA / 4, AREA / 4);
    }
    acquaint(a, b, "b");
    paint(here, AREA, 7);
    memset(there, 0xee, AREA);
    /* 4 bases that follow each other, 64 pairs that follow each other. */
    double row = (double)AREA / 4 / 64;
    size_t count = 8 + 40 + 8 + 128;
    double *hop = calloc(count, sizeof *hop);
    if (!hop) abort();
    hop[0] = KVF_HOP_MAGIC, hop[1] = KVF_HOP_VERSION, hop[2] = 1, hop[3] = (double)count, hop[4] = (double)AREA;
    double *p = hop + 8;
    p[0] = 4, p[1] = 64, p[3] = row, p[28] = 48, p[29] = 52, p[30] = 56, p[31] = 120, p[33] = (double)AREA;
    for (int i = 0; i < 4; i++) {
        hop[48 + i] = (double)((uintptr_t)here + (size_t)i * AREA / 4);
        hop[52 + i] = (double)((uintptr_t)there + (size_t)i * AREA / 4);
    }
    for (int i = 0; i < 64; i++) hop[56 + i] = hop[120 + i] = i * row;
    long before = control("calls xfer_dlist_add_desc");
    outcome o = await(kvf_nixl_transfer_job(context, 2, a, "b", KVF_NIXL_WRITE, hop, count, 0, 0, NULL, 0, 0), 2);
    long added = control("calls xfer_dlist_add_desc") - before;
    verdict(name, o.status == KVF_OK && added == 8 && memcmp(here, there, AREA) == 0, "%d %s, %ld descriptors added", o.status,
            o.text, added);
    free(hop);
    tear_down(name);
}

/* ---- every function fails ---------------------------------------------------------------------------------------- */

static outcome flow_of(kvf_word *one, kvf_word *two) {
    *one = *two = 0;
    outcome o = await(kvf_nixl_agent_job(context, 0, "a", 10000, 1), 0);
    if (o.status != KVF_OK) return o;
    *one = (kvf_word)o.value;
    o = await(kvf_nixl_agent_job(context, 0, "b", 10000, 1), 0);
    if (o.status != KVF_OK) return o;
    *two = (kvf_word)o.value;
    static const char parameters[] = "key\0value\0";
    if ((o = await(kvf_nixl_backend_job(context, 0, *one, "UCX", parameters), 0)).status != KVF_OK) return o;
    if ((o = await(kvf_nixl_backend_job(context, 0, *two, "UCX", ""), 0)).status != KVF_OK) return o;
    if ((o = register_memory(*one, here, AREA)).status != KVF_OK) return o;
    if ((o = register_memory(*two, there, AREA)).status != KVF_OK) return o;
    double region[3] = {(double)(uintptr_t)there, AREA, 0};
    if ((o = await(kvf_nixl_metadata_job(context, 0, *two, 1, 0, region, 1), 0)).status != KVF_OK) return o;
    if ((o = acquaint(*one, *two, "b")).status != KVF_OK) return o;
    if ((o = acquaint(*two, *one, "a")).status != KVF_OK) return o;
    a = *one;
    if ((o = run(64, 4096, 65536, 8, "note")).status != KVF_OK) return o;
    if ((o = await(kvf_nixl_notify_job(context, 0, *one, "b", (const uint8_t *)"n", 1), 0)).status != KVF_OK) return o;
    if ((o = await(kvf_nixl_forget_peer_job(context, 0, *one, "b"), 0)).status != KVF_OK) return o;
    return await(kvf_nixl_deregister_job(context, 0, *two, KVF_MEM_DRAM, region, 1), 0);
}

static void case_every_function(void) {
    const char *name = "faults: whatever function fails, jobs end, errors name it, nothing stays alive";
    /* Those whose failure must stop the flow; the text names the function unless the list stands for its two calls. */
    static const char *const fatal[] = {
        "create_configured_agent", "create_notif_map", "create_params", "params_add", "create_backend", "create_opt_args",
        "opt_args_add_backend", "create_reg_dlist", "reg_dlist_add_desc", "register_mem", "get_local_md",
        "get_local_partial_md", "load_remote_md", "create_xfer_dlist", "xfer_dlist_add_desc", "xfer_dlist_clear",
        "create_xfer_req", "post_xfer_req", "get_xfer_status", "gen_notif", "invalidate_remote_md", "deregister_mem"};
    bool good = true;
    uint32_t runs = 0;
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
        for (int nth = 1; nth <= 3; nth++) {
            char command[96];
            control("reset");
            control("mode pending 2");
            snprintf(command, sizeof command, "fail %s %d -2", fatal[i], nth);
            control(command);
            snprintf(command, sizeof command, "calls %s", fatal[i]);
            long before = control(command);
            kvf_word one, two;
            outcome o = flow_of(&one, &two);
            bool failed = control(command) - before >= nth;
            bool list = strstr(fatal[i], "xfer_dlist") || strstr(fatal[i], "reg_dlist");
            bool told = !failed || (o.status < 0 && (list || strstr(o.text, fatal[i])));
            bool ended = failed || o.status == KVF_OK;
            control("reset");
            if (one) close_agent(one);
            if (two) close_agent(two);
            long live = control("live");
            runs++;
            if (told && ended && live == 0) continue;
            good = false;
            verdict(name, false, "%s, call %d: %d %s; failed %d, %ld live", fatal[i], nth, o.status, o.text, failed, live);
        }
    }
    if (good) verdict(name, true, "%u flows", runs);
}

/* ---- how transfers end ------------------------------------------------------------------------------------------- */

static void case_endings(void) {
    const char *name = "endings: flags say what a failure leaves behind";
    static const struct {
        const char *what;
        const char *commands[3];
        int32_t status;
        uint32_t flags;
    } cases[] = {
        {"first create", {"fail create_xfer_req 1 -2"}, KVF_E_NIXL, 0},
        {"second create", {"fail create_xfer_req 2 -2"}, KVF_E_NIXL, KVF_DONE_TOUCHED},
        {"third create, two in flight", {"mode pending 50", "fail create_xfer_req 3 -2"}, KVF_E_NIXL, KVF_DONE_TOUCHED},
        {"first post", {"fail post_xfer_req 1 -2"}, KVF_E_NIXL, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT},
        {"third post", {"fail post_xfer_req 3 -2"}, KVF_E_NIXL, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT},
        {"status", {"mode pending 9", "fail get_xfer_status 5 -2"}, KVF_E_NIXL, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT},
        {"peer lost", {"lose b"}, KVF_E_PEER, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT},
        {"unknown code", {"fail post_xfer_req 1 -77"}, KVF_E_NIXL, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT},
        {"notification", {"fail gen_notif 1 -2"}, KVF_E_NIXL, KVF_DONE_TOUCHED},
    };
    bool good = true;
    set_up(1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        control("reset");
        for (int k = 0; k < 3 && cases[i].commands[k]; k++) control(cases[i].commands[k]);
        outcome o = run(1, AREA, 524288, 0, "after");
        control("reset");
        outcome next = run(4, 4096, 0, 0, NULL);
        if (o.status == cases[i].status && o.flags == cases[i].flags && next.status == KVF_OK) continue;
        good = false;
        verdict(name, false, "%s: %d, flags %u: %s; the next one %d", cases[i].what, o.status, o.flags, o.text, next.status);
    }
    char from[64], text[64];
    long note = next_notification(b, from, text, sizeof text, 0.1);
    if (note >= 0) verdict(name, false, "a failed transfer was announced, or a probe delivered: %s", text);
    else if (good) verdict(name, true, "%zu ways", sizeof cases / sizeof cases[0]);
    tear_down(name);
}

static void case_notification_last(void) {
    const char *name = "notification: leaves only when every piece is complete";
    set_up(2);
    control("mode stuck");
    int32_t started = start(2, KVF_NIXL_WRITE, 1, AREA, 1048576, 0, "done");
    long before = control("calls gen_notif");
    nap(0.02);
    long meanwhile = control("calls gen_notif") - before;
    control("mode inline");
    outcome o = await(started, 2);
    bool arrived = heard(b, "done");
    verdict(name, o.status == KVF_OK && meanwhile == 0 && arrived && memcmp(here, there, AREA) == 0, "%d %s, %ld early, heard %d",
            o.status, o.text, meanwhile, arrived);
    tear_down(name);
}

static void case_cancel(void) {
    const char *name = "cancel: never started, touched, or done, as it happened to be";
    set_up(1);
    control("block post_xfer_req");
    int32_t first = start(2, KVF_NIXL_WRITE, 1, AREA, 1048576, 0, NULL);
    int32_t second = start(3, KVF_NIXL_WRITE, 1, AREA, 1048576, 0, NULL);
    int32_t third = start(4, KVF_NIXL_WRITE, 0, 0, 0, 0, "no bytes");
    until_blocked("post_xfer_req");
    kvf_slot_cancel(context, 2);
    kvf_slot_cancel(context, 3);
    kvf_slot_cancel(context, 4);
    control("unblock post_xfer_req");
    outcome o = await(first, 2), p = await(second, 3), q = await(third, 4);
    verdict(name,
            o.status == KVF_E_CANCELLED && o.flags == KVF_DONE_TOUCHED && p.status == KVF_E_CANCELLED && p.flags == 0 &&
                q.status == KVF_E_CANCELLED && q.flags == 0,
            "running %d (%u), waiting %d (%u), without bytes %d (%u)", o.status, o.flags, p.status, p.flags, q.status, q.flags);
    control("mode stuck");
    first = start(2, KVF_NIXL_WRITE, 1, 4096, 0, 0, NULL);
    nap(0.005);
    kvf_slot_cancel(context, 2);
    control("mode inline");
    o = await(first, 2);
    verdict("cancel: too late is done", o.status == KVF_OK && o.flags == 0, "%d (%u) %s", o.status, o.flags, o.text);
    tear_down(name);
}

static void case_abandon(void) {
    const char *name = "abandon: a stuck lane is replaced, its job ends once, up to a limit";
    set_up(1);
    int32_t none = kvf_nixl_abandon(context, 9);
    int32_t started[20];
    outcome o[20];
    uint32_t given = 0, busy = 0;
    for (uint32_t i = 0; i < 17; i++) {
        control("block post_xfer_req");
        long before = control("calls post_xfer_req");
        shift = (size_t)i * 4096;
        started[i] = start(16 + i, KVF_NIXL_WRITE, 1, 4096, 0, 0, NULL);
        shift = 0;
        for (int k = 0; k < 100000 && control("calls post_xfer_req") == before; k++) nap(20e-6);
        int32_t status = kvf_nixl_abandon(context, 16 + i);
        given += status == KVF_OK;
        busy += status == KVF_E_BUSY;
    }
    control("unblock post_xfer_req");
    uint32_t ended = 0;
    for (uint32_t i = 0; i < 17; i++) {
        o[i] = await(started[i], 16 + i);
        /* One piece, which was in the post: it is complete in the end. */
        ended += o[i].status == KVF_OK;
    }
    outcome next = run(64, 4096, 0, 0, NULL);
    verdict(name, none == KVF_AGAIN && given == 16 && busy == 1 && ended == 17 && next.status == KVF_OK,
            "no such %d, %u given up, %u refused, %u ended, next %d", none, given, busy, ended, next.status);
    /* Two pieces: the second is not posted any more. */
    control("block post_xfer_req");
    int32_t two = start(2, KVF_NIXL_WRITE, 1, 2097152, 1048576, 0, NULL);
    until_blocked("post_xfer_req");
    int32_t gave = kvf_nixl_abandon(context, 2), twice = kvf_nixl_abandon(context, 2);
    control("unblock post_xfer_req");
    outcome late = await(two, 2);
    verdict("abandon: no further piece is posted",
            gave == KVF_OK && twice == KVF_OK && late.status == KVF_E_CANCELLED && late.flags == KVF_DONE_TOUCHED,
            "%d, %d, then %d (%u) %s", gave, twice, late.status, late.flags, late.text);
    tear_down(name);
}

static void case_close(void) {
    const char *name = "close: requests that never end are released, and nothing is left behind";
    set_up(2);
    control("mode stuck");
    int32_t one = start(2, KVF_NIXL_WRITE, 1, AREA, 0, 0, NULL);
    int32_t two = start(3, KVF_NIXL_WRITE, 64, 4096, 0, 0, NULL);
    int32_t three = start(4, KVF_NIXL_WRITE, 64, 4096, 0, 0, NULL);
    nap(0.01);
    outcome closed = close_agent(a);
    outcome o = await(one, 2), p = await(two, 3), q = await(three, 4);
    outcome other = close_agent(b);
    long live = control("live");
    verdict(name,
            closed.status == KVF_OK && closed.value == 0 && o.status == KVF_E_CLOSED && p.status == KVF_E_CLOSED &&
                (o.flags & KVF_DONE_IN_DOUBT) && (p.flags & KVF_DONE_IN_DOUBT) && q.status == KVF_E_CLOSED && q.flags == 0 &&
                other.status == KVF_OK && live == 0,
            "%.0f left; %d (%u), %d (%u), %d (%u); %ld live", closed.value, o.status, o.flags, p.status, p.flags, q.status,
            q.flags, live);

    name = "close: a lane that is stuck in NIXL is left behind, counted, and ends later";
    set_up(1);
    control("block post_xfer_req");
    one = start(2, KVF_NIXL_WRITE, 1, 4096, 0, 0, NULL);
    until_blocked("post_xfer_req");
    kvf_word gone = a;
    closed = close_agent(a);
    int32_t refused = start(3, KVF_NIXL_WRITE, 1, 4096, 0, 0, NULL);
    control("unblock post_xfer_req");
    o = await(one, 2);
    other = close_agent(b);
    for (int i = 0; i < 2000 && control("live") != 0; i++) nap(1e-3);
    live = control("live");
    verdict(name,
            closed.status == KVF_OK && closed.value == 1 && refused == KVF_E_CLOSED && o.status == KVF_OK && live == 0 &&
                kvf_nixl_listen(gone, 1) == KVF_E_CLOSED,
            "%.0f left, refused %d, late %d, %ld live", closed.value, refused, o.status, live);
}

static void case_forget(void) {
    const char *name = "forget: running and waiting transfers to the peer end, others go on";
    set_up(1);
    control("mode stuck");
    int32_t one = start(2, KVF_NIXL_WRITE, 1, AREA, 0, 0, NULL);
    int32_t two = start(3, KVF_NIXL_WRITE, 1, 4096, 0, 0, NULL);
    nap(0.005);
    outcome forgot = await(kvf_nixl_forget_peer_job(context, 5, a, "b"), 5);
    outcome o = await(one, 2), p = await(two, 3);
    outcome after = run(1, 4096, 0, 0, NULL);
    control("mode inline");
    outcome again = acquaint(a, b, "b");
    outcome good = run(64, 4096, 0, 0, NULL);
    verdict(name,
            forgot.status == KVF_OK && o.status == KVF_E_PEER && (o.flags & KVF_DONE_IN_DOUBT) && p.status == KVF_E_PEER &&
                p.flags == 0 && after.status == KVF_E_PEER && after.flags == 0 && again.status == KVF_OK &&
                good.status == KVF_OK,
            "forgot %d; %d (%u), %d (%u), after %d; again %d, %d", forgot.status, o.status, o.flags, p.status, p.flags,
            after.status, again.status, good.status);
    /* Metadata of another agent than expected leave no trace. */
    await(kvf_nixl_forget_peer_job(context, 5, a, "b"), 5);
    outcome wrong = acquaint(a, b, "c");
    after = run(1, 4096, 0, 0, NULL);
    verdict("load: metadata of another agent than expected leave no trace",
            wrong.status == KVF_E_PEER && after.status == KVF_E_PEER && after.flags == 0, "%d %s, then %d", wrong.status,
            wrong.text, after.status);
    tear_down(name);
}

/* ---- notifications ----------------------------------------------------------------------------------------------- */

static void case_flood(void) {
    const char *name = "notifications: 24 MiB that nobody takes are neither dropped nor mixed up";
    static uint8_t payload[65536];
    set_up(1);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < 384; i++) {
        memcpy(payload, &i, 4);
        memset(payload + 4, (int)(i & 0xff), sizeof payload - 4);
        wrong += await(kvf_nixl_notify_job(context, 5, a, "b", payload, sizeof payload), 5).status != KVF_OK;
    }
    nap(0.05);
    uint8_t few[16];
    double out[3] = {0, 0, 0};
    int32_t small = kvf_nixl_take_notifications(b, few, sizeof few, out);
    double queued = out[2];
    static char from[256], text[1 << 17];
    for (uint32_t i = 0; i < 384; i++) {
        long got = next_notification(b, from, text, sizeof text, 10);
        uint32_t number;
        memcpy(&number, text, 4);
        wrong += got != (long)sizeof payload || number != i || (uint8_t)text[65535] != (i & 0xff) || strcmp(from, "a") != 0;
    }
    int32_t empty = kvf_nixl_take_notifications(b, (uint8_t *)text, sizeof text, out);
    verdict(name, wrong == 0 && small == KVF_AGAIN && queued > 65536 && empty == KVF_AGAIN && out[1] == 0 && out[2] == 0,
            "%u wrong, %.0f bytes were queued, %.0f dropped", wrong, queued, out[1]);
    bool rung = atomic_exchange(&block[4], 0) == 1;
    await(kvf_nixl_notify_job(context, 5, a, "b", NULL, 0), 5);
    bool arrived = heard(b, "");
    verdict("notifications: an empty one arrives and the word in the shared block is set", rung && arrived, "%d %d", rung, arrived);
    tear_down(name);
}

/* ---- many at once ------------------------------------------------------------------------------------------------ */

static void case_crowd(void) {
    const char *name = "crowd: transfers of all sizes on four lanes, with control work between them";
    set_up(4);
    uint32_t wrong = 0;
    size_t part = AREA / 64;
    for (uint32_t round = 0; round < 6; round++) {
        control(round % 2 ? "mode pending 2" : "mode inline");
        int32_t started[64];
        paint(here, AREA, round);
        memset(there, 0xee, AREA);
        for (uint32_t i = 0; i < 64; i++) {
            kvf_word words;
            uint32_t rows = i % 3 == 0 ? 1 : 64;
            uint32_t *order = permutation(rows, i);
            double *hop = rows_hop((uintptr_t)here + i * part, (uintptr_t)there + i * part, order, order, rows,
                                   (double)part / rows, &words);
            started[i] = kvf_nixl_transfer_job(context, 64 + i, a, "b", KVF_NIXL_WRITE, hop, words, part / 7, 0,
                                               (const uint8_t *)&i, 4, 1);
            free(hop);
            free(order);
            if (i % 16 == 0) wrong += acquaint(a, b, "b").status != KVF_OK;
        }
        for (uint32_t i = 0; i < 64; i++) wrong += await(started[i], 64 + i).status != KVF_OK;
        wrong += memcmp(here, there, AREA) != 0;
        char from[64], text[64];
        for (uint32_t i = 0; i < 64; i++) wrong += next_notification(b, from, text, sizeof text, 5) != 4;
    }
    verdict(name, wrong == 0, "%u wrong", wrong);
    tear_down(name);
}

/* Posts that copy are shared among lanes, as far as there are cores: here as if there were eight. */
static void case_sharing(void) {
    const char *name = "sharing: several lanes work on one transfer, progress counts whole programs only";
    set_up(4);
    kvf_agent *agent = kvf_agent_acquire(a);
    agent->sharers = 4;
    kvf_agent_release(agent);
    control("delay post_xfer_req 1000");
    memset(there, 0xee, AREA);
    int32_t started = start(2, KVF_NIXL_WRITE, 1, AREA, 65536, 0, "whole");
    for (int i = 0; i < 100000 && progress_bytes(2) == 0; i++) nap(50e-6);
    control("block post_xfer_req");
    for (int i = 0; i < 100000 && control("blocked post_xfer_req") < 4; i++) nap(50e-6);
    long together = control("blocked post_xfer_req");
    uint32_t programs = progress_programs(2);
    control("unblock post_xfer_req");
    outcome o = await(started, 2);
    bool arrived = heard(b, "whole");
    verdict(name,
            together >= 2 && programs == 0 && o.status == KVF_OK && o.value == (double)AREA && progress_programs(2) == 1 &&
                arrived && memcmp(here, there, AREA) == 0,
            "%ld lanes together, %d %s", together, o.status, o.text);
    /* All of them are given up together and replaced. */
    control("reset");
    control("delay post_xfer_req 1000");
    started = start(2, KVF_NIXL_WRITE, 1, AREA, 65536, 0, NULL);
    for (int i = 0; i < 100000 && progress_bytes(2) == 0; i++) nap(50e-6);
    control("block post_xfer_req");
    for (int i = 0; i < 100000 && control("blocked post_xfer_req") < 4; i++) nap(50e-6);
    int32_t gave = kvf_nixl_abandon(context, 2);
    control("unblock post_xfer_req");
    o = await(started, 2);
    control("reset");
    outcome next = run(64, 4096, 0, 0, NULL);
    verdict("sharing: lanes that share a transfer are given up together",
            gave == KVF_OK && o.status == KVF_E_CANCELLED && o.flags == KVF_DONE_TOUCHED && next.status == KVF_OK,
            "%d, %d (%u), next %d", gave, o.status, o.flags, next.status);
    tear_down(name);
}

static void case_refusals(void) {
    const char *name = "refused: malformed calls begin nothing";
    set_up(1);
    double out[3], region[3] = {4096, -1, 0};
    uint32_t wrong = 0;
    wrong += kvf_nixl_agent_job(context, 5, "", 10000, 1) != KVF_E_INVALID;
    wrong += kvf_nixl_agent_job(context, 5, "x", 999, 1) != KVF_E_INVALID;
    wrong += kvf_nixl_agent_job(context, 5, "x", 1000, 0) != KVF_E_INVALID;
    wrong += kvf_nixl_register_job(context, 5, a, KVF_MEM_DRAM, region, 1) != KVF_E_INVALID;
    wrong += kvf_nixl_register_job(context, 5, a, 5, region, 1) != KVF_E_INVALID;
    wrong += kvf_nixl_register_job(context, 5, a, 0, region, 0) != KVF_E_INVALID;
    wrong += kvf_nixl_load_peer_job(context, 5, a, NULL, 0, "x") != KVF_E_INVALID;
    wrong += kvf_nixl_backend_job(context, 5, a, "", "") != KVF_E_INVALID;
    wrong += kvf_nixl_transfer_job(context, 5, a, "b", 2, region, 3, 0, 0, NULL, 0, 0) != KVF_E_INVALID;
    wrong += kvf_nixl_transfer_job(context, 5, a, "b", 1, region, 3, 0, 0, NULL, 0, 0) != KVF_E_INVALID;
    wrong += kvf_nixl_transfer_job(context, 5, a, "b", 1, region, 3, 0, 0, NULL, 5, 1) != KVF_E_INVALID;
    wrong += kvf_nixl_notify_job(context, 5, a + 4096, "b", NULL, 0) != KVF_E_CLOSED;
    wrong += kvf_nixl_notify_job(context, 5, 0, "b", NULL, 0) != KVF_E_CLOSED;
    wrong += kvf_context_open(64, out) != KVF_OK;
    kvf_word other = (kvf_word)out[0];
    wrong += kvf_nixl_notify_job(other, 5, a, "b", NULL, 0) != KVF_E_INVALID;
    kvf_context_close(other, 100, out);
    outcome twice = await(kvf_nixl_backend_job(context, 5, a, "UCX", ""), 5);
    outcome unknown = await(kvf_nixl_backend_job(context, 5, a, "NONE", ""), 5);
    outcome vram = await(kvf_nixl_register_job(context, 5, a, KVF_MEM_FILE, (double[]){0, 0, 3}, 1), 5);
    verdict(name,
            wrong == 0 && twice.status == KVF_E_NIXL && unknown.status == KVF_E_NIXL && vram.status == KVF_E_UNAVAILABLE,
            "%u wrong; backend twice %d, unknown %d, file memory %d %s", wrong, twice.status, unknown.status, vram.status,
            vram.text);
    tear_down(name);
}

/* The context goes while an agent is at work and one of its lanes hangs. Last: the context is gone afterwards. */
static void case_context_close(void) {
    set_up(2);
    control("block post_xfer_req");
    start(2, KVF_NIXL_WRITE, 1, AREA, 1048576, 0, NULL);
    until_blocked("post_xfer_req");
    start(3, KVF_NIXL_WRITE, 1, 4096, 0, 0, NULL);
    double left = -1, begin = seconds();
    int32_t status = kvf_context_close(context, 200, &left);
    double took = seconds() - begin;
    control("unblock post_xfer_req");
    for (int i = 0; i < 5000 && control("live") != 0; i++) nap(1e-3);
    long live = control("live");
    verdict("context: closing it takes its agents along, bounded, and the rest ends later",
            status == KVF_OK && left >= 1 && live == 0, "%d, %.0f left after %.0f ms, %ld live", status, left,
            took * 1e3, live);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: nixl_faults STANDIN EMPTY\n");
        return 2;
    }
    here = mmap(NULL, 3 * AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (here == MAP_FAILED) return 2;
    there = here + AREA;
    shadow = there + AREA;
    open_context();
    case_load(argv[1], argv[2]);
    case_bytes();
    case_merging();
    case_every_function();
    case_endings();
    case_notification_last();
    case_cancel();
    case_abandon();
    case_close();
    case_forget();
    case_flood();
    case_crowd();
    case_sharing();
    case_refusals();
    case_context_close();
    printf("%s\n", failures ? "failed" : "passed");
    return failures != 0;
}
