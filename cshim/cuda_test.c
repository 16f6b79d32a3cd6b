/*
 * cuda_test.c - the CUDA part of kvf.h that tests and measurements use.
 */
#include <stdio.h>
#include <string.h>

#include "cuda_device.h"
#include "status.h"
#include "thread.h"

static int32_t with_device(int32_t ordinal, kvf_cuda_device **device) {
    *device = kvf_cuda_device_get(ordinal);
    if (!*device) return KVF_E_CUDA;
    return kvf_cuda_enter(*device);
}

int32_t kvf_cuda_test_context(int32_t ordinal, double *out) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    out[0] = (double)(uintptr_t)device->context;
    return KVF_OK;
}

int32_t kvf_cuda_test_stream(int32_t ordinal, double *out) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    cu_stream stream = NULL;
    cu_result result = kvf_cuda_driver_get()->stream_create(&stream, CU_STREAM_NON_BLOCKING, 0);
    kvf_cuda_leave();
    out[0] = (double)(uintptr_t)stream;
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: a stream could not be made");
}

int32_t kvf_cuda_test_stream_close(int32_t ordinal, kvf_word stream) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    cu_result result = kvf_cuda_driver_get()->stream_destroy((cu_stream)(uintptr_t)stream);
    kvf_cuda_leave();
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: a stream could not be closed");
}

int32_t kvf_cuda_test_event(int32_t ordinal, kvf_word stream, uint8_t *ipc, double *out) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    cu_event event = NULL;
    cu_ipc handle;
    cu_result result = cu->event_create(&event, CU_EVENT_NO_TIMING | (ipc ? CU_EVENT_IPC : 0));
    if (result == CU_OK) result = cu->event_record(event, (cu_stream)(uintptr_t)stream);
    if (result == CU_OK && ipc) {
        result = cu->ipc_event_export(&handle, event);
        memcpy(ipc, &handle, sizeof handle);
    }
    kvf_cuda_leave();
    out[0] = (double)(uintptr_t)event;
    return result == CU_OK ? KVF_OK : kvf_cuda_failed(device, result, "CUDA: an event could not be recorded");
}

static int32_t launch_one(int32_t ordinal, kvf_word stream, kvf_kernel kernel, uint64_t argument) {
    kvf_cuda_device *device;
    int32_t status = with_device(ordinal, &device);
    if (status != KVF_OK) return status;
    void *parameters[] = {&argument};
    cu_result result = CU_OK;
    if (!device->kernel[kernel]) status = kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: there are no kernels on device %d", ordinal);
    else result = kvf_cuda_driver_get()->launch(device->kernel[kernel], 1, 1, 1, 1, 1, 1, 0, (cu_stream)(uintptr_t)stream, parameters, NULL);
    kvf_cuda_leave();
    return result == CU_OK ? status : kvf_cuda_failed(device, result, "CUDA: a kernel could not be launched");
}

int32_t kvf_cuda_test_sleep(int32_t ordinal, kvf_word stream, kvf_word micros) {
    return launch_one(ordinal, stream, KVF_KERNEL_SLEEP, micros * 1000);
}

int32_t kvf_cuda_test_fault(int32_t ordinal, kvf_word stream) {
    return launch_one(ordinal, stream, KVF_KERNEL_FAULT, 64);
}

int32_t kvf_cuda_test_copy(int32_t ordinal, const double *hop, kvf_word words, uint32_t method, uint32_t width, uint32_t repeats, double *out) {
    kvf_cuda_device *device = kvf_cuda_device_get(ordinal);
    if (!device) return KVF_E_CUDA;
    double made[3];
    int32_t status = kvf_context_open(64, made);
    if (status != KVF_OK) return status;
    const kvf_word context = (kvf_word)made[0];
    uint32_t *shared = (uint32_t *)(uintptr_t)(uint64_t)made[1];
    for (uint32_t i = 0; i < repeats && status == KVF_OK; i++) {
        const uint64_t begun = kvf_now_nanos();
        const uint32_t head = __atomic_load_n(&shared[0], __ATOMIC_ACQUIRE);
        status = kvf_cuda_copy_job(context, 0, ordinal, hop, words, method, width, 0, 0, NULL, 0, NULL, NULL, 0);
        if (status != KVF_OK) break;
        const uint64_t queued = kvf_now_nanos();
        while (__atomic_load_n(&shared[0], __ATOMIC_ACQUIRE) == head) {}
        const uint64_t over = kvf_now_nanos();
        const uint32_t *done = shared + 16 + 8 * (head % 64);
        status = (int32_t)done[1];
        __atomic_store_n(&shared[1], head + 1, __ATOMIC_RELEASE);
        if (status != KVF_OK) {
            char words_of[KVF_TEXT_BYTES] = "";
            kvf_slot_error(context, 0, words_of, sizeof words_of);
            kvf_set_error("%s", words_of);
            break;
        }
        memcpy(&out[0], done + 4, sizeof(double));
        out[1 + 2 * i] = (double)(queued - begun) / 1e3;
        out[2 + 2 * i] = (double)(over - begun) / 1e3;
    }
    char failure[KVF_TEXT_BYTES];
    snprintf(failure, sizeof failure, "%s", kvf_error_text());
    double left;
    kvf_context_close(context, 1000, &left);
    if (status != KVF_OK) kvf_set_error("%s", failure);
    return status;
}
