/*
 * kvf.h - the whole ABI between kvferry's TypeScript and its native library.
 *
 * One call per hop, never one per chunk. The library holds no policy: it allocates, runs copy programs, drives
 * streams, events and NIXL, and reports.
 *
 * Rules that a generator reads off this file (lib/native/symbols.ts, ABI hash):
 * - every function is declared on lines of its own as `KVF_API int32_t kvf_name(type name, ...);`
 * - parameter types are int32_t, uint32_t, double, kvf_word and pointers. A kvf_word is a 64-bit integer or an
 *   address (declared `ptr` to bun:ffi and passed as a safe integer); any pointer is `ptr` as well.
 * - the result is a status: KVF_OK, KVF_AGAIN, or a negative code. A text for the calling thread's last failure is
 *   kept for kvf_last_error.
 * - results come back through out-buffers of doubles (addresses and sizes are below 2^53 and exact) or bytes.
 *
 * Slow work is a *job*: it is given a slot of a context, returns at once, runs on a thread of the library and ends in
 * one completion on the context's ring. A slot has at most one job at a time, so the ring cannot overflow.
 */
#ifndef KVF_H
#define KVF_H

#include <stdint.h>

#define KVF_API __attribute__((visibility("default")))

typedef uint64_t kvf_word;

/* ---- statuses ---------------------------------------------------------------------------------------------- */

#define KVF_OK 0
#define KVF_AGAIN 1           /* nothing there yet, or a buffer was too small: the needed size was written */
#define KVF_E_INVALID -1      /* an argument or a program is malformed */
#define KVF_E_NOMEM -2        /* memory could not be had */
#define KVF_E_SYSTEM -3       /* a system call failed; the text has errno */
#define KVF_E_UNAVAILABLE -4  /* a library, symbol or feature is not there */
#define KVF_E_NIXL -5         /* NIXL reported an error */
#define KVF_E_CUDA -6         /* the CUDA driver reported an error */
#define KVF_E_IO -7           /* a file could not be read or written; the text names it */
#define KVF_E_CANCELLED -8    /* the job was cancelled */
#define KVF_E_PEER -9         /* the peer is not known or gone */
#define KVF_E_BUSY -10        /* the object is in use */
#define KVF_E_CLOSED -11      /* the context is closing */
#define KVF_E_CHECKSUM -12    /* bytes do not match their checksum */

/* ---- contexts: slots, completion ring, doorbell ---------------------------------------------------------------
 * One context for each JavaScript global. Its shared block is mapped by JavaScript once:
 *
 *   word offset  meaning (32-bit words)
 *   0            head: completions written so far (wraps)
 *   1            tail: completions that JavaScript has taken (wraps)
 *   2            armed: 1 when JavaScript wants the doorbell; the library swaps it to 0 before it rings
 *   3            progress: set to 1 when a watched slot made progress; JavaScript swaps it to 0
 *   4            notifications: set to 1 when a queue of notifications is not empty
 *   5..15        reserved
 *   16..         ring: `slots` completions of 8 words
 *   then         slot table: `slots` records of 8 words
 *
 * completion:  0 slot, 1 status (signed), 2 flags (KVF_DONE_*), 3 reserved, 4-5 value as double, 6-7 micros as double
 * slot record: 0 programs done, 1 watch (1: ring the doorbell when programs done rises), 2 cancel, 3 reserved,
 *              4-5 bytes done as double, 6-7 reserved
 */

#define KVF_DONE_TOUCHED 1u   /* destination bytes may have been written */
#define KVF_DONE_IN_DOUBT 2u  /* somebody may still be writing destination bytes */

/* Writes the ABI hash of the header that this library was built from, 16 lower-case hex digits and a zero. */
KVF_API int32_t kvf_abi_hash(char *out, uint32_t capacity);
/* Copies the calling thread's last error text, always zero-terminated. */
KVF_API int32_t kvf_last_error(char *out, uint32_t capacity);
/* Makes a context with `slots` (a power of two, 64..65536) job slots. out[0] = context, out[1] = shared block address,
 * out[2] = bytes of the shared block. */
KVF_API int32_t kvf_context_open(uint32_t slots, double *out);
/* Rings by calling `callback` (void (*)(void), safe to call from any thread; must outlive the context). */
KVF_API int32_t kvf_context_ring_by_callback(kvf_word context, kvf_word callback);
/* Rings by sending a byte through a non-blocking local stream socket (never SIGPIPE, a full buffer is fine);
 * out[0] = the reading end, which the caller owns; the context owns the writing end. */
KVF_API int32_t kvf_context_ring_by_socket(kvf_word context, double *out);
/* Stops taking jobs, asks running ones to stop, waits at most `millis`, joins the threads that ended. After it
 * returns the doorbell is never rung again. out[0] = jobs that still run, whose memory is kept. */
KVF_API int32_t kvf_context_close(kvf_word context, uint32_t millis, double *out);
/* Asks the slot's job to stop at its next chunk. */
KVF_API int32_t kvf_slot_cancel(kvf_word context, uint32_t slot);
/* Copies the error text of the slot's last job. */
KVF_API int32_t kvf_slot_error(kvf_word context, uint32_t slot, char *out, uint32_t capacity);
/* Copies the byte result of the slot's last job; out[0] = its length. KVF_AGAIN when `capacity` is too small. */
KVF_API int32_t kvf_slot_result(kvf_word context, uint32_t slot, uint8_t *bytes, kvf_word capacity, double *out);

/* ---- memory ------------------------------------------------------------------------------------------------ */

#define KVF_MEMORY_HUGE 1u    /* advise huge pages */
#define KVF_MEMORY_SHARED 2u  /* memfd-backed, sealed against shrinking; its descriptors come back */
#define KVF_MEMORY_GUARDED 4u /* with SHARED: nobody but this mapping can ever write to it (Linux 5.1 and later) */

/* Most files that one mapping lies in. */
#define KVF_MEMORY_FILES 16

/* Maps zeroed memory, page-aligned. `step`, a multiple of 2 MiB: with SHARED it lies in files of so many bytes each, mapped
 * one after the other, of which the last one has the rest; 0: in one. The kernel fills a file for one thread after the
 * other, and several files for as many threads at once. out[0] = address, out[1] = mapped bytes, out[2] = descriptor or
 * -1, and those of further files behind it. */
KVF_API int32_t kvf_memory_map(kvf_word bytes, uint32_t flags, kvf_word step, double *out);
/* Unmaps what kvf_memory_map gave, and closes `count` descriptors. */
KVF_API int32_t kvf_memory_unmap(kvf_word address, kvf_word bytes, const double *descriptors, uint32_t count);
/* The same as a job, for large mappings. */
KVF_API int32_t kvf_memory_unmap_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, const double *descriptors, uint32_t count);
#define KVF_TOUCH_HUGE 1u /* only what becomes huge pages, until the kernel has no more of them: the rest stays as it is */

/* Writes every page from `threads` threads so that later copies do not fault, in files of `step` bytes at the same time (0:
 * it is one, or none). */
KVF_API int32_t kvf_memory_touch_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, kvf_word step, uint32_t threads,
                                     uint32_t flags);

/* ---- copy programs -------------------------------------------------------------------------------------------
 * A hop travels as one block of doubles, every number a safe integer:
 *
 *   hop header (8):      0 magic 0x4b564650, 1 version 2, 2 programs, 3 words in all, 4 bytes it moves,
 *                        5, 6 numbers of the lists beside the block (kvf_list_number; 0: they have none), 7 zero
 *   program header (40): 0 bases, 1 pairs, 2 loops, 3 row bytes, 4 source run stride, 5 destination run stride,
 *                        6..11 counts, 12..17 source strides, 18..23 destination strides,
 *                        24 source kind, 25 source device, 26 destination kind, 27 destination device,
 *                        28 word of source bases, 29 word of destination bases, 30 word of source offsets,
 *                        31 word of destination offsets, 32 word of runs (0: every run is 1; else 32-bit unsigned,
 *                        two to a word), 33 bytes of this program,
 *                        34 1 where the places of pairs are block ids (32-bit unsigned, two to a word) times a stride,
 *                        2 where these ids are the lists that the call is given beside the block (30 and 31 are 0 then),
 *                        35 source stride, 36 destination stride (0 without ids), 37..39 zero
 *   then the arrays, which programs may share.
 *
 * Kinds: 0 host, 1 device, 2 file. Programs run in order; a program is complete before the slot's
 * `programs done` rises past it.
 */

#define KVF_HOP_MAGIC 0x4b564650
#define KVF_HOP_VERSION 2
#define KVF_HOP_HEADER_WORDS 8
#define KVF_PROGRAM_WORDS 40
#define KVF_MAX_LOOPS 6

#define KVF_COPY_NONTEMPORAL 1u /* stores that bypass the cache, fenced before completion */

/* Checks a hop and counts its rows. out[0] = rows, out[1] = bytes. */
KVF_API int32_t kvf_hop_check(const double *hop, kvf_word words, double *out);
/* Runs a hop between host addresses on the calling thread. out[0] = bytes. */
KVF_API int32_t kvf_copy_run(const double *hop, kvf_word words, uint32_t flags, double *out);
/* The same as a job on up to `threads` threads of the copy pool. `sources` and `destinations`: `ids` block ids each, which
 * programs may name, or NULL and 0. The hop and its lists are copied by the call. */
KVF_API int32_t kvf_copy_job(kvf_word context, uint32_t slot, const double *hop, kvf_word words, uint32_t flags, uint32_t threads, const uint32_t *sources, const uint32_t *destinations, uint32_t ids);
/* Hashes `count` messages of `bytes` bytes each, `stride` bytes apart, with BLAKE3; the byte result of the slot is
 * count x 32 bytes. */
KVF_API int32_t kvf_blake3_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word bytes, kvf_word stride, uint32_t count, uint32_t threads);

/* Looks at `count` pairs of block ids. out[0] = how many of them continue another pair by one on both sides, or -1 where
 * an id is not below its limit or a destination repeats; of thousands of pairs in no order about one in 128 more.
 * `marks` are `entries` zeros, at least destinationLimit + 2, and are zeros again when the call returns. */
KVF_API int32_t kvf_pairs_scan(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t sourceLimit, uint32_t destinationLimit, uint32_t *marks, uint32_t entries, double *out);

/* Finds the runs of pairs that `kvf_pairs_scan` found nothing wrong with. `heads` and `lengths`, with room for `count`, are given
 * each run's first pair and how many it has, in the order in which first pairs come. out[0] = runs, out[1] = the length that
 * all have, or 0. `marks` as above. */
KVF_API int32_t kvf_pairs_runs(const uint32_t *source, const uint32_t *destination, uint32_t count, uint32_t destinationLimit, uint32_t *marks, uint32_t entries, uint32_t *heads, uint32_t *lengths, double *out);

/* out[0] = a number for a list of block ids, from 1 on, given only once in this process. Who is given lists of one number, and
 * as many ids of them, may take it that they hold the same ids. */
KVF_API int32_t kvf_list_number(double *out);
/* Compares the first `count` ids of two lists: KVF_OK when they are the same, KVF_AGAIN when they are not. */
KVF_API int32_t kvf_ids_compare(const uint32_t *left, const uint32_t *right, uint32_t count);

#define KVF_FILL_CONSTANT 0u   /* every byte is `seed` */
#define KVF_FILL_SEQUENTIAL 1u /* byte k of a cell is (block + layer + k) mod 256 */
#define KVF_FILL_RANDOM 2u     /* a generator seeded by (seed, block, layer, outer), the same on every machine */

/* Writes one block's bytes in logical order (layer, outer, then cellBytes bytes) at `address`. */
KVF_API int32_t kvf_fill_block(kvf_word address, uint32_t pattern, kvf_word seed, uint32_t block, uint32_t layers, uint32_t outers, kvf_word cellBytes);
/* The same for `count` blocks whose bytes begin `stride` bytes apart, as a job on up to `threads` threads of the copy
 * pool; `blocks` (their ids) is copied by the call. */
KVF_API int32_t kvf_fill_job(kvf_word context, uint32_t slot, kvf_word address, kvf_word stride, uint32_t pattern, kvf_word seed, const uint32_t *blocks, uint32_t count, uint32_t layers, uint32_t outers, kvf_word cellBytes, uint32_t threads);

/* ---- NIXL ------------------------------------------------------------------------------------------------------
 * Agents are made, used and destroyed on threads of the library. One control thread for each agent does everything
 * but transfers; lanes post and poll transfers.
 */

#define KVF_NIXL_READ 0u
#define KVF_NIXL_WRITE 1u

#define KVF_MEM_DRAM 0u
#define KVF_MEM_VRAM 1u
#define KVF_MEM_FILE 4u

/* Loads libnixl_capi.so from an absolute path or by soname, once for the process, after setting what UCX must find in
 * the environment (never overriding). Byte result: the path that was loaded. */
KVF_API int32_t kvf_nixl_load_job(kvf_word context, uint32_t slot, const char *path);
/* Makes an agent. value = the agent. */
KVF_API int32_t kvf_nixl_agent_job(kvf_word context, uint32_t slot, const char *name, uint32_t progressMicros, uint32_t lanes);
/* Adds a backend. `parameters` is key\0value\0...\0 with an empty key at the end. */
KVF_API int32_t kvf_nixl_backend_job(kvf_word context, uint32_t slot, kvf_word agent, const char *name, const char *parameters);
/* Registers `count` regions: 3 doubles each, address, bytes, device. All or none. */
KVF_API int32_t kvf_nixl_register_job(kvf_word context, uint32_t slot, kvf_word agent, uint32_t memory, const double *regions, uint32_t count);
KVF_API int32_t kvf_nixl_deregister_job(kvf_word context, uint32_t slot, kvf_word agent, uint32_t memory, const double *regions, uint32_t count);
/* Byte result: the agent's metadata. With `count` regions of one memory type only those (partial, without connection
 * information); with count 0 and `partial` 1 the connection information only; with `partial` 0 everything. */
KVF_API int32_t kvf_nixl_metadata_job(kvf_word context, uint32_t slot, kvf_word agent, uint32_t partial, uint32_t memory, const double *regions, uint32_t count);
/* Loads a peer's metadata. Byte result: the name that NIXL read from it. When it is not `expected`, the peer is
 * invalidated again and the job fails with KVF_E_PEER. */
KVF_API int32_t kvf_nixl_load_peer_job(kvf_word context, uint32_t slot, kvf_word agent, const uint8_t *bytes, kvf_word length, const char *expected);
/* Drops all that NIXL and the library keep for a peer. */
KVF_API int32_t kvf_nixl_forget_peer_job(kvf_word context, uint32_t slot, kvf_word agent, const char *peer);
/* Moves a hop's bytes to (WRITE) or from (READ) a peer in pieces of at most `pieceBytes` bytes and `pieceRows`
 * descriptors (0: chosen so that a post takes about 5 ms). The local side of the programs is host or device memory
 * registered with the agent. `notification` is delivered after the data; length 0 with `notify` 0 sends none. */
KVF_API int32_t kvf_nixl_transfer_job(kvf_word context, uint32_t slot, kvf_word agent, const char *peer, uint32_t operation, const double *hop, kvf_word words, kvf_word pieceBytes, uint32_t pieceRows, const uint8_t *notification, uint32_t length, uint32_t notify);
/* Gives up on the slot's transfer: its lane is left to itself and replaced. The job still ends in a completion if it
 * ever ends. */
KVF_API int32_t kvf_nixl_abandon(kvf_word context, uint32_t slot);
/* Sends a notification without a transfer. */
KVF_API int32_t kvf_nixl_notify_job(kvf_word context, uint32_t slot, kvf_word agent, const char *peer, const uint8_t *bytes, uint32_t length);
/* Takes queued notifications as records: u32 name bytes, u32 payload bytes, name, payload, padded to 4.
 * out[0] = bytes written, out[1] = notifications dropped because the queue was full, out[2] = bytes still queued. */
KVF_API int32_t kvf_nixl_take_notifications(kvf_word agent, uint8_t *bytes, kvf_word capacity, double *out);
/* How eagerly to look for notifications: 0 idle (milliseconds), 1 somebody waits (tens of microseconds). */
KVF_API int32_t kvf_nixl_listen(kvf_word agent, uint32_t eager);
/* Stops the agent's threads and destroys it. Lanes that are stuck are left behind; value = how many. */
KVF_API int32_t kvf_nixl_agent_close_job(kvf_word context, uint32_t slot, kvf_word agent);

/* ---- CUDA ------------------------------------------------------------------------------------------------------
 * The driver library is loaded at run time; nothing here needs a GPU to be linked or called. Devices are CUDA
 * ordinals and must be opened before anything is done on them. Memory, contexts and registrations are made on a
 * thread of the library; copies are submitted on the calling thread when that takes microseconds, else on the
 * device's own submit thread.
 *
 * A device whose context reported a fault is poisoned: its running jobs end with KVF_E_CUDA and
 * KVF_DONE_TOUCHED | KVF_DONE_IN_DOUBT, every later call for it is refused with the cause.
 */

/* How a hop is copied. A method that does not fit a hop refuses it with KVF_E_INVALID; none is replaced in silence. */
#define KVF_CUDA_METHOD_DMA 1u     /* one asynchronous copy for each run of rows that continue each other */
#define KVF_CUDA_METHOD_PITCHED 2u /* one 2-D or 3-D copy for each base and pair; needs at most 2 loops, pitched */
#define KVF_CUDA_METHOD_BATCH 3u   /* batched copies, 4,096 descriptors a call; a loop of copies before driver 12.8 */
#define KVF_CUDA_METHOD_KERNEL 4u  /* loads and stores by a kernel; `width` CTAs; host sides pinned */
#define KVF_CUDA_METHOD_SLAB 5u    /* through a slab in device memory and large copies; one side host, one device */
#define KVF_CUDA_METHOD_BULK 6u    /* bulk asynchronous copies by a kernel; compute capability 9.0 and up, 16-byte aligned */

#define KVF_CUDA_WATCH 1u        /* report every program as it completes */
#define KVF_CUDA_CALLER_WAITS 2u /* make the caller's stream wait for the copy */
#define KVF_CUDA_INLINE 4u       /* submit on the calling thread whatever it costs */
#define KVF_CUDA_THREAD 8u       /* submit on the device's thread */
#define KVF_CUDA_WAKES 16u       /* the caller wakes who looks for the copy's end, by kvf_cuda_wake */

/* Kinds that kvf_cuda_pointer reports. */
#define KVF_CUDA_POINTER_PAGEABLE 0
#define KVF_CUDA_POINTER_PINNED 1
#define KVF_CUDA_POINTER_DEVICE 2
#define KVF_CUDA_POINTER_MANAGED 3

/* Bytes of an IPC handle, of memory or of an event. */
#define KVF_CUDA_IPC_BYTES 64

/* Loads the driver library from a path, or libcuda.so.1 when `path` is NULL or empty, and initialises it; once for the
 * process. value = driver version (13000 is 13.0). Byte result: the JSON text of kvf_cuda_info_job. */
KVF_API int32_t kvf_cuda_load_job(kvf_word context, uint32_t slot, const char *path);
/* Byte result: JSON, { driver, batch (arguments of the batched copy, 0: absent), kernels ("" or a hash), devices:
 * [{ ordinal, name, uuid, pci, major, minor, sms, memory, copyEngines, numaNode (-1: unknown), l2, integrated,
 * hostPointers, open, poisoned, code (architecture of the loaded kernels, "" when not loaded), peers: [ordinals] }] }. */
KVF_API int32_t kvf_cuda_info_job(kvf_word context, uint32_t slot);
/* Opens a device: primary context, kernels, streams, scratch. Opening again counts. */
KVF_API int32_t kvf_cuda_device_open_job(kvf_word context, uint32_t slot, int32_t device);
/* Closes it once for each open; the last one waits for its work, frees what it holds and lets the context go. */
KVF_API int32_t kvf_cuda_device_close_job(kvf_word context, uint32_t slot, int32_t device);
/* Lets two opened devices reach each other's memory where the hardware can (KVF_E_UNAVAILABLE where not). */
KVF_API int32_t kvf_cuda_peer_job(kvf_word context, uint32_t slot, int32_t device, int32_t peer);

/* Device memory. value = address. */
KVF_API int32_t kvf_cuda_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes);
KVF_API int32_t kvf_cuda_free_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address);
/* Pinned memory from the driver, valid for every device. value = address. */
KVF_API int32_t kvf_cuda_pinned_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes);
KVF_API int32_t kvf_cuda_pinned_free_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address);
/* Pins mapped host memory for every device, in pieces of at most 64 GiB; all or nothing. Page-aligned. */
KVF_API int32_t kvf_cuda_register_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes);
KVF_API int32_t kvf_cuda_unregister_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address);
/* Checks with the driver that all of a foreign region is memory of this kind (KVF_CUDA_POINTER_PINNED or _DEVICE) on
 * this device, and remembers it, so that copies do not ask again. */
KVF_API int32_t kvf_cuda_adopt_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes, uint32_t kind);
/* Forgets an adopted region. */
KVF_API int32_t kvf_cuda_disown(kvf_word address);
/* What the driver knows of an address. out[0] = kind, out[1] = device (-1: none), out[2] = start and out[3] = bytes of
 * its allocation. */
KVF_API int32_t kvf_cuda_pointer(kvf_word address, double *out);
/* out[0] = free bytes, out[1] = bytes in all. */
KVF_API int32_t kvf_cuda_memory_info(int32_t device, double *out);
/* Sets bytes of device or pinned memory. */
KVF_API int32_t kvf_cuda_set_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address, kvf_word bytes, uint32_t value);

/* Byte result: the IPC handle of the allocation that holds `address`; value = the address's offset in it. */
KVF_API int32_t kvf_cuda_ipc_export_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address);
/* Maps another process's allocation. value = its address here. Opening one again counts. */
KVF_API int32_t kvf_cuda_ipc_open_job(kvf_word context, uint32_t slot, int32_t device, const uint8_t *handle);
KVF_API int32_t kvf_cuda_ipc_close_job(kvf_word context, uint32_t slot, int32_t device, kvf_word address);
/* Device memory of which other processes can be given a descriptor (virtual memory API), for where IPC handles do not work.
 * Completes with its address; given back by kvf_cuda_free_job. */
KVF_API int32_t kvf_cuda_exportable_alloc_job(kvf_word context, uint32_t slot, int32_t device, kvf_word bytes);
/* Completes with a descriptor of the allocation that begins at the address, which the caller closes. */
KVF_API int32_t kvf_cuda_exportable_export_job(kvf_word context, uint32_t slot, kvf_word address);
/* Maps such an allocation of another process; the descriptor stays the caller's and open until the job ended. Completes with
 * its address; given back by kvf_cuda_free_job. */
KVF_API int32_t kvf_cuda_exportable_import_job(kvf_word context, uint32_t slot, int32_t device, int32_t descriptor, kvf_word bytes);
/* Opens another process's event. value = an event for `waits`. */
KVF_API int32_t kvf_cuda_event_open_job(kvf_word context, uint32_t slot, int32_t device, const uint8_t *handle);
KVF_API int32_t kvf_cuda_event_close_job(kvf_word context, uint32_t slot, int32_t device, kvf_word event);

/* Copies a hop on `device` with `method`. `width`: CTAs of kernels, 0 for the library's choice. `stream`: a caller's
 * stream whose present work comes first, or 0. `waits`: `count` pairs of doubles, a program's index and a CUDA event
 * that it waits for. `sources` and `destinations`: `ids` block ids each, which programs may name, or NULL and 0. All of
 * these are copied by the call or no longer needed when it returns.
 * value = bytes. Host sides may be pageable for METHOD_DMA and METHOD_BATCH only.
 * KVF_AGAIN, with KVF_CUDA_WAKES only: the job has begun, and the thread that looks for its end sleeps. Waking it takes longer
 * than all the rest of a short submission, so the caller does that by kvf_cuda_wake as soon as it has nothing better to do;
 * else the end is noticed some 50 ms late. */
KVF_API int32_t kvf_cuda_copy_job(kvf_word context, uint32_t slot, int32_t device, const double *hop, kvf_word words, uint32_t method, uint32_t width, uint32_t flags, kvf_word stream, const double *waits, uint32_t count, const uint32_t *sources, const uint32_t *destinations, uint32_t ids);
/* Wakes the thread that looks for the ends of copies, where one was submitted for which it should be awake. */
KVF_API int32_t kvf_cuda_wake(int32_t device);
/* A job that ends when a CUDA event has fired. */
KVF_API int32_t kvf_cuda_event_job(kvf_word context, uint32_t slot, int32_t device, kvf_word event);

/* Goes over what kvf_cuda_copy_job would do with the same, and moves nothing: a kernel is launched that has no work. So code and
 * data that were not used for milliseconds are in the processor's caches when the next copy is submitted. */
KVF_API int32_t kvf_cuda_rehearse(int32_t device, const double *hop, kvf_word words, uint32_t method, uint32_t width, const uint32_t *sources, const uint32_t *destinations, uint32_t ids);

/* For tests and measurements. out[0] = the device's CUDA context. */
KVF_API int32_t kvf_cuda_test_context(int32_t device, double *out);
/* out[0] = a new stream. */
KVF_API int32_t kvf_cuda_test_stream(int32_t device, double *out);
KVF_API int32_t kvf_cuda_test_stream_close(int32_t device, kvf_word stream);
/* out[0] = a new event recorded on the stream; given back by kvf_cuda_event_close_job. With `ipc` not NULL the event
 * can be opened by another process through the 64 bytes written there. */
KVF_API int32_t kvf_cuda_test_event(int32_t device, kvf_word stream, uint8_t *ipc, double *out);
/* Queues a kernel that holds one CTA for that many microseconds. */
KVF_API int32_t kvf_cuda_test_sleep(int32_t device, kvf_word stream, kvf_word micros);
/* Queues a kernel that reads an address nobody owns: poisons the device's context. */
KVF_API int32_t kvf_cuda_test_fault(int32_t device, kvf_word stream);
/* Copies as kvf_cuda_copy_job does and waits, on the calling thread, `repeats` times: for measurements. out[0] = bytes of
 * one, then for each repeat two doubles: microseconds to submit, microseconds in all. */
KVF_API int32_t kvf_cuda_test_copy(int32_t device, const double *hop, kvf_word words, uint32_t method, uint32_t width, uint32_t repeats, double *out);

/* ---- neighbours ------------------------------------------------------------------------------------------------
 * Processes of one host talk over local sockets and hand each other descriptors of memory. One thread for each
 * neighbour object accepts, receives and watches processes; what it saw waits as events, of which the context's
 * notifications word tells. Sending happens on the calling thread as far as there is room. All of these but
 * kvf_neighbour_map are for the thread that owns the context.
 *
 * Once both ends know who the other one is, messages go by two rings of bytes in shared memory, one for each direction, and
 * the socket is left for descriptors, for waking an end that sleeps, and for the end. Order is kept throughout.
 *
 * An event is a record: u32 kind, u32 connection, u32 payload bytes, u32 descriptors, then the descriptors (i32), then
 * the payload, padded to a multiple of 4. Who takes the event owns the descriptors.
 */

#define KVF_NEIGHBOUR_ACCEPTED 1 /* a process of this user connected; payload: u32 user, u32 process, u32 watched */
#define KVF_NEIGHBOUR_MESSAGE 2  /* a whole message */
#define KVF_NEIGHBOUR_CLOSED 3   /* no more will come; payload: why, in words */
#define KVF_NEIGHBOUR_EXITED 4   /* the process at the other end is gone: nothing of it runs any more */

/* Longest message; a longer one ends the connection. */
#define KVF_NEIGHBOUR_MESSAGE_BYTES 16777216
/* Most descriptors with one message. */
#define KVF_NEIGHBOUR_DESCRIPTORS 128

/* Makes a neighbour object and starts its thread. out[0] = it. */
KVF_API int32_t kvf_neighbour_open(kvf_word context, double *out);
/* Listens on an abstract name. Processes of other users are turned away and counted. */
KVF_API int32_t kvf_neighbour_listen(kvf_word neighbour, const char *name);
/* Connects to an abstract name. out[0] = connection, out[1] = user and out[2] = process that listens there,
 * out[3] = 1 when its end is watched. KVF_AGAIN: nobody accepts in time, try later. */
KVF_API int32_t kvf_neighbour_connect(kvf_word neighbour, const char *name, double *out);
/* The other end has shown who it is: it may send by a ring from now on. With `offer` 1 this end begins, with 0 it does so
 * once the other end has. A failure leaves the connection as it was. */
KVF_API int32_t kvf_neighbour_ring(kvf_word neighbour, uint32_t connection, uint32_t offer);
/* Sends a message, or queues what does not go now. `descriptors`: `count` pairs of doubles, a descriptor
 * and 1 when the receiver shall only read (it is opened anew for that). out[0] = bytes queued for this connection. */
KVF_API int32_t kvf_neighbour_send(kvf_word neighbour, uint32_t connection, const uint8_t *bytes, kvf_word length, const double *descriptors, uint32_t count, double *out);
/* While `here` is 1, JavaScript looks itself, with every call once, and the thread is not woken by what arrives; a last call
 * with 0 hands that back to it. For the short time in which a message is awaited without sleeping. out[0] = bytes of events
 * that wait to be taken. */
KVF_API int32_t kvf_neighbour_look(kvf_word neighbour, uint32_t here, double *out);
/* Takes whole events as records. out[0] = bytes written, out[1] = bytes of events that are left, out[2] = processes of
 * other users that were turned away so far. KVF_AGAIN when nothing was written. */
KVF_API int32_t kvf_neighbour_take(kvf_word neighbour, uint8_t *bytes, kvf_word capacity, double *out);
/* Closes a connection's socket once what is queued has gone; its process stays watched. */
KVF_API int32_t kvf_neighbour_shut(kvf_word neighbour, uint32_t connection);
/* Drops a connection, its socket and its watch. */
KVF_API int32_t kvf_neighbour_forget(kvf_word neighbour, uint32_t connection);
/* Drops everything and ends the thread. */
KVF_API int32_t kvf_neighbour_close(kvf_word neighbour);

#define KVF_NEIGHBOUR_READ_ONLY 1u /* map it so that this process cannot write */
#define KVF_NEIGHBOUR_KEEP 2u      /* leave the descriptor open */
#define KVF_NEIGHBOUR_OWN 4u       /* a file of this process's caller: any file of at least that size will do */

/* Maps all of the memory files that another process handed over, one after the other, after looking at each: it must be a
 * file in memory of exactly its bytes, sealed against shrinking, and all but the last one whole multiples of 2 MiB.
 * `files`: `count` pairs of doubles, a descriptor and the file's bytes. out[0] = address, out[1] = mapped bytes. The
 * descriptors are closed in any case, unless KEEP is set. Given back by kvf_memory_unmap. */
KVF_API int32_t kvf_neighbour_map(const double *files, uint32_t count, uint32_t flags, double *out);
/* Looks at a descriptor that a caller gave: seals it against shrinking where it can be. out[0] = bytes of the file,
 * out[1] = 1 when it can no more shrink, out[2] = a descriptor of our own for the same open file. */
KVF_API int32_t kvf_neighbour_inspect(int32_t descriptor, double *out);

/* ---- files -----------------------------------------------------------------------------------------------------
 * A file has a number, which programs give as the device of a side of kind 2; bases of that side are byte offsets. Each
 * file is served by a lane of its own: one thread with an io_uring where the kernel allows it, else several threads.
 * Aligned requests go past the page cache where the file system can.
 */

#define KVF_FILE_CREATE 1u    /* make it, or take over an empty one */
#define KVF_FILE_TEMPORARY 2u /* `path` is a directory: a file in it that has no name; with CREATE: a file that will lose its name */
#define KVF_FILE_REPLACE 4u   /* with CREATE: content that is there is given up */
#define KVF_FILE_BUFFERED 8u  /* never past the page cache */
#define KVF_FILE_THREADS 16u  /* threads also where io_uring is allowed */

/* Opens a file of `bytes` bytes; a new one has its space reserved. `depth`: requests in flight at most. value = its
 * number. KVF_E_BUSY: another layout has it open. */
KVF_API int32_t kvf_file_open_job(kvf_word context, uint32_t slot, const char *path, uint32_t flags, kvf_word bytes, uint32_t depth);
/* Closes it once its lane has ended; value = threads that hang and were left behind with it. */
KVF_API int32_t kvf_file_close_job(kvf_word context, uint32_t slot, uint32_t file);
/* out[0] = bytes, out[1] = 1 when requests can go past the page cache, out[2] and out[3] = alignment of addresses and of
 * offsets that this needs, out[4] = 1 when an io_uring serves it (known after its first copy), out[5] = its descriptor. */
KVF_API int32_t kvf_file_facts(uint32_t file, double *out);
/* Copies a hop whose programs have a file on one side and host memory on the other. */
KVF_API int32_t kvf_file_copy_job(kvf_word context, uint32_t slot, const double *hop, kvf_word words);

#endif
