/*
 * status.h - how every function of the library reports: a status and a text for the calling thread.
 */
#ifndef KVF_STATUS_H
#define KVF_STATUS_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "kvf.h"

/* Longest error text, terminating zero included; longer ones are cut. */
#define KVF_TEXT_BYTES 512

/* Records the calling thread's last error text (what kvf_last_error answers). */
void kvf_set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void kvf_set_error_va(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

/* The same, and returns `status`, so that a refusal is one line: return kvf_refuse(KVF_E_INVALID, "..."). */
int32_t kvf_refuse(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The calling thread's last error text; never NULL, valid until the thread's next failure. */
const char *kvf_error_text(void);

/* Appends ": strerror(number) (errno number)" to the thread's text and returns KVF_E_SYSTEM. */
int32_t kvf_refuse_errno(int number, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
