/* What the prisoner tries: raw system calls, so that an attempt is one call with exactly known arguments.
 *
 * Every function answers what the kernel did: 0 or a positive value, or minus an errno.  Nothing here allocates, prints
 * or calls the C library while it tries.
 */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef PROGRAM
/* Executed in the place of the worker: who does it run as? */
int main(void)
{
    return geteuid() == 0 ? 10 : 11;
}
#else

static long call6(long number, const long *a)
{
    register long r10 __asm__("r10") = a[3];
    register long r8 __asm__("r8") = a[4];
    register long r9 __asm__("r9") = a[5];
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

long attempt_call(long number, const long *arguments)
{
    return call6(number, arguments);
}

/* The same call until it fails: how it failed, or how often it did not. */
long attempt_repeat(long number, const long *arguments, long times)
{
    for (long done = 0; done < times; done++) {
        long result = call6(number, arguments);

        if (result < 0)
            return result;
    }
    return times;
}

/* By the gate of 32-bit programs; the numbers are those of that architecture. */
long attempt_int80(long number, const long *a)
{
    int result;

    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"((int)number), "b"((int)a[0]), "c"((int)a[1]), "d"((int)a[2]), "S"((int)a[3]), "D"((int)a[4])
                     : "r8", "r9", "r10", "r11", "memory");
    return result;
}

/* Processes that end at once, and whom nobody waits for: each stays a process. */
long attempt_fork(long times)
{
    const long none[6] = {0};

    for (long done = 0; done < times; done++) {
        long result = call6(SYS_fork, none);

        if (result == 0)
            for (;;)
                call6(SYS_exit_group, none);
        if (result < 0)
            return result;
    }
    return times;
}

/* A child in namespaces of its own. */
long attempt_clone3(unsigned long long flags)
{
    struct clone_args how = {.flags = flags, .exit_signal = SIGCHLD};
    const long arguments[6] = {(long)&how, sizeof(how)};
    const long none[6] = {0};
    long result = call6(SYS_clone3, arguments);

    if (result == 0)
        for (;;)
            call6(SYS_exit_group, none);
    return result;
}

/* So many new files; `name` ends in eight digits that are counted up. */
long attempt_files(char *name, long times)
{
    const long arguments[6] = {-100 /* AT_FDCWD */, (long)name, 0301 /* O_WRONLY | O_CREAT | O_EXCL */, 0600};
    size_t length = strlen(name);

    for (long done = 0; done < times; done++) {
        long result = call6(SYS_openat, arguments);
        const long opened[6] = {result};

        if (result < 0)
            return result;
        call6(SYS_close, opened);
        for (size_t digit = length - 1; ++name[digit] > '9'; digit--)
            name[digit] = '0';
    }
    return times;
}

/* Put writable memory in the place of code, and run it. */
long attempt_replace_code(long page, long code)
{
    const long arguments[6] = {page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, code};
    long result = call6(SYS_mremap, arguments);

    if (result < 0)
        return result;
    ((void (*)(void))code)();
    return 0;
}

long attempt_execute(long address)
{
    ((void (*)(void))address)();
    return 0;
}

long attempt_crash(void)
{
    *(volatile int *)8 = 1;
    return 0;
}

/* Compute for ever, deaf to everything. */
long attempt_spin(void)
{
    for (;;)
        __asm__ volatile("");
    return 0;
}

/* How often a text lies in memory.  It comes with every byte inverted, so that this call does not put it there. */
long attempt_search(const unsigned long *ranges, long count, const unsigned char *inverted, long length)
{
    long found = 0;

    for (long range = 0; range < count; range++) {
        const unsigned char *at = (const unsigned char *)ranges[2 * range];
        const unsigned char *end = (const unsigned char *)ranges[2 * range + 1] - length;

        while (at <= end && (at = memchr(at, inverted[0] ^ 0xFF, end - at + 1)) != NULL) {
            long index = 1;

            while (index < length && (at[index] ^ inverted[index]) == 0xFF)
                index++;
            found += index == length;
            at++;
        }
    }
    return found;
}

/* The numbers, by the names of the C library's header. */
#define NUMBER(name) {#name, SYS_##name}
static const struct {
    const char *name;
    long number;
} numbers[] = {
    NUMBER(bpf), NUMBER(capset), NUMBER(chroot), NUMBER(connect), NUMBER(dup), NUMBER(execve), NUMBER(execveat),
    NUMBER(fallocate), NUMBER(fchmod), NUMBER(ftruncate), NUMBER(getpid), NUMBER(init_module), NUMBER(io_uring_setup),
    NUMBER(ioctl), NUMBER(iopl), NUMBER(kexec_load), NUMBER(keyctl), NUMBER(kill), NUMBER(memfd_create),
    NUMBER(mknodat), NUMBER(mlock), NUMBER(mmap), NUMBER(mount), NUMBER(mprotect), NUMBER(mq_open),
    NUMBER(name_to_handle_at), NUMBER(open), NUMBER(open_by_handle_at), NUMBER(openat), NUMBER(openat2),
    NUMBER(perf_event_open), NUMBER(personality), NUMBER(pidfd_getfd), NUMBER(pidfd_open), NUMBER(pivot_root),
    NUMBER(prctl), NUMBER(prlimit64), NUMBER(process_vm_readv), NUMBER(ptrace), NUMBER(pwritev), NUMBER(quotactl),
    NUMBER(reboot), NUMBER(renameat), NUMBER(sendmsg), NUMBER(sendto), NUMBER(sethostname), NUMBER(setns),
    NUMBER(setresuid), NUMBER(shmget), NUMBER(socket), NUMBER(symlinkat), NUMBER(tgkill), NUMBER(timer_create),
    NUMBER(umount2), NUMBER(unlinkat), NUMBER(unshare), NUMBER(userfaultfd), NUMBER(write),
};

/* The number of a system call, or -1. */
long number_of(const char *name)
{
    for (size_t index = 0; index < sizeof(numbers) / sizeof(numbers[0]); index++)
        if (strcmp(numbers[index].name, name) == 0)
            return numbers[index].number;
    return -1;
}
#endif
