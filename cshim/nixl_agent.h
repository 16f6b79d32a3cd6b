/*
 * nixl_agent.h - an agent of NIXL with the threads that use it. Shared by the nixl_*.c files only.
 *
 * Threads of an agent, each with one job:
 *   control   everything but transfers, one order after the other; looks for notifications; makes and destroys the agent
 *   lanes     take transfers from the agent's queue, post their pieces and poll them (nixl_lane.c, nixl_flight.c)
 *
 * NIXL's lock (sync mode RW) is shared by transfer calls and exclusive for most others, and a post may hold it for the
 * whole copy. Readers may overtake a waiting writer there, so lanes that overlap could keep the control thread out for
 * as long as they are busy: before a post they look at `gate` and let a control thread in that has waited too long.
 */
#ifndef KVF_NIXL_AGENT_H
#define KVF_NIXL_AGENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "context.h"
#include "kvf.h"
#include "nixl_api.h"
#include "nixl_inbox.h"

#define KVF_NIXL_MAX_LANES 64u
#define KVF_NIXL_MAX_BACKENDS 16u
/* Lanes given up at one time, for each agent. */
#define KVF_NIXL_MAX_ORPHANS 16u
/* How long pieces in flight may take to end after a close, and after their peer was forgotten. */
#define KVF_NIXL_CLOSE_GRACE ((uint64_t)300 * 1000000u)
#define KVF_NIXL_FORGET_GRACE ((uint64_t)300 * 1000000u)
/* Bound of kvf_nixl_agent_close_job. */
#define KVF_NIXL_CLOSE_BOUND ((uint64_t)2000 * 1000000u)

/* The largest piece that is posted at once; adapted towards 5 ms a piece. */
typedef struct kvf_pace {
    uint64_t bytes;
    uint32_t rows;
} kvf_pace;

/* A peer. References: one while it is listed, one for each transfer. Guarded by the agent's mutex but for the atomics. */
typedef struct kvf_peer {
    struct kvf_peer *next;
    uint32_t references;
    uint32_t transfers;            /* queued or running */
    kvf_pace pace[2];              /* by operation */
    bool copies;                   /* the last transfer's posts copied on the posting thread */
    atomic_bool leaving;           /* forgotten: nothing more is posted */
    _Atomic uint64_t give_up_at;   /* 0, or when pieces in flight are released unfinished */
    char name[];
} kvf_peer;

typedef struct kvf_agent kvf_agent;
typedef struct kvf_transfer kvf_transfer;
typedef struct kvf_nixl_lane kvf_nixl_lane;
typedef struct kvf_order kvf_order;

/* A backend, with an argument object that names it and the memory types (1 << type) that it takes. */
typedef struct kvf_backend {
    char name[64];
    nixl_backend handle;
    nixl_opt_args only;
    uint32_t memories;
} kvf_backend;

struct kvf_agent {
    kvf_member member; /* first: the context knows the agent by it */
    kvf_context *ctx;  /* retained */
    const nixl_functions *api;
    nixl_agent handle; /* written by the control thread before anything else can see the agent */
    char *name;
    kvf_word word;
    uint32_t progress_micros;
    uint32_t lane_count;
    uint32_t sharers; /* lanes that may work on one transfer */
    pthread_t control;
    atomic_uint references; /* threads, and calls that look at it */

    _Atomic uint64_t gate;      /* 0, or since when the control thread has been in an exclusive call */
    _Atomic uint64_t gate_given_up; /* the value of `gate` that lanes no longer wait for */
    atomic_bool eager;          /* somebody waits for a notification */
    atomic_bool closing;
    _Atomic uint64_t give_up_at; /* while closing: when pieces in flight are released unfinished */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t control_wakes;
    pthread_cond_t lane_wakes;
    pthread_cond_t ended; /* a transfer or a thread ended */
    kvf_order *first_order;
    kvf_order *last_order;
    kvf_transfer *first_waiting;
    kvf_transfer *last_waiting;
    kvf_transfer *running;
    kvf_nixl_lane *lanes; /* all that were not joined, orphans included */
    uint32_t live_lanes;
    uint32_t orphans;
    uint32_t idle_lanes;      /* that sleep */
    uint32_t returning_lanes; /* that have only to say that a transfer is done before they look at the queue */
    bool looking;             /* a lane is awake and looks for work */
    _Atomic uint32_t submitted; /* transfers so far; raised under the mutex, read without */
    kvf_peer *peers;

    kvf_backend backends[KVF_NIXL_MAX_BACKENDS]; /* the control thread's own */
    uint32_t backend_count;
    nixl_notif_map notifications;
    kvf_inbox inbox;
};

/* ---- nixl_agent.c: lifetime ---------------------------------------------------------------------------------- */

/* An agent by its word, with a reference; NULL (text set) when there is none that is open. */
kvf_agent *kvf_agent_acquire(kvf_word word);
/* The next open agent of a context at or after place *at, with a reference, and *at past it; NULL at the end. */
kvf_agent *kvf_agent_of_context(const kvf_context *ctx, uint32_t *at);
/* Drops a reference; the last one frees the memory. */
void kvf_agent_release(kvf_agent *agent);
/* Allocates an agent, begins the job and starts the control thread, which makes NIXL's agent and ends the job. */
int32_t kvf_agent_start(kvf_context *ctx, uint32_t slot, const char *name, uint32_t progress_micros, uint32_t lanes);
/* Begins a job that stops the agent, on a thread of its own. */
int32_t kvf_agent_stop_job(kvf_context *ctx, uint32_t slot, kvf_agent *agent);
/* Waits, as a lane, while the control thread has waited long for NIXL's exclusive lock (bounded). */
void kvf_agent_yield(kvf_agent *agent);
/* Brackets an exclusive call of the control thread. */
void kvf_agent_exclusive_begin(kvf_agent *agent);
void kvf_agent_exclusive_end(kvf_agent *agent);
/* With the agent's mutex held: the listed peer of that name, made if there is none, with a reference for the caller; NULL
 * without memory. */
kvf_peer *kvf_agent_peer(kvf_agent *agent, const char *name);
/* With the agent's mutex held: drops a reference. */
void kvf_agent_peer_drop(kvf_peer *peer);
/* Gives the agent its word; false when too many are open. Takes it back. */
bool kvf_agent_publish(kvf_agent *agent);
void kvf_agent_unpublish(kvf_agent *agent);
/* Tells all threads to end, without waiting. */
void kvf_agent_begin_stop(kvf_agent *agent);

/* ---- nixl_control.c: the control thread and its orders ---------------------------------------------------------- */

/* What the control thread is started with; it frees it. */
typedef struct kvf_agent_start_order {
    kvf_agent *agent;
    uint32_t slot;
} kvf_agent_start_order;

void *kvf_control_main(void *start_order);

typedef enum kvf_order_kind {
    KVF_ORDER_BACKEND,
    KVF_ORDER_REGISTER,
    KVF_ORDER_DEREGISTER,
    KVF_ORDER_METADATA,
    KVF_ORDER_LOAD_PEER,
    KVF_ORDER_FORGET_PEER,
    KVF_ORDER_NOTIFY
} kvf_order_kind;

/* One job for the control thread. Owns its copies; freed with kvf_order_free. */
struct kvf_order {
    kvf_order *next;
    kvf_order_kind kind;
    kvf_context *ctx;
    uint32_t slot;
    char *name;       /* backend or peer */
    uint8_t *bytes;   /* parameters, metadata or notification */
    size_t length;
    double *regions;  /* 3 words each */
    uint32_t count;
    uint32_t memory;
    bool partial;
};

/* An order with copies of what is given (NULL and 0 for nothing); NULL without memory. */
kvf_order *kvf_order_new(kvf_order_kind kind, const char *name, const void *bytes, size_t length, const double *regions,
                         uint32_t count);
void kvf_order_free(kvf_order *order);
/* Begins the job and hands the order over; the order is freed in any case. */
int32_t kvf_order_submit(kvf_agent *agent, kvf_context *ctx, uint32_t slot, kvf_order *order);
/* Fails all orders that wait, when the control thread will not come to them any more. */
void kvf_agent_refuse_orders(kvf_agent *agent);

/* ---- nixl_memory.c and nixl_peers.c: what carries out an order and ends its job, on the control thread ----------- */

void kvf_order_backend(kvf_agent *agent, const kvf_order *order);
void kvf_order_register(kvf_agent *agent, const kvf_order *order);
void kvf_order_deregister(kvf_agent *agent, const kvf_order *order);
void kvf_order_metadata(kvf_agent *agent, const kvf_order *order);
void kvf_order_load_peer(kvf_agent *agent, const kvf_order *order);
void kvf_order_forget_peer(kvf_agent *agent, const kvf_order *order);
void kvf_order_notify(kvf_agent *agent, const kvf_order *order);
/* Ends a job: NIXL's `function` answered `status` for `what`; or it is done. */
void kvf_order_refused(const kvf_order *order, nixl_status status, const char *function, const char *what);
void kvf_order_finished(const kvf_order *order, double value);
/* Frees the backends' argument objects and wrappers, after the agent was destroyed. */
void kvf_agent_free_backends(kvf_agent *agent);
/* Moves what NIXL has received to the inbox; true when there was something. */
bool kvf_agent_collect(kvf_agent *agent);
/* True when NIXL has dropped the peer or cannot reach it; asked after a failure, from any thread. With `ask`, sends the
 * peer a probe, which kvferry's receivers throw away. */
bool kvf_agent_peer_gone(kvf_agent *agent, const char *peer, bool ask);

/* ---- nixl_lane.c: threads that run transfers ------------------------------------------------------------------ */

/* With the agent's mutex held: starts one more lane. KVF_OK or KVF_E_SYSTEM / KVF_E_NOMEM (text set). */
int32_t kvf_nixl_lane_start(kvf_agent *agent);
/* With the agent's mutex held: gives up on a transfer of (ctx, slot), as kvf_nixl_abandon says. KVF_AGAIN: not here. */
int32_t kvf_nixl_lane_abandon(kvf_agent *agent, kvf_context *ctx, uint32_t slot);
/* With the agent's mutex held: wakes a lane for what waits, unless one comes for it by itself. */
void kvf_nixl_lane_summon(kvf_agent *agent);
/* Wakes an idle lane, which may help with a running transfer. */
void kvf_nixl_lane_invite(kvf_agent *agent);
/* Joins the lanes that end by the deadline; returns how many did not. */
uint32_t kvf_nixl_lanes_join(kvf_agent *agent, uint64_t deadline);

/* ---- nixl_transfer.c ------------------------------------------------------------------------------------------ */

/* What kvf_nixl_transfer_job was given. */
typedef struct kvf_transfer_request {
    const char *peer;
    uint32_t operation;
    const double *hop;
    uint64_t words;
    uint64_t piece_bytes;
    uint32_t piece_rows;
    const uint8_t *notification;
    uint32_t length;
    bool notify;
} kvf_transfer_request;

/* Checks, copies, begins the job and queues the transfer. */
int32_t kvf_transfer_submit(kvf_agent *agent, kvf_context *ctx, uint32_t slot, const kvf_transfer_request *request);
/* Ends transfers that no lane has taken yet, as never started: those to `peer`, or all when it is NULL. */
void kvf_transfers_refuse(kvf_agent *agent, const kvf_peer *peer, int32_t status, const char *reason);

#endif
