/* The parts of a hop, one for each file and direction: their rows, in the file's order. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "file_copy.h"

void kvf_file_part_free(kvf_file_part *part) {
    kvf_file *file = part->file;
    kvf_file_job *job = part->job;
    free(part->rows);
    free(part);
    if (file) kvf_file_release(file);
    kvf_file_job_leave(job);
}

void kvf_file_parts_free(kvf_file_part *parts) {
    while (parts) {
        kvf_file_part *next = parts->next;
        kvf_file_part_free(parts);
        parts = next;
    }
}

bool kvf_file_part_stopped(const kvf_file_part *part) {
    return __atomic_load_n(&part->job->stopped, __ATOMIC_ACQUIRE) != 0 || kvf_job_cancelled(part->job->ctx, part->job->slot);
}

static int by_offset(const void *left, const void *right) {
    uint64_t a = ((const kvf_file_row *)left)->at, b = ((const kvf_file_row *)right)->at;
    return a < b ? -1 : a > b;
}

static bool add_row(kvf_file_part *part, const kvf_file_row *row) {
    if (part->count > 0) {
        kvf_file_row *last = &part->rows[part->count - 1];
        if (last->program == row->program && last->at + last->bytes == row->at && last->memory + last->bytes == row->memory) {
            last->bytes += row->bytes;
            return true;
        }
    }
    if (part->count == part->room) {
        uint64_t room = part->room ? part->room * 2 : 64;
        kvf_file_row *more = realloc(part->rows, room * sizeof *more);
        if (!more) return false;
        part->rows = more;
        part->room = room;
    }
    part->rows[part->count++] = *row;
    return true;
}

/* Brings the rows of each program into the file's order and joins what continues on both sides. */
static void order_rows(kvf_file_part *part) {
    uint64_t kept = 0;
    for (uint64_t from = 0, to; from < part->count; from = to) {
        bool sorted = true;
        for (to = from + 1; to < part->count && part->rows[to].program == part->rows[from].program; to++)
            sorted = sorted && part->rows[to - 1].at <= part->rows[to].at;
        if (!sorted) qsort(part->rows + from, to - from, sizeof *part->rows, by_offset);
        uint64_t begin = kept;
        for (uint64_t k = from; k < to; k++) {
            kvf_file_row *last = kept > begin ? &part->rows[kept - 1] : NULL;
            const kvf_file_row row = part->rows[k];
            if (last && last->at + last->bytes == row.at && last->memory + last->bytes == row.memory) last->bytes += row.bytes;
            else part->rows[kept++] = row;
        }
    }
    part->count = kept;
    part->buffered = false;
    if (part->file->direct < 0) return;
    for (uint64_t k = 0; k < part->count && !part->buffered; k++)
        part->buffered = !kvf_file_aligned(part->file, part->rows[k].at, part->rows[k].memory, part->rows[k].bytes);
}

/* Is the file still what was opened? */
static int32_t check_file(const kvf_file_part *part) {
    struct stat facts;
    const kvf_file *file = part->file;
    if (fstat(file->descriptor, &facts) != 0) {
        kvf_refuse_errno(errno, "%s: could not be looked at", file->path);
        return KVF_E_IO;
    }
    if (file->named && facts.st_nlink == 0) return kvf_refuse(KVF_E_IO, "%s: was removed", file->path);
    if ((uint64_t)facts.st_size < file->bytes)
        return kvf_refuse(KVF_E_IO, "%s: was cut to %llu of %llu bytes", file->path, (unsigned long long)facts.st_size,
                          (unsigned long long)file->bytes);
    const kvf_file_row *last = part->count ? &part->rows[0] : NULL;
    for (uint64_t k = 0; last && k < part->count; k++)
        if (part->rows[k].at + part->rows[k].bytes > file->bytes)
            return kvf_refuse(KVF_E_INVALID, "%s: offset %llu is past its %llu bytes", file->path, (unsigned long long)part->rows[k].at,
                              (unsigned long long)file->bytes);
    return KVF_OK;
}

static kvf_file_part *part_of(kvf_file_job *job, kvf_file_part **parts, uint32_t number, bool writing) {
    for (kvf_file_part *part = *parts; part; part = part->next)
        if (part->file->number == number && part->writing == writing) return part;
    kvf_file *file = kvf_file_find(number);
    if (!file) return NULL;
    kvf_file_part *part = calloc(1, sizeof *part);
    if (!part) {
        kvf_file_release(file);
        kvf_set_error("no memory for a copy");
        return NULL;
    }
    part->job = job;
    part->file = file;
    part->writing = writing;
    part->next = *parts;
    *parts = part;
    __atomic_fetch_add(&job->parts, 1, __ATOMIC_RELAXED);
    return part;
}

int32_t kvf_file_parts_make(kvf_file_job *job, kvf_file_part **parts) {
    kvf_cursor cursor;
    kvf_row row;
    kvf_cursor_open(&cursor, &job->hop);
    uint32_t program = UINT32_MAX;
    kvf_file_part *part = NULL;
    bool writing = false;
    while (kvf_cursor_next(&cursor, &row)) {
        if (row.program != program) {
            const kvf_program *at = &job->hop.program[program = row.program];
            writing = at->dst_kind == 2;
            part = part_of(job, parts, writing ? at->dst_device : at->src_device, writing);
            if (!part) return KVF_E_INVALID;
        }
        const kvf_file_row wanted = {.at = writing ? row.dst : row.src,
                                     .memory = writing ? row.src : row.dst,
                                     .bytes = row.bytes,
                                     .program = row.program};
        if (!add_row(part, &wanted)) return kvf_refuse(KVF_E_NOMEM, "no memory for the rows of a copy");
    }
    for (part = *parts; part; part = part->next) {
        order_rows(part);
        int32_t status = check_file(part);
        if (status != KVF_OK) return status;
    }
    return KVF_OK;
}
