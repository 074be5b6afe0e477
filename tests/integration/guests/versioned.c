/* An operation for tests of the version rule: says which minor the table has, and uses the newest entry it knows. */
#include "pyvmm.h"

#ifndef NEEDED
#define NEEDED 0
#endif
PYVMM_OPERATION(NEEDED);

int64_t _start(const struct pyvmm_table *table)
{
    /* CBOR: ["version", {"minor": n}] */
    uint8_t message[] = {0x82, 0x67, 'v', 'e', 'r', 's', 'i', 'o', 'n', 0xa1, 0x65, 'm', 'i', 'n', 'o', 'r', 0};
    struct pyvmm_budget budget;
#ifdef USE_NEWEST
    struct pyvmm_write_request none = {0};
#endif

    if (table->magic != PYVMM_TABLE_MAGIC || table->major != PYVMM_TABLE_MAJOR)
        return 3;
    if (table->budget(&budget) != 0)
        return 4;
#ifdef USE_NEWEST
    if (table->write_many(&none, 0) != 0)
        return 5;
#endif
    message[sizeof message - 1] = (uint8_t)table->minor;
    return table->emit(message, sizeof message) == 0 ? 0 : 6;
}
