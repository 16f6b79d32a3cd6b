#include "file_request.h"

#include <errno.h>
#include <sched.h>

#define REQUEST_BYTES ((uint64_t)1 << 20)
#define MOST_RETRIES 10000u

void kvf_file_request_fill(kvf_file_request *request, kvf_file_part *part) {
    const bool direct = part->file->direct >= 0 && !part->buffered;
    const kvf_file_row *row = &part->rows[part->row];
    request->part = part;
    request->at = row->at + part->inside;
    request->program = row->program;
    request->bytes = 0;
    request->first = request->count = request->retries = 0;
    request->fd = direct ? part->file->direct : part->file->descriptor;
    uint64_t memory_end = 0;
    while (part->row < part->count && request->bytes < REQUEST_BYTES) {
        row = &part->rows[part->row];
        uint64_t at = row->at + part->inside, memory = row->memory + part->inside, bytes = row->bytes - part->inside;
        if (at != request->at + request->bytes || row->program != request->program) break;
        if (bytes > REQUEST_BYTES - request->bytes) bytes = REQUEST_BYTES - request->bytes;
        if (request->count > 0 && memory == memory_end) request->vectors[request->count - 1].iov_len += bytes;
        else if (request->count < KVF_FILE_VECTORS)
            request->vectors[request->count++] = (struct iovec){(void *)(uintptr_t)memory, bytes};
        else break;
        memory_end = memory + bytes;
        request->bytes += bytes;
        part->inside += bytes;
        if (part->inside == row->bytes) {
            part->row++;
            part->inside = 0;
        }
    }
    request->all = request->bytes;
    part->in_flight++;
}

static int32_t fail_request(const kvf_file_request *request, int number, const char *why) {
    const kvf_file_part *part = request->part;
    const char *verb = part->writing ? "writing" : "reading";
    if (number)
        kvf_refuse_errno(number, "%s: %s %llu bytes at offset %llu", part->file->path, verb, (unsigned long long)request->bytes,
                         (unsigned long long)request->at);
    else
        kvf_set_error("%s: %s %llu bytes at offset %llu: %s", part->file->path, verb, (unsigned long long)request->bytes,
                      (unsigned long long)request->at, why);
    return KVF_E_IO;
}

bool kvf_file_request_again(kvf_file_request *request, int64_t result) {
    kvf_file_part *part = request->part;
    kvf_file *file = part->file;
    if (result == -EINTR || result == -EAGAIN) {
        if (++request->retries <= MOST_RETRIES) {
            if (result == -EAGAIN) sched_yield();
            return true;
        }
        kvf_file_job_fail(part->job, fail_request(request, (int)-result, ""));
        return false;
    }
    if (result == -EINVAL && request->fd != file->descriptor) {
        /* The file system takes none past the page cache after all, so no such request is in flight that succeeds. */
        request->fd = file->descriptor;
        return true;
    }
    if (result < 0) {
        kvf_file_job_fail(part->job, fail_request(request, (int)-result, ""));
        return false;
    }
    if (result == 0) {
        const char *why = part->writing ? "the device took none of them" : "the file ends before them";
        kvf_file_job_fail(part->job, fail_request(request, 0, why));
        return false;
    }
    uint64_t moved = (uint64_t)result;
    request->at += moved;
    request->bytes -= moved;
    if (request->bytes == 0) {
        kvf_file_job_moved(part->job, request->program, request->all);
        return false;
    }
    /* A short one: the rest goes on where it stopped. */
    while (moved >= request->vectors[request->first].iov_len) {
        moved -= request->vectors[request->first].iov_len;
        request->first++;
        request->count--;
    }
    struct iovec *vector = &request->vectors[request->first];
    vector->iov_base = (uint8_t *)vector->iov_base + moved;
    vector->iov_len -= moved;
    const uint64_t memory = (uint64_t)(uintptr_t)vector->iov_base;
    if (request->fd == file->direct && !kvf_file_aligned(file, request->at, memory, vector->iov_len))
        request->fd = file->descriptor;
    return !kvf_file_part_stopped(part);
}
