"""The escape table, made anew: every attempt with every layer, without seccomp, with nothing, and with each alone."""

from __future__ import annotations

import os

import pytest

from tests.escape.__main__ import as_user, read
from tests.escape.attempts import ATTEMPTS, GROUPS
from tests.escape.harness import NOTHING, Found, World, broker, make, prepare, run
from tests.escape.table import NEEDS, NOT_ALONE, ROOT, USER, Attempt
from vmm.sandbox.layers import LAYERS

BROKERS = (ROOT, USER) if os.geteuid() == 0 else (USER,)


def _found(who: str, group: str) -> list[Found]:
    prepare()
    if who == broker():
        return list(run(attempt for attempt in ATTEMPTS.values() if attempt.group == group))
    process = as_user([group])
    lines = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    return read(lines)


@pytest.mark.kvm
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("who", BROKERS)
def test_no_way_out(who: str, group: str) -> None:
    found = _found(who, group)
    assert {one.attempt for one in found} == {name for name, attempt in ATTEMPTS.items() if attempt.group == group}
    assert [one for one in found if one.deviates] == []


@pytest.mark.parametrize("who", [ROOT, USER])
def test_each_layer_is_shown(who: str) -> None:
    shown = {
        layers[0] for attempt in ATTEMPTS.values() if who in attempt.brokers for layers in attempt.expected_alone(who)
    }
    assert shown | {layer for broker, layer in NOT_ALONE if broker == who} == set(LAYERS)
    assert not shown & {layer for broker, layer in NOT_ALONE if broker == who}


@pytest.mark.parametrize("who", [ROOT, USER])
@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=list(ATTEMPTS))
def test_a_layer_changes_something(attempt: Attempt, who: str) -> None:
    """What happens with nothing closed is no proof of a layer."""
    free = attempt.expected_free(who).split("|")[0]
    for layers, outcome in attempt.expected_alone(who).items():
        assert outcome.split("|")[0] != free, layers


def test_needs_are_layers() -> None:
    for needs in NEEDS.values():
        for name, others in needs.items():
            assert {name, *others} <= set(LAYERS)


@pytest.mark.kvm
def test_an_attempt_that_succeeds_is_noticed() -> None:
    """The other way round: with nothing closed, the table would be wrong."""
    prepare()
    with World() as world:
        for name in ("open /etc/passwd", "socket: TCP", "make memory executable", "fork"):
            assert make(world, ATTEMPTS[name], ()) == "done"
        found = Found("open /etc/passwd", broker(), NOTHING, "SIGSYS", make(world, ATTEMPTS["open /etc/passwd"], ()))
    assert found.deviates
