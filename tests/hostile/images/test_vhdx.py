"""Bad VHDXs, a row for each field: what opens, what is refused and why, what check finds.

The disk of most rows has 5 MiB and 512 bytes in blocks of 1 MiB, two of which are in the file: log at 1 MiB, metadata
at 2 MiB, BAT at 3 MiB, blocks at 4 and 5 MiB.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.differential.oracle import Answer
from tests.differential.ours import Ours, explain
from tests.hostile.images.verdict import survives
from tests.images import raw_writer
from tests.images import vhdx_writer as v
from tests.images.vhdx_writer import MIB, Block, Data, Entry, File, Vhdx, Zeros

pytestmark = pytest.mark.kvm

SIZE = 5 * MIB + 512
METADATA, BAT, FIRST, SECOND, END = 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, 6 * MIB
ITEMS = METADATA + v.ITEMS
ONES8, ONES4, ONES2 = (1 << 64) - 1, (1 << 32) - 1, (1 << 16) - 1
OPENS = ""

TRUNCATED = "The image has been truncated"
POWER = "is no power of two"
NO_MULTIPLE = "not at a multiple of 1 MiB"
SECTORS = "logical sectors of"
OUTSIDE = "outside of the room for items"
OVERLAP = "overlaps with another"

#: Both headers: offset, bytes, value -> reason of the refusal.
HEADER = [
    ("signature", 0, 4, {0: "has no signature", 1: "has no signature", ONES4: "has no signature"}),
    ("version", 66, 2, {0: "is of version 0", 2: "is of version 2", ONES2: "is of version 65535", 1: OPENS}),
    ("log-version", 64, 2, {0: OPENS, 1: "log version 1", ONES2: "log version 65535"}),
    ("log-length", 68, 4, {0: OPENS, 1: OPENS, MIB - 1: OPENS, MIB + 1: OVERLAP, ONES4: OVERLAP}),
    ("log-offset", 72, 8, {0: NO_MULTIPLE, 1: NO_MULTIPLE, MIB - 1: NO_MULTIPLE, MIB + 1: NO_MULTIPLE}),
    ("log-offset", 72, 8, {ONES8: NO_MULTIPLE, 2 * MIB: OVERLAP, 3 * MIB: OVERLAP, ONES8 + 1 - MIB: OPENS}),
    ("log-offset", 72, 8, {FIRST: "overlaps with the log or region"}),
]
#: Both region tables; their first entry is the BAT.
REGIONS = [
    ("signature", 0, 4, {0: "no region table", 1: "no region table", ONES4: "no region table"}),
    ("count", 8, 4, {0: "names no BAT", 1: "names no metadata region", 3: OPENS, 2047: OPENS}),
    ("count", 8, 4, {2048: "with 2048 entries", ONES4: "with 4294967295 entries"}),
    ("bat-guid", 16, 8, {0: "of an unknown kind and required", ONES8: "of an unknown kind and required"}),
    (
        "bat-offset",
        32,
        8,
        {1: OVERLAP, MIB: OVERLAP, METADATA + 1: OVERLAP, ONES8: "BAT at byte", 1 << 63: "BAT at byte"},
    ),
    ("bat-offset", 32, 8, {END - 8: "ends at byte 6291496", FIRST: OPENS}),
    ("bat-length", 40, 4, {0: "holds 0 entries", 1: "holds 0 entries", 47: "holds 5 entries", 48: OPENS, 49: OPENS}),
    ("bat-length", 40, 4, {MIB: OPENS, MIB + 1: "overlaps with the log or region", ONES4: "a BAT region of"}),
    ("metadata-guid", 48, 8, {0: "of an unknown kind and required"}),
    ("metadata-offset", 64, 8, {0: "no metadata table", 1: OVERLAP, MIB: OVERLAP, ONES8: "no metadata table"}),
    ("metadata-offset", 64, 8, {METADATA - 1: OVERLAP, METADATA + 1: OVERLAP}),
    ("metadata-length", 72, 4, {0: OUTSIDE, 1: OUTSIDE, v.ITEMS + 39: OUTSIDE, v.ITEMS + 40: OPENS}),
    ("metadata-length", 72, 4, {MIB + 1: OVERLAP, ONES4: OVERLAP}),
]
#: The metadata table; its entries are file parameters, size, identifier, logical and physical sector size.
TABLE = [
    ("signature", 0, 8, {0: "no metadata table", 1: "no metadata table", ONES8: "no metadata table"}),
    (
        "count",
        10,
        2,
        {0: "metadata item 0 of 5 is missing", 4: "metadata item 4 of 5 is missing", 6: OPENS, 2047: OPENS},
    ),
    ("count", 10, 2, {2048: "with 2048 entries", ONES2: "with 65535 entries"}),
    ("guid", 32, 8, {0: "of an unknown kind and required", ONES8: "of an unknown kind and required"}),
    ("offset", 48, 4, {0: OUTSIDE, 1: OUTSIDE, v.ITEMS - 1: OUTSIDE, MIB - 7: OUTSIDE, ONES4: OUTSIDE}),
    ("offset-of-size", 80, 4, {0: OUTSIDE, MIB - 7: OUTSIDE, MIB - 8: OPENS}),
    ("length", 52, 4, {0: OPENS, ONES4: OPENS}),
    ("flags", 56, 4, {0: OPENS, ONES4: OPENS}),
    ("reserved", 60, 4, {ONES4: OPENS}),
]
#: The items.
VALUES = [
    ("block-size", 0, 4, {0: POWER, 1: POWER, 512: POWER, MIB - 1: POWER, MIB + 1: POWER, 3 * MIB: POWER}),
    ("block-size", 0, 4, {256 * MIB + 1: POWER, 512 * MIB: POWER, 1 << 31: POWER, ONES4: POWER}),
    ("block-size", 0, 4, {256 * MIB: TRUNCATED, 2 * MIB: TRUNCATED, MIB >> 1: POWER}),
    ("flags", 4, 4, {0: OPENS, 1: OPENS, 2: "without a parent locator", ONES4: "without a parent locator", 4: OPENS}),
    ("size", 8, 8, {0: OPENS, 1: OPENS, 511: OPENS, 512: OPENS, 6 * MIB: OPENS, 131072 * MIB: "the disk needs 131103"}),
    ("size", 8, 8, {(1 << 63) - 1: "the disk needs", 1 << 63: "is above 2^63-1", ONES8: "is above 2^63-1"}),
    ("size", 8, 8, {ONES8 - 511: "is above 2^63-1", 1 << 52: "the disk needs 4296015871"}),
    ("logical", 32, 4, {0: SECTORS, 1: SECTORS, 511: SECTORS, 513: SECTORS, 1024: SECTORS, 4095: SECTORS}),
    ("logical", 32, 4, {4096: OPENS, 4097: SECTORS, 1 << 31: SECTORS, ONES4: SECTORS}),
    ("physical", 36, 4, {0: OPENS, 1: OPENS, 511: OPENS, 4096: OPENS, ONES4: OPENS}),
]
#: The BAT entry of the first block.
ENTRIES = [
    ("entry", 0, 8, {0: OPENS, 6: OPENS, MIB | 6: "overlaps with the log", METADATA | 6: "overlaps with the log"}),
    ("entry", 0, 8, {BAT | 6: "overlaps with the log", SECOND | 6: OPENS, END | 6: TRUNCATED, 1 << 40 | 6: TRUNCATED}),
    (
        "entry",
        0,
        8,
        {(1 << 63) - MIB | 6: "offset overflow", 1 << 63 | 6: "offset overflow", ONES8 - 1: "offset overflow"},
    ),
    ("entry", 0, 8, {ONES8: OPENS, 7: OPENS, 4: OPENS, 5: OPENS, FIRST | 6 | 0xFFFF8: OPENS}),
]

TABLES = (
    ("header", v.HEADERS, HEADER),
    ("regions", v.REGION_TABLES, REGIONS),
    ("table", (METADATA,), TABLE),
    ("item", (ITEMS,), VALUES),
    ("bat", (BAT,), ENTRIES),
)
ROWS = [
    pytest.param(places, at, size, values, id=f"{structure}-{name}-{number}")
    for structure, places, rows in TABLES
    for number, (name, at, size, values) in enumerate(rows)
]


def plain(**changes: object) -> Vhdx:
    image = Vhdx(SIZE, MIB, {0: Block(fill=b"0"), 2: Block(fill=b"2")})
    for name, value in changes.items():
        setattr(image, name, value)
    return image


def asked(ours: Ours, operation: str, path: Path, *more: str) -> Answer:
    answer = ours.run(operation, *more, "-f", "vhdx", "--output=json", str(path))
    assert answer.rc in (0, 1, 2), explain(answer)
    return answer


def refusal(answer: Answer) -> str:
    assert answer.rc == 1, explain(answer)
    error = answer.json["error"]
    assert error["code"] == "refused", error
    message: str = error["message"]
    return message


def findings(answer: Answer, kind: str = "corruption") -> list[str]:
    return [one["message"] for one in answer.json["pyvmm"]["findings"] if one["kind"] == kind]


@pytest.mark.parametrize(("places", "at", "size", "values"), ROWS)
def test_field(places: tuple[int, ...], at: int, size: int, values: dict[int, str], ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for value, reason in values.items():
        file = plain().build()
        for place in places:
            file.put_int(place + at, size, value)
        file.seal()
        file.write(path)
        answer = asked(ours, "info", path)
        if reason == OPENS:
            assert answer.rc == 0, f"{value:#x}: {explain(answer)}"
        else:
            assert reason in refusal(answer), f"{value:#x}"
        survives(ours, path, "vhdx")


def test_fields_are_where_they_are_thought_to_be(ours: Ours, tmp_path: Path) -> None:
    """The unchanged image opens, and check finds nothing."""
    path = plain().write(tmp_path / "image")
    assert asked(ours, "info", path).json["pyvmm"]["vhdx"]["present-blocks"] == 2
    checked = asked(ours, "check", path)
    assert (checked.rc, checked.json["pyvmm"]["findings"]) == (0, [])


def test_cut_at_every_structure(ours: Ours, tmp_path: Path) -> None:
    file = plain().build()
    ends = (
        8,
        *v.HEADERS,
        *v.REGION_TABLES,
        MIB,
        METADATA,
        METADATA + 32,
        ITEMS,
        ITEMS + 40,
        BAT,
        BAT + 24,
        FIRST,
        SECOND,
        END,
    )
    for end in ends:
        for length in (end - 1, end, end + 1):
            path = file.write(tmp_path / "image", length)
            survives(ours, path, "vhdx")
            answer = asked(ours, "info", path)
            # A last sector that is not whole is filled up with zeros, by qemu as well: a BAT of one byte is empty.
            opens = length == BAT + 1 or length > END - 512
            assert answer.rc == (0 if opens else 1), f"{length}: {explain(answer)}"


# What check finds in a disk that qemu-img calls clean.


def _bat(block: int, value: int) -> Callable[[File], None]:
    return lambda file: file.put_int(BAT + 8 * block, 8, value)


def _int(at: int, size: int, value: int) -> Callable[[File], None]:
    return lambda file: file.put_int(at, size, value)


def _second_table(file: File) -> None:
    file.put_int(v.REGION_TABLES[1] + 32, 8, 8 * MIB)


def _far_block(file: File) -> None:
    file.put_int(BAT + 16, 8, 25 * MIB | 6)
    file.length = 26 * MIB


CORRUPT = {
    "two-blocks-in-one-place": (_bat(2, FIRST | 6), "block 2 at byte 4194304 overlaps another block"),
    "block-in-the-header-section": (_bat(2, 6), "block 2 lies at byte 0, in the header section"),
    "reserved-state": (_bat(1, 4), "block 1 is in state 4"),
    "partial-without-parent": (_bat(1, FIRST | 7), "block 1 is partially present, but the disk has no parent"),
    "region-tables-differ": (_second_table, "name different regions"),
    "region-not-whole": (_int(v.REGION_TABLES[0] + 40, 4, 4096), "region 0 has 4096 bytes"),
    "item-of-wrong-length": (_int(METADATA + 52, 4, 4), "metadata item 0 has 4 bytes instead of 8"),
    "items-overlap": (_int(METADATA + 80, 4, v.ITEMS), "of its region overlaps another that ends at 65544"),
    "size-no-multiple": (_int(ITEMS + 8, 8, SIZE + 1), "virtual size 5243393 is no multiple of the sector size 512"),
    "physical-sectors": (_int(ITEMS + 36, 4, 520), "physical sectors of 520 bytes"),
}
NOTED = {
    "reserved-bits-of-the-bat": (_bat(0, FIRST | 8 | 6), "1 BAT entries have reserved bits set"),
    "old-unmapped": (_bat(1, 5), "unmapped in the way of version 0.95"),
    "second-header": (_int(v.HEADERS[1] + 66, 2, 9), "is of version 9; the other header counts"),
    "header-reserved": (_int(v.HEADERS[0] + 4000, 1, 9), "reserved bytes are not zero"),
    "region-reserved": (_int(v.REGION_TABLES[0] + 12, 4, 9), "reserved bytes are not zero"),
    "table-reserved": (_int(METADATA + 20, 4, 9), "reserved bytes are not zero"),
    "item-reserved": (_int(METADATA + 60, 4, 9), "metadata item 0: reserved bits are set"),
    "item-not-required": (_int(METADATA + 56, 4, 0), "metadata item 0 is known and must be required"),
    "parameters-reserved": (_int(ITEMS + 4, 4, 8), "reserved bits 8 are set"),
    "gap": (_far_block, "20971520 bytes between the blocks belong to nothing, the first of them at byte 5242880"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corruption(name: str, ours: Ours, tmp_path: Path) -> None:
    change, message = CORRUPT[name]
    file = plain().build()
    change(file)
    file.seal()
    answer = asked(ours, "check", file.write(tmp_path / "image"))
    assert answer.rc == 2, explain(answer)
    assert any(message in one for one in findings(answer)), explain(answer)
    assert asked(ours, "info", tmp_path / "image").rc == 0


@pytest.mark.parametrize("name", NOTED)
def test_note(name: str, ours: Ours, tmp_path: Path) -> None:
    """What misleads nobody leaves an image clean, as it is for qemu-img."""
    change, message = NOTED[name]
    file = plain().build()
    change(file)
    file.seal()
    answer = asked(ours, "check", file.write(tmp_path / "image"))
    assert answer.rc == 0, explain(answer)
    assert any(message in one for one in findings(answer, "note")), explain(answer)


def test_a_damaged_copy_is_replaced_by_the_other(ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for damaged, status, said in ((v.HEADERS[0], 0, "note"), (v.HEADERS[1], 0, "note")):
        file = plain().build()
        file.put_int(damaged + 100, 1, 1)
        answer = asked(ours, "info", file.write(path))
        facts = answer.json["pyvmm"]["vhdx"]
        assert facts["header"] == (2 if damaged == v.HEADERS[0] else 1)
        checked = asked(ours, "check", path)
        assert checked.rc == status
        assert any("the other header counts" in one for one in findings(checked, said))
    for damaged, status in ((v.REGION_TABLES[0], 2), (v.REGION_TABLES[1], 0)):
        file = plain().build()
        file.put_int(damaged + 100, 1, 1)
        assert asked(ours, "info", file.write(path)).json["pyvmm"]["vhdx"]["region-table"] == (2 if status else 1)
        checked = asked(ours, "check", path)
        assert checked.rc == status
        assert any("table can be used" in one for one in findings(checked, "corruption" if status else "note"))


def test_headers_of_the_same_number(ours: Ours, tmp_path: Path) -> None:
    """Disk2vhd writes one header twice; two that differ contradict each other."""
    path = tmp_path / "image"
    file = plain(sequences=(5, 5)).build()
    assert asked(ours, "info", file.write(path)).rc == 0
    file.put_int(v.HEADERS[1] + 16, 1, 77)
    file.seal()
    assert "both say sequence number 5" in refusal(asked(ours, "info", file.write(path)))


# The log.

GOOD = Data(BAT + 4096, b"")


def _log(**changes: object) -> Entry:
    entry = Entry(7, [GOOD])
    for name, value in changes.items():
        setattr(entry, name, value)
    return entry


def _bytes(at: int, size: int, value: int) -> dict[int, bytes]:
    return {at: value.to_bytes(size, "little")}


#: Entries with one thing wrong; the checksum is right where that is possible.
INVALID = {
    "signature": _log(change=_bytes(0, 4, 0)),
    "checksum": _log(damage=_bytes(4, 4, 1)),
    "length-0": _log(change=_bytes(8, 4, 0)),
    "length-odd": _log(change=_bytes(8, 4, 8191)),
    "length-short": _log(change=_bytes(8, 4, 4096)),
    "length-of-the-log": _log(change=_bytes(8, 4, MIB)),
    "length-above-the-log": _log(change=_bytes(8, 4, MIB + 4096)),
    "length-ones": _log(change=_bytes(8, 4, ONES4)),
    "sequence-0": _log(sequence=0),
    "descriptors-0": _log(change=_bytes(24, 4, 0), padding=20),
    "descriptors-2": _log(change=_bytes(24, 4, 2)),
    "descriptors-ones": _log(change=_bytes(24, 4, ONES4)),
    "guid": _log(guid=bytes(16)),
    "descriptor-signature": _log(change=_bytes(64, 4, 0)),
    "descriptor-offset": _log(change=_bytes(64 + 16, 8, BAT + 1)),
    "descriptor-sequence": _log(change=_bytes(64 + 24, 8, 8)),
    "zero-length": _log(writes=[Zeros(BAT, 4095)]),
    "data-signature": _log(change=_bytes(4096, 4, 0)),
    "data-sequence-high": _log(change=_bytes(4096 + 4, 4, 1)),
    "data-sequence-low": _log(change=_bytes(8192 - 4, 4, 1)),
    "too-much-padding": _log(padding=16),
}


@pytest.mark.parametrize("name", INVALID)
def test_no_valid_log_entry(name: str, ours: Ours, tmp_path: Path) -> None:
    """As for qemu-img: a log without a valid entry holds nothing."""
    path = plain(log=[INVALID[name]]).write(tmp_path / "image")
    info = asked(ours, "info", path)
    assert info.rc == 0, explain(info)
    assert info.json["pyvmm"]["vhdx"]["log-state"] == "nothing-valid"
    assert info.json["dirty-flag"] is False
    assert asked(ours, "check", path).rc == 0


REFUSED = {
    "tail-outside": (_log(tail=9), "begins at byte 36864 of the log, where no entry of it lies"),
    "tail-ones": (_log(change=_bytes(12, 4, ONES4)), "begins at byte 4294967295 of the log"),
    "flushed-above-the-file": (_log(flushed=END + 1), "written when it had 6291457 bytes, file has 6291456"),
    "flushed-ones": (_log(flushed=ONES8), TRUNCATED),
    "last-ones": (_log(last=ONES8), "wants a file of 18446744073709551615 bytes"),
    "write-behind-everything": (_log(writes=[Data((1 << 63) - 4096, b"")]), "the log writes 4096 bytes"),
    "write-wraps": (_log(writes=[Data(ONES8 - 4095, b"")]), "the log writes 4096 bytes"),
    "zeros-wrap": (_log(writes=[Zeros(BAT, ONES8 - 4095)]), "the log writes 18446744073709547520 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_log_that_cannot_be_replayed(name: str, ours: Ours, tmp_path: Path) -> None:
    entry, reason = REFUSED[name]
    path = plain(log=[entry]).write(tmp_path / "image")
    for operation in ("info", "check", "measure"):
        assert reason in refusal(asked(ours, operation, path))
    survives(ours, path, "vhdx")


VALID = {
    "first": [_log()],
    "largest-number": [_log(sequence=ONES8)],
    "two": [_log(), _log(sequence=8)],
    "no-writes": [_log(writes=[])],
    "padding": [_log(padding=15)],
    "old-entries-behind": [_log(), _log(sequence=3)],
    "zeros-of-nothing": [_log(writes=[Zeros(BAT + 4096, 0)])],
    "zeros-to-the-end": [_log(writes=[Zeros(END, 1 << 50)])],
    "longer-file": [_log(last=END + 5 * MIB)],
}


@pytest.mark.parametrize("name", VALID)
def test_log_that_is_replayed(name: str, ours: Ours, tmp_path: Path) -> None:
    path = plain(log=VALID[name]).write(tmp_path / "image")
    facts = asked(ours, "info", path).json["pyvmm"]["vhdx"]
    assert facts["log-state"] == "dirty"
    assert facts["log-entries"] == (2 if name == "two" else 1)
    assert facts["present-blocks"] == 2
    checked = asked(ours, "check", path)
    assert checked.rc == 0, explain(checked)
    assert checked.json["pyvmm"]["dirty"] is True


def test_the_newest_sequence_counts(ours: Ours, tmp_path: Path) -> None:
    """Two sequences: one that ends with 9, and an older one in front of it."""
    image = plain(log=[_log(sequence=4), _log(sequence=8, tail=2), _log(sequence=9, tail=2)])
    facts = asked(ours, "info", image.write(tmp_path / "image")).json["pyvmm"]["vhdx"]
    assert (facts["log-sequence"], facts["log-entries"]) == (9, 2)


def test_a_log_that_writes_where_it_must_not(ours: Ours, tmp_path: Path) -> None:
    entry = _log(writes=[Zeros(4096, 4096), Zeros(MIB, 4096)])
    answer = asked(ours, "check", plain(log=[entry]).write(tmp_path / "image"))
    assert answer.rc == 2
    assert any("header section" in one for one in findings(answer))
    assert any("into itself" in one for one in findings(answer))


def test_a_log_that_replaces_all_metadata(ours: Ours, tmp_path: Path) -> None:
    """Region tables, metadata and BAT after the replay count: here there are none."""
    entry = _log(writes=[Zeros(v.REGION_TABLES[0], 2 * v.REGION_TABLE)])
    path = plain(log=[entry]).write(tmp_path / "image")
    assert "checksum 0 of the region table" in refusal(asked(ours, "info", path))
    entry = _log(writes=[Zeros(METADATA, v.ITEMS)])
    assert "no metadata table" in refusal(asked(ours, "info", plain(log=[entry]).write(path)))


@pytest.mark.parametrize("logged", [False, True])
def test_content_of_the_disk(logged: bool, ours: Ours, tmp_path: Path) -> None:
    """A partition table is found through the BAT, also where only the log has the block's entry."""
    image = Vhdx(8 * MIB, MIB, {0: Block()})
    file = image.build()
    table = raw_writer.mbr(8 * MIB, [raw_writer.Partition(0x83, 2048, 2048)])
    if logged:
        page = bytearray(file.get(BAT, 4096))
        image.log = [Entry(3, [Data(BAT, bytes(page))])]
        file = image.build()
        file.put_int(BAT, 8, 0)
    file.put(FIRST, table[:512])
    answer = asked(ours, "info", file.write(tmp_path / "image"))
    assert answer.json["dirty-flag"] is logged
    (found,) = answer.json["pyvmm"]["partition-tables"]
    assert [one["start"] for one in found["partitions"]] == [MIB]


# Differencing disks.


def child(**changes: object) -> Vhdx:
    blocks = {0: Block(), 2: Block(v.PARTIAL, sectors=((0, 3), (100, 8)))}
    image = Vhdx(SIZE, MIB, blocks, parent=v.parent_pairs())
    image.log_length = MIB
    for name, value in changes.items():
        setattr(image, name, value)
    return image


def test_parent_is_named(ours: Ours, tmp_path: Path) -> None:
    answer = asked(ours, "info", child().write(tmp_path / "image"))
    own = answer.json["pyvmm"]
    facts = own["vhdx"]
    assert facts["type"] == "differencing"
    assert (facts["present-blocks"], facts["partial-blocks"], facts["bitmap-blocks"]) == (1, 1, 1)
    assert facts["parent-locator"] == "vhdx"
    assert facts["parent-linkage"] == "{" + str(v.DATA_WRITE_GUID) + "}"
    assert {one["key"]: one["value"] for one in own["parent-entries"]} == v.parent_pairs()
    assert [(one["kind"], one["index"], one["name"], one["format"], one["source"]) for one in own["references"]] == [
        ("parent", 0, v.parent_pairs()[source], "vhdx", source)
        for source in ("relative_path", "volume_path", "absolute_win32_path")
    ]
    checked = asked(ours, "check", tmp_path / "image")
    assert (checked.rc, findings(checked)) == (0, [])
    assert "which only --chain follows" in refusal(asked(ours, "measure", tmp_path / "image", "-O", "qcow2"))


LINKAGE = v.parent_pairs()
LOCATORS = {
    "no-linkage": ({"relative_path": "x"}, "has no parent_linkage"),
    "linkage-without-braces": (LINKAGE | {"parent_linkage": str(v.DATA_WRITE_GUID)}, "is no GUID in braces"),
    "no-path": ({"parent_linkage": LINKAGE["parent_linkage"]}, "names no place of the parent"),
    "nothing": ({}, "names no place of the parent"),
    "sixty-five": (LINKAGE | {f"key{i}": "x" for i in range(61)}, "parent locator with 65 entries, room for 64"),
}


@pytest.mark.parametrize("name", LOCATORS)
def test_locator(name: str, ours: Ours, tmp_path: Path) -> None:
    pairs, message = LOCATORS[name]
    path = child(parent=pairs).write(tmp_path / "image")
    answer = asked(ours, "check", path)
    assert answer.rc == 2, explain(answer)
    assert any(message in one for one in findings(answer)), explain(answer)
    assert asked(ours, "info", path).rc == 0


#: Fields of the locator, whose item lies behind the others, and of its first pair.
LOCATOR_FIELDS = [
    (18, 2, ONES2, "parent locator with 65535 entries"),
    (20, 4, 0, "entry 0 of the parent locator: key or value is empty"),
    (20, 4, ONES4, "entry 0 of the parent locator: key or value is empty"),
    (24, 4, ONES4, "entry 0 of the parent locator: key or value is empty"),
    (28, 2, 0, "entry 0 of the parent locator: key or value is empty"),
    (30, 2, ONES2, "entry 0 of the parent locator: key or value is empty"),
]


@pytest.mark.parametrize(("at", "size", "value", "message"), LOCATOR_FIELDS)
def test_locator_field(at: int, size: int, value: int, message: str, ours: Ours, tmp_path: Path) -> None:
    image = child()
    file = image.build()
    file.put_int(image.metadata_offset + v.ITEMS + 40 + at, size, value)
    path = file.write(tmp_path / "image")
    answer = asked(ours, "check", path)
    assert any(message in one for one in findings(answer)), explain(answer)
    survives(ours, path, "vhdx")


@pytest.mark.parametrize("length", [0, 1, 19, MIB + 1, ONES4])
def test_locator_length(length: int, ours: Ours, tmp_path: Path) -> None:
    image = child()
    file = image.build()
    file.put_int(image.metadata_offset + 32 + 5 * 32 + 20, 4, length)
    path = file.write(tmp_path / "image")
    assert "parent locator of" in refusal(asked(ours, "info", path))
    survives(ours, path, "vhdx")


def test_locator_of_another_type(ours: Ours, tmp_path: Path) -> None:
    """Its pairs are shown, and nothing is taken for a VHDX."""
    image = child()
    file = image.build()
    kind = uuid.UUID(int=5)
    file.put(image.metadata_offset + v.ITEMS + 40, kind.bytes_le)
    answer = asked(ours, "info", file.write(tmp_path / "image"))
    assert answer.json["pyvmm"]["vhdx"]["parent-locator"] == str(kind)
    assert "format" not in answer.json["pyvmm"]["references"][0]


def test_partial_block_without_its_bitmap(ours: Ours, tmp_path: Path) -> None:
    image = child()
    file = image.build()
    file.put_int(image.bitmap_entry_offset(0), 8, 0)
    answer = asked(ours, "check", file.write(tmp_path / "image"))
    assert answer.rc == 2
    assert any("the sector bitmap block of its chunk is not" in one for one in findings(answer))


def test_locator_without_parent(ours: Ours, tmp_path: Path) -> None:
    """As qemu-img: a locator that the file parameters deny is refused."""
    image = plain(items=((v.PARENT_LOCATOR, v.locator(v.parent_pairs()), 4),))
    assert "there is no parent" in refusal(asked(ours, "info", image.write(tmp_path / "image")))


# Classes of errors that others had.


@pytest.mark.parametrize("sector", [0, 512, 4096])
@pytest.mark.parametrize("block", [0, 1, MIB, ONES4])
@pytest.mark.parametrize("size", [0, 1, 1 << 40, (1 << 63) - 1, ONES8])
def test_cve_2014_0148(sector: int, block: int, size: int, ours: Ours, tmp_path: Path) -> None:
    """Sizes of blocks, sectors and disk that make the entries of the BAT wrap, and a loop over them endless."""
    file = plain().build()
    file.put_int(ITEMS, 4, block)
    file.put_int(ITEMS + 8, 8, size)
    file.put_int(ITEMS + 32, 4, sector)
    survives(ours, file.write(tmp_path / "image"), "vhdx")


def test_instar_b1_block_larger_than_the_disk(ours: Ours, tmp_path: Path) -> None:
    """One block of 8 MiB for a disk of 1 MiB: measured is the disk."""
    path = Vhdx(MIB, 8 * MIB, {0: Block()}).write(tmp_path / "image")
    for target, required in (("raw", MIB), ("qcow2", 1_376_256)):
        answer = asked(ours, "measure", path, "-O", target)
        assert answer.json["required"] == required


def test_instar_a2_blocks_behind_the_end(ours: Ours, tmp_path: Path) -> None:
    """Entries behind the last block are nobody's data."""
    file = plain().build()
    for index in range(6, 32):
        file.put_int(BAT + 8 * index, 8, FIRST | 6)
    path = file.write(tmp_path / "image")
    assert asked(ours, "info", path).json["pyvmm"]["vhdx"]["present-blocks"] == 2
    assert asked(ours, "measure", path, "-O", "vpc").json["required"] < 5 * MIB
    assert asked(ours, "check", path).rc == 0


def test_instar_bat_count_cut_to_32_bits(ours: Ours, tmp_path: Path) -> None:
    """2^32 blocks and one: not one."""
    file = plain().build()
    file.put_int(ITEMS + 8, 8, ((1 << 32) + 1) * MIB)
    assert "the disk needs" in refusal(asked(ours, "info", file.write(tmp_path / "image")))


def test_instar_sequence_number_at_its_end(ours: Ours, tmp_path: Path) -> None:
    path = plain(sequences=(ONES8 - 1, ONES8)).write(tmp_path / "image")
    facts = asked(ours, "info", path).json["pyvmm"]["vhdx"]
    assert (facts["header"], facts["header-sequence"]) == (2, ONES8)


@pytest.mark.parametrize("seed", range(30))
def test_flips(seed: int, ours: Ours, tmp_path: Path) -> None:
    """Random bytes in random structures, with the checksums right so that they are looked at."""
    dice = random.Random(seed)
    image = child() if seed % 3 else plain(log=[_log(), _log(sequence=8)])
    file = image.build()
    starts = [*v.HEADERS, *v.REGION_TABLES, image.metadata_offset, image.metadata_offset + v.ITEMS, image.bat_offset]
    starts += [MIB + 4096 * sector for sector in range(4)]
    for _ in range(dice.randint(1, 6)):
        at = dice.choice(starts) + dice.choice([dice.randrange(16), dice.randrange(80), dice.randrange(300)])
        file.put(at, bytes([dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])]))
    if dice.random() < 0.8:
        file.seal()
        for sector in (0, 2):
            file.put(MIB + 4096 * sector, v.sealed(file.get(MIB + 4096 * sector, 8192)))
    survives(ours, file.write(tmp_path / "image"), "vhdx")


def test_work_is_bounded_by_the_file(ours: Ours, tmp_path: Path) -> None:
    """A log of almost 4 GiB and a BAT of 2 GiB, claimed by a file of 6 MiB."""
    file = plain().build()
    for header in v.HEADERS:
        file.put_int(header + 68, 4, ONES4 + 1 - MIB)
        file.put_int(header + 72, 8, 64 * MIB)
        file.put_int(header + 48, 8, 1)
    file.seal()
    answer = asked(ours, "info", file.write(tmp_path / "image"))
    assert answer.json["pyvmm"]["vhdx"]["log-state"] == "nothing-valid"
    file = plain().build()
    for table in v.REGION_TABLES:
        file.put_int(table + 40, 4, 0x7FFF_FE00)
    file.put_int(ITEMS + 8, 8, (1 << 28) * MIB - 70_000 * MIB)
    file.seal()
    assert "BAT at byte" in refusal(asked(ours, "info", file.write(tmp_path / "image")))
