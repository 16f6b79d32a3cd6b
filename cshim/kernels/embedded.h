/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 528048
#define KVF_KERNELS_HASH "4607f7559b5fc327"

#endif
