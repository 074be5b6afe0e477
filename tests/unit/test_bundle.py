"""Bundles: what is written is read again, and damage of every kind is an error that names the place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm.boundary import (
    DeviceSpec,
    Event,
    Failure,
    FailureKind,
    Job,
    Limits,
    LogEvent,
    MessageEvent,
    Outcome,
    TraceEvent,
    Usage,
)
from vmm.cbor import encode
from vmm.errors import BundleError, FileError, LimitReachedError
from vmm.replay import bundle
from vmm.replay.bundle import MAGIC, MAX_ITEM, RecordedRun, outcome_fields, run_fields
from vmm.replay.compare import first_difference
from vmm.replay.reader import BundleReader
from vmm.replay.writer import BundleWriter

JOB = Job(
    elf=b"elf",
    request=b"\xa0",
    devices=(DeviceSpec(3, 1000), DeviceSpec(4, 0, read_only=False, resizable=True, max_length=1 << 40)),
    limits=Limits(timeout=1.5, max_read=77),
    log_level=3,
    progress=True,
)
EVENTS: tuple[Event, ...] = (
    TraceEvent(encode(["flags", 0, [], None, 3])),
    TraceEvent(encode(["data", 0, 0, b"x" * 500])),
    MessageEvent(b"\xff not CBOR"),
    LogEvent(3, b"a line"),
)
OUTCOME = Outcome(0, None, Usage(read_bytes=5), (1000, 0), (None, "no space"))
NAMES = {TraceEvent: "trace", MessageEvent: "message"}


def item_of(event: Event) -> list[object]:
    if isinstance(event, LogEvent):
        return ["log", event.level, event.text]
    assert isinstance(event, (TraceEvent, MessageEvent))
    return [NAMES[type(event)], event.payload]


def write(path: Path, *items: list[object]) -> bytes:
    writer = BundleWriter(str(path), 1 << 30)
    for item in items:
        writer.item(item)
    writer.commit()
    writer.close()
    return path.read_bytes()


RUN: list[object] = ["run", run_fields(JOB, b"runtime")]
END: list[object] = ["end", {"outcome": outcome_fields(OUTCOME)}]
WHOLE = (RUN, *map(item_of, EVENTS), END)


def read(path: Path, limit: int = 1 << 30) -> list[tuple[RecordedRun, list[Event], Any]]:
    found = []
    with BundleReader(str(path), limit) as reader:
        while (run := reader.next_run()) is not None:
            events = list(reader.events())
            found.append((run, events, reader.end))
    return found


def craft(path: Path, content: bytes, *, magic: bytes = MAGIC + b"\0\1", after: bytes = b"") -> Path:
    path.write_bytes(magic + zstandard.ZstdCompressor(write_checksum=True).compress(content) + after)
    return path


HEADER = cbor2.dumps(["header", {"program": "pyvmm 1", "call-table": [1, 0]}])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.pyvmm"
    write(path, *WHOLE, *WHOLE)
    (one, events, end), other = read(path)
    assert other == (one, events, end)
    assert events == list(EVENTS)
    assert end == {"outcome": outcome_fields(OUTCOME)}
    assert (one.elf_sha256, one.elf_length) == (bundle.sha256(b"elf"), 3)
    assert one.runtime_sha256 == bundle.sha256(b"runtime")
    assert (one.request, one.limits, one.log_level, one.progress) == (b"\xa0", JOB.limits, 3, True)
    assert one.devices == (
        DeviceSpec(-1, 1000),
        DeviceSpec(-1, 0, read_only=False, resizable=True, max_length=1 << 40),
    )


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one", *WHOLE) == write(tmp_path / "two", *WHOLE)


def test_an_uncommitted_bundle_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"before")
    for name in ("new", "old"):
        writer = BundleWriter(str(tmp_path / name), 1 << 30)
        writer.item(RUN)
        writer.close()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old", b"before")]


def test_a_failure_survives(tmp_path: Path) -> None:
    failure = Failure(
        FailureKind.LIMIT,
        "text \x1b[31m" + "a" * 9000,
        limit="timeout",
        limit_value=0.15,
        address=2**64 - 1,
        registers={"rip": 2**64 - 1},
        recent_requests=("\udce4",),
    )
    fields = outcome_fields(Outcome(None, failure, Usage()))
    write(tmp_path / "b", RUN, ["end", {"outcome": fields}])
    ((_, _, end),) = read(tmp_path / "b")
    assert first_difference(end["outcome"], fields) is None  # type: ignore[arg-type]
    recorded = end["outcome"]["failure"]
    assert (recorded["limit-value"], len(recorded["message"])) == ("0.15", bundle.MAX_TEXT)
    assert recorded["message"].startswith("text \\x1b[31m")
    assert bundle.is_timeout(end["outcome"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"MZ" * 100, "no bundle of pyvmm"),
        (MAGIC, "ends at byte 8"),
        (MAGIC + b"\0\2" + b"x" * 99, "of version 2; this program reads version 1"),
        (MAGIC + b"\0\1" + b"garbage", "compressed content is damaged between bytes 10 and 17"),
        (MAGIC + b"\0\1", "ends at byte 10"),
    ],
)
def test_no_bundle(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "b"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read(path)
    assert (said in caught.value.message) or not content
    assert str(path) in caught.value.message


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileError):
            read(path)


def _with(item: list[Any], *place: Any, value: Any) -> list[Any]:
    """A copy of an item with one thing changed; nested containers are copied on the way."""
    out: Any = cbor2.loads(cbor2.dumps(item))
    inner = out
    for key in place[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return out  # type: ignore[no-any-return]


BROKEN: dict[str, tuple[list[Any], ...]] = {
    "a run was expected": (END,),
    "inside its run": (RUN, RUN),
    "no array": ({"run": 1},),  # type: ignore[dict-item]
    "a run is no map": (["run", 5],),
    "elf is no map": (_with(RUN, 1, "elf", value=5),),
    "sha256 is missing": (_with(RUN, 1, "elf", "sha256", value="text"),),
    "a SHA-256 has 3 bytes": (_with(RUN, 1, "runtime", "sha256", value=b"abc"),),
    "length is -1": (_with(RUN, 1, "devices", 0, "length", value=-1),),
    "length is 9223372036854775808": (_with(RUN, 1, "devices", 0, "length", value=1 << 63),),
    "read-only is missing": (_with(RUN, 1, "devices", 0, "read-only", value=0),),
    "devices is missing": (_with(RUN, 1, "devices", value=KeyError),),
    "log-level is 5": (_with(RUN, 1, "log-level", value=5),),
    "max-read is missing": (_with(RUN, 1, "limits", "max-read", value=True),),
    "a trace is no byte string": (RUN, ["trace", "text"]),
    "a message is no byte string": (RUN, ["message"]),
    "a log is no level": (RUN, ["log", -1, b"text"]),
    "an event was expected, not something": (RUN, ["something", 1]),
    "an end is no map": (RUN, ["end", 1]),
    "neither an outcome nor a refusal": (RUN, ["end", {}]),
    "outcome is no map": (RUN, ["end", {"outcome": None}]),
    "status is missing": (RUN, ["end", {"outcome": {"failure": None}}]),
    "kind is missing": (RUN, ["end", {"outcome": {"failure": {}}}]),
    "code is missing": (RUN, ["end", {"refused": {}}]),
    "error decoding": (RUN, ["message", b"x"]),
}


@pytest.mark.parametrize("said", BROKEN)
def test_wrong_items(tmp_path: Path, said: str) -> None:
    content = HEADER + b"".join(map(cbor2.dumps, BROKEN[said]))
    with pytest.raises(BundleError) as caught:
        read(craft(tmp_path / "b", content))
    words = {"inside its run": "an event was expected, not run", "error decoding": "is damaged"}
    assert words.get(said, said) in caught.value.message
    details = caught.value.details
    assert details["item"] == 1 + len(BROKEN[said]) + (said == "error decoding")
    assert isinstance(details["offset"], int)
    assert f"item {details['item']} of its content, at byte {details['offset']}" in caught.value.message


HOSTILE: dict[str, bytes] = {
    "tag": b"\xc1\x00",
    "indefinite": b"\x9f\x00\xff",
    "depth": b"\x81" * 40,
    "huge string": b"\x5b\x00\x00\x00\xff\x00\x00\x00\x00" + bytes(2 << 20),
    "huge array": b"\x9b\x00\x00\x00\xff\x00\x00\x00\x00",
    "large item": b"\x81\x5a\x00\x20\x00\x00" + bytes(2 << 20),
    "float": b"\x81\xfb" + bytes(8),
    "duplicate": b"\xa2\x61a\x00\x61a\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content(tmp_path: Path, name: str) -> None:
    for content in (HOSTILE[name], HEADER + HOSTILE[name], HEADER + cbor2.dumps(RUN) + HOSTILE[name]):
        with pytest.raises(BundleError) as caught:
            read(craft(tmp_path / "b", content))
        assert caught.value.message.isprintable()


def test_an_item_larger_than_allowed(tmp_path: Path) -> None:
    content = HEADER + cbor2.dumps(RUN) + cbor2.dumps(["message", bytes(MAX_ITEM)])
    with pytest.raises(BundleError, match="an item is larger than 1048576 bytes"):
        read(craft(tmp_path / "b", content))


def _zeroes(size: int) -> bytes:
    """A zstd frame of zeroes: blocks of one byte repeated (RFC 8878 section 3.1.1.2.2), 4 bytes for 128 KiB each."""
    block = (1 << 17) << 3 | 1 << 1
    count = size >> 17
    blocks = block.to_bytes(3, "little") + b"\0"
    last = (block | 1).to_bytes(3, "little") + b"\0"
    # Magic, a descriptor without checksum and content size, a window of 1 MiB.
    return b"\x28\xb5\x2f\xfd\x00\x50" + blocks * (count - 1) + last


def test_a_bomb_is_bounded_by_item_and_by_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(MAGIC + b"\0\1" + _zeroes(1 << 36))
    with pytest.raises(BundleError):
        read(path)
    pieces = cbor2.dumps(["trace", bytes(MAX_ITEM // 2)]) * 100
    craft(path, HEADER + cbor2.dumps(RUN) + pieces)
    assert path.stat().st_size < 100_000
    with pytest.raises(LimitReachedError, match="max-record is 10000000") as caught:
        read(path, 10_000_000)
    assert caught.value.details["limit"] == "max-record"
    with pytest.raises(BundleError, match="damaged"):
        read(path)


def test_a_window_larger_than_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b"
    frame = bytearray(_zeroes(1 << 18))
    frame[5] = 0x68  # 8 MiB, which the library alone would grant
    path.write_bytes(MAGIC + b"\0\1" + frame)
    with pytest.raises(BundleError, match="compressed content is damaged"):
        read(path)


def test_something_after_the_content(tmp_path: Path) -> None:
    whole = HEADER + b"".join(map(cbor2.dumps, WHOLE))
    for after in (b"x", zstandard.compress(HEADER), bytes(100_000)):
        with pytest.raises(BundleError, match="something follows the compressed content"):
            read(craft(tmp_path / "b", whole, after=after))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("good") / "b", *WHOLE)


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[bytes], object]:
    """What is read from these bytes, or the error, which is one of a bundle."""

    def made(content: bytes) -> object:
        path = tmp_path / "b"
        path.write_bytes(content)
        try:
            return read(path)
        except BundleError as error:
            return error

    return made


def test_every_truncation_is_noticed(good: bytes, attempt: Callable[[bytes], object]) -> None:
    for length in (*range(40), *range(40, len(good), 3), len(good) - 2, len(good) - 1):
        found = attempt(good[:length])
        assert isinstance(found, BundleError), length
        assert found.message.isprintable()


def test_a_flipped_bit_is_noticed_or_changes_nothing(good: bytes, attempt: Callable[[bytes], object]) -> None:
    whole = attempt(good)
    unnoticed = 0
    for bit in (*range(200), *range(200, 8 * len(good), 7)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        found = attempt(bytes(damaged))
        if not isinstance(found, BundleError):
            unnoticed += 1
            assert found == whole, bit
    # A few bits of a frame mean nothing: one that is unused, the size of a window that is larger than needed.
    assert unnoticed < 20


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content(attempt: Callable[[bytes], object], content: bytes) -> None:
    attempt(MAGIC + b"\0\1" + zstandard.compress(HEADER + content))
    attempt(MAGIC + b"\0\1" + content)


# --- differences between outcomes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "found", "said"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, "a: recorded 1, now 2"),
        ({"a": 1}, {"a": True}, "a: recorded 1, now True"),
        ({"a": 1, "b": 2}, {"a": 1}, "b: recorded 2, now None"),
        ({}, {"a": "x"}, "a: recorded None, now x"),
        ({"a": [1, 2]}, {"a": [1]}, "a: 2 recorded, now 1"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a.1.b: recorded 2, now 3"),
        ({"failure": {"registers": {"rip": 16}}}, {"failure": {"registers": {"rip": 17}}}, "recorded 0x10, now 0x11"),
        ({"registers": {"rflags": 0x10046}}, {"registers": {"rflags": 0x2}}, None),
        ({"registers": {"rflags": 0x100}}, {"registers": {"rflags": 0}}, "registers.rflags: recorded 0x100, now 0x0"),
        ({"\x1b": 1}, {"\x1b": "\x1b[31m"}, "\\x1b: recorded 1, now \\x1b[31m"),
        ("x" * 999, "y", "x" * 200 + "..., now y"),
    ],
)
def test_first_difference(recorded: Any, found: Any, said: str | None) -> None:
    difference = first_difference(recorded, found)
    assert difference == said if said is None else said in str(difference)


def test_writing_fails_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(FileError, match=r"Could not write '.*b\.pyvmm': No space left"):
        BundleWriter(str(tmp_path / "b.pyvmm"), 1 << 20)
    assert list(tmp_path.iterdir()) == []
