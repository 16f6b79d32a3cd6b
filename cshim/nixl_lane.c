/*
 * nixl_lane.c - the threads that run transfers: how they start, find work, are given up and end.
 *
 * A lane takes a transfer from the queue and works on it until it is all cut (nixl_flight.c). Where posts copy on the
 * posting thread (CMA), idle lanes help with a transfer that is running.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "nixl_transfer.h"
#include "status.h"
#include "thread.h"

/* A lane without work looks for some for so long before it sleeps: a caller that awaits one transfer after the other
 * then does not pay for waking it. One lane at a time does so. */
#define LINGER ((uint64_t)150 * 1000u)

struct kvf_nixl_lane {
    kvf_nixl_lane *next;
    kvf_agent *agent;
    pthread_t thread;
    kvf_transfer *current; /* guarded by the agent's mutex, as are these */
    bool orphan;
    bool ended;
    bool left;             /* nobody will join it: it frees itself */
    kvf_lists lists;       /* the thread's own */
};

void kvf_nixl_lane_summon(kvf_agent *agent) {
    if (!agent->first_waiting || agent->idle_lanes == 0 || agent->looking || agent->returning_lanes > 0) return;
    pthread_cond_signal(&agent->lane_wakes);
}

/* With the agent's mutex held: a transfer to work on, first from the queue, then one to help with. */
static kvf_transfer *pick(kvf_agent *agent) {
    kvf_transfer *t = agent->first_waiting;
    if (t) {
        agent->first_waiting = t->next;
        if (!agent->first_waiting) agent->last_waiting = NULL;
        t->next = agent->running;
        agent->running = t;
        t->workers = 1;
        /* To help, or for what came while this lane was looking or returning: nobody was woken then. */
        if (atomic_load_explicit(&t->shareable, memory_order_relaxed) && agent->idle_lanes > 0)
            pthread_cond_signal(&agent->lane_wakes);
        else kvf_nixl_lane_summon(agent);
        return t;
    }
    for (t = agent->running; t; t = t->next) {
        if (!atomic_load_explicit(&t->shareable, memory_order_relaxed) || atomic_load(&t->abandoned)) continue;
        if (t->workers >= agent->sharers) continue;
        t->workers++;
        return t;
    }
    return NULL;
}

/* With the agent's mutex held: true when the lane was the last one at the transfer, which is then off the list. */
static bool leave(kvf_agent *agent, kvf_transfer *transfer) {
    if (--transfer->workers > 0) return false;
    for (kvf_transfer **at = &agent->running; *at; at = &(*at)->next) {
        if (*at != transfer) continue;
        *at = transfer->next;
        break;
    }
    return true;
}

/* Waits for a submission, awake, for a short time; true when there was one. The agent's mutex is held before and after,
 * not during. */
static bool look(kvf_agent *agent) {
    uint32_t seen = atomic_load_explicit(&agent->submitted, memory_order_relaxed);
    agent->looking = true;
    pthread_mutex_unlock(&agent->mutex);
    uint64_t end = kvf_now_nanos() + LINGER;
    /* Yielding, for the thread that is to submit may wait for this very processor. */
    while (atomic_load_explicit(&agent->submitted, memory_order_relaxed) == seen && !atomic_load(&agent->closing) &&
           kvf_now_nanos() < end)
        sched_yield();
    pthread_mutex_lock(&agent->mutex);
    agent->looking = false;
    return atomic_load_explicit(&agent->submitted, memory_order_relaxed) != seen;
}

/* With the agent's mutex held (given up meanwhile), and nothing in the queue: waits for work. */
static void wait_for_work(kvf_agent *agent) {
    if (!agent->looking && look(agent)) return;
    if (agent->first_waiting || atomic_load(&agent->closing)) return;
    agent->idle_lanes++;
    pthread_cond_wait(&agent->lane_wakes, &agent->mutex);
    agent->idle_lanes--;
}

void kvf_nixl_lane_invite(kvf_agent *agent) {
    pthread_mutex_lock(&agent->mutex);
    if (agent->idle_lanes > 0) pthread_cond_signal(&agent->lane_wakes);
    pthread_mutex_unlock(&agent->mutex);
}

static void *lane_main(void *argument) {
    kvf_nixl_lane *lane = argument;
    kvf_agent *agent = lane->agent;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    pthread_mutex_lock(&agent->mutex);
    while (!lane->orphan) {
        kvf_transfer *t = pick(agent);
        if (!t) {
            if (atomic_load(&agent->closing)) break;
            wait_for_work(agent);
            continue;
        }
        lane->current = t;
        pthread_mutex_unlock(&agent->mutex);
        kvf_transfer_work(t, &lane->lists);
        pthread_mutex_lock(&agent->mutex);
        lane->current = NULL;
        if (!leave(agent, t)) continue;
        pthread_mutex_unlock(&agent->mutex);
        kvf_transfer_settle(t);
        pthread_mutex_lock(&agent->mutex);
        agent->returning_lanes--;
        /* One that was given up meanwhile does not come back to the queue. */
        if (lane->orphan) kvf_nixl_lane_summon(agent);
    }
    pthread_mutex_unlock(&agent->mutex);
    kvf_lists_free(agent->api, &lane->lists);
    pthread_mutex_lock(&agent->mutex);
    if (lane->orphan) agent->orphans--;
    lane->ended = true;
    agent->live_lanes--;
    bool left = lane->left;
    pthread_cond_broadcast(&agent->ended);
    pthread_mutex_unlock(&agent->mutex);
    if (left) free(lane);
    kvf_agent_release(agent);
    return NULL;
}

/* With the agent's mutex held: lets go of the lanes that have ended. */
static void reap(kvf_agent *agent) {
    for (kvf_nixl_lane **at = &agent->lanes; *at;) {
        kvf_nixl_lane *lane = *at;
        if (!lane->ended) {
            at = &lane->next;
            continue;
        }
        *at = lane->next;
        /* All that it still does is to unlock the mutex and drop its reference; both without waiting for us. */
        pthread_detach(lane->thread);
        free(lane);
    }
}

int32_t kvf_nixl_lane_start(kvf_agent *agent) {
    reap(agent);
    kvf_nixl_lane *lane = calloc(1, sizeof *lane);
    if (!lane) return kvf_refuse(KVF_E_NOMEM, "no memory for a lane");
    lane->agent = agent;
    atomic_fetch_add(&agent->references, 1);
    int32_t status = kvf_thread_start(&lane->thread, "kvf-nixl-lane", lane_main, lane);
    if (status != KVF_OK) {
        free(lane);
        atomic_fetch_sub(&agent->references, 1);
        return status;
    }
    lane->next = agent->lanes;
    agent->lanes = lane;
    agent->live_lanes++;
    return KVF_OK;
}

int32_t kvf_nixl_lane_abandon(kvf_agent *agent, kvf_context *ctx, uint32_t slot) {
    for (kvf_transfer *t = agent->first_waiting; t; t = t->next) {
        if (t->ctx != ctx || t->slot != slot) continue;
        /* No lane has it: the next one to look at it ends it as cancelled. */
        atomic_store(&t->abandoned, true);
        return KVF_OK;
    }
    kvf_transfer *t = agent->running;
    while (t && (t->ctx != ctx || t->slot != slot)) t = t->next;
    if (!t) return KVF_AGAIN;
    atomic_store(&t->abandoned, true);
    uint32_t held = 0;
    for (kvf_nixl_lane *lane = agent->lanes; lane; lane = lane->next) held += lane->current == t && !lane->orphan;
    if (held == 0) return KVF_OK;
    if (agent->orphans + held > KVF_NIXL_MAX_ORPHANS) {
        return kvf_refuse(KVF_E_BUSY, "%u lanes of the NIXL agent were given up and have not come back", agent->orphans);
    }
    int32_t status = KVF_OK;
    for (kvf_nixl_lane *lane = agent->lanes; lane; lane = lane->next) {
        if (lane->current != t || lane->orphan) continue;
        /* The new lane is put before this one, where this walk has been. */
        status = kvf_nixl_lane_start(agent);
        if (status != KVF_OK) return status;
        lane->orphan = true;
        agent->orphans++;
    }
    return status;
}

uint32_t kvf_nixl_lanes_join(kvf_agent *agent, uint64_t deadline) {
    pthread_mutex_lock(&agent->mutex);
    while (agent->live_lanes > 0) {
        if (deadline == UINT64_MAX) pthread_cond_wait(&agent->ended, &agent->mutex);
        else if (kvf_condition_wait_until(&agent->ended, &agent->mutex, deadline) != KVF_OK) break;
    }
    uint32_t left = agent->live_lanes;
    kvf_nixl_lane *lanes = agent->lanes;
    agent->lanes = NULL;
    pthread_mutex_unlock(&agent->mutex);
    while (lanes) {
        kvf_nixl_lane *lane = lanes;
        lanes = lane->next;
        pthread_mutex_lock(&agent->mutex);
        bool ended = lane->ended;
        if (!ended) {
            lane->left = true;
            pthread_detach(lane->thread);
        }
        pthread_mutex_unlock(&agent->mutex);
        if (!ended) continue;
        pthread_join(lane->thread, NULL);
        free(lane);
    }
    return left;
}
