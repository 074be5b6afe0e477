"""``pyvmm run``: one operation on some files, one answer each."""

from __future__ import annotations

from vmm.boundary import KVM_DEVICE
from vmm.cli import runoptions
from vmm.cli.answers import Answers
from vmm.cli.arguments import options_text, parse
from vmm.cli.failures import error_dict, error_text, worst
from vmm.cli.progress import Progress
from vmm.cli.terminal import err, out
from vmm.errors import EXIT_OK, OperationLoadError, UsageError, VmmError
from vmm.operations.session import OPERATIONS, Session, debug_file, is_path
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.boundary import Runner
    from vmm.cli.arguments import Arguments
    from vmm.cli.debug import GdbPort
    from vmm.replay.recorder import Recorder
    from vmm.sandbox.layers import JailReport
    from vmm.sandbox.spawn import Process

#: What the help says an operation takes, where it is not just files.
_OPERANDS = {"create": "FILE [SIZE]", "measure": "FILE... | --size SIZE", "resize": "FILE [+|-]SIZE"}
_LOG_LEVELS = ("", "error", "warning", "info", "debug")
_LOG_INFO, _LOG_DEBUG = 3, 4


def run_command(words: list[str], runner: Runner | None = None, process: Process | None = None) -> int:
    """Run what the words say, at least one; answers the exit status.

    :param runner: runs the jobs and stays open; None: a machine of this command's own.
    :param process: a worker's process that was started beforehand.
    :raises UsageError: the words make no sense.
    :raises VmmError: nothing could be run at all.
    """
    operation = words[0]
    if operation in ("-h", "--help"):
        from vmm.cli.usage import USAGE

        out(USAGE)
        return EXIT_OK
    foreign = is_path(operation)
    if operation.startswith("-") or not (foreign or operation in OPERATIONS):
        raise UsageError(
            f"There is no operation '{printable(operation)}'; there are {', '.join(OPERATIONS)}, and any ELF file "
            "given as a path"
        )
    options = runoptions.options_of(operation)
    rest, size = words[1:], None
    if operation == "resize":
        from vmm.cli.run_resize import split_size

        rest, size = split_size(rest)
    arguments = parse(rest, options)
    if "help" in arguments:
        operands = _OPERANDS.get(operation, "FILE...")
        out(f"usage: pyvmm run {printable(operation)} [options] {operands}\n\n{options_text(options)}")
        return EXIT_OK
    runoptions.refuse_unsupported(arguments)
    if not foreign and any(text in ("help", "?") for text in arguments.all("options")):
        return _options_help(operation, arguments)
    command = Command(operation, arguments, runner, process, size)
    try:
        return command.run()
    finally:
        command.close()


def _options_help(operation: str, arguments: Arguments) -> int:
    from vmm.operations.options import options_help

    out(options_help(arguments.get("target" if operation == "measure" else "format") or "raw"))
    return EXIT_OK


def new_runner(arguments: Arguments, process: Process | None = None, *, warm: bool) -> Runner:
    """The machine; imported here, so that a mistake in the words is told without it."""
    kvm = arguments.get("kvm") or KVM_DEVICE
    if runoptions.sandbox_off(arguments):
        from vmm.machine.runner import MachineRunner

        err("pyvmm: warning: --sandbox=off: the process that runs the machine has all the rights of this user\n")
        return MachineRunner(warm=warm, kvm=kvm)
    from vmm.sandbox.broker import JailedRunner

    verbose = "verbose" in arguments
    return JailedRunner(
        kvm_path=kvm,
        # One that runs, and the same one kept for the next file.
        machines=2 if warm else 1,
        require="require-sandbox" in arguments,
        verify_network=verbose,
        on_report=_show_jail if verbose else None,
        process=process,
        reap=False,
    )


def load_elf_file(path: str) -> bytes:
    """The ELF that an option or operand names; see :func:`vmm.operations.foreign.load_elf`."""
    from vmm.operations.foreign import load_elf

    return load_elf(path)


class Command(Answers):
    """One ``pyvmm run`` with its runner, which lives until the last file is done."""

    def __init__(
        self,
        operation: str,
        arguments: Arguments,
        runner: Runner | None = None,
        process: Process | None = None,
        size: str | None = None,
    ) -> None:
        self.operation = operation
        self.arguments = arguments
        self.size = size
        self.json = runoptions.output_format(arguments) == "json"
        self.quiet = "quiet" in arguments
        self.follow = "follow" in arguments
        self.files = self._files()
        self.many = len(self.files) > 1
        limits = runoptions.limits(arguments)
        self._elf = load_elf_file(operation) if is_path(operation) else None
        self.lines = self._elf is not None
        op_elf = arguments.get("op-elf")
        self._gdb: GdbPort | None = None
        await_debugger = self._prepare_debugger()
        self.progress = Progress(asked="progress" in arguments)
        # A chain is several runs.
        warm = self.many or runoptions.follows(arguments)
        self.runner = new_runner(arguments, process, warm=warm) if runner is None else runner
        self._own_runner = runner is None
        self.record = arguments.get("record")
        self.recorder = self._record()
        self.session = Session(
            self.recorder or self.runner,
            limits=limits,
            elf=None if op_elf is None else load_elf_file(op_elf),
            log_level=log_level_of(arguments),
            on_log=show_log,
            on_progress=self.progress.update if self.progress.wanted else None,
            await_debugger=await_debugger,
        )

    def _prepare_debugger(self) -> Callable[[str | None], int] | None:
        """What waits for gdb before a run, when that was asked for."""
        port_text = self.arguments.get("gdb")
        if port_text is None:
            return None
        if self.many:
            raise UsageError(f"--gdb takes one FILE, not {len(self.files)}")
        from vmm.cli.debug import GdbPort

        port = self._gdb = GdbPort(port_text)
        own_elf = self.arguments.get("op-elf") or (self.operation if self._elf is not None else None)

        def wait(operation: str | None) -> int:
            self.progress.finish()
            return port.wait(own_elf or debug_file(operation or self.operation))

        return wait

    def _files(self) -> list[str]:
        operands = self.arguments.operands
        if self.operation == "create":
            if not operands:
                raise UsageError("Expecting image file name")
            if len(operands) > 2:
                raise UsageError(f"Unexpected argument: {printable(operands[2])}")
            return operands[:1]
        if self.operation == "resize":
            if not operands or self.size is None:
                raise UsageError("Expecting image file name and size")
            if len(operands) > 1:
                raise UsageError(f"Unexpected argument: {printable(operands[1])}")
        if self.operation == "measure" and not operands and "size" not in self.arguments:
            raise UsageError("Either --size N or one filename must be specified.")
        if self.operation in ("info", "check", "map") and not operands:
            raise UsageError("Expecting at least one image file name")
        return operands

    def _record(self) -> Recorder | None:
        """What records the runs, if that is asked for; imported here, since a plain run does not need it."""
        if self.record is None:
            if "max-record" in self.arguments:
                raise UsageError("--max-record needs --record")
            return None
        for file in self.files:
            self.refuse_replacing(file)
        from vmm.replay.recorder import Recorder

        return Recorder(self.runner, self.record, runoptions.max_record(self.arguments), follow_symlinks=self.follow)

    def close(self) -> None:
        """Give up the machine, a bundle that is not complete, and the progress line."""
        self.progress.finish()
        if self._gdb is not None:
            self._gdb.close()
        if self.recorder is not None:
            self.recorder.close()
        if self._own_runner:
            self.runner.close()

    def run(self) -> int:
        """Every file; the worst status is the command's."""
        statuses = []
        for index, path in enumerate(self.files or [None]):
            self.progress.start()
            try:
                status = self._one(path, first=index == 0)
            except UsageError:
                # About the options, not about a file: every other file would say the same.
                raise
            except OperationLoadError as error:
                raise self._named(error) from None
            except VmmError as error:
                self.progress.finish()
                self._fail(error, path)
                status = error.exit_status
            statuses.append(status)
        if self.recorder is not None and not self.recorder.commit():
            err(f"pyvmm: nothing is recorded in '{printable(self.recorder.path)}'\n")
        return worst(statuses)

    def _named(self, error: OperationLoadError) -> OperationLoadError:
        """The same about the ELF file that the user brought, which every other file would meet again."""
        path = self.arguments.get("op-elf") or (self.operation if self._elf is not None else None)
        return error if path is None else OperationLoadError(f"{printable(path)}: {error.message}", file=path)

    def _fail(self, error: VmmError, path: str | None) -> None:
        if self.json:
            self.out_json(error_dict(error, path))
        else:
            err(error_text(error, path))

    def _one(self, path: str | None, *, first: bool) -> int:
        if self._elf is not None:
            from vmm.cli.run_foreign import answer as foreign

            return foreign(self, self._elf, path)
        return _answer_of(self.operation)(self, path, first)


def _answer_of(operation: str) -> Callable[[Answers, str | None, bool], int]:
    """What answers for one of :data:`OPERATIONS`; only its modules are imported."""
    if operation == "measure":
        from vmm.cli.run_measure import answer
    elif operation == "info":
        from vmm.cli.run_info import answer
    elif operation == "check":
        from vmm.cli.run_check import answer
    elif operation == "resize":
        from vmm.cli.run_resize import answer
    elif operation == "map":
        from vmm.cli.run_map import answer
    else:
        from vmm.cli.run_create import answer
    return answer


def _show_jail(report: JailReport) -> None:
    from vmm.cli.doctor import jail_lines

    holds = len(report.layers) - len(report.missing)
    took = f"closed in {report.close_ns / 1e6:.1f} ms"
    err(f"sandbox: process {report.pid}, {holds} of {len(report.layers)} layers, {took}\n")
    for line in jail_lines(report)[1:]:
        err(f"sandbox: {printable(line.strip())}\n")


def log_level_of(arguments: Arguments) -> int:
    """The level of the guest's log that ``-v`` and ``-vv`` ask for."""
    verbosity = arguments.count("verbose")
    return min(_LOG_INFO + verbosity - 1, _LOG_DEBUG) if verbosity else 0


def show_log(level: int, text: str) -> None:
    """One printable line of the guest's log, on stderr."""
    name = _LOG_LEVELS[level] if 0 < level < len(_LOG_LEVELS) else str(level)
    err(f"guest: {name}: {text}\n")
