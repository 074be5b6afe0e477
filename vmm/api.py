"""The Python API: one function an operation, and :class:`Machine` for many images on one warm machine.

Every function opens its files, runs the operation in a sandbox of its own and answers a frozen, typed report; whatever
goes wrong is a :class:`vmm.VmmError`.  ``docs/api.md`` shows all of it, and the tests run its examples.
"""

from __future__ import annotations

import os

from vmm.boundary import KVM_DEVICE, Limits
from vmm.errors import UsageError
from vmm.operations.foreign import load_elf, run_foreign
from vmm.operations.info import DEFAULT_QEMU_VERSION
from vmm.operations.session import OPERATIONS, Session, is_path
from vmm.operations.text import printable
from vmm.record import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Any, Literal, Self, overload

    from vmm.boundary import Runner
    from vmm.cbor import Value
    from vmm.operations.check import CheckReport
    from vmm.operations.create import CreateReport
    from vmm.operations.info import InfoReport
    from vmm.operations.map import Extent, MapReport
    from vmm.operations.measure import MeasureReport
    from vmm.operations.options import OptionValue
    from vmm.operations.resize import ResizeReport

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def _passphrase(given: bytes | None, path: Path | None) -> bytes | None:
    """The one that was given, if any.

    :raises UsageError: both were.
    """
    if path is None:
        return given
    if given is not None:
        raise UsageError("luks_passphrase and luks_passphrase_file contradict each other")
    from vmm.operations.passphrase import read_passphrase

    return read_passphrase(os.fsdecode(path))


@dataclass(frozen=True, slots=True)
class ForeignMessage:
    """One message of an operation of one's own: decoded, not checked against any schema."""

    name: str
    fields: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class ForeignAnswer:
    """What an operation of one's own answered."""

    #: The status it ended with; 0 is success.
    status: int
    messages: tuple[ForeignMessage, ...]


def _directories(paths: Path | Iterable[Path]) -> tuple[str, ...]:
    """Paths as text; a single one is no list of its letters."""
    return tuple(map(os.fsdecode, (paths,) if isinstance(paths, (str, bytes, os.PathLike)) else paths))


class Machine:
    """A warm machine: booted at its first run, reset between runs, for as many images as you like.  A context manager.

    >>> with vmm.Machine(timeout=10) as machine:  # doctest: +SKIP
    ...     sizes = [machine.measure(path, target="qcow2").required for path in paths]

    One run at a time; machines of different threads do not know of each other.

    :param timeout: wall time of each run in seconds.
    :param limits: every limit of each run; ``timeout`` overrides the one in it.
    :param log_level: of the guest's log, 0 off to 4 debug; ``on_log`` gets level and line.
    :param on_progress: gets work done and total work.
    :param follow_symlinks: follow a symbolic link in the last component of a path.
    :param kvm: path of the KVM device.
    :param sandbox: ``True`` runs the machine in a jailed process; ``"require"`` refuses with :class:`vmm.SandboxError`
        where a layer of the jail is missing; ``False`` runs it in this process, with a :class:`RuntimeWarning`.
    :param runner: what runs the jobs, instead of a machine of one's own; closed with this object.
    """

    def __init__(
        self,
        *,
        timeout: float | None = None,
        limits: Limits | None = None,
        log_level: int = 0,
        on_log: Callable[[int, str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        follow_symlinks: bool = False,
        kvm: str = KVM_DEVICE,
        sandbox: bool | Literal["require"] = True,
        runner: Runner | None = None,
    ) -> None:
        chosen = limits if limits is not None else Limits()
        if timeout is not None:
            chosen = replace(chosen, timeout=timeout)
        if runner is None and sandbox:
            from vmm.sandbox.broker import JailedRunner

            runner = JailedRunner(kvm_path=kvm, require=sandbox == "require")
        elif runner is None:
            import warnings

            from vmm.machine.runner import MachineRunner

            text = "sandbox=False: this process runs the machine, and has all the rights of this user"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            runner = MachineRunner(kvm=kvm)
        self._runner = runner
        self._follow = follow_symlinks
        self._session = Session(runner, limits=chosen, log_level=log_level, on_log=on_log, on_progress=on_progress)

    def info(
        self,
        path: Path,
        *,
        format: str | None = None,  # noqa: A002  (qemu-img's word)
        qemu_version: str = DEFAULT_QEMU_VERSION,
        chain: bool = False,
        allow_dirs: Path | Iterable[Path] = (),
        backing_chain: bool = False,
        luks_passphrase: bytes | None = None,
        luks_passphrase_file: Path | None = None,
    ) -> InfoReport:
        """What an image is, and what it refers to.  See :func:`vmm.operations.info.info`.

        :param luks_passphrase_file: its bytes, all of them, are the passphrase, instead of ``luks_passphrase``.
        """
        from vmm.operations.info import info as run

        return run(
            self._session,
            os.fsdecode(path),
            format=format,
            qemu_version=qemu_version,
            follow_symlinks=self._follow,
            chain=chain,
            allow_dirs=_directories(allow_dirs),
            backing_chain=backing_chain,
            luks_passphrase=_passphrase(luks_passphrase, luks_passphrase_file),
        )

    def measure(
        self,
        path: Path | None = None,
        *,
        target: str = "raw",
        format: str | None = None,  # noqa: A002  (qemu-img's word)
        size: int | str | None = None,
        chain: bool = False,
        allow_dirs: Path | Iterable[Path] = (),
        **options: OptionValue,
    ) -> MeasureReport:
        """How large the file of a conversion would be, in bytes.  See :func:`vmm.operations.measure.measure`.

        :param size: bytes, or text such as ``10G``: of an empty disk, instead of ``path``.
        """
        from vmm.operations.measure import measure as run

        return run(
            self._session,
            None if path is None else os.fsdecode(path),
            target=target,
            format=format,
            size=size,
            options=options,
            follow_symlinks=self._follow,
            chain=chain,
            allow_dirs=_directories(allow_dirs),
        )

    def check(
        self,
        path: Path,
        *,
        format: str | None = None,  # noqa: A002  (qemu-img's word)
        chain: bool = False,
        allow_dirs: Path | Iterable[Path] = (),
    ) -> CheckReport:
        """Whether an image is consistent.  See :func:`vmm.operations.check.check`."""
        from vmm.operations.check import check as run

        return run(
            self._session,
            os.fsdecode(path),
            format=format,
            follow_symlinks=self._follow,
            chain=chain,
            allow_dirs=_directories(allow_dirs),
        )

    def map(
        self,
        path: Path,
        *,
        format: str | None = None,  # noqa: A002  (qemu-img's word)
        start: int | str = 0,
        length: int | str | None = None,
        qemu_version: str = DEFAULT_QEMU_VERSION,
        mapped_only: bool = False,
        exact: bool = False,
        on_extents: Callable[[tuple[Extent, ...]], None] | None = None,
        chain: bool = False,
        allow_dirs: Path | Iterable[Path] = (),
        picture: Path | None = None,
    ) -> MapReport:
        """Where the bytes of an image's disk are stored.  See :func:`vmm.operations.map.map_image`.

        :param start: byte of the disk to begin at, and ``length`` bytes at most; a number, or text such as ``10M``.
        :param on_extents: gets the extents as they come, some at a time, instead of the report.
        :param picture: file to draw the map into, ``.png`` (needs the extra ``picture``) or ``.svg``; it appears whole
            or not at all.
        """
        from vmm.operations.map import map_image

        def run(take: Callable[[tuple[Extent, ...]], None] | None) -> MapReport:
            return map_image(
                self._session,
                os.fsdecode(path),
                format=format,
                start=start,
                length=length,
                qemu_version=qemu_version,
                mapped_only=mapped_only,
                exact=exact,
                on_extents=take,
                follow_symlinks=self._follow,
            )

        if picture is None:
            return run(on_extents)
        from vmm.picture.picture import Picture

        with Picture(os.fsdecode(picture), os.fsdecode(path), follow_symlinks=self._follow) as drawn:
            report = run(drawn.before(on_extents))
            drawn.add(report.extents)
            drawn.finish(report)
        return report

    def create(
        self,
        path: Path,
        format: str = "raw",  # noqa: A002  (qemu-img's word)
        size: int | str | None = None,
        *,
        backing_unsafe: bool = False,
        force: bool = False,
        seed: str | None = None,
        unix_time: int | None = None,
        uuid: bytes | None = None,
        entropy: bytes | None = None,
        luks_passphrase: bytes | None = None,
        luks_passphrase_file: Path | None = None,
        **options: OptionValue,
    ) -> CreateReport:
        """Plan and write an empty image.  See :func:`vmm.operations.create.create`.

        :param size: bytes of the virtual disk, or text such as ``10G``.
        :param force: replace an existing file, which is kept otherwise.
        :param luks_passphrase_file: its bytes, all of them, are the passphrase, instead of ``luks_passphrase``.
        """
        from vmm.operations.create import create as run

        return run(
            self._session,
            os.fsdecode(path),
            format,
            size=size,
            options=options,
            backing_unsafe=backing_unsafe,
            force=force,
            seed=seed,
            unix_time=unix_time,
            uuid=uuid,
            entropy=entropy,
            luks_passphrase=_passphrase(luks_passphrase, luks_passphrase_file),
            follow_symlinks=self._follow,
        )

    def resize(
        self,
        path: Path,
        size: int | str,
        *,
        format: str | None = None,  # noqa: A002  (qemu-img's word)
        shrink: bool = False,
        preallocation: str | None = None,
        unix_time: int | None = None,
        share: bool = False,
    ) -> ResizeReport:
        """Give an image another virtual size, in place.  See :func:`vmm.operations.resize.resize`.

        :param size: bytes, or text such as ``10G``; with a sign in front (``+1G``) the difference.
        """
        from vmm.operations.resize import resize as run

        return run(
            self._session,
            os.fsdecode(path),
            size,
            format=format,
            shrink=shrink,
            preallocation=preallocation,
            unix_time=unix_time,
            follow_symlinks=self._follow,
            share=share,
        )

    def run_elf(self, elf: Path, *paths: Path, **options: str) -> ForeignAnswer:
        """Run an operation of one's own: a static ELF file that speaks the call table, one device for each path.

        :raises OperationLoadError: the file is no operation that this machine can run.
        :raises VmmError: see :mod:`vmm.errors`.
        """
        messages: list[ForeignMessage] = []
        name = os.fsdecode(elf)
        report = run_foreign(
            self._session,
            load_elf(name),
            name,
            [os.fsdecode(path) for path in paths],
            lambda kind, fields: messages.append(ForeignMessage(kind, fields)),
            options=options,
            follow_symlinks=self._follow,
        )
        return ForeignAnswer(report.status, tuple(messages))

    if TYPE_CHECKING:

        @overload
        def run(self, operation: Literal["info"], path: Path, **options: Any) -> InfoReport: ...
        @overload
        def run(self, operation: Literal["measure"], path: Path | None = None, **options: Any) -> MeasureReport: ...
        @overload
        def run(self, operation: Literal["check"], path: Path, **options: Any) -> CheckReport: ...
        @overload
        def run(self, operation: Literal["map"], path: Path, **options: Any) -> MapReport: ...
        @overload
        def run(self, operation: Literal["create"], path: Path, *more: Any, **options: Any) -> CreateReport: ...
        @overload
        def run(self, operation: Literal["resize"], path: Path, *more: Any, **options: Any) -> ResizeReport: ...
        @overload
        def run(self, operation: str, *paths: Path, **options: Any) -> Any: ...

    def run(self, operation: str, *paths: Any, **options: Any) -> Any:
        """Run an operation by name, or an ELF file by its path; arguments as for the method of that name.

        :raises UsageError: there is no such operation.
        """
        if is_path(operation):
            return self.run_elf(operation, *paths, **options)
        if operation not in OPERATIONS:
            from vmm.errors import UsageError

            raise UsageError(f"There is no operation '{printable(operation)}'; there are {', '.join(OPERATIONS)}")
        return getattr(self, operation)(*paths, **options)

    def close(self) -> None:
        """Give up the machine.  Idempotent."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def info(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    qemu_version: str = DEFAULT_QEMU_VERSION,
    chain: bool = False,
    allow_dirs: Path | Iterable[Path] = (),
    backing_chain: bool = False,
    luks_passphrase: bytes | None = None,
    luks_passphrase_file: Path | None = None,
    timeout: float | None = None,
    limits: Limits | None = None,
) -> InfoReport:
    """What an image is, and what it refers to, from a machine of its own.

    :param chain: follow the files that the image names, below its own directory and ``allow_dirs``.
    :param backing_chain: follow, and report on every image behind this one as well.
    :param timeout: wall time of the run in seconds, instead of the one in ``limits``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    with Machine(timeout=timeout, limits=limits) as machine:
        return machine.info(
            path,
            format=format,
            qemu_version=qemu_version,
            chain=chain,
            allow_dirs=allow_dirs,
            backing_chain=backing_chain,
            luks_passphrase=luks_passphrase,
            luks_passphrase_file=luks_passphrase_file,
        )


def measure(
    path: Path | None = None,
    *,
    target: str = "raw",
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    size: int | str | None = None,
    chain: bool = False,
    allow_dirs: Path | Iterable[Path] = (),
    timeout: float | None = None,
    limits: Limits | None = None,
    **options: OptionValue,
) -> MeasureReport:
    """How large the file of a conversion would be, in bytes, from a machine of its own.

    :param chain: follow the files that the image names, below its own directory and ``allow_dirs``.
    :param size: bytes, or text such as ``10G``: of an empty disk, instead of ``path``.
    :param timeout: wall time of the run in seconds, instead of the one in ``limits``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    with Machine(timeout=timeout, limits=limits) as machine:
        return machine.measure(
            path, target=target, format=format, size=size, chain=chain, allow_dirs=allow_dirs, **options
        )


def check(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    chain: bool = False,
    allow_dirs: Path | Iterable[Path] = (),
    timeout: float | None = None,
    limits: Limits | None = None,
) -> CheckReport:
    """Whether an image is consistent, from a machine of its own.

    :param chain: follow the files that the image names, below its own directory and ``allow_dirs``.
    :param timeout: wall time of the run in seconds, instead of the one in ``limits``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    with Machine(timeout=timeout, limits=limits) as machine:
        return machine.check(path, format=format, chain=chain, allow_dirs=allow_dirs)


def map_image(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    start: int | str = 0,
    length: int | str | None = None,
    mapped_only: bool = False,
    exact: bool = False,
    on_extents: Callable[[tuple[Extent, ...]], None] | None = None,
    chain: bool = False,
    allow_dirs: Path | Iterable[Path] = (),
    picture: Path | None = None,
    timeout: float | None = None,
    limits: Limits | None = None,
) -> MapReport:
    """Where the bytes of an image's disk are stored, from a machine of its own.

    :param start: byte of the disk to begin at, and ``length`` bytes at most; a number, or text such as ``10M``.
    :param on_extents: gets the extents as they come, some at a time, instead of the report.
    :param picture: file to draw the map into, ``.png`` (needs the extra ``picture``) or ``.svg``.
    :param timeout: wall time of the run in seconds, instead of the one in ``limits``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    with Machine(timeout=timeout, limits=limits) as machine:
        return machine.map(
            path,
            format=format,
            start=start,
            length=length,
            mapped_only=mapped_only,
            exact=exact,
            on_extents=on_extents,
            chain=chain,
            allow_dirs=allow_dirs,
            picture=picture,
        )


def create(
    path: Path,
    format: str = "raw",  # noqa: A002  (qemu-img's word)
    size: int | str | None = None,
    *,
    backing_unsafe: bool = False,
    force: bool = False,
    seed: str | None = None,
    unix_time: int | None = None,
    uuid: bytes | None = None,
    entropy: bytes | None = None,
    luks_passphrase: bytes | None = None,
    luks_passphrase_file: Path | None = None,
    timeout: float | None = None,
    limits: Limits | None = None,
    **options: OptionValue,
) -> CreateReport:
    """Plan and write an empty image, with a machine of its own.

    :param size: bytes of the virtual disk, or text such as ``10G``.
    :param force: replace an existing file, which is kept otherwise.
    :param timeout: wall time of the run in seconds, instead of the one in ``limits``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    with Machine(timeout=timeout, limits=limits) as machine:
        return machine.create(
            path,
            format,
            size,
            backing_unsafe=backing_unsafe,
            force=force,
            seed=seed,
            unix_time=unix_time,
            uuid=uuid,
            entropy=entropy,
            luks_passphrase=luks_passphrase,
            luks_passphrase_file=luks_passphrase_file,
            **options,
        )


def resize(
    path: Path,
    size: int | str,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    shrink: bool = False,
    preallocation: str | None = None,
    unix_time: int | None = None,
    timeout: float | None = None,
    limits: Limits | None = None,
) -> ResizeReport:
    """Give an image another virtual size in place, with a machine of its own.

    :param size: bytes, or text such as ``10G``; with a sign in front (``+1G``) the difference.
    :param timeout: wall time of the run in seconds, instead of the one in ``limits``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    with Machine(timeout=timeout, limits=limits) as machine:
        return machine.resize(
            path, size, format=format, shrink=shrink, preallocation=preallocation, unix_time=unix_time
        )
