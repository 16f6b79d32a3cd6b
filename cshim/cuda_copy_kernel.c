/*
 * cuda_copy_kernel.c - copies by kernels: the program with its lists of ids, and its launch.
 */
#include "cuda_copy.h"
#include "status.h"

/* Room for `bytes` of lists in the lane's staging. KVF_AGAIN: the oldest upload is not over and the caller is impatient. */
static int32_t stage_lists(kvf_submission *s, uint32_t bytes, uint32_t *at) {
    kvf_lane *lane = s->lane;
    lane->held.number[0] = 0;
    if (s->rehearsal) {
        if (!lane->list_device || lane->list_used + bytes > KVF_LIST_BYTES) return KVF_AGAIN;
        *at = lane->list_segment * KVF_LIST_BYTES + lane->list_used; /* nobody has this part */
        /* The next copy's own part is the segment's first, once nothing reads that any more. */
        for (uint32_t line = 0; line < bytes; line += 64) __builtin_prefetch((char *)lane->list_host + lane->list_segment * KVF_LIST_BYTES + line, 1);
        return KVF_OK;
    }
    if (!lane->list_device) {
        if (!s->patient && !s->touched) return KVF_AGAIN;
        int32_t status = kvf_lane_lists(s->device, lane);
        if (status != KVF_OK) return status;
    }
    if (lane->list_used + bytes > KVF_LIST_BYTES) {
        uint32_t next = (lane->list_segment + 1) % KVF_LIST_SEGMENTS;
        cu_result result = s->patient || s->touched ? s->cu->event_synchronize(lane->list_free[next]) : s->cu->event_query(lane->list_free[next]);
        if (result == CU_NOT_READY) return KVF_AGAIN;
        if (result == CU_OK) result = s->cu->event_record(lane->list_free[lane->list_segment], lane->work);
        if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: staging of lists");
        lane->list_segment = next;
        lane->list_used = 0;
    }
    *at = lane->list_segment * KVF_LIST_BYTES + lane->list_used;
    lane->list_used += (bytes + 255u) & ~255u;
    return KVF_OK;
}

/* Launches a kernel; `early`: it may begin while the one before it ends. Both are slices then. */
static cu_result launch(kvf_submission *s, kvf_kernel kernel, uint32_t ctas, uint32_t threads, uint32_t shared, bool early, kvf_kernel_program *program) {
    void *parameters[] = {program};
    cu_launch_attribute attribute = {.id = CU_LAUNCH_EARLY, .value.on = 1};
    const cu_launch how = {{ctas, 1, 1}, {threads, 1, 1}, shared, s->lane->work, &attribute, early && s->device->major >= 9 ? 1 : 0};
    return s->cu->launch_with(&how, s->device->kernel[kernel], parameters, NULL);
}

/* Brings lists into device memory by a kernel: a copy call costs several times as much to submit. */
static int32_t send_lists(kvf_submission *s, cu_pointer from, cu_pointer to, uint64_t bytes) {
    const kvf_nest nest = {.bases = 1, .pairs = 1, .blocks = 1, .row = (bytes + 15) & ~(uint64_t)15, .side = {{.add = (int64_t)from}, {.add = (int64_t)to}}};
    kvf_kernel_program program;
    bool external;
    int32_t status = kvf_nest_program(&nest, KVF_DST, KVF_SHAPE_PIECES, 16, 1024, NULL, &external, &program);
    if (status != KVF_OK) return status;
    cu_result result = launch(s, KVF_KERNEL_PIECES_16, (program.units + 3) / 4, 128, 0, false, &program);
    return result == CU_OK ? KVF_OK : kvf_copy_failed(s, result, "CUDA: lists could not be sent");
}

static kvf_shape shape_of(const kvf_nest *nest, const kvf_launch *how, uint32_t width) {
    if (how->bulk) return KVF_SHAPE_BULK;
    const kvf_shape shape = kvf_nest_shape(nest, width);
    const bool sliced = how->near && kvf_nest_slices(nest, shape, width) && kvf_nest_words(nest, shape) > KVF_KERNEL_INLINE_WORDS;
    return sliced ? KVF_SHAPE_SLICES : shape;
}

static uint32_t piece_of(const kvf_launch *how, kvf_shape shape) {
    switch (shape) {
        case KVF_SHAPE_BULK: return how->s->device->tuning.bulk_stage;
        case KVF_SHAPE_SLICES: return KVF_KERNEL_SLICE_PIECE;
        default: return KVF_KERNEL_PIECE;
    }
}

/* The kernel that copies a nest so. */
static kvf_kernel kernel_of(const kvf_nest *nest, kvf_shape shape, uint32_t width) {
    static const kvf_kernel rows[5] = {0, KVF_KERNEL_ROWS_16, KVF_KERNEL_ROWS_16X2, 0, KVF_KERNEL_ROWS_16X4};
    switch (shape) {
        case KVF_SHAPE_SLICES: return KVF_KERNEL_SLICES_16;
        case KVF_SHAPE_BULK: return KVF_KERNEL_BULK;
        case KVF_SHAPE_PIECES: return width == 16 ? KVF_KERNEL_PIECES_16 : KVF_KERNEL_PIECES_N;
        default: return width == 16 ? rows[kvf_nest_vectors(nest, width)] : KVF_KERNEL_ROWS_N;
    }
}

#define SLICE_ROUNDS 16 /* of each CTA's warps, where there is much work */

/* CTAs for slices: as many as are at work at once, so that few wait for their pairs; more of much work, for they are not all
 * equally fast, and all that there may be where pairs are near. */
static uint32_t slices_of(const kvf_launch *how, const kvf_kernel_program *program, uint32_t warps) {
    if (how->sent) return how->ctas;
    const uint32_t most = how->ctas, at_once = KVF_KERNEL_SLICE_CTAS * (uint32_t)how->s->device->sms, rounds = program->units / warps;
    const uint32_t wanted = rounds / SLICE_ROUNDS > at_once ? rounds / SLICE_ROUNDS : at_once;
    return wanted < most ? wanted : most;
}

int32_t kvf_copy_launch(const kvf_nest *nest, void *argument) {
    kvf_launch *how = argument;
    kvf_submission *s = how->s;
    kvf_lane *lane = s->lane;
    const uint32_t width = kvf_nest_alignment(nest, false);
    const kvf_shape shape = shape_of(nest, how, width);
    const uint32_t piece = piece_of(how, shape);
    if (how->bulk && (width < 16 || nest->row % 16 != 0))
        return kvf_refuse(KVF_E_INVALID, "CUDA: program %u is not aligned to 16 bytes, as bulk copies need", s->program);
    const uint64_t words = kvf_nest_words(nest, shape);
    kvf_kernel_program program;
    uint32_t at = 0;
    bool external = false;
    if (kvf_lists_external(words, shape)) {
        int32_t status = KVF_OK;
        if (how->staged) at = how->at;
        else status = stage_lists(s, (uint32_t)words * 4, &at);
        if (status != KVF_OK) return status;
    }
    uint32_t *const lists = how->written ? NULL : lane->list_host + at / 4;
    int32_t status = kvf_nest_program(nest, how->side, shape, width, piece, lists, &external, &program);
    if (status != KVF_OK) return status;
    if (external) {
        program.lists = how->sent ? lane->list_device + at : (cu_pointer)(uintptr_t)lane->list_host + at;
        if (how->near && shape != KVF_SHAPE_SLICES && !s->rehearsal) {
            status = send_lists(s, program.lists, lane->list_device + at, words * 4);
            if (status != KVF_OK) return status;
            program.lists = lane->list_device + at;
        }
    }
    /* Not more CTAs than there is work for, and the work spread over all of them. */
    const kvf_kernel kernel = kernel_of(nest, shape, width);
    if (!s->device->kernel[kernel]) return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: there is no kernel for this method on device %d", s->device->ordinal);
    const uint32_t warps = how->threads / 32, per_cta = shape == KVF_SHAPE_ROWS ? how->threads : warps;
    const uint32_t shared = how->bulk ? warps * KVF_KERNEL_STAGES * piece : 0;
    const uint64_t most = ((uint64_t)program.units + per_cta - 1) / per_cta;
    uint32_t ctas = most < how->ctas ? (uint32_t)most : how->ctas;
    if (shape == KVF_SHAPE_SLICES) ctas = kvf_program_slice(&program, slices_of(how, &program, warps), warps);
    if (s->rehearsal) {
        program.units = 0;
        ctas = 1;
    }
    const cu_result result = launch(s, kernel, ctas, how->threads, shared, shape == KVF_SHAPE_SLICES && how->follows, &program);
    if (result != CU_OK) return kvf_copy_failed(s, result, "CUDA: a kernel could not be launched");
    if (!s->rehearsal) s->touched = true;
    how->follows = shape == KVF_SHAPE_SLICES;
    return KVF_OK;
}

#define FEW_PAIRS 2048    /* so many go in one launch */
#define FIRST_PAIRS 1024  /* of more */
#define FIRST_SLICED 2048u /* keep a device busy until the others' launch is there */
#define LEAST_INLINE 64u  /* fewer are not worth a launch */

/* How many of a nest's pairs are launched first: as many as travel inside the launch, where that is enough of them. */
static uint64_t first_pairs(const kvf_nest *nest) {
    const uint64_t beside = (nest->bases > 1 ? 4 * nest->bases : 0) + (nest->run ? 1 : 0), a_pair = nest->run ? 3 : 2;
    const uint64_t fit = beside < KVF_KERNEL_INLINE_WORDS ? (KVF_KERNEL_INLINE_WORDS - beside) / a_pair : 0;
    return fit < LEAST_INLINE ? FIRST_PAIRS : fit;
}

/* ---- lists that come again --------------------------------------------------------------------------------------
 * Layer after layer is moved by the same ids: their list of pairs is written once, and lies where it is until the lane's
 * memory is used for another one.
 */

/* What the list of a nest's pairs is made of, where that can be told without looking at the ids. */
static bool list_of(const kvf_nest *nest, kvf_held_list *list) {
    for (int s = 0; s < 2; s++) {
        list->number[s] = nest->side[s].place.number;
        if (list->number[s] == 0) return false;
    }
    list->pairs = nest->pairs;
    return kvf_nest_id_form(nest, &list->form);
}

static bool same_form(const kvf_id_form *a, const kvf_id_form *b) {
    return a->narrow == b->narrow && a->unit[0] == b->unit[0] && a->unit[1] == b->unit[1] && a->first[0] == b->first[0] && a->first[1] == b->first[1];
}

static bool same_list(const kvf_held_list *a, const kvf_held_list *b) {
    return a->number[0] == b->number[0] && a->number[1] == b->number[1] && a->pairs == b->pairs && same_form(&a->form, &b->form);
}

/* Launches what was cut into two parts: the device starts on the first while the list of the others is written, which takes
 * as long as copying some of what it names. */
static int32_t launch_both(kvf_launch *how, kvf_shape shape, const kvf_nest *part, const kvf_nest *rest) {
    /* Whoever cannot wait for room must find out before anything moves: it is taken for both at once. */
    const uint32_t ahead = (uint32_t)kvf_nest_words(part, shape), behind = (uint32_t)kvf_nest_words(rest, shape);
    const uint32_t beside = kvf_lists_external(ahead, shape) ? (ahead * 4 + 255u) & ~255u : 0;
    int32_t status = stage_lists(how->s, beside + behind * 4, &how->at);
    how->staged = true;
    if (status == KVF_OK) status = kvf_copy_launch(part, how);
    how->at += beside;
    return status == KVF_OK ? kvf_copy_launch(rest, how) : status;
}

static int32_t copy_slices(const kvf_nest *nest, kvf_launch *how) {
    kvf_lane *lane = how->s->lane;
    kvf_held_list list = {0}; /* without numbers nothing but its place is set */
    const bool numbered = list_of(nest, &list);
    int32_t status = KVF_OK;
    if (numbered && same_list(&list, &lane->held)) {
        how->staged = how->written = true;
        how->at = lane->held.at;
        /* Nobody may write there before this has read it. */
        if (lane->list_used < lane->held.end) lane->list_used = lane->held.end;
        if (!lane->held.sent && !how->s->rehearsal) {
            /* What came twice will come more often: from now on no pair is fetched from host memory. */
            status = send_lists(how->s, (cu_pointer)(uintptr_t)lane->list_host + how->at, lane->list_device + how->at, kvf_nest_words(nest, KVF_SHAPE_SLICES) * 4);
            lane->held.sent = status == KVF_OK;
        }
        how->sent = lane->held.sent;
        return status == KVF_OK ? kvf_copy_launch(nest, how) : status;
    }
    bool whole = true; /* one list after the other is the list of all */
    if (nest->pairs < 2 * FIRST_SLICED) {
        status = stage_lists(how->s, (uint32_t)kvf_nest_words(nest, KVF_SHAPE_SLICES) * 4, &list.at);
        how->staged = true;
        how->at = list.at;
        if (status == KVF_OK) status = kvf_copy_launch(nest, how);
    } else {
        kvf_nest part, rest;
        kvf_id_form form[2];
        kvf_nest_pairs(nest, 0, FIRST_SLICED, &part);
        kvf_nest_pairs(nest, FIRST_SLICED, nest->pairs, &rest);
        whole = numbered && kvf_nest_id_form(&part, &form[0]) && kvf_nest_id_form(&rest, &form[1]) && same_form(&form[0], &list.form) && same_form(&form[1], &list.form);
        status = launch_both(how, KVF_SHAPE_SLICES, &part, &rest);
        list.at = how->at - FIRST_SLICED * (list.form.narrow ? 4u : 8u);
    }
    if (status != KVF_OK || !numbered || !whole || how->s->rehearsal) return status;
    list.end = lane->list_used;
    list.sent = false;
    lane->held = list;
    return KVF_OK;
}

int32_t kvf_copy_by_kernel(kvf_submission *s, const kvf_nest *nest, int side, bool bulk, uint32_t ctas, uint32_t threads) {
    kvf_launch how = {.s = s, .side = side, .bulk = bulk, .near = s->task->direction == KVF_ON_DEVICE, .ctas = ctas, .threads = threads};
    const uint32_t width = kvf_nest_alignment(nest, false);
    const kvf_shape shape = shape_of(nest, &how, width);
    /* Three words a pair, and bases beside them; in slices two and nothing else. */
    const uint64_t pairs = shape == KVF_SHAPE_SLICES ? KVF_LIST_BYTES / 8 : KVF_LIST_BYTES / 16;
    if (4 * nest->bases > KVF_LIST_BYTES / 16) return kvf_refuse(KVF_E_INVALID, "CUDA: program %u has too many bases", s->program);
    if (kvf_nest_units(nest, shape, width, piece_of(&how, shape)) <= KVF_KERNEL_UNITS / 2 && nest->pairs <= pairs) {
        if (shape == KVF_SHAPE_SLICES) return copy_slices(nest, &how);
        if (nest->pairs < FEW_PAIRS) return kvf_copy_launch(nest, &how);
        const uint64_t first = first_pairs(nest);
        kvf_nest part, rest;
        kvf_nest_pairs(nest, 0, first, &part);
        kvf_nest_pairs(nest, first, nest->pairs, &rest);
        return launch_both(&how, shape, &part, &rest);
    }
    if (!s->patient && !s->touched) return KVF_AGAIN; /* several launches may wait for staging in between */
    return kvf_nest_cut(nest, side, (uint64_t)(shape == KVF_SHAPE_ROWS ? width : 1024) << 29, pairs, kvf_copy_launch, &how);
}
