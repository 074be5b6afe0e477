"""``pyvmm doctor``: what this host has, in text and JSON."""

from __future__ import annotations

from vmm.boundary import KVM_DEVICE
from vmm.cli.arguments import Option, options_text, parse
from vmm.cli.jsontext import pretty
from vmm.cli.runoptions import output_format
from vmm.cli.terminal import out
from vmm.errors import EXIT_OK, UsageError
from vmm.operations.text import printable

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
    if json:
        out(pretty(examination.as_dict()) + "\n")
    else:
        out("\n".join(map(printable, examination.as_text().split("\n"))))
    return examination.exit_status
