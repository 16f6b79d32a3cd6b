/*
 * cuda_known.c - memory that may be given to a device: what is in the library's own table, and what the driver knows.
 */
#include "cuda_known.h"

#include <stdlib.h>
#include <string.h>

#include "status.h"

/* ---- the table ------------------------------------------------------------------------------------------------- */

/* Sorted by start; regions do not overlap, but an adopted one may repeat a part of another, and is then not kept. */
static pthread_rwlock_t regions_lock = PTHREAD_RWLOCK_INITIALIZER;
static kvf_cuda_region *regions;
static uint32_t region_count, region_room;

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

bool kvf_cuda_region_open_again(int ordinal, const cu_ipc *handle, uint64_t *start) {
    bool found = false;
    pthread_rwlock_wrlock(&regions_lock);
    for (uint32_t i = 0; i < region_count && !found; i++) {
        kvf_cuda_region *r = &regions[i];
        if (r->from != KVF_CUDA_OPENED || r->device != ordinal || memcmp(&r->ipc, handle, sizeof *handle) != 0) continue;
        r->count++;
        *start = r->start;
        found = true;
    }
    pthread_rwlock_unlock(&regions_lock);
    return found;
}

bool kvf_cuda_region_close_once(int ordinal, uint64_t address) {
    bool left = false;
    pthread_rwlock_wrlock(&regions_lock);
    for (uint32_t i = 0; i < region_count && !left; i++) {
        kvf_cuda_region *r = &regions[i];
        if (r->start != address || r->from != KVF_CUDA_OPENED || r->device != ordinal || r->count <= 1) continue;
        r->count--;
        left = true;
    }
    pthread_rwlock_unlock(&regions_lock);
    return left;
}

/* ---- what the driver knows --------------------------------------------------------------------------------------- */

int32_t kvf_cuda_ask(uint64_t address, uint32_t *kind, int *ordinal, uint64_t *start, uint64_t *bytes) {
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

bool kvf_cuda_driver_knows(kvf_cuda_device *device, uint64_t low, uint64_t high, uint32_t kind) {
    uint32_t found;
    int ordinal;
    uint64_t start, bytes;
    if (kvf_cuda_ask(low, &found, &ordinal, &start, &bytes) != KVF_OK) return false;
    bool pinned = found == KVF_CUDA_POINTER_PINNED;
    if (found == KVF_CUDA_POINTER_PAGEABLE || pinned != (kind == 0)) return false;
    if (!pinned && found == KVF_CUDA_POINTER_DEVICE && ordinal != device->ordinal && !(ordinal >= 0 && ordinal < 64 && (device->peers >> ordinal & 1)))
        return false;
    if (bytes) return low >= start && high <= start + bytes;
    uint32_t last; /* the allocation's bounds are not told: both ends must at least be of that kind */
    return kvf_cuda_ask(high - 1, &last, &ordinal, &start, &bytes) == KVF_OK && last == found;
}

int32_t kvf_cuda_pointer(kvf_word address, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "CUDA: nowhere to answer");
    uint32_t kind;
    int ordinal;
    uint64_t start, bytes;
    int32_t status = kvf_cuda_ask(address, &kind, &ordinal, &start, &bytes);
    if (status != KVF_OK) return status;
    out[0] = kind;
    out[1] = ordinal;
    out[2] = (double)start;
    out[3] = (double)bytes;
    return KVF_OK;
}

/* ---- may a device touch it? ---------------------------------------------------------------------------------------- */

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
    return in_table(device, low, high, kind) || kvf_cuda_driver_knows(device, low, high, kind);
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
