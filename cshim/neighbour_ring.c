#include "neighbour_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "status.h"

_Static_assert(offsetof(kvf_byte_ring_words, tail) == 128 && sizeof(kvf_byte_ring_words) <= KVF_BYTE_RING_FIRST, "words of a ring");
_Static_assert((KVF_BYTE_RING_BYTES & (KVF_BYTE_RING_BYTES - 1)) == 0, "bytes of a ring");

static kvf_byte_ring_words *words_of(const kvf_byte_ring *ring) { return (kvf_byte_ring_words *)(void *)ring->memory; }

static uint64_t padded(uint64_t bytes) { return (bytes + 7) & ~(uint64_t)7; }

/* Positions that the other end may give: from the one it gave before, in steps of 8, up to `most`. */
static bool is_position(const kvf_byte_ring *ring, uint64_t found, uint64_t most) {
    return found - ring->other <= most - ring->other && found % 8 == 0;
}

/* ---- making, opening, closing ---------------------------------------------------------------------------------- */

static int32_t map_ring(kvf_byte_ring *out, int descriptor) {
    void *memory = mmap(NULL, KVF_BYTE_RING_FILE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory == MAP_FAILED) return kvf_refuse_errno(errno, "a ring of %llu bytes", (unsigned long long)KVF_BYTE_RING_FILE);
    madvise(memory, KVF_BYTE_RING_FILE, MADV_DONTFORK);
    *out = (kvf_byte_ring){.memory = memory};
    return KVF_OK;
}

int32_t kvf_byte_ring_make(kvf_byte_ring *out, int *descriptor) {
    int made = memfd_create("kvf-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0) return kvf_refuse_errno(errno, "a file for a ring");
    int32_t status = KVF_OK;
    if (ftruncate(made, (off_t)KVF_BYTE_RING_FILE) != 0 || fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        status = kvf_refuse_errno(errno, "a file of %llu bytes for a ring", (unsigned long long)KVF_BYTE_RING_FILE);
    if (status == KVF_OK) status = map_ring(out, made);
    if (status == KVF_OK) *descriptor = made;
    else close(made);
    return status;
}

int32_t kvf_byte_ring_open(kvf_byte_ring *out, int descriptor) {
    int32_t status = kvf_memory_file_check(descriptor, KVF_BYTE_RING_FILE);
    return status == KVF_OK ? map_ring(out, descriptor) : status;
}

void kvf_byte_ring_close(kvf_byte_ring *ring) {
    if (ring->memory) munmap(ring->memory, KVF_BYTE_RING_FILE);
    ring->memory = NULL;
}

/* ---- bytes in the ring ----------------------------------------------------------------------------------------- */

static void copy_in(const kvf_byte_ring *ring, uint64_t position, const void *from, size_t length) {
    uint64_t at = position % KVF_BYTE_RING_BYTES, straight = KVF_BYTE_RING_BYTES - at;
    if (straight > length) straight = length;
    if (straight) memcpy(ring->memory + KVF_BYTE_RING_FIRST + at, from, straight);
    if (length > straight) memcpy(ring->memory + KVF_BYTE_RING_FIRST, (const uint8_t *)from + straight, length - straight);
}

static void copy_out(const kvf_byte_ring *ring, uint64_t position, void *to, size_t length) {
    uint64_t at = position % KVF_BYTE_RING_BYTES, straight = KVF_BYTE_RING_BYTES - at;
    if (straight > length) straight = length;
    if (straight) memcpy(to, ring->memory + KVF_BYTE_RING_FIRST + at, straight);
    if (length > straight) memcpy((uint8_t *)to + straight, ring->memory + KVF_BYTE_RING_FIRST, length - straight);
}

/* A record's head is read at once and once only. */
static uint64_t *head_at(const kvf_byte_ring *ring, uint64_t position) {
    return (uint64_t *)(void *)(ring->memory + KVF_BYTE_RING_FIRST + position % KVF_BYTE_RING_BYTES);
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static uint64_t room_of(const kvf_byte_ring *ring) { return KVF_BYTE_RING_BYTES - (ring->own - ring->other); }

/* Makes sure of `least` bytes of room. MORE, WAIT or BROKEN. */
static kvf_link_state await_room(kvf_byte_ring *ring, uint64_t least) {
    kvf_byte_ring_words *words = words_of(ring);
    for (int turn = 0;; turn++) {
        if (room_of(ring) >= least) {
            if (turn > 1) __atomic_store_n(&words->writer_waits, 0, __ATOMIC_SEQ_CST);
            return KVF_LINK_MORE;
        }
        if (turn == 2) return KVF_LINK_WAIT;
        /* Said before the last look, so that a reader that goes on in between sees it. */
        if (turn == 1) __atomic_store_n(&words->writer_waits, 1, __ATOMIC_SEQ_CST);
        uint64_t tail = __atomic_load_n(&words->tail, __ATOMIC_SEQ_CST);
        if (!is_position(ring, tail, ring->own)) return KVF_LINK_BROKEN;
        ring->other = tail;
    }
}

bool kvf_byte_ring_fits(const kvf_byte_ring *ring, size_t length) {
    uint64_t need = KVF_RECORD_HEAD + padded(length);
    if (need > KVF_BYTE_RING_BYTES) return false;
    if (room_of(ring) >= need) return true;
    uint64_t tail = __atomic_load_n(&words_of(ring)->tail, __ATOMIC_ACQUIRE);
    return is_position(ring, tail, ring->own) && KVF_BYTE_RING_BYTES - (ring->own - tail) >= need;
}

kvf_link_state kvf_byte_ring_write(kvf_byte_ring *ring, bool socket, const uint8_t *bytes, size_t length, size_t *sent) {
    for (;;) {
        const uint64_t left = length - *sent, need = KVF_RECORD_HEAD + padded(left), half = KVF_BYTE_RING_BYTES / 2;
        /* Whole where it is not large: no more parts than there must be. */
        kvf_link_state state = await_room(ring, need < half ? need : half);
        if (state != KVF_LINK_MORE) return state;
        const uint64_t room = room_of(ring), part = need <= room ? left : room - KVF_RECORD_HEAD;
        const uint64_t kind = socket ? KVF_RECORD_SOCKET : part < left ? KVF_RECORD_MORE : KVF_RECORD_LAST;
        __atomic_store_n(head_at(ring, ring->own), part | kind << 32, __ATOMIC_RELAXED);
        if (part) copy_in(ring, ring->own + KVF_RECORD_HEAD, bytes + *sent, part);
        ring->own += KVF_RECORD_HEAD + padded(part);
        *sent += part;
        __atomic_store_n(&words_of(ring)->head, ring->own, __ATOMIC_SEQ_CST);
        if (part == left) return KVF_LINK_MORE;
    }
}

static bool is_to_be_woken(uint32_t *waits) {
    return __atomic_load_n(waits, __ATOMIC_SEQ_CST) != 0 && __atomic_exchange_n(waits, 0, __ATOMIC_SEQ_CST) != 0;
}

bool kvf_byte_ring_wakes_reader(kvf_byte_ring *ring) { return is_to_be_woken(&words_of(ring)->reader_waits); }

/* ---- reading --------------------------------------------------------------------------------------------------- */

kvf_link_state kvf_byte_ring_read(kvf_byte_ring *ring, kvf_incoming *message, uint32_t *kind, const char **why) {
    if (ring->other == ring->own) {
        uint64_t head = __atomic_load_n(&words_of(ring)->head, __ATOMIC_ACQUIRE);
        if (!is_position(ring, head, ring->own + KVF_BYTE_RING_BYTES)) {
            *why = "what arrived is no record";
            return KVF_LINK_BROKEN;
        }
        ring->other = head;
        if (head == ring->own) return KVF_LINK_WAIT;
    }
    const uint64_t head = __atomic_load_n(head_at(ring, ring->own), __ATOMIC_RELAXED);
    const uint64_t length = head & UINT32_MAX;
    *kind = (uint32_t)(head >> 32);
    const bool empty = *kind == KVF_RECORD_SOCKET ? length == 0 : *kind != KVF_RECORD_MORE || length > 0;
    if (*kind > KVF_RECORD_SOCKET || !empty || KVF_RECORD_HEAD + padded(length) > ring->other - ring->own) {
        *why = "what arrived is no record";
        return KVF_LINK_BROKEN;
    }
    if (message->length + length > KVF_NEIGHBOUR_MESSAGE_BYTES) {
        *why = "what arrives is longer than any message";
        return KVF_LINK_BROKEN;
    }
    if (!kvf_incoming_reserve(message, length)) {
        *why = "there is no memory for what arrives";
        return KVF_LINK_BROKEN;
    }
    if (length) copy_out(ring, ring->own + KVF_RECORD_HEAD, message->bytes + message->length, length);
    message->length += length;
    ring->own += KVF_RECORD_HEAD + padded(length);
    return KVF_LINK_MORE;
}

bool kvf_byte_ring_release(kvf_byte_ring *ring) {
    if (ring->told == ring->own) return false;
    ring->told = ring->own;
    __atomic_store_n(&words_of(ring)->tail, ring->own, __ATOMIC_SEQ_CST);
    return is_to_be_woken(&words_of(ring)->writer_waits);
}

bool kvf_byte_ring_sleep(kvf_byte_ring *ring) {
    __atomic_store_n(&words_of(ring)->reader_waits, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&words_of(ring)->head, __ATOMIC_SEQ_CST) != ring->own;
}

void kvf_byte_ring_awake(kvf_byte_ring *ring) { __atomic_store_n(&words_of(ring)->reader_waits, 0, __ATOMIC_SEQ_CST); }
