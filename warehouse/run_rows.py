"""A run id in, all its rows found in whatever table they are: ids that are free, rows without a run, a run's end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from energy_lens.errors import UsageError
from energy_lens.sql import identifier
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.migrations import own_tables


@dataclass(frozen=True)
class Deletion:
    """What became of a file whose run was deleted."""

    path: Path
    run_id: int
    n_rows: int  #: that were removed, of all tables
    current: int | None  #: the run that is current now; None: there is none any more
    staged: tuple[str, ...] = ()  #: where groups of it lie that were staged, and stay


def next_run_id(warehouse: Warehouse) -> int:
    """An id that no run has or had, and that no row names, be it of a run that was deleted by hand."""
    named = [
        warehouse.run_formatted("runs/last_id_of_rows", {"table": identifier(table)}).value()
        for table in _tables(warehouse)
    ]
    return 1 + max(filter(None, [*named, warehouse.run("runs/last_id_given").value()]), default=0)


def give_id(warehouse: Warehouse) -> int:
    """The next id, noted so that it is never given again. Call within a transaction."""
    run_id = next_run_id(warehouse)
    warehouse.run("runs/note_id", run=run_id)
    return run_id


def orphaned_runs(warehouse: Warehouse) -> list[int]:
    """Ids of runs that tables of elw have rows of, and that are not in the file."""
    found: set[int] = set()
    for table in _own_tables(warehouse):
        rows = warehouse.run_formatted("runs/orphans_in_table", {"table": identifier(table)}).fetchall()
        found |= {run_id for (run_id,) in rows}
    return sorted(found)


def delete_run(path: Path, run_id: int) -> Deletion:
    """Remove a run and every row of it, or the rows that a run left which was deleted by hand. All or nothing.

    When it was the current one, the latest run with statistics takes its place.
    Raises UsageError when nothing in the file is of that run, LockedError while an ingest or a compaction is at work.
    """
    Warehouse(path).close()  # says what is wrong with the file before a lock is made beside it
    with ingest_lock(path), Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
        runs = [number for (number,) in warehouse.sql("SELECT run_id FROM runs ORDER BY run_id").fetchall()]
        if run_id not in runs and run_id not in orphaned_runs(warehouse):
            has = f"it has {', '.join(map(str, runs))}" if runs else "it has none"
            raise UsageError(f"There is no run {run_id} in {path}, nor a row of it: {has}.")
        staged = tuple(location for _, location in warehouse.run("merge/staged", run=run_id).fetchall())
        n_rows = 0
        for table in _own_tables(warehouse):
            n_rows += warehouse.run_formatted("runs/delete_rows", {"table": identifier(table)}, run=run_id).value()
        warehouse.run("runs/delete_unused_models")
        warehouse.run("runs/note_id", run=run_id)
        warehouse.run("runs/take_back_id", run=run_id)
        current = warehouse.run("runs/states").fetchall()[0][1]
        if current is None and (current := warehouse.run("runs/next_current").value()) is not None:
            warehouse.run("queries/use_run", run_id=current)
    return Deletion(path, run_id, n_rows, current, staged)


def _tables(warehouse: Warehouse) -> list[str]:
    return [table for (table,) in warehouse.run("runs/tables").fetchall()]


def _own_tables(warehouse: Warehouse) -> list[str]:
    """Without those that a user made."""
    return [table for table in _tables(warehouse) if table in own_tables()]
