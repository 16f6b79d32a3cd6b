#include "context.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pool.h"
#include "ring.h"
#include "thread.h"

#define LEAST_SLOTS 64u
#define MOST_SLOTS 65536u
#define JOIN_GRACE_NANOS 1000000000u

typedef struct slot_state {
    bool busy;
    uint64_t begun;
    char *error;
    void *result;
    size_t result_bytes;
} slot_state;

struct kvf_context {
    kvf_context *next; /* in the list of open contexts */
    uint32_t references;
    uint32_t closing;
    kvf_ring ring;
    pthread_mutex_t lock;   /* guards all that follows, and the ring's head */
    pthread_cond_t settled; /* signalled when a job ends while the context is closing */
    uint32_t running;
    kvf_member *members;
    slot_state *slots;
};

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
    slot_state *states = calloc(slots, sizeof *states);
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

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

static void clear_slot(slot_state *state) {
    free(state->error);
    free(state->result);
    state->error = NULL;
    state->result = NULL;
    state->result_bytes = 0;
}

int32_t kvf_job_begin(kvf_context *ctx, uint32_t slot) {
    if (slot >= ctx->ring.slots)
        return kvf_refuse(KVF_E_INVALID, "slot %u: the context has %u", slot, ctx->ring.slots);
    pthread_mutex_lock(&ctx->lock);
    slot_state *state = &ctx->slots[slot];
    int32_t status = KVF_OK;
    if (kvf_context_closing(ctx)) status = kvf_refuse(KVF_E_CLOSED, "the context is closing");
    else if (state->busy) status = kvf_refuse(KVF_E_BUSY, "slot %u has a job", slot);
    else if (ctx->running + kvf_ring_unread(&ctx->ring) >= ctx->ring.slots)
        status = kvf_refuse(KVF_E_BUSY, "%u completions are running or not yet taken", ctx->ring.slots);
    if (status == KVF_OK) {
        clear_slot(state);
        state->busy = true;
        state->begun = kvf_now_nanos();
        ctx->running++;
        kvf_context_retain(ctx);
        uint32_t word = kvf_ring_slot_word(&ctx->ring, slot);
        kvf_ring_store(&ctx->ring, word + KVF_SLOT_PROGRAMS, 0);
        kvf_ring_store(&ctx->ring, word + KVF_SLOT_CANCEL, 0);
        __atomic_store_n((uint64_t *)(ctx->ring.words + word + KVF_SLOT_BYTES), 0, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&ctx->lock);
    return status;
}

/* Frees the slot; with a completion, appends it. The slot is free before JavaScript can see that it is. */
static void end_job(kvf_context *ctx, uint32_t slot, kvf_completion *completion) {
    pthread_mutex_lock(&ctx->lock);
    slot_state *state = &ctx->slots[slot];
    state->busy = false;
    ctx->running--;
    if (completion) {
        completion->micros = (double)(kvf_now_nanos() - state->begun) / 1000.0;
        kvf_ring_push(&ctx->ring, completion);
    }
    if (kvf_context_closing(ctx)) pthread_cond_broadcast(&ctx->settled);
    pthread_mutex_unlock(&ctx->lock);
    if (completion) kvf_ring_bell(&ctx->ring);
    kvf_context_release(ctx);
}

void kvf_job_drop(kvf_context *ctx, uint32_t slot) { end_job(ctx, slot, NULL); }

void kvf_job_finish(kvf_context *ctx, uint32_t slot, int32_t status, uint32_t flags, double value) {
    kvf_completion completion = {.slot = slot, .status = status, .flags = flags, .value = value};
    end_job(ctx, slot, &completion);
}

bool kvf_job_cancelled(kvf_context *ctx, uint32_t slot) {
    return kvf_ring_load(&ctx->ring, kvf_ring_slot_word(&ctx->ring, slot) + KVF_SLOT_CANCEL) != 0 || kvf_context_closing(ctx);
}

void kvf_job_progress(kvf_context *ctx, uint32_t slot, uint32_t programs, double bytes) {
    uint32_t *record = ctx->ring.words + kvf_ring_slot_word(&ctx->ring, slot);
    /* Bit patterns of doubles that are not negative have the order of the numbers. */
    uint64_t *done = (uint64_t *)(record + KVF_SLOT_BYTES);
    uint64_t pattern;
    memcpy(&pattern, &bytes, sizeof pattern);
    uint64_t seen = __atomic_load_n(done, __ATOMIC_RELAXED);
    while (seen < pattern && !__atomic_compare_exchange_n(done, &seen, pattern, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
    uint32_t before = __atomic_load_n(record + KVF_SLOT_PROGRAMS, __ATOMIC_RELAXED);
    while (before < programs &&
           !__atomic_compare_exchange_n(record + KVF_SLOT_PROGRAMS, &before, programs, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
    if (before >= programs) return;
    if (__atomic_load_n(record + KVF_SLOT_WATCH, __ATOMIC_SEQ_CST) == 0) return;
    kvf_ring_store(&ctx->ring, KVF_RING_PROGRESS, 1);
    kvf_ring_bell(&ctx->ring);
}

void kvf_job_give_result(kvf_context *ctx, uint32_t slot, void *bytes, size_t length) {
    pthread_mutex_lock(&ctx->lock);
    slot_state *state = &ctx->slots[slot];
    free(state->result);
    state->result = bytes;
    state->result_bytes = length;
    pthread_mutex_unlock(&ctx->lock);
}

int32_t kvf_job_set_result(kvf_context *ctx, uint32_t slot, const void *bytes, size_t length) {
    void *copy = malloc(length ? length : 1);
    if (!copy) return kvf_refuse(KVF_E_NOMEM, "no memory for a result of %zu bytes", length);
    if (length) memcpy(copy, bytes, length);
    kvf_job_give_result(ctx, slot, copy, length);
    return KVF_OK;
}

static void set_error(kvf_context *ctx, uint32_t slot, const char *format, va_list args) {
    char text[KVF_TEXT_BYTES];
    if (vsnprintf(text, sizeof text, format, args) < 0) text[0] = 0;
    char *copy = strdup(text); /* without memory the status must speak for itself */
    pthread_mutex_lock(&ctx->lock);
    free(ctx->slots[slot].error);
    ctx->slots[slot].error = copy;
    pthread_mutex_unlock(&ctx->lock);
}

void kvf_job_set_error(kvf_context *ctx, uint32_t slot, const char *format, ...) {
    va_list args;
    va_start(args, format);
    set_error(ctx, slot, format, args);
    va_end(args);
}

void kvf_job_fail(kvf_context *ctx, uint32_t slot, int32_t status, uint32_t flags, const char *format, ...) {
    va_list args;
    va_start(args, format);
    set_error(ctx, slot, format, args);
    va_end(args);
    kvf_job_finish(ctx, slot, status, flags, 0);
}

/* ---- what JavaScript asks about slots ------------------------------------------------------------------------ */

int32_t kvf_slot_cancel(kvf_word context, uint32_t slot) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (slot >= ctx->ring.slots) return kvf_refuse(KVF_E_INVALID, "slot %u: the context has %u", slot, ctx->ring.slots);
    kvf_ring_store(&ctx->ring, kvf_ring_slot_word(&ctx->ring, slot) + KVF_SLOT_CANCEL, 1);
    return KVF_OK;
}

int32_t kvf_slot_error(kvf_word context, uint32_t slot, char *out, uint32_t capacity) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (slot >= ctx->ring.slots || !out || capacity == 0)
        return kvf_refuse(KVF_E_INVALID, "kvf_slot_error: slot %u, capacity %u", slot, capacity);
    pthread_mutex_lock(&ctx->lock);
    const char *text = ctx->slots[slot].error ? ctx->slots[slot].error : "";
    int written = snprintf(out, capacity, "%s", text);
    pthread_mutex_unlock(&ctx->lock);
    return written >= 0 && (uint32_t)written < capacity ? KVF_OK : KVF_AGAIN;
}

int32_t kvf_slot_result(kvf_word context, uint32_t slot, uint8_t *bytes, kvf_word capacity, double *out) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (slot >= ctx->ring.slots || !out || (!bytes && capacity))
        return kvf_refuse(KVF_E_INVALID, "kvf_slot_result: slot %u or a missing buffer", slot);
    pthread_mutex_lock(&ctx->lock);
    const slot_state *state = &ctx->slots[slot];
    bool fits = state->result_bytes <= capacity;
    out[0] = (double)state->result_bytes;
    if (fits && state->result_bytes) memcpy(bytes, state->result, state->result_bytes);
    pthread_mutex_unlock(&ctx->lock);
    return fits ? KVF_OK : KVF_AGAIN;
}
