/*
 * cuda_device.h - opened devices: context, kernels, lanes of streams with their scratch, pools of events, the list of
 * what runs, and the thread that watches over it.
 */
#ifndef KVF_CUDA_DEVICE_H
#define KVF_CUDA_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "context.h"
#include "cuda_driver.h"
#include "cuda_nest.h"

#define KVF_CUDA_DEVICES 64

/* Directions that have lanes of their own. */
typedef enum kvf_direction { KVF_TO_DEVICE, KVF_TO_HOST, KVF_ON_DEVICE, KVF_DIRECTIONS } kvf_direction;
#define KVF_LANES 2 /* of each direction */

/* Pinned staging for offset lists, in segments that are reused once their last upload is over. */
#define KVF_LIST_SEGMENTS 8
#define KVF_LIST_BYTES (256u << 10)

/* Tasks whose end a thread may watch at once; more end through the driver's callback. */
#define KVF_FLAGS 1024
#define KVF_FLAG_WORDS 16 /* a cache line each */
#define KVF_METHODS 8
#define KVF_SIZES 6 /* below 4 MiB, 16 MiB, 64 MiB, 256 MiB, 1 GiB, and above */

#define KVF_SLABS 4
#define KVF_BATCH 4096

/* A list of pairs that lies in a lane's memory as long as nothing else is put there. */
typedef struct kvf_held_list {
    uint64_t number[2]; /* of the lists of ids that it was made of; 0: none lies there */
    uint64_t pairs;
    kvf_id_form form;
    uint32_t at, end; /* bytes from the beginning of the lane's memory, and of the segment */
    bool sent;        /* it lies in the device's memory as well, at the same place */
} kvf_held_list;

typedef struct kvf_lane {
    pthread_mutex_t lock; /* held while a job is submitted: the streams' order is one job after the other */
    bool ready;
    bool own;              /* not of a direction: held by one task until it is over, because the task waits for events
                              of others and must not hold up what comes after it */
    bool taken;            /* own ones, under the device's lock */
    struct kvf_lane *next; /* own ones */
    cu_stream work;       /* kernels and plain copies; high priority */
    cu_stream copy[2];    /* the large copies of slabs */
    cu_stream side;       /* completions, so that they hold nothing up */
    bool used_copy[2];    /* since the last join */
    cu_event join[3];     /* work, copy 0, copy 1 */

    uint32_t *list_host;  /* KVF_LIST_SEGMENTS x KVF_LIST_BYTES */
    cu_pointer list_device;
    cu_event list_free[KVF_LIST_SEGMENTS];
    uint32_t list_segment;
    uint32_t list_used;   /* bytes */
    kvf_held_list held;
    atomic_uint tasks;    /* submitted, and not known to be over */

    cu_pointer slab;      /* KVF_SLABS x slab_bytes, made at the first use */
    uint64_t slab_bytes;
    cu_event slab_ready[KVF_SLABS];
    cu_event slab_free[KVF_SLABS];
    uint32_t slab_next;

    cu_pointer batch_src[KVF_BATCH], batch_dst[KVF_BATCH];
    size_t batch_bytes[KVF_BATCH];
} kvf_lane;

/* What measurement decides; set at open, changed by benches only. */
typedef struct kvf_cuda_tuning {
    uint32_t link_ctas;    /* kernels across the host link */
    uint32_t link_threads;
    uint32_t device_ctas;  /* kernels within the device, for each multiprocessor */
    uint32_t device_threads;
    uint32_t slab_ctas;
    uint32_t slab_threads;
    uint64_t slab_chunk;   /* bytes of a slab */
    uint32_t slab_streams; /* 1 or 2 */
    uint32_t bulk_ctas;
    uint32_t bulk_warps;
    uint32_t bulk_stage;   /* bytes of a stage */
    uint32_t look;         /* watch flags; 0: the driver's callbacks only */
} kvf_cuda_tuning;

typedef enum kvf_kernel {
    KVF_KERNEL_ROWS_16,
    KVF_KERNEL_ROWS_16X2,
    KVF_KERNEL_ROWS_16X4,
    KVF_KERNEL_ROWS_N,
    KVF_KERNEL_PIECES_16,
    KVF_KERNEL_PIECES_N,
    KVF_KERNEL_SLEEP,
    KVF_KERNEL_FAULT,
    KVF_KERNEL_BULK,
    KVF_KERNEL_SLICES_16,
    KVF_KERNELS
} kvf_kernel;

struct kvf_task;

typedef struct kvf_cuda_device {
    int ordinal;
    cu_device handle;
    cu_context context;
    uint32_t opens;          /* under the table's lock */
    int sms, major, minor, shared;
    bool host_pointers;
    cu_module module;
    cu_function kernel[KVF_KERNELS]; /* NULL: not there */
    char code[16];
    kvf_cuda_tuning tuning;
    int priority_low, priority_high;
    kvf_lane lane[KVF_DIRECTIONS][KVF_LANES];
    kvf_lane *own;           /* lanes for tasks that wait */
    atomic_uint turn[KVF_DIRECTIONS];
    _Atomic(uint64_t) peers; /* ordinals whose memory this context reaches */

    uint32_t *flags;          /* pinned; streams write a task's number behind its copies */
    _Atomic(struct kvf_task *) looked; /* tasks whose flags are to be watched and that the looking thread has not taken */
    atomic_bool looks;                 /* it is awake and will see new ones */
    _Atomic(uint64_t) look_at;         /* asleep: until then */
    atomic_bool overslept;             /* asleep although a task wants it earlier: its submitter will wake it */

    pthread_mutex_t lock;    /* everything below */
    uint16_t free_flag[KVF_FLAGS];
    uint32_t free_flags;
    uint32_t numbers;        /* of the last task that has a flag */
    pthread_cond_t look;
    uint64_t expected[KVF_DIRECTIONS]; /* when what is queued in a direction should be over */
    double rate[KVF_DIRECTIONS][KVF_METHODS][KVF_SIZES]; /* bytes a nanosecond, as last seen of copies of about that size */
    cu_event *spare;         /* events without timing */
    uint32_t spares, spare_room;
    struct kvf_task *running;
    uint32_t runs;
    struct kvf_queue {       /* a direction's submit thread: one direction's long submission delays no other */
        struct kvf_cuda_device *device;
        struct kvf_task *first, *last;
        pthread_cond_t queued; /* the thread sleeps here */
        atomic_uint length;    /* of the list */
        uint64_t awake_until;  /* until then it does not: see kvf_queue_stir; guarded by the device's lock */
        pthread_t thread;
    } queue[KVF_DIRECTIONS];
    pthread_cond_t watched;  /* the watching thread sleeps here */
    bool watching;           /* the watching thread looks by itself now and then */
    bool stop;
    uint32_t threads;        /* that were started */
    pthread_t watcher, looker;
    atomic_bool poisoned;
    char cause[KVF_TEXT_BYTES];
} kvf_cuda_device;

/* Opens a device or counts one more opening. Blocks. */
int32_t kvf_cuda_device_open(int ordinal);
int32_t kvf_cuda_device_close(int ordinal);
/* The opened device, or NULL (text set): unknown, not opened, or poisoned. Valid until it is closed. */
kvf_cuda_device *kvf_cuda_device_get(int ordinal);
/* The opened device even when poisoned, or NULL without a text. */
kvf_cuda_device *kvf_cuda_device_peek(int ordinal);
/* Makes the device's context current on this thread; give it back with kvf_cuda_leave. */
int32_t kvf_cuda_enter(kvf_cuda_device *device);
void kvf_cuda_leave(void);
/* Lets `device` reach `peer`'s memory; both are open. */
int32_t kvf_cuda_device_reach(kvf_cuda_device *device, int peer);
/* Sets the text for a result, and poisons the device when the result is one that ends a context. */
int32_t kvf_cuda_failed(kvf_cuda_device *device, cu_result result, const char *what);

/* A lane for a task that waits; NULL (text set) when there is no memory. Given back when the task is freed. */
kvf_lane *kvf_lane_take_own(kvf_cuda_device *device);
/* Makes the stream for completions; the context is entered and the lane locked. */
int32_t kvf_lane_side(kvf_cuda_device *device, kvf_lane *lane);
/* Makes the streams and events of a lane; the context is entered and the lane locked. */
int32_t kvf_lane_prepare(kvf_cuda_device *device, kvf_lane *lane);
/* Makes its staging for lists. */
int32_t kvf_lane_lists(kvf_cuda_device *device, kvf_lane *lane);
/* Makes its slabs. */
/* The streams of slabs, which other copies do without. */
int32_t kvf_lane_copies(kvf_cuda_device *device, kvf_lane *lane);
int32_t kvf_lane_slabs(kvf_cuda_device *device, kvf_lane *lane);

/* Frees a lane's streams and scratch once they are idle; the context is entered. (All of these: cuda_lane.c) */
void kvf_lane_free(kvf_lane *lane);

/* An event from the device's pool, or NULL (text set). */
cu_event kvf_cuda_event_take(kvf_cuda_device *device);
void kvf_cuda_event_give(kvf_cuda_device *device, cu_event event);

/* ---- tasks: copies and waits that run -------------------------------------------------------------------------
 * A task is settled once, by the driver's callback or by whoever finds the device poisoned, and freed later by a thread
 * that may call the driver.
 */
typedef struct kvf_task {
    kvf_context *context;
    uint32_t slot;
    kvf_cuda_device *device;
    kvf_hop hop;
    uint32_t method, width, flags;
    cu_stream stream;       /* the caller's, or NULL */
    cu_event before;        /* recorded on it */
    cu_event foreign;       /* of kvf_cuda_event_job */
    double *waits;          /* pairs of program and event */
    uint32_t wait_count;
    cu_event done;
    cu_stream last, side;   /* of its lane: where its work ends, and where the driver's callback would go */
    bool recorded;          /* `done` was recorded; else it is when somebody needs it */
    kvf_lane *lane;         /* where it was submitted; one of its own before that, if it has one */
    int32_t status;         /* what the completion reports */
    uint32_t done_flags;
    double value;
    char text[KVF_TEXT_BYTES];
    uint32_t flag;          /* 1 + its index, or 0 */
    uint32_t number;        /* what the stream writes there */
    kvf_direction direction;
    uint64_t begun, lasts, expected, look_from, look_until; /* nanoseconds */
    bool seen;              /* its flag was looked at before it was written */
    bool queued;            /* its direction's submit thread submits it */
    bool wakes;             /* who submits it wakes the looking thread afterwards */
    struct kvf_task *look_next;
    struct kvf_mark *marks; /* one for each program that is watched */
    atomic_bool settled;
    atomic_bool over;       /* the callback has ended: the task may be freed */
    struct kvf_task *next;
} kvf_task;

typedef struct kvf_mark {
    kvf_task *task;
    uint32_t programs;
    double bytes;
} kvf_mark;

/* Gives a task a flag for its stream to write; false when there is none left. */
bool kvf_task_flag(kvf_task *task);
/* Has the task's flag watched from now on: it settles the task when it is written, or hands it to the driver's callback
 * when that takes unexpectedly long. */
void kvf_task_look(kvf_task *task);
/* Wakes the looking thread. */
void kvf_looker_wake(kvf_cuda_device *device);
/* Queues the driver's callback behind the task's event. The context is entered. */
int32_t kvf_task_call(kvf_task *task);
/* Wakes the submit thread of a long copy that has ended and keeps it awake for a moment: what follows such a copy mostly
 * follows at once, and waking takes a percent of its time. The task may be freed once it is settled: the queue is asked
 * for before; NULL for copies that are short or submitted otherwise. (cuda_task.c) */
struct kvf_queue *kvf_queue_to_stir(const kvf_task *task, uint64_t now);
void kvf_queue_stir(struct kvf_queue *queue);
/* Puts a task on the list of what runs. */
void kvf_task_started(kvf_task *task);
/* Ends its job, unless somebody did. */
void kvf_task_settle(kvf_task *task, int32_t status, uint32_t flags, double value, const char *text);
/* Whether a task waits for events of others. */
bool kvf_task_waits(const kvf_task *task);
/* Hands a task to its direction's submit thread, or to one of its own when it waits. */
int32_t kvf_task_queue(kvf_task *task);
/* Frees a task that never ran. */
void kvf_task_free(kvf_task *task);
/* Frees the tasks that are over. The context need not be entered. */
void kvf_cuda_collect(kvf_cuda_device *device);

/* Settles every task of a device whose context is of no use any more; the thread's text is the cause. */
void kvf_cuda_poison(kvf_cuda_device *device);
/* The device's threads: of a struct kvf_queue, and of the device. (cuda_task.c, cuda_look.c) */
void *kvf_cuda_submit_thread(void *queue);
void *kvf_cuda_watch_thread(void *device);
void *kvf_cuda_look_thread(void *device);

/* Which lanes and threads serve a hop. (cuda_copy.c) */
kvf_direction kvf_hop_direction(const kvf_hop *hop);

/* Submits a task: queues its copies on a lane and its completion behind them. On failure nothing will settle the task,
 * unless *touched says that some copies were queued: then it was started and will settle with the failure. With
 * `patient` false KVF_AGAIN says that it would have to wait: nothing was queued. (cuda_copy.c) */
int32_t kvf_task_submit(kvf_task *task, bool patient, bool *touched);
/* The same for a copy by a kernel, without any effect on the copy's memory; where a lane is free. (cuda_copy.c) */
int32_t kvf_task_rehearse(kvf_task *task);

/* The JSON text of kvf_cuda_info_job, from malloc; NULL (text set) when there is no memory. The driver is loaded.
 * (cuda_info.c) */
char *kvf_cuda_describe(size_t *length);

/* ---- known memory (cuda_known.c) ------------------------------------------------------------------------------- */

/* True when [low, high) is device memory that `device` reaches (kind 1), or pinned memory (kind 0). Asks the driver for
 * what is not known. The context is entered. */
bool kvf_cuda_knows(kvf_cuda_device *device, uint64_t low, uint64_t high, uint32_t kind);
/* The same for the extents of all bases of one side of a program; *low and *high are the first that is not known. */
bool kvf_cuda_knows_side(kvf_cuda_device *device, const kvf_program *program, int side, uint64_t *low, uint64_t *high);

#endif
