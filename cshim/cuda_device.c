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
#define LOOK_EVERY (50 * MILLI) /* the watching thread, while something runs */
#define LOOK_ON 40              /* times more after nothing runs, so that a stream of small copies wakes nobody */

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(kvf_cuda_device *) table[KVF_CUDA_DEVICES];

static int32_t open_locked(int ordinal);
static bool drained(kvf_cuda_device *device);
static int32_t load_kernels(kvf_cuda_device *device);
static int32_t prepare_lanes(kvf_cuda_device *device);
static void close_locked(kvf_cuda_device *device);
static void free_lane(kvf_cuda_device *device, kvf_lane *lane);
static void *submit_thread(void *argument);
static void *watch_thread(void *argument);
static void *look_thread(void *argument);
static void poison(kvf_cuda_device *device);

static const char *const kernel_names[KVF_KERNELS] = {"kvf_rows_16", "kvf_rows_16x2", "kvf_rows_16x4", "kvf_rows_n", "kvf_pieces_16", "kvf_pieces_n",
                                                      "kvf_sleep",   "kvf_fault",  "kvf_bulk_16"};

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
    if (kvf_cuda_is_sticky(result)) poison(device);
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
    kvf_condition_init(&device->queued);
    kvf_condition_init(&device->watched);
    kvf_condition_init(&device->look);
    for (uint32_t i = 0; i < KVF_FLAGS; i++) device->free_flag[device->free_flags++] = (uint16_t)(KVF_FLAGS - 1 - i);
    for (int m = 0; m < KVF_METHODS; m++) {
        device->rate[KVF_TO_DEVICE][m] = device->rate[KVF_TO_HOST][m] = 50;
        device->rate[KVF_ON_DEVICE][m] = 1000;
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
    struct {
        pthread_t *thread;
        const char *name;
        void *(*run)(void *);
    } threads[3] = {{&device->submitter, "kvf-cuda-submit", submit_thread}, {&device->watcher, "kvf-cuda-watch", watch_thread}, {&device->looker, "kvf-cuda-look", look_thread}};
    for (int i = 0; i < 3 && status == KVF_OK; i++) {
        status = kvf_thread_start(threads[i].thread, threads[i].name, threads[i].run, device);
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
    pthread_cond_signal(&device->queued);
    pthread_cond_signal(&device->watched);
    pthread_cond_signal(&device->look);
    pthread_mutex_unlock(&device->lock);
    if (device->threads > 0) pthread_join(device->submitter, NULL);
    if (device->threads > 1) pthread_join(device->watcher, NULL);
    if (device->threads > 2) pthread_join(device->looker, NULL);
    if (kvf_cuda_enter(device) == KVF_OK) {
        for (int d = 0; d < KVF_DIRECTIONS; d++) {
            for (int i = 0; i < KVF_LANES; i++) free_lane(device, &device->lane[d][i]);
        }
        for (kvf_lane *lane = device->own; lane; lane = lane->next) free_lane(device, lane);
        for (uint32_t i = 0; i < device->spares; i++) cu->event_destroy(device->spare[i]);
        if (device->flags) cu->host_free((void *)(uintptr_t)device->flags);
        if (device->module) cu->module_unload(device->module);
        kvf_cuda_leave();
    }
    cu->context_release(device->handle);
    free(device->spare);
    pthread_cond_destroy(&device->queued);
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

/* ---- lanes ---------------------------------------------------------------------------------------------------- */

kvf_lane *kvf_lane_take_own(kvf_cuda_device *device) {
    pthread_mutex_lock(&device->lock);
    kvf_lane *lane = device->own;
    while (lane && lane->taken) lane = lane->next;
    if (!lane) {
        lane = calloc(1, sizeof *lane);
        if (lane) {
            pthread_mutex_init(&lane->lock, NULL);
            lane->own = true;
            lane->next = device->own;
            device->own = lane;
        } else kvf_set_error("CUDA: no memory for a lane");
    }
    if (lane) lane->taken = true;
    pthread_mutex_unlock(&device->lock);
    return lane;
}

int32_t kvf_lane_side(kvf_cuda_device *device, kvf_lane *lane) {
    if (lane->side) return KVF_OK;
    cu_result result = kvf_cuda_driver_get()->stream_create(&lane->side, CU_STREAM_NON_BLOCKING, device->priority_high);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: a stream could not be made");
}

int32_t kvf_lane_prepare(kvf_cuda_device *device, kvf_lane *lane) {
    if (lane->ready) return KVF_OK;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    int32_t status = kvf_lane_side(device, lane);
    if (status != KVF_OK) return status;
    cu_result result = CU_OK;
    /* Kernels of few CTAs wait for a free multiprocessor behind a model's: they go first. */
    if (!lane->work) result = cu->stream_create(&lane->work, CU_STREAM_NON_BLOCKING, device->priority_high);
    for (int i = 0; i < 2 && result == CU_OK; i++) {
        if (!lane->copy[i]) result = cu->stream_create(&lane->copy[i], CU_STREAM_NON_BLOCKING, device->priority_low);
    }
    for (int i = 0; i < 3 && result == CU_OK; i++) {
        if (!lane->join[i]) result = cu->event_create(&lane->join[i], CU_EVENT_NO_TIMING);
    }
    for (int i = 0; i < KVF_LIST_SEGMENTS && result == CU_OK; i++) {
        if (!lane->list_free[i]) result = cu->event_create(&lane->list_free[i], CU_EVENT_NO_TIMING);
    }
    if (result != CU_OK) return kvf_cuda_failed(device, result, "CUDA: streams could not be made");
    lane->ready = true;
    return KVF_OK;
}

int32_t kvf_lane_lists(kvf_cuda_device *device, kvf_lane *lane) {
    if (lane->list_device) return KVF_OK;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    const size_t bytes = (size_t)KVF_LIST_SEGMENTS * KVF_LIST_BYTES;
    cu_result result = CU_OK;
    if (!lane->list_host) result = cu->host_alloc((void **)&lane->list_host, bytes, CU_HOST_PORTABLE | CU_HOST_MAPPED);
    if (result == CU_OK) result = cu->alloc(&lane->list_device, bytes);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: staging for lists could not be made");
}

int32_t kvf_lane_slabs(kvf_cuda_device *device, kvf_lane *lane) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (lane->slab && lane->slab_bytes == device->tuning.slab_chunk) return KVF_OK;
    if (lane->slab) { /* another size was asked for: nothing may use the old ones */
        for (int i = 0; i < 2; i++) cu->stream_synchronize(lane->copy[i]);
        cu->stream_synchronize(lane->work);
        cu->free(lane->slab);
        lane->slab = 0;
    }
    cu_result result = CU_OK;
    for (int i = 0; i < KVF_SLABS && result == CU_OK; i++) {
        if (!lane->slab_ready[i]) result = cu->event_create(&lane->slab_ready[i], CU_EVENT_NO_TIMING);
        if (result == CU_OK && !lane->slab_free[i]) result = cu->event_create(&lane->slab_free[i], CU_EVENT_NO_TIMING);
    }
    if (result == CU_OK) result = cu->alloc(&lane->slab, KVF_SLABS * device->tuning.slab_chunk);
    if (result != CU_OK) return kvf_cuda_failed(device, result, "CUDA: slabs could not be made");
    lane->slab_bytes = device->tuning.slab_chunk;
    return KVF_OK;
}

static void free_lane(kvf_cuda_device *device, kvf_lane *lane) {
    (void)device;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_stream streams[4] = {lane->work, lane->copy[0], lane->copy[1], lane->side};
    for (int i = 0; i < 4; i++) {
        if (streams[i]) cu->stream_synchronize(streams[i]);
    }
    for (int i = 0; i < 4; i++) {
        if (streams[i]) cu->stream_destroy(streams[i]);
    }
    for (int i = 0; i < 3; i++) {
        if (lane->join[i]) cu->event_destroy(lane->join[i]);
    }
    for (int i = 0; i < KVF_LIST_SEGMENTS; i++) {
        if (lane->list_free[i]) cu->event_destroy(lane->list_free[i]);
    }
    for (int i = 0; i < KVF_SLABS; i++) {
        if (lane->slab_ready[i]) cu->event_destroy(lane->slab_ready[i]);
        if (lane->slab_free[i]) cu->event_destroy(lane->slab_free[i]);
    }
    if (lane->list_host) cu->host_free(lane->list_host);
    if (lane->list_device) cu->free(lane->list_device);
    if (lane->slab) cu->free(lane->slab);
}

/* ---- events --------------------------------------------------------------------------------------------------- */

cu_event kvf_cuda_event_take(kvf_cuda_device *device) {
    cu_event event = NULL;
    pthread_mutex_lock(&device->lock);
    if (device->spares > 0) event = device->spare[--device->spares];
    pthread_mutex_unlock(&device->lock);
    if (event) return event;
    cu_result result = kvf_cuda_driver_get()->event_create(&event, CU_EVENT_NO_TIMING);
    if (result == CU_OK) return event;
    kvf_cuda_failed(device, result, "CUDA: an event could not be made");
    return NULL;
}

void kvf_cuda_event_give(kvf_cuda_device *device, cu_event event) {
    if (!event) return;
    pthread_mutex_lock(&device->lock);
    if (device->spares == device->spare_room) {
        uint32_t room = device->spare_room ? 2 * device->spare_room : 64;
        cu_event *more = realloc(device->spare, room * sizeof *more);
        if (more) {
            device->spare = more;
            device->spare_room = room;
        }
    }
    bool kept = device->spares < device->spare_room;
    if (kept) device->spare[device->spares++] = event;
    pthread_mutex_unlock(&device->lock);
    if (!kept) kvf_cuda_driver_get()->event_destroy(event);
}

/* ---- tasks ---------------------------------------------------------------------------------------------------- */

void kvf_task_started(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    pthread_mutex_lock(&device->lock);
    task->next = device->running;
    device->running = task;
    device->runs++;
    if (!device->watching) {
        device->watching = true;
        pthread_cond_signal(&device->watched);
    }
    pthread_mutex_unlock(&device->lock);
}

void kvf_task_settle(kvf_task *task, int32_t status, uint32_t flags, double value, const char *text) {
    if (atomic_exchange(&task->settled, true)) return;
    if (status == KVF_OK) kvf_job_finish(task->context, task->slot, KVF_OK, flags, value);
    else kvf_job_fail(task->context, task->slot, status, flags, "%s", text);
}

/* ---- watching flags -------------------------------------------------------------------------------------------
 * A sleeping thread that the driver wakes runs tens of microseconds after the device is done. So the end of a copy is
 * foreseen from the rate last seen: a thread sleeps until shortly before, looks at the flag that the stream writes, the
 * more often the nearer the end should be, and when the foreseen time is well past it leaves the task to the driver's
 * callback. With nothing in flight it sleeps for good.
 */

#define MICRO UINT64_C(1000)
#define NEAR (64 * MICRO)          /* around the foreseen end it looks without pause */
#define PAUSE (20 * MICRO)         /* elsewhere at least that often */
#define EVENT_PAUSE (15 * MICRO)   /* for tasks that wait for events of others, whose end nobody can foresee */
#define EVENT_LOOKS (20000 * MICRO)
#define LATE (5000 * MICRO)
#define FORESIGHT (1000000 * MICRO) /* nobody sees further: what is queued longer is left to the driver's callback */
#define WAKE_EARLY (100 * MICRO)   /* a timed sleep may last that much longer */
#define SHORT (4 * MICRO)          /* not worth a sleep */
#define LINGER (100 * MICRO)       /* awake after the last one, so that a chain of small copies wakes nobody */

static void learn(const kvf_task *task, uint64_t now);

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

bool kvf_task_flag(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    pthread_mutex_lock(&device->lock);
    bool got = device->free_flags > 0;
    if (got) {
        task->flag = 1u + device->free_flag[--device->free_flags];
        if (++device->numbers == 0) device->numbers = 1;
        task->number = device->numbers;
    }
    pthread_mutex_unlock(&device->lock);
    return got;
}

void kvf_task_look(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    const uint64_t now = kvf_now_nanos();
    pthread_mutex_lock(&device->lock);
    uint64_t *expected = &device->expected[task->direction];
    const bool waits = kvf_task_waits(task); /* such a one says nothing about the link */
    task->lasts = (uint64_t)((double)task->hop.bytes / device->rate[task->direction][task->method % KVF_METHODS]);
    uint64_t starts = *expected > task->begun && !waits ? *expected : task->begun;
    if (starts > task->begun + FORESIGHT) starts = task->begun + FORESIGHT;
    if (!waits) *expected = starts + task->lasts;
    if (task->lasts > FORESIGHT) task->lasts = FORESIGHT;
    task->expected = starts + task->lasts + 5 * MICRO;
    task->look_from = waits ? task->begun : task->expected - task->lasts / 4 - 5 * MICRO;
    task->look_until = waits ? now + EVENT_LOOKS : task->expected + task->lasts + LATE;
    const uint64_t from = task->look_from;
    pthread_mutex_unlock(&device->lock);
    /* No lock from here on: the looking thread takes none while it is awake, so that neither waits for the other. */
    task->look_next = atomic_load(&device->looked);
    while (!atomic_compare_exchange_weak(&device->looked, &task->look_next, task)) {}
    if (!atomic_load(&device->looks) && from < atomic_load(&device->look_at)) {
        pthread_mutex_lock(&device->lock);
        pthread_cond_signal(&device->look);
        pthread_mutex_unlock(&device->lock);
    }
}

static void on_done(void *argument) {
    kvf_task *task = argument;
    learn(task, kvf_now_nanos());
    kvf_task_settle(task, task->status, task->done_flags, task->value, task->text);
    atomic_store(&task->over, true);
}

int32_t kvf_task_call(kvf_task *task) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_result result = CU_OK;
    if (task->last != task->side) { /* recorded late, it may include what was queued since: later, never earlier */
        if (!task->recorded) result = cu->event_record(task->done, task->last);
        if (result == CU_OK) result = cu->stream_wait(task->side, task->done, 0);
    }
    if (result == CU_OK) result = cu->stream_call(task->side, on_done, task);
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(task->device, result, "CUDA: the completion could not be queued");
}

/* What was seen of the link, for the next estimate. */
static void learn(const kvf_task *task, uint64_t now) {
    kvf_cuda_device *device = task->device;
    const kvf_direction way = task->direction;
    if (!task->expected || kvf_task_waits(task) || task->status != KVF_OK) return;
    pthread_mutex_lock(&device->lock);
    double *rate = &device->rate[way][task->method % KVF_METHODS];
    const bool alone = task->expected <= task->begun + task->lasts + 10 * MICRO; /* nothing was queued before it */
    if (alone && task->hop.bytes >= 1u << 20) {
        const uint64_t lasted = now > task->begun + 20 * MICRO ? now - task->begun - 10 * MICRO : 10 * MICRO;
        double seen = (double)task->hop.bytes / (double)lasted;
        if (!task->seen && seen < 1.4 * *rate) seen = 1.4 * *rate; /* over before the first look: how much is not known */
        *rate = seen < 0.05 ? 0.05 : (*rate + seen) / 2;
    }
    /* What is queued behind it ends as much earlier or later. */
    const uint64_t queued = device->expected[way] > task->expected ? device->expected[way] - task->expected : 0;
    device->expected[way] = now + (queued < FORESIGHT ? queued : FORESIGHT);
    pthread_mutex_unlock(&device->lock);
}

/* When to look at a task again. */
static uint64_t look_again(const kvf_task *task, uint64_t now) {
    if (now < task->look_from) return task->look_from;
    uint64_t far, most;
    if (kvf_task_waits(task)) {
        far = (now - task->begun) / 4;
        most = EVENT_PAUSE;
    } else {
        far = now < task->expected ? task->expected - now : now - task->expected;
        most = PAUSE;
    }
    const uint64_t pause = far < NEAR ? 0 : far / 16;
    return now + (pause < most ? pause : most);
}

/* Takes the tasks that are over, and those that took too long, off the list; answers when to look again. */
static uint64_t look_once(kvf_cuda_device *device, kvf_task **list, uint64_t now, kvf_task **over, kvf_task **late) {
    uint64_t again = UINT64_MAX;
    for (kvf_task **at = list; *at;) {
        kvf_task *task = *at;
        const bool written = __atomic_load_n(&device->flags[(task->flag - 1) * KVF_FLAG_WORDS], __ATOMIC_ACQUIRE) == task->number;
        if (written || now > task->look_until) {
            *at = task->look_next;
            kvf_task **to = written ? over : late;
            task->look_next = *to;
            *to = task;
            continue;
        }
        const uint64_t next = look_again(task, now);
        if (now >= task->look_from) task->seen = true;
        if (next < again) again = next;
        at = &task->look_next;
    }
    return again;
}

static void end_looks(kvf_cuda_device *device, kvf_task *over, kvf_task *late) {
    while (over) {
        kvf_task *next = over->look_next;
        on_done(over);
        over = next;
    }
    if (!late || device->poisoned || kvf_cuda_enter(device) != KVF_OK) return;
    while (late) {
        kvf_task *next = late->look_next;
        /* A failure here ends the context, which settles everything. */
        if (!atomic_load(&late->settled)) kvf_task_call(late);
        late = next;
    }
    kvf_cuda_leave();
}

static void *look_thread(void *argument) {
    kvf_cuda_device *device = argument;
    kvf_task *list = NULL;
    uint64_t busy = 0;
    bool stop = false;
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    atomic_store(&device->looks, true);
    while (!stop) {
        kvf_task *more = atomic_load_explicit(&device->looked, memory_order_relaxed) ? atomic_exchange(&device->looked, NULL) : NULL;
        while (more) {
            kvf_task *next = more->look_next;
            more->look_next = list;
            list = more;
            more = next;
        }
        const uint64_t now = kvf_now_nanos();
        kvf_task *over = NULL, *late = NULL;
        const uint64_t again = look_once(device, &list, now, &over, &late);
        if (over || late) {
            end_looks(device, over, late);
            busy = kvf_now_nanos();
        } else if (again > now + WAKE_EARLY && now > busy + LINGER) {
            pthread_mutex_lock(&device->lock);
            atomic_store(&device->look_at, again);
            atomic_store(&device->looks, false);
            if (!device->stop && !atomic_load(&device->looked)) {
                if (again == UINT64_MAX) pthread_cond_wait(&device->look, &device->lock);
                else kvf_condition_wait_until(&device->look, &device->lock, again - WAKE_EARLY);
            }
            atomic_store(&device->looks, true);
            stop = device->stop;
            pthread_mutex_unlock(&device->lock);
        } else if (again > now + SHORT && again != UINT64_MAX) {
            uint64_t pause = again - now < PAUSE ? again - now : PAUSE; /* new tasks are seen that late at most */
            nanosleep(&(struct timespec){0, (long)(pause - SHORT / 2)}, NULL);
        } else {
            for (int i = 0; i < 16; i++) relax();
            if ((now >> 12 & 3) == 0) sched_yield();
        }
    }
    return NULL;
}

void kvf_task_free(kvf_task *task) {
    if (task->flag) {
        pthread_mutex_lock(&task->device->lock);
        task->device->free_flag[task->device->free_flags++] = (uint16_t)(task->flag - 1);
        pthread_mutex_unlock(&task->device->lock);
    }
    kvf_cuda_event_give(task->device, task->done);
    kvf_cuda_event_give(task->device, task->before);
    if (task->lane) {
        pthread_mutex_lock(&task->device->lock);
        task->lane->taken = false;
        pthread_mutex_unlock(&task->device->lock);
    }
    kvf_hop_free(&task->hop);
    free(task->waits);
    free(task->marks);
    free(task);
}

void kvf_cuda_collect(kvf_cuda_device *device) {
    kvf_task *over = NULL;
    pthread_mutex_lock(&device->lock);
    if (!device->poisoned) { /* the driver may still call back for the tasks of a poisoned one */
        for (kvf_task **at = &device->running; *at;) {
            kvf_task *task = *at;
            if (atomic_load(&task->over)) {
                *at = task->next;
                task->next = over;
                over = task;
                device->runs--;
            } else at = &task->next;
        }
    }
    pthread_mutex_unlock(&device->lock);
    while (over) {
        kvf_task *next = over->next;
        kvf_task_free(over);
        over = next;
    }
}

bool kvf_task_waits(const kvf_task *task) {
    return task->stream || task->wait_count > 0 || task->foreign;
}

static void run_queued(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    bool touched = false;
    int32_t status = KVF_OK;
    if (kvf_job_cancelled(task->context, task->slot)) status = kvf_refuse(KVF_E_CANCELLED, "CUDA: cancelled before the first byte moved");
    else if (device->poisoned) status = kvf_refuse(KVF_E_CUDA, "CUDA device %d is lost: %s", device->ordinal, device->cause);
    else status = kvf_task_submit(task, true, &touched);
    if (status != KVF_OK && !touched) {
        kvf_task_settle(task, status, 0, 0, kvf_error_text());
        kvf_task_free(task);
    }
    kvf_cuda_collect(device);
    pthread_mutex_lock(&device->lock);
    device->runs--;
    pthread_mutex_unlock(&device->lock);
}

static void *own_thread(void *argument) {
    run_queued(argument);
    return NULL;
}

int32_t kvf_task_queue(kvf_task *task) {
    kvf_cuda_device *device = task->device;
    const bool waits = kvf_task_waits(task); /* its streams may fill up behind an event and block who submits */
    task->next = NULL;
    pthread_mutex_lock(&device->lock);
    bool stop = device->stop;
    if (!stop) {
        device->runs++; /* counts for close; given back once the task is started or has failed */
        if (!waits) {
            if (device->queue_end) device->queue_end->next = task;
            else device->queue = task;
            device->queue_end = task;
            pthread_cond_signal(&device->queued);
        }
    }
    pthread_mutex_unlock(&device->lock);
    if (stop) return kvf_refuse(KVF_E_CLOSED, "CUDA: device %d is closing", device->ordinal);
    if (!waits) return KVF_OK;
    pthread_t thread;
    int32_t status = kvf_thread_start(&thread, "kvf-cuda-waiter", own_thread, task);
    if (status == KVF_OK) pthread_detach(thread);
    else {
        pthread_mutex_lock(&device->lock);
        device->runs--;
        pthread_mutex_unlock(&device->lock);
    }
    return status;
}

static void *submit_thread(void *argument) {
    kvf_cuda_device *device = argument;
    pthread_mutex_lock(&device->lock);
    for (;;) {
        while (!device->queue && !device->stop) pthread_cond_wait(&device->queued, &device->lock);
        kvf_task *task = device->queue;
        if (!task) break;
        device->queue = task->next;
        if (!device->queue) device->queue_end = NULL;
        pthread_mutex_unlock(&device->lock);
        run_queued(task);
        pthread_mutex_lock(&device->lock);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

/* Ends every task of a device whose context is of no use any more. What its kernels and copies did is not known. */
static void poison(kvf_cuda_device *device) {
    char text[KVF_TEXT_BYTES];
    snprintf(text, sizeof text, "%s", kvf_error_text());
    pthread_mutex_lock(&device->lock);
    bool first = !device->poisoned;
    if (first) {
        snprintf(device->cause, sizeof device->cause, "%s", text);
        device->poisoned = true;
    }
    kvf_task *running = device->running;
    pthread_mutex_unlock(&device->lock);
    /* Tasks of a poisoned device stay on its list for good; new ones come in front. */
    for (kvf_task *task = running; task; task = task->next)
        kvf_task_settle(task, KVF_E_CUDA, KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT, 0, device->cause);
    kvf_set_error("%s", text);
}

/* Frees what is over, and finds out when a context has died: the driver calls nobody back then. */
static void *watch_thread(void *argument) {
    kvf_cuda_device *device = argument;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    uint32_t idle = 0;
    pthread_mutex_lock(&device->lock);
    while (!device->stop) {
        if (!device->watching) {
            pthread_cond_wait(&device->watched, &device->lock);
            idle = 0;
            continue;
        }
        kvf_condition_wait_until(&device->watched, &device->lock, kvf_now_nanos() + LOOK_EVERY);
        if (device->stop) break;
        bool poisoned = device->poisoned;
        idle = device->running && !poisoned ? 0 : idle + 1;
        if (idle > LOOK_ON) {
            device->watching = false;
            continue;
        }
        cu_stream any = device->running ? device->running->last : NULL; /* lanes stay until the device is closed */
        pthread_mutex_unlock(&device->lock);
        kvf_cuda_collect(device);
        if (poisoned) poison(device); /* what was started while it was being poisoned */
        else if (any && kvf_cuda_enter(device) == KVF_OK) {
            cu_result result = cu->stream_query(any);
            if (result != CU_OK && result != CU_NOT_READY) kvf_cuda_failed(device, result, "CUDA: a kernel or copy failed");
            kvf_cuda_leave();
        }
        pthread_mutex_lock(&device->lock);
    }
    pthread_mutex_unlock(&device->lock);
    return NULL;
}
