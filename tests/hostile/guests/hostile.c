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

/* --- memory ---------------------------------------------------------------------------------------------------- */

__attribute__((noinline)) static uint64_t recurse(uint64_t depth)
{
    volatile unsigned char block[512];

    block[depth % sizeof(block)] = (unsigned char)depth;
    return recurse(depth + 1) + block[0];
}

static int64_t stack_overflow(table_t *table)
{
    (void)table;
    return (int64_t)recurse(0);
}

static int64_t above_stack(table_t *table)
{
    (void)table;
    AT(PYVMM_STACK_BASE + PYVMM_STACK_SIZE) = 1;
    return 0;
}

static int64_t write_text(table_t *table)
{
    (void)table;
    *(volatile unsigned char *)(uint64_t)&spin = 0x90;
    return 0;
}

static const uint64_t constant = 7;

static int64_t write_constant(table_t *table)
{
    (void)table;
    AT(&constant) = 1;
    return 0;
}

static int64_t write_call_table(table_t *table)
{
    AT(table) = 0;
    return 0;
}

static int64_t write_boot_page(table_t *table)
{
    (void)table;
    AT(PYVMM_BOOT_INFO) = 0;
    return 0;
}

static int64_t write_request(table_t *table)
{
    (void)table;
    AT(PYVMM_REQUEST_BASE) = 0;
    return 0;
}

static void jump(uint64_t address)
{
    ((void (*)(void))address)();
}

static int64_t jump_to_data(table_t *table)
{
    (void)table;
    jump((uint64_t)big_data);
    return 0;
}

static int64_t jump_to_stack(table_t *table)
{
    volatile unsigned char code[16] = {0xC3};

    (void)table;
    jump((uint64_t)code);
    return 0;
}

static int64_t jump_to_arena(table_t *table)
{
    (void)table;
    AT(PYVMM_ARENA_BASE) = 0xC3;
    jump(PYVMM_ARENA_BASE);
    return 0;
}

static int64_t jump_to_stub(table_t *table)
{
    (void)table;
    jump(PYVMM_SYSTEM_BASE + PYVMM_PAGE_SIZE);
    return 0;
}

static int64_t jump_to_null(table_t *table)
{
    (void)table;
    jump(zero);
    return 0;
}

static int64_t read_page_zero(table_t *table)
{
    (void)table;
    return (int64_t)AT(zero + 8);
}

static int64_t write_page_zero(table_t *table)
{
    (void)table;
    AT(zero + 8) = 1;
    return 0;
}

static int64_t read_system(table_t *table)
{
    (void)table;
    return (int64_t)AT(PYVMM_SYSTEM_BASE);
}

static int64_t write_page_tables(table_t *table)
{
    (void)table;
    AT(PYVMM_SYSTEM_BASE + 2 * PYVMM_PAGE_SIZE) = 0;
    return 0;
}

static int64_t write_ring0_stack(table_t *table)
{
    (void)table;
    AT(PYVMM_KERNEL_STACK_BASE) = 0;
    return 0;
}

static int64_t below_arena(table_t *table)
{
    (void)table;
    AT(PYVMM_ARENA_BASE - 8) = 1;
    return 0;
}

static int64_t above_hot_arena(table_t *table)
{
    (void)table;
    AT(PYVMM_ARENA_BASE + PYVMM_ARENA_HOT) = 1;
    return 0;
}

static int64_t above_memory(table_t *table)
{
    const struct pyvmm_boot_info *boot = (const void *)(uint64_t)PYVMM_BOOT_INFO;

    (void)table;
    AT(PYVMM_COLD_BASE + boot->arena_size) = 1;
    return 0;
}

static int64_t far_away(table_t *table)
{
    (void)table;
    AT(0x700000000000ull) = 1;
    return 0;
}

static int64_t kernel_half(table_t *table)
{
    (void)table;
    AT(0xFFFF800000000000ull) = 1;
    return 0;
}

static int64_t non_canonical(table_t *table)
{
    (void)table;
    AT(0x8000000000000000ull) = 1;
    return 0;
}

static int64_t non_canonical_jump(table_t *table)
{
    (void)table;
    jump(0x8000000000000000ull);
    return 0;
}

static int64_t lost_stack(table_t *table)
{
    (void)table;
    __asm__ volatile("xor %%esp, %%esp; push %%rax" ::: "memory");
    return 0;
}

static int64_t non_canonical_stack(table_t *table)
{
    (void)table;
    __asm__ volatile("movabs $0x8000000000000000, %%rsp; push %%rax" ::: "memory");
    return 0;
}

/* --- instructions ---------------------------------------------------------------------------------------------- */

#define ONE(name, text)                     \
    static int64_t name(table_t *table)     \
    {                                       \
        (void)table;                        \
        INSTRUCTION(text);                  \
        return 0;                           \
    }

ONE(halt, "hlt")
ONE(clear_interrupts, "cli")
ONE(port_in, "mov $0x64, %%edx; in %%dx, %%al")
ONE(port_out, "mov $0x3F8, %%edx; mov $65, %%al; out %%al, %%dx")
ONE(system_call, "xor %%eax, %%eax; syscall")
ONE(system_enter, "sysenter")
ONE(interrupt, "int $0x80")
ONE(breakpoint, "int3")
ONE(single_step, "pushf; orl $0x100, (%%rsp); popf; nop; nop")
ONE(undefined, "ud2")
ONE(divide, "xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx")
ONE(write_msr, "mov $0xC0000080, %%ecx; xor %%eax, %%eax; xor %%edx, %%edx; wrmsr")
ONE(read_msr, "mov $0xC0000080, %%ecx; rdmsr")
ONE(write_cr3, "xor %%eax, %%eax; mov %%rax, %%cr3")
ONE(load_idt, "lidt (%%rsp)")
ONE(far_return, "push $0x10; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:")
ONE(vm_call, "vmcall")
ONE(invalidate, "invd")

/* An SSE exception that the program asked for. */
static int64_t simd_exception(table_t *table)
{
    uint32_t control = 0x1F00; /* invalid operation unmasked */

    (void)table;
    __asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; divss %%xmm0, %%xmm0" ::"m"(control) : "xmm0");
    return 0;
}

/* --- the devices ----------------------------------------------------------------------------------------------- */

static struct pyvmm_control_block block;

static int64_t ring(uint32_t command, uint64_t a0, uint64_t a1, uint64_t a2)
{
    volatile struct pyvmm_control_block *shared = &block;

    shared->command = command;
    shared->arguments[0] = a0;
    shared->arguments[1] = a1;
    shared->arguments[2] = a2;
    shared->arguments[3] = shared->arguments[4] = 0;
    AT(PYVMM_CONTROL_BASE) = (uint64_t)&block;
    return shared->result;
}

static int64_t ring_trap_page(table_t *table)
{
    (void)table;
    AT(PYVMM_TRAP_BASE) = 14;
    return 0;
}

static int64_t ring_absent_device(table_t *table)
{
    (void)table;
    AT(PYVMM_VIRTIO_BASE + (PYVMM_MAX_DEVICES - 1) * PYVMM_VIRTIO_STRIDE) = 1;
    return 0;
}

static int64_t ready_again(table_t *table)
{
    (void)table;
    return ring(PYVMM_COMMAND_READY, 0, 0, 0);
}

static int64_t unknown_command(table_t *table)
{
    (void)table;
    return ring(0x7FFFFFFF, 0, 0, 0);
}

static int64_t control_block_in_system(table_t *table)
{
    (void)table;
    AT(PYVMM_CONTROL_BASE) = PYVMM_SYSTEM_BASE;
    return 0;
}

static int64_t control_block_nowhere(table_t *table)
{
    (void)table;
    AT(PYVMM_CONTROL_BASE) = 0xFFFFFFFFFFFFFFF8ull;
    return 0;
}

static int64_t report_from_system(table_t *table)
{
    (void)table;
    return ring(PYVMM_COMMAND_EMIT, PYVMM_SYSTEM_BASE, 4096, 0);
}

static int64_t batch_too_long(table_t *table)
{
    (void)table;
    AT(PYVMM_ARENA_BASE) = 0xFFFFFFFF;
    return ring(PYVMM_COMMAND_EMIT, PYVMM_ARENA_BASE, 64, 0);
}

static int64_t odd_doorbell(table_t *table)
{
    (void)table;
    *(volatile unsigned char *)(uint64_t)(PYVMM_CONTROL_BASE + 5) = 1;
    return 0;
}

static int64_t wide_doorbell(table_t *table)
{
    (void)table;
    __asm__ volatile("movups %%xmm0, (%0)" ::"r"((uint64_t)PYVMM_CONTROL_BASE) : "memory");
    return 0;
}

static int64_t execute_device(table_t *table)
{
    (void)table;
    jump(PYVMM_CONTROL_BASE);
    return 0;
}

static int64_t log_flood(table_t *table)
{
    for (;;)
        table->log(1, "again and again", 15);
}

static int64_t message_flood(table_t *table)
{
    for (;;)
        table->emit("\x82\x61" "a\xa0", 4); /* ["a", {}] */
}

static int64_t report_flood(table_t *table)
{
    static unsigned char message[16384] = {0x82, 0x61, 'a', 0x59, 0x3F, 0xFA}; /* ["a", h'...'] */

    for (;;)
        table->emit(message, sizeof(message));
}

static int64_t read_flood(table_t *table)
{
    static unsigned char buffer[4096];

    for (;;)
        table->read(0, 4096, buffer, sizeof(buffer));
}

static int64_t read_and_divide(table_t *table)
{
    static unsigned char buffer[512];

    table->read(0, 65536, buffer, sizeof(buffer));
    return divide(table);
}

static int64_t wrong_cbor(table_t *table)
{
    table->emit("\xFF\xFE", 2);
    return 0;
}

static int64_t garbage_status(table_t *table)
{
    (void)table;
    return -0x123456789ALL;
}

static int64_t panic(table_t *table)
{
    table->abort("an \x1b[31mescape\x07 and \xff", 19, 0);
}

static int64_t endless_text(table_t *table)
{
    (void)table;
    return ring(PYVMM_COMMAND_ABORT, PYVMM_ARENA_BASE, ~0ull, 0);
}

/* A queue full of nonsense, then a doorbell.  QueueNotify: VIRTIO 1.2, section 4.2.2. */
static int64_t nonsense_ring(table_t *table)
{
    volatile unsigned char *queue = (volatile unsigned char *)(uint64_t)PYVMM_QUEUES_BASE;

    (void)table;
    for (unsigned i = 0; i < PYVMM_QUEUE_STRIDE; i++)
        queue[i] = (unsigned char)(i * 151 + 7);
    *(volatile uint32_t *)(uint64_t)(PYVMM_VIRTIO_BASE + 0x50) = 0;
    /* Whatever the device made of it, it answers its registers still. */
    return *(volatile uint32_t *)(uint64_t)PYVMM_VIRTIO_BASE == 0x74726976 ? 42 : 43;
}

/* Descriptor 0 points at itself; sections 2.7.5 and 2.7.6. */
static int64_t looped_ring(table_t *table)
{
    volatile unsigned char *queue = (volatile unsigned char *)(uint64_t)PYVMM_QUEUES_BASE;

    (void)table;
    for (unsigned i = 0; i < PYVMM_QUEUE_STRIDE; i++)
        queue[i] = 0;
    for (unsigned i = 0; i < PYVMM_QUEUE_STRIDE; i += 16) {
        *(volatile uint64_t *)(queue + i) = PYVMM_ARENA_BASE;
        *(volatile uint32_t *)(queue + i + 8) = 16;
        *(volatile uint16_t *)(queue + i + 12) = 1; /* NEXT, to 0 */
    }
    *(volatile uint32_t *)(uint64_t)(PYVMM_VIRTIO_BASE + 0x50) = 0;
    return *(volatile uint32_t *)(uint64_t)PYVMM_VIRTIO_BASE == 0x74726976 ? 42 : 43;
}

/* A read of the disk into memory that the guest itself may not write. */
#define DMA(name, address)                                           \
    static int64_t name(table_t *table)                              \
    {                                                                \
        return table->read(0, 0, (void *)(uint64_t)(address), 512);  \
    }

DMA(dma_text, &spin)
DMA(dma_constants, &constant)
DMA(dma_call_table, PYVMM_CALL_TABLE)
DMA(dma_boot_page, PYVMM_BOOT_INFO)
DMA(dma_request, PYVMM_REQUEST_BASE)
DMA(dma_stubs, PYVMM_SYSTEM_BASE + PYVMM_PAGE_SIZE)
DMA(dma_page_tables, PYVMM_SYSTEM_BASE + 2 * PYVMM_PAGE_SIZE)
DMA(dma_ring0_stack, PYVMM_KERNEL_STACK_BASE)
DMA(dma_page_zero, zero)
DMA(dma_doorbell, PYVMM_CONTROL_BASE)
DMA(dma_wrap, 0xFFFFFFFFFFFFFF00ull)
DMA(dma_across_guard, PYVMM_STACK_BASE + PYVMM_STACK_SIZE - 256)

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
