/* One operation that misbehaves in the way its request names: a CBOR text string. */
#include "pyvmm.h"

PYVMM_OPERATION(0);

typedef const struct pyvmm_table table_t;

static volatile uint64_t zero;
static unsigned char big_data[4096] = {0xC3}; /* a `ret`, were it executable */

#define AT(address) (*(volatile uint64_t *)(uint64_t)(address))
#define INSTRUCTION(text) __asm__ volatile(text ::: "memory", "rax", "rbx", "rcx", "rdx", "r11")

/* --- never ends ------------------------------------------------------------------------------------------------ */

static int64_t spin(table_t *table)
{
    (void)table;
    for (;;)
        __asm__ volatile("");
}

static int64_t spin_on_exits(table_t *table)
{
    (void)table;
    for (;;)
        (void)*(volatile uint32_t *)(uint64_t)PYVMM_CONTROL_BASE;
}

#include "memory.h"

#include "instructions.h"

#include "devices.h"

#include "windows.h"

/* --- state that must not reach the next run -------------------------------------------------------------------- */

static int64_t soil(table_t *table)
{
    struct pyvmm_pointer memory = {0};
    uint32_t control = 0x7F80; /* round towards zero */
    uint16_t x87 = 0x0F7F;

    for (unsigned i = 0; i < sizeof(big_data); i++)
        big_data[i] = 0xAA;
    for (uint64_t at = PYVMM_ARENA_BASE; at < PYVMM_ARENA_BASE + PYVMM_ARENA_HOT; at += 8)
        AT(at) = 0xAAAAAAAAAAAAAAAAull;
    for (uint64_t at = PYVMM_COLD_BASE; at < PYVMM_COLD_BASE + (6u << 20); at += 512)
        AT(at) = 0xAAAAAAAAAAAAAAAAull;
    for (uint64_t at = PYVMM_STACK_BASE; at < PYVMM_STACK_BASE + PYVMM_STACK_SIZE / 2; at += 8)
        AT(at) = 0xAAAAAAAAAAAAAAAAull;
    (void)table->alloc(1u << 20, 4096, &memory);
    __asm__ volatile("ldmxcsr %0; fldcw %1; fldpi; pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm15, %%xmm15; std"
                     ::"m"(control), "m"(x87) : "xmm0", "xmm15");
    __asm__ volatile("cld");
    return 0;
}

/* Selectors and whatever else ring 3 can load. */
static int64_t soil_segments(table_t *table)
{
    (void)table;
    __asm__ volatile("xor %%eax, %%eax; mov %%eax, %%fs; mov %%eax, %%gs; mov %%eax, %%ds; mov %%eax, %%es" ::: "rax");
    return 0;
}

/* Instructions that the CPUID model does not offer: undefined, or, where ring 3 runs on the bare processor, state that
 * KVM_SET_FPU would not reach.  As bytes, because the assembler does not know them for this target. */
ONE(soil_avx, ".byte 0xC5, 0xFC, 0xC2, 0xC0, 0x0F")                                 /* vcmptrueps ymm0, ymm0, ymm0 */
ONE(soil_fs_base, "mov $0x123000, %%eax; .byte 0xF3, 0x48, 0x0F, 0xAE, 0xD0")         /* wrfsbase rax */
ONE(soil_keys, "xor %%ecx, %%ecx; xor %%edx, %%edx; mov $0xFFFFFFFC, %%eax; .byte 0x0F, 0x01, 0xEF") /* wrpkru */

static int64_t innocent(table_t *table)
{
    (void)table;
    return 0;
}

/* --------------------------------------------------------------------------------------------------------------- */

#define CASE(name) {#name, name}

static const struct {
    const char *name;
    int64_t (*run)(table_t *);
} cases[] = {
    CASE(spin), CASE(spin_on_exits), CASE(stack_overflow), CASE(above_stack), CASE(write_text), CASE(write_constant),
    CASE(write_call_table), CASE(write_boot_page), CASE(write_request), CASE(jump_to_data), CASE(jump_to_stack),
    CASE(jump_to_arena), CASE(jump_to_stub), CASE(jump_to_null), CASE(read_page_zero), CASE(write_page_zero),
    CASE(read_system), CASE(write_page_tables), CASE(write_ring0_stack), CASE(below_arena), CASE(above_hot_arena),
    CASE(above_memory), CASE(far_away), CASE(kernel_half), CASE(non_canonical), CASE(non_canonical_jump),
    CASE(lost_stack), CASE(non_canonical_stack), CASE(halt), CASE(clear_interrupts), CASE(port_in), CASE(port_out),
    CASE(system_call), CASE(system_enter), CASE(interrupt), CASE(breakpoint), CASE(single_step), CASE(undefined),
    CASE(divide), CASE(write_msr), CASE(read_msr), CASE(write_cr3), CASE(load_idt), CASE(far_return), CASE(vm_call),
    CASE(invalidate), CASE(simd_exception), CASE(ring_trap_page), CASE(ring_absent_device), CASE(ready_again),
    CASE(unknown_command), CASE(control_block_in_system), CASE(control_block_nowhere), CASE(report_from_system),
    CASE(batch_too_long), CASE(odd_doorbell), CASE(wide_doorbell), CASE(execute_device), CASE(log_flood),
    CASE(message_flood), CASE(report_flood), CASE(read_flood),
    CASE(read_and_divide), CASE(wrong_cbor), CASE(garbage_status), CASE(panic), CASE(endless_text),
    CASE(nonsense_ring), CASE(looped_ring), CASE(dma_text), CASE(dma_constants),
    CASE(dma_call_table), CASE(dma_boot_page), CASE(dma_request), CASE(dma_stubs), CASE(dma_page_tables),
    CASE(dma_ring0_stack), CASE(dma_page_zero), CASE(dma_doorbell), CASE(dma_wrap), CASE(dma_across_guard), CASE(soil), CASE(soil_segments),
    CASE(window_exchange), CASE(window_add), CASE(window_compare), CASE(window_compare_16), CASE(window_bits),
    CASE(window_negate), CASE(window_store_string), CASE(window_store_words), CASE(window_load_string),
    CASE(window_move_string), CASE(window_compare_string), CASE(window_past_its_end), CASE(window_push),
    CASE(window_pop), CASE(window_call), CASE(window_return), CASE(window_interrupt_return), CASE(window_trap),
    CASE(window_vector_store), CASE(window_vector_load), CASE(window_stream), CASE(window_save_state),
    CASE(window_load_state), CASE(window_float), CASE(window_flush), CASE(window_descriptor_table),
    CASE(window_as_buffer),
    CASE(soil_avx), CASE(soil_fs_base), CASE(soil_keys), CASE(innocent),
};

int64_t _start(table_t *table)
{
    const unsigned char *request = (const void *)(uint64_t)PYVMM_REQUEST_BASE;
    const unsigned char *text = request[0] == 0x78 ? request + 2 : request + 1;
    unsigned length = request[0] == 0x78 ? request[1] : request[0] - 0x60u;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned at = 0;

        while (at < length && cases[i].name[at] == (char)text[at])
            at++;
        if (at == length && cases[i].name[at] == 0)
            return cases[i].run(table);
    }
    return 255;
}
