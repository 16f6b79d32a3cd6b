/* Jobs on the slots of a context: how one begins, is watched and ends, and what JavaScript asks about it. */
#include "context_object.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "thread.h"

/* ---- beginning, progress and ending -------------------------------------------------------------------------- */

static void clear_slot(kvf_slot *state) {
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
    kvf_slot *state = &ctx->slots[slot];
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
    kvf_slot *state = &ctx->slots[slot];
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
    kvf_slot *state = &ctx->slots[slot];
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
    const kvf_slot *state = &ctx->slots[slot];
    bool fits = state->result_bytes <= capacity;
    out[0] = (double)state->result_bytes;
    if (fits && state->result_bytes) memcpy(bytes, state->result, state->result_bytes);
    pthread_mutex_unlock(&ctx->lock);
    return fits ? KVF_OK : KVF_AGAIN;
}
