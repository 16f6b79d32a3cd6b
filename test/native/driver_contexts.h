/*
 * driver_contexts.h - contexts, slots, the ring under many producers, doorbells, closing while work runs.
 */
#ifndef KVF_DRIVER_CONTEXTS_H
#define KVF_DRIVER_CONTEXTS_H

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "context.h"
#include "driver_hop.h"
#include "pool.h"
#include "thread.h"

static uint32_t rings; /* atomic */

static void count_ring(void) { __atomic_fetch_add(&rings, 1, __ATOMIC_SEQ_CST); }

static void arm(client *js) { __atomic_store_n(js->words + 2, 1, __ATOMIC_SEQ_CST); }

static void contexts_and_slots(void) {
    double out[3];
    char text[64];
    CHECK(kvf_context_open(63, out) == KVF_E_INVALID && kvf_context_open(96, out) == KVF_E_INVALID);
    CHECK(kvf_context_open(1u << 17, out) == KVF_E_INVALID && kvf_context_open(64, NULL) == KVF_E_INVALID);
    client js = open_client(64), other = open_client(128);
    kvf_context *ctx = kvf_context_from(js.context);
    CHECK(ctx && !kvf_context_from(12345));
    CHECK(kvf_job_begin(ctx, 64) == KVF_E_INVALID);
    CHECK(kvf_job_begin(ctx, 3) == KVF_OK && kvf_job_begin(ctx, 3) == KVF_E_BUSY);
    CHECK(kvf_slot_cancel(js.context, 3) == KVF_OK && kvf_job_cancelled(ctx, 3) && !kvf_job_cancelled(ctx, 4));
    CHECK(kvf_job_set_result(ctx, 3, "abcdef", 6) == KVF_OK);
    kvf_job_fail(ctx, 3, KVF_E_PEER, KVF_DONE_IN_DOUBT, "peer %d is gone", 7);
    answer got = await(&js);
    CHECK(got.slot == 3 && got.status == KVF_E_PEER && got.flags == KVF_DONE_IN_DOUBT && got.value == 0 && got.micros > 0);
    CHECK(kvf_slot_error(js.context, 3, text, sizeof text) == KVF_OK && strcmp(text, "peer 7 is gone") == 0);
    CHECK(kvf_slot_error(js.context, 3, text, 5) == KVF_AGAIN && strcmp(text, "peer") == 0);
    uint8_t bytes[8] = {0};
    CHECK(kvf_slot_result(js.context, 3, bytes, 5, out) == KVF_AGAIN && out[0] == 6 && bytes[0] == 0);
    CHECK(kvf_slot_result(js.context, 3, bytes, 8, out) == KVF_OK && memcmp(bytes, "abcdef", 6) == 0);
    CHECK(kvf_job_begin(ctx, 3) == KVF_OK); /* clears what the last one left */
    CHECK(!kvf_job_cancelled(ctx, 3));
    CHECK(kvf_slot_result(js.context, 3, bytes, 8, out) == KVF_OK && out[0] == 0);
    CHECK(kvf_slot_error(js.context, 3, text, sizeof text) == KVF_OK && text[0] == 0);
    kvf_job_drop(ctx, 3);
    CHECK(!take(&js, &got));
    CHECK(close_client(&js, 0) == 0 && close_client(&other, 0) == 0);
    CHECK(kvf_context_close(js.context, 0, out) == KVF_E_CLOSED && kvf_slot_cancel(js.context, 0) == KVF_E_CLOSED);
    CHECK(kvf_nixl_listen(0, 0) < 0); /* a part that was left out answers, whatever it is asked */
}

/* No more completions than the ring has room for can be under way. */
static void full_ring(void) {
    client js = open_client(64);
    kvf_context *ctx = kvf_context_from(js.context);
    for (uint32_t slot = 0; slot < 64; slot++) CHECK(kvf_job_begin(ctx, slot) == KVF_OK);
    for (uint32_t slot = 0; slot < 64; slot++) kvf_job_finish(ctx, slot, KVF_OK, 0, slot);
    CHECK(kvf_job_begin(ctx, 9) == KVF_E_BUSY);
    answer got;
    for (uint32_t slot = 0; slot < 64; slot++) CHECK(take(&js, &got) && got.slot == slot && got.value == slot);
    CHECK(!take(&js, &got) && kvf_job_begin(ctx, 9) == KVF_OK);
    kvf_job_drop(ctx, 9);
    CHECK(close_client(&js, 0) == 0);
}

/* ---- many producers ------------------------------------------------------------------------------------------ */

#define PRODUCERS 6
#define SLOTS_EACH 32

typedef struct producer {
    kvf_context *ctx;
    uint32_t first;
    uint32_t rounds;
    uint32_t busy; /* times that the ring was full */
} producer;

static void *produce(void *argument) {
    producer *self = argument;
    for (uint32_t round = 0; round < self->rounds; round++) {
        uint32_t slot = self->first + round % SLOTS_EACH;
        while (kvf_job_begin(self->ctx, slot) != KVF_OK) {
            self->busy++;
            sched_yield();
        }
        kvf_job_progress(self->ctx, slot, 1, round);
        kvf_job_finish(self->ctx, slot, KVF_OK, 0, (double)self->first * 1e6 + round);
    }
    return NULL;
}

static void many_producers(uint32_t rounds) {
    client js = open_client(64);
    kvf_context *ctx = kvf_context_from(js.context);
    CHECK(kvf_context_ring_by_callback(js.context, (kvf_word)(uintptr_t)count_ring) == KVF_OK);
    CHECK(kvf_context_ring_by_callback(js.context, (kvf_word)(uintptr_t)count_ring) == KVF_E_BUSY);
    for (uint32_t slot = 0; slot < 64; slot += 3) slot_record(&js, slot)[1] = 1; /* watched */
    rings = 0;
    arm(&js);
    pthread_t thread[PRODUCERS];
    producer self[PRODUCERS];
    /* Three share each half of the slots, so that they also meet over them. */
    for (uint32_t k = 0; k < PRODUCERS; k++) {
        self[k] = (producer){.ctx = ctx, .first = k % 2 * SLOTS_EACH, .rounds = rounds};
        CHECK(kvf_thread_start(&thread[k], "producer", produce, &self[k]) == KVF_OK);
    }
    uint64_t wanted = (uint64_t)PRODUCERS * rounds;
    double sum = 0, expected = 3 * 32e6 * rounds + PRODUCERS * (double)rounds * (rounds - 1) / 2;
    uint32_t bells = 0;
    for (uint64_t taken = 0; taken < wanted;) {
        /* As JavaScript does: drain, arm, look again, then sleep until the bell. */
        answer got;
        while (take(&js, &got)) {
            CHECK(got.status == KVF_OK && got.slot < 64);
            sum += got.value;
            taken++;
        }
        __atomic_exchange_n(js.words + 3, 0, __ATOMIC_SEQ_CST);
        arm(&js);
        if (taken == wanted || __atomic_load_n(js.words, __ATOMIC_SEQ_CST) != js.words[1]) continue;
        for (int tries = 0; __atomic_load_n(&rings, __ATOMIC_SEQ_CST) == bells; tries++) {
            CHECK(tries < 100000000); /* a bell was lost */
            sched_yield();
        }
        bells = __atomic_load_n(&rings, __ATOMIC_SEQ_CST);
    }
    for (uint32_t k = 0; k < PRODUCERS; k++) CHECK(pthread_join(thread[k], NULL) == 0);
    CHECK(sum == expected);
    CHECK(close_client(&js, 0) == 0);
}

static void socket_doorbell(void) {
    client js = open_client(64);
    kvf_context *ctx = kvf_context_from(js.context);
    double out[1];
    CHECK(kvf_context_ring_by_socket(js.context, out) == KVF_OK);
    int reader = (int)out[0];
    char byte[4];
    CHECK(read(reader, byte, 4) < 0); /* nothing yet, and it does not block */
    kvf_context_notify(ctx);
    CHECK(js.words[4] == 1 && read(reader, byte, 4) < 0); /* not armed */
    arm(&js);
    kvf_context_notify(ctx);
    CHECK(read(reader, byte, 4) == 1 && js.words[2] == 0);
    for (int k = 0; k < 100000; k++) { /* nobody reads: neither blocks nor fails */
        arm(&js);
        kvf_context_notify(ctx);
    }
    CHECK(close_client(&js, 0) == 0);
    while (read(reader, byte, 4) > 0) {
    }
    CHECK(read(reader, byte, 4) == 0); /* closed at the other end */
    close(reader);
}

/* ---- the pool ------------------------------------------------------------------------------------------------ */

typedef struct crowd {
    kvf_task task;
    pthread_barrier_t meeting;
    bool meets; /* an item ends only when all are there */
    uint32_t inside; /* atomic */
    uint32_t most;   /* atomic */
    uint32_t done;   /* atomic */
    uint32_t ended;  /* atomic */
} crowd;

static void crowd_item(kvf_task *task, uint64_t index) {
    crowd *self = (crowd *)task;
    CHECK(index < task->items);
    uint32_t now = __atomic_add_fetch(&self->inside, 1, __ATOMIC_SEQ_CST), most = __atomic_load_n(&self->most, __ATOMIC_SEQ_CST);
    while (most < now && !__atomic_compare_exchange_n(&self->most, &most, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    if (self->meets) pthread_barrier_wait(&self->meeting);
    else
        for (uint32_t spin = 0; spin < 3000; spin++) __asm__ volatile(""); /* long enough to meet others */
    __atomic_fetch_sub(&self->inside, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&self->done, 1, __ATOMIC_SEQ_CST);
}

static void crowd_end(kvf_task *task) {
    crowd *self = (crowd *)task;
    CHECK(self->done == task->items && self->inside == 0);
    __atomic_store_n(&self->ended, 1, __ATOMIC_SEQ_CST);
}

/* A task gets as many threads as it may have, never more, and is ended once; narrow ones do not keep wide ones waiting. */
static void pool_widths(uint32_t rounds) {
    client js = open_client(64); /* closing it joins the threads */
    for (uint32_t round = 0; round < rounds; round++) {
        crowd narrow = {.task = {.item = crowd_item, .end = crowd_end, .items = 40, .width = 1 + round % 2}};
        crowd wide = {.task = {.item = crowd_item, .end = crowd_end, .items = 8, .width = 4}, .meets = true};
        pthread_barrier_init(&wide.meeting, NULL, 4);
        if (round % 3 == 0) usleep(100); /* long enough for the threads to sleep */
        CHECK(kvf_pool_submit(&narrow.task) == KVF_OK && kvf_pool_submit(&wide.task) == KVF_OK);
        while (!__atomic_load_n(&narrow.ended, __ATOMIC_SEQ_CST) || !__atomic_load_n(&wide.ended, __ATOMIC_SEQ_CST)) sched_yield();
        CHECK(narrow.most <= narrow.task.width && wide.most == 4);
        /* The pool's last look at a task is before its end; the barrier's last user has left it. */
        pthread_barrier_destroy(&wide.meeting);
    }
    CHECK(close_client(&js, 0) == 0);
}

/* ---- closing ------------------------------------------------------------------------------------------------- */

typedef struct guest {
    kvf_member member;
    uint32_t stops;
    uint32_t joins;
} guest;

static void stop_guest(kvf_member *member) { ((guest *)member)->stops++; }
static uint32_t join_guest(kvf_member *member, uint64_t deadline) {
    (void)deadline;
    CHECK(((guest *)member)->stops == 1);
    ((guest *)member)->joins++;
    return 0;
}

static void *finish_late(void *argument) {
    kvf_context *ctx = argument;
    while (!kvf_context_closing(ctx)) usleep(1000);
    CHECK(kvf_job_cancelled(ctx, 1)); /* closing asks every job to stop */
    usleep(50000);
    kvf_job_progress(ctx, 1, 3, 4);
    kvf_context_notify(ctx);
    kvf_job_finish(ctx, 1, KVF_OK, 0, 0);
    return NULL;
}

static void closing_with_a_stuck_job(void) {
    client js = open_client(64);
    kvf_context *ctx = kvf_context_from(js.context);
    CHECK(kvf_context_ring_by_callback(js.context, (kvf_word)(uintptr_t)count_ring) == KVF_OK);
    guest member[3] = {0}, late = {.member = {.stop = stop_guest, .join = join_guest}};
    for (int k = 0; k < 3; k++) {
        member[k].member = late.member;
        CHECK(kvf_context_attach(ctx, &member[k].member) == KVF_OK);
    }
    CHECK(kvf_context_detach(ctx, &member[1].member) && !kvf_context_detach(ctx, &member[1].member));
    CHECK(kvf_job_begin(ctx, 1) == KVF_OK);
    kvf_context_retain(ctx);
    slot_record(&js, 1)[1] = 1;
    pthread_t thread;
    CHECK(kvf_thread_start(&thread, "late", finish_late, ctx) == KVF_OK);
    CHECK(close_client(&js, 5) == 1);
    rings = 0;
    arm(&js);
    CHECK(member[0].joins == 1 && member[1].stops == 0 && member[2].joins == 1);
    CHECK(kvf_context_attach(ctx, &late.member) == KVF_E_CLOSED && kvf_job_begin(ctx, 2) == KVF_E_CLOSED);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(rings == 0 && js.words[0] == 1); /* its completion is on the ring, but nobody is called */
    kvf_context_release(ctx);
}

static void closing_while_copies_run(uint32_t cases) {
    static draft hop;
    for (uint32_t at = 0; at < cases; at++) {
        client js = open_client(64);
        begin_draft(&hop, 1, 1 << 20, 4 << 20);
        random_program(&hop, 0, 2000);
        seal_draft(&hop);
        CHECK(kvf_context_ring_by_callback(js.context, (kvf_word)(uintptr_t)count_ring) == KVF_OK);
        arm(&js);
        for (uint32_t slot = 0; slot < 20; slot++) CHECK(kvf_copy_job(js.context, slot, hop.words, hop.used, slot % 2, 1, NULL, NULL, 0) == KVF_OK);
        CHECK(close_client(&js, 20000) == 0);
        CHECK(js.words[0] == 20);
        uint32_t before = rings;
        end_draft(&hop); /* nobody may touch it any more */
        arm(&js);
        CHECK(rings == before);
        answer got;
        while (take(&js, &got)) CHECK(got.status == KVF_OK || got.status == KVF_E_CANCELLED);
    }
}

#endif
