#include "mapping.h"

#include <stddef.h>
#include <sys/mman.h>

/* More is reserved than needed, and what is over is given back. */
void *kvf_mapping_reserve(uint64_t bytes) {
    uint8_t *reserved = mmap(NULL, bytes + KVF_HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return MAP_FAILED;
    uint64_t before = (KVF_HUGE_PAGE - (uintptr_t)reserved % KVF_HUGE_PAGE) % KVF_HUGE_PAGE;
    if (before > 0) munmap(reserved, before);
    munmap(reserved + before + bytes, KVF_HUGE_PAGE - before); /* never nothing */
    return reserved + before;
}
