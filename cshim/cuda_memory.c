/*
 * cuda_memory.c - memory of devices and pinned memory: got and given back, registered, adopted, filled.
 */
#include "cuda_memory.h"

#include "status.h"

/* Registering 512 GiB at once fails in the driver; pieces of this size work. */
#define PIECE (UINT64_C(64) << 30)

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
    int32_t status = kvf_cuda_ask(address, &found, &owner, &start, &size);
    if (status == KVF_OK && !pinned && owner != ordinal) {
        status = kvf_refuse(KVF_E_INVALID, "CUDA: 0x%llx is %s", (unsigned long long)address,
                            found == KVF_CUDA_POINTER_PAGEABLE ? "not memory that the driver knows" : "memory of another device");
    } else if (status == KVF_OK && !kvf_cuda_driver_knows(device, address, address + bytes, pinned ? 0 : 1)) {
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
