"""Bundles are as specified, and those that were changed are told from good ones."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zstandard
from pycddl import Schema, ValidationError

import vmm
from tests.integration.exerciser import Exerciser
from tests.integration.recording import Command, exercise, record, refuse, replay, rewrite
from tests.machines import hostile_operation, job
from vmm.boundary import DeviceSpec, FailureKind
from vmm.cbor import encode
from vmm.devices.trace import CALLS
from vmm.errors import GuestFailedError
from vmm.machine.runner import MachineRunner
from vmm.record import replace
from vmm.replay.player import Verdict
from vmm.replay.recorder import Recorder

pytestmark = pytest.mark.kvm


# --- the specification ------------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "bundle.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


CDDL = "".join(re.findall(r"^```cddl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def validate(rule: str, encoded: bytes) -> None:
    """An item against one rule: pycddl panics where arrays of a choice differ in length."""
    Schema(f"start = {rule}\n{CDDL}").validate_cbor(encoded)


def test_bundles_are_as_specified(
    pyvmm: Command, runner: MachineRunner, exerciser: Exerciser, disk: DeviceSpec, tmp_path: Path
) -> None:
    writable = replace(disk, read_only=False, resizable=True, max_length=3 << 20)
    calls = [
        *("read", "write-zeroes", "discard", "flush", "block-status"),
        *("write", "set-length", "read", "set-length"),
    ]
    steps = [
        {"call": call, "offset": 4090, "length": 5 << 20 if number == 8 else 4096, "data": b"data"}
        for number, call in enumerate(calls)
    ]
    recorder = Recorder(runner, "run.pyvmm")
    recorder.run(exercise(exerciser, steps, writable), lambda _: None)
    for name in ("divide", "panic", "innocent", "dma_text", "wrong_cbor", "log_flood", "read_flood"):
        recorder.run(replace(job(name, (disk,), max_messages=5, max_read=1 << 16), log_level=4), lambda _: None)
    recorder.run(job("spin", (disk,), timeout=0.05), lambda _: None)
    with pytest.raises(GuestFailedError):
        recorder.run(job("wrong_cbor", (disk,)), refuse)
    recorder.commit()
    recorder.close()
    content = Path("run.pyvmm").read_bytes()
    assert content[:10].hex(" ") in TEXT.replace("| 0 to 7 | `", "").replace("0a`", "0a 00 01`")
    source = io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(content[10:]))
    kinds = set()
    while source.tell() < len(source.getvalue()):
        item = cbor2.CBORDecoder(source, read_size=1).decode()
        validate(f"{item[0]}-item", cbor2.dumps(item))
        kinds.add(item[0])
        if item[0] == "trace":
            kind = cbor2.loads(item[1])[0]
            kinds.add(kind)
            validate("data-piece" if kind == "data" else f"{kind}-call", item[1])
    assert kinds == {"header", "run", "trace", "message", "log", "end", "data", *CALLS}
    with pytest.raises(ValidationError):
        validate("flush-call", cbor2.dumps(["flush", 0, [1], None]))
    with pytest.raises(ValidationError):
        validate("end-item", cbor2.dumps(["end", {"outcome": None}]))


def test_the_example(pyvmm: Command) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    pyvmm("run", "create", "-f", "qcow2", "disk.qcow2", "1M")
    exec(compile(example, "docs/bundle.md", "exec"), {"vmm": vmm})


# --- bundles that were changed ----------------------------------------------------------------------------------------


def _trace(found: list[list[Any]], kind: str, number: int = 0) -> list[Any]:
    """The item of a bundle with the given call."""
    return [item for item in found if item[0] == "trace" and cbor2.loads(item[1])[0] == kind][number]


def _set(item: list[Any], place: tuple[int, ...], value: object) -> None:
    entry = cbor2.loads(item[1])
    inner = entry
    for index in place[:-1]:
        inner = inner[index]
    inner[place[-1]] = value
    item[1] = encode(entry)


def _data(found: list[list[Any]]) -> None:
    item = _trace(found, "data")
    content = bytearray(cbor2.loads(item[1])[3])
    content[30] ^= 1
    _set(item, (3,), bytes(content))


def _drop(kind: str) -> Callable[[list[list[Any]]], None]:
    return lambda found: found.remove(_trace(found, kind))


def _outcome(**changes: object) -> Callable[[list[list[Any]]], None]:
    return lambda found: found[-1][1]["outcome"].update(changes)


def _refusal(found: list[list[Any]]) -> None:
    found.insert(-1, ["message", b"\x80"])
    found[-1][1] = {"refused": {"code": "x", "message": "why"}}


CHANGES: dict[str, tuple[Callable[[list[list[Any]]], None], str]] = {
    "offset": (
        lambda found: _set(_trace(found, "read", 1), (2, 0), 77),
        "device call 4: recorded: read of device 0, offset 77, length ",
    ),
    "a missing call": (_drop("allocated"), "device call 2: recorded: read of device 0"),
    "a missing last call": (
        lambda found: found.remove(_trace(found, "read", -1)),
        "the recorded run had ended its calls; now came: read of device 0",
    ),
    "a call too many": (
        lambda found: found.insert(-1, ["trace", encode(["flush", 0, [], None])]),
        "recorded device calls",
    ),
    "other bytes": (_data, "device call 3: read of device 0, offset 0, length 512 answers other bytes"),
    "another sum": (
        lambda found: _set(_trace(found, "read"), (4,), 5),
        "device call 3: read of device 0, offset 0, length 512 answers other bytes",
    ),
    "an error": (lambda found: _set(_trace(found, "read"), (3,), "no"), "device call 3: the record is damaged"),
    "nonsense": (lambda found: found.insert(1, ["trace", encode(["x", {}])]), "device call 1: the record is damaged"),
    "a message": (
        lambda found: next(i for i in found if i[0] == "message").__setitem__(1, b"\x82echeck\xa0"),
        "message 1 differs at its byte 7: recorded a0, now b0",
    ),
    "a message too many": (
        lambda found: found.insert(-1, ["message", b"\xa0"]),
        "1 of 2 recorded messages and log lines did not come",
    ),
    "no message": (
        lambda found: found.remove(next(item for item in found if item[0] == "message")),
        "message 1 came after all that were recorded",
    ),
    "status": (_outcome(status=3), "status: recorded 3, now 0"),
    "length": (_outcome(**{"device-lengths": [5]}), "device-lengths.0: recorded 5, now "),
    "device error": (_outcome(**{"device-errors": ["bad"]}), "device-errors.0: recorded bad, now None"),
    "failure": (
        _outcome(status=None, failure={"kind": "panic", "message": "no"}),
        "status: recorded None, now 0",
    ),
    "the request": (
        lambda found: found[0][1].update(request=encode({"format": "raw"})),
        "message 1 differs at its byte 2: recorded 63",
    ),
    "a refusal": (
        _refusal,
        "the report of the recorded run was refused (why), this one's was not",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_bundle_is_not_reproduced(pyvmm: Command, name: str) -> None:
    change, said = CHANGES[name]
    assert pyvmm("run", "create", "-f", "qcow2", "image", "1G").status == 0
    assert pyvmm("run", "check", "--record", "run.pyvmm", "image").status == 0
    rewrite("run.pyvmm", change)
    answer = pyvmm("replay", "run.pyvmm")
    assert answer.status == 1
    assert answer.last.startswith("run.pyvmm: not reproduced: "), answer
    assert said in answer.last
    verdict = json.loads(pyvmm("replay", "--output=json", "run.pyvmm").last)["replay"]
    assert (verdict["verdict"], verdict["exit-status"]) == ("not-reproduced", 1)
    assert said in verdict["difference"]


def test_registers_are_compared(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    record(runner, bundle, job("divide", (disk,)))
    rewrite(bundle, lambda found: found[-1][1]["outcome"]["failure"]["registers"].update(rax=0xABC))
    verdict = replay(runner, bundle, hostile_operation())
    assert verdict.verdict == Verdict.DIFFERENT
    assert str(verdict.difference).startswith("failure.registers.rax: recorded 0xabc, now 0x")
    assert verdict.failure is not None
    assert verdict.failure.kind == FailureKind.EXCEPTION


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (["data", 1, 0, b"x"], "a device that the run does not have"),
        (["data", 0, 1 << 20, b"x"], "data lie outside the"),
        (["data", 0, 0, 1 << 40], "data lie outside the"),
        (["data", 0, -1, b"x"], "data lie outside the"),
        (["data", 0, b"x"], "data are no device, offset and bytes"),
        ([], "a trace is no array that begins with its kind"),
    ],
)
def test_hostile_data(pyvmm: Command, entry: list[Any], said: str) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    pyvmm("run", "check", "--record", "run.pyvmm", "image")
    rewrite("run.pyvmm", lambda found: found.insert(2, ["trace", encode(entry)]))
    answer = pyvmm("replay", "--output=json", "run.pyvmm")
    assert answer.status == 1
    error = json.loads(answer.out)["error"]
    assert (error["code"], error["item"]) == ("bundle", 4)
    assert said in error["message"]
