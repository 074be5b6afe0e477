/* What tests look at with gdb: functions with arguments, variables, a message, and an end that is chosen when it is compiled. */
#include "pyvmm.h"

PYVMM_OPERATION(0);

#ifndef END
#define END 0
#endif

typedef const struct pyvmm_table table_t;

#define PLAIN __attribute__((noinline, optnone))

static volatile char word[8] = "planted";
static volatile int64_t counter;

PLAIN static int64_t add(int64_t left, int64_t right)
{
    int64_t sum = left + right;

    counter += sum;
    return sum;
}

PLAIN static int64_t work(int64_t start)
{
    int64_t total = start;

    for (int64_t i = 1; i <= 3; i++)
        total = add(total, i);
    return total;
}

PLAIN static void spin(void)
{
    for (;;)
        counter++;
}

PLAIN static void crash(volatile int64_t *place)
{
    *place = 1; /* the fault */
}

PLAIN int64_t _start(table_t *table)
{
    int64_t total = work(10);
    /* ["total", {"value": total, "letter": word[0]}], small numbers only */
    unsigned char message[] = {0x82, 0x65, 't', 'o', 't', 'a', 'l', 0xA2, 0x65, 'v', 'a', 'l', 'u', 'e', 0x17,
                               0x66, 'l', 'e', 't', 't', 'e', 'r', 0x61, 0};

    message[14] = (unsigned char)(total & 15);
    message[sizeof(message) - 1] = (unsigned char)word[0];
    table->emit(message, sizeof(message));
    if (END == 1)
        spin();
    if (END == 2)
        crash((volatile int64_t *)(PYVMM_STACK_BASE - 8));
    return 0;
}
