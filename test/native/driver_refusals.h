/*
 * driver_refusals.h - hops that must be refused before a byte moves.
 */
#ifndef KVF_DRIVER_REFUSALS_H
#define KVF_DRIVER_REFUSALS_H

#include "driver_copies.h"

/* A row of a hop that passed the check must lie where the check promises. */
static void in_range(void *to, uint64_t src, uint64_t dst, uint64_t bytes, uint32_t program) {
    (void)to, (void)program;
    CHECK(src >= 1 && dst >= 1 && src + bytes <= (uint64_t)1 << 53 && dst + bytes <= (uint64_t)1 << 53);
}

/* Mistakes that agree with each other, so that only the check of the mistake itself can find them. */
static void consistent_mistakes(void) {
    static draft hop;
    double out[2];
    begin_draft(&hop, 1, 1 << 16, 1 << 16);
    flat_program(&hop, 0, 4, 100);
    double *head = hop.words + KVF_HOP_HEADER_WORDS, *runs = new_array(&hop, 2);
    uint32_t few[4] = {1, 0, 1, 2};
    memcpy(runs, few, sizeof few);
    head[32] = (double)(runs - hop.words);
    seal_draft(&hop);
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID); /* a run of 0 */
    few[1] = 1;
    memcpy(runs, few, sizeof few);
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID); /* 500 bytes, not 400 */
    head[33] = 500;
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID); /* the header says 400 */
    seal_draft(&hop);
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_OK && out[0] == 5 && out[1] == 500);
    head[28] = (double)hop.used; /* an array that begins where the block ends */
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID);
    head[28] = 8; /* one inside the headers */
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID);
    head[28] = head[29] - 1;
    head[5] = -(double)(uintptr_t)hop.dst - 1000; /* below address 1 at the second step of a run */
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID);
    head[5] = 0;
    head[25] = 1; /* a device number is fine */
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_OK);
    head[24] = 1; /* device memory is not for the host's copies */
    CHECK(kvf_copy_run(hop.words, hop.used, 0, out) == KVF_E_INVALID);
    head[24] = 3;
    CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_E_INVALID);
    end_draft(&hop);
}

static void bad_hops_are_refused(uint32_t cases) {
    static draft hop;
    const double odd[] = {-1, 0.5, 0, 1, 2, 7, 1e300, -1e300, 9007199254740992.0, 9007199254740994.0, -9007199254740992.0, 4294967296.0,
                          __builtin_nan(""), __builtin_inf()};
    uint64_t accepted = 0;
    double out[2];
    for (uint32_t at = 0; at < cases; at++) {
        begin_draft(&hop, 2, 1 << 18, 16 << 20);
        random_program(&hop, 0, 64);
        random_program(&hop, 1, 64);
        seal_draft(&hop);
        CHECK(kvf_hop_check(hop.words, hop.used, out) == KVF_OK);
        CHECK(kvf_hop_check(hop.words, hop.used - 1, out) == KVF_E_INVALID);
        CHECK(kvf_hop_check(hop.words, below(8), out) == KVF_E_INVALID);
        for (int change = 0; change < 50; change++) {
            uint64_t place = below(hop.used);
            double kept = hop.words[place];
            hop.words[place] = odd[below(sizeof odd / sizeof *odd)];
            /* An exact-size copy, so that a sanitizer sees a read past the end. */
            double *exact = malloc(hop.used * sizeof(double));
            CHECK(exact);
            memcpy(exact, hop.words, hop.used * sizeof(double));
            int32_t status = kvf_hop_check(exact, hop.used, out);
            CHECK(status == KVF_OK || status == KVF_E_INVALID);
            if (status == KVF_OK && out[0] < 100000) visit_rows(exact, in_range, NULL), accepted++;
            free(exact);
            hop.words[place] = kept;
        }
        end_draft(&hop);
    }
    CHECK(accepted > 0);
    CHECK(kvf_hop_check(NULL, 100, out) == KVF_E_INVALID);
    char text[200];
    CHECK(kvf_last_error(text, sizeof text) == KVF_OK && strncmp(text, "hop: ", 5) == 0);
}

#endif
