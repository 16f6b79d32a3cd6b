/*
 * file_copy.h - a copy between host memory and files: a job, which is a hop, is cut into parts, one for each file and
 * direction, and each file's lane runs them.
 */
#ifndef KVF_FILE_COPY_H
#define KVF_FILE_COPY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "file.h"
#include "hop.h"
#include "pool.h"

typedef struct kvf_file_row {
    uint64_t at; /* in the file */
    uint64_t memory;
    uint64_t bytes;
    uint32_t program;
} kvf_file_row;

typedef struct kvf_file_job {
    kvf_task task;
    kvf_context *ctx;
    uint32_t slot;
    kvf_hop hop;
    uint64_t *left;          /* bytes of each program that are not done, atomic */
    pthread_mutex_t order;   /* guards `complete`, `failed` and the slot's error text */
    uint32_t complete;       /* programs that are done, in order */
    int32_t failed;          /* KVF_OK, or why it fails */
    uint32_t stopped;        /* atomic: start nothing more */
    uint32_t touched;        /* atomic */
    uint32_t parts;          /* atomic: parts that have not ended, and one for whoever hands them out */
    uint64_t done;           /* atomic: bytes */
} kvf_file_job;

struct kvf_file_part {
    kvf_file_part *next;
    kvf_file_job *job;
    kvf_file *file;
    bool writing;
    bool buffered; /* some rows are not aligned: all of it goes through the page cache */
    kvf_file_row *rows;
    uint64_t count;
    uint64_t room;
    /* guarded by the file's lock */
    uint64_t row;    /* next row, and how much of it was started */
    uint64_t inside;
    uint32_t in_flight;
};

/* Keeps the first failure with the thread's error text as the slot's; nothing more is started. */
void kvf_file_job_fail(kvf_file_job *job, int32_t status);
/* So many bytes of a program are done. */
void kvf_file_job_moved(kvf_file_job *job, uint32_t program, uint64_t bytes);
/* A part has ended, or all are handed out; the last one to say so settles the slot and frees the job. */
void kvf_file_job_leave(kvf_file_job *job);

/* Cuts the job's hop into parts, a list linked by `next`, and looks whether their files are what was opened. On failure
 * the parts that were made are in the list all the same. */
int32_t kvf_file_parts_make(kvf_file_job *job, kvf_file_part **parts);
/* Frees a part, or a list of them, and with each a reference to its file and its share in the job. */
void kvf_file_part_free(kvf_file_part *part);
void kvf_file_parts_free(kvf_file_part *parts);
/* Whether its job was cancelled or has failed. */
bool kvf_file_part_stopped(const kvf_file_part *part);

/* Whether the device takes such a request past the page cache. */
static inline bool kvf_file_aligned(const kvf_file *file, uint64_t at, uint64_t memory, uint64_t bytes) {
    return at % file->offset_alignment == 0 && bytes % file->offset_alignment == 0 && memory % file->memory_alignment == 0;
}

#endif
