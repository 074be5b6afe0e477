"""Builds ``vmm.sandbox._binding``: the system calls of the jail, and the start of a worker, by cffi in API mode."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_CONSTANTS = (
    *(
        "CLONE_NEWUSER",
        "CLONE_NEWNS",
        "CLONE_NEWPID",
        "CLONE_NEWIPC",
        "CLONE_NEWUTS",
        "CLONE_NEWCGROUP",
        "CLONE_NEWNET",
    ),
    *("PR_SET_PDEATHSIG", "PR_SET_DUMPABLE", "PR_SET_NO_NEW_PRIVS"),
    *("STEP_CLONE", "STEP_MAP", "STEP_CGROUP", "STEP_DESCRIPTORS", "STEP_EXEC"),
)

_DECLARATIONS = (
    "\n".join(f"static const int {name};" for name in _CONSTANTS)
    + """
struct pyvmm_spawn {
    const char *program;
    char *const *arguments;
    char *const *environment;
    int descriptors[4];
    uint64_t namespaces;
    const char *cgroup;
    int step;
    int pid;
};
struct pyvmm_rule {
    const char *name;
    unsigned argument;
    uint64_t mask, value;
};

int pyvmm_spawn(struct pyvmm_spawn *spawn);
int pyvmm_prctl(int option, unsigned long argument);
int pyvmm_empty_root(const char *place);
int pyvmm_change_identity(unsigned uid, unsigned gid);
int pyvmm_user_namespace(int proc);
int pyvmm_drop_capabilities(void);
int pyvmm_landlock_version(void);
int pyvmm_landlock(int version);
int pyvmm_find_libseccomp(void);
int pyvmm_filter(const struct pyvmm_rule *rules, size_t count, int output);
"""
)

_SOURCE = (Path(__file__).resolve().parent / "_binding_source.c").read_text(encoding="utf-8")

ffibuilder = FFI()
ffibuilder.cdef(_DECLARATIONS)
ffibuilder.set_source(
    "vmm.sandbox._binding",
    _SOURCE,
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-std=gnu11"],
    # dlopen: in the C library itself since glibc 2.34.
    libraries=["dl"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
