/*
 * nixl_flight.c - what a lane has in flight for its transfer: post, poll, release.
 *
 * Up to two pieces are in flight, so that the next one is cut and posted while the first is polled.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

#include "nixl_transfer.h"
#include "thread.h"

#define MICROS ((uint64_t)1000)
#define DEPTH 2u
/* A piece is polled without a pause for so long, then with pauses of a sixteenth of its age between these bounds. */
#define SPIN (20 * MICROS)
#define SHORT_PAUSE (5 * MICROS)
#define LONG_PAUSE (200 * MICROS)
#define ORPHAN_PAUSE (5000 * MICROS)

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

void kvf_transfer_work(kvf_transfer *t, kvf_lists *lists) {
    kvf_piece pieces[DEPTH];
    flight f = {.count = 0, .landed_at = 0};
    for (;;) {
        kvf_piece *piece = spare(pieces, &f);
        bool cut = kvf_transfer_cut(t, lists, piece);
        if (cut && post(t, &f, piece)) f.pieces[f.count++] = piece;
        if (f.count == 0 && !cut) return;
        if (f.count == DEPTH || (f.count > 0 && !cut)) await_one(t, &f);
    }
}
