/*
 * context_object.h - what a context is. Shared by context.c, which opens and closes it, and job.c, which uses its slots.
 */
#ifndef KVF_CONTEXT_OBJECT_H
#define KVF_CONTEXT_OBJECT_H

#include <pthread.h>

#include "context.h"
#include "ring.h"

/* What a slot of a context holds besides its record in the shared block; guarded by the context's lock. */
typedef struct kvf_slot {
    bool busy;
    uint64_t begun;
    char *error;
    void *result;
    size_t result_bytes;
} kvf_slot;

struct kvf_context {
    kvf_context *next; /* in the list of open contexts */
    uint32_t references;
    uint32_t closing;
    kvf_ring ring;
    pthread_mutex_t lock;   /* guards all that follows, and the ring's head */
    pthread_cond_t settled; /* signalled when a job ends while the context is closing */
    uint32_t running;
    kvf_member *members;
    kvf_slot *slots;
};

#endif
