/*
 * nixl_memory.c - orders that concern this side: backends, registration, metadata.
 */
#define _GNU_SOURCE
#include "nixl_agent.h"

#include <stdlib.h>
#include <string.h>

#include "nixl_load.h"

/* ---- what an order ends with ------------------------------------------------------------------------------------ */

/* Ends a job that NIXL refused. */
void kvf_order_refused(const kvf_order *order, nixl_status status, const char *function, const char *what) {
    kvf_job_fail(order->ctx, order->slot, KVF_E_NIXL, 0, "%s answered %d (%s) for %s", function, status,
                 kvf_nixl_status_name(status), what);
}

void kvf_order_finished(const kvf_order *order, double value) {
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

void kvf_order_backend(kvf_agent *agent, const kvf_order *order) {
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
        kvf_order_refused(order, status, function, order->name);
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
    if (status != NIXL_SUCCESS) kvf_order_refused(order, status, function, order->name);
    else kvf_order_finished(order, (double)backend->memories);
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
void kvf_order_register(kvf_agent *agent, const kvf_order *order) {
    const nixl_functions *api = agent->api;
    nixl_reg_dlist list = NULL;
    nixl_status status = region_list(agent, order, &list);
    if (status != NIXL_SUCCESS) {
        kvf_order_refused(order, status, "nixl_capi_reg_dlist_add_desc", "the regions");
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
        kvf_order_finished(order, (double)done);
    }
}

void kvf_order_deregister(kvf_agent *agent, const kvf_order *order) {
    nixl_reg_dlist list = NULL;
    nixl_status status = region_list(agent, order, &list);
    if (status != NIXL_SUCCESS) {
        kvf_order_refused(order, status, "nixl_capi_reg_dlist_add_desc", "the regions");
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
    if (first != NIXL_SUCCESS) kvf_order_refused(order, first, "nixl_capi_deregister_mem", "the regions");
    else kvf_order_finished(order, 0);
}

/* ---- metadata -------------------------------------------------------------------------------------------------- */

void kvf_order_metadata(kvf_agent *agent, const kvf_order *order) {
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
        kvf_order_refused(order, status, function, agent->name);
        return;
    }
    kvf_job_give_result(order->ctx, order->slot, data, bytes);
    kvf_order_finished(order, (double)bytes);
}
