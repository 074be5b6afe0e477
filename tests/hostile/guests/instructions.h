/* Cases: instructions that ring 3 may not execute, and state that they could leave behind.  Included by hostile.c only. */

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
