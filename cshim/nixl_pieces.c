/*
 * nixl_pieces.c - cuts hops into pieces: rows to descriptors, descriptors to requests, and how large a piece may be.
 */
#define _GNU_SOURCE
#include <string.h>

#include "nixl_load.h"
#include "nixl_transfer.h"

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
/* A transfer that lanes share has so many pieces for each, of no fewer bytes than these. */
#define PIECES_PER_LANE 4u
#define LEAST_SHARED ((uint64_t)2 << 20)

/* ---- rows ------------------------------------------------------------------------------------------------------- */

void kvf_transfer_advance(kvf_transfer *t) {
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
    if (t->share_bytes && t->share_bytes < most_bytes) most_bytes = t->share_bytes;
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
            kvf_transfer_advance(t);
        }
    }
    if (status == NIXL_SUCCESS) status = api->xfer_dlist_add_desc(local, open.local.address, open_bytes, open.local.device);
    if (status == NIXL_SUCCESS) {
        status = api->xfer_dlist_add_desc(remote, open.remote.address, open_bytes, open.remote.device);
    }
    return status;
}

bool kvf_transfer_cut(kvf_transfer *t, kvf_lists *lists, kvf_piece *piece) {
    memset(piece, 0, sizeof *piece);
    pthread_mutex_lock(&t->mutex);
    if (!t->rows_left || !kvf_transfer_may_go_on(t)) {
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
        kvf_transfer_halt(t, KVF_E_NIXL, "NIXL's descriptor list answered %d (%s)", answer, kvf_nixl_status_name(answer));
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
    kvf_transfer_unlist(t, piece);
    kvf_transfer_halt(t, KVF_E_NIXL, "nixl_capi_create_xfer_req answered %d (%s) for peer %.100s, piece %llu of %u descriptors", answer,
         kvf_nixl_status_name(answer), t->peer->name, (unsigned long long)piece->number, piece->rows);
    pthread_mutex_unlock(&t->mutex);
    return false;
}

/* ---- pace ------------------------------------------------------------------------------------------------------- */

kvf_pace kvf_pace_first(void) {
    return (kvf_pace){FIRST_BYTES, FIRST_ROWS};
}

static double between(double value, double least, double most) {
    return value < least ? least : value > most ? most : value;
}

/* By at most two. A short piece says little: what it took may be its neighbours' doing. */
void kvf_pace_adapt(kvf_pace *pace, const kvf_piece *piece, uint64_t nanos) {
    double factor = between(AIM / (nanos > 0 ? (double)nanos : 1), 0.5, 2);
    if (!piece->full && (factor > 1 || piece->bytes < pace->bytes / 2)) return;
    if (piece->by_rows) pace->rows = (uint32_t)between((double)pace->rows * factor, LEAST_ROWS, MOST_ROWS);
    else pace->bytes = (uint64_t)between((double)pace->bytes * factor, LEAST_BYTES, MOST_BYTES) / GRAIN * GRAIN;
}

/* ---- sharing ---------------------------------------------------------------------------------------------------- */

void kvf_transfer_share(kvf_transfer *t, uint32_t lanes) {
    uint64_t bytes = t->hop.bytes / (lanes * PIECES_PER_LANE) / GRAIN * GRAIN;
    if (bytes < LEAST_SHARED) bytes = LEAST_SHARED;
    if (t->hop.bytes <= KVF_SHARE_PIECES * bytes) return;
    t->share_bytes = bytes;
    atomic_store_explicit(&t->shareable, true, memory_order_relaxed);
}
