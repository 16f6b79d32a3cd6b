/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 605924
#define KVF_KERNELS_HASH "4c8db9bec02836c1"

#endif
