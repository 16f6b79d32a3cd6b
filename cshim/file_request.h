/*
 * file_request.h - one read or write of a file: rows that continue each other in it, over vectors of memory.
 */
#ifndef KVF_FILE_REQUEST_H
#define KVF_FILE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "file_copy.h"

#define KVF_FILE_VECTORS 256u

typedef struct kvf_file_request {
    kvf_file_part *part;
    uint64_t at;
    uint64_t bytes; /* of all vectors that are left */
    uint64_t all;
    uint32_t program;
    uint32_t first; /* vector */
    uint32_t count;
    uint32_t retries;
    int fd;
    struct iovec vectors[KVF_FILE_VECTORS];
} kvf_file_request;

/* Takes the next rows that continue each other in the file into one request. The caller holds the file's lock. */
void kvf_file_request_fill(kvf_file_request *request, kvf_file_part *part);
/* Takes what a request answered: a count of bytes or a negative errno. True when it is to be submitted again. The caller
 * does not hold the lock. */
bool kvf_file_request_again(kvf_file_request *request, int64_t result);

#endif
