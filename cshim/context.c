#include "context_object.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pool.h"
#include "thread.h"

#define LEAST_SLOTS 64u
#define MOST_SLOTS 65536u
#define JOIN_GRACE_NANOS 1000000000u

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static kvf_context *open_contexts;

/* ---- references ---------------------------------------------------------------------------------------------- */

void kvf_context_retain(kvf_context *ctx) { __atomic_fetch_add(&ctx->references, 1, __ATOMIC_RELAXED); }

void kvf_context_release(kvf_context *ctx) {
    if (__atomic_sub_fetch(&ctx->references, 1, __ATOMIC_ACQ_REL) != 0) return;
    for (uint32_t s = 0; s < ctx->ring.slots; s++) {
        free(ctx->slots[s].error);
        free(ctx->slots[s].result);
    }
    free(ctx->slots);
    kvf_ring_destroy(&ctx->ring);
    pthread_cond_destroy(&ctx->settled);
    pthread_mutex_destroy(&ctx->lock);
    free(ctx);
}

kvf_context *kvf_context_from(kvf_word context) {
    kvf_context *wanted = (kvf_context *)(uintptr_t)context;
    pthread_mutex_lock(&open_lock);
    kvf_context *at = open_contexts;
    while (at && at != wanted) at = at->next;
    pthread_mutex_unlock(&open_lock);
    if (!at) kvf_set_error("the context is closed or was never opened");
    return at;
}

bool kvf_context_closing(kvf_context *ctx) { return __atomic_load_n(&ctx->closing, __ATOMIC_ACQUIRE) != 0; }

void kvf_context_notify(kvf_context *ctx) {
    if (kvf_context_closing(ctx)) return;
    kvf_ring_store(&ctx->ring, KVF_RING_NOTIFICATIONS, 1);
    kvf_ring_bell(&ctx->ring);
}

/* ---- opening and closing ------------------------------------------------------------------------------------- */

int32_t kvf_context_open(uint32_t slots, double *out) {
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_context_open: no place for the result");
    if (slots < LEAST_SLOTS || slots > MOST_SLOTS || (slots & (slots - 1)))
        return kvf_refuse(KVF_E_INVALID, "kvf_context_open: %u slots; a power of two from %u to %u is needed", slots, LEAST_SLOTS,
                          MOST_SLOTS);
    kvf_context *ctx = calloc(1, sizeof *ctx);
    kvf_slot *states = calloc(slots, sizeof *states);
    if (!ctx || !states) {
        free(ctx);
        free(states);
        return kvf_refuse(KVF_E_NOMEM, "no memory for a context of %u slots", slots);
    }
    int32_t status = kvf_ring_init(&ctx->ring, slots);
    if (status != KVF_OK) {
        free(ctx);
        free(states);
        return status;
    }
    ctx->slots = states;
    ctx->references = 1;
    pthread_mutex_init(&ctx->lock, NULL);
    kvf_condition_init(&ctx->settled);
    pthread_mutex_lock(&open_lock);
    ctx->next = open_contexts;
    open_contexts = ctx;
    pthread_mutex_unlock(&open_lock);
    out[0] = (double)(uintptr_t)ctx;
    out[1] = (double)(uintptr_t)ctx->ring.words;
    out[2] = (double)ctx->ring.bytes;
    return KVF_OK;
}

int32_t kvf_context_ring_by_callback(kvf_word context, kvf_word callback) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (!callback) return kvf_refuse(KVF_E_INVALID, "kvf_context_ring_by_callback: no callback");
    pthread_mutex_lock(&ctx->ring.bell);
    bool taken = ctx->ring.callback || ctx->ring.socket >= 0;
    if (!taken) ctx->ring.callback = (void (*)(void))(uintptr_t)callback;
    pthread_mutex_unlock(&ctx->ring.bell);
    return taken ? kvf_refuse(KVF_E_BUSY, "the context has a doorbell") : KVF_OK;
}

int32_t kvf_context_ring_by_socket(kvf_word context, double *out) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_context_ring_by_socket: no place for the result");
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) return kvf_refuse_errno(errno, "socketpair");
    pthread_mutex_lock(&ctx->ring.bell);
    bool taken = ctx->ring.callback || ctx->ring.socket >= 0;
    if (!taken) ctx->ring.socket = ends[1];
    pthread_mutex_unlock(&ctx->ring.bell);
    if (taken) {
        close(ends[0]);
        close(ends[1]);
        return kvf_refuse(KVF_E_BUSY, "the context has a doorbell");
    }
    out[0] = ends[0];
    return KVF_OK;
}

/* Takes the context off the list, so that no later call finds it; false when it is not there. */
static bool withdraw(kvf_context *wanted, bool *last) {
    pthread_mutex_lock(&open_lock);
    kvf_context **at = &open_contexts;
    while (*at && *at != wanted) at = &(*at)->next;
    bool found = *at != NULL;
    if (found) *at = wanted->next;
    *last = found && !open_contexts;
    pthread_mutex_unlock(&open_lock);
    return found;
}

int32_t kvf_context_close(kvf_word context, uint32_t millis, double *out) {
    kvf_context *ctx = (kvf_context *)(uintptr_t)context;
    bool last;
    if (!withdraw(ctx, &last)) return kvf_refuse(KVF_E_CLOSED, "the context is closed or was never opened");
    uint64_t deadline = kvf_now_nanos() + (uint64_t)millis * 1000000u;

    pthread_mutex_lock(&ctx->lock);
    __atomic_store_n(&ctx->closing, 1, __ATOMIC_RELEASE);
    kvf_member *members = ctx->members;
    ctx->members = NULL;
    for (kvf_member *member = members; member; member = member->next) member->previous = member; /* taken over */
    pthread_mutex_unlock(&ctx->lock);

    for (kvf_member *member = members; member; member = member->next) member->stop(member);

    pthread_mutex_lock(&ctx->lock);
    while (ctx->running > 0 && kvf_condition_wait_until(&ctx->settled, &ctx->lock, deadline) == KVF_OK) {
    }
    pthread_mutex_unlock(&ctx->lock);

    for (kvf_member *member = members; member;) {
        kvf_member *next = member->next; /* join may free the member */
        member->join(member, deadline);
        member = next;
    }
    kvf_ring_silence(&ctx->ring);

    pthread_mutex_lock(&ctx->lock);
    uint32_t left = ctx->running;
    pthread_mutex_unlock(&ctx->lock);
    if (last) {
        /* Threads without a job end at once, but not in no time. */
        uint64_t grace = kvf_now_nanos() + (left ? 0 : JOIN_GRACE_NANOS);
        kvf_pool_join(grace > deadline ? grace : deadline);
    }
    if (out) out[0] = left;
    kvf_context_release(ctx);
    return KVF_OK;
}

/* ---- members ------------------------------------------------------------------------------------------------- */

int32_t kvf_context_attach(kvf_context *ctx, kvf_member *member) {
    pthread_mutex_lock(&ctx->lock);
    bool closing = kvf_context_closing(ctx);
    if (!closing) {
        member->previous = NULL;
        member->next = ctx->members;
        if (member->next) member->next->previous = member;
        ctx->members = member;
    }
    pthread_mutex_unlock(&ctx->lock);
    return closing ? kvf_refuse(KVF_E_CLOSED, "the context is closing") : KVF_OK;
}

bool kvf_context_detach(kvf_context *ctx, kvf_member *member) {
    pthread_mutex_lock(&ctx->lock);
    /* A member that close took over points at itself, one that is not attached is not reachable. */
    kvf_member *at = member->previous == member ? NULL : ctx->members;
    while (at && at != member) at = at->next;
    if (at) {
        if (at->previous) at->previous->next = at->next;
        else ctx->members = at->next;
        if (at->next) at->next->previous = at->previous;
        at->next = at->previous = NULL;
    }
    pthread_mutex_unlock(&ctx->lock);
    return at != NULL;
}
