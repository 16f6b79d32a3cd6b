/*
 * cuda_jobs.c - the CUDA part of kvf.h: what may block, on a thread for each call.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_device.h"
#include "cuda_memory.h"
#include "status.h"
#include "thread.h"

/* ---- slow calls: a thread each ----------------------------------------------------------------------------------- */

typedef struct operation operation;
struct operation {
    int32_t (*run)(operation *op);
    kvf_context *context;
    uint32_t slot;
    int device;
    int other;
    uint64_t address, bytes;
    uint32_t kind;
    cu_ipc ipc;
    char path[512];
    double value;
};

static void *operation_thread(void *argument) {
    operation *op = argument;
    int32_t status = op->run(op);
    if (status == KVF_OK) kvf_job_finish(op->context, op->slot, KVF_OK, 0, op->value);
    else kvf_job_fail(op->context, op->slot, status, 0, "%s", kvf_error_text());
    free(op);
    return NULL;
}

/* Starts `op`, a filled-in template, as the slot's job. */
static int32_t start(kvf_word context, uint32_t slot, const operation *op) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    operation *own = malloc(sizeof *own);
    if (!own) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for a job");
    *own = *op;
    own->context = ctx;
    own->slot = slot;
    int32_t status = kvf_job_begin(ctx, slot);
    if (status != KVF_OK) {
        free(own);
        return status;
    }
    pthread_t thread;
    status = kvf_thread_start(&thread, "kvf-cuda-job", operation_thread, own);
    if (status != KVF_OK) {
        kvf_job_drop(ctx, slot);
        free(own);
        return status;
    }
    pthread_detach(thread);
    return KVF_OK;
}

/* ---- driver and devices --------------------------------------------------------------------------------------- */

static int32_t run_info(operation *op) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (!cu) return KVF_E_UNAVAILABLE;
    size_t length;
    char *text = kvf_cuda_describe(&length);
    if (!text) return KVF_E_NOMEM;
    kvf_job_give_result(op->context, op->slot, text, length);
    op->value = cu->version;
    return KVF_OK;
}

static int32_t run_load(operation *op) {
    int32_t status = kvf_cuda_driver_load(op->path);
    return status == KVF_OK ? run_info(op) : status;
}

int32_t kvf_cuda_load_job(kvf_word context, uint32_t slot, const char *path) {
    operation op = {.run = run_load};
    if (path && strlen(path) >= sizeof op.path) return kvf_refuse(KVF_E_INVALID, "CUDA: the path is too long");
    if (path) strcpy(op.path, path);
    /* Streams share the device's queues, by default 8: one that waits for an event holds up whatever shares its queue.
     * Read when the driver starts; set here because this is the caller's thread, before any of ours is running. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    return start(context, slot, &op);
}

int32_t kvf_cuda_info_job(kvf_word context, uint32_t slot) {
    return start(context, slot, &(operation){.run = run_info});
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

static int32_t run_open(operation *op) {
    return kvf_cuda_device_open(op->device);
}
static int32_t run_close(operation *op) {
    return kvf_cuda_device_close(op->device);
}
static int32_t run_peer(operation *op) {
    kvf_cuda_device *device = kvf_cuda_device_get(op->device), *peer = kvf_cuda_device_get(op->other);
    if (!device || !peer) return KVF_E_CUDA;
    int32_t status = kvf_cuda_device_reach(device, op->other);
    return status == KVF_OK ? kvf_cuda_device_reach(peer, op->device) : status;
}
static int32_t run_alloc(operation *op) {
    return kvf_cuda_memory_alloc(op->device, op->bytes, &op->value);
}
static int32_t run_free(operation *op) {
    return kvf_cuda_memory_free(op->device, op->address);
}
static int32_t run_pinned_alloc(operation *op) {
    return kvf_cuda_pinned_alloc(op->device, op->bytes, &op->value);
}
static int32_t run_pinned_free(operation *op) {
    return kvf_cuda_pinned_free(op->device, op->address);
}
static int32_t run_register(operation *op) {
    return kvf_cuda_memory_register(op->device, op->address, op->bytes);
}
static int32_t run_unregister(operation *op) {
    return kvf_cuda_memory_unregister(op->device, op->address);
}
static int32_t run_adopt(operation *op) {
    return kvf_cuda_memory_adopt(op->device, op->address, op->bytes, op->kind);
}
static int32_t run_set(operation *op) {
    return kvf_cuda_memory_set(op->device, op->address, op->bytes, op->kind);
}
static int32_t run_ipc_export(operation *op) {
    int32_t status = kvf_cuda_ipc_export(op->device, op->address, &op->ipc, &op->value);
    return status == KVF_OK ? kvf_job_set_result(op->context, op->slot, &op->ipc, sizeof op->ipc) : status;
}
static int32_t run_ipc_open(operation *op) {
    return kvf_cuda_ipc_open(op->device, &op->ipc, &op->value);
}
static int32_t run_ipc_close(operation *op) {
    return kvf_cuda_ipc_close(op->device, op->address);
}
static int32_t run_exportable_alloc(operation *op) {
    return kvf_cuda_exportable_alloc(op->device, op->bytes, &op->value);
}
static int32_t run_exportable_export(operation *op) {
    return kvf_cuda_exportable_export(op->address, &op->value);
}
static int32_t run_exportable_import(operation *op) {
    return kvf_cuda_exportable_import(op->device, op->other, op->bytes, &op->value);
}
static int32_t run_event_open(operation *op) {
    kvf_cuda_device *device = kvf_cuda_device_get(op->device);
    if (!device) return KVF_E_CUDA;
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    cu_event event = NULL;
    cu_result result = kvf_cuda_driver_get()->ipc_event_open(&event, op->ipc);
    kvf_cuda_leave();
    op->value = (double)(uintptr_t)event;
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: another process's event could not be opened");
}
static int32_t run_event_close(operation *op) {
    kvf_cuda_device *device = kvf_cuda_device_get(op->device);
    if (!device) return KVF_E_CUDA;
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    cu_result result = kvf_cuda_driver_get()->event_destroy((cu_event)(uintptr_t)op->address);
    kvf_cuda_leave();
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: an event could not be closed");
}

int32_t kvf_cuda_device_open_job(kvf_word context, uint32_t slot, int32_t device) {
    return start(context, slot, &(operation){.run = run_open, .device = device});
}

int32_t kvf_cuda_device_close_job(kvf_word context, uint32_t slot, int32_t device) {
    return start(context, slot, &(operation){.run = run_close, .device = device});
}

int32_t kvf_cuda_peer_job(kvf_word context, uint32_t slot, int32_t device, int32_t peer) {
    return start(context, slot, &(operation){.run = run_peer, .device = device, .other = peer});
}

static int32_t sized(kvf_word bytes) {
    return bytes == 0 || bytes > (UINT64_C(1) << 52) ? kvf_refuse(KVF_E_INVALID, "CUDA: %llu is not a size", (unsigned long long)bytes) : KVF_OK;
}

int32_t kvf_cuda_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_alloc, .device = device, .bytes = bytes}) : status;
}

int32_t kvf_cuda_free_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_free, .device = device, .address = address});
}

int32_t kvf_cuda_pinned_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_pinned_alloc, .device = device, .bytes = bytes}) : status;
}

int32_t kvf_cuda_pinned_free_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_pinned_free, .device = device, .address = address});
}

int32_t kvf_cuda_register_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes) {
    int32_t status = sized(bytes);
    if (status != KVF_OK) return status;
    if (address % 4096 || bytes % 4096) return kvf_refuse(KVF_E_INVALID, "CUDA: memory to register starts and ends on a page");
    return start(context, slot, &(operation){.run = run_register, .device = device, .address = address, .bytes = bytes});
}

int32_t kvf_cuda_unregister_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_unregister, .device = device, .address = address});
}

int32_t kvf_cuda_adopt_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes, uint32_t kind) {
    int32_t status = sized(bytes);
    if (status != KVF_OK) return status;
    if (kind != KVF_CUDA_POINTER_PINNED && kind != KVF_CUDA_POINTER_DEVICE) return kvf_refuse(KVF_E_INVALID, "CUDA: %u is no kind of memory to adopt", kind);
    return start(context, slot, &(operation){.run = run_adopt, .device = device, .address = address, .bytes = bytes, .kind = kind});
}

int32_t kvf_cuda_set_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes, uint32_t value) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_set, .device = device, .address = address, .bytes = bytes, .kind = value}) : status;
}

int32_t kvf_cuda_ipc_export_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_ipc_export, .device = device, .address = address});
}

int32_t kvf_cuda_ipc_open_job(kvf_word context, uint32_t slot, int32_t device, const uint8_t *handle) {
    if (!handle) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no handle");
    operation op = {.run = run_ipc_open, .device = device};
    memcpy(&op.ipc, handle, sizeof op.ipc);
    return start(context, slot, &op);
}

int32_t kvf_cuda_ipc_close_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address) {
    return start(context, slot, &(operation){.run = run_ipc_close, .device = device, .address = address});
}

int32_t kvf_cuda_exportable_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes) {
    int32_t status = sized(bytes);
    return status == KVF_OK ? start(context, slot, &(operation){.run = run_exportable_alloc, .device = device, .bytes = bytes}) : status;
}

int32_t kvf_cuda_exportable_export_job(kvf_word context, uint32_t slot, kvf_word address) {
    return start(context, slot, &(operation){.run = run_exportable_export, .address = address});
}

int32_t kvf_cuda_exportable_import_job(kvf_word context, uint32_t slot, int32_t device, int32_t descriptor, kvf_word bytes) {
    int32_t status = sized(bytes);
    if (status != KVF_OK) return status;
    return start(context, slot, &(operation){.run = run_exportable_import, .device = device, .other = descriptor, .bytes = bytes});
}

int32_t kvf_cuda_event_open_job(kvf_word context, uint32_t slot, int32_t device, const uint8_t *handle) {
    if (!handle) return kvf_refuse(KVF_E_INVALID, "CUDA: there is no handle");
    operation op = {.run = run_event_open, .device = device};
    memcpy(&op.ipc, handle, sizeof op.ipc);
    return start(context, slot, &op);
}

int32_t kvf_cuda_event_close_job(kvf_word context, uint32_t slot, int32_t device, kvf_word event) {
    return start(context, slot, &(operation){.run = run_event_close, .device = device, .address = event});
}
