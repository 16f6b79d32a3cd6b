/*
 * cuda_memory.h - memory that the library knows: allocated, registered, adopted or opened through it. Copies are checked
 * against this table before a kernel is given an address.
 */
#ifndef KVF_CUDA_MEMORY_H
#define KVF_CUDA_MEMORY_H

#include "cuda_device.h"

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

#endif
