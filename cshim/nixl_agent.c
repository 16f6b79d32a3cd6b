/*
 * nixl_agent.c - makes, finds, stops and frees agents; the control thread's loop.
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

static void *control_main(void *argument);
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

static bool table_add(kvf_agent *agent) {
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

static void table_remove(kvf_agent *agent) {
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

typedef struct start {
    kvf_agent *agent;
    uint32_t slot;
} start;

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
    start *begin = malloc(sizeof *begin);
    if (!agent || !begin) {
        if (agent) kvf_agent_release(agent);
        free(begin);
        return kvf_refuse(KVF_E_NOMEM, "no memory for a NIXL agent");
    }
    agent->progress_micros = progress_micros;
    agent->lane_count = lanes;
    /* Copying posts saturate memory with few threads, and the program needs its cores too. */
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t half = cores > 3 ? (uint32_t)cores / 2 : 1;
    agent->sharers = half < lanes ? half : lanes;
    *begin = (start){agent, slot};
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        /* The thread begins by taking the mutex, so it cannot end (and detach itself) before it has its name. */
        pthread_mutex_lock(&agent->mutex);
        status = kvf_thread_start(&agent->control, "kvf-nixl", control_main, begin);
        pthread_mutex_unlock(&agent->mutex);
        if (status != KVF_OK) kvf_job_drop(ctx, slot);
    }
    if (status != KVF_OK) {
        free(begin);
        kvf_agent_release(agent);
    }
    return status;
}

/* On the control thread: NIXL's agent and what goes with it. Fails with a text and leaves nothing. */
static int32_t control_create(kvf_agent *agent) {
    nixl_agent_config config;
    memset(&config, 0, sizeof config);
    config.progress_thread = true;
    config.sync = NIXL_SYNC_RW;
    config.workers = 1;
    config.progress_micros = agent->progress_micros;
    nixl_status status = agent->api->create_configured_agent(agent->name, &config, &agent->handle);
    if (status != NIXL_SUCCESS) {
        return kvf_refuse(KVF_E_NIXL, "nixl_capi_create_configured_agent answered %d (%s) for agent %s", status,
                          kvf_nixl_status_name(status), agent->name);
    }
    status = agent->api->create_notif_map(&agent->notifications);
    if (status != NIXL_SUCCESS) {
        agent->api->destroy_agent(agent->handle);
        return kvf_refuse(KVF_E_NIXL, "nixl_capi_create_notif_map answered %d (%s)", status,
                          kvf_nixl_status_name(status));
    }
    return KVF_OK;
}

/* Lanes, word and membership. On failure `closing` is set and lanes that were started end. */
static int32_t control_publish(kvf_agent *agent) {
    int32_t status = KVF_OK;
    pthread_mutex_lock(&agent->mutex);
    for (uint32_t i = 0; i < agent->lane_count && status == KVF_OK; i++) status = kvf_lane_start(agent);
    pthread_mutex_unlock(&agent->mutex);
    if (status == KVF_OK && !table_add(agent)) status = kvf_refuse(KVF_E_BUSY, "%u NIXL agents are open", MAX_AGENTS);
    if (status == KVF_OK) {
        /* Membership holds a reference, until the member was joined. */
        atomic_fetch_add(&agent->references, 1);
        status = kvf_context_attach(agent->ctx, &agent->member);
        if (status != KVF_OK) {
            atomic_fetch_sub(&agent->references, 1);
            table_remove(agent);
        }
    }
    if (status != KVF_OK) member_stop(&agent->member);
    return status;
}

/* ---- the control thread ---------------------------------------------------------------------------------------- */

/* How long to wait before looking for notifications again, after `quiet` nanoseconds without any. */
static uint64_t look_pause(const kvf_agent *agent, uint64_t quiet) {
    if (atomic_load_explicit(&agent->eager, memory_order_relaxed)) {
        return quiet < 2 * MILLIS ? 30 * MICROS : quiet < 20 * MILLIS ? 100 * MICROS : 250 * MICROS;
    }
    return quiet < 5 * MILLIS ? 250 * MICROS : quiet < 50 * MILLIS ? MILLIS : 4 * MILLIS;
}

/* Waits for an order until `until`; NULL when there is none. */
static kvf_order *next_order(kvf_agent *agent, uint64_t until) {
    pthread_mutex_lock(&agent->mutex);
    while (!agent->first_order && !atomic_load(&agent->closing)) {
        if (kvf_condition_wait_until(&agent->control_wakes, &agent->mutex, until) != KVF_OK) break;
        /* Woken without an order: the eagerness changed. */
        if (!agent->first_order) break;
    }
    kvf_order *order = agent->first_order;
    if (order) {
        agent->first_order = order->next;
        if (!agent->first_order) agent->last_order = NULL;
    }
    pthread_mutex_unlock(&agent->mutex);
    return order;
}

void kvf_agent_refuse_orders(kvf_agent *agent) {
    pthread_mutex_lock(&agent->mutex);
    kvf_order *order = agent->first_order;
    agent->first_order = agent->last_order = NULL;
    pthread_mutex_unlock(&agent->mutex);
    while (order) {
        kvf_order *next = order->next;
        kvf_job_fail(order->ctx, order->slot, KVF_E_CLOSED, 0, "the NIXL agent %s is closing", agent->name);
        kvf_order_free(order);
        order = next;
    }
}

static void control_loop(kvf_agent *agent) {
    uint64_t active = kvf_now_nanos();
    uint64_t look = active;
    bool eager = false;
    while (!atomic_load(&agent->closing)) {
        kvf_order *order = next_order(agent, look);
        if (atomic_load(&agent->closing)) {
            if (order) {
                kvf_job_fail(order->ctx, order->slot, KVF_E_CLOSED, 0, "the NIXL agent %s is closing", agent->name);
                kvf_order_free(order);
            }
            break;
        }
        if (order) kvf_order_run(agent, order);
        uint64_t now = kvf_now_nanos();
        bool wanted = atomic_load_explicit(&agent->eager, memory_order_relaxed);
        if (wanted && !eager) active = look = now;
        eager = wanted;
        if (now < look) {
            uint64_t sooner = now + look_pause(agent, now - active);
            if (sooner < look) look = sooner;
            continue;
        }
        if (!kvf_inbox_full(&agent->inbox) && kvf_agent_collect(agent)) {
            active = kvf_now_nanos();
            kvf_context_notify(agent->ctx);
        }
        now = kvf_now_nanos();
        look = now + look_pause(agent, now - active);
    }
}

static void *control_main(void *argument) {
    start begin = *(start *)argument;
    free(argument);
    kvf_agent *agent = begin.agent;
    kvf_context *ctx = agent->ctx;
    pthread_mutex_lock(&agent->mutex);
    pthread_mutex_unlock(&agent->mutex);
    prctl(PR_SET_TIMERSLACK, 1000ul);
    int32_t status = control_create(agent);
    if (status != KVF_OK) {
        pthread_detach(pthread_self());
        kvf_job_fail(ctx, begin.slot, status, 0, "%s", kvf_error_text());
        kvf_agent_release(agent);
        return NULL;
    }
    status = control_publish(agent);
    if (status != KVF_OK) {
        char text[KVF_TEXT_BYTES];
        strncpy(text, kvf_error_text(), sizeof text - 1);
        text[sizeof text - 1] = 0;
        kvf_lanes_join(agent, UINT64_MAX);
        pthread_detach(pthread_self());
        kvf_job_fail(ctx, begin.slot, status, 0, "%s", text);
    } else {
        kvf_job_finish(ctx, begin.slot, KVF_OK, 0, (double)agent->word);
        control_loop(agent);
    }
    kvf_agent_refuse_orders(agent);
    /* Nothing may be inside NIXL when its agent goes; lanes that never come back keep it, and this thread, for ever. */
    pthread_mutex_lock(&agent->mutex);
    while (agent->live_lanes > 0) pthread_cond_wait(&agent->ended, &agent->mutex);
    pthread_mutex_unlock(&agent->mutex);
    agent->api->destroy_notif_map(agent->notifications);
    agent->api->destroy_agent(agent->handle);
    kvf_agent_free_backends(agent);
    kvf_agent_release(agent);
    return NULL;
}

/* ---- stop ------------------------------------------------------------------------------------------------------- */

static void member_stop(kvf_member *member) {
    kvf_agent *agent = (kvf_agent *)member;
    table_remove(agent);
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

/* Joins what ends by the deadline and drops the membership's reference; returns the number of lanes left behind (1 when only the control thread is stuck). */
static uint32_t member_join(kvf_member *member, uint64_t deadline) {
    kvf_agent *agent = (kvf_agent *)member;
    kvf_transfers_refuse(agent, NULL, KVF_E_CLOSED, "the NIXL agent is closing");
    uint32_t left = kvf_lanes_join(agent, deadline);
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
