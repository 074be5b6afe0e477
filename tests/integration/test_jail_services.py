"""What a jailed process does besides running machines: looking at its network, and looking up symbols."""

from __future__ import annotations

import json
import os

import pytest

from tests.integration.command import run
from tests.machines import hostile_operation, job
from vmm.boundary import Frame
from vmm.sandbox.broker import JailedRunner
from vmm.sandbox.inspection import inspect
from vmm.sandbox.layers import LAYERS, LayerError
from vmm.sandbox.network import glance

pytestmark = pytest.mark.kvm


def ignore(_: object) -> None:
    pass


def test_the_network_is_looked_at() -> None:
    """By doctor over netlink; by every run at a glance."""
    layers = json.loads(run("doctor", "--output=json").out)["sandbox"]["layers"]
    network = layers["network-namespace"]
    assert network["holds"]
    assert network["detail"].startswith("lo")
    assert network["detail"].endswith("down, 0 addresses, 0 routes, 0 neighbours (netlink)")
    with JailedRunner() as runner:
        found = {layer.name: layer for layer in runner.examine().layers}["network-namespace"]
        assert found.holds
        assert found.detail.endswith("down")


def test_a_network_that_leads_somewhere_is_none() -> None:
    """The one that the tests run in has at least a loopback that is up."""
    with pytest.raises(LayerError, match="is up"):
        glance()
    with pytest.raises(LayerError, match="is up"):
        inspect()


def test_symbols_come_from_a_process_without_kvm() -> None:
    with JailedRunner() as runner:
        outcome = runner.run(job("divide"), ignore)
        assert outcome.failure is not None
        first = outcome.failure.backtrace[0]
        assert first.function == "divide"
        assert str(first.file).endswith("instructions.h")
        assert first.line
        (looker,) = [worker for settings, worker in runner._workers.items() if settings.features == ("symbols",)]
        folder = f"/proc/{looker.process.pid}"
        with open(f"{folder}/status", encoding="ascii") as file:
            assert "Seccomp:\t2" in file.read()
        links = [os.readlink(f"{folder}/fd/{fd}") for fd in os.listdir(f"{folder}/fd")]
        assert not [link for link in links if "kvm" in link]


def test_symbols_that_cannot_be_had_leave_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with JailedRunner() as runner:
        monkeypatch.setattr("vmm.sandbox.broker.PATIENCE_SYMBOLS", 0.0)
        outcome = runner.run(job("divide"), ignore)
        assert outcome.failure is not None
        address = outcome.failure.backtrace[0].address
        assert outcome.failure.backtrace[0] == Frame(address)
        # The one that did not answer in time is gone; the machine's goes on.
        assert not [settings for settings in runner._workers if settings.features == ("symbols",)]
        assert runner.run(job("innocent"), ignore).status == 0


def test_an_operation_is_sent_once() -> None:
    with JailedRunner() as runner:
        runner.run(job("innocent"), ignore)
        (worker,) = runner._workers.values()
        assert worker.operation(hostile_operation())[0] is None
        assert worker.operation(b"another")[0] == b"another"


def test_every_layer_has_words() -> None:
    assert all(LAYERS.values())
