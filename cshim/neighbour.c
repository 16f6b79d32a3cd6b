/*
 * neighbour.c - the neighbour object: a listening socket, connections, and the processes at their other ends.
 *
 * One thread waits for all of them and turns what it sees into events. Everything is guarded by one lock; nothing under
 * it blocks.
 */
#include "neighbour.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "context.h"
#include "thread.h"

#define MOST_CONNECTIONS 4096u
/* What one connection may have waiting here; a well-behaved one stays far below. */
#define MOST_WAITING ((size_t)64 << 20)
/* Packets from one connection before the others have their turn. */
#define TURN 64
#define BACKLOG 256
#define PAUSE_MILLIS 50

/* What an epoll entry is about; the connection's number stands in the upper half. */
enum { ABOUT_STOP, ABOUT_LISTENER, ABOUT_SOCKET, ABOUT_PROCESS };

typedef struct connection {
    struct connection *next;
    uint32_t number;
    int socket;     /* -1 once it is closed */
    int process;    /* watches the other end's process; -1: not watched, or gone */
    bool announced; /* JavaScript knows of it */
    bool shutting;  /* closes when the queue is empty */
    bool waiting;   /* for the socket to take more */
    size_t unread;  /* bytes of events that were not taken */
    size_t queued;
    kvf_outgoing *first, *last;
    kvf_incoming incoming;
} connection;

typedef struct neighbour {
    kvf_member member; /* must be first */
    struct neighbour *next; /* in the list of open ones */
    kvf_context *ctx;
    pthread_t thread;
    int poll;
    int stop; /* eventfd */
    uint32_t stopping;
    pthread_mutex_t lock; /* guards all that follows */
    int listener;
    bool paused; /* descriptors ran out: nobody is let in for a while */
    uint32_t last_number;
    uint32_t count;
    connection *connections;
    kvf_event *first_event, *last_event;
    size_t event_bytes;
    uint64_t turned_away;
} neighbour;

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static neighbour *open_neighbours;

/* ---- events -------------------------------------------------------------------------------------------------- */

static size_t record_bytes(const kvf_event *event) { return 16 + 4 * (size_t)event->count + ((event->length + 3) & ~(size_t)3); }

static void free_event(kvf_event *event) {
    for (uint32_t at = 0; at < event->count; at++) close(event->descriptors[at]);
    free(event);
}

/* Appends an event; the descriptors become its own. False without memory for it: they are closed then. */
static bool add_event(neighbour *self, connection *from, uint32_t kind, const void *payload, size_t length, const int *descriptors, uint32_t count) {
    kvf_event *event = malloc(sizeof *event + length);
    if (!event) {
        for (uint32_t at = 0; at < count; at++) close(descriptors[at]);
        return false;
    }
    event->next = NULL;
    event->kind = kind;
    event->connection = from->number;
    event->count = count;
    if (count) memcpy(event->descriptors, descriptors, count * sizeof *descriptors);
    event->length = length;
    if (length) memcpy(event->payload, payload, length);
    if (self->last_event) self->last_event->next = event;
    else self->first_event = event;
    self->last_event = event;
    self->event_bytes += record_bytes(event);
    from->unread += record_bytes(event);
    return true;
}

/* ---- connections --------------------------------------------------------------------------------------------- */

static connection *find(neighbour *self, uint32_t number) {
    connection *at = self->connections;
    while (at && at->number != number) at = at->next;
    return at;
}

static int watch(neighbour *self, int what, uint32_t interest, uint32_t about, uint32_t number, int operation) {
    struct epoll_event event = {.events = interest, .data.u64 = (uint64_t)number << 32 | about};
    return epoll_ctl(self->poll, operation, what, &event);
}

static void drop_queue(connection *at) {
    while (at->first) {
        kvf_outgoing *message = at->first;
        at->first = message->next;
        kvf_outgoing_free(message);
    }
    at->last = NULL;
    at->queued = 0;
}

/* Closes the socket and, the first time, says why. */
static void break_off(neighbour *self, connection *at, const char *why) {
    if (at->socket < 0) return;
    close(at->socket); /* leaves the epoll set by itself: nobody else has the open socket */
    at->socket = -1;
    drop_queue(at);
    kvf_incoming_clear(&at->incoming);
    if (at->announced) add_event(self, at, KVF_NEIGHBOUR_CLOSED, why, strlen(why), NULL, 0);
}

static void free_connection(neighbour *self, connection *gone) {
    connection **at = &self->connections;
    while (*at != gone) at = &(*at)->next;
    *at = gone->next;
    self->count--;
    if (gone->socket >= 0) close(gone->socket);
    if (gone->process >= 0) close(gone->process);
    drop_queue(gone);
    kvf_incoming_clear(&gone->incoming);
    free(gone);
}

/* Adds a connected socket, which becomes its own; NULL with the text set, and the socket is closed. */
static connection *add_connection(neighbour *self, int socket, const struct ucred *who) {
    connection *made = calloc(1, sizeof *made);
    if (!made) {
        close(socket);
        kvf_set_error("no memory for a connection");
        return NULL;
    }
    made->number = ++self->last_number;
    made->socket = socket;
    made->process = kvf_link_watch(socket, who->pid);
    made->next = self->connections;
    self->connections = made;
    self->count++;
    if (watch(self, socket, EPOLLIN | EPOLLRDHUP, ABOUT_SOCKET, made->number, EPOLL_CTL_ADD) != 0 ||
        (made->process >= 0 && watch(self, made->process, EPOLLIN, ABOUT_PROCESS, made->number, EPOLL_CTL_ADD) != 0)) {
        kvf_refuse_errno(errno, "epoll");
        free_connection(self, made);
        return NULL;
    }
    return made;
}

/* Sends what is queued; true when the queue is empty afterwards. */
static void flush(neighbour *self, connection *at) {
    while (at->first) {
        kvf_outgoing *message = at->first;
        size_t before = message->sent;
        kvf_link_state state = kvf_link_send(at->socket, message);
        at->queued -= message->sent - before;
        if (state == KVF_LINK_BROKEN) {
            break_off(self, at, "the other end is gone");
            return;
        }
        if (state == KVF_LINK_WAIT) {
            if (!at->waiting) watch(self, at->socket, EPOLLIN | EPOLLRDHUP | EPOLLOUT, ABOUT_SOCKET, at->number, EPOLL_CTL_MOD);
            at->waiting = true;
            return;
        }
        at->first = message->next;
        if (!at->first) at->last = NULL;
        kvf_outgoing_free(message);
    }
    if (at->waiting) watch(self, at->socket, EPOLLIN | EPOLLRDHUP, ABOUT_SOCKET, at->number, EPOLL_CTL_MOD);
    at->waiting = false;
    if (at->shutting) break_off(self, at, "closed here");
}

/* ---- the thread ---------------------------------------------------------------------------------------------- */

static void accept_some(neighbour *self) {
    for (int turn = 0; turn < TURN; turn++) {
        int socket = accept4(self->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (socket < 0) {
            if (errno == EINTR || errno == ECONNABORTED) continue;
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                /* The one that waits would make the listener readable for ever. */
                watch(self, self->listener, 0, ABOUT_LISTENER, 0, EPOLL_CTL_MOD);
                self->paused = true;
            }
            return;
        }
        struct ucred who = {.uid = (uid_t)-1};
        socklen_t length = sizeof who;
        if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 || who.uid != geteuid() || self->count >= MOST_CONNECTIONS) {
            if (who.uid != geteuid()) self->turned_away++;
            close(socket);
            continue;
        }
        connection *made = add_connection(self, socket, &who);
        if (!made) continue;
        uint32_t payload[3] = {(uint32_t)who.uid, (uint32_t)who.pid, made->process >= 0};
        made->announced = add_event(self, made, KVF_NEIGHBOUR_ACCEPTED, payload, sizeof payload, NULL, 0);
        if (!made->announced) free_connection(self, made);
    }
}

static void receive_some(neighbour *self, connection *at, int turns) {
    for (int turn = 0; turn < turns && at->socket >= 0; turn++) {
        bool whole;
        const char *why = "";
        kvf_link_state state = kvf_link_receive(at->socket, &at->incoming, &whole, &why);
        if (state == KVF_LINK_WAIT) return;
        if (state == KVF_LINK_BROKEN) {
            break_off(self, at, why);
            return;
        }
        if (!whole) continue;
        kvf_incoming *message = &at->incoming;
        bool kept = at->unread + message->length <= MOST_WAITING &&
                    add_event(self, at, KVF_NEIGHBOUR_MESSAGE, message->bytes, message->length, message->descriptors, message->count);
        if (!kept) {
            break_off(self, at, "it sent more than this process takes");
            return;
        }
        message->count = 0; /* the event's own now */
        message->length = 0;
    }
}

static void handle(neighbour *self, const struct epoll_event *event) {
    uint32_t about = (uint32_t)event->data.u64;
    connection *at = find(self, (uint32_t)(event->data.u64 >> 32));
    if (about == ABOUT_LISTENER) {
        if (self->listener >= 0 && !self->paused) accept_some(self);
    } else if (about == ABOUT_PROCESS && at && at->process >= 0) {
        close(at->process);
        at->process = -1;
        if (at->socket >= 0) receive_some(self, at, INT_MAX); /* what it said before it went: no more than a socket holds */
        add_event(self, at, KVF_NEIGHBOUR_EXITED, NULL, 0, NULL, 0);
    } else if (about == ABOUT_SOCKET && at && at->socket >= 0) {
        if (event->events & EPOLLOUT) flush(self, at);
        if (at->socket >= 0 && (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))) receive_some(self, at, TURN);
    }
}

/* The neighbour thread: waits for connections, messages and ends of processes, and reports them. */
static void *run(void *argument) {
    neighbour *self = argument;
    struct epoll_event events[64];
    while (__atomic_load_n(&self->stopping, __ATOMIC_ACQUIRE) == 0) {
        pthread_mutex_lock(&self->lock);
        bool paused = self->paused;
        pthread_mutex_unlock(&self->lock);
        int count = epoll_wait(self->poll, events, 64, paused ? PAUSE_MILLIS : -1);
        if (count < 0 && errno != EINTR) break;
        pthread_mutex_lock(&self->lock);
        size_t before = self->event_bytes;
        for (int at = 0; at < count; at++) handle(self, &events[at]);
        if (paused && self->listener >= 0) {
            self->paused = false;
            watch(self, self->listener, EPOLLIN, ABOUT_LISTENER, 0, EPOLL_CTL_MOD);
        }
        bool more = self->event_bytes > before;
        pthread_mutex_unlock(&self->lock);
        if (more) kvf_context_notify(self->ctx);
    }
    return NULL;
}

/* ---- opening and closing ------------------------------------------------------------------------------------- */

static neighbour *neighbour_from(kvf_word word) {
    neighbour *wanted = (neighbour *)(uintptr_t)word;
    pthread_mutex_lock(&open_lock);
    neighbour *at = open_neighbours;
    while (at && at != wanted) at = at->next;
    pthread_mutex_unlock(&open_lock);
    if (!at) kvf_set_error("the neighbour object is closed or was never opened");
    return at;
}

static void withdraw(neighbour *gone) {
    pthread_mutex_lock(&open_lock);
    neighbour **at = &open_neighbours;
    while (*at && *at != gone) at = &(*at)->next;
    if (*at) *at = gone->next;
    pthread_mutex_unlock(&open_lock);
}

static void free_neighbour(neighbour *self) {
    while (self->connections) free_connection(self, self->connections);
    while (self->first_event) {
        kvf_event *event = self->first_event;
        self->first_event = event->next;
        free_event(event);
    }
    if (self->listener >= 0) close(self->listener);
    if (self->poll >= 0) close(self->poll);
    if (self->stop >= 0) close(self->stop);
    pthread_mutex_destroy(&self->lock);
    kvf_context_release(self->ctx);
    free(self);
}

static void stop(kvf_member *member) {
    neighbour *self = (neighbour *)member;
    __atomic_store_n(&self->stopping, 1, __ATOMIC_RELEASE);
    uint64_t one = 1;
    ssize_t written = write(self->stop, &one, sizeof one);
    (void)written; /* the counter can only be full when the thread was told before */
}

static uint32_t join(kvf_member *member, uint64_t deadline) {
    neighbour *self = (neighbour *)member;
    withdraw(self);
    /* The thread never blocks: it ends within its turn, whatever the deadline. */
    uint64_t grace = kvf_now_nanos() + 1000000000u;
    if (kvf_thread_join_by(self->thread, grace > deadline ? grace : deadline) != KVF_OK) return 1;
    free_neighbour(self);
    return 0;
}

int32_t kvf_neighbour_open(kvf_word context, double *out) {
    kvf_context *ctx = kvf_context_from(context);
    if (!ctx) return KVF_E_CLOSED;
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_open: no place for the result");
    neighbour *self = calloc(1, sizeof *self);
    if (!self) return kvf_refuse(KVF_E_NOMEM, "no memory for a neighbour object");
    self->member.stop = stop;
    self->member.join = join;
    self->listener = -1;
    self->ctx = ctx;
    kvf_context_retain(ctx);
    pthread_mutex_init(&self->lock, NULL);
    self->poll = epoll_create1(EPOLL_CLOEXEC);
    self->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int32_t status = KVF_OK;
    if (self->poll < 0 || self->stop < 0 || watch(self, self->stop, EPOLLIN, ABOUT_STOP, 0, EPOLL_CTL_ADD) != 0)
        status = kvf_refuse_errno(errno, "epoll");
    if (status == KVF_OK) status = kvf_thread_start(&self->thread, "kvf-neighbour", run, self);
    if (status != KVF_OK) {
        free_neighbour(self);
        return status;
    }
    pthread_mutex_lock(&open_lock);
    self->next = open_neighbours;
    open_neighbours = self;
    pthread_mutex_unlock(&open_lock);
    status = kvf_context_attach(ctx, &self->member);
    if (status != KVF_OK) {
        stop(&self->member);
        join(&self->member, 0);
        return status;
    }
    out[0] = (double)(uintptr_t)self;
    return KVF_OK;
}

int32_t kvf_neighbour_close(kvf_word word) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!kvf_context_detach(self->ctx, &self->member)) return kvf_refuse(KVF_E_CLOSED, "the context is closing");
    stop(&self->member);
    join(&self->member, 0);
    return KVF_OK;
}

/* ---- what JavaScript does ------------------------------------------------------------------------------------ */

/* The address of an abstract name: a zero byte, then the name, without an end. */
static int32_t address_of(const char *name, struct sockaddr_un *address, socklen_t *length) {
    size_t bytes = name ? strlen(name) : 0;
    if (bytes == 0 || bytes > sizeof address->sun_path - 1) return kvf_refuse(KVF_E_INVALID, "a rendezvous has a name of 1 to %zu bytes", sizeof address->sun_path - 1);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path + 1, name, bytes);
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + bytes);
    return KVF_OK;
}

int32_t kvf_neighbour_listen(kvf_word word, const char *name) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    struct sockaddr_un address;
    socklen_t length = 0;
    int32_t status = address_of(name, &address, &length);
    if (status != KVF_OK) return status;
    if (self->listener >= 0) return kvf_refuse(KVF_E_BUSY, "it listens already");
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) return kvf_refuse_errno(errno, "a local socket");
    if (bind(listener, (struct sockaddr *)&address, length) != 0 || listen(listener, BACKLOG) != 0) {
        status = kvf_refuse_errno(errno, "the rendezvous @%s", name);
        close(listener);
        return status;
    }
    pthread_mutex_lock(&self->lock);
    self->listener = listener;
    if (watch(self, listener, EPOLLIN, ABOUT_LISTENER, 0, EPOLL_CTL_ADD) != 0) {
        status = kvf_refuse_errno(errno, "epoll");
        close(listener);
        self->listener = -1;
    }
    pthread_mutex_unlock(&self->lock);
    return status;
}

int32_t kvf_neighbour_connect(kvf_word word, const char *name, double *out) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    struct sockaddr_un address;
    socklen_t length = 0;
    int32_t status = address_of(name, &address, &length);
    if (status != KVF_OK) return status;
    if (!out) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_connect: no place for the result");
    int end = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (end < 0) return kvf_refuse_errno(errno, "a local socket");
    if (connect(end, (struct sockaddr *)&address, length) != 0) {
        int why = errno;
        close(end);
        if (why == EAGAIN) {
            kvf_set_error("nobody accepts at @%s in time", name);
            return KVF_AGAIN;
        }
        kvf_refuse_errno(why, "nobody listens at @%s", name);
        return why == ECONNREFUSED ? KVF_E_PEER : KVF_E_SYSTEM;
    }
    struct ucred who;
    socklen_t bytes = sizeof who;
    if (getsockopt(end, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) {
        status = kvf_refuse_errno(errno, "the credentials of the listener at @%s", name);
        close(end);
        return status;
    }
    pthread_mutex_lock(&self->lock);
    connection *made = self->count < MOST_CONNECTIONS ? add_connection(self, end, &who) : NULL;
    if (made) {
        made->announced = true;
        out[0] = made->number;
        out[1] = who.uid;
        out[2] = who.pid;
        out[3] = made->process >= 0;
    } else if (self->count >= MOST_CONNECTIONS) {
        kvf_set_error("%u neighbours are connected, which is the most", MOST_CONNECTIONS);
        close(end);
    }
    pthread_mutex_unlock(&self->lock);
    return made ? KVF_OK : KVF_E_SYSTEM;
}

int32_t kvf_neighbour_send(kvf_word word, uint32_t number, const uint8_t *bytes, kvf_word length, const double *descriptors, uint32_t count, double *out) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!out || (!bytes && length) || (!descriptors && count) || length > KVF_NEIGHBOUR_MESSAGE_BYTES || count > KVF_NEIGHBOUR_DESCRIPTORS)
        return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_send: %llu bytes, %u descriptors", (unsigned long long)length, count);
    int32_t status;
    kvf_outgoing *message = kvf_outgoing_make(bytes, length, descriptors, count, &status);
    if (!message) return status;
    pthread_mutex_lock(&self->lock);
    connection *to = find(self, number);
    if (!to || to->socket < 0 || to->shutting) {
        status = kvf_refuse(KVF_E_PEER, "the connection is closed");
        kvf_outgoing_free(message);
    } else {
        if (to->last) to->last->next = message;
        else to->first = message;
        to->last = message;
        to->queued += length;
        if (!to->waiting) flush(self, to);
        out[0] = (double)to->queued;
        if (to->socket < 0) status = kvf_refuse(KVF_E_PEER, "the other end is gone");
    }
    bool noted = self->event_bytes > 0;
    pthread_mutex_unlock(&self->lock);
    if (status == KVF_E_PEER && noted) kvf_context_notify(self->ctx);
    return status;
}

int32_t kvf_neighbour_take(kvf_word word, uint8_t *bytes, kvf_word capacity, double *out) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!out || (!bytes && capacity)) return kvf_refuse(KVF_E_INVALID, "kvf_neighbour_take: a missing buffer");
    size_t written = 0;
    pthread_mutex_lock(&self->lock);
    while (self->first_event && written + record_bytes(self->first_event) <= capacity) {
        kvf_event *event = self->first_event;
        size_t size = record_bytes(event);
        uint32_t head[4] = {event->kind, event->connection, (uint32_t)event->length, event->count};
        uint8_t *to = bytes + written;
        memset(to + size - 4, 0, 4); /* padding */
        memcpy(to, head, sizeof head);
        memcpy(to + 16, event->descriptors, 4 * (size_t)event->count);
        memcpy(to + 16 + 4 * (size_t)event->count, event->payload, event->length);
        written += size;
        self->event_bytes -= size;
        connection *from = find(self, event->connection);
        if (from) from->unread -= size;
        self->first_event = event->next;
        if (!self->first_event) self->last_event = NULL;
        free(event);
    }
    out[0] = (double)written;
    out[1] = (double)self->event_bytes;
    out[2] = (double)self->turned_away;
    pthread_mutex_unlock(&self->lock);
    return written > 0 ? KVF_OK : KVF_AGAIN;
}

int32_t kvf_neighbour_shut(kvf_word word, uint32_t number) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    pthread_mutex_lock(&self->lock);
    connection *at = find(self, number);
    if (at && at->socket >= 0) {
        at->shutting = true;
        if (!at->first) break_off(self, at, "closed here");
    }
    pthread_mutex_unlock(&self->lock);
    kvf_context_notify(self->ctx);
    return at ? KVF_OK : kvf_refuse(KVF_E_PEER, "there is no connection %u", number);
}

int32_t kvf_neighbour_forget(kvf_word word, uint32_t number) {
    neighbour *self = neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    pthread_mutex_lock(&self->lock);
    connection *at = find(self, number);
    if (at) free_connection(self, at);
    pthread_mutex_unlock(&self->lock);
    return at ? KVF_OK : kvf_refuse(KVF_E_PEER, "there is no connection %u", number);
}
