/* Whose turn it is among the parts that wait for a file and those that are active. */
#include "file_lane.h"

#define MOST_ACTIVE 64u

static bool spent(const kvf_file_part *part) { return part->row == part->count; }

/* Moves waiting parts to the active ones. Buffered and direct requests are never in flight together: a page of the cache
 * could bring old bytes back over what went past it. Parts begin in the order in which they came. */
static void admit(kvf_file *file) {
    while (file->waiting_first && file->active_count < MOST_ACTIVE) {
        kvf_file_part *part = file->waiting_first;
        if (file->active && file->active->buffered != part->buffered) return;
        file->waiting_first = part->next;
        if (!part->next) file->waiting_last = NULL;
        if (file->active) {
            part->next = file->active->next;
            file->active->next = part;
        } else part->next = part;
        file->active = part; /* the newest is looked at last: its turn comes after `next` */
        file->active_count++;
    }
}

/* Takes a part that nothing is left to do for off the ring of active ones; its owner frees it without the lock. */
static void retire(kvf_file *file, kvf_file_part *part) {
    kvf_file_part *before = part;
    while (before->next != part) before = before->next;
    before->next = part->next;
    if (file->active == part) file->active = before == part ? NULL : before;
    file->active_count--;
}

kvf_file_part *kvf_file_queue_sweep(kvf_file *file) {
    kvf_file_part *gone = NULL, **at = &file->waiting_first, *last = NULL;
    while (*at) {
        kvf_file_part *part = *at;
        if (!kvf_file_part_stopped(part) && !file->closing) {
            last = part;
            at = &part->next;
            continue;
        }
        *at = part->next;
        part->next = gone;
        gone = part;
    }
    file->waiting_last = last;
    return gone;
}

bool kvf_file_queue_pick(kvf_file *file, kvf_file_request *request, kvf_file_part **gone) {
    for (;;) {
        admit(file);
        bool retired = false;
        for (uint32_t turns = file->active_count; turns > 0 && file->active; turns--) {
            kvf_file_part *part = file->active = file->active->next;
            bool over = spent(part) || kvf_file_part_stopped(part) || file->closing;
            if (over && part->in_flight == 0) {
                retire(file, part);
                part->next = *gone;
                *gone = part;
                retired = true;
                continue;
            }
            if (over) continue;
            kvf_file_request_fill(request, part);
            __atomic_store_n(&part->job->touched, 1, __ATOMIC_RELAXED);
            return true;
        }
        if (!retired || !file->waiting_first) return false; /* a place for one that waits? look again */
    }
}
