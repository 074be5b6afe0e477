"""Files of every format and a spread of sizes and options, made and grown by us, under qemu-img's eyes.

A sample of each kind runs with the suite; ``PYVMM_MADE=N`` runs N rounds of each (tests/differential/made.py).
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.differential.made import (
    KINDS,
    PASSPHRASE,
    G,
    K,
    M,
    Request,
    compare,
    io,
    plain,
    random_options,
    random_request,
    rng_of,
    rounds,
    sparse,
    split,
    writes,
)
from tests.differential.oracle import comparable, make, qemu_img
from tests.differential.ours import REFUSALS, Ours, explain

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

#: Identities: these differ between any two images.  A header that is in use once more is no part of what was asked for.
IDENTITIES = ("filename", "full-backing-filename", "cid", "parent-cid", "uuid", "iters", "master-key-iters")
#: Up to this many bytes a disk is compared in full: qemu-img asks for each cluster by itself.
COMPARE_UP_TO = 3 * G
#: Without checks in qemu-img.  LUKS has none either, and wants its key before it says so.
NO_CHECKS = ("raw", "vpc")
ROUNDS = range(rounds())


@pytest.fixture(name="secret", scope="module")
def fixture_secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "passphrase"
    path.write_bytes(PASSPHRASE)
    return path


@pytest.fixture(name="twins")
def fixture_twins(tmp_path: Path) -> tuple[Path, Path]:
    """The same name in two folders, so that names in images are the same."""
    paths = tmp_path / "mine" / "disk", tmp_path / "theirs" / "disk"
    for path in paths:
        path.parent.mkdir()
    return paths


def create(ours: Ours, secret: Path, request: Request, path: Path, *words: str) -> None:
    key = ["--luks-passphrase-file", str(secret)] if request.driver == "luks" else []
    answer = ours.run("create", *words, *key, *request.words, str(path), str(request.size))
    assert answer.rc == 0, f"{request}: {explain(answer)}"


def contents(folder: Path) -> dict[str, str]:
    """Name -> checksum of each file."""
    found = {}
    for path in folder.iterdir():
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def clean(ours: Ours, path: Path, driver: str) -> None:
    """Nothing is wrong, says each of the two."""
    if driver != "luks":
        oracle = qemu_img("check", "-f", driver, str(path))
        assert oracle.rc == (63 if driver in NO_CHECKS else 0), explain(oracle)
    answer = ours.run("check", "--chain", "-f", driver, str(path))
    assert answer.rc == (63 if driver == "raw" else 0), explain(answer)


def virtual_size(path: Path, driver: str) -> int:
    answer = qemu_img("info", "-f", driver, "--output=json", str(path))
    assert answer.rc == 0, answer.stderr
    size = answer.json["virtual-size"]
    assert isinstance(size, int)
    return size


def usable(path: Path, request: Request, secret: Path, name: object) -> None:
    """What is written is read back, and it is all that is there."""
    size = virtual_size(path, request.driver)
    stream = request.options.get("subformat") == "streamOptimized"
    rng = rng_of(name, "written")
    # A compressed grain is written whole and once.
    commands = writes(rng, size, 1 if stream else 3, 64 * K if stream else 512, 1 if stream else 300)
    if not commands:
        return
    io(path, request.driver, secret, commands)
    io(path, request.driver, secret, [commands[-1].replace("write", "read")])
    # What nobody wrote is no zero in a container.
    if size <= COMPARE_UP_TO and request.driver != "luks":
        reference = path.with_name("reference")
        sparse(reference, size)
        io(reference, "raw", secret, commands)
        same = compare(path, request.driver, reference, secret)
        assert same.rc == 0, explain(same)
        reference.unlink()


@pytest.mark.parametrize("index", ROUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_new_images(kind: str, index: int, ours: Ours, secret: Path, twins: tuple[Path, Path]) -> None:
    mine, theirs = twins
    rng = rng_of("new", kind, index)
    for number in range(3):
        request = random_request(rng, kind)
        oracle = qemu_img("create", *request.words, str(theirs), str(request.size))
        answer = ours.run("create", *request.words, str(mine), str(request.size))
        # Nobody can open a VMDK of 0 bytes.
        makes = oracle.rc == 0 and (request.driver, request.size) != ("vmdk", 0)
        assert (answer.rc == 0) == makes, f"{request}: {oracle.stderr}{explain(answer)}"
        if makes:
            expected = qemu_img("info", "-f", request.driver, "--output=json", str(theirs))
            got = qemu_img("info", "-f", request.driver, "--output=json", str(mine))
            assert got.rc == expected.rc, f"{request}: {got.stderr}{expected.stderr}"
        if makes and got.rc == 0:
            assert comparable(got.json, *IDENTITIES) == comparable(expected.json, *IDENTITIES), request
            told = ours.run("info", "--chain", "-f", request.driver, "--output=json", str(mine))
            assert comparable(told.json) == comparable(got.json), request
            assert sorted(contents_names(mine.parent)) == sorted(contents_names(theirs.parent)), request
            clean(ours, mine, request.driver)
            if got.json["virtual-size"] <= COMPARE_UP_TO:
                make("compare", "-f", request.driver, "-F", request.driver, str(mine), str(theirs))
            usable(mine, request, secret, (kind, index, number))
            clean(ours, mine, request.driver)
        for path in twins:
            shutil.rmtree(path.parent)
            path.parent.mkdir()


def contents_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("index", ROUNDS)
def test_new_containers(index: int, ours: Ours, secret: Path, tmp_path: Path) -> None:
    rng = rng_of("luks", index)
    size = rng.choice((0, 1, 512, 513, M - 512, M + 1, rng.randrange(1, 9 * M), rng.randrange(1, 65) * G))
    options = {"iterations": "1000", "cipher-alg": rng.choice(("aes-128", "aes-192", "aes-256"))}
    options["hash-alg"] = rng.choice(("sha1", "sha256", "sha512"))
    request = Request("luks", size, options)
    path = tmp_path / "disk"
    create(ours, secret, request, path)
    # The file has the bytes that were asked for behind its header, the disk whole sectors.
    assert virtual_size(path, "luks") == (size + 511) // 512 * 512
    clean(ours, path, "luks")
    if size % 512 == 0 and size < G:
        usable(path, request, secret, ("luks", index))


@pytest.mark.parametrize("kind", [*KINDS, "luks"])
def test_the_seed_is_all_that_is_random(kind: str, ours: Ours, secret: Path, tmp_path: Path) -> None:
    rng = rng_of("seed", kind)
    driver, _ = split(kind)
    options = {"iterations": "1000"} if kind == "luks" else random_options(rng, kind)
    request = Request(driver, rng.randrange(1, 4 * K) * 512, options)
    made = []
    for number, seed in enumerate(("a", "a", "b")):
        path = tmp_path / str(number) / "disk"
        path.parent.mkdir()
        create(ours, secret, request, path, "--seed", seed, "--unix-time", "1700000000")
        made.append(contents(path.parent))
    assert made[0] == made[1]
    # Nothing in these two is random.
    assert (made[0] == made[2]) == (driver in ("raw", "qcow2"))


@pytest.mark.parametrize("index", ROUNDS)
@pytest.mark.parametrize(
    "kind", ["qcow2", "vmdk-monolithicSparse", "vmdk-twoGbMaxExtentSparse", "vmdk-streamOptimized"]
)
def test_overlays(
    kind: str, index: int, ours: Ours, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of two of ours shows what the base holds, and takes writes."""
    monkeypatch.chdir(tmp_path)
    rng = rng_of("overlay", kind, index)
    driver, subformat = split(kind)
    base_driver = driver if driver == "vmdk" else rng.choice(("raw", "qcow2", "vpc", "vhdx", "vmdk"))
    size = rng.randrange(1, 9000) * 512
    make("create", "-q", "-f", base_driver, "base", str(size), cwd=tmp_path)
    size = virtual_size(tmp_path / "base", base_driver)
    commands = writes(rng, size, 4)
    io(tmp_path / "base", base_driver, secret, commands)
    reference = tmp_path / "reference"
    sparse(reference, size)
    io(reference, "raw", secret, commands)
    longer = size if driver == "vmdk" or rng.random() < 0.5 else size + rng.randrange(1, 5000) * 512
    below = base_driver
    for name, over in (("middle", "base"), ("top", "middle")):
        options = {"subformat": subformat} if driver == "vmdk" else {"cluster_size": str(1 << rng.randrange(9, 22))}
        words = Request(driver, 0, options).words
        length = [str(longer)] if name == "top" and longer > size else []
        answer = ours.run("create", *words, "-b", over, "-F", below, name, *length)
        assert answer.rc == 0, explain(answer)
        below = driver
    for name in ("middle", "top"):
        clean(ours, tmp_path / name, driver)
    sparse(reference, longer)
    same = compare(tmp_path / "top", driver, reference, secret)
    assert same.rc == 0, explain(same)
    theirs = qemu_img("info", "-f", driver, "--backing-chain", "--output=json", "top", cwd=tmp_path)
    assert theirs.rc == 0, theirs.stderr
    if subformat != "streamOptimized":
        more = writes(rng, longer, 3)
        io(tmp_path / "top", driver, secret, more)
        io(reference, "raw", secret, more)
        same = compare(tmp_path / "top", driver, reference, secret)
        assert same.rc == 0, explain(same)
        clean(ours, tmp_path / "top", driver)


#: Kind -> whether it also gets smaller.
RESIZED = {
    "raw": True, "qcow2": True, "vmdk-monolithicSparse": False, "vpc-dynamic": False, "vpc-fixed": False,
    "vhdx-dynamic": False, "vhdx-fixed": False, "luks": True,
}  # fmt: skip


@pytest.mark.parametrize("index", ROUNDS)
@pytest.mark.parametrize("kind", RESIZED)
def test_resized(kind: str, index: int, ours: Ours, secret: Path, tmp_path: Path) -> None:
    """What was there stays, what is new is zero, and both take writes."""
    rng = rng_of("resize", kind, index)
    driver, _ = split(kind)
    options = {"iterations": "1000"} if kind == "luks" else random_options(rng, kind)
    options.pop("preallocation", None)
    request = Request(driver, rng.randrange(1, 20_000) * 512, options)
    path, reference = tmp_path / "disk", tmp_path / "reference"
    create(ours, secret, request, path)
    size = virtual_size(path, driver)
    if driver == "luks":
        # What nobody wrote is no zero there.
        plain(path, driver, secret, reference)
    else:
        sparse(reference, size)
    for step in range(3):
        commands = writes(rng, size, 4)
        for image, image_driver in ((path, driver), (reference, "raw")):
            io(image, image_driver, secret, commands)
        smaller = RESIZED[kind] and step == 1
        asked = rng.randrange(1, size // 512 + 1) * 512 if smaller else size + rng.randrange(1, 40_000) * 512
        answer = ours.run("resize", "-f", driver, *(["--shrink"] if smaller else []), str(path), str(asked))
        assert answer.rc == 0, f"{request} {size} to {asked}: {explain(answer)}"
        size = virtual_size(path, driver)
        if driver != "vpc":
            assert size == asked
        else:
            assert asked <= size
        before = reference.read_bytes()[:size]
        sparse(reference, size)
        clean(ours, path, driver)
        if driver == "luks":
            plain(path, driver, secret, reference)
            assert reference.read_bytes()[: len(before)] == before
        same = compare(path, driver, reference, secret)
        assert same.rc == 0, f"{request} to {asked}: {explain(same)}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["disk", "reference"]
    if not RESIZED[kind]:
        kept = contents(tmp_path)
        answer = ours.run("resize", "-f", driver, "--shrink", str(path), "512")
        assert answer.rc in REFUSALS or driver == "vpc", explain(answer)
        assert answer.rc == 0 or contents(tmp_path) == kept
