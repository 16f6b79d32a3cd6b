/*
 * neighbour.c - the neighbour object: its thread, its beginning and its end.
 *
 * The thread waits for everything that there is to see and turns it into events. While JavaScript is awake and awaits a
 * message it looks itself, and the thread sleeps on: nobody has to be woken then.
 */
#include "neighbour_object.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "thread.h"

#define PAUSE_MILLIS 50

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static kvf_neighbour *open_neighbours;

/* ---- what there is to see --------------------------------------------------------------------------------------- */

/* False when descriptors ran out: the one that waits would make the listener readable for ever. */
static bool accept_some(kvf_neighbour *self) {
    for (int turn = 0; turn < KVF_NEIGHBOUR_TURN; turn++) {
        int socket = accept4(self->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (socket < 0) {
            if (errno == EINTR || errno == ECONNABORTED) continue;
            return !(errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS);
        }
        struct ucred who = {.uid = (uid_t)-1};
        socklen_t length = sizeof who;
        if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 || who.uid != geteuid() || self->count >= KVF_NEIGHBOUR_CONNECTIONS) {
            if (who.uid != geteuid()) self->turned_away++;
            close(socket);
            continue;
        }
        kvf_connection *made = kvf_connection_add(self, socket, &who);
        if (!made) continue;
        uint32_t payload[3] = {(uint32_t)who.uid, (uint32_t)who.pid, made->process >= 0};
        made->announced = kvf_event_add(self, made, KVF_NEIGHBOUR_ACCEPTED, payload, sizeof payload, NULL, 0);
        if (!made->announced) kvf_connection_free(self, made);
    }
    return true;
}

static bool handle(kvf_neighbour *self, const struct epoll_event *event) {
    uint32_t about = (uint32_t)event->data.u64;
    kvf_connection *at = kvf_connection_find(self, (uint32_t)(event->data.u64 >> 32));
    if (about == KVF_ABOUT_LISTENER) return self->listener < 0 || self->paused || accept_some(self);
    if (about == KVF_ABOUT_PROCESS && at && at->process >= 0) {
        close(at->process);
        at->process = -1;
        if (at->socket >= 0) kvf_connection_receive(self, at, KVF_NEIGHBOUR_LAST); /* what it said before it went */
        kvf_event_add(self, at, KVF_NEIGHBOUR_EXITED, NULL, 0, NULL, 0);
    } else if (about == KVF_ABOUT_SOCKET && at && at->socket >= 0) {
        if (event->events & EPOLLOUT) kvf_connection_flush(self, at);
        if (at->socket >= 0 && (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))) kvf_connection_receive(self, at, KVF_NEIGHBOUR_TURN);
    }
    return true;
}

bool kvf_neighbour_see(kvf_neighbour *self) {
    struct epoll_event events[64];
    int count = epoll_wait(self->seen, events, 64, 0);
    bool room = true;
    for (int at = 0; at < count; at++) room &= handle(self, &events[at]);
    return room;
}

void kvf_neighbour_look_here(kvf_neighbour *self, bool here) {
    if (self->looking == here) return;
    struct epoll_event event = {.events = here ? 0 : EPOLLIN, .data.u64 = KVF_ABOUT_SEEN};
    if (epoll_ctl(self->sleep, EPOLL_CTL_MOD, self->seen, &event) != 0) return;
    self->looking = here;
    for (kvf_connection *at = self->connections; at; at = at->next)
        if (!here) kvf_connection_sleep(self, at);
        else if (at->in.memory) kvf_byte_ring_awake(&at->in);
}

void kvf_neighbour_wake(kvf_neighbour *self) {
    uint64_t one = 1;
    ssize_t written = write(self->wake, &one, sizeof one);
    (void)written; /* the counter can only be full when the thread was told before */
}

/* Lets nobody in for a while, or goes on. */
static void pause_listener(kvf_neighbour *self, bool paused) {
    if (self->listener < 0) return;
    kvf_neighbour_watch(self, self->listener, paused ? 0 : EPOLLIN, KVF_ABOUT_LISTENER, 0, EPOLL_CTL_MOD);
    self->paused = paused;
}

/* The neighbour thread: waits for connections, messages and ends of processes, and reports them. */
static void *run(void *argument) {
    kvf_neighbour *self = argument;
    struct epoll_event event;
    bool paused = false;
    while (__atomic_load_n(&self->stopping, __ATOMIC_ACQUIRE) == 0) {
        int count = epoll_wait(self->sleep, &event, 1, paused ? PAUSE_MILLIS : -1);
        if (count < 0 && errno != EINTR) break;
        if (count > 0 && event.data.u64 == KVF_ABOUT_WAKE) {
            uint64_t times;
            ssize_t woken = read(self->wake, &times, sizeof times);
            (void)woken; /* nobody else reads it */
        }
        pthread_mutex_lock(&self->lock);
        size_t before = self->event_bytes;
        kvf_neighbour_read_rings(self, false);
        if (paused) pause_listener(self, false);
        paused = !kvf_neighbour_see(self);
        if (paused) pause_listener(self, true);
        bool more = self->event_bytes > before;
        pthread_mutex_unlock(&self->lock);
        if (more) kvf_context_notify(self->ctx);
    }
    return NULL;
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

kvf_neighbour *kvf_neighbour_from(kvf_word word) {
    kvf_neighbour *wanted = (kvf_neighbour *)(uintptr_t)word;
    pthread_mutex_lock(&open_lock);
    kvf_neighbour *at = open_neighbours;
    while (at && at != wanted) at = at->next;
    pthread_mutex_unlock(&open_lock);
    if (!at) kvf_set_error("the neighbour object is closed or was never opened");
    return at;
}

static void withdraw(kvf_neighbour *gone) {
    pthread_mutex_lock(&open_lock);
    kvf_neighbour **at = &open_neighbours;
    while (*at && *at != gone) at = &(*at)->next;
    if (*at) *at = gone->next;
    pthread_mutex_unlock(&open_lock);
}

static void free_neighbour(kvf_neighbour *self) {
    while (self->connections) kvf_connection_free(self, self->connections);
    while (self->first_event) {
        kvf_event *event = self->first_event;
        self->first_event = event->next;
        kvf_event_free(event);
    }
    if (self->listener >= 0) close(self->listener);
    if (self->seen >= 0) close(self->seen);
    if (self->sleep >= 0) close(self->sleep);
    if (self->wake >= 0) close(self->wake);
    pthread_mutex_destroy(&self->lock);
    kvf_context_release(self->ctx);
    free(self);
}

static void stop(kvf_member *member) {
    kvf_neighbour *self = (kvf_neighbour *)member;
    __atomic_store_n(&self->stopping, 1, __ATOMIC_RELEASE);
    kvf_neighbour_wake(self);
}

static uint32_t join(kvf_member *member, uint64_t deadline) {
    kvf_neighbour *self = (kvf_neighbour *)member;
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
    kvf_neighbour *self = calloc(1, sizeof *self);
    if (!self) return kvf_refuse(KVF_E_NOMEM, "no memory for a neighbour object");
    self->member.stop = stop;
    self->member.join = join;
    self->listener = -1;
    self->ctx = ctx;
    kvf_context_retain(ctx);
    pthread_mutex_init(&self->lock, NULL);
    self->seen = epoll_create1(EPOLL_CLOEXEC);
    self->sleep = epoll_create1(EPOLL_CLOEXEC);
    self->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event seen = {.events = EPOLLIN, .data.u64 = KVF_ABOUT_SEEN}, woken = {.events = EPOLLIN, .data.u64 = KVF_ABOUT_WAKE};
    int32_t status = KVF_OK;
    if (self->seen < 0 || self->sleep < 0 || self->wake < 0 || epoll_ctl(self->sleep, EPOLL_CTL_ADD, self->seen, &seen) != 0 ||
        epoll_ctl(self->sleep, EPOLL_CTL_ADD, self->wake, &woken) != 0)
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
    kvf_neighbour *self = kvf_neighbour_from(word);
    if (!self) return KVF_E_CLOSED;
    if (!kvf_context_detach(self->ctx, &self->member)) return kvf_refuse(KVF_E_CLOSED, "the context is closing");
    stop(&self->member);
    join(&self->member, 0);
    return KVF_OK;
}
