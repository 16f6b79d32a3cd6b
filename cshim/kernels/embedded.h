/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 594108
#define KVF_KERNELS_HASH "4b8cea98e4f490be"

#endif
