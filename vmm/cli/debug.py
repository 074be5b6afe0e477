"""The outer side of a run under gdb: the port that it comes to, and the command that brings it there."""

from __future__ import annotations

import os

from vmm.cli.terminal import err
from vmm.errors import UsageError
from vmm.operations.session import debug_file
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

#: The only address that is listened on.
HOST = "127.0.0.1"


def port_number(text: str) -> int:
    """The value of ``--gdb``: 0 (any free port) to 65535.

    :raises UsageError: something else.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 1 << 16):
        raise UsageError(f"--gdb takes a port, 0 to 65535, not '{printable(text)}'")
    return int(text)


def gdb_command(symbols: str, port: int) -> str:
    """The shell command that starts gdb on a waiting run.

    :param symbols: path of the operation's ELF with debugging information.
    """
    from shlex import join, quote

    words = ["gdb", symbols]
    runtime = debug_file("runtime")
    if os.path.exists(runtime):
        words += ["-ex", f"with confirm off -- add-symbol-file {quote(runtime)}"]
    return join([*words, "-ex", f"target remote {HOST}:{port}"])


def await_debugger(port: int, symbols: str) -> socket:
    """Say on stderr how to start gdb, and wait for it on a port of this host, as long as it takes.

    One connection is taken, then the port is closed.  Close what this answers after the run: it is the stream whose
    descriptor :attr:`vmm.boundary.Job.debugger` wants.

    :param port: 0: any free one.
    :param symbols: path of the operation's ELF with debugging information.
    :raises UsageError: the port cannot be listened on.
    """
    import socket

    try:
        server = socket.create_server((HOST, port), backlog=1)
    except OSError as error:
        raise UsageError(f"--gdb: port {port} of {HOST}: {os.strerror(error.errno or 0)}", port=port) from None
    with server:
        command = printable(gdb_command(symbols, server.getsockname()[1]))
        err(f"pyvmm: waiting for gdb on port {server.getsockname()[1]} of {HOST}:\n  {command}\n")
        connection, _ = server.accept()
    # Packets are small, and each is waited for.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class GdbPort:
    """Where the runs of one command meet gdb: one connection for each run.

    :param text: the value of ``--gdb``.
    :raises UsageError: it is no port.
    """

    def __init__(self, text: str) -> None:
        self._port = port_number(text)
        self._connection: socket | None = None

    def wait(self, symbols: str) -> int:
        """Close the connection of the run before, and wait for the next one; answers its descriptor, which stays here.

        :param symbols: path of the operation's ELF with debugging information.
        :raises UsageError: the port cannot be listened on.
        """
        self.close()
        self._connection = await_debugger(self._port, symbols)
        return self._connection.fileno()

    def close(self) -> None:
        """Close the connection of the last run.  Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
