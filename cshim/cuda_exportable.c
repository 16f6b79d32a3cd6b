/*
 * cuda_exportable.c - device memory of the virtual memory API, of which other processes can be given a file descriptor.
 *
 * An allocation is made, mapped at reserved addresses and opened to the devices that can reach it; whoever imports its
 * descriptor does the same.
 */
#include <unistd.h>

#include "cuda_memory.h"
#include "status.h"

static void describe(int ordinal, cu_allocation_properties *out) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    int rdma = 0;
    cu_device device = 0;
    if (cu->device_get(&device, ordinal) != CU_OK || cu->device_attribute(&rdma, CU_ATTR_VIRTUAL_RDMA, device) != CU_OK) rdma = 0;
    *out = (cu_allocation_properties){.type = CU_ALLOCATION_PINNED,
                                      .handles = CU_HANDLE_DESCRIPTOR,
                                      .location = {.type = CU_LOCATION_DEVICE, .id = ordinal},
                                      .flags = {.rdma = rdma != 0}};
}

static cu_result round_up(const cu_allocation_properties *what, uint64_t *bytes) {
    size_t step = 0;
    cu_result result = kvf_cuda_driver_get()->virtual_granularity(&step, what, 0);
    if (result == CU_OK && step == 0) result = CU_INVALID_VALUE;
    if (result == CU_OK) *bytes = (*bytes + step - 1) / step * step;
    return result;
}

/* Opens mapped addresses to their device, and to the others that can reach it: copies between devices need that. */
static cu_result open_to_devices(uint64_t at, uint64_t bytes, int ordinal) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_access access = {.location = {.type = CU_LOCATION_DEVICE, .id = ordinal}, .flags = CU_ACCESS_READ_WRITE};
    cu_result result = cu->virtual_access(at, bytes, &access, 1);
    cu_device own = 0, other = 0;
    if (result != CU_OK || cu->device_get(&own, ordinal) != CU_OK) return result;
    for (int index = 0; index < cu->devices; index++) {
        int reaches = 0;
        if (index == ordinal || cu->device_get(&other, index) != CU_OK || cu->device_peer(&reaches, other, own) != CU_OK || !reaches) continue;
        access.location.id = index;
        cu->virtual_access(at, bytes, &access, 1); /* without it that device goes another way */
    }
    return CU_OK;
}

/* Maps a whole allocation somewhere. */
static cu_result map(cu_allocation allocation, uint64_t bytes, int ordinal, cu_pointer *out) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_pointer at = 0;
    cu_result result = cu->virtual_reserve(&at, bytes, 0, 0, 0);
    if (result != CU_OK) return result;
    result = cu->virtual_map(at, bytes, 0, allocation, 0);
    if (result == CU_OK) {
        result = open_to_devices(at, bytes, ordinal);
        if (result != CU_OK) cu->virtual_unmap(at, bytes);
    }
    if (result != CU_OK) cu->virtual_free(at, bytes);
    *out = at;
    return result;
}

static cu_result unmap(uint64_t at, uint64_t bytes) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_result result = cu->virtual_unmap(at, bytes);
    return result == CU_OK ? cu->virtual_free(at, bytes) : result;
}

static int32_t keep(cu_pointer at, uint64_t bytes, int ordinal, kvf_cuda_origin from, cu_allocation allocation) {
    return kvf_cuda_region_insert(&(kvf_cuda_region){
        .start = at, .end = at + bytes, .kind = KVF_CUDA_POINTER_DEVICE, .device = ordinal, .from = from, .allocation = allocation});
}

int32_t kvf_cuda_exportable_alloc(int ordinal, uint64_t bytes, double *address) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_allocation_properties what;
    describe(ordinal, &what);
    cu_allocation made = 0;
    cu_pointer at = 0;
    cu_result result = round_up(&what, &bytes);
    if (result == CU_OK) result = cu->virtual_create(&made, bytes, &what, 0);
    int32_t status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: device memory that can be exported");
    if (status == KVF_OK) {
        result = map(made, bytes, ordinal, &at);
        if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: device memory that can be exported could not be mapped");
        else {
            status = keep(at, bytes, ordinal, KVF_CUDA_EXPORTABLE, made);
            if (status != KVF_OK) unmap(at, bytes);
        }
        if (status != KVF_OK) cu->virtual_release(made);
    }
    kvf_cuda_leave();
    *address = (double)at;
    return status;
}

int32_t kvf_cuda_exportable_export(uint64_t address, double *descriptor) {
    kvf_cuda_region entry;
    if (!kvf_cuda_region_find(address, KVF_CUDA_EXPORTABLE, &entry))
        return kvf_refuse(KVF_E_INVALID, "CUDA: no exportable memory begins at 0x%llx", (unsigned long long)address);
    kvf_cuda_device *device = kvf_cuda_entered(entry.device);
    if (!device) return KVF_E_CUDA;
    int out = -1;
    cu_result result = kvf_cuda_driver_get()->virtual_export(&out, entry.allocation, CU_HANDLE_DESCRIPTOR, 0);
    int32_t status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: the driver gave no descriptor of this memory");
    kvf_cuda_leave();
    *descriptor = out;
    return status;
}

int32_t kvf_cuda_exportable_import(int ordinal, int descriptor, uint64_t bytes, double *address) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_allocation_properties what;
    describe(ordinal, &what);
    cu_allocation found = 0;
    cu_pointer at = 0;
    cu_result result = round_up(&what, &bytes);
    if (result == CU_OK) result = cu->virtual_import(&found, (void *)(intptr_t)descriptor, CU_HANDLE_DESCRIPTOR);
    int32_t status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: another process's memory could not be imported");
    if (status == KVF_OK) {
        result = map(found, bytes, ordinal, &at);
        cu->virtual_release(found); /* what is mapped stays */
        if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: another process's memory could not be mapped");
        else {
            status = keep(at, bytes, ordinal, KVF_CUDA_IMPORTED, 0);
            if (status != KVF_OK) unmap(at, bytes);
        }
    }
    kvf_cuda_leave();
    *address = (double)at;
    return status;
}

int32_t kvf_cuda_exportable_free(uint64_t address) {
    kvf_cuda_region entry;
    const bool own = kvf_cuda_region_find(address, KVF_CUDA_EXPORTABLE, &entry);
    if (!own && !kvf_cuda_region_find(address, KVF_CUDA_IMPORTED, &entry)) return KVF_AGAIN;
    int32_t status = kvf_cuda_region_take(address, entry.from, &entry);
    if (status != KVF_OK) return status;
    kvf_cuda_device *device = kvf_cuda_entered(entry.device);
    if (!device) return KVF_E_CUDA;
    cu_result result = unmap(entry.start, entry.end - entry.start);
    if (result == CU_OK && own) result = kvf_cuda_driver_get()->virtual_release(entry.allocation);
    status = result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: exportable memory could not be freed");
    kvf_cuda_leave();
    return status;
}
