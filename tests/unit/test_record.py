"""Records: what they share with real dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from vmm.boundary import Failure, FailureKind, Frame, Limits
from vmm.record import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Point:
    """Two required fields, two with defaults."""

    x: int
    y: int
    name: str = "p"
    tags: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.x + self.y


def test_init() -> None:
    point = Point(1, y=2)
    assert (point.x, point.y, point.name, point.tags, point.total) == (1, 2, "p", {}, 3)
    assert point.tags is not Point(1, 2).tags
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(1, 2, z=3)  # type: ignore[call-arg]


def test_value_semantics() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    other: object = (1, 2)
    assert Point(1, 2) != other
    assert repr(Point(1, 2)) == "Point(x=1, y=2, name='p', tags={})"
    assert hash(Limits()) == hash(Limits())
    assert copy.copy(Point(1, 2)) == Point(1, 2)
    assert pickle.loads(pickle.dumps(Limits(timeout=3))) == Limits(timeout=3)
    assert replace(Point(1, 2), x=5) == Point(5, 2)


def test_frozen_and_slotted() -> None:
    point = Point(1, 2)
    with pytest.raises(AttributeError):
        point.x = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    assert not hasattr(point, "__dict__")


def test_dataclass_functions() -> None:
    assert dataclasses.is_dataclass(Point)
    assert dataclasses.asdict(Point(1, 2, tags={"a": 1})) == {"x": 1, "y": 2, "name": "p", "tags": {"a": 1}}
    assert [entry.name for entry in dataclasses.fields(Failure)][:2] == ["kind", "message"]
    assert dataclasses.replace(Point(1, 2), name="q").name == "q"


def test_patterns() -> None:
    match Frame(5, "f"):
        case Frame(address, function=name):
            assert (address, name) == (5, "f")


def test_failure_kinds() -> None:
    assert FailureKind.PANIC == "panic"
    assert FailureKind("panic") == FailureKind.PANIC
    assert FailureKind.PAGE_FAULT.value == "page-fault"


def test_only_what_it_makes() -> None:
    with pytest.raises(TypeError, match="frozen, slotted"):
        dataclass(frozen=False, slots=True)
