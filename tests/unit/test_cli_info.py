"""``info`` through a runner that plays canned guests: text and JSON as qemu-img's releases have them."""

from __future__ import annotations

import json
import os

import pytest

from calltable.messages import (
    Info,
    InfoBitmap,
    InfoLuks,
    InfoLuksSlot,
    InfoNote,
    InfoPartition,
    InfoPartitionTable,
    InfoQcow2,
    InfoReference,
    InfoSnapshot,
)
from tests.unit.fake import FakeRunner
from vmm.cbor import decode
from vmm.cli.human import info_text
from vmm.cli.main import main
from vmm.cli.reports import info_json
from vmm.operations.chain import FollowedFile
from vmm.operations.info import InfoReport

RAW = Info(format="raw", virtual_size=512, file_length=512, dirty_flag=False)
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("canned_command")


def actual(path: str = "image") -> int:
    return os.stat(path).st_blocks * 512


QCOW2 = InfoQcow2(
    compat="1.1",
    compression_type="zlib",
    refcount_bits=16,
    lazy_refcounts=False,
    corrupt=False,
    extended_l2=False,
    version=3,
    header_length=112,
    incompatible_features=0,
    compatible_features=0,
    autoclear_features=0,
    l1_offset=196608,
    l1_entries=1,
    refcount_table_offset=65536,
    refcount_table_clusters=1,
    snapshots=1,
    bitmaps=1,
)
FULL = Info(
    format="qcow2",
    virtual_size=10 << 20,
    file_length=196616,
    cluster_size=65536,
    dirty_flag=True,
    backing_filename="ba\x1b[31mse",
    backing_filename_format="raw",
    qcow2=QCOW2,
)
LISTS = (
    InfoSnapshot(
        id="1",
        name="s1",
        vm_state_size=0,
        date_sec=1795381229,
        date_nsec=745297000,
        vm_clock_sec=3661,
        vm_clock_nsec=5000000,
        icount=7,
        disk_size=10 << 20,
    ),
    InfoBitmap(name="bm0", granularity=65536, flags=("auto",)),
    InfoBitmap(name="bm1", granularity=65536, flags=()),
    InfoReference(kind="backing-file", name="ba\x1b[31mse", format="raw"),
    InfoNote(code="trailing-data", message="more", offset=5),
)
#: As qemu-img 7.2.22 prints it for an image with these properties.
TEXT = """\
image: image
file format: qcow2
virtual size: 10 MiB (10485760 bytes)
disk size: 4 KiB
cluster_size: 65536
cleanly shut down: no
backing file: ba\\x1b[31mse
backing file format: raw
Snapshot list:
ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT
1         s1                    0 B 2026-11-22 21:00:29 01:01:01.005          7
Format specific information:
    compat: 1.1
    compression type: zlib
    lazy refcounts: false
    bitmaps:
        [0]:
            flags:
                [0]: auto
            name: bm0
            granularity: 65536
        [1]:
            flags:
            name: bm1
            granularity: 65536
    refcount bits: 16
    corrupt: false
    extended l2: false
"""
CHILD = """\
Child node '/file':
    filename: image
    protocol type: file
    file length: 192 KiB (197120 bytes)
    disk size: 4 KiB
"""


class TestInfo:
    def test_text(self, capsys: Capture) -> None:
        assert main(["run", "info", "image"], FakeRunner(*LISTS, FULL)) == 0
        expected = TEXT.replace("disk size: 4 KiB", f"disk size: {actual() // 1024} KiB")
        assert capsys.readouterr().out == expected

    def test_text_of_later_releases(self, capsys: Capture) -> None:
        assert main(["run", "info", "--qemu-version", "10.0.13", "image"], FakeRunner(*LISTS, FULL)) == 0
        out = capsys.readouterr().out
        assert out.endswith(CHILD.replace("disk size: 4 KiB", f"disk size: {actual() // 1024} KiB"))
        assert "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n" in out
        assert "1       s1                    0 B 2026-11-22 21:00:29  0001:01:01.005          7\n" in out

    def test_json(self, capsys: Capture) -> None:
        assert main(["run", "info", "--output=json", "image"], FakeRunner(*LISTS, FULL)) == 0
        answer = json.loads(capsys.readouterr().out)
        assert list(answer) == [
            "backing-filename-format",
            "snapshots",
            "virtual-size",
            "filename",
            "cluster-size",
            "format",
            "actual-size",
            "format-specific",
            "full-backing-filename",
            "backing-filename",
            "dirty-flag",
            "pyvmm",
        ]
        assert answer["format-specific"]["data"]["bitmaps"][1] == {"flags": [], "name": "bm1", "granularity": 65536}
        assert "disk-size" not in answer["snapshots"][0]
        assert answer["pyvmm"]["references"][0]["name"] == "ba\x1b[31mse"
        assert answer["pyvmm"]["notes"][0]["code"] == "trailing-data"
        assert answer["pyvmm"]["qcow2"]["l1-offset"] == 196608

    def test_json_of_later_releases(self, capsys: Capture) -> None:
        assert main(["run", "info", "--output=json", "--qemu-version=8.0", "image"], FakeRunner(FULL)) == 0
        answer = json.loads(capsys.readouterr().out)
        assert list(answer)[:3] == ["backing-filename-format", "children", "virtual-size"]
        assert answer["children"] == [
            {
                "name": "file",
                "info": {
                    "children": [],
                    "virtual-size": 197120,
                    "filename": "image",
                    "format": "file",
                    "actual-size": actual(),
                    "format-specific": {"type": "file", "data": {}},
                    "dirty-flag": False,
                },
            }
        ]

    def test_extents_of_later_releases(self) -> None:
        """What was opened last is first, each with its own size; on top is what all of them take."""
        files = tuple(
            FollowedFile(f"d/f{index}", 0, "extent", index, "raw", 8192 * (index + 1), 700) for index in range(2)
        )
        report = InfoReport("d/image", 4096 + 8192 + 16384, FULL, extent_files=files)
        answer = info_json(report, (8, 0))
        shown = [
            (child["name"], child["info"]["filename"], child["info"]["virtual-size"], child["info"]["actual-size"])
            for child in json.loads(json.dumps(answer["children"]))
        ]
        assert shown == [
            ("extents.1", "d/f1", 1024, 16384),
            ("extents.0", "d/f0", 1024, 8192),
            ("file", "d/image", 197120, 4096),
        ]
        assert answer["actual-size"] == 28672
        text = info_text(report, (8, 0))
        nodes = [line for line in text.splitlines() if line.startswith("Child node")]
        assert nodes == [f"Child node '/{name}':" for name in ("extents.1", "extents.0", "file")]
        assert "    filename: d/f1\n    protocol type: file\n    file length: 1 KiB (1024 bytes)\n" in text
        assert text.endswith("    disk size: 4 KiB\n")

    def test_luks(self, capsys: Capture) -> None:
        slots = (
            InfoLuksSlot(active=True, key_offset=4096, iters=1000, stripes=4000),
            InfoLuksSlot(active=False, key_offset=69632),
        )
        luks = InfoLuks(
            cipher_alg="aes-128",
            cipher_mode="cbc",
            hash_alg="sha256",
            ivgen_alg="essiv",
            ivgen_hash_alg="sha256",
            payload_offset=528384,
            master_key_iters=1000,
            uuid="28632274-8c8a-493f-835b-da802e1c576b",
            slots=slots,
        )
        fields = RAW.as_fields() | {"format": "luks", "encrypted": True}
        image = Info.from_fields(fields | {"luks": luks.as_fields()})
        for version, detached in (("7.2", None), ("10.0", False)):
            assert main(["run", "info", "--output=json", "--qemu-version", version, "image"], FakeRunner(image)) == 0
            answer = json.loads(capsys.readouterr().out)
            assert answer["encrypted"] is True
            data = answer["format-specific"]["data"]
            assert data.get("detached-header") is detached
            assert data["slots"][1] == {"active": False, "key-offset": 69632}
        assert main(["run", "info", "image"], FakeRunner(image)) == 0
        out = capsys.readouterr().out
        assert "encrypted: yes\nFormat specific information:\n    ivgen alg: essiv\n" in out
        assert "    slots:\n        [0]:\n            active: true\n            iters: 1000\n" in out

    def test_encrypted_qcow2(self, capsys: Capture) -> None:
        qcow2 = InfoQcow2.from_fields(QCOW2.as_fields() | {"encrypt-format": "aes"})
        image = Info.from_fields(FULL.as_fields() | {"encrypted": True, "qcow2": qcow2.as_fields()})
        assert main(["run", "info", "--output=json", "image"], FakeRunner(image)) == 0
        assert json.loads(capsys.readouterr().out)["format-specific"]["data"]["encrypt"] == {"format": "aes"}

    def test_version_reaches_the_guest(self) -> None:
        runner = FakeRunner(RAW)
        main(["run", "info", "image"], runner)
        main(["run", "info", "--qemu-version", "10.0.13", "image"], runner)
        assert [decode(job.request) for job in runner.jobs] == [{}, {"qemu-version": "10.0"}]


def _partition(scheme: str, index: int) -> InfoPartition:
    return InfoPartition(
        scheme=scheme, index=index, kind="primary", type="83", start=0, length=1, active=False, outside=False
    )


def test_partitions_are_grouped_by_table(capsys: Capture) -> None:
    tables = [InfoPartitionTable(scheme=scheme, sector_size=512) for scheme in ("mbr", "gpt")]
    partitions = [_partition(*of) for of in (("gpt", 1), ("mbr", 1), ("none", 1), ("gpt", 2))]
    assert main(["run", "info", "--output=json", "image"], FakeRunner(*tables, *partitions, RAW)) == 0
    found = json.loads(capsys.readouterr().out)["pyvmm"]["partition-tables"]
    shown = [(table["scheme"], [p["index"] for p in table["partitions"]]) for table in found]
    assert shown == [("mbr", [1]), ("gpt", [1, 2])]


def test_two_tables_of_one_scheme_are_refused(capsys: Capture) -> None:
    tables = [InfoPartitionTable(scheme="gpt\x1b", sector_size=512)] * 2
    assert main(["run", "info", "--output=json", "image"], FakeRunner(*tables, _partition("gpt\x1b", 1), RAW)) == 70
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "guest-failed"
