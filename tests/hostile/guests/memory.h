/* Cases: memory that the operation may not touch that way.  Included by hostile.c only. */

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
