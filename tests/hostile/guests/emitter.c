/* An operation that says whatever a script tells it: the content of device 0, or, where that is empty or absent, the
 * bytes that a test has put into the array below.  A script is a status (u32), a number of records (u32), and records of
 * kind, repeat, argument, length (u32 each) and so many bytes; tests/hostile/reports.py writes it. */
#include "pyvmm.h"

PYVMM_OPERATION(0);

enum { MESSAGE, BATCH, LOG, PROGRESS, ABORT, FAULT };

struct __attribute__((packed)) record {
    uint32_t kind, repeat, argument, length;
};

static struct pyvmm_control_block block;

/* Found by its first bytes and overwritten in the file. */
static unsigned char script[16384] = "pyvmm test script";

static void ring(uint32_t command, uint64_t a0, uint64_t a1, uint64_t a2)
{
    volatile struct pyvmm_control_block *shared = &block;

    shared->command = command;
    shared->arguments[0] = a0;
    shared->arguments[1] = a1;
    shared->arguments[2] = a2;
    shared->arguments[3] = shared->arguments[4] = 0;
    *(volatile uint64_t *)(uint64_t)PYVMM_CONTROL_BASE = (uint64_t)&block;
}

/* A test gives it another name, and this file as well. */
__attribute__((noinline)) static void name_of_a_function_that_fails(void)
{
    *(volatile int *)8 = 1;
}

static void play(const struct pyvmm_table *table, const struct record *record, const unsigned char *bytes)
{
    const uint64_t *numbers = (const void *)bytes;

    switch (record->kind) {
    case MESSAGE:
        if (table->emit(bytes, record->length) != 0)
            table->abort("the message was not taken", 25, 0);
        break;
    case BATCH:
        ring(PYVMM_COMMAND_EMIT, (uint64_t)bytes, record->length, 0);
        break;
    case LOG:
        ring(PYVMM_COMMAND_LOG, record->argument, (uint64_t)bytes, record->length);
        break;
    case PROGRESS:
        ring(PYVMM_COMMAND_PROGRESS, numbers[0], numbers[1], 0);
        break;
    case ABORT:
        table->abort(bytes, record->length, 0);
    default:
        name_of_a_function_that_fails();
    }
}

int64_t _start(const struct pyvmm_table *table)
{
    const unsigned char *at = script;
    struct pyvmm_device_info info = {0};
    struct pyvmm_pointer memory = {0};
    uint32_t status, count;

    if (table->device_info(0, &info) == 0 && info.length > 0) {
        if (table->alloc(info.length, 4096, &memory) != 0 ||
            table->read(0, 0, (void *)memory.address, info.length) != 0)
            table->abort("the script cannot be read", 25, 0);
        at = (const void *)memory.address;
    }
    status = ((const uint32_t *)at)[0];
    count = ((const uint32_t *)at)[1];
    at += 8;
    for (uint32_t index = 0; index < count; index++) {
        const struct record *record = (const void *)at;

        for (uint32_t again = 0; again < record->repeat; again++)
            play(table, record, at + sizeof(*record));
        at += sizeof(*record) + record->length;
    }
    return status;
}
