/*
 * nixl_peers.c - orders that concern other agents: their metadata, forgetting them, notifications.
 */
#define _GNU_SOURCE
#include "nixl_agent.h"

#include <stdlib.h>
#include <string.h>

#include "nixl_load.h"
#include "thread.h"

/* How long a forgotten peer's transfers are waited for: what they are given to end, and to be released. */
#define FORGET_BOUND (KVF_NIXL_FORGET_GRACE + (uint64_t)200 * 1000000u)

/* Sent to find out whether a peer still answers; a receiving control thread throws it away. */
static const char probe[] = "\0kvferry-probe-1";

/* ---- metadata and peers ----------------------------------------------------------------------------------------- */

void kvf_order_load_peer(kvf_agent *agent, const kvf_order *order) {
    const nixl_functions *api = agent->api;
    char *name = NULL;
    kvf_agent_exclusive_begin(agent);
    nixl_status status = api->load_remote_md(agent->handle, order->bytes, order->length, &name);
    kvf_agent_exclusive_end(agent);
    if (status != NIXL_SUCCESS) {
        kvf_order_refused(order, status, "nixl_capi_load_remote_md", order->name[0] ? order->name : "a peer's metadata");
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
    kvf_order_finished(order, 0);
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

void kvf_order_forget_peer(kvf_agent *agent, const kvf_order *order) {
    let_go(agent, order->name);
    kvf_agent_exclusive_begin(agent);
    bool known = agent->api->check_remote_md(agent->handle, order->name, NULL) == NIXL_SUCCESS;
    nixl_status status = known ? agent->api->invalidate_remote_md(agent->handle, order->name) : NIXL_SUCCESS;
    kvf_agent_exclusive_end(agent);
    if (status != NIXL_SUCCESS) kvf_order_refused(order, status, "nixl_capi_invalidate_remote_md", order->name);
    else kvf_order_finished(order, known ? 1 : 0);
}

bool kvf_agent_peer_gone(kvf_agent *agent, const char *peer, bool ask) {
    /* Storage is reached by the agent's own name, of which NIXL keeps no metadata. */
    if (strcmp(peer, agent->name) == 0) return false;
    if (agent->api->check_remote_md(agent->handle, peer, NULL) != NIXL_SUCCESS) return true;
    return ask && agent->api->gen_notif(agent->handle, peer, probe, sizeof probe - 1, NULL) != NIXL_SUCCESS;
}

/* ---- notifications ---------------------------------------------------------------------------------------------- */

void kvf_order_notify(kvf_agent *agent, const kvf_order *order) {
    nixl_status status = agent->api->gen_notif(agent->handle, order->name, order->bytes, order->length, NULL);
    if (status == NIXL_SUCCESS) {
        kvf_order_finished(order, 0);
        return;
    }
    /* gen_notif fails for unknown peers and when the connection died. */
    bool gone = status == NIXL_BACKEND_ERROR || status == NIXL_NOT_FOUND;
    kvf_job_fail(order->ctx, order->slot, gone ? KVF_E_PEER : KVF_E_NIXL, 0,
                 "nixl_capi_gen_notif answered %d (%s) for peer %s: unknown or gone", status,
                 kvf_nixl_status_name(status), order->name);
}

static bool is_probe(const void *payload, size_t length) {
    return length == sizeof probe - 1 && memcmp(payload, probe, length) == 0;
}

static bool collect_from(kvf_agent *agent, kvf_inbox *batch, size_t index) {
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
        if (is_probe(data, length)) continue;
        kvf_inbox_add(batch, name, data, length);
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
    /* NIXL keeps what its own thread received apart from what lanes did, and hands over one after the other: a batch may
     * be out of order, and whoever sorts it must not see half of it. */
    bool any = false;
    kvf_inbox batch;
    kvf_inbox_init(&batch);
    for (size_t i = 0; i < peers; i++) any |= collect_from(agent, &batch, i);
    kvf_inbox_move(&agent->inbox, &batch);
    kvf_inbox_destroy(&batch);
    api->notif_map_clear(agent->notifications);
    return any;
}
