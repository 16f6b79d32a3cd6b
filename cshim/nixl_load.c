/*
 * nixl_load.c - finds, loads and resolves libnixl_capi.so.
 */
#define _GNU_SOURCE
#include "nixl_load.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

static pthread_mutex_t load_mutex = PTHREAD_MUTEX_INITIALIZER;
static nixl_functions functions;
static char loaded_path[PATH_MAX];
static atomic_bool loaded;

static const char *const environment[][2] = {
    {"UCX_MEM_EVENTS", "n"},           {"UCX_DEBUG_SIGNO", "0"},    {"UCX_HANDLE_ERRORS", "none"},
    {"UCX_WARN_UNUSED_ENV_VARS", "n"}, {"UCX_LOG_LEVEL", "fatal"}, {"NIXL_LOG_LEVEL", "FATAL"},
    {"UCX_TCP_CONN_NB", "y"},
};

/* What a libnixl_capi.so from a source install needs and, having no RUNPATH, does not find, in the order of need. */
static const char *const siblings[] = {"libserdes.so", "libnixl_common.so", "libnixl_build.so", "libstream.so",
                                       "libnixl.so"};

static const char *const sonames[] = {"libnixl_capi.so", "libnixl_capi.so.0"};

static void *open_with_siblings(const char *path, char *reason, size_t capacity) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library) return library;
    const char *text = dlerror();
    snprintf(reason, capacity, "%s", text ? text : "no reason given");
    const char *slash = strrchr(path, '/');
    if (!slash) return NULL;
    for (size_t i = 0; i < sizeof siblings / sizeof siblings[0]; i++) {
        char sibling[PATH_MAX];
        int length = snprintf(sibling, sizeof sibling, "%.*s/%s", (int)(slash - path), path, siblings[i]);
        /* One that is missing is left to the last dlopen to judge: not every build has all of them. */
        if (length > 0 && (size_t)length < sizeof sibling) dlopen(sibling, RTLD_NOW | RTLD_LOCAL);
    }
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) dlerror();
    return library;
}

static int32_t resolve(void *library, const char *path) {
    nixl_functions found;
    memset(&found, 0, sizeof found);
    void *symbol;
#define NEEDED(name, parameters)                                                                                       \
    symbol = dlsym(library, "nixl_capi_" #name);                                                                       \
    if (!symbol) return kvf_refuse(KVF_E_UNAVAILABLE, "%s has no function nixl_capi_" #name, path);                    \
    memcpy(&found.name, &symbol, sizeof symbol);
#define PROBED(name, parameters)                                                                                       \
    symbol = dlsym(library, "nixl_capi_" #name);                                                                       \
    memcpy(&found.name, &symbol, sizeof symbol);
    NIXL_NEEDED(NEEDED)
    NIXL_OPTIONAL(PROBED)
    PROBED(is_stub, )
#undef NEEDED
#undef PROBED
    if (found.is_stub && found.is_stub()) {
        return kvf_refuse(KVF_E_UNAVAILABLE, "%s is a stub without NIXL behind it", path);
    }
    functions = found;
    return KVF_OK;
}

static void remember_path(void *library, const char *asked) {
    Dl_info info;
    void *symbol = dlsym(library, "nixl_capi_destroy_agent");
    const char *path = symbol && dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : asked;
    snprintf(loaded_path, sizeof loaded_path, "%s", path);
}

static int32_t load_locked(const char *path) {
    for (size_t i = 0; i < sizeof environment / sizeof environment[0]; i++) {
        setenv(environment[i][0], environment[i][1], 0);
    }
    char reason[KVF_TEXT_BYTES] = "";
    void *library = NULL;
    const char *name = path;
    if (path && path[0]) {
        library = open_with_siblings(path, reason, sizeof reason);
    } else {
        for (size_t i = 0; i < sizeof sonames / sizeof sonames[0] && !library; i++) {
            name = sonames[i];
            library = open_with_siblings(name, reason, sizeof reason);
        }
    }
    if (!library) return kvf_refuse(KVF_E_UNAVAILABLE, "libnixl_capi.so cannot be loaded: %s", reason);
    int32_t status = resolve(library, name);
    if (status != KVF_OK) return status;
    remember_path(library, name);
    atomic_store_explicit(&loaded, true, memory_order_release);
    return KVF_OK;
}

int32_t kvf_nixl_load(const char *path) {
    if (path && path[0] && path[0] != '/') {
        return kvf_refuse(KVF_E_INVALID, "the path of libnixl_capi.so must be absolute, not %s", path);
    }
    pthread_mutex_lock(&load_mutex);
    int32_t status = atomic_load_explicit(&loaded, memory_order_relaxed) ? KVF_OK : load_locked(path);
    pthread_mutex_unlock(&load_mutex);
    return status;
}

const nixl_functions *kvf_nixl_api(void) {
    if (atomic_load_explicit(&loaded, memory_order_acquire)) return &functions;
    kvf_set_error("NIXL is not loaded");
    return NULL;
}

const char *kvf_nixl_path(void) {
    return atomic_load_explicit(&loaded, memory_order_acquire) ? loaded_path : "";
}

const char *kvf_nixl_status_name(nixl_status status) {
    switch (status) {
        case NIXL_IN_PROGRESS: return "in progress";
        case NIXL_SUCCESS: return "success";
        case NIXL_INVALID_PARAM: return "invalid parameter";
        case NIXL_BACKEND_ERROR: return "backend error";
        case NIXL_INVALID_STATE: return "invalid state";
        case NIXL_NOT_FOUND: return "not found";
        default: return "unknown status";
    }
}
