/* The C part of vmm.host._binding.
 *
 * Every function answers 0 or a positive value, or minus an errno.  cffi releases the GIL around each call.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* A number that headers older than the kernel lack; the same on every architecture. */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

/* struct open_how of <linux/openat2.h>, which older headers lack as well. */
struct open_how_0 {
    uint64_t flags, mode, resolve;
};

/* openat2(2).  EAGAIN: something above the path was renamed meanwhile, and the kernel cannot tell whether it left the
 * directory; whoever renames for ever does not get a descriptor. */
static int pyvmm_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how_0 how = {.flags = flags, .mode = 0, .resolve = resolve};
    int left = 32;
    long result;

    do
        result = syscall(SYS_openat2, directory, path, &how, sizeof how);
    while (result < 0 && (errno == EINTR || (errno == EAGAIN && --left > 0)));
    return result < 0 ? -errno : (int)result;
}

/* fallocate(2) with a mode, for holes in files. */
static int pyvmm_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
    int result;

    do
        result = fallocate(fd, mode, offset, length);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

/* Children.
 *
 * Both below are made without an exit signal: no SIGCHLD reaches a program that counts its own children, and nobody
 * waits for them by accident (clone(2), __WCLONE).  An orphan gets SIGCHLD back from the kernel, so that init reaps it.
 * A session of their own keeps them out of reach of a kill of the parent's process group or session; signals stay
 * blocked in them, and the parent's handlers never run there.
 */

static void wait_for(pid_t child)
{
    int saved = errno;

    while (waitpid(child, NULL, __WCLONE) < 0 && errno == EINTR)
        continue;
    errno = saved;
}

struct replacement {
    int directory;
    const char *source, *temporary, *name;
    int error;
};

static int replace_in_child(void *argument)
{
    struct replacement *job = argument;

    setsid();
    if (linkat(AT_FDCWD, job->source, job->directory, job->temporary, AT_SYMLINK_FOLLOW) < 0) {
        job->error = errno;
    } else if (renameat(job->directory, job->temporary, job->directory, job->name) < 0) {
        job->error = errno;
        unlinkat(job->directory, job->temporary, 0);
    }
    _exit(0);
}

/* Let a file without a name take the place of an existing one.  No system call does that at once: the file gets a
 * temporary name, then is renamed.  A child does both, so that a parent that is killed in between leaves no name
 * behind.  As posix_spawn(3) does it: the child has the parent's memory and a stack of its own, and the calling thread
 * waits in clone(); other threads go on, and need not be in any particular state.  CLONE_FILES: closing copies of
 * descriptors that have nothing to do with this could flush files of other threads.
 *
 * `fd` is open on the file, `temporary` and `name` lie in `directory`. */
static int pyvmm_replace(int fd, int directory, const char *temporary, const char *name)
{
    enum { STACK_SIZE = 64 << 10 };
    char source[sizeof("/proc/self/fd/") + 3 * sizeof(int)];
    struct replacement job = {directory, source, temporary, name, 0};
    sigset_t all, before;
    pid_t child;
    int error = 0;
    char *stack;

    snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
    stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return -errno;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    child = clone(replace_in_child, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_FILES, &job);
    if (child < 0)
        error = errno;
    else
        wait_for(child);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stack, STACK_SIZE);
    return error ? -error : -job.error;
}

static void close_others(int one, int other)
{
    int low = one < other ? one : other, high = one < other ? other : one;
    struct rlimit limit = {0, 0};

    if ((low == 0 || syscall(SYS_close_range, 0u, low - 1u, 0u) == 0) &&
        (high == low + 1 || syscall(SYS_close_range, low + 1u, high - 1u, 0u) == 0) &&
        syscall(SYS_close_range, high + 1u, UINT_MAX, 0u) == 0)
        return;
    /* Kernels before 5.9. */
    getrlimit(RLIMIT_NOFILE, &limit);
    for (rlim_t fd = 0; fd < limit.rlim_cur && fd < 1 << 20; fd++)
        if ((int)fd != low && (int)fd != high)
            close((int)fd);
}

static void guard_in_child(int directory, const char *name, int connection)
{
    char byte = 0;
    ssize_t count;

    setsid();
    close_others(directory, connection);
    if (write(connection, &byte, 1) != 1)
        _exit(1);
    do
        count = read(connection, &byte, 1);
    while (count < 0 && errno == EINTR);
    if (count != 1)
        unlinkat(directory, name, 0);
    _exit(0);
}

/* A process that removes `name` from `directory` when the caller ends before it said pyvmm_dismiss(): where a file must
 * have a name while it is written.  Answers the process, and where to reach it.
 *
 * A plain fork by system call, since it outlives this call: it shares no memory, runs no handlers of pthread_atfork(3),
 * and calls only what a signal handler may.  It is there, out of reach, before the file is made. */
static int pyvmm_guard(int directory, const char *name, int *connection)
{
    sigset_t all, before;
    int ends[2], error = 0;
    ssize_t count;
    pid_t child;
    char byte;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    child = (pid_t)syscall(SYS_clone, 0ul, NULL, NULL, NULL, 0ul);
    if (child == 0)
        guard_in_child(directory, name, ends[1]);
    if (child < 0)
        error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    if (child > 0) {
        do
            count = read(ends[0], &byte, 1);
        while (count < 0 && errno == EINTR);
        if (count != 1) {
            error = ECHILD;
            wait_for(child);
        }
    }
    if (error) {
        close(ends[0]);
        return -error;
    }
    *connection = ends[0];
    return child;
}

/* The name is gone or not the guard's business any more.  Answers when the guard has ended. */
static int pyvmm_dismiss(int guard, int connection)
{
    char byte = 0;

    (void)!send(connection, &byte, 1, MSG_NOSIGNAL);
    close(connection);
    wait_for(guard);
    return 0;
}
