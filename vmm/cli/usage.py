"""What the command is for, as ``pyvmm --help`` says it."""

from __future__ import annotations

USAGE = """\
usage: pyvmm run OPERATION [options] FILE...
       pyvmm replay [options] FILE
       pyvmm doctor [--output human|json]
       pyvmm --version

Runs one operation on disk images inside a KVM sandbox.

  run info FILE...              what an image is, and what it refers to
  run measure [-O FMT] FILE...  how large it would be in another format
  run check FILE...             whether it is consistent
  run map FILE...               where the bytes of its disk are stored
  run create -f FMT FILE SIZE   plan and write an empty image
  run resize FILE [+|-]SIZE     give it another virtual size, in place
  run ./operation.elf FILE...   an operation of your own
  replay FILE                   repeat what `run --record FILE` recorded, without the image
  doctor                        what this host has, and what to do about what it lacks

`pyvmm run OPERATION --help` lists the options.
Exit status: 0 fine; 1 could not do it; check: 2 corruption, 3 leaks only, 63 the format has no checks;
64 usage, 69 KVM cannot be used, 70 the guest failed, 75 a limit was reached;
129 hung up, 130 interrupted, 143 terminated.
"""
