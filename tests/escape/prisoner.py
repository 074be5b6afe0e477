"""What runs in the jail: the real worker, which makes one attempt where it would run a job.

It gets one frame before those of the real protocol: where the library is, which attempt, and what there is to attack.
Everything that an attempt needs (addresses of its texts and buffers, a vCPU, the ranges of memory to search) is made
ready then, so that the attempt itself is the only call that is made after the jail has closed.
"""

from __future__ import annotations

import _socket as socket
import ctypes
import errno
import os
import resource

from tests.escape.attempts import ATTEMPTS
from tests.escape.table import Attempt
from vmm.kvm.binding import lib as kvm
from vmm.sandbox import wire, worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from vmm.sandbox.settings import JailSettings

_PR_SET_PDEATHSIG = 1
_PAGE = 4096
_PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS = 3, 0x22


class Library:
    """``attempts.c``, loaded."""

    def __init__(self, path: str) -> None:
        self._functions = ctypes.CDLL(path)
        self._kept: list[Any] = []

    def function(self, name: str, *arguments: Any) -> Callable[[], int]:
        """A function of the library, ready to be called."""
        function = self._functions[name]
        function.restype = ctypes.c_long
        passed = [ctypes.c_ulong(one & (2**64 - 1)) if isinstance(one, int) else one for one in arguments]
        return lambda: int(function(*passed))

    def number(self, name: str) -> int:
        """The number of a system call."""
        number = self.function("number_of", ctypes.c_char_p(name.encode()))()
        assert number >= 0, name
        return number

    def address(self, content: bytes, size: int = 0) -> int:
        """The address of a buffer that holds these bytes, a zero after them, and zeroes up to a size."""
        buffer = ctypes.create_string_buffer(content, max(size, len(content) + 1))
        self._kept.append(buffer)
        return ctypes.addressof(buffer)

    def arguments(self, values: tuple[int | bytes, ...]) -> Any:
        """An array of six arguments; bytes become addresses of C strings."""
        plain = [self.address(value) if isinstance(value, bytes) else value for value in values]
        return (ctypes.c_ulong * 6)(*[value & (2**64 - 1) for value in plain])


class Place:
    """What an attempt can name: numbers, addresses and descriptors of this process."""

    def __init__(self, library: Library, facts: Mapping[str, Any], descriptors: list[int]) -> None:
        self.library: Library = library
        self.broker: int = facts["broker"]
        self.folder: bytes = facts["folder"].encode()
        self.secret_address: int = facts["secret-address"]
        self.shm_key: int = facts["shm-key"]
        self.queue: bytes = facts["queue"].encode()
        self.host_name: bytes = facts["host-name"].encode()
        self._tcp: tuple[str, int] = (facts["tcp"][0], facts["tcp"][1])
        self._abstract: bytes = facts["abstract"]
        self._secret: bytes = facts["secret-inverted"]
        numbers = iter(descriptors)
        self.kvm: int = next(numbers)
        self.image: int = next(numbers)
        self.output: int = next(numbers)
        self.host_socket: int = next(numbers)
        self.terminal: int = next(numbers)
        self.namespace: int = next(numbers)
        self.memfd: int = next(numbers)
        self.pidfd: int = next(numbers)

    # --- buffers

    def buffer(self, content: bytes = b"", size: int = 0) -> int:
        return self.library.address(content, size)

    def vector(self, address: int, length: int) -> int:
        """An ``iovec``."""
        return self.buffer(address.to_bytes(8, "little") + length.to_bytes(8, "little"))

    def page(self, *, protection: int = _PROT_READ_WRITE) -> int:
        """A page of memory of its own; it begins with a ``ret``."""
        page: int = self._call("mmap", 0, _PAGE, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
        ctypes.memset(page, 0xC3, 1)
        if protection != _PROT_READ_WRITE:
            self._call("mprotect", page, _PAGE, protection)
        return page

    def code(self) -> int:
        """A page of code that nothing else needs."""
        return self.page(protection=5)

    # --- sockets and files, made before the jail closes

    @staticmethod
    def socket(family: int, kind: int) -> int:
        return socket.socket(family, kind).detach()

    @property
    def tcp_address(self) -> int:
        host, port = self._tcp
        return self.buffer(socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + socket.inet_aton(host), 16)

    @property
    def abstract_address(self) -> tuple[int, int]:
        content = socket.AF_UNIX.to_bytes(2, "little") + self._abstract
        return self.buffer(content), len(content)

    def rights_message(self) -> int:
        """A ``msghdr`` with one frame of the protocol and the image's descriptor."""
        frame = wire.frame([["p", 1, 1]])
        control = (20).to_bytes(8, "little") + (1).to_bytes(4, "little") * 2 + self.image.to_bytes(4, "little")
        fields = (0, 0, self.vector(self.buffer(frame), len(frame)), 1, self.buffer(control, 24), 24, 0)
        return self.buffer(b"".join(field.to_bytes(8, "little") for field in fields))

    def handle_of(self, name: bytes) -> int:
        """The file handle of a file of the folder (name_to_handle_at(2))."""
        handle = self.buffer((128).to_bytes(4, "little"), 136)
        self._call("name_to_handle_at", -100, self.folder + b"/" + name, handle, self.buffer(size=8), 0)
        return handle

    def vm(self) -> int:
        return self._call("ioctl", self.kvm, kvm.KVM_CREATE_VM, 0)

    def vcpu(self) -> int:
        return self._call("ioctl", self.vm(), kvm.KVM_CREATE_VCPU, 0)

    # --- memory

    def search(self) -> Callable[[], int]:
        """Look for the broker's secret in all memory; -ENOENT when it is not there, as it should be.

        What is known to be there must be found, or the search proves nothing.
        """
        ranges = _readable()
        array = (ctypes.c_ulong * len(ranges))(*ranges)
        planted = os.urandom(32)
        kept = ctypes.create_string_buffer(planted)

        def look(inverted: bytes) -> int:
            return self.library.function(
                "attempt_search", array, len(ranges) // 2, ctypes.create_string_buffer(inverted), len(inverted)
            )()

        def search() -> int:
            assert kept.raw[:32] == planted
            if look(bytes(byte ^ 0xFF for byte in planted)) < 1:
                return -errno.EIO
            return 0 if look(self._secret) else -errno.ENOENT

        return search

    def _call(self, name: str, *arguments: int | bytes) -> int:
        """A system call that belongs to the preparations."""
        result = self.call(name, *arguments)()
        assert result >= 0, (name, os.strerror(-result))
        return result

    # --- what is tried

    def call(self, name: str, *arguments: int | bytes) -> Callable[[], int]:
        """One system call."""
        return self.library.function("attempt_call", self.library.number(name), self.library.arguments(arguments))

    def call_number(self, number: int, *arguments: int | bytes) -> Callable[[], int]:
        """One system call by its number."""
        return self.library.function("attempt_call", number, self.library.arguments(arguments))

    def int80(self, number: int, *arguments: int) -> Callable[[], int]:
        """One call by the gate of 32-bit programs."""
        return self.library.function("attempt_int80", number, self.library.arguments(arguments))

    def repeat(self, times: int, name: str, *arguments: int | bytes) -> Callable[[], int]:
        """The same call many times, until it fails."""
        number = self.library.number(name)
        return self.library.function("attempt_repeat", number, self.library.arguments(arguments), times)

    def function(self, name: str, *arguments: int) -> Callable[[], int]:
        """A function of ``attempts.c``."""
        return self.library.function(f"attempt_{name}", *arguments)


def _readable() -> list[int]:
    """Start and end of each readable range of this process, one after another (proc(5), maps)."""
    ranges: list[int] = []
    with open("/proc/self/maps", encoding="ascii") as file:
        for line in file:
            addresses, rights, rest = line.split(None, 2)
            # The kernel's own pages, and a vCPU's, cannot all be read; they hold nothing of a process.
            if rights[0] == "r" and "[v" not in rest and "kvm" not in rest:
                ranges += [int(address, 16) for address in addresses.split("-")]
    return ranges


class Prisoner(worker.Worker):
    """The worker, with an attempt in the place of a machine."""

    def __init__(self, channel: worker.Channel) -> None:
        super().__init__(channel)
        received = channel.receive()
        assert received is not None
        facts, descriptors = received
        attempt: Attempt = ATTEMPTS[facts["attempt"]]
        library = Library(facts["library"])
        # What the broker's own limit or the start of the process does anyway would hide what a layer does.
        library.function("attempt_call", library.number("prctl"), library.arguments((_PR_SET_PDEATHSIG, 0)))()
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
        os.chdir(facts["folder"])
        #: It holds the buffers.
        self._place = Place(library, facts, descriptors)
        self._attempt = attempt.act(self._place)

    def _prepare(self, settings: JailSettings, descriptors: list[int], kvm_path: str) -> None:
        """There is no machine."""

    def _answer(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        if message.get("announce"):
            # The attempt does not come back.
            self._channel.put(wire.problem_item("attempt", "started", {}))
            self._channel.flush()
        self._channel.put(wire.problem_item("attempt", "done", {"result": self._attempt()}))


def main() -> None:
    """Serve the tests until they are gone."""
    prisoner = Prisoner(worker.Channel(worker.CHANNEL))
    while prisoner.serve():
        pass
    os._exit(0)
