"""``python -m vmm``, and the console script: the same command."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def entry() -> NoReturn:
    """Run the command; the process ends with it.

    Until the command has its own handlers, Ctrl-C ends the process as it ends one without handlers: at once and without
    a traceback.  Nothing has been made by then that would have to be cleaned up.
    """
    import _signal

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from vmm.cli.main import entry as command

    command()


if __name__ == "__main__":
    entry()
