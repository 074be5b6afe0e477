"""File systems that fail, in a mount namespace of their own: nothing of it shows on the host or outlives the test."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.command import COMMAND, Done, environment, wait_until

if TYPE_CHECKING:
    from typing import Self

FAULTFS = Path(__file__).with_name("faultfs.py")

#: uid 1000 with the right to pass every file's permissions, so that it reaches package and KVM, and no other right.
ORDINARY_USER = (
    *("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"),
    *("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override", "--bounding-set=-all,+dac_override"),
)


def unavailable(reason: str) -> None:
    """Skip; fail where PYVMM_REQUIRE_MOUNTS=1 says that everything has to be there."""
    if os.environ.get("PYVMM_REQUIRE_MOUNTS") == "1":
        pytest.fail(f"{reason}, and PYVMM_REQUIRE_MOUNTS=1 does not allow that", pytrace=False)
    pytest.skip(reason)


class Stage:
    """A mount namespace, kept by a process that sleeps, with a tmpfs on ``folder``.

    :param folder: an empty folder; paths on the stage are those below it.
    """

    def __init__(self, folder: Path, size: str = "64M") -> None:
        if os.geteuid() != 0:
            unavailable("only root can mount")
        self.folder = folder
        #: Ended with the stage.
        self.daemons: list[subprocess.Popen[bytes]] = []
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"]
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            self.close()
            unavailable("this environment allows no mount namespace")
        try:
            self.mount(folder, "tmpfs", f"size={size},mode=0777")
        except BaseException:
            self.close()
            raise

    def path(self, path: Path) -> Path:
        """Where this process, outside, sees a path of the stage."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def inside(self, *command: str | Path) -> list[str]:
        """A command that runs on the stage."""
        return ["nsenter", f"--target={self._keeper.pid}", "--mount", *map(str, command)]

    def call(self, *command: str | Path) -> str:
        """Run a program on the stage; its output.  What it needs and does not find skips the test."""
        if shutil.which(str(command[0])) is None:
            unavailable(f"{command[0]} is not installed")
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            unavailable(f"{command[0]} does not work here: {done.stderr.strip()}")
        return done.stdout.strip()

    def mount(self, on: Path, kind: str, options: str, source: str | Path = "none") -> None:
        self.call("mkdir", "-p", on)
        self.call("mount", "-t", kind, "-o", options, source, on)

    def faults(self, on: Path) -> Faults:
        """A file system on ``on`` that fails as it is told."""
        return Faults(self, on)

    def run(self, *words: str, prefix: tuple[str, ...] = (), cwd: Path | None = None) -> Done:
        """Run ``pyvmm`` on the stage."""
        command = self.inside("env", "-C", cwd or self.folder, *prefix, *COMMAND, *words)
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment())
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def close(self) -> None:
        """End everything; the kernel takes the mounts down."""
        for process in (*self.daemons, self._keeper):
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Faults:
    """A mounted faultfs: ``folder`` behind it, ``on`` where it shows."""

    def __init__(self, stage: Stage, on: Path) -> None:
        if not os.path.exists("/dev/fuse"):
            unavailable("/dev/fuse is missing")
        self.on = on
        self._stage = stage
        self.folder = on.with_name(on.name + "-behind")
        self._rules = stage.path(on.with_name(on.name + "-rules"))
        stage.call("mkdir", "-p", on, self.folder)
        self.rules()
        self.daemon = subprocess.Popen(
            stage.inside(sys.executable, FAULTFS, self.folder, on, on.with_name(on.name + "-rules")),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        stage.daemons.append(self.daemon)
        wait_until(self._is_mounted, "the FUSE file system was not mounted")

    def _is_mounted(self) -> bool:
        if self.daemon.poll() is not None:
            assert self.daemon.stderr is not None
            text = self.daemon.stderr.read().decode().strip()
            unavailable(f"FUSE does not work here: {text.splitlines()[-1] if text else 'no reason given'}")
        inside, outside = (self._stage.path(path).stat().st_dev for path in (self.on, self.on.parent))
        return inside != outside

    def rules(self, **rules: dict[str, Any]) -> None:
        """From now on these calls fail; none is left of the rules before."""
        temporary = self._rules.with_suffix(".new")
        temporary.write_text(json.dumps(rules))
        temporary.replace(self._rules)


def fails(number: str, start: int = 0, **more: Any) -> dict[str, Any]:
    """A rule: fail with this errno from this byte on."""
    return {"errno": getattr(errno, number), "from": start, **more}
