"""The files of an operation: the image alone, or with ``--chain`` all that it leads to."""

from __future__ import annotations

from vmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from calltable.messages import ChainFile
    from vmm.boundary import DeviceSpec
    from vmm.errors import RefusedError
    from vmm.operations.chain import Chain, FollowedFile
    from vmm.operations.files import InputFile
    from vmm.operations.session import Session


class Alone:
    """An image whose references are not followed: what :class:`vmm.operations.chain.Chain` is where they are."""

    __slots__ = ("_image", "refusals")

    def __init__(self, image: InputFile) -> None:
        self._image = image
        #: Nothing was asked for.
        self.refusals: list[RefusedError] = []

    def devices(self) -> tuple[DeviceSpec, ...]:
        """The image's."""
        return (self._image.device(),)

    def files(self) -> tuple[ChainFile, ...] | None:
        """Nothing for the request."""
        return None

    def names(self) -> tuple[str, ...]:
        """The image's, for errors."""
        return (self._image.path,)

    def followed(self) -> tuple[FollowedFile, ...]:
        """None of them."""
        return ()

    def behind(self, _number: int) -> int | None:
        """Nothing that is known."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_chain(
    session: Session,
    image: InputFile,
    *,
    follow: bool,
    allow_dirs: Iterable[str] = (),
    follow_symlinks: bool = False,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    qemu_version: str | None = None,
    strict: bool = True,
) -> Chain | Alone:
    """The devices of an operation on an image, and with ``follow`` all files that it leads to, opened and closed with
    the answer.

    :param strict: what cannot be followed is an error.
    :raises UsageError: directories are allowed, and nothing is followed.
    :raises VmmError: see :meth:`vmm.operations.chain.Chain.resolve`.
    """
    allowed = tuple(allow_dirs)
    if not follow:
        if allowed:
            raise UsageError("--allow-dir needs --chain.")
        return Alone(image)
    from vmm.operations.chain import Chain

    chain = Chain(image, allow_dirs=allowed, follow_symlinks=follow_symlinks)
    try:
        chain.resolve(session, format=format, qemu_version=qemu_version, strict=strict)
    except BaseException:
        chain.close()
        raise
    return chain
