"""Finished groups in, committed transactions out; while a reader holds the file, a few of them wait."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from energy_lens.console import say
from energy_lens.ingest.pipeline.groups import GroupTables
from energy_lens.warehouse.database import LockedError, Warehouse
from energy_lens.warehouse.physical_order import SORTED_BY

#: Finished groups that wait in memory while another process holds the file.
MAX_PENDING_GROUPS = 2

#: Seconds: how long one attempt waits for the file, and how long after it the next one begins.
ATTEMPT, PAUSE = 0.2, 0.5


def store_group(warehouse: Warehouse, run_id: int, tables: GroupTables) -> None:
    """Store a group's rows in one transaction, each table in its physical order."""
    with warehouse.transaction():
        for table, frame in tables.frames.items():
            warehouse.append(table, frame, order_by=SORTED_BY[table])
        warehouse.run("ingest/commit_group", run=run_id, group=tables.group.group_id)
        warehouse.run("ingest/touch_run", run=run_id)


def commit_pending(db: Path, run_id: int, pending: deque[GroupTables], wait: bool) -> None:
    """Commit waiting groups in order, each in a transaction of its own; those that are committed leave the queue.

    While another process holds the file they stay there, unless `wait`.
    """
    told = False
    while pending:
        try:
            with Warehouse(db, writable=True, wait_seconds=ATTEMPT) as warehouse:
                while pending:
                    store_group(warehouse, run_id, pending[0])
                    pending.popleft()
        except LockedError as error:
            if not wait:
                return
            if not told:
                say(f"Waiting to commit: {error}")
            told = True
            time.sleep(PAUSE)
