"""SIGTERM and SIGHUP in, an exception out, so that what is half done is cleared away before the program ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: What asks a program to end: kill, a shutdown, a container's end; and a terminal that was closed.
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class EndedError(BaseException):
    """The program was asked to end. Not an Exception, as KeyboardInterrupt is none: nobody is to go on after it."""

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number  #: as a shell gives it for a program that the signal ended
        super().__init__(self.name)


@contextlib.contextmanager
def endings_noticed() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise EndedError in the main thread, once: a terminal that closes sends two.

    A signal that is ignored, as under nohup, stays so, and one that the caller's program handles remains its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def end(number: int, _: FrameType | None) -> None:
        for ending in noticed:
            signal.signal(ending, signal.SIG_IGN)
        raise EndedError(number)

    noticed = [ending for ending in _ENDINGS if signal.getsignal(ending) is signal.SIG_DFL]
    try:
        for ending in noticed:
            signal.signal(ending, end)
        yield
    finally:
        for ending in noticed:
            signal.signal(ending, signal.SIG_DFL)
