/* An operation that does what its request lists, step by step, from ring 3: accesses of any width to any address, calls
 * of the call table with any arguments, the doorbell, jumps.  It needs no runtime: what it has to say goes through the
 * doorbell.  tests/hostile/steps.py writes the requests. */
#include "pyvmm.h"

PYVMM_OPERATION(0);

enum { END, WRITE, READ, FILL, COPY, CALL, RING, LOOP, COUNT, JUMP, TELL, LAST };

struct step {
    uint32_t what, size;
    uint64_t a, b, c;
};

#define MOST 2048
#define DEPTH 4

static struct pyvmm_control_block block;
static struct __attribute__((packed)) {
    uint32_t length;
    uint64_t values[MOST];
} found = {8, {0}};

static int64_t ring(uint32_t command, const uint64_t *arguments)
{
    volatile struct pyvmm_control_block *shared = &block;

    shared->command = command;
    shared->result = 0;
    for (unsigned i = 0; i < 6; i++)
        shared->arguments[i] = arguments[i];
    *(volatile uint64_t *)(uint64_t)PYVMM_CONTROL_BASE = (uint64_t)&block;
    return shared->result;
}

/* What was found so far becomes a message: how many values, and they. */
static void tell(void)
{
    uint64_t arguments[6] = {(uint64_t)&found, 4 + found.length, 0, 0, 0, 0};

    found.values[0] = found.length / 8 - 1;
    ring(PYVMM_COMMAND_EMIT, arguments);
    found.length = 8;
}

static void keep(uint64_t value)
{
    if (found.length / 8 == MOST)
        tell();
    found.values[found.length / 8] = value;
    found.length += 8;
}

static void write(uint64_t address, uint64_t value, unsigned size)
{
    switch (size) {
    case 1: *(volatile uint8_t *)address = (uint8_t)value; break;
    case 2: *(volatile uint16_t *)address = (uint16_t)value; break;
    case 4: *(volatile uint32_t *)address = (uint32_t)value; break;
    case 8: *(volatile uint64_t *)address = value; break;
    default:
        __asm__ volatile("movq %1, %%xmm0; punpcklqdq %%xmm0, %%xmm0; movups %%xmm0, (%0)"
                         ::"r"(address), "r"(value) : "memory", "xmm0");
    }
}

static uint64_t read(uint64_t address, unsigned size)
{
    switch (size) {
    case 1: return *(volatile uint8_t *)address;
    case 2: return *(volatile uint16_t *)address;
    case 4: return *(volatile uint32_t *)address;
    default: return *(volatile uint64_t *)address;
    }
}

static void copy(uint64_t to, uint64_t from, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++)
        ((volatile unsigned char *)to)[i] = ((const volatile unsigned char *)from)[i];
}

typedef int64_t (*entry_t)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

static void perform(const struct pyvmm_table *table, const struct step *step)
{
    const uint64_t *arguments = (const void *)step->a;
    uint64_t count = 0;

    switch (step->what) {
    case WRITE:
        write(step->a, step->b, step->size);
        break;
    case READ:
        keep(read(step->a, step->size));
        break;
    case FILL:
        for (uint64_t i = 0; i + 8 <= step->c; i += 8)
            *(volatile uint64_t *)(step->a + i) = step->b;
        break;
    case COPY:
        copy(step->a, step->b, step->c);
        break;
    case CALL:
        keep((uint64_t)((entry_t)((const uint64_t *)table)[2 + step->size])(
            arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]));
        break;
    case RING:
        keep((uint64_t)ring(step->size, arguments));
        break;
    case COUNT:
        for (uint64_t i = 0; i + 8 <= step->c; i += 8)
            count += *(volatile uint64_t *)(step->a + i) == step->b;
        keep(count);
        break;
    case JUMP:
        ((void (*)(void))step->a)();
        break;
    case TELL:
        tell();
        break;
    default:
        __asm__ volatile("ud2");
    }
}

int64_t _start(const struct pyvmm_table *table)
{
    const struct step *step = (const void *)(uint64_t)PYVMM_REQUEST_BASE;
    const struct step *from[DEPTH];
    uint64_t left[DEPTH], inside[DEPTH];
    unsigned depth = 0;

    for (; step->what != END; step++) {
        if (step->what == LOOP) {
            from[depth] = step;
            left[depth] = step->a;
            inside[depth++] = step->b;
            continue;
        }
        perform(table, step);
        while (depth > 0 && step == from[depth - 1] + inside[depth - 1]) {
            if (--left[depth - 1] > 0) {
                step = from[depth - 1];
                break;
            }
            depth--;
        }
    }
    if (found.length > 8)
        tell();
    return (int64_t)step->a;
}
