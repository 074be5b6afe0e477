"""Hosts that lack layers of the jail: which are named, who refuses, and who runs all the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import vmm
from tests.integration.command import COMMAND, Done, environment, run
from tests.ordinary_user import ROOT
from vmm.errors import EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE, SandboxError
from vmm.sandbox.broker import JailedRunner
from vmm.sandbox.layers import LAYERS, NAMESPACES

pytestmark = pytest.mark.kvm

#: What a host without unprivileged user namespaces leaves to an ordinary user.
WITHOUT_NAMESPACES = {*NAMESPACES, "empty-root", "no-capabilities"}
#: What it leaves to root of a user namespace (in some containers), who can be nobody else there.
AS_ROOT_OF_A_NAMESPACE = {"user-namespace", "identity"}

#: As whom -> how to become that, in a user namespace where no further ones can be made; and what is missing.  No
#: setting of the host changes: the limit is that namespace's own.
LACKING = {
    "an ordinary user": ("--map-user=1000", WITHOUT_NAMESPACES),
    "root of a namespace": ("--map-root-user", AS_ROOT_OF_A_NAMESPACE),
}


def lacking(who: str, *words: str) -> Done:
    """Run ``pyvmm`` where layers are missing."""
    option = LACKING[who][0]
    inside = "exec"
    if option == "--map-root-user":
        inside = "echo 0 > /proc/sys/user/max_user_namespaces && exec"
    command = ["unshare", "--user", option, "sh", "-c", f'{inside} "$@"', "sh", *COMMAND, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment(), cwd=ROOT
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


def test_every_layer_holds_here(image: Path) -> None:
    """Or the tests of this suite would prove less than they say."""
    done = run("run", "info", "--require-sandbox", str(image))
    assert (done.status, done.err) == (EXIT_OK, "")


@pytest.mark.parametrize("who", LACKING)
def test_doctor_names_what_is_missing(who: str) -> None:
    missing = LACKING[who][1]
    done = lacking(who, "doctor", "--output", "json")
    assert done.status == EXIT_OK
    assert done.json["sandbox"]["complete"] is False
    sandbox = done.json["sandbox"]["layers"]
    assert list(sandbox) == list(LAYERS)
    assert {name for name, layer in sandbox.items() if not layer["holds"]} == missing
    assert all(sandbox[name]["detail"] for name in missing)
    assert done.json["usable"] is True

    text = lacking(who, "doctor")
    assert text.status == EXIT_OK
    lines = [line.strip() for line in text.out.splitlines() if ": MISSING (" in line]
    assert {line.split(":")[0] for line in lines} == missing
    assert text.out.endswith("machines run here\n")


@pytest.mark.parametrize("who", LACKING)
def test_a_run_goes_on_with_what_there_is(who: str, image: Path) -> None:
    done = lacking(who, "run", "info", "--output", "json", str(image))
    assert (done.status, done.err) == (EXIT_OK, "")
    assert done.json["format"] == "raw"
    verbose = lacking(who, "run", "info", "-v", str(image))
    assert verbose.status == EXIT_OK
    for name in LACKING[who][1]:
        assert f"sandbox: {name}: MISSING (" in verbose.err


@pytest.mark.parametrize("who", LACKING)
def test_who_requires_it_refuses(who: str, image: Path) -> None:
    done = lacking(who, "run", "info", "--require-sandbox", str(image))
    assert done.status == EXIT_UNAVAILABLE
    line = done.one_line()
    assert "--require-sandbox does not allow that: " in line
    for name in LAYERS:
        assert (f"{name} (" in line) == (name in LACKING[who][1])
    as_json = lacking(who, "run", "info", "--require-sandbox", "--output", "json", str(image))
    assert as_json.status == EXIT_UNAVAILABLE
    assert as_json.json["error"]["code"] == "sandbox"
    assert as_json.json["error"]["exit-status"] == EXIT_UNAVAILABLE


def test_the_api_refuses_and_goes_on(image: Path) -> None:
    """A layer that does not close: here because nothing filters without no-new-privs."""

    def without(required: bool) -> vmm.Machine:
        layers = tuple(name for name in LAYERS if name != "no-new-privs")
        return vmm.Machine(runner=JailedRunner(layers=layers, require=required))

    with without(True) as machine, pytest.raises(SandboxError, match=r"are missing.*seccomp \(it needs no-new-privs\)"):
        machine.info(str(image))
    with without(False) as machine:
        assert machine.info(str(image)).format == "raw"
    with vmm.Machine(sandbox="require") as machine:
        assert machine.info(str(image)).format == "raw"


def test_off_is_said_loudly(image: Path) -> None:
    done = run("run", "info", "--output=json", "--sandbox=off", str(image))
    assert done.status == EXIT_OK
    assert done.json["format"] == "raw"
    assert done.err == (
        "pyvmm: warning: --sandbox=off: the process that runs the machine has all the rights of this user\n"
    )
    # Also for those who want no output.
    assert run("run", "info", "-q", "--sandbox=off", str(image)).err == done.err
    assert run("run", "info", "--sandbox=on", str(image)).err == ""


def test_off_is_said_loudly_by_the_api(image: Path) -> None:
    with (
        pytest.warns(RuntimeWarning, match="sandbox=False: .* has all the rights of this user"),
        vmm.Machine(sandbox=False) as machine,
    ):
        assert machine.info(str(image)).format == "raw"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sandbox=off", "--require-sandbox"), "--sandbox=off and --require-sandbox contradict each other"),
        (("--sandbox=maybe",), "--sandbox takes on or off, not 'maybe'"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, image: Path) -> None:
    done = run("run", "info", *words, str(image))
    assert done.status == EXIT_USAGE
    assert done.one_line() == f"pyvmm: {message}\n"
    assert json.loads(run("run", "info", "--output=json", *words, str(image)).out)["error"]["message"] == message
