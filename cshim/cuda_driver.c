/*
 * cuda_driver.c - finds libcuda.so.1 and resolves its entry points.
 *
 * Entry points are asked for by the version whose signature is declared here (12.0), so that a newer driver that
 * gave a name another form still answers the form we know. The batched copy is the exception: it came with 12.8 and
 * changed with 13.0, and calling the wrong form crashes.
 */
#define _GNU_SOURCE
#include "cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "status.h"

#define ENTRY_VERSION 12000
#define BATCH9_VERSION 12080
#define BATCH8_VERSION 13000

typedef cu_result (*resolve_function)(const char *name, void **out, int version, uint64_t flags, int *found);

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static kvf_cuda_driver driver;
static _Atomic(const kvf_cuda_driver *) loaded;

static int32_t load_locked(const char *path);
static void *resolve(resolve_function ask, const char *name, int version);

int32_t kvf_cuda_driver_load(const char *path) {
    if (loaded) return KVF_OK;
    pthread_mutex_lock(&load_lock);
    int32_t status = loaded ? KVF_OK : load_locked(path);
    pthread_mutex_unlock(&load_lock);
    return status;
}

const kvf_cuda_driver *kvf_cuda_driver_get(void) {
    const kvf_cuda_driver *out = loaded;
    if (!out) kvf_set_error("CUDA: the driver library was not loaded");
    return out;
}

int32_t kvf_cuda_refuse(cu_result result, const char *what) {
    const char *name = NULL, *text = NULL;
    if (driver.error_name) driver.error_name(result, &name);
    if (driver.error_text) driver.error_text(result, &text);
    return kvf_refuse(result == CU_OUT_OF_MEMORY ? KVF_E_NOMEM : KVF_E_CUDA, "%s: %s (%d%s%s)", what, name ? name : "CUDA error", result,
                      text ? ", " : "", text ? text : "");
}

bool kvf_cuda_is_sticky(cu_result result) {
    /* Faults of kernels, of the device's memory and of the link: 214 ECC, 215..227 link and unmapping of a lost device,
     * 700, 702, 710, 714..719 and 721: what a kernel did. */
    return result == 46 || result == 214 || result == 220 || result == 226 || result == 700 || result == 702 || result == 710 ||
           (result >= 714 && result <= 719) || result == 721 || result == 4;
}

static int32_t load_locked(const char *path) {
    const char *name = path && *path ? path : "libcuda.so.1";
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: %s", dlerror());
    kvf_cuda_driver found;
    memset(&found, 0, sizeof found);

    resolve_function ask = (resolve_function)dlsym(library, "cuGetProcAddress_v2");
    cu_result (*version)(int *) = (cu_result(*)(int *))dlsym(library, "cuDriverGetVersion");
    if (!version || version(&found.version) != CU_OK || found.version < ENTRY_VERSION || !ask) {
        int have = found.version;
        dlclose(library);
        return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: the driver speaks CUDA %d.%d; 12.0 (driver 525) or newer is needed", have / 1000,
                          have % 1000 / 10);
    }
#define X(member, text, parameters)                                                                                      \
    found.member = (cu_result(*) parameters)resolve(ask, text, ENTRY_VERSION);                                  \
    if (!found.member) {                                                                                                 \
        dlclose(library);                                                                                                \
        return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: the driver has no %s", text);                                        \
    }
    KVF_CUDA_ENTRIES(X)
#undef X
    if (found.version >= BATCH8_VERSION) found.batch8 = (cu_batch8)resolve(ask, "cuMemcpyBatchAsync", BATCH8_VERSION);
    else if (found.version >= BATCH9_VERSION) found.batch9 = (cu_batch9)resolve(ask, "cuMemcpyBatchAsync", BATCH9_VERSION);

    driver.error_name = found.error_name;
    driver.error_text = found.error_text;
    cu_result result = found.init(0);
    if (result == CU_OK) result = found.device_count(&found.devices);
    if (result != CU_OK) {
        kvf_cuda_refuse(result, "cuInit");
        char text[KVF_TEXT_BYTES];
        snprintf(text, sizeof text, "%s", kvf_error_text());
        memset(&driver, 0, sizeof driver);
        return kvf_refuse(KVF_E_UNAVAILABLE, "CUDA: %s", text); /* the library stays loaded: it may have threads */
    }
    Dl_info where;
    snprintf(found.path, sizeof found.path, "%s", dladdr((void *)found.init, &where) && where.dli_fname ? where.dli_fname : name);
    driver = found;
    loaded = &driver;
    return KVF_OK;
}

/* Never by dlsym: there the plain names are the oldest forms. */
static void *resolve(resolve_function ask, const char *name, int version) {
    void *out = NULL;
    int found = 0;
    return ask(name, &out, version, 0, &found) == CU_OK ? out : NULL;
}
