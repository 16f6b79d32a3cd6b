/*
 * cuda_ipc.c - other processes' device memory, by the handles of the driver.
 */
#include "cuda_memory.h"

#include "status.h"

int32_t kvf_cuda_ipc_export(int ordinal, uint64_t address, cu_ipc *handle, double *offset) {
    kvf_cuda_device *device = kvf_cuda_entered(ordinal);
    if (!device) return KVF_E_CUDA;
    uint32_t kind;
    int owner;
    uint64_t start, bytes;
    int32_t status = kvf_cuda_ask(address, &kind, &owner, &start, &bytes);
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
    if (!kvf_cuda_region_open_again(ordinal, handle, &start)) {
        cu_pointer got = 0;
        cu_result result = kvf_cuda_driver_get()->ipc_open(&got, *handle, CU_IPC_LAZY_PEER);
        if (result != CU_OK) status = kvf_cuda_failed(device, result, "CUDA: another process's memory could not be opened");
        else {
            uint32_t kind;
            int owner;
            uint64_t from, bytes;
            status = kvf_cuda_ask(got, &kind, &owner, &from, &bytes);
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
    if (kvf_cuda_region_close_once(ordinal, address)) return KVF_OK;
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
