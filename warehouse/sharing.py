"""A file and how it is wanted in, a connection out that others of this process may share.

DuckDB opens a file once in a process, with one set of settings. Whoever wants it in the same way shares that. Whoever
wants it in another way has those let go of it who are idle, and they come back when they are used again; who is at
work, or has something that would be lost, is waited for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from energy_lens.sql import statement
from energy_lens.warehouse.opening import LockedError, check_name, connect, opening_failure

#: Seconds between two attempts at a file that somebody holds.
GLANCE = 0.05


@dataclass(frozen=True)
class Terms:
    """How a file is wanted; equal terms can share it."""

    writable: bool
    restricted: bool  #: statements reach no file or network and change no setting
    config: tuple[tuple[str, str], ...] = ()
    allowed_files: tuple[str, ...] = ()  #: that restricted statements reach all the same


class Membership:
    """A connection of one's own to a file that is perhaps shared; it ends when it is left, or forgotten."""

    def __init__(self, shared: _Shared, let_go: Callable[[], bool]) -> None:
        self.connection = shared.root.cursor()  # unlike a further connection, with the root's settings
        self._shared = shared
        self._let_go = weakref.WeakMethod(let_go)

    def let_go(self) -> bool:
        """Have the holder leave if it is idle; whether it left."""
        let_go = self._let_go()
        return True if let_go is None else let_go()

    def leave(self) -> None:
        with _guard:
            self.connection.close()
            self._shared.members.discard(self)
            self._shared.close_if_unused()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # Python may be ending
            self.leave()


class _Shared:
    """A file that is open in this process."""

    def __init__(self, path: Path, terms: Terms) -> None:
        self.path, self.terms = path, terms
        self.root = connect(path, terms.writable, dict(terms.config))
        self.identity = _identity(path)
        self.members: weakref.WeakSet[Membership] = weakref.WeakSet()
        try:
            if terms.restricted:
                self._restrict()
        except BaseException:
            self.root.close()
            raise

    def _restrict(self) -> None:
        """No files, no network, and the configuration locked, so that a statement cannot undo it."""
        if self.terms.allowed_files:
            self.root.execute("SET allowed_paths = $paths", {"paths": list(self.terms.allowed_files)})
        self.root.execute("SET enable_external_access = false")
        self.root.execute("SET lock_configuration = true")

    def close_if_unused(self) -> None:
        if not self.members:
            self.root.close()
            for key in [key for key, shared in _open.items() if shared is self]:
                del _open[key]


_guard = threading.RLock()
_open: dict[str, _Shared] = {}  #: by real path


def join(path: Path, terms: Terms, let_go: Callable[[], bool], wait_seconds: float) -> Membership:
    """A connection to a file on these terms; let_go is a method that leaves if it can, and says whether it did.

    Raises what `opening.connect` does; LockedError when the file is held for longer than wait_seconds, be it in this
    process.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with _guard:
                return _joined(path, terms, let_go)
        except duckdb.Error as error:
            raise opening_failure(path, error, dict(terms.config)) from error
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(GLANCE)


def _joined(path: Path, terms: Terms, let_go: Callable[[], bool]) -> Membership:
    check_name(path, terms.writable)
    check_name(path, False)  # whatever it is wanted for, it is not made here
    key = os.path.realpath(path)  # a second name must not open it a second time
    shared = _open.get(key)
    if shared is not None and (shared.terms != terms or shared.identity != _identity(path)):
        left = [member.let_go() for member in list(shared.members)]
        if not all(left):
            raise LockedError(
                f"{path} is at work in this process, in a transaction, with temporary tables or in another thread: "
                "end that or close its Warehouse, then try again."
            )
        shared.close_if_unused()
        shared = None
    if shared is None:
        shared = _open[key] = _Shared(path, terms)
    member = Membership(shared, let_go)
    shared.members.add(member)
    return member


def _identity(path: Path) -> tuple[int, int]:
    """Which file that is, whatever its name was given to since."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def keeps_something(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether something would be lost when a connection closes: a temporary table or view, a further database."""
    return bool(connection.execute(statement("queries/kept_by_connection")).fetchall())
