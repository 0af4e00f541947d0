"""Finished groups in, committed transactions out, in a thread of its own: DuckDB stores one while the next is made.

While a reader holds the file, a finished group waits in memory, and no more than one is made beside it.
"""

from __future__ import annotations

import _thread
import queue
import threading
from pathlib import Path
from types import TracebackType

from energy_lens.console import say
from energy_lens.errors import WarehouseError
from energy_lens.ingest.pipeline.groups import GroupTables
from energy_lens.warehouse.database import LockedError, Warehouse
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.runs import StoredRun, open_again

#: Groups that are held in memory at once: one that is made, and one that is stored or waits for the file.
MAX_PENDING_GROUPS = 2

#: Seconds: how long one attempt waits for the file, and how long after it the next one begins.
ATTEMPT, PAUSE = 0.2, 0.5

#: Seconds after which a wait looks for a signal, or an error of the other thread.
GLANCE = 0.1


def store_group(warehouse: Warehouse, run_id: int, tables: GroupTables) -> None:
    """Store a group's rows in one transaction, each table in its physical order.

    Raises WarehouseError, with nothing stored, when the run's plan does not have the group, or has its rows already.
    """
    with warehouse.transaction():
        for table, frame in tables.frames.items():
            warehouse.append(table, frame, order_by=SORTED_BY[table])
        which = {"run": run_id, "group": tables.group.group_id}
        n_groups = warehouse.run("ingest/commit_group", **which, cpu=tables.cpu).value()
        if n_groups != 1:
            raise WarehouseError(
                f"{warehouse.path} was changed while its ingest was under way: group {tables.group.group_id} of run "
                f"{run_id} is not planned there, or stored already. Run the command again."
            )
        warehouse.run("ingest/touch_run", run=run_id)


class Writer:
    """Commits groups in the order in which they are given, each in a transaction of its own.

    Leaving it waits until all are committed. Left by an exception, Ctrl-C included, it ends with the transaction under
    way and those behind it that need not wait for the file. An error of a commit is raised where the next group is
    announced, or on leaving.
    """

    def __init__(self, db: Path, run: StoredRun) -> None:
        self._db, self._run = db, run
        self._groups: queue.SimpleQueue[GroupTables | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_PENDING_GROUPS)
        self._leaving = threading.Event()
        self._done = threading.Event()
        self._errors: list[BaseException] = []

    def __enter__(self) -> Writer:
        # Not a Thread: Ctrl-C inside its start() or join() leaves it stuck, or taken for finished (Python 3.11).
        _thread.start_new_thread(self._work, ())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is not None:
            self._leaving.set()
        self._groups.put(None)
        try:
            self._wait_for_end()
        except KeyboardInterrupt:
            self._leaving.set()
            self._wait_for_end()
            raise
        if kind is None and self._errors:
            raise self._errors.pop()

    def announce(self) -> None:
        """Wait until another group may be made. Raises what a commit raised."""
        has_room = False
        while not has_room:
            if self._errors:
                raise self._errors.pop()
            has_room = self._room.acquire(timeout=GLANCE)

    def put(self, tables: GroupTables) -> None:
        """Have a group committed that was announced before."""
        self._groups.put(tables)

    def _wait_for_end(self) -> None:
        while not self._done.wait(GLANCE):  # a wait without end would miss a signal that comes just before it
            pass

    def _work(self) -> None:
        try:
            while (tables := self._groups.get()) is not None:
                if not self._commit(tables):
                    break
                self._room.release()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._done.set()

    def _commit(self, tables: GroupTables) -> bool:
        """Commit a group, as soon as the file is free; False when it was not, and nobody waits for it any more."""
        told = False
        while True:
            try:
                with open_again(self._db, self._run, ATTEMPT) as warehouse:
                    store_group(warehouse, self._run.run_id, tables)
                return True
            except LockedError as error:
                if not told:
                    say(f"Waiting to commit: {error}")
                told = True
                if self._leaving.wait(PAUSE):
                    return False
