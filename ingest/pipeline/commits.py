"""Finished groups in, committed transactions out, in a thread of its own: DuckDB stores one while the next is made.

While a reader holds the file, a finished group waits in memory, and no more than one is made beside it. Where groups
are staged, their rows are written there first, and what is committed is that they are.
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
from energy_lens.ingest.pipeline.stage import Stage
from energy_lens.warehouse.database import LockedError, Warehouse
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.runs import StoredRun, open_again
from energy_lens.warehouse.staging.groups import StagedGroup
from energy_lens.warehouse.staging.registered import register_group

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

    def __init__(self, db: Path, run: StoredRun, stage: Stage | None = None) -> None:
        """stage: where the rows go in place of the warehouse."""
        self._db, self._run, self._stage = db, run, stage
        self._groups: queue.SimpleQueue[GroupTables | StagedGroup | None] = queue.SimpleQueue()
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

    def put(self, made: GroupTables | StagedGroup) -> None:
        """Have a group committed that was announced before, whose rows may be in the stage already."""
        self._groups.put(made)

    def _wait_for_end(self) -> None:
        while not self._done.wait(GLANCE):  # a wait without end would miss a signal that comes just before it
            pass

    def _work(self) -> None:
        try:
            while (made := self._groups.get()) is not None:
                if not self._commit(made):
                    break
                self._room.release()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._done.set()

    def _commit(self, made: GroupTables | StagedGroup) -> bool:
        """Commit a group, as soon as the file is free; False when it was not, and nobody waits for it any more."""
        told = False
        if self._stage and isinstance(made, GroupTables):
            made = self._stage.write(made)
        while True:
            try:
                with open_again(self._db, self._run, ATTEMPT) as warehouse:
                    if isinstance(made, StagedGroup):
                        register_group(warehouse, self._run.run_id, made)
                    else:
                        store_group(warehouse, self._run.run_id, made)
                return True
            except LockedError as error:
                if not told:
                    say(f"Waiting to commit: {error}")
                told = True
                if self._leaving.wait(PAUSE):
                    return False
