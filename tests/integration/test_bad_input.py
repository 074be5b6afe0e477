"""Bad input to the real command: one clear line or JSON error, the right exit status, nothing left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ForeignImages
from tests.integration.command import COMMAND, environment, listing, run

OPERATIONS = ("info", "measure", "check", "map")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(512) * 64)
    return path


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_no_image(operation: str, tmp_path: Path) -> None:
    """Neither KVM nor a guest is needed to say so; a FIFO does not hang."""
    (tmp_path / "empty").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("empty")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        expected = {
            "missing": "No such file or directory",
            "empty": "the file is empty",
            "directory": "it is a directory",
            "fifo": "it is a FIFO",
            "socket": "it is a socket",
            "link": "it is a symbolic link",
            "/dev/null": "it is a character device",
        }
        for name, text in expected.items():
            done = run("run", operation, name, cwd=tmp_path)
            assert done.status == 1, done
            assert text in done.one_line()
        done = run("run", operation, "--output=json", *expected, cwd=tmp_path)
        assert done.status == 1
        assert done.err == ""
        assert len(done.out.splitlines()) == len(expected)
        done = run("run", operation, "--output=json", "missing", cwd=tmp_path)
        error = done.json["error"]
        assert (error["code"], error["file"], error["errno"]) == ("file", "missing", "ENOENT")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 512)
    secret.chmod(0o600)
    program = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from vmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    # Everything is imported as root before: the package may lie where nobody else can read.
    preload = "import vmm.cli.run, vmm.sandbox.broker, vmm.operations.info, vmm.cli.human, vmm.cli.main\n"
    for words in (["info", str(secret)], ["create", str(tmp_path / "new"), "1M"]):
        done = subprocess.run(
            [COMMAND[0], "-c", preload + program, "run", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done
        assert done.stdout == ""
        assert "Permission denied" in done.stderr
        assert done.stderr.count("\n") == 1
    assert listing(tmp_path) == {"secret"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["measure", "--size", "9223372036854775808"], 64),
        (["measure", "--size", "8E"], 64),
        (["measure", "--size", "-1"], 64),
        (["create", "-f", "raw", "new", "9223372036854775808"], 64),
        (["create", "-f", "raw", "new"], 1),
        (["create", "-f", "nonsense", "new", "1M"], 1),
        (["create", "-f", "qcow2", "-o", "cluster_size=3", "new", "1M"], 1),
        (["create", "-f", "qcow2", "-o", "nonsense=3", "new", "1M"], 64),
        (["create", "-f", "raw", "missing/new", "1M"], 1),
        (["create", "-f", "raw", ".", "1M"], 1),
        (["create", "-f", "raw", "/dev/null", "1M"], 1),
        (["measure", "-O", "nonsense", "--size", "1M"], 1),
        (["measure", "-O", "qcow2", "--size", "9223372036854775807"], 1),
    ],
)
@pytest.mark.kvm
def test_sizes_and_options(words: list[str], status: int, tmp_path: Path) -> None:
    done = run("run", *words, cwd=tmp_path)
    assert done.status == status, done
    done.one_line()
    assert listing(tmp_path) == set()
    done = run("run", *words, "--output=json", cwd=tmp_path)
    assert done.status == status
    assert done.json["error"]["exit-status"] == status
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("words", [["./bad.elf"], ["info", "--op-elf", "./bad.elf"]])
@pytest.mark.parametrize("content", [b"no ELF", b"\x7fELF\x02\x01\x01" + bytes(100)])
def test_bad_operation(words: list[str], content: bytes, image: Path) -> None:
    (image.parent / "bad.elf").write_bytes(content)
    done = run("run", *words, str(image), str(image), cwd=image.parent)
    assert done.status == 64
    assert done.one_line().startswith("pyvmm: ./bad.elf: ")
    done = run("run", *words, str(image), "--output=json", cwd=image.parent)
    error = done.json["error"]
    assert (error["code"], error["file"], error["exit-status"]) == ("bad-operation", "./bad.elf", 64)


@pytest.mark.kvm
def test_largest_size() -> None:
    done = run("run", "measure", "--size", "9223372036854775807")
    assert done.out == "required size: 9223372036854775808\nfully allocated size: 9223372036854775808\n"


@pytest.mark.kvm
@pytest.mark.parametrize("operation", OPERATIONS)
def test_empty_file_that_is_meant(operation: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    done = run("run", operation, "-f", "raw", "--output=json", "empty", cwd=tmp_path)
    if operation == "check":
        assert done.status == 63
    else:
        assert done.status == 0
        shown = json.loads(done.out)
        (answer,) = shown if operation == "map" else [shown]
        assert answer[{"info": "virtual-size", "measure": "required", "map": "length"}[operation]] == 0


@pytest.mark.parametrize("path", ["/nonexistent/kvm", "/dev/null", "/"])
def test_kvm_missing(path: str, image: Path, tmp_path: Path) -> None:
    done = run("run", "info", "--kvm", path, str(image))
    assert done.status == 69, done
    assert path in done.one_line()
    done = run("run", "create", "--kvm", path, "--output=json", str(tmp_path / "new"), "1M")
    assert done.status == 69
    assert done.json["error"]["code"] == "kvm-unavailable"
    assert listing(tmp_path) == {"image.raw"}
    done = run("doctor", "--kvm", "/\x1b[2J")
    assert done.status == 69
    assert "\x1b" not in done.out
    done = run("doctor", "--kvm", path)
    assert done.status == 69
    assert path in done.out
    done = run("doctor", "--kvm", path, "--output=json")
    assert done.status == 69
    assert done.json["usable"] is False


@pytest.mark.kvm
def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """An operation that reads everything, and a file that loses its end meanwhile."""
    from examples.build import build_zig

    elf = build_zig(tmp_path / "elf")
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    with subprocess.Popen(
        [*COMMAND, "run", str(elf), "-p", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        # Progress says that it reads.
        process.stderr.readline()
        os.truncate(path, 4096)
        out = process.stdout.read().decode()
        err = process.stderr.read().decode()
    assert process.returncode == 1, (out, err)
    assert out == ""
    message = [line for line in err.splitlines() if line.startswith("pyvmm: ")]
    assert len(message) == 1, err
    assert "Traceback" not in err


@pytest.mark.kvm
def test_reader_that_goes_away(image: Path) -> None:
    """A closed pipe is no reason for a traceback."""
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        [*COMMAND, "run", "info", str(image)], stdout=write, stderr=subprocess.PIPE, env=environment()
    ) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == b""


@pytest.mark.kvm
def test_images_that_refer_to_themselves_end(foreign_images: ForeignImages) -> None:
    """qemu-img never ends on these."""
    folder = foreign_images.root / "libvirt-11.3.0"
    started = time.monotonic()
    for name in ("loop-self.qcow2", "loop-1.qcow2", "loop-2.qcow2"):
        for operation in OPERATIONS:
            done = run("run", operation, "--output=json", "--timeout", "20", name, cwd=folder)
            assert done.status in (0, 1), done
            if operation == "info":
                assert done.json["backing-filename"]
    # The deadline of each run, not a promise of speed: it was not a deadline that ended them.
    assert time.monotonic() - started < 3 * len(OPERATIONS) * 20


@pytest.mark.kvm
def test_output_that_does_not_fit(tmp_path: Path) -> None:
    """A budget for bytes written: the run ends, and nothing is there."""
    done = run("run", "create", "-f", "qcow2", "--max-write", "512", str(tmp_path / "new"), "1M")
    assert done.status == 75, done
    assert "max-write" in done.one_line()
    assert listing(tmp_path) == set()


@pytest.mark.kvm
def test_one_machine_many_threads_of_commands(image: Path) -> None:
    """Commands side by side do not disturb each other."""
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(run("run", "info", str(image)).status)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 4
