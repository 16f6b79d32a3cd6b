/* cuda_kernels.c - the compiled kernels, as build.ts wrote them. A library built without them copies by DMA alone. */
#include "cuda_kernels.h"

#if __has_include("kernels/embedded.h")
#include "kernels/embedded.h"

__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        ".globl kvf_kernels_image\n"
        ".hidden kvf_kernels_image\n"
        "kvf_kernels_image:\n"
        ".incbin \"kernels/embedded.bin\"\n"
        ".popsection\n");
extern const unsigned char kvf_kernels_image[] __attribute__((visibility("hidden")));

const unsigned char *kvf_kernels(uint64_t *bytes) {
    *bytes = KVF_KERNELS_BYTES;
    return kvf_kernels_image;
}

const char *kvf_kernels_hash(void) {
    return KVF_KERNELS_HASH;
}

#else

const unsigned char *kvf_kernels(uint64_t *bytes) {
    *bytes = 0;
    return 0;
}

const char *kvf_kernels_hash(void) {
    return "";
}

#endif
