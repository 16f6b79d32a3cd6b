/*
 * cuda_info.c - what the driver and its devices are, as a JSON text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_device.h"
#include "cuda_kernels.h"
#include "status.h"

typedef struct text {
    char *at;
    size_t used, room;
    bool failed;
} text;

static void say(text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(text *out, const char *format, ...) {
    char piece[1024];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    if (length < 0 || out->failed) return;
    size_t add = (size_t)length < sizeof piece ? (size_t)length : sizeof piece - 1;
    if (out->used + add > out->room) {
        size_t room = 2 * (out->room + add) + 1024;
        char *more = realloc(out->at, room);
        if (!more) {
            out->failed = true;
            return;
        }
        out->at = more;
        out->room = room;
    }
    memcpy(out->at + out->used, piece, add);
    out->used += add;
}

/* The name as a JSON string's inside: the driver's names are plain, but nothing promises it. */
static void plain(char *name) {
    for (; *name; name++) {
        if (*name == '"' || *name == '\\' || (unsigned char)*name < 32) *name = ' ';
    }
}

static int numa_node(const char *pci) {
    char path[128], lower[32];
    size_t i = 0;
    for (; pci[i] && i < sizeof lower - 1; i++) lower[i] = pci[i] >= 'A' && pci[i] <= 'Z' ? (char)(pci[i] + 32) : pci[i];
    lower[i] = 0;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/numa_node", lower);
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    int node = -1;
    if (fscanf(file, "%d", &node) != 1) node = -1;
    fclose(file);
    return node;
}

static void describe(text *out, const kvf_cuda_driver *cu, int ordinal) {
    cu_device handle;
    if (cu->device_get(&handle, ordinal) != CU_OK) return;
    char name[256] = "", pci[32] = "", id[33] = "";
    cu_uuid uuid;
    size_t memory = 0;
    cu->device_name(name, sizeof name, handle);
    plain(name);
    cu->device_pci(pci, sizeof pci, handle);
    plain(pci);
    if (cu->device_uuid(&uuid, handle) == CU_OK) {
        for (int i = 0; i < 16; i++) snprintf(id + 2 * i, 3, "%02x", uuid.bytes[i]);
    }
    cu->device_memory(&memory, handle);
    static const struct { const char *name; int attribute; } numbers[] = {
        {"major", CU_ATTR_MAJOR}, {"minor", CU_ATTR_MINOR}, {"sms", CU_ATTR_SMS}, {"copyEngines", CU_ATTR_COPY_ENGINES}, {"l2", CU_ATTR_L2}};
    say(out, "{\"ordinal\":%d,\"name\":\"%s\",\"uuid\":\"%s\",\"pci\":\"%s\",\"memory\":%zu", ordinal, name, id, pci, memory);
    int value;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        value = 0;
        cu->device_attribute(&value, numbers[i].attribute, handle);
        say(out, ",\"%s\":%d", numbers[i].name, value);
    }
    int node = numa_node(pci);
    if (node < 0 && cu->device_attribute(&value, CU_ATTR_NUMA_NODE, handle) == CU_OK) node = value;
    say(out, ",\"numaNode\":%d", node);
    value = 0;
    cu->device_attribute(&value, CU_ATTR_INTEGRATED, handle);
    say(out, ",\"integrated\":%s", value ? "true" : "false");
    value = 0;
    cu->device_attribute(&value, CU_ATTR_HOST_POINTERS, handle);
    kvf_cuda_device *device = kvf_cuda_device_peek(ordinal);
    say(out, ",\"hostPointers\":%s,\"open\":%s,\"poisoned\":%s,\"code\":\"%s\",\"bulk\":%s,\"peers\":[", value ? "true" : "false", device ? "true" : "false",
        device && device->poisoned ? "true" : "false", device ? device->code : "", device && device->kernel[KVF_KERNEL_BULK] ? "true" : "false");
    for (int peer = 0, first = 1; peer < cu->devices; peer++) {
        cu_device other;
        int can = 0;
        if (peer == ordinal || cu->device_get(&other, peer) != CU_OK || cu->device_peer(&can, handle, other) != CU_OK || !can) continue;
        say(out, first ? "%d" : ",%d", peer);
        first = 0;
    }
    say(out, "]}");
}

char *kvf_cuda_describe(size_t *length) {
    const kvf_cuda_driver *cu = kvf_cuda_driver_get();
    text out = {0};
    char path[sizeof cu->path];
    snprintf(path, sizeof path, "%s", cu->path);
    plain(path);
    say(&out, "{\"driver\":%d,\"library\":\"%s\",\"batch\":%d,\"kernels\":\"%s\",\"devices\":[", cu->version, path, cu->batch8 ? 8 : cu->batch9 ? 9 : 0,
        kvf_kernels_hash());
    for (int i = 0; i < cu->devices; i++) {
        if (i > 0) say(&out, ",");
        describe(&out, cu, i);
    }
    say(&out, "]}");
    if (out.failed) {
        free(out.at);
        kvf_set_error("CUDA: no memory for the description");
        return NULL;
    }
    *length = out.used;
    return out.at;
}
