/*
 * nixl_inbox.c - the queue of received notifications.
 */
#include "nixl_inbox.h"

#include <stdlib.h>
#include <string.h>

#include "kvf.h"

struct kvf_record {
    kvf_record *next;
    size_t bytes;
    uint8_t data[];
};

void kvf_inbox_init(kvf_inbox *inbox) {
    memset(inbox, 0, sizeof *inbox);
    pthread_mutex_init(&inbox->mutex, NULL);
}

void kvf_inbox_destroy(kvf_inbox *inbox) {
    while (inbox->first) {
        kvf_record *record = inbox->first;
        inbox->first = record->next;
        free(record);
    }
    pthread_mutex_destroy(&inbox->mutex);
}

bool kvf_inbox_full(kvf_inbox *inbox) {
    pthread_mutex_lock(&inbox->mutex);
    bool full = inbox->bytes >= KVF_INBOX_BYTES;
    pthread_mutex_unlock(&inbox->mutex);
    return full;
}

void kvf_inbox_add(kvf_inbox *inbox, const char *name, const void *payload, size_t length) {
    size_t name_bytes = strlen(name);
    size_t bytes = 8 + name_bytes + length;
    size_t padded = (bytes + 3) & ~(size_t)3;
    kvf_record *record = NULL;
    if (name_bytes <= UINT32_MAX && length <= UINT32_MAX) record = malloc(sizeof *record + padded);
    if (record) {
        uint32_t head[2] = {(uint32_t)name_bytes, (uint32_t)length};
        record->next = NULL;
        record->bytes = padded;
        memcpy(record->data, head, 8);
        memcpy(record->data + 8, name, name_bytes);
        if (length > 0) memcpy(record->data + 8 + name_bytes, payload, length);
        memset(record->data + bytes, 0, padded - bytes);
    }
    pthread_mutex_lock(&inbox->mutex);
    if (!record) {
        inbox->dropped++;
    } else {
        if (inbox->last) inbox->last->next = record;
        else inbox->first = record;
        inbox->last = record;
        inbox->bytes += padded;
    }
    pthread_mutex_unlock(&inbox->mutex);
}

void kvf_inbox_move(kvf_inbox *inbox, kvf_inbox *from) {
    pthread_mutex_lock(&inbox->mutex);
    inbox->dropped += from->dropped;
    if (from->first) {
        if (inbox->last) inbox->last->next = from->first;
        else inbox->first = from->first;
        inbox->last = from->last;
        inbox->bytes += from->bytes;
    }
    pthread_mutex_unlock(&inbox->mutex);
    from->first = from->last = NULL;
    from->bytes = from->dropped = 0;
}

int32_t kvf_inbox_take(kvf_inbox *inbox, uint8_t *bytes, size_t capacity, double *out) {
    size_t written = 0;
    kvf_record *taken = NULL;
    pthread_mutex_lock(&inbox->mutex);
    while (inbox->first && inbox->first->bytes <= capacity - written) {
        kvf_record *record = inbox->first;
        memcpy(bytes + written, record->data, record->bytes);
        written += record->bytes;
        inbox->bytes -= record->bytes;
        inbox->first = record->next;
        if (!inbox->first) inbox->last = NULL;
        record->next = taken;
        taken = record;
    }
    out[0] = (double)written;
    out[1] = (double)inbox->dropped;
    out[2] = (double)inbox->bytes;
    pthread_mutex_unlock(&inbox->mutex);
    while (taken) {
        kvf_record *record = taken;
        taken = record->next;
        free(record);
    }
    return written > 0 ? KVF_OK : KVF_AGAIN;
}
