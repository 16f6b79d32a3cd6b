/*
 * cuda_known.h - memory that the library knows: allocated, registered, adopted or opened through it. Copies are checked
 * against this table before a kernel is given an address (kvf_cuda_knows in cuda_device.h).
 */
#ifndef KVF_CUDA_KNOWN_H
#define KVF_CUDA_KNOWN_H

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
/* One more opening of the region of that handle on that device, and where it starts; false when there is none. */
bool kvf_cuda_region_open_again(int ordinal, const cu_ipc *handle, uint64_t *start);
/* One opening less of the region that starts at `address`; false when it was the last, or there is none: it stays. */
bool kvf_cuda_region_close_once(int ordinal, uint64_t address);

/* What the driver says of an address: KVF_CUDA_POINTER_*, the device's ordinal or -1, and the allocation, 0 bytes where it
 * does not tell. */
int32_t kvf_cuda_ask(uint64_t address, uint32_t *kind, int *ordinal, uint64_t *start, uint64_t *bytes);
/* True when the driver says that all of [low, high) is one allocation of that kind, which `device` reaches. */
bool kvf_cuda_driver_knows(kvf_cuda_device *device, uint64_t low, uint64_t high, uint32_t kind);

#endif
