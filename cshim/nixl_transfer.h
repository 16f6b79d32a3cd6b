/*
 * nixl_transfer.h - a transfer: a hop cut into pieces, worked on by one lane or more.
 *
 *   lane:  kvf_transfer_cut -> create -> post -> poll -> kvf_transfer_land (or kvf_transfer_break), again and again, then
 *          it leaves; the last lane to leave ends the job (kvf_transfer_settle).
 *
 * A request of NIXL lives in a kvf_piece on its lane's stack and is released in one place only (nixl_flight.c), which
 * forgets it in the same breath: asking for the status of a released request crashes the library.
 */
#ifndef KVF_NIXL_TRANSFER_H
#define KVF_NIXL_TRANSFER_H

#include "hop.h"
#include "nixl_agent.h"

/* Lanes share a transfer only when at least this many more pieces are to come. */
#define KVF_SHARE_PIECES 4u

/* A request in flight or about to be posted. */
typedef struct kvf_piece {
    struct kvf_piece *next;  /* in its transfer's list of pieces that have not landed */
    nixl_xfer_req request;   /* NULL: none, or released */
    uint64_t number;         /* 1, 2, ... in its transfer */
    uint64_t bytes;
    uint32_t rows;           /* descriptors */
    uint32_t program;        /* of its first row */
    bool full;               /* cut because of the pace, not because the hop, a kind or a cap ended it */
    bool by_rows;            /* ... and it was the number of descriptors that did it */
    uint64_t posted_at;
} kvf_piece;

struct kvf_transfer {
    kvf_transfer *next; /* in the agent's queue or list of running ones (guarded by the agent's mutex) */
    kvf_agent *agent;
    kvf_context *ctx;
    uint32_t slot;
    kvf_peer *peer;
    uint32_t operation;
    kvf_hop hop;
    uint64_t cap_bytes; /* of a piece; 0 automatic */
    uint32_t cap_rows;
    uint64_t share_bytes; /* most of a piece where lanes share the transfer; 0 where they need not */
    uint8_t *notification;
    uint32_t notification_bytes;
    bool notify;

    uint32_t workers;      /* guarded by the agent's mutex */
    atomic_bool abandoned; /* its lanes were given up */
    atomic_bool shareable; /* posts copy on the posting thread, and there is enough left for another lane */

    pthread_mutex_t mutex; /* guards what follows */
    kvf_cursor cursor;
    kvf_row row;           /* the next row, when `rows_left` */
    uint64_t row_done;     /* bytes of it that were cut already */
    bool rows_left;
    uint64_t base_rows_left; /* rows after this one in the same base of the same program */
    kvf_pace pace;
    kvf_piece *pieces;     /* that have not landed */
    uint64_t count;        /* pieces cut */
    uint64_t bytes_done;
    bool touched;          /* something was posted */
    bool copied;           /* the last post that ended copied on the posting thread */
    bool in_doubt;
    bool broken;           /* a piece failed in flight: worth asking whether the peer lives */
    int32_t status;        /* KVF_OK, or why it stops */
    char text[256];
};

/* Descriptor lists of one lane, by memory type, made when first needed and reused. */
typedef struct kvf_lists {
    nixl_xfer_dlist local[NIXL_MEMORY_TYPES];
    nixl_xfer_dlist remote[NIXL_MEMORY_TYPES];
} kvf_lists;

/* ---- nixl_pieces.c ------------------------------------------------------------------------------------------- */

/* Where the pace of a new peer begins. */
kvf_pace kvf_pace_first(void);
/* A full piece that was quick makes the next ones larger, one that took long smaller. */
void kvf_pace_adapt(kvf_pace *pace, const kvf_piece *piece, uint64_t nanos);
/* Before a lane has the transfer: lets `lanes` of them work on it from the beginning, where there is enough for them. */
void kvf_transfer_share(kvf_transfer *transfer, uint32_t lanes);
/* Moves to the next row of the cursor. */
void kvf_transfer_advance(kvf_transfer *transfer);
void kvf_lists_free(const nixl_functions *api, kvf_lists *lists);

/* Cuts the next piece and creates its request: false when there is none (all cut, stopped, or creation failed, which
 * stops the transfer). A piece that was cut must land or break. */
bool kvf_transfer_cut(kvf_transfer *transfer, kvf_lists *lists, kvf_piece *piece);

/* ---- nixl_flight.c ------------------------------------------------------------------------------------------- */

/* Works on a transfer, as a lane with these lists, until nothing of it is left to cut or it stops. */
void kvf_transfer_work(kvf_transfer *transfer, kvf_lists *lists);

/* ---- nixl_transfer.c: account -------------------------------------------------------------------------------- */

/* With the transfer's mutex held: no further post, for this reason; the first one stays. */
void kvf_transfer_halt(kvf_transfer *transfer, int32_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* With the transfer's mutex held: looks at everything that forbids a further post, and halts for it. */
bool kvf_transfer_may_go_on(kvf_transfer *transfer);
/* With the transfer's mutex held: takes a piece off the list of those in flight. */
void kvf_transfer_unlist(kvf_transfer *transfer, const kvf_piece *piece);
/* Before the piece is posted. */
void kvf_transfer_posting(kvf_transfer *transfer, kvf_piece *piece);
/* The piece is complete; `nanos` is what it took. */
void kvf_transfer_land(kvf_transfer *transfer, kvf_piece *piece, uint64_t nanos, bool copied_by_post);
/* The piece failed in `function` with `answer`, or (function NULL) was released unfinished. */
void kvf_transfer_break(kvf_transfer *transfer, kvf_piece *piece, const char *function, nixl_status answer);
/* When the lane should release what is still in flight: a kvf_now_nanos value, or 0 for never. */
uint64_t kvf_transfer_give_up_at(const kvf_transfer *transfer);
/* Ends the job and frees the transfer, when the last lane has left. That one counts as returning from then on, until it
 * has the agent's mutex again. */
void kvf_transfer_settle(kvf_transfer *transfer);

#endif
