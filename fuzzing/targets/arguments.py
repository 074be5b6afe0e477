"""Whatever words a command line holds, the command ends with a status of its table, shows no traceback and nothing raw,
and what it asks of the machine is a valid request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from calltable.message import Message
from calltable.messages import (
    Check,
    CheckRequest,
    Create,
    CreateOption,
    CreateRequest,
    Info,
    InfoRequest,
    Map,
    MapRequest,
    Measure,
    MeasureRequest,
    Resize,
    ResizeRequest,
)
from fuzzing.codec import Sink, Source
from fuzzing.console import Runner, command
from fuzzing.targets import Target
from vmm.boundary import Event, Job, MessageEvent, Outcome, ProgressEvent, Usage
from vmm.cbor import decode, encode
from vmm.cli.runoptions import BY_OPERATION, options_of
from vmm.errors import KvmUnavailableError
from vmm.machine import doctor
from vmm.operations import session
from vmm.operations.options import OPTIONS

#: Words by number; the order is part of every corpus file, so that new ones come last.
WORDS = (
    *("run", "info", "measure", "check", "create", "op.elf", "./op.elf", "image", "other", "empty", "link", "folder"),
    *(
        "missing",
        "new",
        "folder/new",
        "/dev/null",
        "-f",
        "-O",
        "-o",
        "--output=json",
        "--output",
        "json",
        "human",
        "raw",
    ),
    *("qcow2", "vpc", "vmdk", "help", "?", "--size", "1G", "0x10k", "1.5M", "-1", "9223372036854775807", "--", "-"),
    *(
        "-q",
        "-p",
        "-U",
        "-L",
        "-v",
        "-vv",
        "-h",
        "--help",
        "-V",
        "--version",
        "doctor",
        "--timeout",
        "0.5",
        "nan",
        "1e9",
    ),
    *("--max-read", "--max-memory=4M", "--max-messages", "0", "--op-elf", "--kvm", "--unix-time", "--uuid"),
    *(
        "00112233-4455-6677-8899-aabbccddeeff",
        "--qemu-version",
        "9.0",
        "-b",
        "-F",
        "-u",
        "-r",
        "all",
        "-l",
        "--image-opts",
    ),
    *("cluster_size=4k", "preallocation=falloc", "data_file=data", "backing_file=a,,b", "size=1M,nocow", "encrypt.x=1"),
    *(
        "\x1b[31m",
        "\u202e",
        "\udcff",
        "e=\u0301",
        "\x00",
        "=",
        ",",
        "--out=json",
        "-qpUL",
        "--s",
        "help=",
        "\U0001f600" * 3,
    ),
    *("resize", "--shrink", "--preallocation=full", "+1G", "-512k"),
    *("map", "-s", "--start-offset", "--max-length", "--picture", "out.svg"),
)
_OPTION_WORDS = tuple(
    sorted({name for operation in BY_OPERATION for option in options_of(operation) for name in option.names})
)

_ANSWERS: dict[str, tuple[type[Message], Message]] = {
    "info": (InfoRequest, Info(format="raw", virtual_size=512, file_length=512, dirty_flag=False)),
    "measure": (MeasureRequest, Measure(required=1, fully_allocated=2, target="raw", virtual_size=3)),
    "check": (
        CheckRequest,
        Check(format="qcow2", file_length=512, check_errors=0, corruptions=0, leaks=0, findings_omitted=0),
    ),
    "map": (MapRequest, Map(format="raw", virtual_size=0, extents=0)),
    "create": (
        CreateRequest,
        Create(format="raw", virtual_size=1, file_length=0, options=(CreateOption(name="size", value="1"),)),
    ),
    "resize": (ResizeRequest, Resize(format="raw", old_size=512, virtual_size=1024, file_length=1024)),
}


#: The only paths with a slash that a command may see.
_SAFE_PATHS = ("./op.elf", "folder/new", "/dev/null")


def _safe(word: str) -> str:
    """The word, or one like it that names no file outside the folder: the fuzzer may be root, and `create` replaces."""
    before, equals, value = word.rpartition("=")
    if value in _SAFE_PATHS and "/" not in before + equals:
        return word
    return word.replace("/", "|")


def _word(source: Source) -> str:
    choice = source.byte()
    if choice < 0x80:
        return WORDS[choice % len(WORDS)]
    if choice < 0xC0:
        return _OPTION_WORDS[choice % len(_OPTION_WORDS)]
    if choice < 0xE0:
        return (
            _word(source) + _word(source) if choice & 1 else f"{sorted(OPTIONS)[choice % len(OPTIONS)]}={_word(source)}"
        )
    return source.take(source.byte() & 63).decode("utf-8", "surrogateescape")


def _examine(path: str = "") -> doctor.DoctorReport:
    problem = KvmUnavailableError(f"no {path!r} here")
    return doctor.DoctorReport("6.1", "x86_64", path, problem)


def _answer(job: Job, on_event: Callable[[Event], None]) -> Outcome:
    """What the operation would say; the request has to be one."""
    name = job.elf.decode("latin-1")
    request = decode(job.request)
    on_event(ProgressEvent(1, 3))
    if name in _ANSWERS:
        kind, answer = _ANSWERS[name]
        assert isinstance(request, dict)
        kind.from_fields(request)
        on_event(MessageEvent(encode([answer.NAME, answer.as_fields()])))
    else:
        on_event(MessageEvent(encode(["hello", {"request": job.request}])))
    return Outcome(0, None, Usage())


def run(data: bytes) -> None:
    """See above."""
    source = Source(data)
    words: list[str] = []
    while source and len(words) < 40:
        words.append(_safe(_word(source)))
    if len(words) > 1 and words[0] != "doctor" and words[0].startswith(("i", "m", "c")):
        words.insert(0, "run")
    saved = session.load_operation, doctor.examine
    # The name of an operation stands for its ELF.
    session.load_operation, doctor.examine = str.encode, _examine  # type: ignore[assignment]
    try:
        command(words, Runner(_answer))
    finally:
        session.load_operation, doctor.examine = saved


def seeds() -> Iterable[bytes]:
    """Command lines as people type them."""
    lines = (
        "info image",
        "measure -O qcow2 -o cluster_size=4k --output=json image other",
        "measure --size 1G -O vpc",
        "check -q image missing",
        "create -f qcow2 -o preallocation=falloc -b image -F raw new 1G",
        "create -f raw --unix-time 0 --uuid 00112233-4455-6677-8899-aabbccddeeff new 1.5M",
        "create -f qcow2 -o data_file=data -L -p new 1G",
        "./op.elf -o size=1M,nocow image -vv",
        "info --qemu-version 9.0 --timeout 0.5 --max-read 0 -U -- image",
        "run --help",
        "create -o help -f vpc",
        "resize --shrink -f raw image -512k",
        "doctor --output json",
        "--version",
        "info link -L --op-elf op.elf",
        "map -s 1.5M --max-length 1G --output=json image other",
        "map --picture out.svg image",
    )
    for line in lines:
        sink = Sink()
        for word in line.split():
            if word in WORDS:
                sink.byte(WORDS.index(word))
            elif word in _OPTION_WORDS:
                place = _OPTION_WORDS.index(word)
                choice = next(c for c in range(0x80, 0xC0) if c % len(_OPTION_WORDS) == place)
                sink.byte(choice)
            else:
                sink.byte(0xFF, len(word)).raw(word.encode())
        yield bytes(sink.data)


TARGET = Target("arguments", run, seeds, max_length=512)
