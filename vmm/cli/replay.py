"""``pyvmm replay``: repeat what a bundle recorded, and say whether it was the same."""

from __future__ import annotations

from vmm.cli import runoptions
from vmm.cli.arguments import Option, options_text, parse
from vmm.cli.failures import failure_dict, failure_lines, worst
from vmm.cli.jsontext import compact, without_none
from vmm.cli.run import load_elf_file, log_level_of, new_runner, show_log
from vmm.cli.terminal import err, out
from vmm.errors import EXIT_FAILED, EXIT_LIMIT, EXIT_OK, GuestFailedError, UsageError
from vmm.operations.decode import decode_envelope
from vmm.operations.session import debug_file
from vmm.operations.text import printable, printable_bytes
from vmm.replay.player import Player, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boundary import Runner
    from vmm.cli.arguments import Arguments
    from vmm.cli.debug import GdbPort

_OPTIONS = (
    Option("help", ("-h", "--help"), None, "show this text"),
    Option("output", ("--output",), "human|json", "how to say the verdict (default: human)"),
    Option("quiet", ("-q", "--quiet"), None, "the verdict only"),
    Option("verbose", ("-v", "--verbose"), None, "the guest's log on stderr (-vv: more)"),
    Option("op-elf", ("--op-elf",), "PATH", "the ELF that was recorded, when it did not come with the package"),
    runoptions.GDB,
    *runoptions.LIMIT_OPTIONS,
    *runoptions.SANDBOX_OPTIONS,
    runoptions.MAX_RECORD,
    runoptions.KVM,
)

_STATUS = {Verdict.REPRODUCED: EXIT_OK, Verdict.DIFFERENT: EXIT_FAILED, Verdict.TIMEOUT: EXIT_LIMIT}


def replay_command(words: list[str], runner: Runner | None = None) -> int:
    """Replay the bundle that the words name; answers 0 when all of it was reproduced.

    :param runner: runs the jobs and stays open; None: a machine of this command's own.
    :raises UsageError: the words make no sense.
    :raises VmmError: nothing could be replayed at all.
    """
    arguments = parse(words, _OPTIONS)
    if "help" in arguments:
        out(f"usage: pyvmm replay [options] FILE\n\n{options_text(_OPTIONS)}")
        return EXIT_OK
    if len(arguments.operands) != 1:
        raise UsageError("Expecting one file that `pyvmm run --record` wrote")
    show = _Show(arguments, arguments.operands[0])
    limits = runoptions.limits(arguments)
    op_elf = arguments.get("op-elf")
    elf = None if op_elf is None else load_elf_file(op_elf)
    gdb = _gdb_port(arguments)
    own = new_runner(arguments, warm=True) if runner is None else None
    player = Player(
        runner or own,  # type: ignore[arg-type]  # one of them is there
        elf=elf,
        limits=limits,
        timeout=limits.timeout if "timeout" in arguments else None,
        max_record=runoptions.max_record(arguments),
        log_level=log_level_of(arguments),
        on_message=None if "quiet" in arguments else show.message,
        on_log=show.log if "verbose" in arguments else None,
        await_debugger=None
        if gdb is None
        else lambda name: gdb.wait(str(op_elf) if name is None else debug_file(name)),
    )
    try:
        return worst([show.verdict(verdict) for verdict in player.replay(show.path)])
    finally:
        if gdb is not None:
            gdb.close()
        if own is not None:
            own.close()


def _gdb_port(arguments: Arguments) -> GdbPort | None:
    """Where gdb is met, when that was asked for."""
    text = arguments.get("gdb")
    if text is None:
        return None
    from vmm.cli.debug import GdbPort

    return GdbPort(text)


class _Show:
    """Renders messages as ``pyvmm run`` does for an operation of one's own, and verdicts."""

    def __init__(self, arguments: Arguments, path: str) -> None:
        self.path = path
        self._json = runoptions.output_format(arguments) == "json"

    def message(self, payload: bytes) -> None:
        """One message; what cannot be decoded is shown as it is."""
        try:
            name, fields = decode_envelope(payload)
        except GuestFailedError as error:
            out(compact({"filename": self.path, "undecodable": error.message, "payload": payload}) + "\n")
        else:
            out(compact({"filename": self.path, "message": name, "fields": fields}) + "\n")

    @staticmethod
    def log(level: int, text: bytes) -> None:
        """One line of the guest's log."""
        show_log(level, printable_bytes(text))

    def verdict(self, verdict: Verdict) -> int:
        """How one run came out; answers its exit status."""
        status = _STATUS[verdict.verdict]
        if self._json:
            out(compact({"filename": self.path, "replay": _verdict_dict(verdict, status)}) + "\n")
            return status
        if verdict.failure is not None:
            err("\n".join([printable(verdict.failure.message), *failure_lines(verdict.failure)]) + "\n")
        out(f"{printable(self.path)}: {_verdict_text(verdict)}\n")
        return status


def _verdict_dict(verdict: Verdict, status: int) -> dict[str, object]:
    return without_none(
        (
            ("verdict", verdict.verdict),
            ("difference", verdict.difference),
            ("status", verdict.status),
            ("refusal", verdict.refusal),
            ("messages", verdict.messages),
            ("device-calls", verdict.calls),
            ("recorded-device-calls", verdict.recorded_calls),
            ("image-bytes", verdict.data_bytes),
            ("exit-status", status),
            ("failure", None if verdict.failure is None else failure_dict(verdict.failure)),
        )
    )


def _verdict_text(verdict: Verdict) -> str:
    if verdict.verdict == Verdict.TIMEOUT:
        return f"not comparable: {printable(str(verdict.difference))}"
    if verdict.difference is not None:
        return f"not reproduced: {printable(verdict.difference)}"
    if verdict.failure is not None:
        end = printable(verdict.failure.message)
    elif verdict.refusal is not None:
        end = f"its report is refused ({verdict.refusal})"
    else:
        end = f"status {verdict.status}"
    calls = verdict.recorded_calls if verdict.calls is None else verdict.calls
    return (
        f"reproduced: {end}; messages: {verdict.messages}, device calls: {calls}, bytes of the image: "
        f"{verdict.data_bytes}"
    )
