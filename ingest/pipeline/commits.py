"""Finished groups in, committed transactions out; while a reader holds the file, a few of them wait."""

from __future__ import annotations

from energy_lens.ingest.pipeline.groups import SORTED_BY, GroupTables
from energy_lens.warehouse.database import Warehouse

#: Finished groups that wait in memory while another process holds the file.
MAX_PENDING_GROUPS = 2


def store_group(warehouse: Warehouse, run_id: int, tables: GroupTables) -> None:
    """Store a group's rows in one transaction, each table in its physical order."""
    with warehouse.transaction():
        for table, frame in tables.frames.items():
            warehouse.append(table, frame, order_by=SORTED_BY[table])
        warehouse.run("ingest/commit_group", run=run_id, group=tables.group.group_id)
        warehouse.run("ingest/touch_run", run=run_id)
