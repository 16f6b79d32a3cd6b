/*
 * nixl_agent.c - finds, starts, stops and frees agents; peers; the gate.
 */
#define _GNU_SOURCE
#include "nixl_agent.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "nixl_load.h"
#include "status.h"
#include "thread.h"

#define MICROS ((uint64_t)1000)
#define MILLIS ((uint64_t)1000000)
/* A control thread that has waited this long is let in by the lanes (sooner when somebody waits for a notification: it
 * costs the lanes that must stand still for it); they wait for it at most so long, and then let it wait: another lane may
 * be stuck in a post and keep the lock for ever. */
#define GATE_PATIENCE (20 * MILLIS)
#define GATE_PATIENCE_EAGER (2 * MILLIS)
#define GATE_BOUND (100 * MILLIS)

static void *closer_main(void *argument);
static void member_stop(kvf_member *member);
static uint32_t member_join(kvf_member *member, uint64_t deadline);

/* ---- words ------------------------------------------------------------------------------------------------------
 * JavaScript holds a number that stands for a place and a turn of it, so that a word of an agent that was closed is
 * refused and never followed.
 */

#define MAX_AGENTS 1024u

static pthread_mutex_t table_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    kvf_agent *agent;
    uint32_t turn;
} table[MAX_AGENTS];

bool kvf_agent_publish(kvf_agent *agent) {
    bool added = false;
    pthread_mutex_lock(&table_mutex);
    for (uint32_t i = 0; i < MAX_AGENTS && !added; i++) {
        if (table[i].agent) continue;
        table[i].agent = agent;
        table[i].turn++;
        agent->word = ((kvf_word)table[i].turn << 12) | (i + 1);
        added = true;
    }
    pthread_mutex_unlock(&table_mutex);
    return added;
}

void kvf_agent_unpublish(kvf_agent *agent) {
    pthread_mutex_lock(&table_mutex);
    for (uint32_t i = 0; i < MAX_AGENTS; i++) {
        if (table[i].agent == agent) table[i].agent = NULL;
    }
    pthread_mutex_unlock(&table_mutex);
}

kvf_agent *kvf_agent_acquire(kvf_word word) {
    uint64_t place = word & 0xfff;
    kvf_agent *agent = NULL;
    pthread_mutex_lock(&table_mutex);
    if (place > 0 && place <= MAX_AGENTS && table[place - 1].agent && table[place - 1].turn == word >> 12) {
        agent = table[place - 1].agent;
        atomic_fetch_add(&agent->references, 1);
    }
    pthread_mutex_unlock(&table_mutex);
    if (!agent) kvf_set_error("no such NIXL agent, or it was closed");
    return agent;
}

kvf_agent *kvf_agent_of_context(const kvf_context *ctx, uint32_t *at) {
    kvf_agent *agent = NULL;
    pthread_mutex_lock(&table_mutex);
    while (*at < MAX_AGENTS && !agent) {
        kvf_agent *here = table[(*at)++].agent;
        if (!here || here->ctx != ctx) continue;
        agent = here;
        atomic_fetch_add(&agent->references, 1);
    }
    pthread_mutex_unlock(&table_mutex);
    return agent;
}

void kvf_agent_release(kvf_agent *agent) {
    if (atomic_fetch_sub(&agent->references, 1) != 1) return;
    while (agent->peers) {
        kvf_peer *peer = agent->peers;
        agent->peers = peer->next;
        kvf_agent_peer_drop(peer);
    }
    kvf_inbox_destroy(&agent->inbox);
    pthread_cond_destroy(&agent->control_wakes);
    pthread_cond_destroy(&agent->lane_wakes);
    pthread_cond_destroy(&agent->ended);
    pthread_mutex_destroy(&agent->mutex);
    kvf_context_release(agent->ctx);
    free(agent->name);
    free(agent);
}

/* ---- peers ----------------------------------------------------------------------------------------------------- */

kvf_peer *kvf_agent_peer(kvf_agent *agent, const char *name) {
    for (kvf_peer *peer = agent->peers; peer; peer = peer->next) {
        if (strcmp(peer->name, name) != 0) continue;
        peer->references++;
        return peer;
    }
    size_t bytes = strlen(name) + 1;
    kvf_peer *peer = calloc(1, sizeof *peer + bytes);
    if (!peer) return NULL;
    memcpy(peer->name, name, bytes);
    peer->references = 2;
    peer->next = agent->peers;
    agent->peers = peer;
    return peer;
}

void kvf_agent_peer_drop(kvf_peer *peer) {
    if (--peer->references == 0) free(peer);
}

/* ---- the gate --------------------------------------------------------------------------------------------------- */

void kvf_agent_exclusive_begin(kvf_agent *agent) {
    atomic_store_explicit(&agent->gate, kvf_now_nanos(), memory_order_relaxed);
}

void kvf_agent_exclusive_end(kvf_agent *agent) {
    atomic_store_explicit(&agent->gate, 0, memory_order_relaxed);
}

void kvf_agent_yield(kvf_agent *agent) {
    uint64_t since = atomic_load_explicit(&agent->gate, memory_order_relaxed);
    if (since == 0 || since == atomic_load_explicit(&agent->gate_given_up, memory_order_relaxed)) return;
    uint64_t now = kvf_now_nanos();
    bool eager = atomic_load_explicit(&agent->eager, memory_order_relaxed);
    if (now < since + (eager ? GATE_PATIENCE_EAGER : GATE_PATIENCE)) return;
    for (uint64_t end = now + GATE_BOUND; now < end; now = kvf_now_nanos()) {
        if (atomic_load_explicit(&agent->gate, memory_order_relaxed) != since) return;
        nanosleep(&(struct timespec){0, 20000}, NULL);
    }
    atomic_store_explicit(&agent->gate_given_up, since, memory_order_relaxed);
}

/* ---- start ------------------------------------------------------------------------------------------------------ */

static kvf_agent *agent_new(kvf_context *ctx, const nixl_functions *api, const char *name) {
    kvf_agent *agent = calloc(1, sizeof *agent);
    char *copy = strdup(name);
    if (!agent || !copy) {
        free(agent);
        free(copy);
        return NULL;
    }
    agent->member = (kvf_member){.stop = member_stop, .join = member_join};
    agent->ctx = ctx;
    agent->api = api;
    agent->name = copy;
    atomic_store(&agent->references, 1);
    pthread_mutex_init(&agent->mutex, NULL);
    kvf_condition_init(&agent->control_wakes);
    kvf_condition_init(&agent->lane_wakes);
    kvf_condition_init(&agent->ended);
    kvf_inbox_init(&agent->inbox);
    kvf_context_retain(ctx);
    return agent;
}

int32_t kvf_agent_start(kvf_context *ctx, uint32_t slot, const char *name, uint32_t progress_micros, uint32_t lanes) {
    const nixl_functions *api = kvf_nixl_api();
    if (!api) return KVF_E_UNAVAILABLE;
    kvf_agent *agent = agent_new(ctx, api, name);
    kvf_agent_start_order *begin = malloc(sizeof *begin);
    if (!agent || !begin) {
        if (agent) kvf_agent_release(agent);
        free(begin);
        return kvf_refuse(KVF_E_NOMEM, "no memory for a NIXL agent");
    }
    agent->progress_micros = progress_micros;
    agent->lane_count = lanes;
    /* Copying posts saturate memory with few threads, and the program needs its cores too; but one alone does not. */
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t most = cores > 3 ? (uint32_t)cores / 2 : cores > 1 ? 2 : 1;
    agent->sharers = most < lanes ? most : lanes;
    *begin = (kvf_agent_start_order){agent, slot};
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        /* The thread begins by taking the mutex, so it cannot end (and detach itself) before it has its name. */
        pthread_mutex_lock(&agent->mutex);
        status = kvf_thread_start(&agent->control, "kvf-nixl", kvf_control_main, begin);
        pthread_mutex_unlock(&agent->mutex);
        if (status != KVF_OK) kvf_job_drop(ctx, slot);
    }
    if (status != KVF_OK) {
        free(begin);
        kvf_agent_release(agent);
    }
    return status;
}

/* ---- stop ------------------------------------------------------------------------------------------------------- */

void kvf_agent_begin_stop(kvf_agent *agent) {
    kvf_agent_unpublish(agent);
    pthread_mutex_lock(&agent->mutex);
    if (!atomic_load(&agent->closing)) {
        atomic_store(&agent->give_up_at, kvf_now_nanos() + KVF_NIXL_CLOSE_GRACE);
        atomic_store(&agent->closing, true);
    }
    pthread_cond_broadcast(&agent->control_wakes);
    pthread_cond_broadcast(&agent->lane_wakes);
    pthread_cond_broadcast(&agent->ended);
    pthread_mutex_unlock(&agent->mutex);
}

static void member_stop(kvf_member *member) {
    kvf_agent_begin_stop((kvf_agent *)member);
}

/* Joins what ends by the deadline and drops the membership's reference; returns the number of lanes left behind (1 when only the control thread is stuck). */
static uint32_t member_join(kvf_member *member, uint64_t deadline) {
    kvf_agent *agent = (kvf_agent *)member;
    kvf_transfers_refuse(agent, NULL, KVF_E_CLOSED, "the NIXL agent is closing");
    uint32_t left = kvf_nixl_lanes_join(agent, deadline);
    if (kvf_thread_join_by(agent->control, deadline) != KVF_OK) {
        pthread_detach(agent->control);
        kvf_agent_refuse_orders(agent);
        if (left == 0) left = 1;
    }
    kvf_agent_release(agent);
    return left;
}

typedef struct stop {
    kvf_agent *agent;
    kvf_context *ctx;
    uint32_t slot;
} stop;

int32_t kvf_agent_stop_job(kvf_context *ctx, uint32_t slot, kvf_agent *agent) {
    stop *end = malloc(sizeof *end);
    if (!end) return kvf_refuse(KVF_E_NOMEM, "no memory to close a NIXL agent");
    *end = (stop){agent, ctx, slot};
    int32_t status = kvf_job_begin(ctx, slot);
    if (status != KVF_OK) {
        free(end);
        return status;
    }
    if (!kvf_context_detach(ctx, &agent->member)) {
        kvf_job_drop(ctx, slot);
        free(end);
        return kvf_refuse(KVF_E_CLOSED, "the NIXL agent %s is being closed", agent->name);
    }
    pthread_t closer;
    status = kvf_thread_start(&closer, "kvf-nixl-close", closer_main, end);
    if (status != KVF_OK) {
        free(end);
        kvf_job_drop(ctx, slot);
        /* Back to the context, which will stop it. */
        if (kvf_context_attach(ctx, &agent->member) != KVF_OK) {
            member_stop(&agent->member);
            kvf_agent_release(agent);
        }
        return status;
    }
    pthread_detach(closer);
    return KVF_OK;
}

static void *closer_main(void *argument) {
    stop end = *(stop *)argument;
    free(argument);
    member_stop(&end.agent->member);
    uint32_t left = member_join(&end.agent->member, kvf_now_nanos() + KVF_NIXL_CLOSE_BOUND);
    kvf_job_finish(end.ctx, end.slot, KVF_OK, 0, (double)left);
    return NULL;
}
