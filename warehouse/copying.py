"""An open warehouse and an empty database in, the same definitions and rows in both out, and the proof of it.

What is copied is whatever the file holds, the user's own tables among it; `compaction` says when, and what follows.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from energy_lens.console import bar
from energy_lens.errors import ElwError, UsageError
from energy_lens.sql import identifier
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.physical_order import SORTED_BY

if TYPE_CHECKING:
    from tqdm import tqdm

#: Share of the file that may be free blocks in one that counts as compact.
GAPS = 0.1


@dataclass(frozen=True)
class Table:
    """A table of the file."""

    schema: str
    name: str
    n_rows: int
    has_generated: bool
    refers_to: frozenset[str]  #: tables of its schema whose rows must be there first

    def within(self, database: str) -> str:
        """Quoted name in an attached database."""
        return ".".join(map(identifier, (database, self.schema, self.name)))

    @property
    def keys(self) -> tuple[str, ...] | None:
        """Columns by which it is sorted; None: it keeps its order."""
        return ("run_id", *SORTED_BY[self.name]) if self.schema == "main" and self.name in SORTED_BY else None


def tables_of(warehouse: Warehouse, database: str) -> list[Table]:
    """All tables, the ones that others refer to before those."""
    rows = warehouse.run("compact/tables", database=database).fetchall()
    tables = {
        (schema, name): Table(schema, name, n_rows, has_generated, frozenset(refers_to))
        for schema, name, n_rows, has_generated, refers_to in rows
    }
    graph: Mapping[Any, Any] = {
        (schema, name): [(schema, other) for other in sorted(table.refers_to - {name})]
        for (schema, name), table in tables.items()
    }
    return [tables[key] for key in TopologicalSorter(graph).static_order()]


def is_compact(warehouse: Warehouse, database: str, tables: list[Table]) -> bool:
    """Whether every table lies in order, and few blocks of the file are free."""
    total, free = warehouse.run("compact/blocks", database=database).fetchall()[0]
    if free > GAPS * total:
        return False
    return not any(
        warehouse.run_formatted("compact/out_of_order", _places(table, database, table.keys)).value()
        for table in tables
        if table.keys
    )


def reason_of(error: UsageError) -> str:
    """DuckDB's own, on one line."""
    return " ".join(str(error).split("\n\n")[0].split())


def _places(table: Table, database: str, keys: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    return {"table": table.within(database), "keys": ", ".join(map(identifier, keys)), **more}


def copy_rows(warehouse: Warehouse, old: str, copy: str, tables: list[Table]) -> None:
    with bar("Sort", sum(table.n_rows for table in tables), "row") as progress:
        for table in tables:
            columns = ", ".join(_settable(warehouse, table, old, copy))
            places = _places(table, old, table.keys or (), copy=table.within(copy), columns=columns)
            if not table.keys:
                places["keys"] = "rowid"
            with _watched(warehouse, progress, table.n_rows):
                try:
                    warehouse.run_formatted("compact/copy_table", places).fetchall()
                except UsageError as error:  # such as a key that refers to the same table's later rows
                    raise UsageError(f"table {table.name}, {reason_of(error)}") from error


def _settable(warehouse: Warehouse, table: Table, old: str, copy: str) -> Iterator[str]:
    """Quoted names of a table's columns, without those that are generated from others."""
    rows = warehouse.run("compact/columns", database=old, schema=table.schema, table=table.name).fetchall()
    for column in (identifier(name) for (name,) in rows):
        if table.has_generated:
            try:
                places = _places(table, old, copy=table.within(copy), column=column)
                warehouse.run_formatted("compact/settable_column", places).fetchall()
            except UsageError:
                continue
        yield column


def verify_definitions(warehouse: Warehouse, old: str, copy: str, *, exactly: bool) -> None:
    """Raises ElwError unless both databases define the same; not exactly: in the same words.

    The order of the names in SELECT * EXCLUDE (…) is another each time that DuckDB reads a view or macro from a file.
    """
    found = []
    for database in (old, copy):
        rows = warehouse.run("compact/catalogue", database=database).fetchall()
        found.append({(kind, name, text if exactly else _words(text)) for kind, name, text in rows})
    if differing := sorted(found[0] ^ found[1]):
        kind, name, _ = differing[0]
        raise ElwError(
            f"The {kind} {name} comes out otherwise in a new file, so {warehouse.path} stays as it is: drop it, or "
            "make it anew."
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\w+", text)))


def verify_rows(warehouse: Warehouse, old: str, copy: str, tables: list[Table]) -> None:
    """Raises ElwError unless the tables of both databases hold the same rows."""
    with bar("Verify", 2 * sum(table.n_rows for table in tables), "row") as progress:
        for table in tables:
            prints = []
            for database in (old, copy):
                with _watched(warehouse, progress, table.n_rows):
                    prints += warehouse.run_formatted("compact/fingerprint", _places(table, database)).fetchall()
            if prints[0] != prints[1]:
                raise ElwError(
                    f"The rows of {table.name} came out otherwise in the new file, so {warehouse.path} stays as it is: "
                    "check the disk and its memory, then run elw compact again."
                )


@contextlib.contextmanager
def _watched(warehouse: Warehouse, progress: tqdm[Any], n_rows: int) -> Iterator[None]:
    """Move a bar on by n_rows while a statement runs."""
    begin, over = progress.n, threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            progress.update(max(0, begin + int(n_rows * warehouse.progress) - progress.n))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        progress.update(begin + n_rows - progress.n)
