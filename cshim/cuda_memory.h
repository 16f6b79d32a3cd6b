/*
 * cuda_memory.h - memory that the library gets, registers, adopts or opens, and gives back.
 */
#ifndef KVF_CUDA_MEMORY_H
#define KVF_CUDA_MEMORY_H

#include "cuda_known.h"

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

/* Other processes' memory, by the driver's handles. (cuda_ipc.c) */
int32_t kvf_cuda_ipc_export(int ordinal, uint64_t address, cu_ipc *handle, double *offset);
int32_t kvf_cuda_ipc_open(int ordinal, const cu_ipc *handle, double *address);
int32_t kvf_cuda_ipc_close(int ordinal, uint64_t address);

/* Memory of which other processes can be given a descriptor, for drivers whose older handles do not work; of whole
 * allocations, rounded up as the driver wants it. (cuda_exportable.c) */
int32_t kvf_cuda_exportable_alloc(int ordinal, uint64_t bytes, double *address);
/* A descriptor of the allocation that begins at the address; the caller closes it. */
int32_t kvf_cuda_exportable_export(uint64_t address, double *descriptor);
/* Maps the allocation of a descriptor, which stays the caller's. */
int32_t kvf_cuda_exportable_import(int ordinal, int descriptor, uint64_t bytes, double *address);
/* Frees what either of them made. KVF_AGAIN: the address is none of theirs. */
int32_t kvf_cuda_exportable_free(uint64_t address);

#endif
