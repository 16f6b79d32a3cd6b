/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 526944
#define KVF_KERNELS_HASH "b2d5dbdf357d46ec"

#endif
