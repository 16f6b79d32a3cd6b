/*
 * nixl_transfer.c - cuts hops into pieces, keeps account of them and settles transfers.
 */
#define _GNU_SOURCE
#include "nixl_transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nixl_load.h"
#include "status.h"
#include "thread.h"

/* Automatic pieces begin here and move towards AIM nanoseconds each: how finely a transfer can be cancelled. */
#define FIRST_BYTES ((uint64_t)8 << 20)
#define FIRST_ROWS 512u
#define LEAST_BYTES ((uint64_t)256 << 10)
#define MOST_BYTES ((uint64_t)1 << 30)
#define LEAST_ROWS 16u
#define MOST_ROWS 65536u
#define AIM 5000000.0
/* Rows are cut at multiples of this, from their beginning: whole pages go faster. */
#define GRAIN ((uint64_t)64 << 10)

/* Lanes share a transfer only when at least this many more pieces are to come. */
#define SHARE_PIECES 4u

/* ---- submission ------------------------------------------------------------------------------------------------- */

static void transfer_free(kvf_transfer *transfer) {
    kvf_hop_free(&transfer->hop);
    pthread_mutex_destroy(&transfer->mutex);
    free(transfer->notification);
    free(transfer);
}

/* Moves to the next row of the cursor. */
static void advance(kvf_transfer *t) {
    uint32_t program = t->row.program;
    bool first = t->base_rows_left == 0;
    t->row_done = 0;
    t->rows_left = kvf_cursor_next(&t->cursor, &t->row);
    if (!t->rows_left) return;
    if (first || t->row.program != program) {
        const kvf_program *p = &t->hop.program[t->row.program];
        t->base_rows_left = p->blocks * p->rows_per_block - 1;
    } else {
        t->base_rows_left--;
    }
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
    advance(t);
    return t;
}

/* With the agent's mutex held. */
static int32_t enqueue(kvf_agent *agent, kvf_transfer *t, const char *peer) {
    if (atomic_load(&agent->closing)) return kvf_refuse(KVF_E_CLOSED, "the NIXL agent %s is closing", agent->name);
    t->peer = kvf_agent_peer(agent, peer);
    if (!t->peer) return kvf_refuse(KVF_E_NOMEM, "no memory for a peer");
    t->peer->transfers++;
    t->pace = t->peer->pace[t->operation];
    if (t->pace.bytes == 0) t->pace = (kvf_pace){FIRST_BYTES, FIRST_ROWS};
    if (agent->last_waiting) agent->last_waiting->next = t;
    else agent->first_waiting = t;
    agent->last_waiting = t;
    pthread_cond_signal(&agent->lane_wakes);
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

/* With the transfer's mutex held: the first reason stays. */
static void __attribute__((format(printf, 3, 4))) halt(kvf_transfer *t, int32_t status, const char *format, ...) {
    if (t->status != KVF_OK) return;
    t->status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(t->text, sizeof t->text, format, args);
    va_end(args);
}

/* With the transfer's mutex held: looks at everything that forbids a further post. */
static bool may_go_on(kvf_transfer *t) {
    if (t->status != KVF_OK) return false;
    if (atomic_load(&t->peer->leaving)) {
        halt(t, KVF_E_PEER, "peer %.100s was forgotten", t->peer->name);
    } else if (atomic_load(&t->agent->closing)) {
        halt(t, KVF_E_CLOSED, "the NIXL agent is closing");
    } else if (atomic_load(&t->abandoned) || kvf_job_cancelled(t->ctx, t->slot)) {
        halt(t, KVF_E_CANCELLED, "cancelled after %llu of %llu bytes were posted in %llu pieces",
             (unsigned long long)t->bytes_done, (unsigned long long)t->hop.bytes, (unsigned long long)t->count);
    }
    return t->status == KVF_OK;
}

uint64_t kvf_transfer_give_up_at(const kvf_transfer *t) {
    uint64_t peer = atomic_load(&t->peer->give_up_at);
    uint64_t agent = atomic_load(&t->agent->give_up_at);
    return peer == 0 ? agent : agent == 0 || peer < agent ? peer : agent;
}

/* ---- cutting ---------------------------------------------------------------------------------------------------- */

static const uint32_t memory_of_kind[] = {KVF_MEM_DRAM, KVF_MEM_VRAM, KVF_MEM_FILE};

/* One side of the row that is being cut. */
typedef struct end {
    uint64_t address;
    uint32_t memory;
    uint32_t device;
} end;

typedef struct ends {
    end local;
    end remote;
} ends;

static ends ends_of(const kvf_transfer *t) {
    const kvf_program *p = &t->hop.program[t->row.program];
    end src = {t->row.src + t->row_done, memory_of_kind[p->src_kind], p->src_device};
    end dst = {t->row.dst + t->row_done, memory_of_kind[p->dst_kind], p->dst_device};
    return t->operation == KVF_NIXL_WRITE ? (ends){src, dst} : (ends){dst, src};
}

static nixl_status list_of(const nixl_functions *api, nixl_xfer_dlist lists[NIXL_MEMORY_TYPES], uint32_t memory) {
    if (lists[memory]) return api->xfer_dlist_clear(lists[memory]);
    return api->create_xfer_dlist(memory, &lists[memory]);
}

void kvf_lists_free(const nixl_functions *api, kvf_lists *lists) {
    for (uint32_t i = 0; i < NIXL_MEMORY_TYPES; i++) {
        if (lists->local[i]) api->destroy_xfer_dlist(lists->local[i]);
        if (lists->remote[i]) api->destroy_xfer_dlist(lists->remote[i]);
    }
}

/* Adds descriptors until a limit, the end of the hop or another memory type. Rows that continue each other on both sides
 * become one descriptor, inside a base only: two bases may be two registrations, which a descriptor must not span. */
static nixl_status fill(kvf_transfer *t, kvf_lists *lists, kvf_piece *piece) {
    const nixl_functions *api = t->agent->api;
    uint64_t most_bytes = t->cap_bytes && t->cap_bytes < t->pace.bytes ? t->cap_bytes : t->pace.bytes;
    uint32_t most_rows = t->cap_rows && t->cap_rows < t->pace.rows ? t->cap_rows : t->pace.rows;
    ends first = ends_of(t), open = first;
    uint64_t open_bytes = 0;
    bool joins = false; /* the next row lies in the same base of the same program as the open descriptor */
    nixl_xfer_dlist local, remote;
    nixl_status status = list_of(api, lists->local, first.local.memory);
    if (status == NIXL_SUCCESS) status = list_of(api, lists->remote, first.remote.memory);
    if (status != NIXL_SUCCESS) return status;
    local = lists->local[first.local.memory];
    remote = lists->remote[first.remote.memory];
    while (t->rows_left && status == NIXL_SUCCESS) {
        ends at = ends_of(t);
        if (at.local.memory != first.local.memory || at.remote.memory != first.remote.memory) break;
        uint64_t room = most_bytes - piece->bytes;
        if (room == 0) {
            piece->full = most_bytes == t->pace.bytes;
            break;
        }
        bool join = joins && at.local.address == open.local.address + open_bytes &&
                    at.remote.address == open.remote.address + open_bytes;
        if (!join) {
            if (piece->rows == most_rows) {
                piece->full = piece->by_rows = most_rows == t->pace.rows;
                break;
            }
            if (open_bytes > 0) {
                status = api->xfer_dlist_add_desc(local, open.local.address, open_bytes, open.local.device);
                if (status == NIXL_SUCCESS) {
                    status = api->xfer_dlist_add_desc(remote, open.remote.address, open_bytes, open.remote.device);
                }
            }
            piece->rows++;
            open = at;
            open_bytes = 0;
        }
        uint64_t bytes = t->row.bytes - t->row_done;
        if (bytes > room) bytes = room;
        open_bytes += bytes;
        piece->bytes += bytes;
        t->row_done += bytes;
        joins = true;
        if (t->row_done == t->row.bytes) {
            joins = t->base_rows_left > 0;
            advance(t);
        }
    }
    if (status == NIXL_SUCCESS) status = api->xfer_dlist_add_desc(local, open.local.address, open_bytes, open.local.device);
    if (status == NIXL_SUCCESS) {
        status = api->xfer_dlist_add_desc(remote, open.remote.address, open_bytes, open.remote.device);
    }
    return status;
}

static void unlist(kvf_transfer *t, const kvf_piece *piece) {
    for (kvf_piece **at = &t->pieces; *at; at = &(*at)->next) {
        if (*at != piece) continue;
        *at = piece->next;
        return;
    }
}

bool kvf_transfer_cut(kvf_transfer *t, kvf_lists *lists, kvf_piece *piece) {
    memset(piece, 0, sizeof *piece);
    pthread_mutex_lock(&t->mutex);
    if (!t->rows_left || !may_go_on(t)) {
        atomic_store_explicit(&t->shareable, false, memory_order_relaxed);
        pthread_mutex_unlock(&t->mutex);
        return false;
    }
    piece->program = t->row.program;
    piece->number = ++t->count;
    const kvf_program *p = &t->hop.program[t->row.program];
    uint32_t local = memory_of_kind[t->operation == KVF_NIXL_WRITE ? p->src_kind : p->dst_kind];
    uint32_t remote = memory_of_kind[t->operation == KVF_NIXL_WRITE ? p->dst_kind : p->src_kind];
    nixl_status answer = fill(t, lists, piece);
    if (answer != NIXL_SUCCESS) {
        halt(t, KVF_E_NIXL, "NIXL's descriptor list answered %d (%s)", answer, kvf_nixl_status_name(answer));
        pthread_mutex_unlock(&t->mutex);
        return false;
    }
    piece->next = t->pieces;
    t->pieces = piece;
    if (!t->rows_left) atomic_store_explicit(&t->shareable, false, memory_order_relaxed);
    pthread_mutex_unlock(&t->mutex);

    answer = t->agent->api->create_xfer_req(t->agent->handle, t->operation, lists->local[local], lists->remote[remote],
                                            t->peer->name, &piece->request, NULL);
    if (answer == NIXL_SUCCESS) return true;
    piece->request = NULL;
    pthread_mutex_lock(&t->mutex);
    unlist(t, piece);
    halt(t, KVF_E_NIXL, "nixl_capi_create_xfer_req answered %d (%s) for peer %.100s, piece %llu of %u descriptors", answer,
         kvf_nixl_status_name(answer), t->peer->name, (unsigned long long)piece->number, piece->rows);
    pthread_mutex_unlock(&t->mutex);
    return false;
}

/* ---- account ---------------------------------------------------------------------------------------------------- */

void kvf_transfer_posting(kvf_transfer *t, kvf_piece *piece) {
    piece->posted_at = kvf_now_nanos();
    pthread_mutex_lock(&t->mutex);
    t->touched = true;
    pthread_mutex_unlock(&t->mutex);
}

static double between(double value, double least, double most) {
    return value < least ? least : value > most ? most : value;
}

/* A full piece that was quick makes the next ones larger, one that took long smaller, by at most two. A short piece says
 * little: what it took may be its neighbours' doing. */
static void adapt(kvf_pace *pace, const kvf_piece *piece, uint64_t nanos) {
    double factor = between(AIM / (nanos > 0 ? (double)nanos : 1), 0.5, 2);
    if (!piece->full && (factor > 1 || piece->bytes < pace->bytes / 2)) return;
    if (piece->by_rows) pace->rows = (uint32_t)between((double)pace->rows * factor, LEAST_ROWS, MOST_ROWS);
    else pace->bytes = (uint64_t)between((double)pace->bytes * factor, LEAST_BYTES, MOST_BYTES) / GRAIN * GRAIN;
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
    unlist(t, piece);
    t->bytes_done += piece->bytes;
    adapt(&t->pace, piece, nanos);
    uint32_t programs = programs_done(t);
    uint64_t bytes = t->bytes_done;
    bool more = copied_by_post && t->status == KVF_OK && t->rows_left &&
                t->hop.bytes - bytes > SHARE_PIECES * piece->bytes;
    atomic_store_explicit(&t->shareable, more, memory_order_relaxed);
    pthread_mutex_unlock(&t->mutex);
    if (more && t->agent->sharers > 1) kvf_lane_invite(t->agent);
    kvf_job_progress(t->ctx, t->slot, programs, (double)bytes);
}

void kvf_transfer_break(kvf_transfer *t, kvf_piece *piece, const char *function, nixl_status answer) {
    pthread_mutex_lock(&t->mutex);
    unlist(t, piece);
    t->in_doubt = true;
    if (function) {
        t->broken = true;
        halt(t, KVF_E_NIXL, "%s answered %d (%s) for peer %.100s, piece %llu of %u descriptors and %llu bytes", function,
             answer, kvf_nixl_status_name(answer), t->peer->name, (unsigned long long)piece->number, piece->rows,
             (unsigned long long)piece->bytes);
    } else {
        halt(t, atomic_load(&t->agent->closing) ? KVF_E_CLOSED : KVF_E_PEER,
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
    halt(t, KVF_E_NIXL, "nixl_capi_gen_notif answered %d (%s) for peer %.100s after the data was complete", answer,
         kvf_nixl_status_name(answer), t->peer->name);
}

void kvf_transfer_settle(kvf_transfer *t) {
    kvf_agent *agent = t->agent;
    /* No lane is left, so nothing else reads or writes it; the mutex is for the eyes of tools. */
    pthread_mutex_lock(&t->mutex);
    if (t->status == KVF_OK && t->hop.rows == 0) may_go_on(t);
    if (t->status == KVF_OK && t->notify) send_notification(t);
    if (t->status == KVF_E_NIXL && kvf_agent_peer_gone(agent, t->peer->name, t->broken)) t->status = KVF_E_PEER;
    int32_t status = t->status;
    uint32_t flags = 0;
    if (status != KVF_OK && t->touched) flags |= KVF_DONE_TOUCHED;
    if (status != KVF_OK && t->in_doubt) flags |= KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT;
    uint64_t bytes = t->bytes_done;
    pthread_mutex_unlock(&t->mutex);

    pthread_mutex_lock(&agent->mutex);
    if (status == KVF_OK && t->hop.rows > 0) t->peer->pace[t->operation] = t->pace;
    detach(t);
    pthread_mutex_unlock(&agent->mutex);
    if (status == KVF_OK) {
        kvf_job_progress(t->ctx, t->slot, t->hop.programs, (double)bytes);
        kvf_job_finish(t->ctx, t->slot, KVF_OK, 0, (double)bytes);
    } else {
        kvf_job_fail(t->ctx, t->slot, status, flags, "%s", t->text);
    }
    transfer_free(t);
}
