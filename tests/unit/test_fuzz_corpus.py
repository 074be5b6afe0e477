"""The committed inputs of every fuzz target, through the same functions without atheris; and bugs that they notice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm.cbor
import vmm.cli.failures
from fuzzing import campaign, minimise, oracle, targets
from fuzzing.codec import INTERESTING, Sink, Source
from vmm.devices import mmio
from vmm.devices.budget import Meter
from vmm.devices.queue import Queue
from vmm.machine import elf, faults
from vmm.operations.files import InputFile
from vmm.sandbox import wire

Patch = pytest.MonkeyPatch


def replay(name: str) -> None:
    run = oracle.guarded(targets.load(name).run)
    for path in targets.inputs(name):
        run(path.read_bytes())


@pytest.mark.parametrize("name", targets.NAMES)
def test_no_finding(name: str) -> None:
    assert len(targets.inputs(name)) >= 5
    replay(name)


def test_the_corpora_are_small_and_named_after_their_content() -> None:
    paths = [path for name in targets.NAMES for path in targets.CORPUS.joinpath(name).iterdir()]
    assert len(paths) <= 400
    assert sum(path.stat().st_size for path in paths) <= 300_000
    for path in paths:
        assert path.name == hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    assert {path.name for path in targets.CORPUS.iterdir()} == set(targets.NAMES)
    assert {path.name for path in targets.FINDINGS.iterdir()} <= set(targets.NAMES)
    # A campaign that is pointed at that folder would fill it.
    assert all(len(path.name) < 40 for path in targets.FINDINGS.glob("*/*"))


@pytest.mark.parametrize("name", targets.NAMES)
def test_every_target_states_its_invariant(name: str) -> None:
    target = targets.load(name)
    assert target.name == name
    assert target.invariant.endswith(".")


def test_merge(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(targets, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(targets, "FINDINGS", tmp_path / "findings")
    inputs = [b"", b"\x00", b"\x01", b"\x02", b"\x61a", b"\x62bb", b"\xff", b"\xa1\x61a\x01", b"\xa1\x61a\x80"]
    campaign.write_inputs(tmp_path / "work" / "corpus", inputs)
    target = targets.load("cbor")
    count, size = campaign.merge(target, tmp_path / "work")
    kept = [path.read_bytes() for path in targets.inputs("cbor")]
    assert 0 < count == len(kept) < len(inputs)
    assert size == sum(map(len, kept))

    def steps(chosen: list[bytes]) -> set[minimise.Step]:
        return set().union(*(minimise._steps(target.run, data) for data in chosen))

    assert steps(kept) == steps(inputs)
    assert any(steps(kept[:place] + kept[place + 1 :]) < steps(kept) for place in range(count))


# Bugs, one or more for each target: without one of them the replay above would be no test.


def _budget_of_reads(patch: Patch) -> None:
    patch.setattr(Meter, "read", lambda self, count: None)


def _key_error(patch: Patch) -> None:
    def config_changed(self: object) -> None:
        raise KeyError

    patch.setattr(mmio.MmioDevice, "config_changed", config_changed)


def _wrong_direction(patch: Patch) -> None:
    chain = Queue.chain
    patch.setattr(Queue, "chain", lambda *arguments: chain(*arguments)[::-1])


def _budget_of_messages(patch: Patch) -> None:
    patch.setattr(Meter, "message", lambda self, count: None)


def _raw_output(patch: Patch) -> None:
    patch.setattr(vmm.cli.failures, "printable", lambda text: text)


def _any_window(patch: Patch) -> None:
    def segment(file: bytes, header: tuple[int, ...], *_: object) -> elf.Segment:
        return elf.Segment(header[3], header[6], file[header[2] : header[2] + header[5]], False, True)

    patch.setattr(elf, "_segment", segment)


def _raw_panic(patch: Patch) -> None:
    patch.setattr(faults, "escape", lambda text: text.decode("latin-1"))


def _any_value(patch: Patch) -> None:
    patch.setattr(vmm.cbor, "_wrong", lambda *_: None)


def _other_texts(patch: Patch) -> None:
    patch.setattr(wire, "_text", lambda value: value + "!")


def _left_open(patch: Patch) -> None:
    patch.setattr(InputFile, "close", lambda self: None)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("device", _budget_of_reads),
        ("device", _key_error),
        ("queue", _wrong_direction),
        ("control", _budget_of_messages),
        ("report", _raw_output),
        ("elf", _any_window),
        ("fault", _raw_panic),
        ("cbor", _any_value),
        ("arguments", _raw_output),
        ("wire", _other_texts),
        ("bundle", _left_open),
    ],
)
def test_a_planted_bug_is_noticed(name: str, plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, AttributeError, KeyError, TypeError, UnicodeError, ValueError)):
        replay(name)


def test_memory_out_of_proportion_is_noticed() -> None:
    def run(data: bytes) -> None:
        assert len(bytearray(b"x" * (2 * oracle.GROWTH_KIB * 1024))) > len(data)

    with pytest.raises(AssertionError, match="KiB of memory"):
        oracle.guarded(run)(b"")


@given(st.lists(st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from(INTERESTING), st.integers(0, 300))))
def test_numbers_are_read_as_they_were_written(numbers: list[int]) -> None:
    source = Source(bytes(Sink().number(*numbers).data))
    assert [source.number() for _ in numbers] == numbers
    assert not source
    assert source.number() == 0
