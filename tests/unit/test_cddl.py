"""The CDDL of the contract, read by a CDDL implementation that is not ours."""

from __future__ import annotations

import cbor2
import pytest
from pycddl import Schema, ValidationError

from calltable.message import Message
from calltable.messages import MESSAGES
from tools.generate.__main__ import ROOT

SCHEMA = Schema((ROOT / "calltable" / "messages.cddl").read_text(encoding="utf-8"))
#: Requests are the map alone; everything else is a message of a report.
REPORTS = sorted(name for name in MESSAGES if not name.endswith(("-request", "-options")))

VALUES = {"uint": 7, "int": -7, "bool": True, "text": "t", "bytes": b"b"}


def sample(kind: type[Message], *, optional: bool = True) -> dict[str, object]:
    """Fields of a message that its schema accepts."""
    out: dict[str, object] = {}
    for field in kind.FIELDS:
        if field.optional and not optional:
            continue
        value = sample(field.nested, optional=optional) if field.nested is not None else VALUES[field.kind]
        out[field.key] = [value] if field.many else value
    if kind.NAME == "error":
        out["code"] = "corrupt"
    return out


@pytest.mark.parametrize("optional", [True, False], ids=["all-fields", "required-fields"])
@pytest.mark.parametrize("name", REPORTS)
def test_what_the_classes_accept_is_in_the_cddl(name: str, optional: bool) -> None:
    fields = sample(MESSAGES[name], optional=optional)
    assert MESSAGES[name].from_fields(fields).as_fields() == fields
    SCHEMA.validate_cbor(cbor2.dumps([name, fields]))


@pytest.mark.parametrize("name", [name for name in REPORTS if any(not f.optional for f in MESSAGES[name].FIELDS)])
def test_a_missing_or_wrong_field_is_in_neither(name: str) -> None:
    kind = MESSAGES[name]
    key = next(field.key for field in kind.FIELDS if not field.optional)
    fields = sample(kind)
    for broken in ({k: v for k, v in fields.items() if k != key}, {**fields, key: 1.5}):
        with pytest.raises(ValidationError):
            SCHEMA.validate_cbor(cbor2.dumps([name, broken]))
        with pytest.raises(ValueError, match=key):
            kind.from_fields(broken)


def test_an_unknown_error_code_is_not_in_the_cddl() -> None:
    with pytest.raises(ValidationError):
        SCHEMA.validate_cbor(cbor2.dumps(["error", {"code": "nonsense", "message": "m"}]))
