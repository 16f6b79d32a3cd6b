/*
 * nixl_capi.c - a stand-in for libnixl_capi.so: the functions that kvferry uses, over the memory of one process.
 *
 * Several agents of one process find each other by name; metadata name an agent and its regions; a transfer is a copy.
 * It exists to make things fail on demand and to run under sanitizers. It is not NIXL, and nothing that it does is a
 * result about NIXL. Backends of the names GDS and GDS_MT take files too, by plain reads and writes, and only descriptors
 * that go past the page cache, which stay open until they are deregistered. It keeps NIXL's rules where breaking them would be fatal or wrong: calls that NIXL runs under its
 * exclusive lock exclude transfers here too, and asking for the status of a released request ends the process.
 *
 * standin_control(command) answers a number (negative: not understood). NIXL_STANDIN holds commands separated by ';' that
 * are carried out when the library is loaded. Functions are named without the prefix nixl_capi_.
 *
 *   fail FUNCTION N CODE    the N-th call from now on answers CODE (N 0: every call)
 *   delay FUNCTION MICROS   every call takes so much longer
 *   block FUNCTION [N]      calls wait inside the library, but for the next N ...
 *   unblock FUNCTION        ... until here
 *   blocked FUNCTION        how many wait
 *   calls FUNCTION          how many calls there were
 *   lose AGENT              the agent is dead: posts, pending requests and notifications to it answer -2
 *   find AGENT              it is alive again
 *   mode inline             posts copy and are complete
 *   mode pending N          posts are in progress; the N-th status call copies and completes
 *   mode stuck              posts stay in progress for ever
 *   disorder on | off       notifications that are fetched together come with the later half first, as where two threads
 *                           of NIXL received them
 *   flip N OFFSET           the N-th copy from now on changes the byte at OFFSET of all that it moves; shorter ones do
 *                           not count
 *   short N BYTES CODE      the N-th copy from now on moves no more than so many bytes, and answers CODE (0: as if it were
 *                           complete)
 *   live                    requests, lists, maps, agents and other objects that were not destroyed
 *   reset                   as when it was loaded (objects stay)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "nixl_api.h"

/* KVF_MEM_FILE of kvf.h. */
#define MEMORY_FILE 4u

#define EXPORT __attribute__((visibility("default")))

EXPORT long standin_control(const char *command);

/* ---- objects ---------------------------------------------------------------------------------------------------- */

typedef struct region {
    uint64_t address;
    uint64_t bytes;
    uint64_t device;
    uint32_t memory;
} region;

typedef struct regions {
    region *items;
    size_t count;
} regions;

typedef struct peer {
    struct peer *next;
    regions known;
    uint32_t turn; /* rises when it is loaded anew: requests of an earlier turn are stale */
    char name[];
} peer;

typedef struct note {
    struct note *next;
    size_t bytes;
    char *from;
    uint8_t data[];
} note;

struct nixl_agent_s {
    struct nixl_agent_s *next; /* guarded by the table's mutex */
    pthread_rwlock_t lock;
    regions own;
    peer *peers;
    note *first; /* guarded by the table's mutex */
    note *last;
    bool has_backend;
    char *name;
};

struct nixl_params_s {
    int unused;
};

struct nixl_mem_list_s {
    bool files;
};

struct nixl_backend_s {
    bool files;
};

struct nixl_opt_args_s {
    int unused;
};

struct nixl_reg_dlist_s {
    uint32_t memory;
    regions list;
};

struct nixl_xfer_dlist_s {
    uint32_t memory;
    regions list;
};

struct nixl_xfer_req_s {
    struct nixl_xfer_req_s *next; /* in the graveyard */
    uint32_t state;
    uint32_t operation;
    uint32_t polls;
    uint32_t turn;
    regions local;
    regions remote;
    char *peer;
};

enum { FRESH = 0x11, POSTED, COMPLETE, RELEASED, DESTROYED };

struct nixl_notif_map_s {
    note *notes;
};

/* ---- faults ----------------------------------------------------------------------------------------------------- */

#define NAME(name, parameters) F_##name,
enum function { NIXL_NEEDED(NAME) NIXL_OPTIONAL(NAME) FUNCTIONS };
#undef NAME

static const char *const function_names[] = {
#define NAME(name, parameters) #name,
    NIXL_NEEDED(NAME) NIXL_OPTIONAL(NAME)
#undef NAME
};

typedef struct fault {
    uint64_t calls;
    uint64_t fail_at; /* 0 never */
    bool fail_always;
    int32_t code;
    uint64_t delay_micros;
    bool block;
    uint64_t block_after; /* calls that went before */
    uint32_t blocked;
} fault;

static pthread_mutex_t table_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unblocked = PTHREAD_COND_INITIALIZER;
static fault faults[FUNCTIONS];
static struct nixl_agent_s *agents;
static struct nixl_xfer_req_s *graveyard;
static char lost[8][128];
static enum { INLINE, PENDING, STUCK } mode;
static uint32_t pending_polls;
static bool disorder;
static uint32_t turns;
static long live;
static uint64_t flip_in; /* copies until the one that is changed; 0 for none */
static uint64_t flip_offset;
static uint64_t short_in; /* copies until the one that is cut short; 0 for none */
static uint64_t short_bytes;
static nixl_status short_code;

static void count_live(long change) {
    pthread_mutex_lock(&table_mutex);
    live += change;
    pthread_mutex_unlock(&table_mutex);
}

/* What every function begins with: 0, or the status that it is told to answer. */
static nixl_status enter(enum function which) {
    pthread_mutex_lock(&table_mutex);
    fault *f = &faults[which];
    uint64_t call = ++f->calls;
    nixl_status code = f->fail_always || (f->fail_at != 0 && f->calls == f->fail_at) ? f->code : NIXL_SUCCESS;
    uint64_t delay = f->delay_micros;
    f->blocked++;
    while (f->block && call > f->block_after) pthread_cond_wait(&unblocked, &table_mutex);
    f->blocked--;
    pthread_mutex_unlock(&table_mutex);
    if (delay > 0) nanosleep(&(struct timespec){(time_t)(delay / 1000000), (long)(delay % 1000000 * 1000)}, NULL);
    return code;
}

#define ENTER(name)                                                                                                    \
    do {                                                                                                               \
        nixl_status injected = enter(F_##name);                                                                        \
        if (injected != NIXL_SUCCESS) return injected;                                                                 \
    } while (0)

/* With the table's mutex held. */
static bool is_lost(const char *name) {
    for (size_t i = 0; i < sizeof lost / sizeof lost[0]; i++) {
        if (lost[i][0] && strcmp(lost[i], name) == 0) return true;
    }
    return false;
}

static struct nixl_agent_s *find_agent(const char *name) {
    for (struct nixl_agent_s *agent = agents; agent; agent = agent->next) {
        if (strcmp(agent->name, name) == 0) return agent;
    }
    return NULL;
}

static bool reachable(const char *name) {
    pthread_mutex_lock(&table_mutex);
    bool there = find_agent(name) != NULL && !is_lost(name);
    pthread_mutex_unlock(&table_mutex);
    return there;
}

static long function_of(const char *name) {
    for (long i = 0; i < FUNCTIONS; i++) {
        if (strcmp(function_names[i], name) == 0) return i;
    }
    return -1;
}

static long control_function(const char *verb, const char *name, uint64_t a, long b, int given) {
    long which = function_of(name);
    if (which < 0) return -1;
    fault *f = &faults[which];
    long answer = 0;
    if (strcmp(verb, "fail") == 0 && given == 4) {
        f->fail_always = a == 0;
        f->fail_at = a == 0 ? 0 : f->calls + a;
        f->code = (int32_t)b;
    } else if (strcmp(verb, "delay") == 0 && given >= 3) {
        f->delay_micros = a;
    } else if (strcmp(verb, "block") == 0) {
        f->block = true;
        f->block_after = f->calls + (given >= 3 ? a : 0);
    } else if (strcmp(verb, "unblock") == 0) {
        f->block = false;
        pthread_cond_broadcast(&unblocked);
    } else if (strcmp(verb, "blocked") == 0) {
        answer = f->block ? (long)f->blocked : 0;
    } else if (strcmp(verb, "calls") == 0) {
        answer = (long)f->calls;
    } else {
        answer = -1;
    }
    return answer;
}

static long control_locked(const char *command) {
    char verb[32] = "", name[128] = "";
    unsigned long long a = 0;
    long b = 0;
    int given = sscanf(command, "%31s %127s %llu %ld", verb, name, &a, &b);
    if (strcmp(verb, "reset") == 0) {
        for (long i = 0; i < FUNCTIONS; i++) {
            uint32_t blocked = faults[i].blocked;
            faults[i] = (fault){.blocked = blocked};
        }
        memset(lost, 0, sizeof lost);
        mode = INLINE;
        disorder = false;
        flip_in = short_in = 0;
        pthread_cond_broadcast(&unblocked);
        return 0;
    }
    if (strcmp(verb, "live") == 0) return live;
    if (strcmp(verb, "disorder") == 0) {
        disorder = strcmp(name, "on") == 0;
        return 0;
    }
    if (strcmp(verb, "lose") == 0 || strcmp(verb, "find") == 0) {
        for (size_t i = 0; i < sizeof lost / sizeof lost[0]; i++) {
            if (strcmp(lost[i], name) == 0) lost[i][0] = 0;
        }
        for (size_t i = 0; i < sizeof lost / sizeof lost[0] && verb[0] == 'l'; i++) {
            if (lost[i][0]) continue;
            memcpy(lost[i], name, sizeof name);
            return 0;
        }
        return verb[0] == 'l' ? -1 : 0;
    }
    if (strcmp(verb, "flip") == 0) {
        flip_in = strtoull(name, NULL, 10);
        flip_offset = a;
        return given >= 3 ? 0 : -1;
    }
    if (strcmp(verb, "short") == 0) {
        short_in = strtoull(name, NULL, 10);
        short_bytes = a;
        short_code = (nixl_status)b;
        return given == 4 ? 0 : -1;
    }
    if (strcmp(verb, "mode") == 0) {
        pending_polls = given >= 3 ? (uint32_t)a : 1;
        mode = strcmp(name, "pending") == 0 ? PENDING : strcmp(name, "stuck") == 0 ? STUCK : INLINE;
        return 0;
    }
    return control_function(verb, name, a, b, given);
}

long standin_control(const char *command) {
    pthread_mutex_lock(&table_mutex);
    long answer = control_locked(command);
    pthread_mutex_unlock(&table_mutex);
    return answer;
}

__attribute__((constructor)) static void read_environment(void) {
    const char *at = getenv("NIXL_STANDIN");
    while (at && *at) {
        char command[256];
        size_t length = strcspn(at, ";");
        if (length < sizeof command) {
            memcpy(command, at, length);
            command[length] = 0;
            standin_control(command);
        }
        at += length + (at[length] == ';');
    }
}

/* ---- regions ---------------------------------------------------------------------------------------------------- */

static nixl_status add_region(regions *list, region one) {
    if ((list->count & (list->count - 1)) == 0) {
        size_t room = list->count ? list->count * 2 : 1;
        region *items = realloc(list->items, room * sizeof *items);
        if (!items) return NIXL_BACKEND_ERROR;
        list->items = items;
    }
    list->items[list->count++] = one;
    return NIXL_SUCCESS;
}

static regions copy_regions(const regions *from) {
    regions to = {NULL, 0};
    for (size_t i = 0; i < from->count; i++) add_region(&to, from->items[i]);
    return to;
}

static void free_regions(regions *list) {
    free(list->items);
    *list = (regions){NULL, 0};
}

/* True when one registered region holds all of it. */
static bool holds(const regions *known, const region *one) {
    for (size_t i = 0; i < known->count; i++) {
        const region *k = &known->items[i];
        if (k->memory == one->memory && k->device == one->device && one->address >= k->address &&
            one->address + one->bytes <= k->address + k->bytes) {
            return true;
        }
    }
    return false;
}

static bool remove_region(regions *known, const region *one) {
    for (size_t i = 0; i < known->count; i++) {
        if (known->items[i].address != one->address || known->items[i].bytes != one->bytes) continue;
        if (known->items[i].memory != one->memory) continue;
        /* Keeps the power-of-two growth rule of add_region: the array is copied without the one. */
        regions rest = {NULL, 0};
        for (size_t k = 0; k < known->count; k++) {
            if (k != i) add_region(&rest, known->items[k]);
        }
        free(known->items);
        *known = rest;
        return true;
    }
    return false;
}

/* ---- agents ----------------------------------------------------------------------------------------------------- */

#define FUNCTION(name, ...) EXPORT nixl_status nixl_capi_##name(__VA_ARGS__); nixl_status nixl_capi_##name(__VA_ARGS__)

FUNCTION(create_configured_agent, const char *name, const nixl_agent_config *config, nixl_agent *out) {
    ENTER(create_configured_agent);
    if (!name || !name[0] || !config || config->sync != NIXL_SYNC_RW) return NIXL_INVALID_PARAM;
    struct nixl_agent_s *agent = calloc(1, sizeof *agent);
    if (!agent) return NIXL_BACKEND_ERROR;
    agent->name = strdup(name);
    pthread_rwlock_init(&agent->lock, NULL);
    pthread_mutex_lock(&table_mutex);
    agent->next = agents;
    agents = agent;
    live++;
    pthread_mutex_unlock(&table_mutex);
    *out = agent;
    return NIXL_SUCCESS;
}

static void free_notes(note *first) {
    while (first) {
        note *one = first;
        first = one->next;
        free(one->from);
        free(one);
    }
}

static void free_peer(peer *p) {
    free_regions(&p->known);
    free(p);
}

FUNCTION(destroy_agent, nixl_agent agent) {
    ENTER(destroy_agent);
    pthread_mutex_lock(&table_mutex);
    for (struct nixl_agent_s **at = &agents; *at; at = &(*at)->next) {
        if (*at != agent) continue;
        *at = agent->next;
        break;
    }
    live--;
    note *notes = agent->first;
    pthread_mutex_unlock(&table_mutex);
    free_notes(notes);
    while (agent->peers) {
        peer *p = agent->peers;
        agent->peers = p->next;
        free_peer(p);
    }
    free_regions(&agent->own);
    pthread_rwlock_destroy(&agent->lock);
    free(agent->name);
    free(agent);
    return NIXL_SUCCESS;
}

#define MADE(type)                                                                                                     \
    *out = calloc(1, sizeof **out);                                                                                    \
    if (!*out) return NIXL_BACKEND_ERROR;                                                                              \
    count_live(1);                                                                                                     \
    return NIXL_SUCCESS

#define UNMADE(object)                                                                                                 \
    free(object);                                                                                                      \
    count_live(-1);                                                                                                    \
    return NIXL_SUCCESS

FUNCTION(create_params, nixl_params *out) {
    ENTER(create_params);
    MADE(nixl_params);
}

FUNCTION(params_add, nixl_params params, const char *key, const char *value) {
    ENTER(params_add);
    return params && key && value ? NIXL_SUCCESS : NIXL_INVALID_PARAM;
}

FUNCTION(destroy_params, nixl_params params) {
    ENTER(destroy_params);
    UNMADE(params);
}

FUNCTION(create_backend, nixl_agent agent, const char *name, nixl_params params, nixl_backend *out) {
    ENTER(create_backend);
    const bool files = strcmp(name, "GDS") == 0 || strcmp(name, "GDS_MT") == 0;
    if (!params || (!files && strcmp(name, "UCX") != 0)) return NIXL_BACKEND_ERROR;
    pthread_rwlock_wrlock(&agent->lock);
    bool twice = agent->has_backend;
    agent->has_backend = true;
    pthread_rwlock_unlock(&agent->lock);
    if (twice) return NIXL_BACKEND_ERROR;
    *out = calloc(1, sizeof **out);
    if (!*out) return NIXL_BACKEND_ERROR;
    (*out)->files = files;
    count_live(1);
    return NIXL_SUCCESS;
}

FUNCTION(destroy_backend, nixl_backend backend) {
    ENTER(destroy_backend);
    UNMADE(backend);
}

FUNCTION(get_backend_params, nixl_agent agent, nixl_backend backend, nixl_mem_list *list, nixl_params *params) {
    ENTER(get_backend_params);
    if (!agent || !backend) return NIXL_INVALID_PARAM;
    *list = calloc(1, sizeof **list);
    *params = calloc(1, sizeof **params);
    if (*list) (*list)->files = backend->files;
    count_live(2);
    return NIXL_SUCCESS;
}

FUNCTION(mem_list_size, nixl_mem_list list, size_t *out) {
    ENTER(mem_list_size);
    *out = !list ? 0 : list->files ? 3 : 2;
    return NIXL_SUCCESS;
}

FUNCTION(mem_list_get, nixl_mem_list list, size_t index, uint32_t *out) {
    ENTER(mem_list_get);
    if (!list || index > (list->files ? 2 : 1)) return NIXL_INVALID_PARAM;
    *out = index == 2 ? MEMORY_FILE : (uint32_t)index;
    return NIXL_SUCCESS;
}

FUNCTION(destroy_mem_list, nixl_mem_list list) {
    ENTER(destroy_mem_list);
    UNMADE(list);
}

FUNCTION(create_opt_args, nixl_opt_args *out) {
    ENTER(create_opt_args);
    MADE(nixl_opt_args);
}

FUNCTION(opt_args_add_backend, nixl_opt_args args, nixl_backend backend) {
    ENTER(opt_args_add_backend);
    return args && backend ? NIXL_SUCCESS : NIXL_INVALID_PARAM;
}

FUNCTION(destroy_opt_args, nixl_opt_args args) {
    ENTER(destroy_opt_args);
    UNMADE(args);
}

/* ---- registration ----------------------------------------------------------------------------------------------- */

FUNCTION(create_reg_dlist, uint32_t memory, nixl_reg_dlist *out) {
    ENTER(create_reg_dlist);
    *out = calloc(1, sizeof **out);
    if (!*out) return NIXL_BACKEND_ERROR;
    (*out)->memory = memory;
    count_live(1);
    return NIXL_SUCCESS;
}

FUNCTION(reg_dlist_add_desc, nixl_reg_dlist list, uintptr_t address, size_t bytes, uint64_t device, const void *meta,
         size_t metaBytes) {
    ENTER(reg_dlist_add_desc);
    (void)meta;
    (void)metaBytes;
    return add_region(&list->list, (region){address, bytes, device, list->memory});
}

FUNCTION(destroy_reg_dlist, nixl_reg_dlist list) {
    ENTER(destroy_reg_dlist);
    free_regions(&list->list);
    UNMADE(list);
}

FUNCTION(register_mem, nixl_agent agent, nixl_reg_dlist list, nixl_opt_args args) {
    ENTER(register_mem);
    (void)args;
    for (size_t i = 0; i < list->list.count && list->memory == MEMORY_FILE; i++) {
        int flags = fcntl((int)list->list.items[i].device, F_GETFL);
        if (flags < 0 || !(flags & O_DIRECT)) return NIXL_BACKEND_ERROR;
    }
    pthread_rwlock_wrlock(&agent->lock);
    nixl_status status = agent->has_backend ? NIXL_SUCCESS : NIXL_BACKEND_ERROR;
    for (size_t i = 0; i < list->list.count && status == NIXL_SUCCESS; i++) status = add_region(&agent->own, list->list.items[i]);
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

FUNCTION(deregister_mem, nixl_agent agent, nixl_reg_dlist list, nixl_opt_args args) {
    ENTER(deregister_mem);
    (void)args;
    pthread_rwlock_wrlock(&agent->lock);
    nixl_status status = NIXL_SUCCESS;
    for (size_t i = 0; i < list->list.count; i++) {
        if (list->memory == MEMORY_FILE && fcntl((int)list->list.items[i].device, F_GETFD) < 0) {
            fprintf(stderr, "stand-in: a file was closed before it was deregistered\n");
            abort();
        }
        if (!remove_region(&agent->own, &list->list.items[i])) status = NIXL_NOT_FOUND;
    }
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

/* ---- metadata: "STANDIN1", kind, name bytes, region count, name, regions ---------------------------------------- */

#define MAGIC "STANDIN1"
enum { WHOLE, CONNECTION, PART };

static nixl_status write_metadata(nixl_agent agent, uint64_t kind, const regions *list, void **data, size_t *bytes) {
    uint64_t name = strlen(agent->name), count = list->count;
    *bytes = 32 + name + count * sizeof(region);
    uint8_t *at = malloc(*bytes);
    if (!at) return NIXL_BACKEND_ERROR;
    memcpy(at, MAGIC, 8);
    memcpy(at + 8, &kind, 8);
    memcpy(at + 16, &name, 8);
    memcpy(at + 24, &count, 8);
    memcpy(at + 32, agent->name, name);
    if (count > 0) memcpy(at + 32 + name, list->items, count * sizeof(region));
    *data = at;
    return NIXL_SUCCESS;
}

FUNCTION(get_local_md, nixl_agent agent, void **data, size_t *bytes) {
    ENTER(get_local_md);
    pthread_rwlock_wrlock(&agent->lock);
    nixl_status status = agent->has_backend ? write_metadata(agent, WHOLE, &agent->own, data, bytes) : NIXL_BACKEND_ERROR;
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

FUNCTION(get_local_partial_md, nixl_agent agent, nixl_reg_dlist list, void **data, size_t *bytes, nixl_opt_args args) {
    ENTER(get_local_partial_md);
    (void)args;
    pthread_rwlock_wrlock(&agent->lock);
    nixl_status status = NIXL_SUCCESS;
    for (size_t i = 0; i < list->list.count; i++) {
        if (!holds(&agent->own, &list->list.items[i])) status = NIXL_BACKEND_ERROR;
    }
    if (status == NIXL_SUCCESS) {
        status = write_metadata(agent, list->list.count ? PART : CONNECTION, &list->list, data, bytes);
    }
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

static peer **find_peer(nixl_agent agent, const char *name) {
    peer **at = &agent->peers;
    while (*at && strcmp((*at)->name, name) != 0) at = &(*at)->next;
    return at;
}

FUNCTION(load_remote_md, nixl_agent agent, const void *data, size_t bytes, char **name) {
    ENTER(load_remote_md);
    const uint8_t *at = data;
    uint64_t kind, length, count;
    if (bytes < 32 || memcmp(at, MAGIC, 8) != 0) return NIXL_BACKEND_ERROR;
    memcpy(&kind, at + 8, 8);
    memcpy(&length, at + 16, 8);
    memcpy(&count, at + 24, 8);
    if (kind > PART || length == 0 || length > bytes - 32) return NIXL_BACKEND_ERROR;
    if (count > bytes / sizeof(region) || 32 + length + count * sizeof(region) != bytes) return NIXL_BACKEND_ERROR;
    char *read = strndup((const char *)at + 32, length);
    if (!read) return NIXL_BACKEND_ERROR;
    if (strcmp(read, agent->name) == 0) {
        free(read);
        return NIXL_INVALID_PARAM;
    }
    pthread_rwlock_wrlock(&agent->lock);
    peer **found = find_peer(agent, read);
    nixl_status status = NIXL_SUCCESS;
    if (!*found && kind == PART) status = NIXL_BACKEND_ERROR;
    if (status == NIXL_SUCCESS && !*found) {
        peer *p = calloc(1, sizeof *p + length + 1);
        if (p) {
            memcpy(p->name, read, length);
            pthread_mutex_lock(&table_mutex);
            p->turn = ++turns;
            pthread_mutex_unlock(&table_mutex);
        }
        *found = p;
    }
    if (status == NIXL_SUCCESS && *found) {
        if (kind == WHOLE) free_regions(&(*found)->known);
        for (uint64_t i = 0; i < count; i++) {
            region one;
            memcpy(&one, at + 32 + length + i * sizeof one, sizeof one);
            add_region(&(*found)->known, one);
        }
    }
    pthread_rwlock_unlock(&agent->lock);
    if (status != NIXL_SUCCESS) free(read);
    else *name = read;
    return status;
}

FUNCTION(check_remote_md, nixl_agent agent, const char *name, nixl_xfer_dlist list) {
    ENTER(check_remote_md);
    (void)list;
    pthread_rwlock_wrlock(&agent->lock);
    nixl_status status = *find_peer(agent, name) ? NIXL_SUCCESS : NIXL_NOT_FOUND;
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

FUNCTION(invalidate_remote_md, nixl_agent agent, const char *name) {
    ENTER(invalidate_remote_md);
    pthread_rwlock_wrlock(&agent->lock);
    peer **at = find_peer(agent, name);
    peer *gone = *at;
    if (gone) *at = gone->next;
    pthread_rwlock_unlock(&agent->lock);
    if (!gone) return NIXL_NOT_FOUND;
    free_peer(gone);
    return NIXL_SUCCESS;
}

/* ---- transfers -------------------------------------------------------------------------------------------------- */

FUNCTION(create_xfer_dlist, uint32_t memory, nixl_xfer_dlist *out) {
    ENTER(create_xfer_dlist);
    *out = calloc(1, sizeof **out);
    if (!*out) return NIXL_BACKEND_ERROR;
    (*out)->memory = memory;
    count_live(1);
    return NIXL_SUCCESS;
}

FUNCTION(xfer_dlist_add_desc, nixl_xfer_dlist list, uintptr_t address, size_t bytes, uint64_t device) {
    ENTER(xfer_dlist_add_desc);
    return add_region(&list->list, (region){address, bytes, device, list->memory});
}

FUNCTION(xfer_dlist_clear, nixl_xfer_dlist list) {
    ENTER(xfer_dlist_clear);
    free_regions(&list->list);
    return NIXL_SUCCESS;
}

FUNCTION(destroy_xfer_dlist, nixl_xfer_dlist list) {
    ENTER(destroy_xfer_dlist);
    free_regions(&list->list);
    UNMADE(list);
}

/* With the agent's lock held. */
static bool may_move(nixl_agent agent, const peer *p, const regions *local, const regions *remote) {
    if (local->count == 0 || local->count != remote->count) return false;
    for (size_t i = 0; i < local->count; i++) {
        if (local->items[i].bytes != remote->items[i].bytes || !holds(&agent->own, &local->items[i])) return false;
        if (!holds(p ? &p->known : &agent->own, &remote->items[i])) return false;
    }
    return true;
}

FUNCTION(create_xfer_req, nixl_agent agent, uint32_t operation, nixl_xfer_dlist local, nixl_xfer_dlist remote,
         const char *name, nixl_xfer_req *out, nixl_opt_args args) {
    ENTER(create_xfer_req);
    (void)args;
    pthread_rwlock_rdlock(&agent->lock);
    peer *p = *find_peer(agent, name);
    bool self = strcmp(name, agent->name) == 0;
    bool good = (p || self) && may_move(agent, p, &local->list, &remote->list);
    uint32_t turn = p ? p->turn : 0;
    pthread_rwlock_unlock(&agent->lock);
    struct nixl_xfer_req_s *request = good ? calloc(1, sizeof *request) : NULL;
    if (!request) return NIXL_BACKEND_ERROR;
    request->state = FRESH;
    request->operation = operation;
    request->turn = turn;
    request->local = copy_regions(&local->list);
    request->remote = copy_regions(&remote->list);
    request->peer = strdup(name);
    count_live(1);
    *out = request;
    return NIXL_SUCCESS;
}

/* A byte that changes on its way: its offset in what is moved, or UINT64_MAX. Parts of a transfer are copied in any order:
 * one that has no such byte leaves it to another. */
static uint64_t flipped_offset(const struct nixl_xfer_req_s *request) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < request->local.count; i++) bytes += request->local.items[i].bytes;
    pthread_mutex_lock(&table_mutex);
    uint64_t offset = flip_offset < bytes && flip_in > 0 && --flip_in == 0 ? flip_offset : UINT64_MAX;
    pthread_mutex_unlock(&table_mutex);
    return offset;
}

/* A file's bytes to or from memory; the descriptor is the device, the offset the address. */
static void copy_file(const region *memory, const region *file, bool writing, uint64_t flip) {
    uint8_t *bytes = malloc(memory->bytes);
    if (!bytes) abort();
    uint8_t *at = (uint8_t *)(uintptr_t)memory->address;
    char path[64];
    /* The descriptor may ask for aligned memory, which this is not. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", (int)file->device);
    int plain = open(path, O_RDWR | O_CLOEXEC);
    if (writing) memcpy(bytes, at, memory->bytes);
    else if (pread(plain, bytes, memory->bytes, (off_t)file->address) != (ssize_t)memory->bytes) abort();
    if (flip < memory->bytes) bytes[flip] ^= 1;
    if (!writing) memcpy(at, bytes, memory->bytes);
    else if (pwrite(plain, bytes, memory->bytes, (off_t)file->address) != (ssize_t)memory->bytes) abort();
    close(plain);
    free(bytes);
}

/* How much of the next copy is moved; `code` gets what it answers. */
static uint64_t moved_bytes(nixl_status *code) {
    pthread_mutex_lock(&table_mutex);
    bool cut = short_in > 0 && --short_in == 0;
    uint64_t bytes = cut ? short_bytes : UINT64_MAX;
    *code = cut ? short_code : NIXL_SUCCESS;
    pthread_mutex_unlock(&table_mutex);
    return bytes;
}

static nixl_status copy_all(const struct nixl_xfer_req_s *request) {
    uint64_t flip = flipped_offset(request);
    nixl_status code;
    uint64_t left = moved_bytes(&code);
    for (size_t i = 0; i < request->local.count && left > 0; i++) {
        if (request->remote.items[i].memory == MEMORY_FILE) {
            region part = request->local.items[i];
            if (part.bytes > left) part.bytes = left;
            left -= part.bytes;
            copy_file(&part, &request->remote.items[i], request->operation == 1, flip);
            flip = flip >= request->local.items[i].bytes && flip != UINT64_MAX ? flip - request->local.items[i].bytes : UINT64_MAX;
            continue;
        }
        uint8_t *local = (uint8_t *)(uintptr_t)request->local.items[i].address;
        uint8_t *remote = (uint8_t *)(uintptr_t)request->remote.items[i].address;
        uint64_t bytes = request->local.items[i].bytes;
        if (bytes > left) bytes = left;
        left -= bytes;
        uint8_t *target = request->operation == 1 ? remote : local;
        memcpy(target, request->operation == 1 ? local : remote, bytes);
        if (flip < bytes) target[flip] ^= 1;
        flip = flip >= bytes && flip != UINT64_MAX ? flip - bytes : UINT64_MAX;
    }
    return code;
}

static void must_live(const struct nixl_xfer_req_s *request, const char *what) {
    if (request->state < RELEASED) return;
    fprintf(stderr, "stand-in: %s of a released request\n", what);
    abort();
}

FUNCTION(post_xfer_req, nixl_agent agent, nixl_xfer_req request, nixl_opt_args args) {
    (void)args;
    must_live(request, "post");
    pthread_rwlock_rdlock(&agent->lock);
    /* As in NIXL, a post that does not come back keeps the lock. */
    nixl_status status = enter(F_post_xfer_req);
    peer *p = *find_peer(agent, request->peer);
    if (status == NIXL_SUCCESS && (p ? p->turn : 0) != request->turn) status = NIXL_NOT_FOUND;
    if (status == NIXL_SUCCESS && !reachable(request->peer)) status = NIXL_BACKEND_ERROR;
    if (status == NIXL_SUCCESS) {
        pthread_mutex_lock(&table_mutex);
        bool now = mode == INLINE;
        request->polls = mode == PENDING ? pending_polls : UINT32_MAX;
        pthread_mutex_unlock(&table_mutex);
        status = now ? copy_all(request) : NIXL_IN_PROGRESS;
        request->state = now && status == NIXL_SUCCESS ? COMPLETE : POSTED;
    }
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

FUNCTION(get_xfer_status, nixl_agent agent, nixl_xfer_req request) {
    must_live(request, "status");
    ENTER(get_xfer_status);
    if (request->state == FRESH) return NIXL_BACKEND_ERROR;
    if (request->state == COMPLETE) return NIXL_SUCCESS;
    pthread_rwlock_rdlock(&agent->lock);
    nixl_status status = reachable(request->peer) ? NIXL_IN_PROGRESS : NIXL_BACKEND_ERROR;
    peer *p = *find_peer(agent, request->peer);
    if ((p ? p->turn : 0) != request->turn) status = NIXL_BACKEND_ERROR;
    pthread_mutex_lock(&table_mutex);
    if (mode == INLINE) request->polls = 1;
    pthread_mutex_unlock(&table_mutex);
    if (status == NIXL_IN_PROGRESS && request->polls != UINT32_MAX && --request->polls == 0) {
        status = copy_all(request);
        request->state = status == NIXL_SUCCESS ? COMPLETE : POSTED;
    }
    pthread_rwlock_unlock(&agent->lock);
    return status;
}

FUNCTION(release_xfer_req, nixl_agent agent, nixl_xfer_req request) {
    (void)agent;
    must_live(request, "release");
    ENTER(release_xfer_req);
    request->state = RELEASED;
    return NIXL_SUCCESS;
}

FUNCTION(destroy_xfer_req, nixl_xfer_req request) {
    ENTER(destroy_xfer_req);
    if (request->state == DESTROYED) {
        fprintf(stderr, "stand-in: a request was destroyed twice\n");
        abort();
    }
    if (request->state != RELEASED) return NIXL_INVALID_STATE;
    request->state = DESTROYED;
    free_regions(&request->local);
    free_regions(&request->remote);
    free(request->peer);
    /* Kept, so that a use after this is told and not luck. */
    pthread_mutex_lock(&table_mutex);
    request->next = graveyard;
    graveyard = request;
    live--;
    pthread_mutex_unlock(&table_mutex);
    return NIXL_SUCCESS;
}

/* ---- notifications ---------------------------------------------------------------------------------------------- */

FUNCTION(create_notif_map, nixl_notif_map *out) {
    ENTER(create_notif_map);
    MADE(nixl_notif_map);
}

FUNCTION(notif_map_clear, nixl_notif_map map) {
    ENTER(notif_map_clear);
    free_notes(map->notes);
    map->notes = NULL;
    return NIXL_SUCCESS;
}

FUNCTION(destroy_notif_map, nixl_notif_map map) {
    ENTER(destroy_notif_map);
    free_notes(map->notes);
    UNMADE(map);
}

/* The table's mutex is held. */
static note *disordered(note *first) {
    size_t count = 0;
    for (const note *n = first; n; n = n->next) count++;
    if (!disorder || count < 2) return first;
    note *middle = first;
    for (size_t k = 1; k < count / 2; k++) middle = middle->next;
    note *later = middle->next, *last = later;
    middle->next = NULL;
    while (last->next) last = last->next;
    last->next = first;
    return later;
}

FUNCTION(get_notifs, nixl_agent agent, nixl_notif_map map, nixl_opt_args args) {
    ENTER(get_notifs);
    (void)args;
    pthread_rwlock_wrlock(&agent->lock);
    pthread_mutex_lock(&table_mutex);
    note **end = &map->notes;
    while (*end) end = &(*end)->next;
    *end = disordered(agent->first);
    agent->first = agent->last = NULL;
    pthread_mutex_unlock(&table_mutex);
    pthread_rwlock_unlock(&agent->lock);
    return NIXL_SUCCESS;
}

/* The first note of each sender stands for it. */
static const note *sender_at(nixl_notif_map map, size_t index, size_t *count) {
    *count = 0;
    for (const note *n = map->notes; n; n = n->next) {
        const note *before = map->notes;
        while (before != n && strcmp(before->from, n->from) != 0) before = before->next;
        if (before != n) continue;
        if ((*count)++ == index) return n;
    }
    return NULL;
}

FUNCTION(notif_map_size, nixl_notif_map map, size_t *out) {
    ENTER(notif_map_size);
    sender_at(map, SIZE_MAX, out);
    return NIXL_SUCCESS;
}

FUNCTION(notif_map_get_agent_at, nixl_notif_map map, size_t index, const char **out) {
    ENTER(notif_map_get_agent_at);
    size_t count;
    const note *n = sender_at(map, index, &count);
    if (!n) return NIXL_INVALID_PARAM;
    *out = n->from;
    return NIXL_SUCCESS;
}

FUNCTION(notif_map_get_notifs_size, nixl_notif_map map, const char *name, size_t *out) {
    ENTER(notif_map_get_notifs_size);
    *out = 0;
    for (const note *n = map->notes; n; n = n->next) *out += strcmp(n->from, name) == 0;
    return NIXL_SUCCESS;
}

FUNCTION(notif_map_get_notif, nixl_notif_map map, const char *name, size_t index, const void **data, size_t *bytes) {
    ENTER(notif_map_get_notif);
    for (const note *n = map->notes; n; n = n->next) {
        if (strcmp(n->from, name) != 0 || index-- > 0) continue;
        *data = n->data;
        *bytes = n->bytes;
        return NIXL_SUCCESS;
    }
    return NIXL_INVALID_PARAM;
}

FUNCTION(gen_notif, nixl_agent agent, const char *name, const void *data, size_t bytes, nixl_opt_args args) {
    ENTER(gen_notif);
    (void)args;
    pthread_rwlock_rdlock(&agent->lock);
    bool known = *find_peer(agent, name) != NULL || strcmp(name, agent->name) == 0;
    pthread_rwlock_unlock(&agent->lock);
    if (!known) return NIXL_NOT_FOUND;
    note *n = calloc(1, sizeof *n + (bytes ? bytes : 1));
    if (!n) return NIXL_BACKEND_ERROR;
    n->bytes = bytes;
    n->from = strdup(agent->name);
    if (bytes > 0) memcpy(n->data, data, bytes);
    pthread_mutex_lock(&table_mutex);
    struct nixl_agent_s *target = is_lost(name) ? NULL : find_agent(name);
    if (target) {
        if (target->last) target->last->next = n;
        else target->first = n;
        target->last = n;
    }
    pthread_mutex_unlock(&table_mutex);
    if (target) return NIXL_SUCCESS;
    free_notes(n);
    return NIXL_BACKEND_ERROR;
}

EXPORT bool nixl_capi_is_stub(void);
bool nixl_capi_is_stub(void) {
    return false;
}
