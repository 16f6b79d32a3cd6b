#include "cuda_device.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "cuda_kernels.h"
#include "status.h"
#include "thread.h"

#define MILLI 1000000ull

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(kvf_cuda_device *) table[KVF_CUDA_DEVICES];

static int32_t open_locked(int ordinal);
static bool drained(kvf_cuda_device *device);
static int32_t load_kernels(kvf_cuda_device *device);
static int32_t prepare_lanes(kvf_cuda_device *device);
static void close_locked(kvf_cuda_device *device);

static const char *const kernel_names[KVF_KERNELS] = {"kvf_rows_16", "kvf_rows_16x2", "kvf_rows_16x4", "kvf_rows_n", "kvf_pieces_16", "kvf_pieces_n",
                                                      "kvf_sleep",   "kvf_fault",  "kvf_bulk_16",     "kvf_slices_16"};

/* ---- the table ----------------------------------------------------------------------------------------------- */

int32_t kvf_cuda_device_open(int ordinal) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (!cu) return KVF_E_UNAVAILABLE;
    if (ordinal < 0 || ordinal >= cu->devices || ordinal >= KVF_CUDA_DEVICES)
        return kvf_refuse(KVF_E_INVALID, "CUDA: there is no device %d, the driver has %d", ordinal, cu->devices);
    pthread_mutex_lock(&table_lock);
    kvf_cuda_device *device = table[ordinal];
    int32_t status = KVF_OK;
    if (!device) status = open_locked(ordinal);
    else if (device->poisoned) status = kvf_refuse(KVF_E_CUDA, "CUDA device %d is lost: %s", ordinal, device->cause);
    else device->opens++;
    pthread_mutex_unlock(&table_lock);
    return status;
}

int32_t kvf_cuda_device_close(int ordinal) {
    pthread_mutex_lock(&table_lock);
    kvf_cuda_device *device = ordinal >= 0 && ordinal < KVF_CUDA_DEVICES ? table[ordinal] : NULL;
    int32_t status = KVF_OK;
    if (!device) status = kvf_refuse(KVF_E_INVALID, "CUDA: device %d is not open", ordinal);
    else if (device->opens > 1) device->opens--;
    else if (device->poisoned) device->opens = 0; /* stays in the table with its cause: nothing of it can be freed */
    else {
        if (!drained(device)) status = kvf_refuse(KVF_E_BUSY, "CUDA: device %d has copies that run", ordinal);
        else {
            table[ordinal] = NULL;
            close_locked(device);
        }
    }
    pthread_mutex_unlock(&table_lock);
    return status;
}

kvf_cuda_device *kvf_cuda_device_peek(int ordinal) {
    return ordinal >= 0 && ordinal < KVF_CUDA_DEVICES ? table[ordinal] : NULL;
}

int32_t kvf_cuda_wake(int32_t ordinal) {
    /* Whoever holds the table may take seconds to close a device: the watching thread wakes the other one then. */
    if (pthread_mutex_trylock(&table_lock) != 0) return KVF_OK;
    kvf_cuda_device *device = kvf_cuda_device_peek(ordinal);
    if (device && atomic_load(&device->overslept)) kvf_looker_wake(device);
    pthread_mutex_unlock(&table_lock);
    return KVF_OK;
}

kvf_cuda_device *kvf_cuda_device_get(int ordinal) {
    kvf_cuda_device *device = kvf_cuda_device_peek(ordinal);
    if (!device) {
        kvf_set_error("CUDA: device %d is not open", ordinal);
        return NULL;
    }
    if (device->poisoned) {
        kvf_set_error("CUDA device %d is lost: %s", ordinal, device->cause);
        return NULL;
    }
    return device;
}

int32_t kvf_cuda_enter(kvf_cuda_device *device) {
    cu_result result = kvf_cuda_driver_get()->context_push(device->context);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: the context could not be entered");
}

void kvf_cuda_leave(void) {
    cu_context context;
    kvf_cuda_driver_get()->context_pop(&context);
}

int32_t kvf_cuda_device_reach(kvf_cuda_device *device, int peer) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (peer == device->ordinal) return KVF_OK;
    uint64_t bit = peer >= 0 && peer < 64 ? UINT64_C(1) << peer : 0;
    if (device->peers & bit) return KVF_OK;
    kvf_cuda_device *other = kvf_cuda_device_get(peer);
    if (!other) return KVF_E_INVALID;
    int can = 0;
    cu->device_peer(&can, device->handle, other->handle);
    if (!can) return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: device %d cannot reach the memory of device %d", device->ordinal, peer);
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    cu_result result = cu->context_peer(other->context, 0);
    kvf_cuda_leave();
    if (result != CU_OK && result != CU_PEER_ALREADY_ENABLED) return kvf_cuda_failed(device, result, "CUDA: peer access");
    device->peers |= bit;
    return KVF_OK;
}

int32_t kvf_cuda_failed(kvf_cuda_device *device, cu_result result, const char *what) {
    int32_t status = kvf_cuda_refuse(result, what);
    if (kvf_cuda_is_sticky(result)) kvf_cuda_poison(device);
    return status;
}

/* ---- opening and closing -------------------------------------------------------------------------------------- */

static void set_tuning(kvf_cuda_tuning *tuning) {
    *tuning = (kvf_cuda_tuning){
        .link_ctas = 16,
        .link_threads = 512,
        .device_ctas = 16,
        .device_threads = 512,
        .slab_ctas = 48,
        .slab_threads = 512,
        .slab_chunk = 16u << 20,
        .slab_streams = 1,
        .bulk_ctas = 8,
        .bulk_warps = 4,
        .bulk_stage = 8192,
        .look = 1,
    };
}

static int32_t open_locked(int ordinal) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    kvf_cuda_device *device = calloc(1, sizeof *device);
    if (!device) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for device %d", ordinal);
    device->ordinal = ordinal;
    device->opens = 1;
    device->peers = ordinal < 64 ? UINT64_C(1) << ordinal : 0;
    set_tuning(&device->tuning);
    pthread_mutex_init(&device->lock, NULL);
    for (int d = 0; d < KVF_DIRECTIONS; d++) {
        device->queue[d].device = device;
        kvf_condition_init(&device->queue[d].queued);
    }
    kvf_condition_init(&device->watched);
    kvf_condition_init(&device->look);
    for (uint32_t i = 0; i < KVF_FLAGS; i++) device->free_flag[device->free_flags++] = (uint16_t)(KVF_FLAGS - 1 - i);
    for (int m = 0; m < KVF_METHODS; m++)
        for (int size = 0; size < KVF_SIZES; size++) {
            device->rate[KVF_TO_DEVICE][m][size] = device->rate[KVF_TO_HOST][m][size] = 50;
            device->rate[KVF_ON_DEVICE][m][size] = 1000;
        }
    for (int d = 0; d < KVF_DIRECTIONS; d++) {
        for (int i = 0; i < KVF_LANES; i++) pthread_mutex_init(&device->lane[d][i].lock, NULL);
    }
    int value = 0;
    cu_result result = cu->device_get(&device->handle, ordinal);
    if (result == CU_OK) result = cu->device_attribute(&device->sms, CU_ATTR_SMS, device->handle);
    if (result == CU_OK) result = cu->device_attribute(&device->major, CU_ATTR_MAJOR, device->handle);
    if (result == CU_OK) result = cu->device_attribute(&device->minor, CU_ATTR_MINOR, device->handle);
    if (result == CU_OK) result = cu->device_attribute(&device->shared, CU_ATTR_SHARED_OPTIN, device->handle);
    if (result == CU_OK) result = cu->device_attribute(&value, CU_ATTR_HOST_POINTERS, device->handle);
    device->host_pointers = value != 0;
    if (result == CU_OK) result = cu->context_retain(&device->context, device->handle);
    if (result != CU_OK) {
        free(device);
        return kvf_cuda_refuse(result, "CUDA: the device could not be opened");
    }
    int32_t status = kvf_cuda_enter(device);
    if (status == KVF_OK) {
        cu->stream_priorities(&device->priority_low, &device->priority_high);
        status = load_kernels(device);
        kvf_cuda_leave();
    }
    if (status == KVF_OK) status = prepare_lanes(device);
    for (int i = 0; i < KVF_DIRECTIONS + 2 && status == KVF_OK; i++) {
        if (i < KVF_DIRECTIONS) status = kvf_thread_start(&device->queue[i].thread, "kvf-cuda-submit", kvf_cuda_submit_thread, &device->queue[i]);
        else if (i == KVF_DIRECTIONS) status = kvf_thread_start(&device->watcher, "kvf-cuda-watch", kvf_cuda_watch_thread, device);
        else status = kvf_thread_start(&device->looker, "kvf-cuda-look", kvf_cuda_look_thread, device);
        if (status == KVF_OK) device->threads++;
    }
    if (status != KVF_OK) {
        close_locked(device);
        return status;
    }
    table[ordinal] = device;
    return KVF_OK;
}

/* Runs on this device: the same architecture best, an older one of the same generation else, text last. */
static int fitness(const kvf_cuda_device *device, uint32_t arch, uint32_t text) {
    int major = (int)arch / 10, minor = (int)arch % 10;
    if (text) return major * 10 + minor <= device->major * 10 + device->minor ? 1 : 0;
    return major == device->major && minor <= device->minor ? 2 + minor : 0;
}

/* Unpacks an image into memory of its own, with a zero behind it (texts end in one). */
static void *unpack(const uint32_t *from, uint32_t words, uint32_t bytes) {
    const uint32_t room = (bytes + 3) / 4;
    uint32_t *out = calloc(room + 1u, 4);
    if (!out) return NULL;
    for (uint32_t at = 0, to = 0; at + 2 <= words;) {
        const uint32_t plain = from[at], zeros = from[at + 1];
        if (plain > words - at - 2 || plain > room - to) break; /* never: both sides are ours */
        memcpy(out + to, from + at + 2, 4 * (size_t)plain);
        at += 2 + plain;
        to += plain + zeros;
        if (to > room) break;
    }
    return out;
}

static int32_t load_kernels(kvf_cuda_device *device) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    uint64_t bytes;
    const unsigned char *blob = kvf_kernels(&bytes);
    if (!blob || bytes < 4) return KVF_OK; /* built without: DMA methods only */
    const uint32_t *words = (const uint32_t *)(const void *)blob;
    for (int want = 16; want > 0 && !device->module; want--) {
        for (uint32_t i = 0; i < words[0] && !device->module; i++) {
            const uint32_t *image = words + 1 + 5 * i;
            if (fitness(device, image[0], image[1]) != want) continue;
            void *copy = unpack(words + image[2] / 4, image[3] / 4, image[4]);
            if (!copy) return kvf_refuse(KVF_E_NOMEM, "CUDA: no memory for the kernels");
            cu_result result = cu->module_load(&device->module, copy);
            free(copy);
            if (result == CU_OUT_OF_MEMORY) return kvf_cuda_failed(device, result, "CUDA: the kernels could not be loaded");
            if (result != CU_OK) device->module = NULL; /* the next best */
            else snprintf(device->code, sizeof device->code, "%s_%u", image[1] ? "compute" : "sm", image[0]);
        }
    }
    if (!device->module) return KVF_OK;
    for (int k = 0; k < KVF_KERNELS; k++) {
        if (cu->module_function(&device->kernel[k], device->module, kernel_names[k]) != CU_OK) device->kernel[k] = NULL;
    }
    if (device->kernel[KVF_KERNEL_BULK]) {
        int bulk = device->shared - 2048; /* what the kernel declares by itself stays free */
        if (cu->function_set(device->kernel[KVF_KERNEL_BULK], CU_FUNC_MAX_DYNAMIC_SHARED, bulk) != CU_OK) device->kernel[KVF_KERNEL_BULK] = NULL;
    }
    return KVF_OK;
}

/* All that the first copies would otherwise have to wait for. */
static int32_t prepare_lanes(kvf_cuda_device *device) {
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    void *flags = NULL;
    const size_t bytes = sizeof(uint32_t) * KVF_FLAGS * KVF_FLAG_WORDS;
    cu_result result = kvf_cuda_driver_get()->host_alloc(&flags, bytes, CU_HOST_PORTABLE | CU_HOST_MAPPED);
    if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: flags could not be made");
    else {
        memset(flags, 0, bytes);
        device->flags = flags;
    }
    for (int d = 0; d < KVF_DIRECTIONS; d++) {
        for (int i = 0; i < KVF_LANES && status == KVF_OK; i++) {
            status = kvf_lane_prepare(device, &device->lane[d][i]);
            if (status == KVF_OK) status = kvf_lane_lists(device, &device->lane[d][i]);
        }
    }
    /* Memory cannot be had while kernels run: tasks that wait for long ones find two lanes ready. */
    kvf_lane *own[KVF_LANES] = {NULL};
    for (int i = 0; i < KVF_LANES && status == KVF_OK; i++) {
        own[i] = kvf_lane_take_own(device);
        if (!own[i]) status = KVF_E_NOMEM;
        else status = kvf_lane_prepare(device, own[i]);
        if (status == KVF_OK) status = kvf_lane_lists(device, own[i]);
    }
    for (int i = 0; i < KVF_LANES; i++) {
        if (own[i]) own[i]->taken = false;
    }
    kvf_cuda_leave();
    return status;
}

static void close_locked(kvf_cuda_device *device) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    pthread_mutex_lock(&device->lock);
    device->stop = true;
    for (int i = 0; i < KVF_DIRECTIONS; i++) pthread_cond_signal(&device->queue[i].queued);
    pthread_cond_signal(&device->watched);
    pthread_cond_signal(&device->look);
    pthread_mutex_unlock(&device->lock);
    for (uint32_t i = 0; i < device->threads; i++)
        pthread_join(i < KVF_DIRECTIONS ? device->queue[i].thread : i == KVF_DIRECTIONS ? device->watcher : device->looker, NULL);
    if (kvf_cuda_enter(device) == KVF_OK) {
        for (int d = 0; d < KVF_DIRECTIONS; d++) {
            for (int i = 0; i < KVF_LANES; i++) kvf_lane_free( &device->lane[d][i]);
        }
        for (kvf_lane *lane = device->own; lane; lane = lane->next) kvf_lane_free( lane);
        for (uint32_t i = 0; i < device->spares; i++) cu->event_destroy(device->spare[i]);
        if (device->flags) cu->host_free((void *)(uintptr_t)device->flags);
        if (device->module) cu->module_unload(device->module);
        kvf_cuda_leave();
    }
    cu->context_release(device->handle);
    free(device->spare);
    for (int i = 0; i < KVF_DIRECTIONS; i++) pthread_cond_destroy(&device->queue[i].queued);
    pthread_cond_destroy(&device->watched);
    pthread_cond_destroy(&device->look);
    pthread_mutex_destroy(&device->lock);
    for (int d = 0; d < KVF_DIRECTIONS; d++) {
        for (int i = 0; i < KVF_LANES; i++) pthread_mutex_destroy(&device->lane[d][i].lock);
    }
    while (device->own) {
        kvf_lane *next = device->own->next;
        pthread_mutex_destroy(&device->own->lock);
        free(device->own);
        device->own = next;
    }
    free(device);
}

/* Waits a while for what runs. */
static bool drained(kvf_cuda_device *device) {
    for (int i = 0; i < 2000; i++) {
        kvf_cuda_collect(device);
        pthread_mutex_lock(&device->lock);
        bool busy = device->runs > 0;
        pthread_mutex_unlock(&device->lock);
        if (!busy) return true;
        nanosleep(&(struct timespec){0, (long)MILLI}, NULL);
    }
    return false;
}
