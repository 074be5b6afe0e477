/* The C part of vmm.sandbox._binding: system calls that Python has no words for, and the start of a worker.
 *
 * Every function answers 0 or a positive value, or minus an errno.  Namespaces: namespaces(7); user_namespaces(7) for
 * the identity maps; landlock(7); capabilities(7).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_restrict_self 446
#endif
#ifndef CLONE_NEWCGROUP
#define CLONE_NEWCGROUP 0x02000000
#endif

/* --- the start of a worker --------------------------------------------------------------------------------------- */

enum { STEP_CLONE = 1, STEP_MAP, STEP_CGROUP, STEP_DESCRIPTORS, STEP_EXEC };

enum { WORKER_FDS = 4, STACK_SIZE = 64 << 10 };

struct pyvmm_spawn {
    /* In: what to execute, and what becomes of descriptors 0 to 3. */
    const char *program;
    char *const *arguments;
    char *const *environment;
    int descriptors[4];
    /* CLONE_NEW* flags; with CLONE_NEWUSER the caller's ids become 0 inside. */
    uint64_t namespaces;
    /* A cgroup.procs file to join before the cgroup namespace is made, or NULL. */
    const char *cgroup;
    /* Out: where it failed, and the process to wait for, also when it failed after the start. */
    int step;
    int pid;
};

struct child {
    struct pyvmm_spawn *spawn;
    int descriptors[WORKER_FDS];
    unsigned uid, gid;
    volatile int error;
};

static int write_text(int directory, const char *path, const char *text)
{
    int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
    ssize_t done;
    int error;

    if (fd < 0)
        return -errno;
    done = write(fd, text, strlen(text));
    error = errno;
    close(fd);
    return done < 0 ? -error : 0;
}

/* Map one id onto one, as somebody without privileges may; `proc` is a descriptor of /proc. */
static int map_ids(int proc, unsigned inside, unsigned uid, unsigned gid)
{
    char text[48];
    int result = write_text(proc, "self/setgroups", "deny");

    if (result < 0 && result != -ENOENT)
        return result;
    snprintf(text, sizeof(text), "%u %u 1", inside, uid);
    result = write_text(proc, "self/uid_map", text);
    if (result < 0)
        return result;
    snprintf(text, sizeof(text), "%u %u 1", inside, gid);
    return write_text(proc, "self/gid_map", text);
}

/* Runs in the caller's memory until it executes the program: system calls only, as in posix_spawn(3). */
static int child_main(void *argument)
{
    struct child *child = argument;
    struct pyvmm_spawn *spawn = child->spawn;
    struct sigaction action;
    sigset_t none;

    memset(&action, 0, sizeof(action));
    action.sa_handler = SIG_DFL;
    for (int number = 1; number < NSIG; number++)
        sigaction(number, &action, NULL); /* fails for a few; those have no handler */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    setsid(); /* Ctrl-C is the broker's to hear */
    /* Keys of the caller's session are not the worker's; a kernel without keys has none to give. */
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    if (spawn->namespaces & CLONE_NEWUSER) {
        int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);

        spawn->step = STEP_MAP;
        child->error = proc < 0 ? errno : -map_ids(proc, 0, child->uid, child->gid);
        if (child->error)
            _exit(127);
    }
    if (spawn->cgroup != NULL) {
        spawn->step = STEP_CGROUP;
        child->error = -write_text(AT_FDCWD, spawn->cgroup, "0");
        if (child->error)
            _exit(127);
    }
    if (spawn->namespaces & CLONE_NEWCGROUP && unshare(CLONE_NEWCGROUP) < 0) {
        spawn->step = STEP_CGROUP;
        child->error = errno;
        _exit(127);
    }
    spawn->step = STEP_DESCRIPTORS;
    for (int number = 0; number < WORKER_FDS; number++)
        if (dup2(child->descriptors[number], number) < 0) {
            child->error = errno;
            _exit(127);
        }
    if (syscall(SYS_close_range, WORKER_FDS, ~0u, 0) < 0)
        for (int fd = WORKER_FDS; fd < 65536; fd++) /* before Linux 5.9 */
            close(fd);
    if (chdir("/") < 0) {
        child->error = errno;
        _exit(127);
    }
    spawn->step = STEP_EXEC;
    execve(spawn->program, spawn->arguments, spawn->environment);
    child->error = errno;
    _exit(127);
}

/* Start a program in new namespaces.  Its process id is that of the caller's PID namespace.
 *
 * The child borrows the caller's memory and the calling thread waits until it has executed the program (CLONE_VFORK), so
 * that this is safe in a program with threads, where fork() of an interpreter is not. */
static int pyvmm_spawn(struct pyvmm_spawn *spawn)
{
    struct child child = {.spawn = spawn, .uid = geteuid(), .gid = getegid()};
    int flags = CLONE_VM | CLONE_VFORK | SIGCHLD | (int)(spawn->namespaces & ~(uint64_t)CLONE_NEWCGROUP);
    char *stack = malloc(STACK_SIZE);
    sigset_t all, before;
    int result = 0, made = 0;

    spawn->step = STEP_CLONE;
    spawn->pid = 0;
    if (stack == NULL)
        return -ENOMEM;
    for (; made < WORKER_FDS; made++) {
        /* Above the targets, so that none is overwritten before it is copied. */
        child.descriptors[made] = fcntl(spawn->descriptors[made], F_DUPFD_CLOEXEC, 16);
        if (child.descriptors[made] < 0) {
            result = -errno;
            break;
        }
    }
    if (result == 0) {
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, &before);
        result = clone(child_main, stack + STACK_SIZE, flags, &child);
        if (result < 0)
            result = -errno;
        else
            spawn->pid = result;
        sigprocmask(SIG_SETMASK, &before, NULL);
    }
    while (made > 0)
        close(child.descriptors[--made]);
    free(stack);
    if (result > 0 && child.error)
        return -child.error;
    return result;
}

/* --- layers ------------------------------------------------------------------------------------------------------ */

static int pyvmm_prctl(int option, unsigned long argument)
{
    int result = prctl(option, argument, 0, 0, 0);
    return result < 0 ? -errno : result;
}

/* Replace the root by an empty, read-only file system.  Needs a mount namespace and CAP_SYS_ADMIN over it. */
static int pyvmm_empty_root(const char *place)
{
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("pyvmm", place, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0") < 0 || chdir(place) < 0 ||
        syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0 ||
        mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) < 0)
        return -errno;
    return 0;
}

/* Become an ordinary user for good.  Needs CAP_SETUID and CAP_SETGID. */
static int pyvmm_change_identity(unsigned uid, unsigned gid)
{
    if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
        return -errno;
    return 0;
}

/* A user namespace of one's own with the same ids, for somebody without privileges; `proc` is a descriptor of /proc. */
static int pyvmm_user_namespace(int proc)
{
    unsigned uid = geteuid(), gid = getegid();

    /* The files of a process that is not dumpable belong to root, as they do after a change of identity. */
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0 || unshare(CLONE_NEWUSER) < 0)
        return -errno;
    return map_ids(proc, uid, uid, gid);
}

/* No capability in any set, and no way to one: bounding, ambient, effective, permitted, inheritable, and securebits.
 * Without CAP_SETPCAP the bounding set and the securebits stay, which is what the errno says. */
static int pyvmm_drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    unsigned long bits = SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |
                         SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
                         SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    int result = 0;

    for (unsigned long number = 0; prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; number++)
        if (prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0)
            result = -errno;
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0)
        result = -errno;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    memset(data, 0, sizeof(data));
    if (syscall(SYS_capset, &header, data) < 0)
        result = -errno;
    return result;
}

/* The version of Landlock that the kernel offers, or minus an errno. */
static int pyvmm_landlock_version(void)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, 1u /* LANDLOCK_CREATE_RULESET_VERSION */);
    return version < 0 ? -errno : (int)version;
}

/* Every right that this version of Landlock knows is denied; descriptors that are open keep theirs. */
static int pyvmm_landlock(int version)
{
    struct {
        uint64_t fs, net, scoped;
    } rules = {
        .fs = version >= 5 ? 0xFFFF : version >= 3 ? 0x7FFF : version >= 2 ? 0x3FFF : 0x1FFF,
        .net = 3,
        .scoped = 3,
    };
    size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;
    long set = syscall(SYS_landlock_create_ruleset, &rules, size, 0u);
    int result = 0;

    if (set < 0)
        return -errno;
    if (syscall(SYS_landlock_restrict_self, (int)set, 0u) < 0)
        result = -errno;
    close((int)set);
    return result;
}

/* --- the system call filter, by libseccomp ----------------------------------------------------------------------- */

/* seccomp.h, whose library is loaded when it is needed: building needs no header, and its absence is a missing layer. */
struct scmp_arg_cmp {
    unsigned int arg;
    int op;
    uint64_t datum_a, datum_b;
};
enum { SCMP_CMP_MASKED_EQ = 7, SCMP_FLTATR_ACT_BADARCH = 2, SCMP_FLTATR_CTL_OPTIMIZE = 8 };
#define SCMP_ACT_KILL_PROCESS 0x80000000u
#define SCMP_ACT_ALLOW 0x7fff0000u
#define SCMP_ERROR_UNKNOWN (-1)

struct pyvmm_rule {
    const char *name;
    /* When `masks` is not 0: (argument & mask) == value. */
    unsigned argument;
    uint64_t mask, value;
};

static struct {
    void *(*init)(uint32_t);
    int (*rule_add)(void *, uint32_t, int, unsigned, const struct scmp_arg_cmp *);
    int (*load)(void *);
    int (*attr_set)(void *, int, uint32_t);
    int (*resolve)(const char *);
    int (*export_bpf)(void *, int);
    void (*release)(void *);
} scmp;

/* Load libseccomp while there are files.  -ENOENT: there is none; -ENOSYS: it is too old. */
static int pyvmm_find_libseccomp(void)
{
    void *library = dlopen("libseccomp.so.2", RTLD_NOW | RTLD_LOCAL);

    if (library == NULL)
        return -ENOENT;
    *(void **)&scmp.init = dlsym(library, "seccomp_init");
    *(void **)&scmp.rule_add = dlsym(library, "seccomp_rule_add_array");
    *(void **)&scmp.load = dlsym(library, "seccomp_load");
    *(void **)&scmp.attr_set = dlsym(library, "seccomp_attr_set");
    *(void **)&scmp.resolve = dlsym(library, "seccomp_syscall_resolve_name");
    *(void **)&scmp.export_bpf = dlsym(library, "seccomp_export_bpf");
    *(void **)&scmp.release = dlsym(library, "seccomp_release");
    if (!scmp.init || !scmp.rule_add || !scmp.load || !scmp.attr_set || !scmp.resolve || !scmp.export_bpf ||
        !scmp.release)
        return -ENOSYS;
    return 0;
}

/* Allow what the rules allow and kill the process for anything else.  With `output` at 0 or above the filter is not
 * loaded but written there, as the kernel would get it.  After pyvmm_find_libseccomp(). */
static int pyvmm_filter(const struct pyvmm_rule *rules, size_t count, int output)
{
    void *context;
    int result;

    context = scmp.init(SCMP_ACT_KILL_PROCESS);
    if (context == NULL)
        return -ENOMEM;
    result = scmp.attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    /* A binary tree; libseccomp before 2.5 has none, and needs none. */
    scmp.attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    for (size_t index = 0; result == 0 && index < count; index++) {
        const struct pyvmm_rule *rule = rules + index;
        struct scmp_arg_cmp compare = {rule->argument, SCMP_CMP_MASKED_EQ, rule->mask, rule->value};
        int number = scmp.resolve(rule->name);

        if (number == SCMP_ERROR_UNKNOWN)
            continue; /* a call that this version of the library has not heard of stays forbidden */
        result = scmp.rule_add(context, SCMP_ACT_ALLOW, number, rule->mask != 0, &compare);
    }
    if (result == 0)
        result = output >= 0 ? scmp.export_bpf(context, output) : scmp.load(context);
    scmp.release(context);
    return result;
}
