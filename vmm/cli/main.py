"""The ``pyvmm`` command: which subcommand, and what its end means for the exit status."""

from __future__ import annotations

import os
import sys

from vmm.cli.terminal import abandon_stdout, err, out
from vmm.cli.usage import USAGE
from vmm.errors import EXIT_FAILED, EXIT_GUEST_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UsageError, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from vmm.boundary import Runner
    from vmm.sandbox.spawn import Process


def _dispatch(words: list[str], runner: Runner | None, process: Process | None) -> int:
    if not words or words == ["run"]:
        err(USAGE)
        return EXIT_USAGE
    command = words[0]
    if command in ("-h", "--help", "help"):
        out(USAGE)
        return EXIT_OK
    if command in ("-V", "--version", "version"):
        from vmm.cli.version import version_text

        out(version_text())
        return EXIT_OK
    if command == "run":
        from vmm.cli.run import run_command

        return run_command(words[1:], runner, process)
    if command == "replay":
        from vmm.cli.replay import replay_command

        return replay_command(words[1:], runner)
    if command == "doctor":
        from vmm.cli.doctor import doctor_command

        return doctor_command(words[1:])
    raise UsageError(f"There is no command '{command}'; see `pyvmm --help`")


def main(argv: Sequence[str] | None = None, runner: Runner | None = None, process: Process | None = None) -> int:
    """Run the command; answers its exit status and never raises, but for what the handlers of :func:`entry` raise.

    :param argv: arguments without the program's name; None: the process's own.
    :param runner: runs the jobs of ``run`` and ``replay`` and stays open; None: a machine of this command's own.
    :param process: a worker's process that was started beforehand, for that machine.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _dispatch(words, runner, process)
        except VmmError as error:
            # Inside: whoever reads the report may be gone as well.
            return _report(words, error)
    except KeyboardInterrupt:
        err("pyvmm: interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return EXIT_FAILED
    except OSError as error:
        err(f"pyvmm: {error.strerror or error}\n")
        return EXIT_FAILED
    except Exception as error:
        return _internal(error)


def entry() -> NoReturn:
    """The process's own command: :func:`main` with handlers of signals, and the process ends with it.

    Collecting cycles while modules load, and taking the interpreter apart at the end, would be a fifth of a plain run;
    everything that is left behind is memory and descriptors, which the kernel takes back.
    """
    import gc

    from vmm.cli import signals

    gc.set_threshold(100_000)
    signals.install()
    try:
        status = main(process=_head_start(sys.argv[1:]))
        stopped = signals.settle()
    except signals.Stopped as raised:
        stopped = raised
    if stopped is not None:
        err(f"pyvmm: {stopped.word}\n")
        status = stopped.exit_status
    for stream in (sys.stdout, sys.stderr):
        try:
            # None where the process was started without the descriptor.
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = status or EXIT_FAILED
    os._exit(status)


def _head_start(words: list[str]) -> Process | None:
    """The worker's process, where one will be wanted: it starts while this one still reads its arguments.

    It does nothing before it is told its settings; what goes wrong here goes wrong again where it can be told.
    """
    if len(words) < 3 or words[0] != "run" or any(word.startswith("--sandbox") for word in words):
        return None
    try:
        from vmm.sandbox.layers import LAYERS
        from vmm.sandbox.spawn import Process

        return Process(LAYERS)
    except (VmmError, OSError):
        return None


def _internal(error: Exception) -> int:
    """A bug of ours: one line, and the traceback for those who ask for it with PYVMM_TRACEBACK=1."""
    if os.environ.get("PYVMM_TRACEBACK") == "1":
        raise error
    from vmm.operations.text import printable

    detail = printable(str(error))
    err(f"pyvmm: internal error: {type(error).__name__}: {detail} (PYVMM_TRACEBACK=1 shows where)\n")
    return EXIT_GUEST_FAILED


def _report(words: list[str], error: VmmError) -> int:
    """A failure outside any file: as JSON when that was asked for, wherever in the line."""
    from vmm.cli.failures import error_dict, error_text

    joined = " ".join(words)
    if "--output=json" in joined or "--output json" in joined:
        from vmm.cli.jsontext import pretty

        out(pretty(error_dict(error)) + "\n")
    else:
        err(error_text(error))
    return error.exit_status
