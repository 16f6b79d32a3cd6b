#include "cuda_memory.h"

#include <stdlib.h>
#include <string.h>

#include "status.h"

/* Registering 512 GiB at once fails in the driver; pieces of this size work. */
#define PIECE (UINT64_C(64) << 30)

/* Sorted by start; regions do not overlap, but an adopted one may repeat a part of another, and is then not kept. */
static pthread_rwlock_t regions_lock = PTHREAD_RWLOCK_INITIALIZER;
static kvf_cuda_region *regions;
static uint32_t region_count, region_room;

/* ---- the table ------------------------------------------------------------------------------------------------- */

/* The index of the last region that starts at or before `at`, plus one; 0: none. */
static uint32_t find(uint64_t at) {
    uint32_t low = 0, high = region_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (regions[middle].start <= at) low = middle + 1;
        else high = middle;
    }
    return low;
}

int32_t kvf_cuda_region_insert(const kvf_cuda_region *entry) {
    pthread_rwlock_wrlock(&regions_lock);
    int32_t status = KVF_OK;
    if (region_count == region_room) {
        uint32_t room = region_room ? 2 * region_room : 64;
        kvf_cuda_region *more = realloc(regions, room * sizeof *more);
        if (more) {
            regions = more;
            region_room = room;
        } else status = KVF_E_NOMEM;
    }
    if (status == KVF_OK) {
        uint32_t at = find(entry->start);
        memmove(&regions[at + 1], &regions[at], (region_count - at) * sizeof *regions);
        regions[at] = *entry;
        region_count++;
    }
    pthread_rwlock_unlock(&regions_lock);
    return status == KVF_OK ? KVF_OK : kvf_refuse(status, "CUDA: no memory for the table of regions");
}

int32_t kvf_cuda_region_take(uint64_t address, kvf_cuda_origin from, kvf_cuda_region *out) {
    pthread_rwlock_wrlock(&regions_lock);
    uint32_t at = find(address);
    bool found = false;
    for (; at > 0 && regions[at - 1].start == address && !found; at--) found = regions[at - 1].from == from;
    if (found) {
        *out = regions[at];
        memmove(&regions[at], &regions[at + 1], (region_count - at - 1) * sizeof *regions);
        region_count--;
    }
    pthread_rwlock_unlock(&regions_lock);
    return found ? KVF_OK : kvf_refuse(KVF_E_INVALID, "CUDA: 0x%llx was not given by this library", (unsigned long long)address);
}

bool kvf_cuda_region_find(uint64_t address, kvf_cuda_origin from, kvf_cuda_region *out) {
    pthread_rwlock_rdlock(&regions_lock);
    uint32_t at = find(address);
    bool found = false;
    for (; at > 0 && regions[at - 1].start == address && !found; at--) found = regions[at - 1].from == from;
    if (found) *out = regions[at];
    pthread_rwlock_unlock(&regions_lock);
    return found;
}

/* Whether the region with this index, plus one, holds all of [low, high). */
static bool holds(uint32_t index, uint64_t low, uint64_t high) {
    return index > 0 && index <= region_count && low >= regions[index - 1].start && high <= regions[index - 1].end;
}

/* Whether a kernel of the device may touch this region as memory of that kind. */
static bool serves(const kvf_cuda_region *r, const kvf_cuda_device *device, uint32_t kind) {
    if ((r->kind == KVF_CUDA_POINTER_PINNED) != (kind == 0)) return false;
    if (r->from == KVF_CUDA_REGISTERED && !device->host_pointers) return false;
    /* Another process's memory, and memory of the virtual memory API, is mapped for one device, whatever peers that has. */
    if (r->from == KVF_CUDA_OPENED || r->from == KVF_CUDA_IMPORTED || r->from == KVF_CUDA_EXPORTABLE) return r->device == device->ordinal;
    return r->kind == KVF_CUDA_POINTER_PINNED || r->device == device->ordinal ||
           (r->device >= 0 && r->device < 64 && (device->peers >> r->device & 1));
}

static bool in_table(kvf_cuda_device *device, uint64_t low, uint64_t high, uint32_t kind) {
    pthread_rwlock_rdlock(&regions_lock);
    uint32_t at = find(low);
    bool known = at > 0 && high <= regions[at - 1].end && serves(&regions[at - 1], device, kind);
    pthread_rwlock_unlock(&regions_lock);
    return known;
}

/* ---- what the driver knows --------------------------------------------------------------------------------------- */

static int32_t ask(uint64_t address, uint32_t *kind, int *ordinal, uint64_t *start, uint64_t *bytes) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    if (!cu) return KVF_E_UNAVAILABLE;
    unsigned type = 0, managed = 0;
    *kind = KVF_CUDA_POINTER_PAGEABLE;
    *ordinal = -1;
    *start = address;
    *bytes = 0;
    cu_result result = cu->pointer_attribute(&type, CU_POINTER_TYPE, address);
    if (result == CU_INVALID_VALUE || (result == CU_OK && type == 0)) return KVF_OK; /* memory it has never heard of */
    if (result != CU_OK) return kvf_cuda_refuse(result, "CUDA: a pointer could not be asked about");
    cu->pointer_attribute(&managed, CU_POINTER_MANAGED, address);
    cu->pointer_attribute(ordinal, CU_POINTER_ORDINAL, address);
    *kind = managed ? KVF_CUDA_POINTER_MANAGED : type == CU_MEMORY_HOST ? KVF_CUDA_POINTER_PINNED : KVF_CUDA_POINTER_DEVICE;
    cu_pointer from = 0;
    size_t size = 0;
    if (cu->pointer_attribute(&from, CU_POINTER_START, address) == CU_OK && cu->pointer_attribute(&size, CU_POINTER_SIZE, address) == CU_OK && size) {
        *start = from;
        *bytes = size;
    }
    return KVF_OK;
}

/* True when the driver says that all of [low, high) is one allocation of that kind. */
static bool driver_knows(kvf_cuda_device *device, uint64_t low, uint64_t high, uint32_t kind) {
    uint32_t found;
    int ordinal;
    uint64_t start, bytes;
    if (ask(low, &found, &ordinal, &start, &bytes) != KVF_OK) return false;
    bool pinned = found == KVF_CUDA_POINTER_PINNED;
    if (found == KVF_CUDA_POINTER_PAGEABLE || pinned != (kind == 0)) return false;
    if (!pinned && found == KVF_CUDA_POINTER_DEVICE && ordinal != device->ordinal && !(ordinal >= 0 && ordinal < 64 && (device->peers >> ordinal & 1)))
        return false;
    if (bytes) return low >= start && high <= start + bytes;
    uint32_t last; /* the allocation's bounds are not told: both ends must at least be of that kind */
    return ask(high - 1, &last, &ordinal, &start, &bytes) == KVF_OK && last == found;
}

/* Another process's memory that was opened for another device: the driver would call it reachable. */
static bool opened_elsewhere(const kvf_cuda_device *device, uint64_t at) {
    pthread_rwlock_rdlock(&regions_lock);
    const uint32_t index = find(at);
    const kvf_cuda_region *r = index > 0 && at < regions[index - 1].end ? &regions[index - 1] : NULL;
    const bool found = r && (r->from == KVF_CUDA_OPENED || r->from == KVF_CUDA_IMPORTED) && r->device != device->ordinal;
    pthread_rwlock_unlock(&regions_lock);
    return found;
}

bool kvf_cuda_knows(kvf_cuda_device *device, uint64_t low, uint64_t high, uint32_t kind) {
    if (opened_elsewhere(device, low)) return false;
    return in_table(device, low, high, kind) || driver_knows(device, low, high, kind);
}

bool kvf_cuda_knows_side(kvf_cuda_device *device, const kvf_program *program, int side, uint64_t *low, uint64_t *high) {
    const double *base = side == KVF_SRC ? program->src_base : program->dst_base;
    const uint32_t kind = side == KVF_SRC ? program->src_kind : program->dst_kind;
    int64_t from, to;
    uint64_t r = 0;
    kvf_program_extent(program, side, &from, &to);
    uint32_t index = 0; /* of the region that the base before lay in, plus one */
    pthread_rwlock_rdlock(&regions_lock); /* once for all bases, which mostly lie in the same region or in the next one */
    for (; r < program->bases; r++) {
        *low = (uint64_t)((int64_t)base[r] + from);
        *high = (uint64_t)((int64_t)base[r] + to);
        if (holds(index, *low, *high)) continue;
        index = holds(index + 1, *low, *high) ? index + 1 : find(*low);
        if (!holds(index, *low, *high) || !serves(&regions[index - 1], device, kind)) break;
    }
    pthread_rwlock_unlock(&regions_lock);
    for (; r < program->bases; r++) { /* what the table does not have */
        *low = (uint64_t)((int64_t)base[r] + from);
        *high = (uint64_t)((int64_t)base[r] + to);
        if (!kvf_cuda_knows(device, *low, *high, kind)) return false;
    }
    return true;
}

int32_t kvf_cuda_pointer(kvf_word address, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "CUDA: nowhere to answer");
    uint32_t kind;
    int ordinal;
    uint64_t start, bytes;
    int32_t status = ask(address, &kind, &ordinal, &start, &bytes);
    if (status != KVF_OK) return status;
    out[0] = kind;
    out[1] = ordinal;
    out[2] = (double)start;
    out[3] = (double)bytes;
    return KVF_OK;
}

int32_t kvf_cuda_memory_info(int32_t ordinal, double *out) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    if (!out) return kvf_refuse(KVF_E_INVALID, "CUDA: nowhere to answer");
    int32_t status = kvf_cuda_enter(device);
    if (status != KVF_OK) return status;
    size_t available = 0, total = 0;
    cu_result result = kvf_cuda_driver_get()->memory_info(&available, &total);
    kvf_cuda_leave();
    if (result != CU_OK) return kvf_cuda_failed(device, result, "CUDA: memory information");
    out[0] = (double)available;
    out[1] = (double)total;
    return KVF_OK;
}

/* ---- getting and giving back ---------------------------------------------------------------------------------------- */

kvf_cuda_device *kvf_cuda_entered(int ordinal) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    return device && kvf_cuda_enter(device) == KVF_OK ? device : NULL;
}

int32_t kvf_cuda_memory_alloc(int ordinal, uint64_t bytes, double *address) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_pointer got = 0;
    cu_result result = cu->alloc(&got, bytes);
    int32_t status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: device memory");
    if (status == KVF_OK) {
        status = kvf_cuda_region_insert(&(kvf_cuda_region){.start = got, .end = got + bytes, .kind = KVF_CUDA_POINTER_DEVICE, .device = ordinal, .from = KVF_CUDA_ALLOCATED});
        if (status != KVF_OK) cu->free(got);
    }
    kvf_cuda_leave();
    *address = (double)got;
    return status;
}

int32_t kvf_cuda_memory_free(int ordinal, uint64_t address) {
    kvf_cuda_region entry;
    int32_t status = kvf_cuda_exportable_free(address);
    if (status != KVF_AGAIN) return status;
    status = kvf_cuda_region_take(address, KVF_CUDA_ALLOCATED, &entry);
    if (status != KVF_OK) return status;
    kvf_cuda_device *device = kvf_cuda_entered(entry.device);
    (void)ordinal;
    if (!device) return KVF_E_CUDA;
    cu_result result = kvf_cuda_driver_get()->free(address);
    status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: device memory could not be freed");
    kvf_cuda_leave();
    return status;
}

int32_t kvf_cuda_pinned_alloc(int ordinal, uint64_t bytes, double *address) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    void *got = NULL;
    cu_result result = cu->host_alloc(&got, bytes, CU_HOST_PORTABLE | CU_HOST_MAPPED);
    int32_t status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: pinned memory");
    if (status == KVF_OK) {
        uint64_t start = (uint64_t)(uintptr_t)got;
        status = kvf_cuda_region_insert(&(kvf_cuda_region){.start = start, .end = start + bytes, .kind = KVF_CUDA_POINTER_PINNED, .device = ordinal, .from = KVF_CUDA_PINNED});
        if (status != KVF_OK) cu->host_free(got);
    }
    kvf_cuda_leave();
    *address = (double)(uintptr_t)got;
    return status;
}

int32_t kvf_cuda_pinned_free(int ordinal, uint64_t address) {
    kvf_cuda_region entry;
    int32_t status = kvf_cuda_region_take(address, KVF_CUDA_PINNED, &entry);
    if (status != KVF_OK) return status;
    (void)ordinal;
    kvf_cuda_device *device = kvf_cuda_entered(entry.device);
    if (!device) return KVF_E_CUDA;
    cu_result result = kvf_cuda_driver_get()->host_free((void *)(uintptr_t)address);
    status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: pinned memory could not be freed");
    kvf_cuda_leave();
    return status;
}

int32_t kvf_cuda_memory_register(int ordinal, uint64_t address, uint64_t bytes) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    uint64_t done = 0;
    cu_result result = CU_OK;
    while (done < bytes && result == CU_OK) {
        uint64_t piece = bytes - done < PIECE ? bytes - done : PIECE;
        result = cu->host_register((void *)(uintptr_t)(address + done), piece, CU_HOST_PORTABLE | CU_HOST_MAPPED);
        if (result == CU_OK) done += piece;
    }
    int32_t status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: memory could not be registered");
    if (status == KVF_OK)
        status = kvf_cuda_region_insert(&(kvf_cuda_region){.start = address, .end = address + bytes, .kind = KVF_CUDA_POINTER_PINNED, .device = ordinal, .from = KVF_CUDA_REGISTERED});
    if (status != KVF_OK) {
        for (uint64_t at = 0; at < done; at += PIECE) cu->host_unregister((void *)(uintptr_t)(address + at));
    }
    kvf_cuda_leave();
    return status;
}

int32_t kvf_cuda_memory_unregister(int ordinal, uint64_t address) {
    kvf_cuda_region entry;
    int32_t status = kvf_cuda_region_take(address, KVF_CUDA_REGISTERED, &entry);
    if (status != KVF_OK) return status;
    (void)ordinal;
    kvf_cuda_device *device = kvf_cuda_entered(entry.device);
    if (!device) return KVF_E_CUDA;
    cu_result first = CU_OK;
    for (uint64_t at = entry.start; at < entry.end; at += PIECE) {
        cu_result result = kvf_cuda_driver_get()->host_unregister((void *)(uintptr_t)at);
        if (first == CU_OK) first = result;
    }
    status = first == CU_OK ? KVF_OK : kvf_cuda_failed(device, first, "CUDA: memory could not be unregistered");
    kvf_cuda_leave();
    return status;
}

int32_t kvf_cuda_memory_adopt(int ordinal, uint64_t address, uint64_t bytes, uint32_t kind) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const bool pinned = kind == KVF_CUDA_POINTER_PINNED;
    uint32_t found = 0;
    int owner = -1;
    uint64_t start = 0, size = 0;
    int32_t status = ask(address, &found, &owner, &start, &size);
    if (status == KVF_OK && !pinned && owner != ordinal) {
        status = kvf_refuse(KVF_E_INVALID, "CUDA: 0x%llx is %s", (unsigned long long)address,
                            found == KVF_CUDA_POINTER_PAGEABLE ? "not memory that the driver knows" : "memory of another device");
    } else if (status == KVF_OK && !driver_knows(device, address, address + bytes, pinned ? 0 : 1)) {
        status = kvf_refuse(KVF_E_INVALID, "CUDA: %llu bytes at 0x%llx are not %s memory of device %d (its allocation: %llu bytes at 0x%llx)",
                            (unsigned long long)bytes, (unsigned long long)address, pinned ? "pinned" : "device", ordinal, (unsigned long long)size,
                            (unsigned long long)start);
    }
    kvf_cuda_leave();
    if (status != KVF_OK) return status;
    return kvf_cuda_region_insert(&(kvf_cuda_region){.start = address, .end = address + bytes, .kind = kind, .device = ordinal, .from = KVF_CUDA_ADOPTED});
}

int32_t kvf_cuda_disown(kvf_word address) {
    kvf_cuda_region entry;
    return kvf_cuda_region_take(address, KVF_CUDA_ADOPTED, &entry);
}

int32_t kvf_cuda_memory_set(int ordinal, uint64_t address, uint64_t bytes, uint32_t value) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    int32_t status = KVF_OK;
    if (!kvf_cuda_knows(device, address, address + bytes, 1) && !kvf_cuda_knows(device, address, address + bytes, 0))
        status = kvf_refuse(KVF_E_INVALID, "CUDA: 0x%llx is neither device nor pinned memory", (unsigned long long)address);
    cu_stream stream = NULL;
    cu_result result = CU_OK;
    if (status == KVF_OK) result = cu->stream_create(&stream, CU_STREAM_NON_BLOCKING, device->priority_low);
    if (status == KVF_OK && result == CU_OK) result = cu->set8(address, (unsigned char)value, bytes, stream);
    if (status == KVF_OK && result == CU_OK) result = cu->stream_synchronize(stream);
    if (stream) cu->stream_destroy(stream);
    if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: memory could not be set");
    kvf_cuda_leave();
    return status;
}

/* ---- other processes' memory ------------------------------------------------------------------------------------------ */

int32_t kvf_cuda_ipc_export(int ordinal, uint64_t address, cu_ipc *handle, double *offset) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    uint32_t kind;
    int owner;
    uint64_t start, bytes;
    int32_t status = ask(address, &kind, &owner, &start, &bytes);
    if (status == KVF_OK && kind != KVF_CUDA_POINTER_DEVICE) status = kvf_refuse(KVF_E_INVALID, "CUDA: 0x%llx is not device memory", (unsigned long long)address);
    if (status == KVF_OK) {
        cu_result result = kvf_cuda_driver_get()->ipc_export(handle, address);
        if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: this memory cannot be shared with other processes");
    }
    kvf_cuda_leave();
    *offset = (double)(address - start);
    return status;
}

int32_t kvf_cuda_ipc_open(int ordinal, const cu_ipc *handle, double *address) {
    /* One mapping for each handle and device: the driver refuses a second one. */
    static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    int32_t status = KVF_OK;
    uint64_t start = 0;
    pthread_mutex_lock(&opening);
    pthread_rwlock_wrlock(&regions_lock);
    for (uint32_t i = 0; i < region_count && !start; i++) {
        kvf_cuda_region *r = &regions[i];
        if (r->from != KVF_CUDA_OPENED || r->device != ordinal || memcmp(&r->ipc, handle, sizeof *handle) != 0) continue;
        r->count++;
        start = r->start;
    }
    pthread_rwlock_unlock(&regions_lock);
    if (!start) {
        cu_pointer got = 0;
        cu_result result = kvf_cuda_driver_get()->ipc_open(&got, *handle, CU_IPC_LAZY_PEER);
        if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: another process's memory could not be opened");
        else {
            uint32_t kind;
            int owner;
            uint64_t from, bytes;
            status = ask(got, &kind, &owner, &from, &bytes);
            if (status == KVF_OK && bytes == 0) status = kvf_refuse(KVF_E_CUDA, "CUDA: the size of another process's memory is not known");
            if (status == KVF_OK) {
                kvf_cuda_region entry = {.start = got, .end = from + bytes, .kind = KVF_CUDA_POINTER_DEVICE, .device = ordinal, .from = KVF_CUDA_OPENED, .count = 1, .ipc = *handle};
                status = kvf_cuda_region_insert(&entry);
            }
            if (status != KVF_OK) kvf_cuda_driver_get()->ipc_close(got);
            start = got;
        }
    }
    pthread_mutex_unlock(&opening);
    kvf_cuda_leave();
    *address = (double)start;
    return status;
}

int32_t kvf_cuda_ipc_close(int ordinal, uint64_t address) {
    pthread_rwlock_wrlock(&regions_lock);
    bool last = true;
    for (uint32_t i = 0; i < region_count; i++) {
        if (regions[i].start == address && regions[i].from == KVF_CUDA_OPENED && regions[i].device == ordinal && regions[i].count > 1) {
            regions[i].count--;
            last = false;
            break;
        }
    }
    pthread_rwlock_unlock(&regions_lock);
    if (!last) return KVF_OK;
    kvf_cuda_region entry;
    int32_t status = kvf_cuda_region_take(address, KVF_CUDA_OPENED, &entry);
    if (status != KVF_OK) return status;
    kvf_cuda_device *device = kvf_cuda_entered(entry.device);
    if (!device) return KVF_E_CUDA;
    cu_result result = kvf_cuda_driver_get()->ipc_close(address);
    status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: another process's memory could not be closed");
    kvf_cuda_leave();
    return status;
}
