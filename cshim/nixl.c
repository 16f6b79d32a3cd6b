/*
 * nixl.c - the functions of kvf.h that concern NIXL: they check their arguments and hand the work over.
 */
#define _GNU_SOURCE
#include "kvf.h"

#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "nixl_agent.h"
#include "nixl_load.h"
#include "status.h"
#include "thread.h"

#define SAFE_INTEGER 9007199254740992.0
#define LEAST_PROGRESS_MICROS 1000u

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static bool is_word(double value) {
    return value >= 0 && value <= SAFE_INTEGER && value == (double)(uint64_t)value;
}

static int32_t check_name(const char *name, const char *what) {
    if (!name || !name[0]) return kvf_refuse(KVF_E_INVALID, "%s has no name", what);
    return KVF_OK;
}

static int32_t check_regions(uint32_t memory, const double *regions, uint32_t count) {
    if (memory >= NIXL_MEMORY_TYPES) return kvf_refuse(KVF_E_INVALID, "there is no memory type %u", memory);
    if (count > 0 && !regions) return kvf_refuse(KVF_E_INVALID, "no regions are given");
    for (uint32_t i = 0; i < count; i++) {
        const double *region = regions + (size_t)i * 3;
        bool sound = is_word(region[0]) && is_word(region[1]) && is_word(region[2]) &&
                     region[0] + region[1] <= SAFE_INTEGER && (region[1] > 0 || memory == KVF_MEM_FILE) &&
                     (region[0] > 0 || memory > KVF_MEM_VRAM);
        if (!sound) {
            return kvf_refuse(KVF_E_INVALID, "region %u is not sound: address %.17g, %.17g bytes, device %.17g", i,
                              region[0], region[1], region[2]);
        }
    }
    return KVF_OK;
}

/* The context and the agent of a call, both or none; the agent with a reference. */
static int32_t find(kvf_word context, kvf_word word, kvf_context **ctx, kvf_agent **agent) {
    *ctx = kvf_context_from(context);
    if (!*ctx) return KVF_E_CLOSED;
    *agent = kvf_agent_acquire(word);
    if (!*agent) return KVF_E_CLOSED;
    if ((*agent)->ctx == *ctx) return KVF_OK;
    kvf_agent_release(*agent);
    return kvf_refuse(KVF_E_INVALID, "the NIXL agent belongs to another context");
}

static int32_t submit(kvf_word context, uint32_t slot, kvf_word word, kvf_order *order) {
    if (!order) return KVF_E_NOMEM;
    kvf_context *ctx;
    kvf_agent *agent;
    int32_t status = find(context, word, &ctx, &agent);
    if (status != KVF_OK) {
        kvf_order_free(order);
        return status;
    }
    status = kvf_order_submit(agent, ctx, slot, order);
    kvf_agent_release(agent);
    return status;
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

typedef struct load {
    kvf_context *ctx;
    uint32_t slot;
    char path[];
} load;

static void *load_main(void *argument) {
    load *job = argument;
    int32_t status = kvf_nixl_load(job->path);
    if (status == KVF_OK) status = kvf_job_set_result(job->ctx, job->slot, kvf_nixl_path(), strlen(kvf_nixl_path()));
    if (status == KVF_OK) kvf_job_finish(job->ctx, job->slot, KVF_OK, 0, 0);
    else kvf_job_fail(job->ctx, job->slot, status, 0, "%s", kvf_error_text());
    free(job);
    return NULL;
}

int32_t kvf_nixl_load_job(kvf_word context, uint32_t slot, const char *path) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    size_t bytes = path ? strlen(path) : 0;
    load *job = calloc(1, sizeof *job + bytes + 1);
    if (!job) return kvf_refuse(KVF_E_NOMEM, "no memory to load NIXL");
    job->ctx = ctx;
    job->slot = slot;
    if (bytes > 0) memcpy(job->path, path, bytes);
    int32_t status = kvf_job_begin(ctx, slot);
    if (status == KVF_OK) {
        pthread_t thread;
        status = kvf_thread_start(&thread, "kvf-nixl-load", load_main, job);
        if (status == KVF_OK) {
            pthread_detach(thread);
            return KVF_OK;
        }
        kvf_job_drop(ctx, slot);
    }
    free(job);
    return status;
}

/* ---- agents ----------------------------------------------------------------------------------------------------- */

int32_t kvf_nixl_agent_job(kvf_word context, uint32_t slot, const char *name, uint32_t progressMicros, uint32_t lanes) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    int32_t status = check_name(name, "the NIXL agent");
    if (status != KVF_OK) return status;
    if (progressMicros < LEAST_PROGRESS_MICROS) {
        return kvf_refuse(KVF_E_INVALID, "progressMicros is %u and must be at least %u: less burns a core", progressMicros,
                          LEAST_PROGRESS_MICROS);
    }
    if (lanes < 1 || lanes > KVF_NIXL_MAX_LANES) {
        return kvf_refuse(KVF_E_INVALID, "lanes is %u and must be 1 to %u", lanes, KVF_NIXL_MAX_LANES);
    }
    return kvf_agent_start(ctx, slot, name, progressMicros, lanes);
}

int32_t kvf_nixl_agent_close_job(kvf_word context, uint32_t slot, kvf_word agent) {
    kvf_context *ctx;
    kvf_agent *found;
    int32_t status = find(context, agent, &ctx, &found);
    if (status != KVF_OK) return status;
    status = kvf_agent_stop_job(ctx, slot, found);
    kvf_agent_release(found);
    return status;
}

int32_t kvf_nixl_backend_job(kvf_word context, uint32_t slot, kvf_word agent, const char *name, const char *parameters) {
    int32_t status = check_name(name, "the backend");
    if (status != KVF_OK) return status;
    size_t length = 0;
    if (!parameters) parameters = "";
    while (parameters[length]) {
        length += strlen(parameters + length) + 1;
        length += strlen(parameters + length) + 1;
    }
    return submit(context, slot, agent, kvf_order_new(KVF_ORDER_BACKEND, name, parameters, length + 1, NULL, 0));
}

/* ---- memory and metadata ---------------------------------------------------------------------------------------- */

static int32_t regions_job(kvf_word context, uint32_t slot, kvf_word agent, kvf_order_kind kind, uint32_t memory,
                           const double *regions, uint32_t count) {
    int32_t status = check_regions(memory, regions, count);
    if (status != KVF_OK) return status;
    kvf_order *order = kvf_order_new(kind, NULL, NULL, 0, regions, count);
    if (order) order->memory = memory;
    return submit(context, slot, agent, order);
}

int32_t kvf_nixl_register_job(kvf_word context, uint32_t slot, kvf_word agent, uint32_t memory, const double *regions, uint32_t count) {
    if (count == 0) return kvf_refuse(KVF_E_INVALID, "there are no regions to register");
    return regions_job(context, slot, agent, KVF_ORDER_REGISTER, memory, regions, count);
}

int32_t kvf_nixl_deregister_job(kvf_word context, uint32_t slot, kvf_word agent, uint32_t memory, const double *regions, uint32_t count) {
    if (count == 0) return kvf_refuse(KVF_E_INVALID, "there are no regions to deregister");
    return regions_job(context, slot, agent, KVF_ORDER_DEREGISTER, memory, regions, count);
}

int32_t kvf_nixl_metadata_job(kvf_word context, uint32_t slot, kvf_word agent, uint32_t partial, uint32_t memory, const double *regions, uint32_t count) {
    int32_t status = check_regions(memory, regions, count);
    if (status != KVF_OK) return status;
    kvf_order *order = kvf_order_new(KVF_ORDER_METADATA, NULL, NULL, 0, regions, count);
    if (order) {
        order->memory = memory;
        order->partial = partial != 0 || count > 0;
    }
    return submit(context, slot, agent, order);
}

int32_t kvf_nixl_load_peer_job(kvf_word context, uint32_t slot, kvf_word agent, const uint8_t *bytes, kvf_word length, const char *expected) {
    if (!bytes || length == 0) return kvf_refuse(KVF_E_INVALID, "the metadata are empty");
    return submit(context, slot, agent,
                  kvf_order_new(KVF_ORDER_LOAD_PEER, expected ? expected : "", bytes, length, NULL, 0));
}

int32_t kvf_nixl_forget_peer_job(kvf_word context, uint32_t slot, kvf_word agent, const char *peer) {
    int32_t status = check_name(peer, "the peer");
    if (status != KVF_OK) return status;
    return submit(context, slot, agent, kvf_order_new(KVF_ORDER_FORGET_PEER, peer, NULL, 0, NULL, 0));
}

/* ---- transfers -------------------------------------------------------------------------------------------------- */

int32_t kvf_nixl_transfer_job(kvf_word context, uint32_t slot, kvf_word agent, const char *peer, uint32_t operation, const double *hop, kvf_word words, kvf_word pieceBytes, uint32_t pieceRows, const uint8_t *notification, uint32_t length, uint32_t notify) {
    int32_t status = check_name(peer, "the peer");
    if (status != KVF_OK) return status;
    if (operation != KVF_NIXL_READ && operation != KVF_NIXL_WRITE) {
        return kvf_refuse(KVF_E_INVALID, "there is no operation %u", operation);
    }
    if (length > 0 && !notification) return kvf_refuse(KVF_E_INVALID, "the notification is missing");
    kvf_context *ctx;
    kvf_agent *found;
    status = find(context, agent, &ctx, &found);
    if (status != KVF_OK) return status;
    kvf_transfer_request request = {.peer = peer,
                                    .operation = operation,
                                    .hop = hop,
                                    .words = words,
                                    .piece_bytes = pieceBytes,
                                    .piece_rows = pieceRows,
                                    .notification = notification,
                                    .length = length,
                                    .notify = notify != 0};
    status = kvf_transfer_submit(found, ctx, slot, &request);
    kvf_agent_release(found);
    return status;
}

int32_t kvf_nixl_abandon(kvf_word context, uint32_t slot) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    int32_t status = KVF_AGAIN;
    kvf_agent *agent;
    for (uint32_t at = 0; status == KVF_AGAIN && (agent = kvf_agent_of_context(ctx, &at)) != NULL;) {
        pthread_mutex_lock(&agent->mutex);
        status = kvf_nixl_lane_abandon(agent, ctx, slot);
        pthread_mutex_unlock(&agent->mutex);
        kvf_agent_release(agent);
    }
    return status;
}

/* ---- notifications ---------------------------------------------------------------------------------------------- */

int32_t kvf_nixl_notify_job(kvf_word context, uint32_t slot, kvf_word agent, const char *peer, const uint8_t *bytes, uint32_t length) {
    int32_t status = check_name(peer, "the peer");
    if (status != KVF_OK) return status;
    if (length > 0 && !bytes) return kvf_refuse(KVF_E_INVALID, "the notification is missing");
    return submit(context, slot, agent, kvf_order_new(KVF_ORDER_NOTIFY, peer, bytes, length, NULL, 0));
}

int32_t kvf_nixl_take_notifications(kvf_word agent, uint8_t *bytes, kvf_word capacity, double *out) {
    out[0] = out[1] = out[2] = 0;
    kvf_agent *found = kvf_agent_acquire(agent);
    if (!found) return KVF_E_CLOSED;
    int32_t status = kvf_inbox_take(&found->inbox, bytes, capacity, out);
    kvf_agent_release(found);
    return status;
}

int32_t kvf_nixl_listen(kvf_word agent, uint32_t eager) {
    kvf_agent *found = kvf_agent_acquire(agent);
    if (!found) return KVF_E_CLOSED;
    pthread_mutex_lock(&found->mutex);
    atomic_store(&found->eager, eager != 0);
    pthread_cond_signal(&found->control_wakes);
    pthread_mutex_unlock(&found->mutex);
    kvf_agent_release(found);
    return KVF_OK;
}
