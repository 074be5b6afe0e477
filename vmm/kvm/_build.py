"""Builds ``vmm.kvm._binding``: cffi in API mode, so that the C compiler checks every structure and constant.

Only fields that are used are declared; ``...;`` lets the compiler fill in the rest from ``<linux/kvm.h>``.  The C part
is ``_binding_source.c`` beside this file: what must not run in Python is there (a signal handler, the entry into the
guest, the state of a vCPU in one call).
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

#: ``static const int`` of each: cffi reads the value from the header.
_CONSTANTS = (
    "KVM_API_VERSION",
    "KVM_CAP_USER_MEMORY",
    "KVM_CAP_EXT_CPUID",
    "KVM_CAP_IMMEDIATE_EXIT",
    "KVM_CAP_XSAVE",
    "KVM_CAP_VCPU_EVENTS",
    "KVM_EXIT_SHUTDOWN",
    "KVM_EXIT_FAIL_ENTRY",
    "KVM_EXIT_INTERNAL_ERROR",
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX",
    "PYVMM_WRITE",
    "PYVMM_READ",
)

_REQUESTS = (
    "KVM_GET_API_VERSION",
    "KVM_CREATE_VM",
    "KVM_CHECK_EXTENSION",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_CREATE_VCPU",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_GET_REGS",
    "KVM_SET_REGS",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    # Used by the C part only; named here because the jail lets these numbers pass and no others.
    "KVM_RUN",
    "KVM_SET_CPUID2",
    "KVM_GET_VCPU_EVENTS",
    "KVM_SET_VCPU_EVENTS",
    "KVM_GET_XSAVE",
    "KVM_SET_XSAVE",
)

_GENERAL_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)

_DECLARATIONS = (
    "\n".join(f"static const int {name};" for name in _CONSTANTS)
    + "\n"
    + "\n".join(f"static const unsigned long {name};" for name in _REQUESTS)
    + "\nstruct kvm_regs {\n"
    + "\n".join(f"    uint64_t {name};" for name in _GENERAL_REGISTERS)
    + """
    ...;
};
struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable;
    ...;
};
struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    ...;
};
struct kvm_userspace_memory_region {
    uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr;
    ...;
};
struct kvm_cpuid_entry2 {
    uint32_t function, index, flags, eax, ebx, ecx, edx;
    ...;
};
struct kvm_xsave { uint32_t region[1024]; ...; };
struct kvm_run { uint8_t immediate_exit; uint32_t exit_reason; ...; };

struct pyvmm_exit {
    uint64_t address, value;
    uint32_t length, detail;
};
struct pyvmm_state { struct kvm_regs regs; struct kvm_sregs sregs; ...; };

int pyvmm_ioctl(int fd, unsigned long request, void *argument);
int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long value);
int pyvmm_set_cpuid(int vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count);
struct kvm_run *pyvmm_map_run(int vcpu, size_t size);
void pyvmm_unmap_run(struct kvm_run *run, size_t size);
int pyvmm_enter(int vcpu, struct kvm_run *run, struct pyvmm_exit *out);
int pyvmm_settle(int vcpu, struct kvm_run *run);
void pyvmm_answer(struct kvm_run *run, uint64_t value);
int pyvmm_save(int vcpu, struct pyvmm_state *state);
int pyvmm_restore(int vcpu, const struct pyvmm_state *state);
int pyvmm_drop_exception(int vcpu, uint8_t vector);
int pyvmm_compare(const struct pyvmm_state *one, const struct pyvmm_state *other);

struct pyvmm_timer { struct kvm_run *previous; ...; };
int pyvmm_timer_signal(void);
int pyvmm_arm(struct pyvmm_timer *timer, struct kvm_run *run, uint64_t first_ns, uint64_t interval_ns);
void pyvmm_disarm(struct pyvmm_timer *timer);
"""
)

_SOURCE = (Path(__file__).resolve().parent / "_binding_source.c").read_text(encoding="utf-8")

ffibuilder = FFI()
ffibuilder.cdef(_DECLARATIONS)
ffibuilder.set_source("vmm.kvm._binding", _SOURCE, extra_compile_args=["-O2", "-Wall", "-Wextra", "-std=gnu11"])

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
