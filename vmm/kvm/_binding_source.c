/* The C part of vmm.kvm._binding: what has to happen without Python in between.
 *
 * Every function answers 0 or a positive value, or minus an errno.  cffi releases the GIL around each call.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/kvm.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* glibc keeps static TLS in reserve for libraries that are opened late, and allocates other TLS on first use, which a
 * signal handler must not do.  musl allocates all of it at dlopen() and has no such reserve. */
#ifdef __GLIBC__
#define SIGNAL_SAFE_TLS __attribute__((tls_model("initial-exec")))
#else
#define SIGNAL_SAFE_TLS
#endif

/* What the vCPU thread is inside of, for the handler of this thread; NULL makes a stray signal harmless. */
static __thread struct kvm_run *volatile current_run SIGNAL_SAFE_TLS;

struct pyvmm_exit {
    uint64_t address, value;
    uint32_t length, detail;
};

/* What a reset puts back besides memory. */
struct pyvmm_state {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    struct kvm_xsave xsave;
};

struct pyvmm_timer {
    timer_t id;
    struct kvm_run *previous;
    int armed;
};

static int pyvmm_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

static int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long value)
{
    int result = ioctl(fd, request, value);
    return result < 0 ? -errno : result;
}

static int pyvmm_set_cpuid(int vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t count)
{
    struct kvm_cpuid2 *table = calloc(1, sizeof(*table) + count * sizeof(*entries));
    int result;

    if (table == NULL)
        return -ENOMEM;
    table->nent = count;
    memcpy(table->entries, entries, count * sizeof(*entries));
    result = pyvmm_ioctl(vcpu, KVM_SET_CPUID2, table);
    free(table);
    return result;
}

static struct kvm_run *pyvmm_map_run(int vcpu, size_t size)
{
    void *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    return run == MAP_FAILED ? NULL : run;
}

static void pyvmm_unmap_run(struct kvm_run *run, size_t size)
{
    if (run != NULL)
        munmap(run, size);
}

/* What pyvmm_enter() answers for the two exits that matter, so that Python looks at one number. */
enum { PYVMM_WRITE = 1 << 16, PYVMM_READ = 1 << 17 };

/* Run until the guest exits: PYVMM_WRITE, PYVMM_READ or KVM's exit reason; minus errno, -EINTR for a signal. */
static int pyvmm_enter(int vcpu, struct kvm_run *run, struct pyvmm_exit *out)
{
    if (ioctl(vcpu, KVM_RUN, 0) < 0) {
        int error = errno;
        /* A tick that arrives from here on is not lost: the next one is near, and the clock is read now. */
        run->immediate_exit = 0;
        return -error;
    }
    switch (run->exit_reason) {
    case KVM_EXIT_MMIO:
        out->address = run->mmio.phys_addr;
        out->length = run->mmio.len;
        out->value = 0;
        if (!run->mmio.is_write)
            return PYVMM_READ;
        memcpy(&out->value, run->mmio.data, run->mmio.len <= 8 ? run->mmio.len : 8);
        return PYVMM_WRITE;
    case KVM_EXIT_INTERNAL_ERROR:
        out->detail = run->internal.suberror;
        break;
    case KVM_EXIT_FAIL_ENTRY:
        out->value = run->fail_entry.hardware_entry_failure_reason;
        break;
    default:
        break;
    }
    return run->exit_reason;
}

/* Let KVM finish the access it stands in, without running the guest (Documentation/virt/kvm/api.rst, KVM_RUN).  An
 * access that KVM splits exits once for each part; more parts than an instruction can have mean trouble. */
static int pyvmm_settle(int vcpu, struct kvm_run *run)
{
    for (int part = 0; part < 16; part++) {
        int result;

        run->immediate_exit = 1;
        result = ioctl(vcpu, KVM_RUN, 0);
        if (result < 0) {
            int error = errno;
            run->immediate_exit = 0;
            return error == EINTR ? 0 : -error;
        }
    }
    run->immediate_exit = 0;
    return -EBUSY;
}

static void pyvmm_answer(struct kvm_run *run, uint64_t value)
{
    memcpy(run->mmio.data, &value, sizeof(value));
}

static int pyvmm_save(int vcpu, struct pyvmm_state *state)
{
    if (ioctl(vcpu, KVM_GET_REGS, &state->regs) < 0 || ioctl(vcpu, KVM_GET_SREGS, &state->sregs) < 0 ||
        ioctl(vcpu, KVM_GET_VCPU_EVENTS, &state->events) < 0 || ioctl(vcpu, KVM_GET_XSAVE, &state->xsave) < 0)
        return -errno;
    return 0;
}

static int pyvmm_restore(int vcpu, const struct pyvmm_state *state)
{
    if (ioctl(vcpu, KVM_SET_REGS, &state->regs) < 0 || ioctl(vcpu, KVM_SET_SREGS, &state->sregs) < 0 ||
        ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state->events) < 0 || ioctl(vcpu, KVM_SET_XSAVE, &state->xsave) < 0)
        return -errno;
    return 0;
}

/* Forget an exception that is pending, or being delivered, when it is of this vector. */
static int pyvmm_drop_exception(int vcpu, uint8_t vector)
{
    struct kvm_vcpu_events events;

    if (ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events) < 0)
        return -errno;
    if (events.exception.nr != vector)
        return 0;
    memset(&events.exception, 0, sizeof(events.exception));
    return ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events) < 0 ? -errno : 0;
}

/* Which components of an XSAVE area the processor holds in use (XSTATE_BV, Intel SDM volume 1, 13.4.2).  It may say so
 * of one that has its initial value, and of the same state one time and not another; KVM_GET_XSAVE gives the values of
 * all components either way. */
enum { XSTATE_BV = 512, XSTATE_BV_END = 520 };

static int xsave_differs(const struct kvm_xsave *one, const struct kvm_xsave *other)
{
    const char *a = (const char *)one, *b = (const char *)other;
    size_t rest = sizeof(*one) - XSTATE_BV_END;

    return memcmp(a, b, XSTATE_BV) != 0 || memcmp(a + XSTATE_BV_END, b + XSTATE_BV_END, rest) != 0;
}

/* 0 when equal; otherwise which parts differ: 1 registers, 2 segments and control registers, 4 events, 8 FPU. */
static int pyvmm_compare(const struct pyvmm_state *one, const struct pyvmm_state *other)
{
    return (memcmp(&one->regs, &other->regs, sizeof(one->regs)) != 0) << 0 |
           (memcmp(&one->sregs, &other->sregs, sizeof(one->sregs)) != 0) << 1 |
           (memcmp(&one->events, &other->events, sizeof(one->events)) != 0) << 2 |
           xsave_differs(&one->xsave, &other->xsave) << 3;
}

/* The deadline.  A timer for each run signals the thread that runs the vCPU; the handler makes KVM_RUN return. */

static void on_tick(int signal_number, siginfo_t *information, void *context)
{
    struct kvm_run *run = current_run;

    (void)signal_number;
    (void)information;
    (void)context;
    if (run != NULL)
        run->immediate_exit = 1;
}

static pthread_once_t install_once = PTHREAD_ONCE_INIT;
static int tick_signal;

/* The highest real-time signal that nobody else uses.  Without SA_RESTART: KVM_RUN has to return. */
static void install_handler(void)
{
    for (int number = SIGRTMAX; number >= SIGRTMIN; number--) {
        struct sigaction action;

        if (sigaction(number, NULL, &action) < 0 || (action.sa_flags & SA_SIGINFO) || action.sa_handler != SIG_DFL)
            continue;
        memset(&action, 0, sizeof(action));
        action.sa_sigaction = on_tick;
        action.sa_flags = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        if (sigaction(number, &action, NULL) == 0) {
            tick_signal = number;
            return;
        }
    }
    tick_signal = -EBUSY;
}

/* The number of the signal, or minus an errno when every real-time signal is taken. */
static int pyvmm_timer_signal(void)
{
    pthread_once(&install_once, install_handler);
    return tick_signal;
}

/* Start ticking on the calling thread.  Runs may nest on a thread; the inner run is then the one that is ended. */
static int pyvmm_arm(struct pyvmm_timer *timer, struct kvm_run *run, uint64_t first_ns, uint64_t interval_ns)
{
    struct sigevent event;
    struct itimerspec when = {
        .it_value = {.tv_sec = first_ns / 1000000000u, .tv_nsec = first_ns % 1000000000u},
        .it_interval = {.tv_sec = interval_ns / 1000000000u, .tv_nsec = interval_ns % 1000000000u},
    };
    sigset_t mask;
    int number = pyvmm_timer_signal();

    if (number < 0)
        return number;
    /* A thread that was started with signals blocked would never be ended; KVM_RUN runs with the thread's mask. */
    sigemptyset(&mask);
    sigaddset(&mask, number);
    pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
    memset(&event, 0, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = number;
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer->id) < 0)
        return -errno;
    timer->previous = current_run;
    current_run = run;
    if (timer_settime(timer->id, 0, &when, NULL) < 0) {
        int error = errno;
        current_run = timer->previous;
        timer_delete(timer->id);
        return -error;
    }
    timer->armed = 1;
    return 0;
}

/* On the thread that armed it; nothing happens when it was not, or no longer is. */
static void pyvmm_disarm(struct pyvmm_timer *timer)
{
    struct kvm_run *run = current_run;

    if (!timer->armed)
        return;
    timer->armed = 0;
    timer_delete(timer->id);
    current_run = timer->previous;
    if (run != NULL)
        run->immediate_exit = 0;
}
