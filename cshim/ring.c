#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "status.h"

/* Blocks of closed contexts, oldest first, linked through reserved words, so that a late reader still finds its ring as it
 * was. A block is taken again only after so many others were closed. */
#define KEPT_WORD 8
#define LEAST_KEPT 16u
typedef struct kept_block {
    struct kept_block *next;
    size_t bytes;
} kept_block;

static pthread_mutex_t keeping = PTHREAD_MUTEX_INITIALIZER;
static kept_block *kept_first;
static kept_block **kept_end = &kept_first;
static uint32_t kept_count;

static size_t block_bytes(uint32_t slots) {
    size_t bytes = sizeof(uint32_t) * (KVF_RING_FIRST + 2 * (size_t)slots * KVF_RECORD_WORDS);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static uint32_t *take_kept(size_t bytes) {
    pthread_mutex_lock(&keeping);
    kept_block **at = &kept_first;
    while (*at && (*at)->bytes != bytes) at = &(*at)->next;
    kept_block *found = kept_count > LEAST_KEPT ? *at : NULL;
    if (found) {
        *at = found->next;
        if (!*at) kept_end = at;
        kept_count--;
    }
    pthread_mutex_unlock(&keeping);
    if (!found) return NULL;
    uint32_t *words = (uint32_t *)found - KEPT_WORD;
    memset(words, 0, bytes);
    return words;
}

int32_t kvf_ring_init(kvf_ring *ring, uint32_t slots) {
    size_t bytes = block_bytes(slots);
    void *block = take_kept(bytes);
    if (!block) {
        block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED) {
            kvf_refuse_errno(errno, "no memory for a ring of %u slots", slots);
            return KVF_E_NOMEM;
        }
    }
    *ring = (kvf_ring){.words = block, .bytes = bytes, .slots = slots, .socket = -1};
    pthread_mutex_init(&ring->bell, NULL);
    return KVF_OK;
}

void kvf_ring_destroy(kvf_ring *ring) {
    kvf_ring_silence(ring);
    pthread_mutex_destroy(&ring->bell);
    kept_block *block = (kept_block *)(ring->words + KEPT_WORD);
    block->bytes = ring->bytes;
    pthread_mutex_lock(&keeping);
    block->next = NULL;
    *kept_end = block;
    kept_end = &block->next;
    kept_count++;
    pthread_mutex_unlock(&keeping);
}

void kvf_ring_silence(kvf_ring *ring) {
    pthread_mutex_lock(&ring->bell);
    ring->silent = true;
    if (ring->socket >= 0) close(ring->socket);
    ring->socket = -1;
    pthread_mutex_unlock(&ring->bell);
}

uint32_t kvf_ring_load(const kvf_ring *ring, uint32_t word) {
    return __atomic_load_n(&ring->words[word], __ATOMIC_SEQ_CST);
}

void kvf_ring_store(kvf_ring *ring, uint32_t word, uint32_t value) {
    __atomic_store_n(&ring->words[word], value, __ATOMIC_SEQ_CST);
}

uint32_t kvf_ring_slot_word(const kvf_ring *ring, uint32_t slot) {
    return KVF_RING_FIRST + (ring->slots + slot) * KVF_RECORD_WORDS;
}

void kvf_ring_push(kvf_ring *ring, const kvf_completion *completion) {
    uint32_t head = kvf_ring_load(ring, KVF_RING_HEAD);
    uint32_t *record = ring->words + KVF_RING_FIRST + (size_t)(head & (ring->slots - 1)) * KVF_RECORD_WORDS;
    record[0] = completion->slot;
    record[1] = (uint32_t)completion->status;
    record[2] = completion->flags;
    record[3] = 0;
    memcpy(record + 4, &completion->value, sizeof(double));
    memcpy(record + 6, &completion->micros, sizeof(double));
    kvf_ring_store(ring, KVF_RING_HEAD, head + 1);
}

uint32_t kvf_ring_unread(const kvf_ring *ring) {
    return kvf_ring_load(ring, KVF_RING_HEAD) - kvf_ring_load(ring, KVF_RING_TAIL);
}

void kvf_ring_bell(kvf_ring *ring) {
    if (__atomic_exchange_n(&ring->words[KVF_RING_ARMED], 0, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&ring->bell);
    if (!ring->silent) {
        if (ring->callback) ring->callback();
        /* A full buffer is fine: whoever reads it is woken anyway. */
        if (ring->socket >= 0) send(ring->socket, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    pthread_mutex_unlock(&ring->bell);
}
