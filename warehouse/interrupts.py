"""A call of DuckDB in, its result or one sentence out: a signal stops it, and DuckDB's errors become ours."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import duckdb

from energy_lens.errors import ElwError, UsageError

T = TypeVar("T")

FULL_DISK = "The disk is full; nothing was half-written: make room and run the command again."

#: The disk is full, or the user's share of it, or a file may not become larger.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: What no other statement would have avoided.
_FAILURES = (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InternalException, duckdb.FatalException)


def interruptibly(connection: duckdb.DuckDBPyConnection, call: Callable[[], T]) -> T:
    """What `call` returns, with DuckDB's errors translated, on a thread of its own so that Ctrl-C can stop it.

    DuckDB 2.0 looks for no signal while it runs a statement: on the main thread a long query could only be killed.
    """
    with translated_errors():
        if threading.current_thread() is not threading.main_thread():
            return call()
        returned: list[T] = []
        raised: list[BaseException] = []
        begun = threading.Lock()  # taken by the thread as it begins, or by this one to have it not begin
        done = threading.Event()

        def work() -> None:
            if not begun.acquire(blocking=False):
                return
            try:
                returned.append(call())
            except BaseException as error:
                raised.append(error)
            finally:
                done.set()

        try:
            # Not a Thread: Ctrl-C inside its start() or join() leaves it stuck, or taken for finished (Python 3.11).
            _thread.start_new_thread(work, ())
            while not done.wait(0.1):  # a wait without end would miss a signal that comes just before it
                pass
        except BaseException:  # Ctrl-C, or what else a signal raises
            if not begun.acquire(blocking=False):
                while not done.is_set():  # again and again: an interrupt before the query began would be forgotten
                    connection.interrupt()
                    done.wait(0.05)
            raised.clear()  # an error kept with the frame that keeps it would outlive the connection
            raise
        if raised:
            raise raised.pop()
        return returned.pop()


@contextlib.contextmanager
def interrupts_noticed() -> Iterator[None]:
    """DuckDB's binding says RuntimeError where it notices a Ctrl-C itself, between two statements."""
    try:
        yield
    except RuntimeError as error:
        if "Query interrupted" in str(error):
            raise KeyboardInterrupt from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that there is no room, whatever its kind: a commit that finds none fails as a transaction,
    and what follows it as a database that is no longer valid.
    """
    if isinstance(error, OSError) and error.errno is not None:  # polars tells it in words
        return error.errno in _NO_ROOM
    text = str(error)
    signs = [os.strerror(number) for number in _NO_ROOM]
    return any(sign in text for sign in signs) or ("disk" in text.lower() and "full" in text.lower())


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """DuckDB's errors as ours: a bad statement is a usage error, a full disk and the rest are failures."""
    try:
        with interrupts_noticed():
            yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except duckdb.Error as error:
        text = str(error).strip()
        if "KeyboardInterrupt" in text:  # what DuckDB had Python do, such as hand over a frame, met the signal
            raise KeyboardInterrupt from error
        if is_full_disk(error):
            raise ElwError(FULL_DISK) from error
        if isinstance(error, _FAILURES):
            raise ElwError(f"DuckDB failed: {text.splitlines()[0]}") from error
        if "'pytz'" in str(error):
            raise UsageError(
                "A time with a time zone needs pytz in Python: cast it, as in now()::TIMESTAMP."
            ) from error
        raise UsageError(text) from error
