/*
 * nixl_lane.c - the threads that run transfers: post, poll, release.
 *
 * A lane takes a transfer from the queue and works on it until it is all cut. It keeps up to two pieces in flight, so
 * that the next one is cut and posted while the first is polled. Where posts copy on the posting thread (CMA), idle lanes
 * help with a transfer that is running.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "nixl_load.h"
#include "nixl_transfer.h"
#include "status.h"
#include "thread.h"

#define MICROS ((uint64_t)1000)
#define DEPTH 2u
/* A piece is polled without a pause for so long, then with pauses of a sixteenth of its age between these bounds. */
#define SPIN (20 * MICROS)
#define SHORT_PAUSE (5 * MICROS)
#define LONG_PAUSE (200 * MICROS)
#define ORPHAN_PAUSE (5000 * MICROS)
/* A lane without work looks for some for so long before it sleeps: a caller that awaits one transfer after the other
 * then does not pay for waking it. One lane at a time does so. */
#define LINGER (150 * MICROS)

struct kvf_lane {
    kvf_lane *next;
    kvf_agent *agent;
    pthread_t thread;
    kvf_transfer *current; /* guarded by the agent's mutex, as are these */
    bool orphan;
    bool ended;
    bool left;             /* nobody will join it: it frees itself */
    kvf_lists lists;       /* the thread's own */
};

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

/* The only place where a request is released; afterwards the piece has none. */
static void release(const kvf_agent *agent, kvf_piece *piece) {
    nixl_xfer_req request = piece->request;
    piece->request = NULL;
    if (!request) return;
    /* A request that NIXL does not release is left to it: destroying it then is refused. */
    if (agent->api->release_xfer_req(agent->handle, request) == NIXL_SUCCESS) agent->api->destroy_xfer_req(request);
}

static void pause_for(uint64_t nanos) {
    nanosleep(&(struct timespec){(time_t)(nanos / 1000000000u), (long)(nanos % 1000000000u)}, NULL);
}

/* Waits before the next poll of a piece that was posted `age` nanoseconds ago. */
static void poll_pause(const kvf_transfer *t, uint64_t age) {
    if (age < SPIN) return;
    if (atomic_load_explicit(&t->abandoned, memory_order_relaxed)) {
        pause_for(ORPHAN_PAUSE);
        return;
    }
    uint64_t wait = age / 16;
    if (wait < SHORT_PAUSE) sched_yield();
    else pause_for(wait > LONG_PAUSE ? LONG_PAUSE : wait);
}

/* What a lane has in flight for its transfer, oldest first. */
typedef struct flight {
    kvf_piece *pieces[DEPTH];
    uint32_t count;
    uint64_t landed_at; /* when the last one landed */
} flight;

static void landed(kvf_transfer *t, flight *f, kvf_piece *piece, bool copied_by_post) {
    uint64_t now = kvf_now_nanos();
    uint64_t since = piece->posted_at > f->landed_at ? piece->posted_at : f->landed_at;
    f->landed_at = now;
    release(t->agent, piece);
    kvf_transfer_land(t, piece, now - since, copied_by_post);
}

/* Posts a piece; true when it is in flight. */
static bool post(kvf_transfer *t, flight *f, kvf_piece *piece) {
    kvf_agent_yield(t->agent);
    kvf_transfer_posting(t, piece);
    nixl_status answer = t->agent->api->post_xfer_req(t->agent->handle, piece->request, NULL);
    if (answer == NIXL_IN_PROGRESS) {
        /* Posts that copied everything often say so only when they are asked. */
        uint64_t in_post = kvf_now_nanos() - piece->posted_at;
        answer = t->agent->api->get_xfer_status(t->agent->handle, piece->request);
        if (answer == NIXL_IN_PROGRESS) return true;
        if (answer == NIXL_SUCCESS) {
            landed(t, f, piece, in_post > SPIN);
            return false;
        }
        release(t->agent, piece);
        kvf_transfer_break(t, piece, "nixl_capi_get_xfer_status", answer);
        return false;
    }
    if (answer == NIXL_SUCCESS) {
        landed(t, f, piece, true);
        return false;
    }
    release(t->agent, piece);
    kvf_transfer_break(t, piece, "nixl_capi_post_xfer_req", answer);
    return false;
}

/* Polls what is in flight until one piece has left it. */
static void await_one(kvf_transfer *t, flight *f) {
    for (;;) {
        for (uint32_t i = 0; i < f->count; i++) {
            kvf_piece *piece = f->pieces[i];
            nixl_status answer = t->agent->api->get_xfer_status(t->agent->handle, piece->request);
            uint64_t give_up = kvf_transfer_give_up_at(t);
            bool over = answer == NIXL_IN_PROGRESS && give_up != 0 && kvf_now_nanos() > give_up;
            if (answer == NIXL_IN_PROGRESS && !over) continue;
            for (uint32_t k = i + 1; k < f->count; k++) f->pieces[k - 1] = f->pieces[k];
            f->count--;
            if (answer == NIXL_SUCCESS) {
                landed(t, f, piece, false);
            } else {
                release(t->agent, piece);
                kvf_transfer_break(t, piece, over ? NULL : "nixl_capi_get_xfer_status", answer);
            }
            return;
        }
        poll_pause(t, kvf_now_nanos() - f->pieces[0]->posted_at);
    }
}

/* One of DEPTH pieces that is not in flight. */
static kvf_piece *spare(kvf_piece *pieces, const flight *f) {
    return f->count > 0 && f->pieces[0] == pieces ? pieces + 1 : pieces;
}

/* Works on a transfer until nothing of it is left to cut or it stops. */
static void work(kvf_lane *lane, kvf_transfer *t) {
    kvf_piece pieces[DEPTH];
    flight f = {.count = 0, .landed_at = 0};
    for (;;) {
        kvf_piece *piece = spare(pieces, &f);
        bool cut = kvf_transfer_cut(t, &lane->lists, piece);
        if (cut && post(t, &f, piece)) f.pieces[f.count++] = piece;
        if (f.count == 0 && !cut) return;
        if (f.count == DEPTH || (f.count > 0 && !cut)) await_one(t, &f);
    }
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

void kvf_lane_summon(kvf_agent *agent) {
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
        else kvf_lane_summon(agent);
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

void kvf_lane_invite(kvf_agent *agent) {
    pthread_mutex_lock(&agent->mutex);
    if (agent->idle_lanes > 0) pthread_cond_signal(&agent->lane_wakes);
    pthread_mutex_unlock(&agent->mutex);
}

static void *lane_main(void *argument) {
    kvf_lane *lane = argument;
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
        work(lane, t);
        pthread_mutex_lock(&agent->mutex);
        lane->current = NULL;
        if (!leave(agent, t)) continue;
        pthread_mutex_unlock(&agent->mutex);
        kvf_transfer_settle(t);
        pthread_mutex_lock(&agent->mutex);
        agent->returning_lanes--;
        /* One that was given up meanwhile does not come back to the queue. */
        if (lane->orphan) kvf_lane_summon(agent);
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
    for (kvf_lane **at = &agent->lanes; *at;) {
        kvf_lane *lane = *at;
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

int32_t kvf_lane_start(kvf_agent *agent) {
    reap(agent);
    kvf_lane *lane = calloc(1, sizeof *lane);
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

int32_t kvf_lane_abandon(kvf_agent *agent, kvf_context *ctx, uint32_t slot) {
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
    for (kvf_lane *lane = agent->lanes; lane; lane = lane->next) held += lane->current == t && !lane->orphan;
    if (held == 0) return KVF_OK;
    if (agent->orphans + held > KVF_NIXL_MAX_ORPHANS) {
        return kvf_refuse(KVF_E_BUSY, "%u lanes of the NIXL agent were given up and have not come back", agent->orphans);
    }
    int32_t status = KVF_OK;
    for (kvf_lane *lane = agent->lanes; lane; lane = lane->next) {
        if (lane->current != t || lane->orphan) continue;
        /* The new lane is put before this one, where this walk has been. */
        status = kvf_lane_start(agent);
        if (status != KVF_OK) return status;
        lane->orphan = true;
        agent->orphans++;
    }
    return status;
}

uint32_t kvf_lanes_join(kvf_agent *agent, uint64_t deadline) {
    pthread_mutex_lock(&agent->mutex);
    while (agent->live_lanes > 0) {
        if (deadline == UINT64_MAX) pthread_cond_wait(&agent->ended, &agent->mutex);
        else if (kvf_condition_wait_until(&agent->ended, &agent->mutex, deadline) != KVF_OK) break;
    }
    uint32_t left = agent->live_lanes;
    kvf_lane *lanes = agent->lanes;
    agent->lanes = NULL;
    pthread_mutex_unlock(&agent->mutex);
    while (lanes) {
        kvf_lane *lane = lanes;
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
