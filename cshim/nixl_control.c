/*
 * nixl_control.c - an agent's control thread: makes NIXL's agent, carries out orders one after the other, looks for
 * notifications in between, and destroys NIXL's agent when nothing uses it any more.
 */
#define _GNU_SOURCE
#include "nixl_agent.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "nixl_load.h"
#include "status.h"
#include "thread.h"

#define MICROS ((uint64_t)1000)
#define MILLIS ((uint64_t)1000000)

/* ---- orders ----------------------------------------------------------------------------------------------------- */

kvf_order *kvf_order_new(kvf_order_kind kind, const char *name, const void *bytes, size_t length, const double *regions,
                         uint32_t count) {
    kvf_order *order = calloc(1, sizeof *order);
    if (!order) goto failed;
    order->kind = kind;
    order->length = length;
    order->count = count;
    if (name && !(order->name = strdup(name))) goto failed;
    if (!(order->bytes = malloc(length > 0 ? length : 1))) goto failed;
    if (length > 0) memcpy(order->bytes, bytes, length);
    if (count > 0) {
        order->regions = malloc((size_t)count * 3 * sizeof *regions);
        if (!order->regions) goto failed;
        memcpy(order->regions, regions, (size_t)count * 3 * sizeof *regions);
    }
    return order;
failed:
    if (order) kvf_order_free(order);
    kvf_set_error("no memory for a NIXL order");
    return NULL;
}

void kvf_order_free(kvf_order *order) {
    free(order->name);
    free(order->bytes);
    free(order->regions);
    free(order);
}

int32_t kvf_order_submit(kvf_agent *agent, kvf_context *ctx, uint32_t slot, kvf_order *order) {
    order->ctx = ctx;
    order->slot = slot;
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        pthread_mutex_lock(&agent->mutex);
        if (atomic_load(&agent->closing)) {
            status = kvf_refuse(KVF_E_CLOSED, "the NIXL agent %s is closing", agent->name);
        } else {
            if (agent->last_order) agent->last_order->next = order;
            else agent->first_order = order;
            agent->last_order = order;
            pthread_cond_signal(&agent->control_wakes);
        }
        pthread_mutex_unlock(&agent->mutex);
        if (status != KVF_OK) kvf_job_drop(ctx, slot);
    }
    if (status != KVF_OK) kvf_order_free(order);
    return status;
}

/* ---- begin and end ----------------------------------------------------------------------------------------------- */

/* NIXL's agent and what goes with it. Fails with a text and leaves nothing. */
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
    for (uint32_t i = 0; i < agent->lane_count && status == KVF_OK; i++) status = kvf_nixl_lane_start(agent);
    pthread_mutex_unlock(&agent->mutex);
    if (status == KVF_OK && !kvf_agent_publish(agent)) status = kvf_refuse(KVF_E_BUSY, "too many NIXL agents are open");
    if (status == KVF_OK) {
        /* Membership holds a reference, until the member was joined. */
        atomic_fetch_add(&agent->references, 1);
        status = kvf_context_attach(agent->ctx, &agent->member);
        if (status != KVF_OK) {
            atomic_fetch_sub(&agent->references, 1);
            kvf_agent_unpublish(agent);
        }
    }
    if (status != KVF_OK) kvf_agent_begin_stop(agent);
    return status;
}

/* ---- the control thread ---------------------------------------------------------------------------------------- */

static void run(kvf_agent *agent, kvf_order *order) {
    if (kvf_job_cancelled(order->ctx, order->slot)) {
        kvf_job_fail(order->ctx, order->slot, KVF_E_CANCELLED, 0, "cancelled before it began");
    } else {
        switch (order->kind) {
            case KVF_ORDER_BACKEND: kvf_order_backend(agent, order); break;
            case KVF_ORDER_REGISTER: kvf_order_register(agent, order); break;
            case KVF_ORDER_DEREGISTER: kvf_order_deregister(agent, order); break;
            case KVF_ORDER_METADATA: kvf_order_metadata(agent, order); break;
            case KVF_ORDER_LOAD_PEER: kvf_order_load_peer(agent, order); break;
            case KVF_ORDER_FORGET_PEER: kvf_order_forget_peer(agent, order); break;
            case KVF_ORDER_NOTIFY: kvf_order_notify(agent, order); break;
        }
    }
    kvf_order_free(order);
}

/* Sleeping and waking takes as long as a message: while they follow each other, an eager agent looks awake, where other
 * processors are there for those that it would keep waiting. */
#define AWAKE_QUIET (300 * MICROS)
#define AWAKE_PAUSE (5 * MICROS)
#define AWAKE_PROCESSORS 2
/* Whoever waited a moment ago often has a peer that goes on: it is heard soon for so long. */
#define LIVELY (1000 * MILLIS)

/* What a control thread knows of when to look for notifications. */
typedef struct watch {
    uint64_t active;       /* when the last ones came */
    uint64_t lively_until;
    bool eager;
    bool processors;       /* there are enough to look awake */
} watch;

/* How long to wait before looking for notifications again. */
static uint64_t look_pause(const watch *watch, uint64_t now) {
    uint64_t quiet = now - watch->active;
    if (watch->eager) {
        if (watch->processors && quiet < AWAKE_QUIET) return AWAKE_PAUSE;
        return quiet < 2 * MILLIS ? 30 * MICROS : quiet < 20 * MILLIS ? 100 * MICROS : 250 * MICROS;
    }
    if (now < watch->lively_until) return 100 * MICROS;
    return quiet < 5 * MILLIS ? 250 * MICROS : quiet < 50 * MILLIS ? MILLIS : 4 * MILLIS;
}

/* Waits for an order until `until`, awake or asleep; NULL when there is none. */
static kvf_order *next_order(kvf_agent *agent, uint64_t until, bool awake) {
    pthread_mutex_lock(&agent->mutex);
    while (!agent->first_order && !atomic_load(&agent->closing)) {
        if (awake) {
            pthread_mutex_unlock(&agent->mutex);
            sched_yield();
            bool over = kvf_now_nanos() >= until;
            pthread_mutex_lock(&agent->mutex);
            if (over) break;
            continue;
        }
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
    uint64_t look = kvf_now_nanos();
    watch watch = {.active = look, .processors = sysconf(_SC_NPROCESSORS_ONLN) >= AWAKE_PROCESSORS};
    uint64_t pause = 0;
    while (!atomic_load(&agent->closing)) {
        kvf_order *order = next_order(agent, look, watch.eager && pause == AWAKE_PAUSE);
        if (atomic_load(&agent->closing)) {
            if (order) {
                kvf_job_fail(order->ctx, order->slot, KVF_E_CLOSED, 0, "the NIXL agent %s is closing", agent->name);
                kvf_order_free(order);
            }
            break;
        }
        if (order) run(agent, order);
        uint64_t now = kvf_now_nanos();
        bool wanted = atomic_load_explicit(&agent->eager, memory_order_relaxed);
        if (wanted && !watch.eager) watch.active = look = now;
        if (!wanted && watch.eager) watch.lively_until = now + LIVELY;
        watch.eager = wanted;
        if (now >= look) {
            if (!kvf_inbox_full(&agent->inbox) && kvf_agent_collect(agent)) {
                watch.active = kvf_now_nanos();
                kvf_context_notify(agent->ctx);
            }
            now = kvf_now_nanos();
            look = UINT64_MAX;
        }
        pause = look_pause(&watch, now);
        if (now + pause < look) look = now + pause;
    }
}

void *kvf_control_main(void *argument) {
    kvf_agent_start_order begin = *(kvf_agent_start_order *)argument;
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
        kvf_nixl_lanes_join(agent, UINT64_MAX);
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
