"""The contract: generated files are current, records agree in every language, messages are validated."""

from __future__ import annotations

import pickle
import re
import shutil
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calltable
from calltable import _generated
from calltable.message import UINT_MAX, Field, Message, SchemaError
from calltable.messages import MESSAGES, Error
from tools.generate import model
from tools.generate.__main__ import ROOT, outputs
from tools.generate.header import header


@pytest.mark.parametrize("name", sorted(outputs()))
def test_generated_file_is_current(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == outputs()[name], "run `make generate`"


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


@pytest.mark.parametrize("record", [s.name for s in model.load().structs])
def test_python_format_has_the_size_of_the_record(record: str) -> None:
    upper = _snake(record).upper()
    last = next(s for s in model.load().structs if s.name == record).fields[-1]
    size = struct.calcsize(getattr(calltable, f"{upper}_FORMAT"))
    if last.type[0].isupper():
        # A list of records: the format ends before it.
        size += last.count * struct.calcsize(getattr(calltable, f"{_snake(last.type).upper()}_FORMAT"))
    assert size == getattr(calltable, f"{upper}_SIZE")


def test_c_compiler_agrees_with_sizes_and_offsets(tmp_path: Path) -> None:
    definition = model.load()
    lines = ["#include <stddef.h>", '#include "pyvmm.h"']
    for record in definition.structs:
        c_name = f"struct pyvmm_{_snake(record.name)}"
        lines.append(f'_Static_assert(sizeof({c_name}) == {definition.struct_size(record.name)}, "{record.name}");')
        offset = 0
        for field in record.fields:
            lines.append(f'_Static_assert(offsetof({c_name}, {field.name}) == {offset}, "{field.name}");')
            offset += definition.type_size(field.type) * field.count
    for index, entry in enumerate(definition.entries):
        lines.append(f'_Static_assert(offsetof(struct pyvmm_table, {entry.name}) == {16 + 8 * index}, "{entry.name}");')
    source = tmp_path / "sizes.c"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    compiler = [shutil.which("cc") or ""] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    include = ROOT / "calltable" / "include"
    command = [*compiler, "-std=c11", "-Wall", "-Werror", "-c", f"-I{include}", "-o", str(tmp_path / "o"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_entries_are_ordered_by_the_version_that_brought_them() -> None:
    since = [minor for _, minor in _generated.ENTRIES]
    assert since == sorted(since)
    assert max(since) == _generated.TABLE_MINOR


def test_header_of_an_older_minor_is_a_prefix_of_the_table() -> None:
    old = header(model.at_minor(model.load(), 0))
    assert "(*write_many)" not in old
    assert "budget" in old
    assert "#define PYVMM_TABLE_MINOR 0x0" in old


def test_memory_regions_do_not_overlap() -> None:
    g = _generated
    regions = sorted(
        [
            (g.CONTROL_BASE, g.PAGE_SIZE),
            (g.TRAP_BASE, g.PAGE_SIZE),
            (g.VIRTIO_BASE, g.VIRTIO_STRIDE * g.MAX_DEVICES),
            (g.SYSTEM_BASE, g.SYSTEM_SIZE),
            (g.RUNTIME_BASE, g.RUNTIME_SIZE),
            (g.OPERATION_BASE, g.OPERATION_SIZE),
            (g.BOOT_INFO, g.PAGE_SIZE),
            (g.REQUEST_BASE, g.REQUEST_SIZE),
            (g.QUEUES_BASE, g.QUEUE_STRIDE * g.MAX_DEVICES),
            (g.STACK_BASE, g.STACK_SIZE),
            (g.KERNEL_STACK_BASE, g.KERNEL_STACK_SIZE),
            (g.ARENA_BASE, g.ARENA_HOT),
            (g.COLD_BASE, g.DEFAULT_MEMORY),
        ]
    )
    for (start, size), (following, _) in pairwise(regions):
        assert start % g.PAGE_SIZE == 0
        assert start + size <= following
    # Guard pages: nothing next to the stack or the hot arena.
    edges = {start for start, _ in regions} | {start + size for start, size in regions}
    for base, size in ((g.STACK_BASE, g.STACK_SIZE), (g.ARENA_BASE, g.ARENA_HOT)):
        assert not {base - g.PAGE_SIZE // 2, base + size + g.PAGE_SIZE // 2} & edges
        assert all(not base - g.PAGE_SIZE < edge < base for edge in edges)


class Sample(Message):
    """A message of every kind of field."""

    __slots__ = ("data", "flag", "free", "many", "name", "nested", "signed", "size")
    NAME = "sample"
    FIELDS = (
        Field("size", "size", "uint", False, False, None),
        Field("signed", "signed", "int", True, False, None),
        Field("flag", "flag", "bool", True, False, None),
        Field("name", "name", "text", True, False, None),
        Field("data", "data", "bytes", True, False, None),
        Field("free", "free", "any", True, False, None),
        Field("many", "many", "uint", True, True, None),
        Field("nested", "nested", "message", True, False, Error),
    )
    size: int


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "size is missing"),
        ({"size": -1}, "size is int"),
        ({"size": UINT_MAX + 1}, "size is int"),
        ({"size": True}, "size is bool"),
        ({"size": 1.0}, "size is float"),
        ({"size": 1, "flag": 1}, "flag is int"),
        ({"size": 1, "name": b"x"}, "name is bytes"),
        ({"size": 1, "many": 3}, "many is int, not an array"),
        ({"size": 1, "many": [1, "2"]}, "many is str"),
        ({"size": 1, "nested": {"code": "io"}}, "error: message is missing"),
        ({"size": 1, "nested": 5}, "nested is int"),
        ({"size": 1, "extra\x1b[2J": 5}, r"unknown key 'extra\x1b[2J'"),
        ({"size": 1, 7: 5}, "unknown key 7"),
    ],
)
def test_a_message_of_the_wrong_shape_is_refused(fields: dict[object, object], complaint: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(complaint)):
        Sample.from_fields(fields)


@given(
    st.fixed_dictionaries(
        {"size": st.integers(0, UINT_MAX)},
        optional={
            "signed": st.integers(-(1 << 63), UINT_MAX),
            "flag": st.booleans(),
            "name": st.text(max_size=8),
            "data": st.binary(max_size=8),
            "many": st.lists(st.integers(0, UINT_MAX), max_size=4),
            "nested": st.fixed_dictionaries({"code": st.text(), "message": st.text()}),
        },
    )
)
def test_messages_survive_the_way_there_and_back(fields: dict[str, object]) -> None:
    message = Sample.from_fields(fields)
    assert message.as_fields() == fields
    again = Sample.from_fields(cbor2.loads(cbor2.dumps(message.as_fields())))
    assert again == message
    assert hash(again) == hash(message)


def test_messages_are_frozen_and_picklable() -> None:
    error = Error(code="io", message="x", offset=5)
    with pytest.raises(AttributeError):
        error.code = "y"
    with pytest.raises(AttributeError):
        del error.code
    assert pickle.loads(pickle.dumps(error)) == error
    assert repr(error) == "Error(code='io', message='x', offset=5)"
    assert error != Error(code="io", message="x")


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_keys_are_written_in_deterministic_order(name: str) -> None:
    values = {"uint": 1, "int": -1, "bool": True, "text": "t", "bytes": b"b", "any": None}

    def sample(kind: type[Message]) -> dict[str, object]:
        out: dict[str, object] = {}
        for field in kind.FIELDS:
            value = sample(field.nested) if field.nested is not None else values[field.kind]
            if value is not None:
                out[field.key] = [value] if field.many else value
        return out

    message = MESSAGES[name].from_fields(sample(MESSAGES[name]))
    encoded = cbor2.dumps(message.as_fields())
    assert encoded == cbor2.dumps(message.as_fields(), canonical=True)
