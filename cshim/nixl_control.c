/*
 * nixl_control.c - the orders of an agent's control thread: backends, registration, metadata, peers, notifications.
 */
#define _GNU_SOURCE
#include "nixl_agent.h"

#include <stdlib.h>
#include <string.h>

#include "nixl_load.h"
#include "status.h"
#include "thread.h"

/* How long a forgotten peer's transfers are waited for: what they are given to end, and to be released. */
#define FORGET_BOUND (KVF_NIXL_FORGET_GRACE + (uint64_t)200 * 1000000u)

/* Sent to find out whether a peer still answers; a receiving control thread throws it away. */
static const char probe[] = "\0kvferry-probe-1";

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

/* ---- what an order ends with ------------------------------------------------------------------------------------ */

/* Ends a job that NIXL refused. */
static void refused(const kvf_order *order, nixl_status status, const char *function, const char *what) {
    kvf_job_fail(order->ctx, order->slot, KVF_E_NIXL, 0, "%s answered %d (%s) for %s", function, status,
                 kvf_nixl_status_name(status), what);
}

static void finished(const kvf_order *order, double value) {
    kvf_job_finish(order->ctx, order->slot, KVF_OK, 0, value);
}

/* ---- backends --------------------------------------------------------------------------------------------------- */

/* The memory types a backend takes, as bits; all of them when the library cannot say. */
static uint32_t memories_of(const kvf_agent *agent, nixl_backend backend) {
    const nixl_functions *api = agent->api;
    uint32_t all = (1u << NIXL_MEMORY_TYPES) - 1;
    if (!api->get_backend_params || !api->mem_list_size || !api->mem_list_get || !api->destroy_mem_list) return all;
    nixl_mem_list list = NULL;
    nixl_params params = NULL;
    if (api->get_backend_params(agent->handle, backend, &list, &params) != NIXL_SUCCESS) return all;
    uint32_t bits = 0;
    size_t size = 0;
    if (api->mem_list_size(list, &size) != NIXL_SUCCESS) size = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t type = NIXL_MEMORY_TYPES;
        if (api->mem_list_get(list, i, &type) == NIXL_SUCCESS && type < NIXL_MEMORY_TYPES) bits |= 1u << type;
    }
    api->destroy_mem_list(list);
    api->destroy_params(params);
    return bits ? bits : all;
}

/* Parameters as key\0value\0...\0\0. */
static nixl_status fill_params(const kvf_agent *agent, const kvf_order *order, nixl_params params) {
    const char *at = (const char *)order->bytes;
    while (at[0]) {
        const char *value = at + strlen(at) + 1;
        nixl_status status = agent->api->params_add(params, at, value);
        if (status != NIXL_SUCCESS) return status;
        at = value + strlen(value) + 1;
    }
    return NIXL_SUCCESS;
}

static void add_backend(kvf_agent *agent, const kvf_order *order) {
    const nixl_functions *api = agent->api;
    if (agent->backend_count == KVF_NIXL_MAX_BACKENDS) {
        kvf_job_fail(order->ctx, order->slot, KVF_E_BUSY, 0, "the NIXL agent has %u backends", KVF_NIXL_MAX_BACKENDS);
        return;
    }
    kvf_backend *backend = &agent->backends[agent->backend_count];
    memset(backend, 0, sizeof *backend);
    strncpy(backend->name, order->name, sizeof backend->name - 1);
    const char *function = "nixl_capi_create_params";
    nixl_params params = NULL;
    nixl_status status = api->create_params(&params);
    if (status == NIXL_SUCCESS) {
        function = "nixl_capi_params_add";
        status = fill_params(agent, order, params);
        if (status == NIXL_SUCCESS) {
            function = "nixl_capi_create_backend";
            kvf_agent_exclusive_begin(agent);
            status = api->create_backend(agent->handle, order->name, params, &backend->handle);
            kvf_agent_exclusive_end(agent);
        }
        api->destroy_params(params);
    }
    if (status != NIXL_SUCCESS) {
        refused(order, status, function, order->name);
        return;
    }
    /* From here on NIXL has the backend, and cannot drop it before its agent goes. */
    backend->memories = memories_of(agent, backend->handle);
    agent->backend_count++;
    function = "nixl_capi_create_opt_args";
    status = api->create_opt_args(&backend->only);
    if (status == NIXL_SUCCESS) {
        function = "nixl_capi_opt_args_add_backend";
        status = api->opt_args_add_backend(backend->only, backend->handle);
    } else {
        backend->only = NULL;
    }
    if (status != NIXL_SUCCESS) refused(order, status, function, order->name);
    else finished(order, (double)backend->memories);
}

void kvf_agent_free_backends(kvf_agent *agent) {
    for (uint32_t i = 0; i < agent->backend_count; i++) {
        if (agent->backends[i].only) agent->api->destroy_opt_args(agent->backends[i].only);
        agent->api->destroy_backend(agent->backends[i].handle);
    }
    agent->backend_count = 0;
}

/* ---- registration ----------------------------------------------------------------------------------------------- */

/* The regions of an order as NIXL's list. */
static nixl_status region_list(const kvf_agent *agent, const kvf_order *order, nixl_reg_dlist *out) {
    nixl_status status = agent->api->create_reg_dlist(order->memory, out);
    for (uint32_t i = 0; i < order->count && status == NIXL_SUCCESS; i++) {
        const double *region = order->regions + (size_t)i * 3;
        status = agent->api->reg_dlist_add_desc(*out, (uintptr_t)region[0], (size_t)region[1], (uint64_t)region[2], NULL, 0);
        if (status != NIXL_SUCCESS) agent->api->destroy_reg_dlist(*out);
    }
    return status;
}

static bool takes(const kvf_backend *backend, const kvf_order *order) {
    return (backend->memories >> order->memory & 1u) != 0 && backend->only;
}

/* One call for each backend that takes the memory: without a named backend NIXL is content when any of them succeeds. */
static void register_regions(kvf_agent *agent, const kvf_order *order) {
    const nixl_functions *api = agent->api;
    nixl_reg_dlist list = NULL;
    nixl_status status = region_list(agent, order, &list);
    if (status != NIXL_SUCCESS) {
        refused(order, status, "nixl_capi_reg_dlist_add_desc", "the regions");
        return;
    }
    uint32_t done = 0, failed = 0;
    kvf_agent_exclusive_begin(agent);
    for (uint32_t i = 0; i < agent->backend_count && status == NIXL_SUCCESS; i++) {
        if (!takes(&agent->backends[i], order)) continue;
        failed = i;
        status = api->register_mem(agent->handle, list, agent->backends[i].only);
        if (status == NIXL_SUCCESS) done++;
    }
    if (status != NIXL_SUCCESS) {
        for (uint32_t i = 0; i < failed; i++) {
            if (takes(&agent->backends[i], order)) api->deregister_mem(agent->handle, list, agent->backends[i].only);
        }
    }
    kvf_agent_exclusive_end(agent);
    api->destroy_reg_dlist(list);
    if (status != NIXL_SUCCESS) {
        kvf_job_fail(order->ctx, order->slot, KVF_E_NIXL, 0,
                     "nixl_capi_register_mem answered %d (%s) for %u regions of memory type %u and backend %s", status,
                     kvf_nixl_status_name(status), order->count, order->memory, agent->backends[failed].name);
    } else if (done == 0) {
        kvf_job_fail(order->ctx, order->slot, KVF_E_UNAVAILABLE, 0, "no backend of the NIXL agent takes memory type %u",
                     order->memory);
    } else {
        finished(order, (double)done);
    }
}

static void deregister_regions(kvf_agent *agent, const kvf_order *order) {
    nixl_reg_dlist list = NULL;
    nixl_status status = region_list(agent, order, &list);
    if (status != NIXL_SUCCESS) {
        refused(order, status, "nixl_capi_reg_dlist_add_desc", "the regions");
        return;
    }
    nixl_status first = NIXL_SUCCESS;
    kvf_agent_exclusive_begin(agent);
    /* All of them are tried: what a failure leaves behind should be as little as can be. */
    for (uint32_t i = 0; i < agent->backend_count; i++) {
        if (!takes(&agent->backends[i], order)) continue;
        status = agent->api->deregister_mem(agent->handle, list, agent->backends[i].only);
        if (first == NIXL_SUCCESS) first = status;
    }
    kvf_agent_exclusive_end(agent);
    agent->api->destroy_reg_dlist(list);
    if (first != NIXL_SUCCESS) refused(order, first, "nixl_capi_deregister_mem", "the regions");
    else finished(order, 0);
}

/* ---- metadata and peers ----------------------------------------------------------------------------------------- */

static void export_metadata(kvf_agent *agent, const kvf_order *order) {
    const nixl_functions *api = agent->api;
    void *data = NULL;
    size_t bytes = 0;
    nixl_status status;
    const char *function = "nixl_capi_get_local_md";
    if (!order->partial) {
        kvf_agent_exclusive_begin(agent);
        status = api->get_local_md(agent->handle, &data, &bytes);
        kvf_agent_exclusive_end(agent);
    } else {
        function = "nixl_capi_get_local_partial_md";
        nixl_reg_dlist list = NULL;
        status = region_list(agent, order, &list);
        if (status == NIXL_SUCCESS) {
            kvf_agent_exclusive_begin(agent);
            status = api->get_local_partial_md(agent->handle, list, &data, &bytes, NULL);
            kvf_agent_exclusive_end(agent);
            api->destroy_reg_dlist(list);
        }
    }
    if (status != NIXL_SUCCESS) {
        refused(order, status, function, agent->name);
        return;
    }
    kvf_job_give_result(order->ctx, order->slot, data, bytes);
    finished(order, (double)bytes);
}

static void load_peer(kvf_agent *agent, const kvf_order *order) {
    const nixl_functions *api = agent->api;
    char *name = NULL;
    kvf_agent_exclusive_begin(agent);
    nixl_status status = api->load_remote_md(agent->handle, order->bytes, order->length, &name);
    kvf_agent_exclusive_end(agent);
    if (status != NIXL_SUCCESS) {
        refused(order, status, "nixl_capi_load_remote_md", order->name[0] ? order->name : "a peer's metadata");
        return;
    }
    if (order->name[0] && strcmp(name, order->name) != 0) {
        kvf_agent_exclusive_begin(agent);
        api->invalidate_remote_md(agent->handle, name);
        kvf_agent_exclusive_end(agent);
        kvf_job_fail(order->ctx, order->slot, KVF_E_PEER, 0, "the metadata belong to agent %.200s, not to %.200s", name,
                     order->name);
        free(name);
        return;
    }
    kvf_job_give_result(order->ctx, order->slot, name, strlen(name));
    finished(order, 0);
}

/* Takes the peer off the list, so that later transfers start anew, and lets its running ones end. */
static void let_go(kvf_agent *agent, const char *name) {
    kvf_peer *peer = NULL;
    pthread_mutex_lock(&agent->mutex);
    for (kvf_peer **at = &agent->peers; *at; at = &(*at)->next) {
        if (strcmp((*at)->name, name) != 0) continue;
        peer = *at;
        *at = peer->next;
        break;
    }
    if (peer) {
        atomic_store(&peer->give_up_at, kvf_now_nanos() + KVF_NIXL_FORGET_GRACE);
        atomic_store(&peer->leaving, true);
    }
    pthread_mutex_unlock(&agent->mutex);
    if (!peer) return;
    kvf_transfers_refuse(agent, peer, KVF_E_PEER, "the peer was forgotten");
    uint64_t bound = kvf_now_nanos() + FORGET_BOUND;
    pthread_mutex_lock(&agent->mutex);
    while (peer->transfers > 0) {
        if (kvf_condition_wait_until(&agent->ended, &agent->mutex, bound) != KVF_OK) break;
    }
    kvf_agent_peer_drop(peer);
    pthread_mutex_unlock(&agent->mutex);
}

static void forget_peer(kvf_agent *agent, const kvf_order *order) {
    let_go(agent, order->name);
    kvf_agent_exclusive_begin(agent);
    bool known = agent->api->check_remote_md(agent->handle, order->name, NULL) == NIXL_SUCCESS;
    nixl_status status = known ? agent->api->invalidate_remote_md(agent->handle, order->name) : NIXL_SUCCESS;
    kvf_agent_exclusive_end(agent);
    if (status != NIXL_SUCCESS) refused(order, status, "nixl_capi_invalidate_remote_md", order->name);
    else finished(order, known ? 1 : 0);
}

bool kvf_agent_peer_gone(kvf_agent *agent, const char *peer, bool ask) {
    if (agent->api->check_remote_md(agent->handle, peer, NULL) != NIXL_SUCCESS) return true;
    return ask && agent->api->gen_notif(agent->handle, peer, probe, sizeof probe - 1, NULL) != NIXL_SUCCESS;
}

/* ---- notifications ---------------------------------------------------------------------------------------------- */

static void send_notification(kvf_agent *agent, const kvf_order *order) {
    nixl_status status = agent->api->gen_notif(agent->handle, order->name, order->bytes, order->length, NULL);
    if (status == NIXL_SUCCESS) {
        finished(order, 0);
        return;
    }
    /* gen_notif fails for unknown peers and when the connection died. */
    bool gone = status == NIXL_BACKEND_ERROR || status == NIXL_NOT_FOUND;
    kvf_job_fail(order->ctx, order->slot, gone ? KVF_E_PEER : KVF_E_NIXL, 0,
                 "nixl_capi_gen_notif answered %d (%s) for peer %s: unknown or gone", status,
                 kvf_nixl_status_name(status), order->name);
}

bool kvf_is_probe(const void *payload, size_t length) {
    return length == sizeof probe - 1 && memcmp(payload, probe, length) == 0;
}

static bool collect_from(kvf_agent *agent, size_t index) {
    const nixl_functions *api = agent->api;
    const char *name = NULL;
    size_t count = 0;
    bool any = false;
    if (api->notif_map_get_agent_at(agent->notifications, index, &name) != NIXL_SUCCESS) return false;
    if (api->notif_map_get_notifs_size(agent->notifications, name, &count) != NIXL_SUCCESS) return false;
    for (size_t i = 0; i < count; i++) {
        const void *data = NULL;
        size_t length = 0;
        if (api->notif_map_get_notif(agent->notifications, name, i, &data, &length) != NIXL_SUCCESS) continue;
        if (kvf_is_probe(data, length)) continue;
        kvf_inbox_add(&agent->inbox, name, data, length);
        any = true;
    }
    return any;
}

bool kvf_agent_collect(kvf_agent *agent) {
    const nixl_functions *api = agent->api;
    kvf_agent_exclusive_begin(agent);
    nixl_status status = api->get_notifs(agent->handle, agent->notifications, NULL);
    kvf_agent_exclusive_end(agent);
    size_t peers = 0;
    if (status != NIXL_SUCCESS || api->notif_map_size(agent->notifications, &peers) != NIXL_SUCCESS || peers == 0) {
        return false;
    }
    bool any = false;
    for (size_t i = 0; i < peers; i++) any |= collect_from(agent, i);
    api->notif_map_clear(agent->notifications);
    return any;
}

/* ---- dispatch --------------------------------------------------------------------------------------------------- */

void kvf_order_run(kvf_agent *agent, kvf_order *order) {
    if (kvf_job_cancelled(order->ctx, order->slot)) {
        kvf_job_fail(order->ctx, order->slot, KVF_E_CANCELLED, 0, "cancelled before it began");
    } else {
        switch (order->kind) {
            case KVF_ORDER_BACKEND: add_backend(agent, order); break;
            case KVF_ORDER_REGISTER: register_regions(agent, order); break;
            case KVF_ORDER_DEREGISTER: deregister_regions(agent, order); break;
            case KVF_ORDER_METADATA: export_metadata(agent, order); break;
            case KVF_ORDER_LOAD_PEER: load_peer(agent, order); break;
            case KVF_ORDER_FORGET_PEER: forget_peer(agent, order); break;
            case KVF_ORDER_NOTIFY: send_notification(agent, order); break;
        }
    }
    kvf_order_free(order);
}
