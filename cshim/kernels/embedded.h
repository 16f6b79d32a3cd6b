/* Written by build.ts; do not edit. */
#ifndef KVF_KERNELS_EMBEDDED_H
#define KVF_KERNELS_EMBEDDED_H

#define KVF_KERNELS_BYTES 581552
#define KVF_KERNELS_HASH "78db011e2d2c343c"

#endif
