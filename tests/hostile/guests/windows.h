/* Cases: instructions that KVM has to emulate because they touch a device window, and that no driver would use there.
 * Included by hostile.c only. */

#define WINDOW ((uint64_t)PYVMM_VIRTIO_BASE)

#define ON_WINDOW(name, text)                                                                                          \
    static int64_t name(table_t *table)                                                                                \
    {                                                                                                                  \
        (void)table;                                                                                                   \
        __asm__ volatile("mov %%rsp, %%r11; " text "; mov %%r11, %%rsp" ::"D"(WINDOW), "S"(PYVMM_ARENA_BASE)           \
                         : "memory", "cc", "rax", "rbx", "rcx", "rdx", "r8", "r11", "xmm0");                           \
        return 0;                                                                                                      \
    }

/* Read, change and write: the processor would lock the bus. */
ON_WINDOW(window_exchange, "mov $1, %%eax; xchg %%eax, 0x70(%%rdi)")
ON_WINDOW(window_add, "mov $1, %%eax; lock xadd %%eax, 0x70(%%rdi)")
ON_WINDOW(window_compare, "xor %%eax, %%eax; mov $1, %%ebx; lock cmpxchg %%ebx, 0x70(%%rdi)")
ON_WINDOW(window_compare_16, "lock cmpxchg16b 0x10(%%rdi)")
ON_WINDOW(window_bits, "lock btsl $3, 0x70(%%rdi)")
ON_WINDOW(window_negate, "lock negl 0x14(%%rdi)")
/* Strings, in both directions, and onto itself. */
ON_WINDOW(window_store_string, "mov $0x1000, %%ecx; mov %%rdi, %%r8; xor %%eax, %%eax; rep stosb; mov %%r8, %%rdi")
ON_WINDOW(window_store_words, "mov $0x200, %%ecx; mov %%rdi, %%r8; mov $-1, %%rax; rep stosq; mov %%r8, %%rdi")
ON_WINDOW(window_load_string, "mov $0x200, %%ecx; mov %%rdi, %%r8; xchg %%rsi, %%rdi; rep movsb; mov %%r8, %%rdi")
ON_WINDOW(window_move_string, "mov $0x80, %%ecx; mov %%rdi, %%r8; mov %%rdi, %%rsi; rep movsl; mov %%r8, %%rdi")
ON_WINDOW(window_compare_string, "mov $0x40, %%ecx; mov %%rdi, %%r8; repe cmpsb; mov %%r8, %%rdi")
ON_WINDOW(window_past_its_end, "mov $0x20001, %%ecx; mov %%rdi, %%r8; rep stosb; mov %%r8, %%rdi")
/* The stack in it. */
ON_WINDOW(window_push, "lea 0x78(%%rdi), %%rsp; push $0")
ON_WINDOW(window_pop, "mov %%rdi, %%rsp; pop %%rax")
ON_WINDOW(window_call, "lea 0x78(%%rdi), %%rsp; call 1f; 1:")
ON_WINDOW(window_return, "mov %%rdi, %%rsp; ret")
ON_WINDOW(window_interrupt_return, "mov %%rdi, %%rsp; iretq")
ON_WINDOW(window_trap, "lea 0x100(%%rdi), %%rsp; ud2")
/* Wide, unaligned, and state that is stored as a whole. */
ON_WINDOW(window_vector_store, "pxor %%xmm0, %%xmm0; movdqa %%xmm0, 0x70(%%rdi)")
ON_WINDOW(window_vector_load, "movdqu 0x3(%%rdi), %%xmm0")
ON_WINDOW(window_stream, "pxor %%xmm0, %%xmm0; movntdq %%xmm0, 0x80(%%rdi)")
ON_WINDOW(window_save_state, "fxsave (%%rdi)")
ON_WINDOW(window_load_state, "fxrstor (%%rdi)")
ON_WINDOW(window_float, "fldl (%%rdi); fstpl 0x70(%%rdi)")
ON_WINDOW(window_flush, "clflush (%%rdi)")
ON_WINDOW(window_descriptor_table, "sidt (%%rdi)")
/* Data of a request in a window: the device must not reach its own registers. */
static int64_t window_as_buffer(table_t *table)
{
    return table->read(0, 0, (void *)WINDOW, 512);
}
