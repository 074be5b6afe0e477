"""Messages of a report: name, fields and schema, or one typed error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calltable.messages import MESSAGES, Error, Measure
from tests.unit.fake import payload
from vmm.cbor import encode
from vmm.errors import GuestFailedError
from vmm.operations.decode import decode_envelope, decode_message

ALL = frozenset(MESSAGES)
MEASURE = Measure(required=1, fully_allocated=2, target="raw", virtual_size=3)


def test_typed() -> None:
    assert decode_message(payload(MEASURE), frozenset(("measure",))) == MEASURE


@pytest.mark.parametrize(
    "item",
    [
        pytest.param([], id="empty"),
        pytest.param(["measure"], id="no-fields"),
        pytest.param(["measure", {}, 1], id="three"),
        pytest.param({"measure": {}}, id="map"),
        pytest.param(7, id="number"),
        pytest.param([7, {}], id="name-is-number"),
        pytest.param(["", {}], id="no-name"),
        pytest.param(["m" * 65, {}], id="long-name"),
        pytest.param(["\x1b[31m", {}], id="escape-in-name"),
        pytest.param(["measure", []], id="fields-is-array"),
    ],
)
def test_no_envelope(item: object) -> None:
    with pytest.raises(GuestFailedError):
        decode_envelope(encode(item))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "missing"),
        ({**MEASURE.as_fields(), "extra": 1}, "unknown key"),
        ({**MEASURE.as_fields(), "required": -1}, "required"),
        ({**MEASURE.as_fields(), "required": "1"}, "required"),
        ({**MEASURE.as_fields(), "required": True}, "required"),
        ({**MEASURE.as_fields(), "required": None}, "required"),
    ],
)
def test_against_the_schema(fields: dict[str, object], text: str) -> None:
    with pytest.raises(GuestFailedError, match=text):
        decode_message(encode(["measure", fields]), ALL)


def test_not_allowed_here() -> None:
    with pytest.raises(GuestFailedError, match="no message of this operation"):
        decode_message(payload(MEASURE), frozenset(("info",)))
    with pytest.raises(GuestFailedError, match="no message of this operation"):
        decode_message(encode(["invented", {}]), frozenset(("invented",)))


@given(st.binary(max_size=300))
def test_arbitrary_payloads(data: bytes) -> None:
    # Hypothesis would have to write a whole valid message by chance.
    with pytest.raises(GuestFailedError):
        decode_message(data, ALL)


@given(st.sampled_from(sorted(MESSAGES)), st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=3)))
def test_arbitrary_fields(name: str, fields: dict[str, object]) -> None:
    try:
        data = encode([name, fields])
    except UnicodeEncodeError:
        return
    with contextlib.suppress(GuestFailedError):
        assert name == decode_message(data, ALL).NAME


def test_error_message() -> None:
    error = Error(code="corrupt", message="it is", offset=7)
    assert decode_message(payload(error), ALL) == error
