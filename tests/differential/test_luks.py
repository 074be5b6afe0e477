"""LUKS beside qemu-img, which has the key where it wants one, and cryptsetup."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.differential.oracle import Answer, comparable, comparable_text, qemu_img
from tests.differential.ours import Ours, explain, run_process

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

PASSPHRASE = b"correct horse\n"
#: qemu-img gives up when it cannot measure its own processor time, which happens on some machines.
FLAKE = "Unable to get accurate CPU usage"
#: Options of containers.  Each costs qemu-img seconds on a busy machine, whatever its iter-time, so each is made once.
METHODS = [
    "",
    "cipher-alg=aes-192,hash-alg=sha1",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-mode=cbc,ivgen-alg=plain,ivgen-hash-alg=md5,hash-alg=sha512",
]
#: What qemu-img makes and we only read.
FOREIGN = "cipher-alg=serpent-256,cipher-mode=ecb,hash-alg=ripemd160"


@pytest.fixture(name="secret", scope="module")
def fixture_secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "passphrase"
    path.write_bytes(PASSPHRASE)
    return path


def with_key(secret: Path, operation: str, *arguments: str) -> Answer:
    """qemu-img with a secret called ``s``."""
    for _ in range(40):
        answer = qemu_img(operation, "--object", f"secret,id=s,file={secret}", *arguments)
        if FLAKE not in answer.stderr:
            return answer
    pytest.skip("qemu-img cannot measure the time of this machine")


@functools.cache
def _container(secret: Path, options: str) -> Path:
    path = secret.with_name(f"container-{options or 'default'}")
    joined = ",".join(part for part in ("key-secret=s", "iter-time=10", options) if part)
    answer = with_key(secret, "create", "-q", "-f", "luks", "-o", joined, str(path), "1M")
    assert answer.rc == 0, answer.stderr
    return path


def make(secret: Path, path: Path, options: str = "") -> None:
    """A container of 1 MiB by qemu-img."""
    shutil.copyfile(_container(secret, options), path)


def opened(path: Path) -> tuple[str, str]:
    """The words with which qemu-img opens a container."""
    return "--image-opts", f"driver=luks,key-secret=s,file.filename={path}"


def boot_sector() -> bytes:
    """A partition table with one entry: type 83, from sector 2048, 4096 sectors."""
    entry = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


@pytest.mark.parametrize("options", [*METHODS, FOREIGN])
def test_info(options: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(secret, path, options)
    with path.open("r+b") as file:
        # A disk of a sector and a byte, of which qemu makes two sectors.
        file.truncate(path.stat().st_size - (1 << 20) + 513)
    for words in ([], ["-f", "luks"]):
        mine = ours.run("info", "--output=json", *words, str(path))
        assert mine.rc == 0, explain(mine)
        assert comparable(mine.json) == comparable(qemu_img("info", "--output=json", *words, str(path)).json)
    text = ours.run("info", str(path))
    assert comparable_text(text.stdout) == comparable_text(qemu_img("info", str(path)).stdout)
    check = ours.run("check", str(path))
    assert (check.rc, check.stdout) == (0, "No errors were found on the image.\n"), explain(check)


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_measure_from(target: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(secret, path)
    theirs = with_key(secret, "measure", "--output=json", "-O", target, *opened(path))
    mine = ours.run("measure", "--output=json", "-O", target, "-f", "luks", str(path))
    assert mine.rc == 0, explain(mine)
    assert mine.json == theirs.json


@pytest.mark.parametrize("options", ["", "cipher-alg=aes-128,cipher-mode=cbc"])
def test_measure_for_luks(options: str, ours: Ours, secret: Path) -> None:
    """The other numbers of qemu-img are in the tests of the guest (layout.zig)."""
    joined = ",".join(part for part in ("key-secret=s", "iter-time=10", options) if part)
    theirs = with_key(secret, "measure", "--output=json", "-O", "luks", "-o", joined, "--size", "1G")
    words = ["-o", options] if options else []
    mine = ours.run("measure", "--output=json", "-O", "luks", *words, "--size", "1G")
    assert mine.rc == 0, explain(mine)
    assert mine.json == theirs.json


#: qemu-img 7.2.22: options of the qcow2 image, required and fully allocated size of an empty disk of 1 GiB.
ENCRYPTED_QCOW2 = [
    ("", 2_490_368, 1_076_232_192),
    ("encrypt.cipher-alg=aes-128", 1_507_328, 1_075_249_152),
    ("encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc", 983_040, 1_074_724_864),
    ("cluster_size=512", 23_453_696, 1_097_195_520),
    ("cluster_size=2M", 12_582_912, 1_086_324_736),
    ("preallocation=full", 1_076_232_192, 1_076_232_192),
    ("preallocation=metadata", 2_490_368, 1_076_232_192),
    ("backing_file=b", 2_490_368, 1_076_232_192),
]


@pytest.mark.parametrize(("options", "required", "full"), ENCRYPTED_QCOW2)
def test_measure_for_encrypted_qcow2(options: str, required: int, full: int, ours: Ours) -> None:
    joined = ",".join(part for part in ("encrypt.format=luks", options) if part)
    mine = ours.run("measure", "--output=json", "-O", "qcow2", "-o", joined, "--size", "1G")
    assert mine.rc == 0, explain(mine)
    assert mine.json == {"required": required, "fully-allocated": full}


def test_measure_a_source_for_encrypted_qcow2(ours: Ours, secret: Path, tmp_path: Path) -> None:
    source = tmp_path / "raw"
    source.write_bytes(b"x" * 100_000 + bytes(3 << 20))
    key = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    theirs = with_key(secret, "measure", "--output=json", "-O", "qcow2", "-o", key, "-f", "raw", str(source))
    words = ["-O", "qcow2", "-o", "encrypt.format=luks", "-f", "raw", str(source)]
    assert ours.run("measure", "--output=json", *words).json == theirs.json


@pytest.mark.parametrize(
    "options", ["encrypt.format=serpent", "encrypt.cipher-alg=aes-128", "encrypt.format=luks,encrypt.cipher-alg=rot13"]
)
def test_measure_for_no_encryption_that_exists(options: str, ours: Ours) -> None:
    mine = ours.run("measure", "-O", "qcow2", "-o", options, "--size", "1G")
    assert mine.rc == 1, explain(mine)


def _facts(path: Path) -> dict[str, Any]:
    answer = comparable(
        qemu_img("info", "--output=json", str(path)).json, "filename", "uuid", "iters", "master-key-iters"
    )
    assert answer["format"] == "luks"
    return answer


@pytest.mark.parametrize("options", [*METHODS, "preallocation=full", "preallocation=falloc", "preallocation=metadata"])
def test_create(options: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    joined = ",".join(part for part in ("iterations=1000", options) if part)
    answer = ours.run("create", "-f", "luks", "--luks-passphrase-file", str(secret), "-o", joined, str(mine), "1M")
    assert answer.rc == 0, explain(answer)
    make(secret, theirs, "" if options.startswith("preallocation") else options)
    assert _facts(mine) == _facts(theirs)
    assert mine.stat().st_size == theirs.stat().st_size
    mapped = with_key(secret, "map", "--output=json", *opened(mine))
    assert mapped.rc == 0, mapped.stderr
    assert mapped.stdout == with_key(secret, "map", "--output=json", *opened(theirs)).stdout
    # What is written through qemu is what we read.
    plain = tmp_path / "plain"
    plain.write_bytes(boot_sector() + bytes((1 << 20) - 512))
    words = ["-n", "-f", "raw", "--target-image-opts", str(plain), opened(mine)[1]]
    written = with_key(secret, "convert", *words)
    assert written.rc == 0, written.stderr
    told = ours.run("info", "--output=json", "--luks-passphrase-file", str(secret), str(mine))
    assert told.rc == 0, explain(told)
    own = told.json["pyvmm"]
    assert own["unlocked-keyslot"] == 0
    assert [(p["type"], p["start"], p["length"]) for p in own["partition-tables"][0]["partitions"]] == [
        ("83", 1 << 20, 2 << 20)
    ]
    assert ours.run("check", str(mine)).rc == 0


@pytest.mark.parametrize("size", [0, 1, 513])
def test_create_sizes(size: int, ours: Ours, secret: Path, tmp_path: Path) -> None:
    """As qemu-img's: the file has the bytes that were asked for, the disk whole sectors."""
    path = tmp_path / "mine"
    words = ["-f", "luks", "--luks-passphrase-file", str(secret), "-o", "iterations=1000"]
    answer = ours.run("create", *words, str(path), str(size))
    assert answer.rc == 0, explain(answer)
    assert path.stat().st_size == 2_068_480 + size
    assert qemu_img("info", "--output=json", str(path)).json["virtual-size"] == (size + 511) // 512 * 512


@pytest.mark.parametrize(
    "options",
    [
        "cipher-alg=des",
        "cipher-alg=none",
        "cipher-mode=gcm",
        "hash-alg=sha3",
        "ivgen-alg=null",
        "ivgen-alg=essiv,ivgen-hash-alg=sha1",
    ],
)
def test_create_refused(options: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    theirs = with_key(secret, "create", "-f", "luks", "-o", f"key-secret=s,{options}", str(tmp_path / "theirs"), "1M")
    assert theirs.rc == 1
    words = ["-f", "luks", "--luks-passphrase-file", str(secret), "-o", options]
    mine = ours.run("create", *words, str(tmp_path / "mine"), "1M")
    assert mine.rc == 1, explain(mine)
    assert not (tmp_path / "mine").exists()


def test_create_without_a_passphrase(ours: Ours, tmp_path: Path) -> None:
    mine = ours.run("create", "-f", "luks", str(tmp_path / "mine"), "1M")
    assert mine.rc == 1, explain(mine)
    assert "--luks-passphrase-file" in mine.stderr
    mine = ours.run("create", "-f", "luks", "-o", "key-secret=s", str(tmp_path / "mine"), "1M")
    assert mine.rc == 64, explain(mine)
    assert "'key-secret' is not supported" in mine.stderr


def test_a_wrong_passphrase(ours: Ours, secret: Path, tmp_path: Path) -> None:
    path, wrong = tmp_path / "image", tmp_path / "wrong"
    make(secret, path)
    wrong.write_bytes(b"battery staple")
    mine = ours.run("info", "--output=json", "-vv", "--luks-passphrase-file", str(wrong), str(path))
    assert mine.rc == 1
    error = json.loads(mine.stdout)["error"]
    assert error["guest-code"] == "wrong-passphrase"
    assert "battery" not in mine.stdout + mine.stderr


def test_a_passphrase_is_not_recorded(ours: Ours, secret: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(secret, path)
    words = ["--record", str(tmp_path / "bundle"), "--luks-passphrase-file", str(secret)]
    mine = ours.run("info", *words, str(path))
    assert mine.rc == 64, explain(mine)
    assert "a bundle holds the request" in mine.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_passphrase_for_nothing(ours: Ours, secret: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    mine = ours.run("info", "--output=json", "--luks-passphrase-file", str(secret), str(path))
    assert [note["code"] for note in mine.json["pyvmm"]["notes"]] == ["passphrase-not-needed"]


def test_luks_in_qcow2(ours: Ours, secret: Path, tmp_path: Path) -> None:
    path, plain = tmp_path / "image", tmp_path / "plain"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4096"
    made = with_key(secret, "create", "-q", "-f", "qcow2", "-o", options, str(path), "1M")
    assert made.rc == 0, made.stderr
    plain.write_bytes(boot_sector() + bytes((1 << 20) - 512))
    target = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    written = with_key(secret, "convert", "-n", "-f", "raw", "--target-image-opts", str(plain), target)
    assert written.rc == 0, written.stderr
    told = ours.run("info", "--output=json", "--luks-passphrase-file", str(secret), str(path))
    assert told.rc == 0, explain(told)
    own = told.json["pyvmm"]
    assert own["unlocked-keyslot"] == 0
    assert own["partition-tables"][0]["partitions"][0]["type"] == "83"
    theirs = with_key(secret, "check", "--output=json", "--image-opts", target)
    mine = ours.run("check", "--output=json", str(path))
    assert comparable(mine.json, "filename") == comparable(theirs.json, "filename")
    # A damaged header is told, and counts for nothing.
    data = bytearray(path.read_bytes())
    header = data.index(b"LUKS\xba\xbe")
    data[header + 208 + 44 : header + 208 + 48] = (4001).to_bytes(4, "big")
    path.write_bytes(data)
    damaged = ours.run("check", "--output=json", str(path))
    assert damaged.rc == 0, explain(damaged)
    findings = damaged.json["pyvmm"]["findings"]
    assert [finding["kind"] for finding in findings] == ["note"]
    assert findings[0]["message"] == "key slot 0: 4001 stripes instead of 4000"


CRYPTSETUP = shutil.which("cryptsetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
needs_cryptsetup = pytest.mark.skipif(CRYPTSETUP is None, reason="cryptsetup is not installed")


def cryptsetup(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert CRYPTSETUP is not None
    return subprocess.run([CRYPTSETUP, *arguments], capture_output=True, text=True, check=False, timeout=60)


@needs_cryptsetup
@pytest.mark.parametrize("options", ["", "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha512"])
def test_cryptsetup_opens_ours(options: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    joined = ",".join(part for part in ("iterations=1000", options) if part)
    answer = ours.run("create", "-f", "luks", "--luks-passphrase-file", str(secret), "-o", joined, str(path), "1M")
    assert answer.rc == 0, explain(answer)
    done = cryptsetup("open", "--test-passphrase", "--key-file", str(secret), str(path))
    assert done.returncode == 0, done.stderr
    (tmp_path / "wrong").write_bytes(PASSPHRASE.rstrip())
    assert cryptsetup("open", "--test-passphrase", "--key-file", str(tmp_path / "wrong"), str(path)).returncode != 0


@needs_cryptsetup
@pytest.mark.parametrize(
    "words",
    [
        ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha512"],
        ["--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1"],
        ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "20000", "--pbkdf-parallel", "3"],
    ],
    ids=lambda words: words[1],
)
@pytest.mark.parametrize("cipher", [["aes-xts-plain64", "512"], ["aes-cbc-essiv:sha256", "256"]], ids=lambda c: c[0])
def test_luks2_by_cryptsetup(words: list[str], cipher: list[str], ours: Ours, secret: Path, tmp_path: Path) -> None:
    """The payload comes from a LUKS1 container with the same master key, through qemu-img."""
    key, one, two, plain = (tmp_path / name for name in ("key", "one", "two", "plain"))
    key.write_bytes(bytes(range(int(cipher[1]) // 8)))
    plain.write_bytes(boot_sector() + bytes((1 << 20) - 512))
    common = [
        "-q",
        "luksFormat",
        "--key-file",
        str(secret),
        "--volume-key-file",
        str(key),
        "--cipher",
        cipher[0],
        "-s",
        cipher[1],
    ]
    with one.open("wb") as file:
        file.truncate(4 << 20)
    with two.open("wb") as file:
        file.truncate(20 << 20)
    done = cryptsetup(*common, "--type", "luks1", "--pbkdf-force-iterations", "1000", str(one))
    assert done.returncode == 0, done.stderr
    done = cryptsetup(*common, "--type", "luks2", "--sector-size", "512", "--label", "mine", *words, str(two))
    assert done.returncode == 0, done.stderr
    written = with_key(secret, "convert", "-n", "-f", "raw", "--target-image-opts", str(plain), opened(one)[1])
    assert written.rc == 0, written.stderr
    payload = int(qemu_img("info", "--output=json", str(one)).json["format-specific"]["data"]["payload-offset"])
    with two.open("r+b") as file:
        file.seek(16 << 20)
        file.write(one.read_bytes()[payload : payload + (1 << 20)])
    told = ours.run("info", "--output=json", "--luks-passphrase-file", str(secret), str(two))
    assert told.rc == 0, explain(told)
    own = told.json["pyvmm"]
    assert own["partition-tables"][0]["partitions"][0]["type"] == "83"
    assert own["luks2"]["label"] == "mine"
    assert own["luks2"]["payload-offset"] == 16 << 20
    assert own["luks2"]["keyslots"][0]["kdf"] == words[1]
    assert told.json["virtual-size"] == 4 << 20
    assert ours.run("check", str(two)).stdout == "No errors were found on the image.\n"


@needs_cryptsetup
def test_argon2_needs_memory(secret: Path, tmp_path: Path) -> None:
    """The real command in its jail: refused with the option's name, and done with more of it."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(20 << 20)
    words = [
        "--pbkdf",
        "argon2id",
        "--pbkdf-force-iterations",
        "4",
        "--pbkdf-memory",
        "300000",
        "--pbkdf-parallel",
        "4",
    ]
    done = cryptsetup("-q", "luksFormat", "--type", "luks2", "--key-file", str(secret), *words, str(path))
    assert done.returncode == 0, done.stderr
    asked = ["run", "info", "--output=json", "--luks-passphrase-file", str(secret), str(path)]
    short = run_process(*asked)
    assert short.rc == 75, explain(short)
    assert json.loads(short.stdout)["error"]["limit"] == "max-memory"
    enough = run_process(*asked, "--max-memory", "320M")
    assert enough.rc == 0, explain(enough)
    assert enough.json["pyvmm"]["unlocked-keyslot"] == 0
