"""Every size and every contradiction through the command line: an image or a typed error, and nothing left behind.

A sample of sizes runs with the suite; ``PYVMM_MADE=N`` asks for N times as many (tests/differential/made.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.differential.made import KINDS, PASSPHRASE, VMDK, G, K, M, Request, T, random_options, rng_of, rounds, split
from tests.differential.oracle import Answer, qemu_img
from tests.differential.ours import REFUSALS, Ours, explain
from tests.integration.command import COMMAND, environment
from tests.integration.mounts import Stage
from tests.ordinary_user import ROOT, ordinary

pytestmark = pytest.mark.kvm

#: Bits of the sizes around which things change; 2^64 and above is no size.
EDGES = (0, 9, 20, 31, 32, 40, 41, 44, 46, 47, 48, 52, 56, 60, 61, 62, 63, 64)
#: Sparse VMDKs have gigabytes of tables there, which info reads, and split ones a file for each 2 GiB: thousands.
LARGE_VMDK = (200 * G, 256 * T)
#: A run that would pass --max-output ends with this.
LIMIT = 75


@pytest.fixture(name="secret", scope="module")
def fixture_secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "passphrase"
    path.write_bytes(PASSPHRASE)
    return path


def refused(answer: Answer, text: str = "") -> None:
    """A status of its own, what went wrong in the first line, and no traceback."""
    assert answer.rc in REFUSALS, explain(answer)
    assert answer.stdout == "", explain(answer)
    assert answer.stderr.startswith("pyvmm: "), explain(answer)
    assert "Traceback" not in answer.stderr
    assert text in answer.stderr, explain(answer)


def refused_or_limited(answer: Answer) -> None:
    if answer.rc == LIMIT:
        assert "--max-output" in answer.stderr, explain(answer)
    else:
        refused(answer)


def key_words(driver: str, secret: Path) -> list[str]:
    return ["--luks-passphrase-file", str(secret)] if driver == "luks" else []


@pytest.mark.parametrize("kind", [*KINDS, "luks"])
def test_sizes(kind: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    """Created, measured and resized alike."""
    rng = rng_of("sizes", kind)
    driver, _ = split(kind)
    folder = tmp_path / "folder"
    for bits in EDGES:
        for _ in range(rounds() // 2):
            size = max(0, (1 << bits) + rng.choice((-512, -1, 0, 1, 512)))
            if driver == "vmdk" and kind != "vmdk-monolithicFlat" and LARGE_VMDK[0] < size < LARGE_VMDK[1]:
                continue
            options = {"iterations": "1000"} if driver == "luks" else random_options(rng, kind)
            if size > M:
                options.pop("preallocation", None)
            words = Request(driver, size, options).words
            folder.mkdir()
            path = folder / "disk"
            # A disk of tebibytes may have megabytes of tables, and a fixed one its length.
            answer = ours.run("create", "-q", *key_words(driver, secret), *words, str(path), str(size))
            if answer.rc == 0:
                told = ours.run("info", "-f", driver, "--output=json", str(path))
                assert told.rc == 0, f"{words} {size}: {explain(told)}"
                if driver != "vmdk":
                    assert told.json["virtual-size"] >= size - 511, f"{words} {size}"
            else:
                refused_or_limited(answer)
                assert list(folder.iterdir()) == [], f"{words} {size}"
            shutil.rmtree(folder)
            answer = ours.run("measure", "-O", *words[1:], "--size", str(size))
            if answer.rc != 0:
                refused(answer)
            small = tmp_path / "small"
            made = ours.run("create", "-q", "--force", *key_words(driver, secret), *words, str(small), "1M")
            if made.rc != 0:
                refused(made)
            elif size > 300 * M or size <= 4 * K:
                before = small.read_bytes()
                answer = ours.run("resize", "-f", driver, str(small), str(size))
                if answer.rc != 0:
                    refused_or_limited(answer)
                    if "keeps its old content" in answer.stderr:
                        # It failed between two writes.
                        check = ours.run("check", "-f", driver, str(small))
                        assert check.rc in (0, 3, 63), explain(check)
                    else:
                        assert small.read_bytes() == before
            for left in tmp_path.glob("small*"):
                left.unlink()


@pytest.mark.parametrize(
    "size", ["", "-1", "1Q", "0x", "1e400", "nan", "inf", "18446744073709551616", "9" * 400, "1 M"]
)
def test_no_sizes(size: str, ours: Ours, tmp_path: Path) -> None:
    for words in (["create", "-f", "qcow2", f"{tmp_path}/disk"], ["measure", "-O", "qcow2", "--size"]):
        refused(ours.run(*words, size))
    assert list(tmp_path.iterdir()) == []


#: Format and options that no image can have, alone or together.
CONTRADICTIONS = (
    *(("vmdk", f"subformat={name},zeroed_grain=on") for name in VMDK if name.endswith("Flat")),
    *(("vmdk", f"subformat={name},backing_file=b,backing_fmt=vmdk") for name in VMDK if name.endswith("Flat")),
    ("vmdk", "compat6=on,hwversion=7"),
    ("vmdk", "subformat=sparse"),
    ("vmdk", "adapter_type=nvme"),
    ("vmdk", "hwversion=7\n8"),
    ("vmdk", "preallocation=metadata"),
    ("vpc", "subformat=differencing"),
    ("vpc", "preallocation=full"),
    ("vhdx", "block_size=3M"),
    ("vhdx", "log_size=4G"),
    ("vhdx", "preallocation=full"),
    ("vhdx", "subformat=fixed,backing_file=b,backing_fmt=vhdx"),
    ("qcow2", "compat=0.10,extended_l2=on"),
    ("qcow2", "compat=0.10,refcount_bits=8"),
    ("qcow2", "compat=0.10,lazy_refcounts=on"),
    ("qcow2", "data_file_raw=on"),
    ("qcow2", "extended_l2=on,cluster_size=512"),
    ("qcow2", "encrypt.format=luks"),
    ("qcow2", "backing_fmt=raw"),
    ("luks", "cipher-alg=aes-192,cipher-mode=cbc"),
    ("luks", "iterations=0"),
    ("luks", "key-secret=s"),
    *((driver, "nosuch=1") for driver in ("raw", "qcow2", "vmdk", "vpc", "vhdx", "luks")),
    *((driver, "cluster_size=64k") for driver in ("raw", "vmdk", "vpc", "vhdx", "luks")),
    *((driver, "size=twelve") for driver in ("raw", "qcow2", "vmdk", "vpc", "vhdx", "luks")),
    *((driver, ",") for driver in ("raw", "qcow2", "vmdk", "vpc", "vhdx", "luks")),
)


@pytest.mark.parametrize(("driver", "options"), CONTRADICTIONS, ids=lambda value: value)
def test_contradictions(driver: str, options: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    unsafe = ["-u"] if "backing" in options else []
    words = ["-f", driver, "-o", options, *key_words(driver, secret), str(tmp_path / "disk"), "1M"]
    refused(ours.run("create", *unsafe, *words))
    answer = ours.run("create", *unsafe, "--output=json", *words)
    error = json.loads(answer.stdout)["error"]
    assert error["exit-status"] == answer.rc
    assert error["code"] in ("usage", "refused", "reference-refused", "needs-reference"), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [*KINDS, "luks"])
def test_what_exists_is_kept(kind: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    """The file that was asked for, or any of those that come with it."""
    driver, subformat = split(kind)
    options = {"iterations": "1000"} if driver == "luks" else {"subformat": subformat} if subformat else {}
    size = 5 * G if "twoGb" in kind else M
    words = [*Request(driver, size, options).words, *key_words(driver, secret), str(tmp_path / "disk.vmdk"), str(size)]
    assert ours.run("create", "-q", *words).rc == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        for other in tmp_path.iterdir():
            other.unlink()
        (tmp_path / name).write_bytes(b"kept")
        refused(ours.run("create", *words), "it exists and is kept")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"kept"}
    assert ours.run("create", "-q", "--force", *words).rc == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("kind", [*KINDS, "luks"])
def test_a_folder_that_is_closed(kind: str) -> None:
    """Not the user's own: no file appears, and the error names the one that was asked for."""
    driver, subformat = split(kind)
    options = {"iterations": "1000"} if driver == "luks" else {"subformat": subformat} if subformat else {}
    open_secret = ["--luks-passphrase-file", "/dev/stdin"] if driver == "luks" else []
    words = [*Request(driver, M, options).words, *open_secret, "/usr/disk-of-nobody", "1M"]
    done = subprocess.run(
        ordinary(*COMMAND, "run", "create", *words),
        cwd=ROOT, input=PASSPHRASE, capture_output=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    answer = Answer(done.returncode, done.stdout.decode(), done.stderr.decode())
    refused(answer, "Permission denied")
    assert list(Path("/usr").glob("disk-of-nobody*")) == []


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat,preallocation=full"], "5G"),
        (["-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat,preallocation=falloc"], "5G"),
        (["-f", "vmdk", "-o", "subformat=monolithicFlat,preallocation=full"], "64M"),
        (["-f", "vhdx", "-o", "log_size=256M"], "1M"),
        (["-f", "vhdx", "-o", "block_size=1M,block_state_zero=on"], "60T"),
        (["-f", "qcow2", "-o", "preallocation=full"], "64M"),
        (["-f", "luks", "-o", "preallocation=full,iterations=1000", "--luks-passphrase-file", "secret"], "64M"),
        (["-f", "raw", "-o", "preallocation=full"], "64M"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_no_space(words: list[str], size: str, tmp_path: Path) -> None:
    """It ends half-way: what was written before is gone, and what was there is as before."""
    with Stage(tmp_path) as stage:
        full = stage.folder / "full"
        stage.mount(full, "tmpfs", "size=16M,mode=0777")
        seen = stage.path(full)
        (seen / "secret").write_bytes(PASSPHRASE)
        (seen / "other").write_bytes(b"kept")
        done = stage.run("run", "create", *words, "disk.vmdk", size, cwd=full)
        if done.status == 0:
            # Zeroes are holes, so that this needs less than there is.
            assert shutil.disk_usage(seen).used <= 16 * M
            assert stage.run("run", "check", "disk.vmdk", cwd=full).status == 0
            assert "preallocation" not in " ".join(words)
            return
        assert done.status == 1, done
        assert "No space left on device" in done.one_line()
        assert sorted(path.name for path in seen.iterdir()) == ["other", "secret"]
        assert (seen / "other").read_bytes() == b"kept"
        again = stage.run("run", "create", "-q", *words[:2], *words[4:], "disk.vmdk", "1M", cwd=full)
        assert again.status == 0, again


@pytest.mark.qemu_img
@pytest.mark.parametrize("size", [4 * G - 512, 4 * G + 512, 8 * G - 512])
def test_a_fixed_vhdx_whose_last_block_is_not_full(size: int, ours: Ours, tmp_path: Path) -> None:
    """qemu-img does not open what it makes of these options itself: it takes the last block for a whole one there."""
    path = tmp_path / "disk.vhdx"
    options = ("-o", "subformat=fixed,block_state_zero=off")
    assert ours.run("create", "-q", "-f", "vhdx", *options, str(path), str(size)).rc == 0
    assert qemu_img("info", str(path)).rc == 0
    assert qemu_img("check", str(path)).rc == 0
    measured = ours.run("measure", "-O", "vhdx", *options, "--size", str(size), "--output=json").json
    assert measured["required"] == measured["fully-allocated"] == path.stat().st_size
