/*
 * nixl_load.h - the one copy of libnixl_capi.so of this process.
 */
#ifndef KVF_NIXL_LOAD_H
#define KVF_NIXL_LOAD_H

#include "nixl_api.h"

/* Loads the library, once for the process (serialised; a second call answers what the first one loaded): from an
 * absolute path, or by soname when `path` is NULL or empty. Never unloads: NIXL and UCX are not made for it.
 *
 * Before anything is loaded these are set in the environment, each only when the user has not set it:
 *   UCX_MEM_EVENTS=n            no patching of mmap and brk in the host process; ten times faster start
 *   UCX_DEBUG_SIGNO=0           else UCX takes SIGHUP from the host program
 *   UCX_HANDLE_ERRORS=none      else some builds of UCX install handlers for fatal signals
 *   UCX_TCP_CONN_NB=y           a connection is made in UCX's progress and not inside the call that loads a peer: where it
 *                               broke off inside that call, UCX 1.23 freed the endpoint and returned it as a good one, and
 *                               ended the process (stubs.c, Assertion `0' failed) over what was put on it
 *   UCX_WARN_UNUSED_ENV_VARS=n, UCX_LOG_LEVEL=fatal, NIXL_LOG_LEVEL=FATAL    nothing on the host's stderr
 *
 * KVF_OK, KVF_E_INVALID (a relative path), KVF_E_UNAVAILABLE (not found, not loadable, or a function is missing: the text
 * names the first one). */
int32_t kvf_nixl_load(const char *path);

/* The function table, or NULL (text set) before a successful kvf_nixl_load. */
const nixl_functions *kvf_nixl_api(void);

/* The path that was loaded, or an empty string. */
const char *kvf_nixl_path(void);

/* A word for a status of NIXL. */
const char *kvf_nixl_status_name(nixl_status status);

#endif
