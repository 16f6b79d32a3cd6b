/*
 * context.h - contexts and jobs, as the library's own parts use them. The public side is in kvf.h.
 *
 * How a job is written, on the calling (JavaScript) thread:
 *
 *   kvf_context *ctx = kvf_context_from(context);      NULL: unknown or closed, the text is set
 *   if (!ctx) return KVF_E_CLOSED;
 *   check every argument; refuse with kvf_refuse       nothing is claimed yet
 *   int32_t status = kvf_job_begin(ctx, slot);         claims the slot and retains the context for the job
 *   if (status != KVF_OK) return status;
 *   hand the work to a thread; when that fails: kvf_job_drop(ctx, slot) and return the status
 *   return KVF_OK;
 *
 * and on the thread that runs it, exactly one of kvf_job_finish and kvf_job_fail, as its last use of (ctx, slot).
 * So a call that returns a negative status leaves no completion, and one that returns KVF_OK leaves exactly one.
 *
 * All functions are safe to call from any thread unless they say otherwise. `ctx` stays valid for a job until the
 * job is finished; for anything else, hold a reference with kvf_context_retain.
 */
#ifndef KVF_CONTEXT_H
#define KVF_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct kvf_context kvf_context;

/* ---- contexts ------------------------------------------------------------------------------------------------ */

/* The context behind a word from JavaScript, or NULL (text set) when there is none that is open. Takes no reference:
 * the caller is the thread that would close it. */
kvf_context *kvf_context_from(kvf_word context);

/* Counts references. The memory goes when the last one does, possibly long after kvf_context_close, which drops the
 * one that kvf_context_open made. Each job that runs holds one. */
void kvf_context_retain(kvf_context *ctx);
void kvf_context_release(kvf_context *ctx);

/* True once kvf_context_close began: long loops that are not jobs should end. */
bool kvf_context_closing(kvf_context *ctx);

/* Sets the shared block's notifications word to 1 and rings. Nothing happens after close. */
void kvf_context_notify(kvf_context *ctx);

/* ---- members: what has threads of its own and must be stopped by close ----------------------------------------
 * kvf_context_close calls, on the closing thread: first `stop` of every member (must not block: set a flag, signal a
 * condition), then waits for running jobs until its deadline, then `join` of every member with the same deadline (a
 * kvf_now_nanos value, possibly past). `join` joins the threads that have ended or end by then, leaves the others
 * behind, and returns how many it left; what those still use must stay allocated (retain the context, keep the member).
 * After `join` the member is detached; it is never called again. Both run without any lock of the context held.
 */
typedef struct kvf_member {
    void (*stop)(struct kvf_member *member);
    uint32_t (*join)(struct kvf_member *member, uint64_t deadline);
    struct kvf_member *next;     /* owned by the context while attached */
    struct kvf_member *previous; /* owned by the context while attached */
} kvf_member;

/* Attaches a member (its memory is the caller's). KVF_E_CLOSED when the context is closing. */
int32_t kvf_context_attach(kvf_context *ctx, kvf_member *member);
/* Detaches it: true when it was attached and close will not call it (any more); false when close has taken it over. */
bool kvf_context_detach(kvf_context *ctx, kvf_member *member);

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

/* Claims `slot`, clears its error text, byte result, cancel word and progress, starts its clock and retains the
 * context. KVF_E_INVALID: no such slot; KVF_E_BUSY: the slot has a job, or as many completions as the ring holds are
 * running or not yet taken; KVF_E_CLOSED: the context is closing. */
int32_t kvf_job_begin(kvf_context *ctx, uint32_t slot);
/* Gives a begun slot back without a completion (the hand-over failed and the call returns the failure itself). */
void kvf_job_drop(kvf_context *ctx, uint32_t slot);
/* True when the slot was cancelled or the context is closing. Cheap: ask at every chunk. */
bool kvf_job_cancelled(kvf_context *ctx, uint32_t slot);
/* Publishes progress. Both numbers only ever rise: a smaller one is ignored, so that several threads may report.
 * When `programs` rises on a watched slot, the block's progress word is set and the bell rung. */
void kvf_job_progress(kvf_context *ctx, uint32_t slot, uint32_t programs, double bytes);
/* Keeps a copy of `length` bytes as the slot's byte result until its next job. KVF_OK or KVF_E_NOMEM. */
int32_t kvf_job_set_result(kvf_context *ctx, uint32_t slot, const void *bytes, size_t length);
/* The same without a copy: `bytes` came from malloc and now belongs to the slot. */
void kvf_job_give_result(kvf_context *ctx, uint32_t slot, void *bytes, size_t length);
/* Sets the slot's error text (kvf_slot_error) without ending the job. */
void kvf_job_set_error(kvf_context *ctx, uint32_t slot, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Ends the job: writes the completion (status, KVF_DONE_* flags, value, microseconds since begin), makes the slot free
 * again, rings if armed, releases the job's reference. Nothing of (ctx, slot) may be used afterwards. All stores of the
 * calling thread are visible to JavaScript before the completion is (non-temporal ones must be fenced first). */
void kvf_job_finish(kvf_context *ctx, uint32_t slot, int32_t status, uint32_t flags, double value);
/* kvf_job_set_error and kvf_job_finish with value 0. */
void kvf_job_fail(kvf_context *ctx, uint32_t slot, int32_t status, uint32_t flags, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

#endif
