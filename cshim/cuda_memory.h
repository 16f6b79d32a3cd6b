/*
 * cuda_memory.h - memory that the library knows: allocated, registered, adopted or opened through it. Copies are checked
 * against this table before a kernel is given an address.
 */
#ifndef KVF_CUDA_MEMORY_H
#define KVF_CUDA_MEMORY_H

#include "cuda_device.h"

/* How a region came to be known. EXPORTABLE: allocated so that a descriptor can be had of it; IMPORTED: by such a one. */
typedef enum kvf_cuda_origin {
    KVF_CUDA_ALLOCATED,
    KVF_CUDA_PINNED,
    KVF_CUDA_REGISTERED,
    KVF_CUDA_ADOPTED,
    KVF_CUDA_OPENED,
    KVF_CUDA_EXPORTABLE,
    KVF_CUDA_IMPORTED
} kvf_cuda_origin;

typedef struct kvf_cuda_region {
    uint64_t start, end;
    uint32_t kind; /* KVF_CUDA_POINTER_* */
    int device;
    kvf_cuda_origin from;
    uint32_t count; /* openings of an IPC handle */
    cu_ipc ipc;
    cu_allocation allocation; /* of an exportable region */
} kvf_cuda_region;

int32_t kvf_cuda_region_insert(const kvf_cuda_region *entry);
/* Takes the region that starts at `address` and came about that way out of the table. */
int32_t kvf_cuda_region_take(uint64_t address, kvf_cuda_origin from, kvf_cuda_region *out);
/* A copy of the region that starts at `address` and came about that way; false when there is none. */
bool kvf_cuda_region_find(uint64_t address, kvf_cuda_origin from, kvf_cuda_region *out);
/* The device with its context entered, or NULL. */
kvf_cuda_device *kvf_cuda_entered(int ordinal);

int32_t kvf_cuda_memory_alloc(int ordinal, uint64_t bytes, double *address);
int32_t kvf_cuda_memory_free(int ordinal, uint64_t address);
int32_t kvf_cuda_pinned_alloc(int ordinal, uint64_t bytes, double *address);
int32_t kvf_cuda_pinned_free(int ordinal, uint64_t address);
int32_t kvf_cuda_memory_register(int ordinal, uint64_t address, uint64_t bytes);
int32_t kvf_cuda_memory_unregister(int ordinal, uint64_t address);
int32_t kvf_cuda_memory_adopt(int ordinal, uint64_t address, uint64_t bytes, uint32_t kind);
int32_t kvf_cuda_memory_set(int ordinal, uint64_t address, uint64_t bytes, uint32_t value);
int32_t kvf_cuda_ipc_export(int ordinal, uint64_t address, cu_ipc *handle, double *offset);
int32_t kvf_cuda_ipc_open(int ordinal, const cu_ipc *handle, double *address);
int32_t kvf_cuda_ipc_close(int ordinal, uint64_t address);

/* Memory of which other processes can be given a descriptor, for drivers whose older handles do not work; of whole
 * allocations, rounded up as the driver wants it. */
int32_t kvf_cuda_exportable_alloc(int ordinal, uint64_t bytes, double *address);
/* A descriptor of the allocation that begins at the address; the caller closes it. */
int32_t kvf_cuda_exportable_export(uint64_t address, double *descriptor);
/* Maps the allocation of a descriptor, which stays the caller's. */
int32_t kvf_cuda_exportable_import(int ordinal, int descriptor, uint64_t bytes, double *address);
/* Frees what either of them made. KVF_AGAIN: the address is none of theirs. */
int32_t kvf_cuda_exportable_free(uint64_t address);

#endif
