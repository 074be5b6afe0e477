"""Random requests for new images, and content in them, for test_made.py.

Everything follows from a name, so that a test that failed is repeated by its name alone.  ``PYVMM_MADE=N`` makes N
rounds of each kind instead of ROUNDS.
"""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.differential.oracle import Answer, qemu_img
from tests.differential.recipes import SEED

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40
ROUNDS = 2
VMDK = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized")
#: What create makes: format and, where it has some, subformat.
KINDS = ("raw", "qcow2", *(f"vmdk-{name}" for name in VMDK), "vpc-dynamic", "vpc-fixed", "vhdx-dynamic", "vhdx-fixed")
#: The largest size that a kind is made with, in bytes; 64 GiB for others.  A split VMDK of terabytes would be a
#: thousand files, and a sparse one of 256 TiB has tables of gigabytes.
LARGEST = {"raw": 8 * T, "qcow2": 64 * T, "vpc-dynamic": 2040 * G, "vpc-fixed": 64 * G, "vhdx-dynamic": 64 * T}
PASSPHRASE = b"staple"


def rounds() -> int:
    return int(os.environ.get("PYVMM_MADE", ROUNDS))


def rng_of(*name: object) -> random.Random:
    return random.Random(f"{SEED}/{name}")


@dataclass(frozen=True)
class Request:
    """Words of create without the file."""

    driver: str
    size: int
    options: dict[str, str]

    @property
    def option_words(self) -> list[str]:
        joined = ",".join(f"{name}={value}" for name, value in self.options.items())
        return ["-o", joined] if joined else []

    @property
    def words(self) -> list[str]:
        return ["-f", self.driver, *self.option_words]


def split(kind: str) -> tuple[str, str]:
    """Format and subformat."""
    driver, _, subformat = kind.partition("-")
    return driver, subformat


def random_size(rng: random.Random, kind: str) -> int:
    """0, a sector, odd ones, around 1 MiB, many GiB, and what the format ends at."""
    around = rng.choice((512, 64 * K, M, 2 * M, 32 * M, 2 * G))
    return rng.choice(
        (
            rng.choice((0, 1, 511, 512, 513)),
            around + rng.choice((-512, -1, 0, 1, 512)),
            rng.randrange(1, 8 * M),
            rng.randrange(1, 8 * K) * 512,
            rng.randrange(1, 65) * G + rng.choice((0, 0, 512, -512, 7)),
            LARGEST.get(kind, 64 * G) - rng.choice((0, 512, M)),
        )
    )  # fmt: skip


def _qcow2_options(rng: random.Random) -> dict[str, str]:
    options: dict[str, str] = {}
    cluster = 64 * K
    if rng.random() < 0.6:
        cluster = 1 << rng.randrange(9, 22)
        options["cluster_size"] = str(cluster)
    if rng.random() < 0.2:
        return options | {"compat": rng.choice(("0.10", "v2"))}
    if rng.random() < 0.4:
        options["refcount_bits"] = str(1 << rng.randrange(7))
    if cluster >= 16 * K and rng.random() < 0.3:
        options["extended_l2"] = "on"
    if rng.random() < 0.3:
        options["lazy_refcounts"] = rng.choice(("on", "off"))
    if rng.random() < 0.3:
        options["compression_type"] = rng.choice(("zlib", "zstd"))
    if rng.random() < 0.3:
        options["preallocation"] = rng.choice(("off", "metadata", "falloc", "full"))
    return options


def _vmdk_options(rng: random.Random, subformat: str) -> dict[str, str]:
    options = {"subformat": subformat}
    if rng.random() < 0.5:
        options["adapter_type"] = rng.choice(("ide", "buslogic", "lsilogic", "legacyESX"))
    if rng.random() < 0.3:
        options["toolsversion"] = str(rng.randrange(1 << 31))
    if rng.random() < 0.3:
        options |= rng.choice(({"compat6": "on"}, {"hwversion": str(rng.randrange(20))}))
    if not subformat.endswith("Flat") and rng.random() < 0.4:
        options["zeroed_grain"] = rng.choice(("on", "off"))
    return options


def random_options(rng: random.Random, kind: str) -> dict[str, str]:
    driver, subformat = split(kind)
    if driver == "raw":
        return rng.choice(({}, {"preallocation": "off"}, {"preallocation": "falloc"}, {"preallocation": "full"}))
    if driver == "qcow2":
        return _qcow2_options(rng)
    if driver == "vmdk":
        return _vmdk_options(rng, subformat)
    options = {"subformat": subformat}
    if driver == "vpc":
        return options | rng.choice(({}, {"force_size": "on"}, {"force_size": "off"}))
    if rng.random() < 0.5:
        options["block_size"] = str(M << rng.randrange(9))
    if rng.random() < 0.3:
        options["log_size"] = str(M * rng.randrange(1, 9))
    if rng.random() < 0.5:
        options["block_state_zero"] = rng.choice(("on", "off"))
    return options


def random_request(rng: random.Random, kind: str) -> Request:
    """A request that qemu-img may refuse as well, but for no option."""
    options = random_options(rng, kind)
    size = random_size(rng, kind)
    limit = 4 * M if options.get("preallocation", "off") != "off" else LARGEST.get(kind, 64 * G)
    # Tables of small clusters, or of 1-MiB blocks on a disk of 64 TiB, are megabytes of zeroes in qemu-img.
    if "cluster_size" in options:
        limit = min(limit, int(options["cluster_size"]) * M)
    if kind == "vhdx-fixed":
        limit = min(limit, 64 * M)
    return Request(split(kind)[0], min(size, limit), options)


def image_options(path: Path, driver: str, secret: Path) -> list[str]:
    """Words that open an image in qemu-img and qemu-io; those of LUKS with its key."""
    if driver == "luks":
        spelled = f"driver=luks,key-secret=s,file.filename={path}"
        return ["--object", f"secret,id=s,file={secret}", "--image-opts", spelled]
    return ["-f", driver, str(path)]


def io(path: Path, driver: str, secret: Path, commands: list[str]) -> None:
    """qemu-io's commands, each of which has to succeed."""
    arguments = [part for command in commands for part in ("-c", command)]
    *words, file = image_options(path, driver, secret)
    done = subprocess.run(
        ["qemu-io", *arguments, *words, file], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"{path.name}: {commands}: {done.stdout}{done.stderr}"
    assert "verification failed" not in done.stdout, done.stdout


def compare(path: Path, driver: str, reference: Path, secret: Path) -> Answer:
    """qemu-img compare with a raw file."""
    if driver != "luks":
        return qemu_img("compare", "-f", driver, "-F", "raw", str(path), str(reference))
    decrypted = path.with_name(path.name + "-plain")
    plain(path, driver, secret, decrypted)
    answer = qemu_img("compare", "-f", "raw", "-F", "raw", str(decrypted), str(reference))
    decrypted.unlink()
    return answer


def plain(path: Path, driver: str, secret: Path, output: Path) -> None:
    """The disk as a raw file."""
    *words, file = image_options(path, driver, secret)
    done = qemu_img("convert", *words, "-O", "raw", file, str(output))
    assert done.rc == 0, done.stderr


def sparse(path: Path, length: int) -> None:
    """Set a file's length; what is new is a hole."""
    with path.open("ab") as file:
        file.truncate(length)


def writes(rng: random.Random, size: int, count: int, grain: int = 512, longest: int = 300) -> list[str]:
    """Commands that write patterns other than 0, in whole grains, one of them at the end of the disk."""
    out = []
    grains = size // grain
    for index in range(count if grains else 0):
        at = rng.randrange(grains) if index else grains - 1
        # Far from the start nothing is gained from the whole disk.
        length = min(rng.randrange(1, longest + 1), grains - at)
        out.append(f"write -P {rng.randrange(1, 256)} {at * grain} {length * grain}")
    return out
