"""The command line through a runner that plays canned guests: words, text, JSON, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calltable.message import Message
from calltable.messages import (
    Check,
    CheckFinding,
    Create,
    CreateOption,
    Error,
    Info,
    InfoReference,
    Measure,
)
from tests.unit.fake import FakeRunner
from vmm.boundary import Failure, FailureKind, Frame, Limits, LogEvent
from vmm.cbor import decode, encode
from vmm.cli.main import main

MEASURE = Measure(required=393216, fully_allocated=1376256, target="qcow2", virtual_size=1 << 20, format="raw")
RAW = Info(format="raw", virtual_size=512, file_length=512, dirty_flag=False)
CHECK = Check(
    format="qcow2",
    file_length=262144,
    check_errors=0,
    corruptions=0,
    leaks=0,
    image_end_offset=262144,
    total_clusters=160,
    allocated_clusters=40,
    fragmented_clusters=10,
    compressed_clusters=0,
    findings_omitted=0,
)


Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("canned_command")


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["frobnicate"], "no command 'frobnicate'"),
            (["run", "frobnicate", "image"], "no operation 'frobnicate'"),
            (["run", "-f", "raw"], "no operation '-f'"),
            (["run", "info"], "Expecting at least one image file name"),
            (["run", "measure"], "Either --size N or one filename"),
            (["run", "measure", "--size", "1M", "image"], "cannot be used together"),
            (["run", "measure", "--size", "1X"], "Invalid image size"),
            (["run", "measure", "-f", "raw", "--size", "1"], "-f requires a filename"),
            (["run", "measure", "-o", "x=1", "image"], "Invalid parameter 'x'"),
            (["run", "measure", "-o", ",", "image"], "Invalid option list"),
            (["run", "create", "-f", "raw"], "Expecting image file name"),
            (["run", "create", "a", "1", "2"], "Unexpected argument: 2"),
            (["run", "create", "--uuid", "12", "a", "1"], "--uuid takes 32"),
            (["run", "create", "--unix-time", "x", "a", "1"], "--unix-time takes"),
            (["run", "info", "--zork", "image"], "unrecognized option '--zork'"),
            (["run", "info", "-X", "image"], "invalid option -- 'X'"),
            (["run", "info", "image", "-f"], "option '-f' requires an argument"),
            (["run", "info", "--max", "1", "image"], "ambiguous"),
            (["run", "info", "--quiet=1", "image"], "takes no value"),
            (["run", "info", "--output=xml", "image"], "--output must be used with human or json"),
            (["run", "info", "--timeout", "0", "image"], "--timeout takes"),
            (["run", "info", "--timeout", "nan", "image"], "--timeout takes"),
            (["run", "info", "--max-read", "-1", "image"], "--max-read takes"),
            (["run", "info", "--max-memory", "0", "image"], "--max-memory takes"),
            (["run", "info", "--max-host-memory", "0", "image"], "--max-host-memory takes"),
            (["run", "create", "--max-output", "x", "image", "1M"], "--max-output takes"),
            (["run", "info", "--qemu-version", "new", "image"], "--qemu-version takes"),
            (["run", "info", "--allow-dir", ".", "image"], "--allow-dir needs --chain"),
            (["run", "measure", "--chain", "--size", "1M"], "--chain requires a filename"),
            (["run", "info", "--image-opts", "driver=raw"], "not supported"),
            (["run", "check", "-r", "all", "image"], "check never writes"),
            (["run", "measure", "-l", "snap", "image"], "not supported"),
            (["doctor", "extra"], "Unexpected argument: extra"),
            (["run", "info", "--\x1b[2J", "image"], "\\x1b[2J"),
        ],
    )
    def test_status_64_and_one_line(self, words: list[str], text: str, capsys: Capture) -> None:
        runner = FakeRunner(RAW)
        assert main(words, runner) == 64
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("pyvmm: ")
        assert text in err
        assert err.count("\n") == 1
        assert runner.jobs == []

    def test_json(self, capsys: Capture) -> None:
        assert main(["run", "check", "-r", "all", "--output", "json", "image"], FakeRunner()) == 64
        out, err = capsys.readouterr()
        assert json.loads(out)["error"]["code"] == "usage"
        assert err == ""

    @pytest.mark.parametrize(
        "words",
        [
            ["--help"],
            ["-h"],
            ["run", "--help"],
            *(["run", op, "--help"] for op in ("info", "create", "./x")),
        ],
    )
    def test_help(self, words: list[str], capsys: Capture) -> None:
        assert main(words) == 0
        assert "usage: pyvmm" in capsys.readouterr().out

    @pytest.mark.parametrize("words", [[], ["run"]])
    def test_no_words(self, words: list[str], capsys: Capture) -> None:
        assert main(words) == 64
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("usage: pyvmm")

    def test_version(self, capsys: Capture) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("pyvmm ")

    def test_option_help(self, capsys: Capture) -> None:
        assert main(["run", "create", "-f", "vpc", "-o", "help"]) == 0
        assert "subformat=<str>" in capsys.readouterr().out
        assert main(["run", "measure", "-O", "qcow2", "-o", "?"]) == 0
        assert "cluster_size=<size>" in capsys.readouterr().out

    def test_option_help_for_a_made_up_format(self, capsys: Capture) -> None:
        assert main(["run", "create", "-o", "help", "-f", "\x1b[2J"]) == 0
        assert capsys.readouterr().out.startswith("Supported \\x1b[2J options:\n")

    def test_getopt_spellings(self) -> None:
        runner = FakeRunner(MEASURE)
        assert main(["run", "measure", "-qUOqcow2", "image", "-f", "raw", "--out=human", "-ocompat=v3"], runner) == 0
        request = decode(runner.jobs[0].request)
        assert request == {"target": "qcow2", "format": "raw", "options": {"compat": "v3"}}
        Path("-dash").write_bytes(b"x")
        assert main(["run", "measure", "--", "-dash"], runner) == 0

    def test_limits_reach_the_job(self) -> None:
        runner = FakeRunner(RAW)
        words = "--timeout 2.5 --max-read 1k --max-write 2M --max-memory 3M --max-messages 7 --max-report 4k -vv"
        more = "--max-output 5G --max-host-memory 1G"
        assert main(["run", "info", *words.split(), *more.split(), "image"], runner) == 0
        limits = runner.jobs[0].limits
        assert (limits.max_output, limits.max_host_memory) == (5 << 30, 1 << 30)
        assert (limits.timeout, limits.max_read, limits.max_write) == (2.5, 1024, 2 << 20)
        assert (limits.max_memory, limits.max_messages, limits.max_report) == (4 << 20, 7, 4096)
        assert runner.jobs[0].log_level == 4

    def test_limits_have_defaults(self) -> None:
        runner = FakeRunner(RAW)
        assert main(["run", "info", "image"], runner) == 0
        assert runner.jobs[0].limits == Limits()

    def test_op_elf(self) -> None:
        Path("own.elf").write_bytes(b"own")
        runner = FakeRunner(RAW)
        assert main(["run", "info", "--op-elf", "own.elf", "image"], runner) == 0
        assert runner.jobs[0].elf == b"own"


class TestMeasure:
    def test_text(self, capsys: Capture) -> None:
        assert main(["run", "measure", "-O", "qcow2", "image"], FakeRunner(MEASURE)) == 0
        assert capsys.readouterr().out == "required size: 393216\nfully allocated size: 1376256\n"

    def test_json_to_the_letter(self, capsys: Capture) -> None:
        with_bitmaps = Measure.from_fields(MEASURE.as_fields() | {"bitmaps": 327680})
        assert main(["run", "measure", "-O", "qcow2", "--output=json", "image"], FakeRunner(with_bitmaps)) == 0
        assert capsys.readouterr().out == (
            '{\n    "bitmaps": 327680,\n    "required": 393216,\n    "fully-allocated": 1376256\n}\n'
        )

    def test_quiet(self, capsys: Capture) -> None:
        assert main(["run", "measure", "-q", "image"], FakeRunner(MEASURE)) == 0
        assert capsys.readouterr() == ("", "")

    def test_many(self, capsys: Capture) -> None:
        assert main(["run", "measure", "image", "missing", "other"], FakeRunner(MEASURE)) == 1
        out, err = capsys.readouterr()
        block = "required size: 393216\nfully allocated size: 1376256\n"
        assert out == f"image: image\n{block}\nimage: other\n{block}"
        assert err == "pyvmm: Could not open 'missing': No such file or directory\n"
        assert main(["run", "measure", "--output=json", "image", "missing"], FakeRunner(MEASURE)) == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == {"filename": "image", "required": 393216, "fully-allocated": 1376256}
        assert lines[1]["error"]["file"] == "missing"


class TestCheck:
    def test_clean(self, capsys: Capture) -> None:
        assert main(["run", "check", "image"], FakeRunner(CHECK)) == 0
        assert capsys.readouterr().out == (
            "No errors were found on the image.\n"
            "40/160 = 25.00% allocated, 25.00% fragmented, 0.00% compressed clusters\n"
            "Image end offset: 262144\n"
        )

    def test_findings(self, capsys: Capture) -> None:
        messages: tuple[Message, ...] = (
            CheckFinding(kind="corruption", message="cluster 3 refcount=0 reference=1\n", count=1),
            CheckFinding(kind="leak", message="cluster 9 refcount=1 reference=0", count=2),
            CheckFinding(kind="check-error", message="cannot read", count=1),
            Check(
                format="qcow2",
                file_length=1,
                check_errors=1,
                corruptions=1,
                leaks=2,
                findings_omitted=0,
                total_clusters=0,
            ),
        )
        assert main(["run", "check", "image"], FakeRunner(*messages, status=1)) == 1
        out, err = capsys.readouterr()
        assert out == (
            "\n1 errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it.\n"
            "\n2 leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n"
            "\n1 internal errors have occurred during the check.\n"
        )
        assert err == (
            "ERROR cluster 3 refcount=0 reference=1\\x0a\nLeaked cluster 9 refcount=1 reference=0\nERROR cannot read\n"
        )

    def test_json_leaves_zero_counters_out(self, capsys: Capture) -> None:
        assert main(["run", "check", "--output=json", "image"], FakeRunner(CHECK)) == 0
        answer = json.loads(capsys.readouterr().out)
        assert list(answer) == [
            "image-end-offset",
            "total-clusters",
            "check-errors",
            "allocated-clusters",
            "filename",
            "format",
            "fragmented-clusters",
            "pyvmm",
        ]

    def test_no_checks(self, capsys: Capture) -> None:
        runner = FakeRunner(Error(code="no-checks", message="This image format does not support checks"), status=1)
        assert main(["run", "check", "image"], runner) == 63
        assert capsys.readouterr().err == "pyvmm: image: This image format does not support checks\n"
        assert main(["run", "check", "--output=json", "image"], runner) == 63
        assert json.loads(capsys.readouterr().out)["error"]["guest-code"] == "no-checks"


class TestCreate:
    ANSWER = Create(
        format="qcow2",
        virtual_size=1 << 20,
        cluster_size=65536,
        file_length=196616,
        options=(CreateOption(name="cluster_size", value="65536"), CreateOption(name="size", value="1048576")),
    )

    def test_text(self, capsys: Capture) -> None:
        runner = FakeRunner(self.ANSWER)
        words = ["create", "-f", "qcow2", "-b", "base", "-F", "raw", "-u", "-o", "compat=v3", "new", "1M"]
        assert main(["run", *words, "--unix-time", "9", "--uuid", "0" * 32], runner) == 0
        assert capsys.readouterr().out == "Formatting 'new', fmt=qcow2 cluster_size=65536 size=1048576\n"
        assert Path("new").exists()
        request = decode(runner.jobs[0].request)
        assert isinstance(request, dict)
        entropy = request.pop("entropy")
        assert isinstance(entropy, bytes)
        assert len(entropy) == 32
        assert request == {
            "format": "qcow2",
            "size": 1 << 20,
            "options": {"compat": "v3", "backing-file": "base", "backing-format": "raw"},
            "unix-time": 9,
            "uuid": bytes(16),
            "name": b"new",
        }

    def test_json(self, capsys: Capture) -> None:
        assert main(["run", "create", "--output=json", "new", "1M"], FakeRunner(self.ANSWER)) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["options"] == {"cluster_size": "65536", "size": "1048576"}
        assert (answer["filename"], answer["virtual-size"]) == ("new", 1 << 20)


FAULT = Failure(
    FailureKind.PAGE_FAULT,
    "write to the guard page under the stack",
    vector=14,
    error_code=7,
    address=0xA10FF8,
    access="write",
    region="guard page",
    registers={"rip": 0x400123, "rsp": 0xA11000},
    backtrace=(Frame(0x400123, "walk", "guest/formats/x.zig", 12), Frame(0x400200)),
    recent_requests=("read device 0 offset 0 length 512: ok",),
)


class TestFailures:
    def test_text(self, capsys: Capture) -> None:
        assert main(["run", "info", "image"], FakeRunner(failure=FAULT)) == 70
        assert capsys.readouterr().err == (
            "pyvmm: image: write to the guard page under the stack\n"
            "  at guest/formats/x.zig:12 in walk\n"
            "  at 0x400200\n"
            "  write of address 0xa10ff8 (guard page)\n"
            "  exception 14, error code 0x7\n"
            "     rip=0000000000400123    rsp=0000000000a11000\n"
            "  last block requests:\n"
            "    read device 0 offset 0 length 512: ok\n"
        )

    def test_json(self, capsys: Capture) -> None:
        assert main(["run", "info", "--output=json", "image"], FakeRunner(failure=FAULT)) == 70
        error = json.loads(capsys.readouterr().out)["error"]
        assert (error["code"], error["exit-status"], error["file"]) == ("guest-failed", 70, "image")
        failure = error["failure"]
        assert failure["registers"] == {"rip": "0x400123", "rsp": "0xa11000"}
        assert failure["backtrace"][0] == {
            "address": "0x400123",
            "function": "walk",
            "file": "guest/formats/x.zig",
            "line": 12,
        }
        assert failure["region"] == "guard page"

    @pytest.mark.parametrize("value", [1, 0.25])
    def test_limit_is_one_line_and_its_value_a_number(self, capsys: Capture, value: float) -> None:
        failure = Failure(
            FailureKind.LIMIT, "the deadline of 1 s has passed", limit="timeout", limit_value=float(value)
        )
        assert main(["run", "info", "image"], FakeRunner(failure=failure)) == 75
        assert capsys.readouterr().err == "pyvmm: image: the deadline of 1 s has passed\n"
        main(["run", "info", "--output=json", "image"], FakeRunner(failure=failure))
        error = json.loads(capsys.readouterr().out)["error"]
        assert (error["code"], error["limit"], error["value"]) == ("limit", "timeout", value)

    @pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
    def test_a_broken_worker_names_no_limit(self, capsys: Capture, value: float) -> None:
        failure = Failure(FailureKind.LIMIT, "x", limit="\x1b[2J", limit_value=value)
        for extra in ([], ["--output=json"]):
            assert main(["run", "info", "image", *extra], FakeRunner(failure=failure)) == 75
            assert "\x1b" not in "".join(capsys.readouterr())

    def test_a_broken_worker_names_registers(self, capsys: Capture) -> None:
        failure = Failure(FailureKind.PANIC, "x", registers={"\x1b[2J": 1, "rip": 2})
        assert main(["run", "info", "image"], FakeRunner(failure=failure)) == 70
        assert "\\x1b[2J=0000000000000001    rip=" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("runner", "status"),
        [
            (FakeRunner(Error(code="corrupt", message="no"), status=1), 1),
            (FakeRunner(failure=FAULT), 70),
            (FakeRunner(failure=Failure(FailureKind.LIMIT, "x", limit="timeout")), 75),
            (FakeRunner(failure=Failure(FailureKind.KVM, "x")), 69),
        ],
    )
    def test_worst_of_many(self, runner: FakeRunner, status: int, capsys: Capture) -> None:
        assert main(["run", "check", "missing", "image", "missing"], runner) == status
        assert capsys.readouterr().err.count("pyvmm: ") == 3

    def test_no_control_character_reaches_the_terminal(self, capsys: Capture) -> None:
        evil = "\x1b]0;title\x07\u202e\x9b31m"
        Path("bad" + evil).write_bytes(b"x")
        refusal = FakeRunner(Error(code="corrupt", message=f"name {evil}"), LogEvent(1, evil.encode()), status=1)
        for runner in (
            refusal,
            FakeRunner(InfoReference(kind="k", name=evil), RAW),
            FakeRunner(LogEvent(1, b"\xff\n"), RAW),
        ):
            for extra in ([], ["--output=json"]):
                main(["run", "info", "-v", *extra, "bad" + evil], runner)
                out, err = capsys.readouterr()
                assert all(line.isprintable() for line in (out + err).splitlines())
                assert (out + err).isascii()

    def test_options_that_a_guest_made_up(self, capsys: Capture) -> None:
        evil = CreateOption(name="\x1b[2J", value="\u202e")
        runner = FakeRunner(Create(format="raw", virtual_size=1, file_length=1, options=(evil,)))
        for extra, shown in (([], "\\x1b[2J=\\u202e"), (["--output=json"], '"\\u001B[2J": "\\u202E"')):
            assert main(["run", "create", "--force", *extra, "new", "1"], runner) == 0
            out = capsys.readouterr().out
            assert shown in out
            assert all(line.isprintable() for line in out.split("\n"))

    def test_internal_error(self, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = FakeRunner(RAW)
        runner.act = lambda job: 1 // 0  # type: ignore[assignment]
        monkeypatch.delenv("PYVMM_TRACEBACK", raising=False)
        assert main(["run", "info", "image"], runner) == 70
        assert capsys.readouterr().err.startswith("pyvmm: internal error: ZeroDivisionError")
        monkeypatch.setenv("PYVMM_TRACEBACK", "1")
        with pytest.raises(ZeroDivisionError):
            main(["run", "info", "image"], runner)

    def test_interrupt(self, capsys: Capture) -> None:
        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        runner = FakeRunner(TestCreate.ANSWER)
        runner.act = interrupt
        assert main(["run", "create", "new", "1M"], runner) == 130
        assert capsys.readouterr().err == "pyvmm: interrupted\n"
        assert {path.name for path in Path().iterdir()} == {"image", "other"}


class TestForeign:
    def test_messages_are_json_lines(self, capsys: Capture) -> None:
        Path("own.elf").write_bytes(b"own")
        runner = FakeRunner(encode(["count", {"n": 1, "b": b"\x01\xff", "t": "\x1b"}]), encode(["more", {}]))
        assert main(["run", "./own.elf", "-o", "a=1,b", "image", "other"], runner) == 0
        assert capsys.readouterr().out == (
            '{"filename": "image", "message": "count", "fields": {"b": "01ff", "n": 1, "t": "\\u001B"}}\n'
            '{"filename": "image", "message": "more", "fields": {}}\n'
            '{"filename": "other", "message": "count", "fields": {"b": "01ff", "n": 1, "t": "\\u001B"}}\n'
            '{"filename": "other", "message": "more", "fields": {}}\n'
        )
        assert decode(runner.jobs[0].request) == {"operation": "./own.elf", "options": {"a": "1", "b": True}}

    def test_without_files(self, capsys: Capture) -> None:
        Path("own.elf").write_bytes(b"own")
        assert main(["run", "own.elf"], FakeRunner(encode(["x", {}]), status=3)) == 1
        assert capsys.readouterr().out == '{"filename": null, "message": "x", "fields": {}}\n'
