"""``pyvmm doctor``: what this host has, in text and JSON."""

from __future__ import annotations

from vmm.boundary import KVM_DEVICE
from vmm.cli.arguments import Option, options_text, parse
from vmm.cli.jsontext import pretty
from vmm.cli.runoptions import output_format
from vmm.cli.terminal import out
from vmm.errors import EXIT_OK, UsageError, VmmError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.sandbox.layers import JailReport

_OPTIONS = (
    Option("help", ("-h", "--help"), None, "show this text"),
    Option("output", ("--output",), "human|json", "how to answer (default: human)"),
    Option("kvm", ("--kvm",), "PATH", f"the KVM device (default: {KVM_DEVICE})"),
)


def doctor_command(words: list[str]) -> int:
    """Examine this host; answers 0 when machines can run here, otherwise 69.

    :raises UsageError: the words make no sense.
    """
    arguments = parse(words, _OPTIONS)
    if "help" in arguments:
        out(f"usage: pyvmm doctor [options]\n\n{options_text(_OPTIONS)}")
        return EXIT_OK
    if arguments.operands:
        raise UsageError(f"Unexpected argument: {printable(arguments.operands[0])}")
    json = output_format(arguments) == "json"
    from vmm.machine.doctor import examine

    examination = examine(arguments.get("kvm") or KVM_DEVICE)
    jail, problem = _examine_jail()
    if json:
        sandbox: dict[str, object] = {"error": problem.as_dict()} if jail is None else jail.as_dict()
        out(pretty({**examination.as_dict(), "sandbox": sandbox}) + "\n")
    else:
        lines = [*examination.lines(), *jail_lines(jail, problem), examination.verdict()]
        out("".join(f"{printable(line)}\n" for line in lines))
    return examination.exit_status


def _examine_jail() -> tuple[JailReport | None, VmmError]:
    """The jail that workers get here, its network looked at over netlink; or why there is none."""
    try:
        from vmm.sandbox.broker import JailedRunner

        with JailedRunner(verify_network=True) as runner:
            return runner.examine(), VmmError("")
    except VmmError as error:
        return None, error


def jail_lines(jail: JailReport | None, problem: VmmError | None = None) -> list[str]:
    """The jail for people."""
    if jail is None:
        return [f"sandbox: none: {problem}"]
    lines = ["sandbox layers:"]
    for layer in jail.layers:
        detail = f" ({layer.detail})" if layer.detail else ""
        lines.append(f"  {layer.name}: {'yes' if layer.holds else 'MISSING'}{detail}")
    lines.append(f"  memory limit by: {jail.memory}")
    return lines
