/*
 * nixl_transfer.c - submits transfers, keeps account of their pieces and settles them.
 */
#define _GNU_SOURCE
#include "nixl_transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nixl_load.h"
#include "status.h"
#include "thread.h"

/* ---- submission ------------------------------------------------------------------------------------------------- */

static void transfer_free(kvf_transfer *transfer) {
    kvf_hop_free(&transfer->hop);
    pthread_mutex_destroy(&transfer->mutex);
    free(transfer->notification);
    free(transfer);
}

static int32_t check_kinds(const kvf_hop *hop) {
    for (uint32_t i = 0; i < hop->programs; i++) {
        if (hop->program[i].src_kind > 2 || hop->program[i].dst_kind > 2) {
            return kvf_refuse(KVF_E_INVALID, "program %u has a kind of memory that NIXL does not know", i);
        }
    }
    return KVF_OK;
}

static kvf_transfer *transfer_new(const kvf_transfer_request *request, int32_t *status) {
    kvf_transfer *t = calloc(1, sizeof *t);
    uint8_t *notification = malloc(request->length > 0 ? request->length : 1);
    if (!t || !notification) {
        free(t);
        free(notification);
        *status = kvf_refuse(KVF_E_NOMEM, "no memory for a transfer");
        return NULL;
    }
    *status = kvf_hop_parse_copy(&t->hop, request->hop, request->words);
    if (*status == KVF_OK) {
        *status = check_kinds(&t->hop);
        if (*status != KVF_OK) kvf_hop_free(&t->hop);
    }
    if (*status != KVF_OK) {
        free(t);
        free(notification);
        return NULL;
    }
    if (request->length > 0) memcpy(notification, request->notification, request->length);
    t->notification = notification;
    t->notification_bytes = request->length;
    t->notify = request->notify || request->length > 0;
    t->operation = request->operation;
    t->cap_bytes = request->piece_bytes;
    t->cap_rows = request->piece_rows;
    pthread_mutex_init(&t->mutex, NULL);
    kvf_cursor_open(&t->cursor, &t->hop);
    kvf_transfer_advance(t);
    return t;
}

/* With the agent's mutex held. */
static int32_t enqueue(kvf_agent *agent, kvf_transfer *t, const char *peer) {
    if (atomic_load(&agent->closing)) return kvf_refuse(KVF_E_CLOSED, "the NIXL agent %s is closing", agent->name);
    t->peer = kvf_agent_peer(agent, peer);
    if (!t->peer) return kvf_refuse(KVF_E_NOMEM, "no memory for a peer");
    t->peer->transfers++;
    t->pace = t->peer->pace[t->operation];
    if (t->pace.bytes == 0) t->pace = kvf_pace_first();
    if (t->peer->copies && agent->sharers > 1) kvf_transfer_share(t, agent->sharers);
    if (agent->last_waiting) agent->last_waiting->next = t;
    else agent->first_waiting = t;
    agent->last_waiting = t;
    atomic_fetch_add_explicit(&agent->submitted, 1, memory_order_relaxed);
    kvf_nixl_lane_summon(agent);
    return KVF_OK;
}

int32_t kvf_transfer_submit(kvf_agent *agent, kvf_context *ctx, uint32_t slot, const kvf_transfer_request *request) {
    int32_t status;
    kvf_transfer *t = transfer_new(request, &status);
    if (!t) return status;
    t->agent = agent;
    t->ctx = ctx;
    t->slot = slot;
    status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        pthread_mutex_lock(&agent->mutex);
        status = enqueue(agent, t, request->peer);
        pthread_mutex_unlock(&agent->mutex);
        if (status != KVF_OK) kvf_job_drop(ctx, slot);
    }
    if (status != KVF_OK) transfer_free(t);
    return status;
}

/* With the agent's mutex held: what a transfer holds of its agent. */
static void detach(kvf_transfer *t) {
    t->peer->transfers--;
    kvf_agent_peer_drop(t->peer);
    pthread_cond_broadcast(&t->agent->ended);
}

void kvf_transfers_refuse(kvf_agent *agent, const kvf_peer *peer, int32_t status, const char *reason) {
    kvf_transfer *refused = NULL;
    pthread_mutex_lock(&agent->mutex);
    kvf_transfer **at = &agent->first_waiting;
    agent->last_waiting = NULL;
    while (*at) {
        kvf_transfer *t = *at;
        if (peer && t->peer != peer) {
            agent->last_waiting = t;
            at = &t->next;
            continue;
        }
        *at = t->next;
        t->next = refused;
        refused = t;
    }
    for (kvf_transfer *t = refused; t; t = t->next) detach(t);
    pthread_mutex_unlock(&agent->mutex);
    while (refused) {
        kvf_transfer *t = refused;
        refused = t->next;
        kvf_job_fail(t->ctx, t->slot, status, 0, "%s before the transfer began", reason);
        transfer_free(t);
    }
}

/* ---- stopping --------------------------------------------------------------------------------------------------- */

void kvf_transfer_halt(kvf_transfer *t, int32_t status, const char *format, ...) {
    if (t->status != KVF_OK) return;
    t->status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(t->text, sizeof t->text, format, args);
    va_end(args);
}

bool kvf_transfer_may_go_on(kvf_transfer *t) {
    if (t->status != KVF_OK) return false;
    if (atomic_load(&t->peer->leaving)) {
        kvf_transfer_halt(t, KVF_E_PEER, "peer %.100s was forgotten", t->peer->name);
    } else if (atomic_load(&t->agent->closing)) {
        kvf_transfer_halt(t, KVF_E_CLOSED, "the NIXL agent is closing");
    } else if (atomic_load(&t->abandoned) || kvf_job_cancelled(t->ctx, t->slot)) {
        kvf_transfer_halt(t, KVF_E_CANCELLED, "cancelled after %llu of %llu bytes were posted in %llu pieces",
             (unsigned long long)t->bytes_done, (unsigned long long)t->hop.bytes, (unsigned long long)t->count);
    }
    return t->status == KVF_OK;
}

uint64_t kvf_transfer_give_up_at(const kvf_transfer *t) {
    uint64_t peer = atomic_load(&t->peer->give_up_at);
    uint64_t agent = atomic_load(&t->agent->give_up_at);
    return peer == 0 ? agent : agent == 0 || peer < agent ? peer : agent;
}

/* ---- account ---------------------------------------------------------------------------------------------------- */

void kvf_transfer_unlist(kvf_transfer *t, const kvf_piece *piece) {
    for (kvf_piece **at = &t->pieces; *at; at = &(*at)->next) {
        if (*at != piece) continue;
        *at = piece->next;
        return;
    }
}

void kvf_transfer_posting(kvf_transfer *t, kvf_piece *piece) {
    piece->posted_at = kvf_now_nanos();
    pthread_mutex_lock(&t->mutex);
    t->touched = true;
    pthread_mutex_unlock(&t->mutex);
}

/* With the transfer's mutex held: programs of which nothing is left to cut or in flight. */
static uint32_t programs_done(const kvf_transfer *t) {
    uint32_t done = t->rows_left ? t->row.program : t->hop.programs;
    for (const kvf_piece *piece = t->pieces; piece; piece = piece->next) {
        if (piece->program < done) done = piece->program;
    }
    return done;
}

void kvf_transfer_land(kvf_transfer *t, kvf_piece *piece, uint64_t nanos, bool copied_by_post) {
    pthread_mutex_lock(&t->mutex);
    kvf_transfer_unlist(t, piece);
    t->bytes_done += piece->bytes;
    t->copied = copied_by_post;
    kvf_pace_adapt(&t->pace, piece, nanos);
    uint32_t programs = programs_done(t);
    uint64_t bytes = t->bytes_done;
    bool more = copied_by_post && t->status == KVF_OK && t->rows_left &&
                t->hop.bytes - bytes > KVF_SHARE_PIECES * piece->bytes;
    atomic_store_explicit(&t->shareable, more, memory_order_relaxed);
    pthread_mutex_unlock(&t->mutex);
    if (more && t->agent->sharers > 1) kvf_nixl_lane_invite(t->agent);
    kvf_job_progress(t->ctx, t->slot, programs, (double)bytes);
}

void kvf_transfer_break(kvf_transfer *t, kvf_piece *piece, const char *function, nixl_status answer) {
    pthread_mutex_lock(&t->mutex);
    kvf_transfer_unlist(t, piece);
    t->in_doubt = true;
    if (function) {
        t->broken = true;
        kvf_transfer_halt(t, KVF_E_NIXL, "%s answered %d (%s) for peer %.100s, piece %llu of %u descriptors and %llu bytes", function,
             answer, kvf_nixl_status_name(answer), t->peer->name, (unsigned long long)piece->number, piece->rows,
             (unsigned long long)piece->bytes);
    } else {
        kvf_transfer_halt(t, atomic_load(&t->agent->closing) ? KVF_E_CLOSED : KVF_E_PEER,
             "piece %llu of %llu bytes to or from peer %.100s was released unfinished", (unsigned long long)piece->number,
             (unsigned long long)piece->bytes, t->peer->name);
    }
    pthread_mutex_unlock(&t->mutex);
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

/* After all data is complete. The data stays where it is when the notification cannot be sent. */
static void send_notification(kvf_transfer *t) {
    kvf_agent *agent = t->agent;
    nixl_status answer =
        agent->api->gen_notif(agent->handle, t->peer->name, t->notification, t->notification_bytes, NULL);
    if (answer == NIXL_SUCCESS) return;
    t->broken = true;
    kvf_transfer_halt(t, KVF_E_NIXL, "nixl_capi_gen_notif answered %d (%s) for peer %.100s after the data was complete", answer,
         kvf_nixl_status_name(answer), t->peer->name);
}

void kvf_transfer_settle(kvf_transfer *t) {
    kvf_agent *agent = t->agent;
    /* No lane is left, so nothing else reads or writes it; the mutex is for the eyes of tools. */
    pthread_mutex_lock(&t->mutex);
    if (t->status == KVF_OK && t->hop.rows == 0) kvf_transfer_may_go_on(t);
    if (t->status == KVF_OK && t->notify) send_notification(t);
    if (t->status == KVF_E_NIXL && kvf_agent_peer_gone(agent, t->peer->name, t->broken)) t->status = KVF_E_PEER;
    int32_t status = t->status;
    uint32_t flags = 0;
    if (status != KVF_OK && t->touched) flags |= KVF_DONE_TOUCHED;
    if (status != KVF_OK && t->in_doubt) flags |= KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT;
    uint64_t bytes = t->bytes_done;
    bool copied = t->copied;
    pthread_mutex_unlock(&t->mutex);

    pthread_mutex_lock(&agent->mutex);
    if (status == KVF_OK && t->hop.rows > 0) {
        t->peer->pace[t->operation] = t->pace;
        t->peer->copies = copied;
    }
    detach(t);
    agent->returning_lanes++;
    pthread_mutex_unlock(&agent->mutex);
    if (status == KVF_OK) {
        kvf_job_progress(t->ctx, t->slot, t->hop.programs, (double)bytes);
        kvf_job_finish(t->ctx, t->slot, KVF_OK, 0, (double)bytes);
    } else {
        kvf_job_fail(t->ctx, t->slot, status, flags, "%s", t->text);
    }
    transfer_free(t);
}
