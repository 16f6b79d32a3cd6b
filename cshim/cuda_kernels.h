/* cuda_kernels.h - the compiled kernels: a table (count, then architecture, is text, offset, packed bytes and bytes for
 * each image) as 32-bit words, and the images behind it, packed as runs of words: how many follow as they are, how many
 * zeros come behind them. */
#ifndef KVF_CUDA_KERNELS_H
#define KVF_CUDA_KERNELS_H

#include <stdint.h>

/* The images, or NULL when the library was built without. */
const unsigned char *kvf_kernels(uint64_t *bytes);
/* Hash of the sources that they were made from, "" without. */
const char *kvf_kernels_hash(void);

#endif
