"""Groups of a source in, their rows in a file's own tables out: so many groups in a transaction, each of them once.

The rows of a transaction are sorted as a group's are (`physical_order`), so that blocks of the file hold few features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from energy_lens.errors import ElwError
from energy_lens.sql import identifier, literal
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.interrupts import is_full_disk
from energy_lens.warehouse.merging.sources import Source, StageSource, WarehouseSource
from energy_lens.warehouse.opening import opening_failure
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.staging.groups import Staged
from energy_lens.warehouse.staging.registered import forget

#: Of a warehouse's groups in one transaction: each takes a look at all of its rows, so that few are better.
TOKENS_AT_ONCE = 1_000_000

#: Of staged groups in one transaction: they are held in memory, where a row has some 30 bytes.
ROWS_AT_ONCE = 10_000_000

#: What DuckDB may hold in memory; what it sorts beyond that goes to a file beside the warehouse.
MEMORY_LIMIT = "1200MB"

#: Told of each transaction: its groups, and how many rows they have.
Told = Callable[[Sequence[int], int], object]

#: Name of an attached source.
_ATTACHED = "elw_source"


@dataclass(frozen=True)
class Target:
    """The run that is merged into."""

    db: Path
    run_id: int
    identity: str
    context_length: int
    n_tokens: Mapping[int, int]  #: of each group of the plan

    def open(self) -> Warehouse:
        warehouse = Warehouse(self.db, writable=True, create=False)
        try:
            warehouse.sql(f"SET memory_limit = '{MEMORY_LIMIT}'")
        except BaseException:
            warehouse.close()
            raise
        return warehouse


def take(target: Target, source: Source, groups: Sequence[int], told: Told) -> None:
    """Store the rows of groups that the target lacks.

    Raises DamagedError for a staged file that is not what was written, ElwError for a source that cannot be read to its
    end; what was taken before stays.
    """
    if isinstance(source, StageSource):
        _take_staged(target, source, groups, told)
    else:
        _take_from_warehouse(target, source, groups, told)


# ------------------------------------------------------------------------------------------------ warehouses


def _take_from_warehouse(target: Target, source: WarehouseSource, groups: Sequence[int], told: Told) -> None:
    source_run, cpus = source.run_id(target.identity), source.groups(target.identity)
    for part in _parts(groups, lambda group: target.n_tokens[group], TOKENS_AT_ONCE):
        with target.open() as warehouse, _attached(warehouse, source), warehouse.transaction():
            n_rows = 0
            for table in SORTED_BY:
                n_rows += _copy(warehouse, target, source, source_run, table, part)
            _commit(warehouse, target, {group: cpus[group] for group in part}, source.name)
            if warehouse.run_formatted("merge/is_compiled", {"database": _ATTACHED}, run=source_run).value():
                warehouse.run("merge/note_compiled", run=target.run_id)
        told(part, n_rows)


def _copy(
    warehouse: Warehouse, target: Target, source: WarehouseSource, source_run: int, table: str, groups: Sequence[int]
) -> int:
    """Copy the rows of groups in one table; returns how many there were."""
    theirs, own = (_columns(warehouse, database, table) for database in (_ATTACHED, None))
    columns = [column for column in theirs if column in own]  # another run's gradients may have a column there
    places = {
        "table": identifier(table),
        "source": f"{_ATTACHED}.main.{identifier(table)}",
        "columns": ", ".join(map(identifier, columns)),
        "keys": ", ".join(map(identifier, SORTED_BY[table])),
    }
    named = {"run": target.run_id, "source_run": source_run, "groups": list(groups)}
    with _told_of(source):
        if "group_id" in columns:
            n_rows = warehouse.run_formatted("merge/take_by_group", places, **named).value()
        else:
            named["context_length"] = target.context_length
            n_rows = warehouse.run_formatted("merge/take_by_token", places, **named).value()
    if table == "tokens":
        _check_tokens(n_rows, target, groups, source.name)
    return int(n_rows)


def _columns(warehouse: Warehouse, database: str | None, table: str) -> list[str]:
    """Columns of a table, without run_id. database: None: the file itself."""
    name = database or warehouse.sql("SELECT current_database()").value()
    return [column for (column,) in warehouse.run("merge/columns", database=name, table=table).fetchall()]


@contextlib.contextmanager
def _attached(warehouse: Warehouse, source: WarehouseSource) -> Iterator[None]:
    try:
        warehouse.sql(f"ATTACH {literal(str(source.path))} AS {_ATTACHED} (READ_ONLY)")
    except ElwError as error:
        if isinstance(error.__cause__, duckdb.Error) and not is_full_disk(error.__cause__):
            raise opening_failure(source.path, error.__cause__) from error
        raise
    try:
        yield
    finally:
        with contextlib.suppress(ElwError):
            warehouse.sql(f"DETACH {_ATTACHED}")


@contextlib.contextmanager
def _told_of(source: WarehouseSource) -> Iterator[None]:
    """A failure of DuckDB that is not the disk's, in the name of the source: its blocks may be damaged."""
    try:
        yield
    except ElwError as error:
        cause = error.__cause__
        if isinstance(cause, duckdb.Error) and not is_full_disk(cause):
            reason = " ".join(str(cause).split())[:160]
            raise ElwError(
                f"{source.name} cannot be read to its end ({reason}): restore it from a copy, or run its shard again."
            ) from error
        raise


# ------------------------------------------------------------------------------------------------ stages


def _take_staged(target: Target, source: StageSource, groups: Sequence[int], told: Told) -> None:
    staged = source.staged_groups(target.identity)
    for part in _parts(groups, lambda group: staged[group].n_rows, ROWS_AT_ONCE):
        found = [staged[group] for group in part]
        frames = {table: frame for table in SORTED_BY if (frame := _rows(found, table)) is not None}
        _check_tokens(len(frames.get("tokens", ())), target, part, found[0].location)
        with target.open() as warehouse, warehouse.transaction():
            n_rows = 0
            for table in list(frames):
                frame = frames.pop(table).with_columns(run_id=pl.lit(target.run_id, dtype=pl.Int32))
                warehouse.append(table, frame, order_by=SORTED_BY[table])
                n_rows += len(frame)
            _commit(warehouse, target, {one.group_id: one.told["cpu"] for one in found}, source.name)
            if any(one.told["is_compiled"] for one in found):
                warehouse.run("merge/note_compiled", run=target.run_id)
        told(part, n_rows)


def _rows(groups: Iterable[Staged], table: str) -> pl.DataFrame | None:
    """The rows of a table in all of the groups; None where there are none."""
    frames = [frame for group in groups if (frame := group.table(table)) is not None]
    return pl.concat(frames, how="diagonal") if frames else None


# ------------------------------------------------------------------------------------------------ both


def _parts(groups: Sequence[int], size: Callable[[int], int], at_once: int) -> Iterator[list[int]]:
    """Groups in turns, each of as many as stay within a size; of one where that alone is larger."""
    part: list[int] = []
    total = 0
    for group in groups:
        if part and total + size(group) > at_once:
            yield part
            part, total = [], 0
        part.append(group)
        total += size(group)
    if part:
        yield part


def _check_tokens(n_tokens: int, target: Target, groups: Sequence[int], source: str) -> None:
    """Raises ElwError unless a source gave the tokens that are planned."""
    planned = sum(target.n_tokens[group] for group in groups)
    if n_tokens != planned:
        raise ElwError(
            f"{source} holds {n_tokens:,} tokens of groups that have {planned:,}: elw check says what else it lacks; "
            "restore it from a copy, or compute its groups again."
        )


def _commit(warehouse: Warehouse, target: Target, groups: Mapping[int, str | None], source: str) -> None:
    """Note that groups are stored. Raises ElwError when one is stored already.

    groups: the processor that computed each, by group_id.
    """
    named = {"groups": list(groups), "cpus": list(groups.values())}
    n_groups = warehouse.run("merge/commit_groups", run=target.run_id, **named).value()
    if n_groups != len(groups):
        raise ElwError(f"{target.db} was changed while {source} was merged: run the command again.")
    forget(warehouse, target.run_id, groups)
    warehouse.run("ingest/touch_run", run=target.run_id)
