/* count: the SHA-256 of the first MiB of a file, and how many of its 512-byte sectors hold only zeroes.
 *
 * An operation in C needs nothing but the generated header: the call table comes as the entry function's argument, the
 * report leaves through emit() as CBOR (RFC 8949), and the return value is the status of the run.
 */
#include <stddef.h>
#include <stdint.h>

#include "pyvmm.h"
#include "sha256.h"

/* Nothing newer than version 1.0 of the table is used, so any runtime of major 1 will do. */
PYVMM_OPERATION(0);

enum { SECTOR = 512, CHUNK = 1 << 16, HASHED = 1 << 20 };

static uint8_t buffer[CHUNK];
static uint8_t message[256];
static size_t used;

/* The head of a CBOR item: major type and argument, shortest form. */
static void head(uint8_t major, uint64_t argument) {
    uint8_t initial = (uint8_t)(major << 5);
    if (argument < 24) {
        message[used++] = initial | (uint8_t)argument;
        return;
    }
    int width = argument <= 0xFF ? 0 : argument <= 0xFFFF ? 1 : argument <= 0xFFFFFFFFu ? 2 : 3;
    message[used++] = initial | (uint8_t)(24 + width);
    for (int shift = (8 << width) - 8; shift >= 0; shift -= 8) message[used++] = (uint8_t)(argument >> shift);
}

static void text(const char *characters, size_t length) {
    head(3, length);
    for (size_t i = 0; i < length; i++) message[used++] = (uint8_t)characters[i];
}

static void number(const char *key, size_t length, uint64_t value) {
    text(key, length);
    head(0, value);
}

#define KEY(literal) literal, sizeof(literal) - 1

static int is_zero(const uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != 0) return 0;
    return 1;
}

/* Tell why there is no answer: an `error` message and status 1. */
static int64_t refuse(const struct pyvmm_table *table, const char *why, size_t length) {
    used = 0;
    head(4, 2);
    text(KEY("error"));
    head(5, 2);
    text(KEY("code"));
    text(KEY("io"));
    text(KEY("message"));
    text(why, length);
    table->emit(message, used);
    return 1;
}

int64_t _start(const struct pyvmm_table *table) {
    struct pyvmm_device_info info;
    if (table->device_info(0, &info) < 0) return refuse(table, KEY("count needs a file"));

    struct sha256 hash;
    sha256_init(&hash);
    uint64_t zero_sectors = 0;
    for (uint64_t offset = 0; offset < info.length; offset += CHUNK) {
        size_t length = info.length - offset < CHUNK ? (size_t)(info.length - offset) : CHUNK;
        if (table->read(0, offset, buffer, length) < 0) return refuse(table, KEY("the file could not be read"));
        if (offset < HASHED) sha256_update(&hash, buffer, length);
        for (size_t at = 0; at < length; at += SECTOR)
            zero_sectors += (uint64_t)is_zero(buffer + at, length - at < SECTOR ? length - at : SECTOR);
        table->progress(offset + length, info.length);
    }
    char digest[64];
    sha256_final_hex(&hash, digest);

    /* ["count", {...}]: keys in the bytewise order of their encodings. */
    used = 0;
    head(4, 2);
    text(KEY("count"));
    head(5, 4);
    number(KEY("length"), info.length);
    text(KEY("sha256"));
    text(digest, sizeof digest);
    number(KEY("sectors"), (info.length + SECTOR - 1) / SECTOR);
    number(KEY("zero-sectors"), zero_sectors);
    return table->emit(message, used) < 0 ? 1 : 0;
}
