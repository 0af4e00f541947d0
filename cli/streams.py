"""stdin, stdout and stderr of the process: whatever state they are started in, they end in a right exit code.

Only a process that is `elw` itself prepares and settles them; a program that calls `main` keeps its own
as they are.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO, cast

from energy_lens.console import Messages


def prepare() -> None:
    """Have all three streams there: one that was closed at start (cron, `>&-`) reads and writes nothing.

    Else the next file to be opened, a warehouse for one, would get the number of stdout or stderr, and their words.
    What third parties write to stderr is lost too, rather than an end to the work, when nobody is there to read it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free: this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = cast(TextIO, Messages(sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)))


def settle() -> None:
    """Send what a stream could not get rid of nowhere, or Python would fail on it again at exit, with code 120."""
    for number, stream in ((1, sys.stdout), (2, sys.__stderr__)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


def flush_output() -> None:
    """Have written what waits for stdout; nothing waits for one that is closed. Raises OSError when that fails."""
    with contextlib.suppress(ValueError, AttributeError):
        sys.stdout.flush()


def is_terminal() -> bool:
    """Whether a person types and reads: stdin and stdout are both a terminal."""
    try:
        return bool(sys.stdin.isatty() and sys.stdout.isatty())
    except (ValueError, AttributeError):  # closed, or none
        return False


def reader_has_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        flush_output()
    except (BrokenPipeError, ConnectionResetError):
        return True
    except OSError:
        return False
    try:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)  # errors are always told
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in waiting.poll(0))
    except (OSError, ValueError, AttributeError):  # it has no file: a stream of a notebook, for one
        return False
