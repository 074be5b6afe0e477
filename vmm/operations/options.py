"""Creation options: qemu-img's ``-o name=value,...`` and Python keywords, turned into the contract's typed options."""

from __future__ import annotations

from calltable.messages import CreateOptions
from vmm.errors import UsageError
from vmm.operations.sizes import parse_number, parse_size
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    #: What a keyword may carry.
    OptionValue = str | int | bool

_ALL = ("raw", "qcow2", "vmdk", "vpc", "vhdx", "luks")
_LUKS = ("luks",)
_FILLED = ("raw", "vmdk", "luks")
_UINT_MAX = (1 << 64) - 1

#: qemu-img's name -> (attribute of CreateOptions, type, target formats that have it, what it is).
OPTIONS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "adapter_type": ("adapter_type", "str", ("vmdk",), "ide, buslogic, lsilogic or legacyESX"),
    "backing_file": ("backing_file", "str", ("qcow2", "vmdk", "vpc", "vhdx"), "name of a backing file"),
    "backing_fmt": ("backing_format", "str", ("qcow2", "vmdk", "vpc", "vhdx"), "format of the backing file"),
    "block_size": ("block_size", "size", ("vhdx",), "bytes of a block: 1M to 256M, or 0: by the size"),
    "block_state_zero": ("block_state_zero", "bool", ("vhdx",), "start with blocks in state ZERO (default: on)"),
    "cipher-alg": ("cipher_alg", "str", _LUKS, "aes-128, aes-192 or aes-256"),
    "cipher-mode": ("cipher_mode", "str", _LUKS, "xts or cbc"),
    "cluster_size": ("cluster_size", "size", ("qcow2",), "bytes of a cluster, a power of two from 512 to 2M"),
    "compat": ("compat", "str", ("qcow2",), "0.10 (v2) or 1.1 (v3)"),
    "compat6": ("compat6", "bool", ("vmdk",), "virtual hardware version 6"),
    "compression_type": ("compression_type", "str", ("qcow2",), "zlib or zstd, for clusters compressed later"),
    "data_file": ("data_file", "str", ("qcow2",), "file that holds the data outside the image"),
    "data_file_raw": ("data_file_raw", "bool", ("qcow2",), "keep the data file readable as a raw image"),
    "encryption": ("encryption", "str", ("qcow2",), "measured, not created: also encrypt.format=luks"),
    "extended_l2": ("extended_l2", "bool", ("qcow2",), "L2 entries with subclusters"),
    "extent_size_hint": ("extent_size_hint", "size", _ALL, "a wish to the file system, without effect here"),
    "force_size": ("force_size", "bool", ("vpc",), "keep the size exactly instead of rounding it to a geometry"),
    "hwversion": ("hwversion", "str", ("vmdk",), "virtual hardware version to write into the descriptor"),
    "hash-alg": ("hash_alg", "str", _LUKS, "sha1, sha256 or sha512"),
    "iterations": ("iterations", "number", _LUKS, "PBKDF2 iterations of the key slot (default: 600000)"),
    "ivgen-alg": ("ivgen_alg", "str", _LUKS, "plain, plain64 or essiv"),
    "ivgen-hash-alg": ("ivgen_hash_alg", "str", _LUKS, "hash of essiv: sha256"),
    "lazy_refcounts": ("lazy_refcounts", "bool", ("qcow2",), "let refcounts be updated late"),
    "log_size": ("log_size", "size", ("vhdx",), "bytes of the log, a multiple of 1M (default: 1M)"),
    "nocow": ("nocow", "bool", _ALL, "a wish to the file system, without effect here"),
    "preallocation": (
        "preallocation",
        "str",
        ("raw", "qcow2", "vmdk", "luks"),
        "off, metadata (qcow2), falloc or full",
    ),
    "refcount_bits": ("refcount_bits", "number", ("qcow2",), "width of a refcount: 1, 2, 4, 8, 16, 32 or 64"),
    "size": ("", "size", _ALL, "bytes of the virtual disk"),
    "subformat": ("subformat", "str", ("vmdk", "vpc", "vhdx"), "kind of the image, one of those that the format has"),
    "toolsversion": ("toolsversion", "str", ("vmdk",), "version of the guest tools to write into the descriptor"),
    "zeroed_grain": ("zeroed_grain", "bool", ("vmdk",), "let grains be marked as zero"),
}

#: Options of LUKS that qcow2 has with ``encrypt.`` in front.
ENCRYPTION = ("cipher-alg", "cipher-mode", "hash-alg", "ivgen-alg", "ivgen-hash-alg", "iterations")

#: qemu's options of encryption that have no place here, with the reason.
_REFUSED = {
    "key-secret": "no operation takes secrets: the passphrase comes from --luks-passphrase-file",
    "iter-time": "nothing here measures time: give the number of iterations with iterations=N",
}

_BOOLEANS = {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}


def split_options(text: str) -> list[tuple[str, str | None]]:
    """The ``name=value`` pairs of one ``-o`` argument; a doubled comma is a comma in a value.

    ``name`` alone has the value None.

    :raises UsageError: an empty item.
    """
    items = [""]
    index = 0
    while index < len(text):
        if text[index] != ",":
            items[-1] += text[index]
        elif text[index + 1 : index + 2] == "," and "=" in items[-1]:
            items[-1] += ","
            index += 1
        else:
            items.append("")
        index += 1
    if not all(items):
        raise UsageError(f"Invalid option list: {printable(text)}")
    pairs = [item.partition("=") for item in items]
    return [(name, value if equals else None) for name, equals, value in pairs]


def option_names(target: str) -> list[str]:
    """Names of the options that a target format has; all names for a format unknown here (the guest refuses it)."""
    return [name for name, entry in OPTIONS.items() if target in entry[2] or target not in _ALL]


def _convert(name: str, kind: str, value: OptionValue) -> OptionValue:
    """A value in the option's type.

    :raises UsageError: it does not fit.
    """
    if kind == "bool":
        chosen = value if isinstance(value, bool) else _BOOLEANS.get(str(value))
        if chosen is None:
            raise UsageError(f"Parameter '{name}' expects 'on' or 'off'")
        return chosen
    if kind == "str":
        return value if isinstance(value, str) else str(value)
    if isinstance(value, bool):
        number = None
    elif isinstance(value, int):
        number = value
    elif kind == "size":
        number = parse_number(value)
    else:
        number = _number(value)
    if number is None or number < 0:
        expected = "a non-negative number below 2^64" if kind == "size" else "a number"
        raise UsageError(f"Parameter '{name}' expects {expected}")
    if number > _UINT_MAX:
        raise UsageError(f"Value '{printable(str(value))}' is too large for parameter '{name}'")
    return number


def _number(text: str) -> int | None:
    """A plain number: decimal, or hexadecimal after 0x; None when it is none."""
    if text.lower().startswith("0x"):
        return parse_number(text)
    return parse_number(text) if text.isascii() and text.isdigit() else None


def build_options(target: str, given: Mapping[str, OptionValue | None]) -> tuple[CreateOptions | None, int | None]:
    """Typed creation options for a target format, and the size when it is among them.

    :param given: by qemu-img's names; a value of None is a name given without one (``on`` for booleans).
    :raises UsageError: an option that the format does not have, or a value that is none of its type.
    """
    names = option_names(target)
    chosen: dict[str, OptionValue] = {}
    size: int | None = None
    for original, given_value in given.items():
        name, value = original, given_value
        if name not in names and name.replace("_", "-") in names:
            # As a Python keyword.
            name = name.replace("_", "-")
        inner = name.removeprefix("encrypt.") if target == "qcow2" else name
        if (target == "luks" or inner != name) and inner in _REFUSED:
            raise UsageError(f"'{name}' is not supported: {_REFUSED[inner]}", target=target)
        if inner != name and inner in ENCRYPTION:
            # The guest says what goes with what.
            chosen[OPTIONS[inner][0]] = _convert(inner, OPTIONS[inner][1], "" if value is None else value)
            continue
        if name == "encrypt.format":
            name = "encryption"
        elif value is None and name not in names and name.removeprefix("no") in names:
            name, value = name.removeprefix("no"), "off"
        if name not in names:
            raise UsageError(f"Invalid parameter '{printable(original)}'", target=target)
        attribute, kind, _, _ = OPTIONS[name]
        if value is None:
            value = "on" if kind in ("bool", "str") else ""
        typed = _convert(name, kind, value)
        if name == "size":
            size = parse_size(typed)
        elif name == "encryption":
            chosen[attribute] = _encryption(original, str(typed))
        else:
            chosen[attribute] = typed
    if chosen.get("encryption") == "off":
        del chosen["encryption"]
    if not chosen:
        return None, size
    return CreateOptions.from_fields({key.replace("_", "-"): value for key, value in chosen.items()}), size


def _encryption(name: str, value: str) -> str:
    """The method that an option asks for: ``encryption=on`` is the older spelling of aes."""
    if name != "encryption":
        return value
    return "off" if value in ("off", "no", "false", "n") else "aes"


def collect_options(arguments: Sequence[str]) -> dict[str, OptionValue | None]:
    """The ``-o`` arguments of a command line, later ones winning.

    :raises UsageError: an empty item.
    """
    out: dict[str, OptionValue | None] = {}
    for text in arguments:
        out.update(split_options(text))
    return out


def options_help(target: str) -> str:
    """The list that ``-o help`` prints."""
    lines = [f"Supported {printable(target)} options:"]
    kinds = {"bool": "on/off", "str": "str", "size": "size", "number": "num"}
    for name in option_names(target):
        _, kind, _, doc = OPTIONS[name]
        left = f"{name}=<{kinds[kind]}>"
        lines.append(f"  {left:<26} {doc}")
    return "\n".join(lines) + "\n"
