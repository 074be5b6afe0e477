/* Cases: nonsense at the doorbell and in the rings, floods, and reads of the disk into protected memory.  Included by hostile.c only. */

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
