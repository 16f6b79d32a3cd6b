/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 646752
#define KVF_KERNELS_HASH "a2fafc2d67d62413"

#endif
