/*
 * cuda_driver.h - the CUDA driver library, loaded at run time: the few types and entry points that are used, resolved
 * by version. One table for the process.
 */
#ifndef KVF_CUDA_DRIVER_H
#define KVF_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int cu_result;
typedef int cu_device;
typedef uint64_t cu_pointer;
typedef struct cu_context_s *cu_context;
typedef struct cu_module_s *cu_module;
typedef struct cu_function_s *cu_function;
typedef struct cu_stream_s *cu_stream;
typedef struct cu_event_s *cu_event;

/* Result codes that are told apart. */
enum {
    CU_OK = 0,
    CU_INVALID_VALUE = 1,
    CU_OUT_OF_MEMORY = 2,
    CU_ALREADY_REGISTERED = 712,
    CU_NOT_READY = 600,
    CU_PEER_ALREADY_ENABLED = 704,
    CU_NOT_SUPPORTED = 801
};

/* Device attributes. */
enum {
    CU_ATTR_SMS = 16,
    CU_ATTR_INTEGRATED = 18,
    CU_ATTR_L2 = 38,
    CU_ATTR_COPY_ENGINES = 40,
    CU_ATTR_MAJOR = 75,
    CU_ATTR_MINOR = 76,
    CU_ATTR_HOST_POINTERS = 91, /* registered host memory is used by its host address */
    CU_ATTR_SHARED_OPTIN = 97,
    CU_ATTR_VIRTUAL_RDMA = 110, /* exportable memory can be registered with a network adapter */
    CU_ATTR_NUMA_NODE = 134
};

/* Attributes of pointers, and the kinds of memory that they answer. */
enum {
    CU_POINTER_TYPE = 2,
    CU_POINTER_MANAGED = 8,
    CU_POINTER_ORDINAL = 9,
    CU_POINTER_START = 11,
    CU_POINTER_SIZE = 12,
    CU_MEMORY_HOST = 1,
    CU_MEMORY_DEVICE = 2
};

enum {
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_BLOCKING = 1,
    CU_EVENT_NO_TIMING = 2,
    CU_EVENT_IPC = 4,
    CU_HOST_PORTABLE = 1,
    CU_HOST_MAPPED = 2,
    CU_IPC_LAZY_PEER = 1,
    CU_FUNC_MAX_DYNAMIC_SHARED = 8
};

/* A 2-D or 3-D copy (CUDA_MEMCPY3D). */
typedef struct cu_copy3d {
    size_t src_x, src_y, src_z, src_lod;
    int src_type;
    const void *src_host;
    cu_pointer src_device;
    void *src_array, *reserved0;
    size_t src_pitch, src_height;
    size_t dst_x, dst_y, dst_z, dst_lod;
    int dst_type;
    void *dst_host;
    cu_pointer dst_device;
    void *dst_array, *reserved1;
    size_t dst_pitch, dst_height;
    size_t width, height, depth;
} cu_copy3d;
#define CU_MEMORY_UNIFIED 4

/* Attributes of batched copies. */
typedef struct cu_location { int type, id; } cu_location;
typedef struct cu_copy_attributes {
    int order; /* 1: sources are read in stream order */
    cu_location src, dst;
    unsigned flags; /* 1: prefer to overlap with compute */
} cu_copy_attributes;

/* A physical allocation of the virtual memory API (CUmemAllocationProp, CUmemAccessDesc). */
typedef uint64_t cu_allocation;
typedef struct cu_allocation_properties {
    int type;    /* 1: pinned to its device */
    int handles; /* 1: POSIX file descriptor */
    cu_location location;
    void *windows;
    struct {
        unsigned char compression, rdma;
        unsigned short usage;
        unsigned char reserved[4];
    } flags;
} cu_allocation_properties;
typedef struct cu_access {
    cu_location location;
    int flags; /* 3: read and write */
} cu_access;
#define CU_LOCATION_DEVICE 1
#define CU_ALLOCATION_PINNED 1
#define CU_HANDLE_DESCRIPTOR 1
#define CU_ACCESS_READ_WRITE 3

/* A launch with attributes (CUlaunchConfig, CUlaunchAttribute). */
typedef struct cu_launch_attribute {
    int id;
    int reserved;
    union {
        char bytes[64];
        int on;
    } value;
} cu_launch_attribute;
typedef struct cu_launch {
    unsigned grid[3], block[3], shared;
    cu_stream stream;
    cu_launch_attribute *attributes;
    unsigned attribute_count;
} cu_launch;
#define CU_LAUNCH_EARLY 6 /* the kernel before it may say that it can begin */

typedef struct cu_ipc { char bytes[64]; } cu_ipc;
typedef struct cu_uuid { unsigned char bytes[16]; } cu_uuid;

typedef cu_result (*cu_batch9)(cu_pointer *dst, cu_pointer *src, size_t *bytes, size_t count, cu_copy_attributes *attributes, size_t *at,
                               size_t attributes_count, size_t *failed, cu_stream stream);
typedef cu_result (*cu_batch8)(cu_pointer *dst, cu_pointer *src, size_t *bytes, size_t count, cu_copy_attributes *attributes, size_t *at,
                               size_t attributes_count, cu_stream stream);

/* Every entry point that is needed: X(member, name, parameters). Missing ones fail the load. */
#define KVF_CUDA_ENTRIES(X)                                                                                                       \
    X(init, "cuInit", (unsigned flags))                                                                                          \
    X(driver_version, "cuDriverGetVersion", (int *version))                                                                      \
    X(device_count, "cuDeviceGetCount", (int *count))                                                                            \
    X(device_get, "cuDeviceGet", (cu_device * device, int ordinal))                                                              \
    X(device_name, "cuDeviceGetName", (char *name, int capacity, cu_device device))                                              \
    X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, cu_device device))                                   \
    X(device_memory, "cuDeviceTotalMem", (size_t * bytes, cu_device device))                                                     \
    X(device_pci, "cuDeviceGetPCIBusId", (char *out, int capacity, cu_device device))                                            \
    X(device_uuid, "cuDeviceGetUuid", (cu_uuid * out, cu_device device))                                                         \
    X(device_peer, "cuDeviceCanAccessPeer", (int *can, cu_device device, cu_device peer))                                        \
    X(context_retain, "cuDevicePrimaryCtxRetain", (cu_context * context, cu_device device))                                      \
    X(context_release, "cuDevicePrimaryCtxRelease", (cu_device device))                                                          \
    X(context_push, "cuCtxPushCurrent", (cu_context context))                                                                    \
    X(context_pop, "cuCtxPopCurrent", (cu_context * context))                                                                    \
    X(context_peer, "cuCtxEnablePeerAccess", (cu_context peer, unsigned flags))                                                  \
    X(context_synchronize, "cuCtxSynchronize", (void))                                                                           \
    X(stream_priorities, "cuCtxGetStreamPriorityRange", (int *least, int *greatest))                                             \
    X(module_load, "cuModuleLoadData", (cu_module * module, const void *image))                                                  \
    X(module_unload, "cuModuleUnload", (cu_module module))                                                                       \
    X(module_function, "cuModuleGetFunction", (cu_function * function, cu_module module, const char *name))                      \
    X(function_set, "cuFuncSetAttribute", (cu_function function, int attribute, int value))                                      \
    X(launch, "cuLaunchKernel",                                                                                                  \
      (cu_function function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,      \
       cu_stream stream, void **parameters, void **extra))                                                                       \
    X(launch_with, "cuLaunchKernelEx",                                                                                           \
      (const cu_launch *launch, cu_function function, void **parameters, void **extra))                                          \
    X(alloc, "cuMemAlloc", (cu_pointer * address, size_t bytes))                                                                 \
    X(free, "cuMemFree", (cu_pointer address))                                                                                   \
    X(host_alloc, "cuMemHostAlloc", (void **address, size_t bytes, unsigned flags))                                              \
    X(host_free, "cuMemFreeHost", (void *address))                                                                               \
    X(host_register, "cuMemHostRegister", (void *address, size_t bytes, unsigned flags))                                         \
    X(host_unregister, "cuMemHostUnregister", (void *address))                                                                   \
    X(memory_info, "cuMemGetInfo", (size_t * free, size_t *total))                                                               \
    X(pointer_attribute, "cuPointerGetAttribute", (void *value, int attribute, cu_pointer address))                              \
    X(copy, "cuMemcpyAsync", (cu_pointer dst, cu_pointer src, size_t bytes, cu_stream stream))                                   \
    X(copy3d, "cuMemcpy3DAsync", (const cu_copy3d *copy, cu_stream stream))                                                      \
    X(set8, "cuMemsetD8Async", (cu_pointer dst, unsigned char value, size_t bytes, cu_stream stream))                            \
    X(stream_create, "cuStreamCreateWithPriority", (cu_stream * stream, unsigned flags, int priority))                           \
    X(stream_destroy, "cuStreamDestroy", (cu_stream stream))                                                                     \
    X(stream_synchronize, "cuStreamSynchronize", (cu_stream stream))                                                             \
    X(stream_query, "cuStreamQuery", (cu_stream stream))                                                                         \
    X(stream_wait, "cuStreamWaitEvent", (cu_stream stream, cu_event event, unsigned flags))                                      \
    X(stream_call, "cuLaunchHostFunc", (cu_stream stream, void (*call)(void *), void *argument))                                 \
    X(stream_write, "cuStreamWriteValue32", (cu_stream stream, cu_pointer at, uint32_t value, unsigned flags))                   \
    X(event_create, "cuEventCreate", (cu_event * event, unsigned flags))                                                         \
    X(event_destroy, "cuEventDestroy", (cu_event event))                                                                         \
    X(event_record, "cuEventRecord", (cu_event event, cu_stream stream))                                                         \
    X(event_query, "cuEventQuery", (cu_event event))                                                                             \
    X(event_synchronize, "cuEventSynchronize", (cu_event event))                                                                 \
    X(ipc_export, "cuIpcGetMemHandle", (cu_ipc * handle, cu_pointer address))                                                    \
    X(ipc_open, "cuIpcOpenMemHandle", (cu_pointer * address, cu_ipc handle, unsigned flags))                                     \
    X(ipc_close, "cuIpcCloseMemHandle", (cu_pointer address))                                                                    \
    X(ipc_event_export, "cuIpcGetEventHandle", (cu_ipc * handle, cu_event event))                                                \
    X(ipc_event_open, "cuIpcOpenEventHandle", (cu_event * event, cu_ipc handle))                                                 \
    X(virtual_granularity, "cuMemGetAllocationGranularity", (size_t * out, const cu_allocation_properties *what, int option))    \
    X(virtual_create, "cuMemCreate", (cu_allocation * out, size_t bytes, const cu_allocation_properties *what, uint64_t flags))  \
    X(virtual_release, "cuMemRelease", (cu_allocation allocation))                                                               \
    X(virtual_reserve, "cuMemAddressReserve", (cu_pointer * out, size_t bytes, size_t alignment, cu_pointer wanted, uint64_t flags))\
    X(virtual_free, "cuMemAddressFree", (cu_pointer at, size_t bytes))                                                           \
    X(virtual_map, "cuMemMap", (cu_pointer at, size_t bytes, size_t offset, cu_allocation allocation, uint64_t flags))           \
    X(virtual_unmap, "cuMemUnmap", (cu_pointer at, size_t bytes))                                                                \
    X(virtual_access, "cuMemSetAccess", (cu_pointer at, size_t bytes, const cu_access *access, size_t count))                    \
    X(virtual_export, "cuMemExportToShareableHandle", (void *out, cu_allocation allocation, int kind, uint64_t flags))           \
    X(virtual_import, "cuMemImportFromShareableHandle", (cu_allocation * out, void *handle, int kind))                           \
    X(error_name, "cuGetErrorName", (cu_result result, const char **out))                                                        \
    X(error_text, "cuGetErrorString", (cu_result result, const char **out))

typedef struct kvf_cuda_driver {
#define X(member, name, parameters) cu_result(*member) parameters;
    KVF_CUDA_ENTRIES(X)
#undef X
    cu_batch9 batch9; /* at most one of the two; both NULL before 12.8 */
    cu_batch8 batch8;
    int version;
    int devices;
    char path[512];
} kvf_cuda_driver;

/* Loads and initialises the driver once. Later calls answer what the first one found, unless it failed. */
int32_t kvf_cuda_driver_load(const char *path);
/* The driver, or NULL (text set) when none was loaded. */
const kvf_cuda_driver *kvf_cuda_driver_get(void);
/* Sets the calling thread's text to "<what>: <name> (<text>)" and returns KVF_E_CUDA, or KVF_E_NOMEM for want of memory. */
int32_t kvf_cuda_refuse(cu_result result, const char *what);
/* True for results after which a context is of no use any more. */
bool kvf_cuda_is_sticky(cu_result result);

#endif
