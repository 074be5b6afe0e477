"""The options of ``pyvmm run``: qemu-img's spelling, and what a sandbox needs besides."""

from __future__ import annotations

from calltable import LARGE_PAGE_SIZE
from vmm.boundary import DEFAULT_MAX_RECORD, KVM_DEVICE, Limits
from vmm.cli.arguments import Option
from vmm.errors import UsageError
from vmm.operations.sizes import parse_number
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.arguments import Arguments

#: What a run may use.
LIMIT_OPTIONS = (
    Option("timeout", ("--timeout",), "SECONDS", "wall time of each run"),
    Option("max-read", ("--max-read",), "SIZE", "bytes read from each image"),
    Option("max-write", ("--max-write",), "SIZE", "bytes written to the output"),
    Option("max-output", ("--max-output",), "SIZE", "length that an output file may reach"),
    Option("max-memory", ("--max-memory",), "SIZE", "memory of the guest, rounded up to a multiple of 2M"),
    Option("max-host-memory", ("--max-host-memory",), "SIZE", "memory of the process that runs the machine"),
    Option("max-messages", ("--max-messages",), "N", "messages of the report"),
    Option("max-report", ("--max-report",), "SIZE", "bytes of the report"),
)
SANDBOX_OPTIONS = (
    Option("sandbox", ("--sandbox",), "on|off", "jail the process that runs the machine (default: on)"),
    Option("require-sandbox", ("--require-sandbox",), None, "refuse to run unless every layer of the jail holds"),
)
GDB = Option("gdb", ("--gdb",), "PORT", "wait for gdb on this port of localhost (0: any free one)")
MAX_RECORD = Option("max-record", ("--max-record",), "SIZE", "bytes of a bundle before compression (default: 1G)")
KVM = Option("kvm", ("--kvm",), "PATH", f"the KVM device (default: {KVM_DEVICE})")
_COMMON = (
    Option("help", ("-h", "--help"), None, "show this text"),
    Option("output", ("--output",), "human|json", "how to answer (default: human)"),
    Option("quiet", ("-q", "--quiet"), None, "no text on stdout"),
    Option("progress", ("-p", "--progress"), None, "show progress on stderr"),
    Option("share", ("-U", "--force-share"), None, "take no locks (only resize takes any)"),
    Option("follow", ("-L", "--follow-symlinks"), None, "follow a symbolic link named as FILE"),
    Option("verbose", ("-v", "--verbose"), None, "the guest's log on stderr (-vv: more)"),
    *LIMIT_OPTIONS,
    *SANDBOX_OPTIONS,
    Option("op-elf", ("--op-elf",), "PATH", "run this ELF as the operation"),
    GDB,
    Option("record", ("--record",), "PATH", "write what happens to a bundle that `pyvmm replay` repeats"),
    MAX_RECORD,
    KVM,
)
_FORMAT = Option("format", ("-f", "--format"), "FMT", "format of FILE (default: detected in the guest)")
_OPTIONS = Option("options", ("-o", "--options"), "K=V,...", "creation options (-o help lists them)")
#: Of the operations that read images.
_CHAIN = (
    Option("chain", ("--chain",), None, "follow the files that FILE names, in its own directory and below"),
    Option("allow-dir", ("--allow-dir",), "DIR", "with --chain: follow them also below DIR (may be repeated)"),
)
_QEMU_VERSION = Option("qemu-version", ("--qemu-version",), "X.Y", "answer as this release of qemu-img (default: 7.2)")
_PASSPHRASE = Option(
    "luks-passphrase-file", ("--luks-passphrase-file",), "FILE", "its bytes, all of them, are the passphrase of LUKS"
)
_IMAGE_OPTS = Option("image-opts", ("--image-opts",), None, "not supported")
_OBJECT = Option("object", ("--object",), "DEF", "not supported")

#: Options that qemu-img has and this does not, with the reason.
REFUSED = {
    "image-opts": "--image-opts is not supported: FILE is a path",
    "object": "--object is not supported: no operation takes secrets (see --luks-passphrase-file)",
    "repair": "-r is not supported: check never writes",
    "snapshot": "-l is not supported: snapshots are not measured",
}

BY_OPERATION = {
    "info": (
        _FORMAT,
        _QEMU_VERSION,
        _PASSPHRASE,
        *_CHAIN,
        Option("backing-chain", ("--backing-chain",), None, "--chain, and describe every image behind FILE too"),
        _IMAGE_OPTS,
        _OBJECT,
    ),
    "measure": (
        _FORMAT,
        Option(
            "target", ("-O", "--target-format"), "FMT", "target format: raw (default), qcow2, vmdk, vpc, vhdx or luks"
        ),
        Option("size", ("--size", "-s"), "SIZE", "measure an empty disk instead of FILE"),
        _OPTIONS,
        *_CHAIN,
        Option("snapshot", ("-l",), "SNAPSHOT", "not supported"),
        _IMAGE_OPTS,
        _OBJECT,
    ),
    "map": (
        _FORMAT,
        *_CHAIN,
        Option("start", ("-s", "--start-offset"), "OFFSET", "byte of the disk to begin at (default: 0)"),
        Option("length", ("-l", "--max-length"), "LENGTH", "bytes to map at most (default: to the end)"),
        Option("picture", ("--picture",), "PATH", "draw the map into a .png or .svg file"),
        _QEMU_VERSION,
        _IMAGE_OPTS,
        _OBJECT,
    ),
    "check": (
        _FORMAT,
        *_CHAIN,
        Option("repair", ("-r",), "leaks|all", "not supported: nothing is written"),
        Option("cache", ("-T",), "MODE", "accepted, without effect"),
        _IMAGE_OPTS,
        _OBJECT,
    ),
    "create": (
        Option("format", ("-f", "--format"), "FMT", "format of the new image (default: raw)"),
        _OPTIONS,
        Option("backing", ("-b", "--backing"), "NAME", "backing file, as found from FILE's directory"),
        Option("backing-format", ("-F", "--backing-format"), "FMT", "format of the backing file"),
        Option("unsafe", ("-u", "--backing-unsafe"), None, "write the backing file's name without opening it"),
        Option("force", ("--force",), None, "replace FILE if it exists"),
        Option("seed", ("--seed",), "TEXT", "make all that is random of TEXT, so that runs repeat"),
        Option(
            "unix-time",
            ("--unix-time",),
            "SECONDS",
            "time to write into the image (default: now)",
        ),
        Option("uuid", ("--uuid",), "UUID", "identity to write into the image (default: random)"),
        _PASSPHRASE,
        _OBJECT,
    ),
    "resize": (
        _FORMAT,
        Option("shrink", ("--shrink",), None, "allow a smaller size: what lies behind the new end is lost"),
        Option("preallocation", ("--preallocation",), "MODE", "of the new space: off, metadata, falloc or full"),
        _IMAGE_OPTS,
        _OBJECT,
    ),
}
_FOREIGN = (Option("options", ("-o",), "K=V,...", "options of the operation"),)


def options_of(operation: str) -> tuple[Option, ...]:
    """The options of an operation; those of a foreign one for any other name."""
    return BY_OPERATION.get(operation, _FOREIGN) + _COMMON


def refuse_unsupported(arguments: Arguments) -> None:
    """Options of qemu-img that cannot be honoured are refused rather than ignored, and so are those without effect.

    :raises UsageError: one of them is there.
    """
    for key, reason in REFUSED.items():
        if key in arguments:
            raise UsageError(reason)
    if "allow-dir" in arguments and not follows(arguments):
        raise UsageError("--allow-dir needs --chain.")


def follows(arguments: Arguments) -> bool:
    """Whether the files that an image names are followed."""
    return "chain" in arguments or "backing-chain" in arguments


def output_format(arguments: Arguments) -> str:
    """``human`` or ``json``.

    :raises UsageError: something else.
    """
    chosen = arguments.get("output") or "human"
    if chosen not in ("human", "json"):
        raise UsageError("--output must be used with human or json as argument.")
    return chosen


def qemu_version(arguments: Arguments) -> tuple[int, int]:
    """Major and minor of the qemu release whose answers are wanted.

    :raises UsageError: what was given is no release.
    """
    from vmm.cli.reports import version_of
    from vmm.operations.info import DEFAULT_QEMU_VERSION

    text = arguments.get("qemu-version") or DEFAULT_QEMU_VERSION
    try:
        return version_of(text)
    except ValueError:
        raise UsageError(f"--qemu-version takes a version such as 8.0, not '{printable(text)}'") from None


def sandbox_off(arguments: Arguments) -> bool:
    """Whether the machine is to run in this process.

    :raises UsageError: ``--sandbox`` is neither on nor off, or off contradicts ``--require-sandbox``.
    """
    chosen = arguments.get("sandbox") or "on"
    if chosen not in ("on", "off"):
        raise UsageError(f"--sandbox takes on or off, not '{printable(chosen)}'")
    if chosen == "off" and "require-sandbox" in arguments:
        raise UsageError("--sandbox=off and --require-sandbox contradict each other")
    return chosen == "off"


def _amount(arguments: Arguments, key: str, default: int, least: int) -> int:
    text = arguments.get(key)
    if text is None:
        return default
    value = parse_number(text)
    if value is None or not least <= value < 1 << 63:
        raise UsageError(f"--{key} takes a size of at least {least}, not '{printable(text)}'")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e9:
        raise UsageError(f"--timeout takes a number of seconds above 0, not '{printable(text)}'")
    return value


def passphrase(arguments: Arguments) -> bytes | None:
    """What ``--luks-passphrase-file`` names.

    :raises UsageError: it goes together with ``--record``, which would keep it.
    """
    path = arguments.get("luks-passphrase-file")
    if path is None:
        return None
    if "record" in arguments:
        raise UsageError("--record and --luks-passphrase-file contradict each other: a bundle holds the request")
    from vmm.operations.passphrase import read_passphrase

    return read_passphrase(path)


def max_record(arguments: Arguments) -> int:
    """Bytes of a bundle's content.

    :raises UsageError: no size.
    """
    return _amount(arguments, "max-record", DEFAULT_MAX_RECORD, 1)


def limits(arguments: Arguments) -> Limits:
    """The limits of each run.

    :raises UsageError: one is no number or out of range.
    """
    defaults = Limits()
    timeout = arguments.get("timeout")
    memory = _amount(arguments, "max-memory", defaults.max_memory, 1)
    return Limits(
        timeout=defaults.timeout if timeout is None else _seconds(timeout),
        max_read=_amount(arguments, "max-read", defaults.max_read, 0),
        max_write=_amount(arguments, "max-write", defaults.max_write, 0),
        max_messages=_amount(arguments, "max-messages", defaults.max_messages, 0),
        max_report=_amount(arguments, "max-report", defaults.max_report, 0),
        max_output=_amount(arguments, "max-output", defaults.max_output, 0),
        max_host_memory=_amount(arguments, "max-host-memory", 0, 1) or None,
        max_memory=(memory + LARGE_PAGE_SIZE - 1) // LARGE_PAGE_SIZE * LARGE_PAGE_SIZE,
    )
