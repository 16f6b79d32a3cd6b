/*
 * nixl_api.h - NIXL's C interface as this library calls it: types, constants and a table of functions.
 *
 * Written from the binary interface of libnixl_capi.so (0.10.1 to 1.5.1, 64-bit Linux). Every function answers a 32-bit
 * status; objects are opaque pointers; out-parameters are written on success only. The table is filled by nixl_load.c.
 */
#ifndef KVF_NIXL_API_H
#define KVF_NIXL_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int32_t nixl_status;

#define NIXL_IN_PROGRESS 1
#define NIXL_SUCCESS 0
#define NIXL_INVALID_PARAM -1
#define NIXL_BACKEND_ERROR -2
#define NIXL_INVALID_STATE -3
#define NIXL_NOT_FOUND -6

/* Memory types and operations; the numbers are those of kvf.h (KVF_MEM_*, KVF_NIXL_READ, KVF_NIXL_WRITE). A type of 5
 * or more indexes an unchecked array in the library: never pass one. */
#define NIXL_MEMORY_TYPES 5
#define NIXL_SYNC_RW 2u

typedef struct nixl_agent_s *nixl_agent;
typedef struct nixl_params_s *nixl_params;
typedef struct nixl_mem_list_s *nixl_mem_list;
typedef struct nixl_backend_s *nixl_backend;
typedef struct nixl_opt_args_s *nixl_opt_args;
typedef struct nixl_reg_dlist_s *nixl_reg_dlist;
typedef struct nixl_xfer_dlist_s *nixl_xfer_dlist;
typedef struct nixl_xfer_req_s *nixl_xfer_req;
typedef struct nixl_notif_map_s *nixl_notif_map;

typedef struct nixl_agent_config {
    bool progress_thread;
    bool listen_thread;
    int32_t listen_port;
    uint32_t sync;
    uint32_t workers;
    uint64_t progress_micros;
    uint64_t listen_micros;
    bool telemetry;
} nixl_agent_config;

_Static_assert(sizeof(nixl_agent_config) == 40, "the agent configuration has 40 bytes");
_Static_assert(offsetof(nixl_agent_config, listen_port) == 4, "listen_port at 4");
_Static_assert(offsetof(nixl_agent_config, sync) == 8, "sync at 8");
_Static_assert(offsetof(nixl_agent_config, progress_micros) == 16, "progress_micros at 16");
_Static_assert(offsetof(nixl_agent_config, telemetry) == 32, "telemetry at 32");

/* X(name without prefix, parameters): without these the library cannot be used. */
#define NIXL_NEEDED(X)                                                                                                 \
    X(create_configured_agent, (const char *name, const nixl_agent_config *config, nixl_agent *out))                   \
    X(destroy_agent, (nixl_agent agent))                                                                               \
    X(create_params, (nixl_params * out))                                                                              \
    X(params_add, (nixl_params params, const char *key, const char *value))                                            \
    X(destroy_params, (nixl_params params))                                                                            \
    X(create_backend, (nixl_agent agent, const char *name, nixl_params params, nixl_backend *out))                     \
    X(destroy_backend, (nixl_backend backend))                                                                         \
    X(create_opt_args, (nixl_opt_args * out))                                                                          \
    X(opt_args_add_backend, (nixl_opt_args args, nixl_backend backend))                                                \
    X(destroy_opt_args, (nixl_opt_args args))                                                                          \
    X(create_reg_dlist, (uint32_t memory, nixl_reg_dlist *out))                                                        \
    X(reg_dlist_add_desc,                                                                                              \
      (nixl_reg_dlist list, uintptr_t address, size_t bytes, uint64_t device, const void *meta, size_t metaBytes))     \
    X(destroy_reg_dlist, (nixl_reg_dlist list))                                                                        \
    X(register_mem, (nixl_agent agent, nixl_reg_dlist list, nixl_opt_args args))                                       \
    X(deregister_mem, (nixl_agent agent, nixl_reg_dlist list, nixl_opt_args args))                                     \
    X(get_local_md, (nixl_agent agent, void **data, size_t *bytes))                                                    \
    X(get_local_partial_md,                                                                                            \
      (nixl_agent agent, nixl_reg_dlist list, void **data, size_t *bytes, nixl_opt_args args))                         \
    X(load_remote_md, (nixl_agent agent, const void *data, size_t bytes, char **name))                                 \
    X(check_remote_md, (nixl_agent agent, const char *name, nixl_xfer_dlist list))                                     \
    X(invalidate_remote_md, (nixl_agent agent, const char *name))                                                      \
    X(create_xfer_dlist, (uint32_t memory, nixl_xfer_dlist *out))                                                      \
    X(xfer_dlist_add_desc, (nixl_xfer_dlist list, uintptr_t address, size_t bytes, uint64_t device))                   \
    X(xfer_dlist_clear, (nixl_xfer_dlist list))                                                                        \
    X(destroy_xfer_dlist, (nixl_xfer_dlist list))                                                                      \
    X(create_xfer_req,                                                                                                 \
      (nixl_agent agent, uint32_t operation, nixl_xfer_dlist local, nixl_xfer_dlist remote, const char *peer,          \
       nixl_xfer_req *out, nixl_opt_args args))                                                                        \
    X(post_xfer_req, (nixl_agent agent, nixl_xfer_req request, nixl_opt_args args))                                    \
    X(get_xfer_status, (nixl_agent agent, nixl_xfer_req request))                                                      \
    X(release_xfer_req, (nixl_agent agent, nixl_xfer_req request))                                                     \
    X(destroy_xfer_req, (nixl_xfer_req request))                                                                       \
    X(create_notif_map, (nixl_notif_map * out))                                                                        \
    X(destroy_notif_map, (nixl_notif_map map))                                                                         \
    X(get_notifs, (nixl_agent agent, nixl_notif_map map, nixl_opt_args args))                                          \
    X(notif_map_size, (nixl_notif_map map, size_t *out))                                                               \
    X(notif_map_get_agent_at, (nixl_notif_map map, size_t index, const char **out))                                    \
    X(notif_map_get_notifs_size, (nixl_notif_map map, const char *name, size_t *out))                                  \
    X(notif_map_get_notif,                                                                                             \
      (nixl_notif_map map, const char *name, size_t index, const void **data, size_t *bytes))                          \
    X(notif_map_clear, (nixl_notif_map map))                                                                           \
    X(gen_notif, (nixl_agent agent, const char *peer, const void *data, size_t bytes, nixl_opt_args args))

/* Used when they are there. */
#define NIXL_OPTIONAL(X)                                                                                               \
    X(get_backend_params, (nixl_agent agent, nixl_backend backend, nixl_mem_list *memories, nixl_params *params))      \
    X(mem_list_size, (nixl_mem_list list, size_t *out))                                                                \
    X(mem_list_get, (nixl_mem_list list, size_t index, uint32_t *out))                                                 \
    X(destroy_mem_list, (nixl_mem_list list))

typedef struct nixl_functions {
#define NIXL_MEMBER(name, parameters) nixl_status(*name) parameters;
    NIXL_NEEDED(NIXL_MEMBER)
    NIXL_OPTIONAL(NIXL_MEMBER)
#undef NIXL_MEMBER
    bool (*is_stub)(void); /* optional: true in a stand-in that only forwards */
} nixl_functions;

#endif
