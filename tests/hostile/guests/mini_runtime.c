/* The smallest runtime: rings READY, calls the operation without a call table, rings DONE.  For tests of the machine
 * that are to fail only when the machine is wrong. */
#include "pyvmm.h"

static struct pyvmm_control_block block;

static void ring(uint32_t command, uint64_t argument)
{
    volatile struct pyvmm_control_block *shared = &block;

    shared->command = command;
    shared->arguments[0] = argument;
    shared->arguments[1] = shared->arguments[2] = 0;
    *(volatile uint64_t *)(uint64_t)PYVMM_CONTROL_BASE = (uint64_t)&block;
}

void _start(void)
{
    const volatile struct pyvmm_boot_info *boot = (const void *)(uint64_t)PYVMM_BOOT_INFO;

    ring(PYVMM_COMMAND_READY, 0);
    ring(PYVMM_COMMAND_DONE, (uint64_t)((int64_t (*)(const void *))boot->operation_entry)((const void *)0));
    for (;;)
        ;
}
