#include "status.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char text[KVF_TEXT_BYTES];

void kvf_set_error_va(const char *format, va_list args) {
    if (vsnprintf(text, sizeof text, format, args) < 0) text[0] = 0;
}

void kvf_set_error(const char *format, ...) {
    va_list args;
    va_start(args, format);
    kvf_set_error_va(format, args);
    va_end(args);
}

int32_t kvf_refuse(int32_t status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    kvf_set_error_va(format, args);
    va_end(args);
    return status;
}

const char *kvf_error_text(void) { return text; }

int32_t kvf_refuse_errno(int number, const char *format, ...) {
    va_list args;
    va_start(args, format);
    kvf_set_error_va(format, args);
    va_end(args);
    char reason[128] = "";
    /* The GNU form of strerror_r, which may answer a static text instead of filling the buffer. */
    const char *said = strerror_r(number, reason, sizeof reason);
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, ": %s (errno %d)", said, number);
    return KVF_E_SYSTEM;
}

static int32_t copy_text(char *out, uint32_t capacity, const char *from) {
    if (!out || capacity == 0) return KVF_E_INVALID;
    size_t length = strlen(from);
    bool fits = length < capacity;
    if (!fits) length = capacity - 1;
    memcpy(out, from, length);
    out[length] = 0;
    return fits ? KVF_OK : KVF_AGAIN;
}

#ifndef KVF_ABI_HASH
#error "KVF_ABI_HASH must be given by the build: 16 hex digits as a string"
#endif

int32_t kvf_abi_hash(char *out, uint32_t capacity) { return copy_text(out, capacity, KVF_ABI_HASH); }

int32_t kvf_last_error(char *out, uint32_t capacity) { return copy_text(out, capacity, text); }
