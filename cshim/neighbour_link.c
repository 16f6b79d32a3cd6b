/*
 * neighbour_link.c - messages with descriptors over a local socket of packets.
 *
 * A message is cut into packets; each begins with a word that says whether another one follows. Descriptors travel with
 * the first. Two kinds of packets are no part of a message: the file of a ring, and a knock.
 */
#include "neighbour.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "status.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define PACKET_BYTES ((size_t)64 << 10)
#define PACKET_MORE 1u
#define PACKET_KNOCK 2u
#define PACKET_RING 4u
_Static_assert(KVF_NEIGHBOUR_DESCRIPTORS == sizeof((kvf_incoming *)0)->descriptors / sizeof(int), "descriptors of a message");

/* ---- sending ------------------------------------------------------------------------------------------------- */

/* A descriptor of our own that goes to the other end: the same open file, or the file opened anew for reading only. */
static int descriptor_for_sending(int descriptor, bool read_only) {
    if (!read_only) return fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* An empty message with room for that many bytes. */
static kvf_outgoing *make_empty(size_t length) {
    kvf_outgoing *message = malloc(sizeof *message + length);
    if (!message) {
        kvf_refuse(KVF_E_NOMEM, "no memory for a message of %zu bytes", length);
        return NULL;
    }
    message->next = NULL;
    message->length = length;
    message->sent = 0;
    message->begun = false;
    message->ring = false;
    message->count = 0;
    return message;
}

kvf_outgoing *kvf_outgoing_make_ring(int descriptor) {
    kvf_outgoing *message = make_empty(0);
    if (!message) {
        close(descriptor);
        return NULL;
    }
    message->ring = true;
    message->descriptors[message->count++] = descriptor;
    return message;
}

kvf_outgoing *kvf_outgoing_make(const uint8_t *bytes, size_t length, const double *pairs, uint32_t count, int32_t *status) {
    kvf_outgoing *message = make_empty(length);
    if (!message) {
        *status = KVF_E_NOMEM;
        return NULL;
    }
    if (length) memcpy(message->bytes, bytes, length);
    for (uint32_t at = 0; at < count; at++) {
        int own = descriptor_for_sending((int)pairs[2 * (size_t)at], pairs[2 * (size_t)at + 1] != 0);
        if (own < 0) {
            *status = kvf_refuse_errno(errno, "descriptor %d cannot be handed over", (int)pairs[2 * (size_t)at]);
            kvf_outgoing_free(message);
            return NULL;
        }
        message->descriptors[message->count++] = own;
    }
    *status = KVF_OK;
    return message;
}

static void close_all(int *descriptors, uint32_t *count) {
    for (uint32_t at = 0; at < *count; at++) close(descriptors[at]);
    *count = 0;
}

void kvf_outgoing_free(kvf_outgoing *message) {
    if (!message) return;
    close_all(message->descriptors, &message->count);
    free(message);
}

kvf_link_state kvf_link_send(int socket, kvf_outgoing *message) {
    while (!message->begun || message->sent < message->length) {
        size_t part = message->length - message->sent;
        if (part > PACKET_BYTES) part = PACKET_BYTES;
        uint32_t word = message->ring ? PACKET_RING : message->sent + part < message->length ? PACKET_MORE : 0;
        struct iovec pieces[2] = {{.iov_base = &word, .iov_len = sizeof word}, {.iov_base = message->bytes + message->sent, .iov_len = part}};
        struct msghdr head = {.msg_iov = pieces, .msg_iovlen = part ? 2 : 1};
        union {
            struct cmsghdr align;
            char room[CMSG_SPACE(KVF_NEIGHBOUR_DESCRIPTORS * sizeof(int))];
        } control;
        if (!message->begun && message->count > 0) {
            memset(&control, 0, sizeof control);
            head.msg_control = control.room;
            head.msg_controllen = CMSG_SPACE(message->count * sizeof(int));
            struct cmsghdr *rights = CMSG_FIRSTHDR(&head);
            rights->cmsg_level = SOL_SOCKET;
            rights->cmsg_type = SCM_RIGHTS;
            rights->cmsg_len = CMSG_LEN(message->count * sizeof(int));
            memcpy(CMSG_DATA(rights), message->descriptors, message->count * sizeof(int));
        }
        if (sendmsg(socket, &head, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
            if (errno == EINTR) continue;
            /* ETOOMANYREFS: too many descriptors are on their way; some arrive, then there is room. */
            return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ETOOMANYREFS ? KVF_LINK_WAIT : KVF_LINK_BROKEN;
        }
        message->begun = true;
        message->sent += part;
        close_all(message->descriptors, &message->count);
    }
    return KVF_LINK_MORE;
}

kvf_link_state kvf_link_knock(int socket) {
    const uint32_t word = PACKET_KNOCK;
    ssize_t sent;
    do sent = send(socket, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    /* Where nothing fits any more, the other end has something to read, and looks at its rings as well. */
    return sent >= 0 || errno == EAGAIN || errno == EWOULDBLOCK ? KVF_LINK_MORE : KVF_LINK_BROKEN;
}

/* ---- receiving ----------------------------------------------------------------------------------------------- */

void kvf_incoming_clear(kvf_incoming *message) {
    close_all(message->descriptors, &message->count);
    free(message->bytes);
    message->bytes = NULL;
    message->length = message->room = 0;
}

/* Keeps the descriptors that came with a packet; false when there are too many. */
static bool keep_descriptors(struct msghdr *head, kvf_incoming *message) {
    bool fits = true;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(head); at; at = CMSG_NXTHDR(head, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t k = 0; k < count; k++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(at) + k * sizeof descriptor, sizeof descriptor);
            if (message->count < KVF_NEIGHBOUR_DESCRIPTORS) message->descriptors[message->count++] = descriptor;
            else {
                close(descriptor);
                fits = false;
            }
        }
    }
    return fits;
}

bool kvf_incoming_reserve(kvf_incoming *message, size_t more) {
    if (message->room - message->length >= more) return true;
    size_t room = message->length + more;
    if (message->room > 0) room += message->length; /* a message of many parts grows in large steps */
    uint8_t *bytes = realloc(message->bytes, room);
    if (!bytes) return false;
    message->bytes = bytes;
    message->room = room;
    return true;
}

/* What a packet is that began with this word and brought so many bytes besides, or -1. */
static int packet_of(uint32_t word, size_t bytes, const kvf_incoming *message, uint32_t descriptors) {
    switch (word) {
    case 0: return KVF_PACKET_LAST;
    case PACKET_MORE: return KVF_PACKET_PART;
    case PACKET_KNOCK: return bytes == 0 && descriptors == 0 ? KVF_PACKET_KNOCK : -1;
    case PACKET_RING: return bytes == 0 && descriptors == 1 && message->count == 1 && message->length == 0 ? KVF_PACKET_RING : -1;
    default: return -1;
    }
}

kvf_link_state kvf_link_receive(int socket, kvf_incoming *message, kvf_packet *packet, const char **why) {
    if (!kvf_incoming_reserve(message, PACKET_BYTES)) {
        *why = "there is no memory for what arrives";
        return KVF_LINK_BROKEN;
    }
    uint32_t word = 0;
    struct iovec pieces[2] = {{.iov_base = &word, .iov_len = sizeof word}, {.iov_base = message->bytes + message->length, .iov_len = PACKET_BYTES}};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(KVF_NEIGHBOUR_DESCRIPTORS * sizeof(int))];
    } control;
    struct msghdr head = {.msg_iov = pieces, .msg_iovlen = 2, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t got;
    /* An end that closed with something unread is told by an error once, before what it had said. */
    bool reset = false;
    do got = recvmsg(socket, &head, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !reset && (reset = true))));
    if (got < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return KVF_LINK_WAIT;
        *why = "the other end is gone";
        return KVF_LINK_BROKEN;
    }
    if (got == 0) {
        *why = "the other end closed";
        return KVF_LINK_BROKEN;
    }
    const uint32_t before = message->count;
    bool fits = keep_descriptors(&head, message);
    int what = got < (ssize_t)sizeof word ? -1 : packet_of(word, (size_t)got - sizeof word, message, message->count - before);
    if (!fits || (head.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || what < 0) {
        *why = "what arrived is no packet";
        return KVF_LINK_BROKEN;
    }
    message->length += (size_t)got - sizeof word;
    if (message->length > KVF_NEIGHBOUR_MESSAGE_BYTES) {
        *why = "what arrives is longer than any message";
        return KVF_LINK_BROKEN;
    }
    *packet = (kvf_packet)what;
    return KVF_LINK_MORE;
}

/* ---- watching ------------------------------------------------------------------------------------------------ */

int kvf_link_watch(int socket, pid_t process) {
    int watch = -1;
    socklen_t length = sizeof watch;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &watch, &length) == 0 && watch >= 0) {
        fcntl(watch, F_SETFD, FD_CLOEXEC);
        return watch;
    }
    /* Before Linux 6.5 by number: the socket was still open at both ends when it was asked for the number. */
    if (process <= 0) return -1;
    return (int)syscall(SYS_pidfd_open, process, 0);
}
