"""The CBOR channel: whatever an operation emits, the command says what was wrong with it, and nothing raw is shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import cbor2
import pytest

import vmm
from calltable.messages import MESSAGES
from tests.hostile.reports import (
    ABORT,
    ASKING,
    BATCH,
    FAULT,
    LOG,
    OPERATIONS,
    POISON,
    PROGRESS,
    Script,
    Wrong,
    all_wrong,
    emitter,
    full,
    messages,
    payload,
    places,
    whole,
    wrong_batches,
    wrong_bytes,
    wrong_order,
)
from tests.integration.command import COMMAND, environment
from tests.unit.fake import FakeRunner
from vmm.cli.main import main
from vmm.operations import session as session_module
from vmm.operations.foreign import run_foreign
from vmm.operations.session import MAX_KEPT

GUEST_FAILED, REFUSED, LIMIT = 70, 1, 75
OTHER_OPERATIONS = ("info", "check", "measure")


def harmless(output: bytes) -> str:
    """The text, which holds nothing that a terminal could act on or that hides what is written."""
    text = output.decode("utf-8")
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
    return text


def ascii_json(output: bytes) -> list[Any]:
    """The objects of a JSON output, one a line."""
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in output), output
    return [json.loads(line) for line in output.splitlines()]


def command(folder: Path, *words: str, elf: bytes | None = None) -> tuple[int, bytes, bytes]:
    """The real command with the emitter in the place of the operation: status, stdout, stderr."""
    (folder / "hostile.elf").write_bytes(elf if elf is not None else emitter())
    done = subprocess.run(
        [*COMMAND, "run", words[0], "--op-elf", "hostile.elf", *words[1:]],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"internal error" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


class TestWithoutAMachine:
    """Everything that ``reports`` knows, through the whole command in this process."""

    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_module, "load_operation", lambda name: b"")
        monkeypatch.chdir(tmp_path)
        Path("image").write_bytes(b"x" * 512)

    def run(self, operation: str, runner: FakeRunner, *words: str) -> int:
        files = {"create": ["new"], "resize": ["image", "1M"]}.get(operation, ["image"])
        asked = ["measure", "--chain"] if operation == "references" else [operation]
        return main(["run", *asked, *words, *files], runner)

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_every_wrong_report(self, operation: str, capsys: pytest.CaptureFixture[str]) -> None:
        cases = all_wrong((operation,))
        assert len(cases) > 250
        for wrong in cases:
            status = self.run(operation, FakeRunner(*wrong.payloads, status=wrong.status), "--output=json")
            captured = capsys.readouterr()
            assert status == GUEST_FAILED, wrong
            answer = json.loads(captured.out)
            # A map that was begun ends with the error.
            line = answer[-1] if isinstance(answer, list) else answer
            assert line["error"]["code"] == "guest-failed", wrong
            assert wrong.text in line["error"]["message"], (wrong, line["error"]["message"])
            assert captured.err == ""
        assert not Path("new").exists()

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_what_is_right_is_answered(self, operation: str, capsys: pytest.CaptureFixture[str]) -> None:
        """So that the test above can fail; numbers at their edges among what is right."""
        kinds = [MESSAGES[name] for name in (*OPERATIONS[operation][1], OPERATIONS[operation][0]) if name not in ASKING]
        edges = {"uint": 2**64 - 1, "int": -(2**63)}
        for number in range(max(len(list(places(kind, full(kind)))) for kind in kinds)):
            payloads = []
            for kind in kinds:
                fields = full(kind)
                found = list(places(kind, fields))
                _, entry, holder = found[number % len(found)]
                if entry.kind in edges:
                    holder[entry.key] = [edges[entry.kind]] if entry.many else edges[entry.kind]
                payloads.append(payload(kind.NAME, fields))
            for words in ((), ("--output=json",)):
                # Numbers of a map have to agree, so that most edges are wrong there.
                answers = (0, GUEST_FAILED) if operation == "map" else (0, 1, 2, 3)
                assert self.run(operation, FakeRunner(*payloads), *words) in answers, payloads
                captured = capsys.readouterr()
                harmless(captured.out.encode())
                harmless(captured.err.encode())

    @pytest.mark.parametrize("operation", OPERATIONS)
    @pytest.mark.parametrize("version", ["7.2", "8.0", "9.0"])
    def test_poison_in_every_text(self, operation: str, version: str, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("--qemu-version", version) if operation in ("info", "map") else ()
        for data in ((), ("--output=json",)):
            self.run(operation, FakeRunner(*whole(operation, POISON)), *words, *data)
            captured = capsys.readouterr()
            harmless(captured.out.encode())
            harmless(captured.err.encode())
            assert captured.out.isascii() or not data

    def test_poison_in_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        error = payload("error", full(MESSAGES["error"], POISON))
        for words in ((), ("--output=json",)):
            assert self.run("info", FakeRunner(error, status=1), *words) == REFUSED
            captured = capsys.readouterr()
            harmless(captured.out.encode())
            harmless(captured.err.encode())

    def test_devices_that_an_error_can_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        for device in (0, 1, 2**31, 2**63, 2**64 - 1):
            error = payload("error", {"code": "io", "message": "m", "device": device})
            assert self.run("info", FakeRunner(error, status=1)) == REFUSED
            assert capsys.readouterr().err == "pyvmm: image: m\n"

    def test_errors_of_a_foreign_operation_are_not_collected(self) -> None:
        session = session_module.Session(FakeRunner(*[payload("error", {"code": "c", "message": "m" * 1000})] * 5000))
        tracemalloc.start()
        try:
            with pytest.raises(vmm.RefusedError, match="mmm"):
                run_foreign(session, b"", "x", [], lambda name, fields: None)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.kvm
class TestRealCommand:
    """The same from ring 3: one process and one machine for many scripts."""

    @pytest.mark.parametrize("operation", OTHER_OPERATIONS)
    def test_wrong_reports(self, tmp_path: Path, operation: str) -> None:
        cases: list[Wrong] = [*wrong_order(operation), *wrong_bytes(operation)]
        if operation == "info":
            cases += all_wrong(("info",))[::40]
        for number, wrong in enumerate(cases):
            (tmp_path / f"{number}").write_bytes(messages(*wrong.payloads, status=wrong.status).encode())
        names = [str(number) for number in range(len(cases))]
        status, out, err = command(tmp_path, operation, "--output=json", *names)
        assert (status, err) == (GUEST_FAILED, b"")
        lines = ascii_json(out)
        assert len(lines) == len(cases)
        for number, (wrong, line) in enumerate(zip(cases, lines, strict=True)):
            error = line["error"]
            assert (error["code"], error["file"], error["exit-status"]) == ("guest-failed", str(number), GUEST_FAILED)
            assert wrong.text in error["message"], wrong

    @pytest.mark.parametrize("operation", OTHER_OPERATIONS)
    def test_poison_in_every_text(self, tmp_path: Path, operation: str) -> None:
        script = messages(*whole(operation, POISON))
        error = messages(payload("error", full(MESSAGES["error"], POISON)), status=1)
        (tmp_path / "image").write_bytes(script.encode())
        (tmp_path / "error").write_bytes(error.encode())
        for words in ((), ("--output=json",)):
            for name in ("image", "error"):
                status, out, err = command(tmp_path, operation, *words, name)
                assert status in (0, 1, 2)
                harmless(out)
                harmless(err)
                assert not words or ascii_json(out.replace(b"\n", b""))

    def test_poison_in_what_create_says(self, tmp_path: Path) -> None:
        elf = emitter(messages(*whole("create", POISON)))
        for words in ((), ("--output=json",)):
            status, out, err = command(tmp_path, "create", "--force", *words, "new", "1M", elf=elf)
            assert (status, err) == (0, b"")
            assert "31m" in harmless(out)

    def test_poison_in_log_panic_and_names_of_the_elf(self, tmp_path: Path) -> None:
        text = POISON.encode() + b"\xff\xc0\xaf\xed\xa0\x80"
        elf = emitter()
        for symbol in (b"name_of_a_function_that_fails", b"emitter.c"):
            assert symbol in elf
            elf = elf.replace(symbol, (b"\x1b[31m\xe2\x80\xae\x07" * 4)[: len(symbol)].ljust(len(symbol), b"!"))
        (tmp_path / "abort").write_bytes(Script().add(text, kind=LOG, argument=1).add(text, kind=ABORT).encode())
        (tmp_path / "fault").write_bytes(Script().add(text, kind=LOG, argument=4).add(b"", kind=FAULT).encode())
        for name in ("abort", "fault"):
            for words in ((), ("--output=json",)):
                status, out, err = command(tmp_path, "info", "-vv", *words, name, elf=elf)
                assert status == GUEST_FAILED
                assert "31m" in harmless(out + err)
                assert b"guest: " in err
                if words:
                    (line,) = ascii_json(out.replace(b"\n", b""))
                    assert line["error"]["failure"]["kind"] == ("panic" if name == "abort" else "page-fault")

    def test_malformed_batches(self, tmp_path: Path) -> None:
        cases = list(wrong_batches())
        for number, (_, batch, _) in enumerate(cases):
            (tmp_path / f"{number}").write_bytes(Script().add(batch, kind=BATCH).encode())
        status, out, _ = command(tmp_path, "info", "--output=json", *(str(number) for number in range(len(cases))))
        assert status == GUEST_FAILED
        for (name, _, text), line in zip(cases, ascii_json(out), strict=True):
            failure = line["error"]["failure"]
            assert (failure["kind"], text in failure["message"]) == ("protocol", True), (name, failure["message"])

    def test_progress_of_every_size(self, tmp_path: Path) -> None:
        script = Script()
        for done in (0, 1, 2**63, 2**64 - 1):
            for total in (0, 1, 2**63, 2**64 - 1):
                script.add(done.to_bytes(8, "little") + total.to_bytes(8, "little"), kind=PROGRESS, repeat=3)
        (tmp_path / "image").write_bytes(script.add(payload("info", full(MESSAGES["info"]))).encode())
        status, out, err = command(tmp_path, "info", "-p", "image")
        assert status == 0
        assert b"file format: text" in out
        assert all(line.endswith("/100%)") for line in harmless(err).splitlines())

    def test_more_messages_than_are_kept(self, tmp_path: Path) -> None:
        note = payload("info-note", {"code": "c", "message": "m"})
        answer = payload("info", full(MESSAGES["info"]))
        for name, count in (("enough", MAX_KEPT), ("more", MAX_KEPT + 1)):
            (tmp_path / name).write_bytes(Script().add(note, repeat=count).add(answer).encode())
        (tmp_path / "items").write_bytes(
            Script()
            .add(payload("info-bitmap", {"name": "", "granularity": 1, "flags": ["ab"] * 9000}), repeat=23)
            .encode()
        )
        status, out, _ = command(tmp_path, "info", "-q", "--output=json", "more", "items", "--timeout", "120")
        more, items = ascii_json(out)
        assert status == GUEST_FAILED
        assert more["error"]["message"] == f"the guest emitted more than {MAX_KEPT} messages"
        assert items["error"]["message"].endswith(f"more than {MAX_KEPT} items in arrays")

    def test_memory_is_in_proportion(self, tmp_path: Path) -> None:
        """A report of the size that is allowed, of what takes most memory here, takes what its limit suggests."""
        megabytes = 16
        wide = payload("info-note", {"code": "c", "message": "\U0001f4be" + "a" * 28_000})
        flags = payload("info-bitmap", {"name": "", "granularity": 1, "flags": ["ab"] * 9000})
        (tmp_path / "wide").write_bytes(Script().add(wide, repeat=1 + (megabytes << 20) // len(wide)).encode())
        (tmp_path / "flags").write_bytes(Script().add(flags, repeat=1 + (megabytes << 20) // len(flags)).encode())
        (tmp_path / "none").write_bytes(messages(payload("info", full(MESSAGES["info"]))).encode())
        peaks = {}
        for name in ("none", "wide", "flags"):
            peaks[name] = self._peak(tmp_path, name, f"{megabytes}M")
        # Four bytes a character, and no more; of arrays 200,000 items.
        assert peaks["wide"] - peaks["none"] < 6 * megabytes
        assert peaks["flags"] - peaks["none"] < 6 * megabytes

    @staticmethod
    def _peak(folder: Path, name: str, limit: str) -> int:
        """The most MiB that the command had resident."""
        (folder / "hostile.elf").write_bytes(emitter())
        words = [*COMMAND, "run", "info", "--op-elf", "hostile.elf", "--max-report", limit, "--output=json", name]
        with subprocess.Popen(
            words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        ) as child:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode in (0, LIMIT, GUEST_FAILED)
        return usage.ru_maxrss >> 10


def test_the_poison_is_poison() -> None:
    """Every character of it is one that must not be shown."""
    bare = re.sub(r"\[31m|\]0;title|\[6n|2J|q", "", POISON)
    assert not any(character.isprintable() for character in bare)
    assert cbor2.loads(cbor2.dumps(POISON)) == POISON
