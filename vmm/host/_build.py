"""Builds ``vmm.host._binding``: system calls that Python lacks, in C (``_binding_source.c`` beside this file).

Apart from the binding of KVM, because what opens files and puts them in place has nothing to do with machines.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_DECLARATIONS = """
int pyvmm_fallocate(int fd, int mode, int64_t offset, int64_t length);
int pyvmm_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve);
int pyvmm_replace(int fd, int directory, const char *temporary, const char *name);
int pyvmm_guard(int directory, const char *name, int *connection);
int pyvmm_dismiss(int guard, int connection);
"""

_SOURCE = (Path(__file__).resolve().parent / "_binding_source.c").read_text(encoding="utf-8")

ffibuilder = FFI()
ffibuilder.cdef(_DECLARATIONS)
ffibuilder.set_source("vmm.host._binding", _SOURCE, extra_compile_args=["-O2", "-Wall", "-Wextra", "-std=gnu11"])

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
