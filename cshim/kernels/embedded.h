/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 594108
#define KVF_KERNELS_HASH "36f3ea070a73d7c0"

#endif
