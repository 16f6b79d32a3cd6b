/*
 * cuda_copy.h - how a task's copies get onto a lane's streams: what the ways to copy share.
 */
#ifndef KVF_CUDA_COPY_H
#define KVF_CUDA_COPY_H

#include "cuda_device.h"

/* Links a submission together; lives on the submitting thread's stack. */
typedef struct kvf_submission {
    kvf_task *task;
    kvf_cuda_device *device;
    const kvf_cuda_driver *cu;
    kvf_lane *lane;
    bool patient; /* may wait for staging */
    bool touched; /* something that writes the destination was queued */
    bool rehearsal; /* kernels are launched without work, lists are written where the next ones will be */
    int near;     /* slabs: the side in device memory */
    double *offsets;
    uint32_t chunk;
    uint32_t program;
} kvf_submission;

/* The status of a driver call that failed. */
int32_t kvf_copy_failed(kvf_submission *s, cu_result result, const char *what);

/* By the driver's copies: one for each row, boxes, batches. */
int32_t kvf_copy_rows(kvf_submission *s, const kvf_nest *nest, cu_stream stream);
int32_t kvf_copy_pitched(kvf_submission *s, const kvf_nest *nest);
int32_t kvf_copy_batched(kvf_submission *s, const kvf_nest *nest, cu_stream stream);

/* A kernel launch for a nest, or for each part of one. */
typedef struct kvf_launch {
    kvf_submission *s;
    int side;
    bool bulk;
    bool near;    /* within a device or between devices: many warps, which must not each fetch its pair from host memory */
    uint32_t ctas, threads;
    bool follows; /* the launch before it was of slices of the same copy, with which it has nothing to do */
    bool staged;  /* room for its lists was taken before, at: */
    uint32_t at;
    bool written; /* and they are there */
    bool sent;    /* in the device's memory too */
} kvf_launch;
int32_t kvf_copy_launch(const kvf_nest *nest, void *launch);
int32_t kvf_copy_by_kernel(kvf_submission *s, const kvf_nest *nest, int side, bool bulk, uint32_t ctas, uint32_t threads);

/* Through slabs in device memory, by a kernel on one side and large copies on the other. */
int32_t kvf_copy_by_slab(kvf_submission *s, const kvf_nest *nest);

#endif
