/*
 * file.h - open files. Each has threads of its own that move its bytes (file_lane.h), so that a device that hangs holds up
 * nobody else.
 */
#ifndef KVF_FILE_H
#define KVF_FILE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "context.h"

/* A part of a hop: the rows that go to or come from one file. file_copy.h knows what is in it. */
typedef struct kvf_file_part kvf_file_part;

typedef struct kvf_file {
    kvf_member member; /* first: the context knows the file by it */
    struct kvf_file *next; /* in the table of open files */
    kvf_context *ctx;
    uint32_t number;
    uint32_t references; /* atomic: the table, each part, each thread */
    char *path;          /* for messages; of a file without a name: its directory and what it is */
    int descriptor;      /* buffered */
    int direct;          /* with O_DIRECT, or -1 */
    bool named;
    bool made; /* by this opening, under its name */
    bool no_ring;
    uint32_t memory_alignment; /* what O_DIRECT asks of addresses */
    uint32_t offset_alignment; /* and of offsets and lengths */
    uint32_t depth;            /* requests in flight at most */
    uint64_t bytes;

    pthread_mutex_t lock; /* guards all that follows */
    pthread_cond_t work;  /* for lanes of threads */
    pthread_cond_t ended; /* a thread ended */
    bool closing;
    uint32_t threads;
    bool ring;           /* the lane is one thread with an io_uring */
    int wake;            /* eventfd of such a lane, or -1 */
    kvf_file_part *waiting_first;
    kvf_file_part *waiting_last;
    kvf_file_part *active; /* a ring: whose turn is next */
    uint32_t active_count;
} kvf_file;

/* The open file of a number with one more reference, or NULL (text set). */
kvf_file *kvf_file_find(uint32_t number);
void kvf_file_release(kvf_file *file);

/* Finds or makes what the file's path names, as KVF_FILE_* flags say, for so many bytes, and sets its descriptors and what is
 * known of them. After a failure (text set) those that were opened are closed with the file's last reference. */
int32_t kvf_file_open(kvf_file *file, uint32_t flags, uint64_t bytes);

#endif
