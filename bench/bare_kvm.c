/*
 * The floor of a virtual machine's life: open /dev/kvm, create a VM with 2 MiB of RAM and one vCPU, run a few
 * instructions up to the first exit, close everything.  Prints the nanoseconds of each round, one a line.
 *
 * Source: Linux, Documentation/virt/kvm/api.rst.  The guest is real-mode code: mov $1, %al; out %al, $0x10; hlt.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RAM_SIZE (2u << 20)

static void fail(const char *what)
{
    fprintf(stderr, "bare_kvm: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void round_trip(void)
{
    static const uint8_t code[] = {0xb0, 0x01, 0xe6, 0x10, 0xf4};
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        fail("/dev/kvm");
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        fail("KVM_CREATE_VM");
    uint8_t *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ram == MAP_FAILED)
        fail("mmap");
    memcpy(ram, code, sizeof code);
    struct kvm_userspace_memory_region slot = {.memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
        fail("KVM_SET_USER_MEMORY_REGION");
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0)
        fail("KVM_CREATE_VCPU");
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        fail("mmap of the vCPU");
    struct kvm_sregs sregs;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
        fail("KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
        fail("KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = 0, .rflags = 2};
    if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
        fail("KVM_SET_REGS");
    if (ioctl(vcpu, KVM_RUN, 0) < 0)
        fail("KVM_RUN");
    if (run->exit_reason != KVM_EXIT_IO && run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "bare_kvm: exit reason %u\n", run->exit_reason);
        exit(1);
    }
    munmap(run, (size_t)size);
    close(vcpu);
    close(vm);
    close(kvm);
    munmap(ram, RAM_SIZE);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 20;
    for (int i = 0; i < rounds; i++) {
        uint64_t start = now();
        round_trip();
        printf("%llu\n", (unsigned long long)(now() - start));
    }
    return 0;
}
