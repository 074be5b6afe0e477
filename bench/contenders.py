"""What is measured: our machine cold and warm, the command line, and what stands beside each of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.clock import Contender
from vmm.boundary import Event, Job, Outcome, Runner, Usage
from vmm.machine.runner import MachineRunner
from vmm.operations.create import create
from vmm.operations.measure import measure
from vmm.operations.session import Session
from vmm.sandbox.broker import JailedRunner

#: name -> (driver, bytes, creation options) of the images that are measured.
IMAGES: dict[str, tuple[str, int, dict[str, str]]] = {
    "vpc-fixed": ("vpc", 16 << 20, {"subformat": "fixed"}),
    "vpc-dynamic": ("vpc", 1 << 30, {}),
    "qcow2": ("qcow2", 64 << 20, {"preallocation": "metadata"}),
    "raw": ("raw", 64 << 20, {}),
}


class Recording:
    """A runner that remembers what the last run used."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.usage = Usage()

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        outcome = self._runner.run(job, on_event)
        self.usage = outcome.usage
        return outcome

    def close(self) -> None:
        self._runner.close()


@dataclass(frozen=True)
class Image:
    name: str
    driver: str
    path: Path


class Bench:
    """The images, a warm and a cold session, and the contenders made of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.warm = Recording(MachineRunner(warm=True))
        self.cold = Recording(MachineRunner(warm=False))
        self._warm_session = Session(self.warm)
        self._cold_session = Session(self.cold)
        self.jailed = Recording(JailedRunner())
        self._jailed_session = Session(self.jailed)
        #: What closing each jail took, in nanoseconds.
        self.closings: list[int] = []
        self.images = [self._image(name) for name in IMAGES]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.warm.close()
        self.cold.close()
        self.jailed.close()

    def _image(self, name: str) -> Image:
        driver, size, options = IMAGES[name]
        path = self._folder / f"{name}.img"
        create(self._warm_session, str(path), driver, size=size, options=options)
        return Image(name, driver, path)

    def measure_warm(self, image: Image) -> Contender:
        """One measurement on the machine that stays."""
        return Contender(f"warm {image.name}", lambda: self._measure(self._warm_session, image), inner=5)

    def measure_cold(self, image: Image) -> Contender:
        """One measurement on a machine that is made for it and thrown away."""
        return Contender(f"cold {image.name}", lambda: self._measure(self._cold_session, image))

    def measure_jailed(self, image: Image) -> Contender:
        """One measurement in the jailed process that stays: what every caller of the library gets."""
        return Contender(f"jailed {image.name}", lambda: self._measure(self._jailed_session, image), inner=5)

    def start_jail(self) -> Contender:
        """A process started, its jail closed, and ended again; no machine."""

        def work() -> None:
            with JailedRunner() as runner:
                self.closings.append(runner.examine().close_ns)

        return Contender("jail: start, close, end", work)

    @staticmethod
    def _measure(session: Session, image: Image) -> object:
        return measure(session, str(image.path), target="qcow2", format=image.driver)

    def exits(self, image: Image) -> Usage:
        """What one warm measurement uses."""
        self._measure(self._warm_session, image)
        return self.warm.usage


def qemu_img(image: Image) -> Contender | None:
    """A qemu-img process for the same question; None where it is not installed."""
    program = shutil.which("qemu-img")
    if program is None:
        return None
    return _process(f"qemu-img {image.name}", program, *_arguments(image))


def command_line(image: Image, *options: str) -> Contender:
    """The installed command for the same question."""
    name = " ".join(("pyvmm", *options, image.name))
    return _process(name, str(Path(sys.executable).with_name("pyvmm")), "run", *_arguments(image), *options)


def bare_interpreter() -> Contender:
    """A start of this Python that does nothing."""
    return _process("python -c pass", sys.executable, "-c", "pass")


def _arguments(image: Image) -> tuple[str, ...]:
    return ("measure", "-f", image.driver, "-O", "qcow2", "--output=json", str(image.path))


def _process(name: str, *command: str) -> Contender:
    return Contender(
        name, lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
