"""A warehouse file in, the same warehouse out, sorted as a whole and without gaps: what `elw compact` does.

Ingest sorts the rows of each group, so that a file of many groups holds a feature's activations in as many places.

1. Hold the ingest lock; remove what a killed compaction left; see that the disk has room; fold a write-ahead log in.
2. Open the file to read only: other readers go on, and no writer gets in before the end. A new database in a hidden
   folder beside it gets the same definitions, whoever made them, then each table's rows, sorted by
   `physical_order.SORTED_BY` where that names the table, else in the order in which they lie.
3. Close the new file and read it anew: definitions, counts and sums of hashes must equal the old file's.
4. Have the disk hold it, and give it the old one's name. Until this last step the old file is not touched, and the step
   itself happens or does not: a kill at any moment leaves the old file or the new one, either of them whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from energy_lens.console import bar
from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.sql import identifier, literal
from energy_lens.warehouse.database import (
    STORAGE_VERSION,
    LockedError,
    Warehouse,
    compaction_folder,
    connect,
    ingest_lock,
    warehouse_path,
)
from energy_lens.warehouse.files import sync
from energy_lens.warehouse.interrupts import translated_errors
from energy_lens.warehouse.output import Rows
from energy_lens.warehouse.physical_order import SORTED_BY

if TYPE_CHECKING:
    from tqdm import tqdm

#: What DuckDB may hold in memory; what it sorts beyond that goes to a file in the hidden folder.
MEMORY_LIMIT = "1200MB"

#: Free disk that is asked for, in sizes of the file: the new one, and what a sort puts aside.
FREE_SIZES = 2

#: Share of the file that may be free blocks in one that counts as compact.
GAPS = 0.1

LOOK_UPS = 5


@dataclass(frozen=True)
class Compaction:
    """What became of a file."""

    path: Path
    rewritten: bool  #: False: it was compact already
    bytes_before: int
    bytes_after: int
    seconds_before: float | None  #: to read all activations of a feature; None: the file has none
    seconds_after: float | None


@dataclass(frozen=True)
class _Table:
    """A table of the file, and what its rows were before."""

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


def compact(db: Path | None = None) -> Compaction:
    """Rewrite a warehouse file sorted and without gaps; a file that is so already is left as it is.

    Raises WarehouseError when it cannot be opened, LockedError while another process writes it, ElwError when the disk
    lacks room or the new file is not equal to the old one, which then stays.
    """
    Warehouse(db).close()  # says what is wrong with the file before a lock is made beside it
    named = warehouse_path(db)
    path = Path(os.path.realpath(named))
    if not os.access(path, os.W_OK):  # a rename would not mind
        raise WarehouseError(f"{path} is write-protected: change its mode, or compact a copy.")
    with ingest_lock(path):
        for name in dict.fromkeys((named, path)):  # DuckDB names the log after the link through which it opened
            _fold_log(name)
        folder = compaction_folder(path)
        _make_folder(folder, path)
        try:
            config = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(folder / "spill")}
            with Warehouse(path, restricted=False, config=config) as warehouse:
                if _log(path).exists():
                    raise LockedError(f"{path} was changed meanwhile: run elw compact again.")
                for setting in ("enable_progress_bar = true", "enable_progress_bar_print = false"):  # to be asked
                    warehouse.sql(f"SET {setting}")
                return _compacted(warehouse, path, folder / path.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _compacted(warehouse: Warehouse, path: Path, new: Path) -> Compaction:
    """The work on a file that is open to read, with everything around it done."""
    old = str(warehouse.sql("SELECT current_database()").value())
    tables = _tables(warehouse, old)
    size = path.stat().st_size
    before = _look_up_seconds(warehouse, old)
    if _is_compact(warehouse, old, tables):
        return Compaction(path, False, size, size, before, before)
    copy = f"{old} compacted"
    try:
        _attach(warehouse, new, copy, f"STORAGE_VERSION {literal(STORAGE_VERSION)}")
        warehouse.sql(f"COPY FROM DATABASE {identifier(old)} TO {identifier(copy)} (SCHEMA)").fetchall()
        _verify_definitions(warehouse, old, copy, exactly=True)
        _copy_rows(warehouse, old, copy, tables)
        warehouse.sql(f"CHECKPOINT {identifier(copy)}").fetchall()
        warehouse.sql(f"DETACH {identifier(copy)}").fetchall()
    except UsageError as error:  # of a statement that is ours: something in the file cannot be made again
        raise ElwError(
            f"{path} cannot be compacted and stays as it is ({_reason(error)}): drop what that names."
        ) from (error)
    _attach(warehouse, new, copy, "READ_ONLY")
    _verify_definitions(warehouse, old, copy, exactly=False)
    _verify_rows(warehouse, old, copy, tables)
    after = _look_up_seconds(warehouse, copy)
    warehouse.sql(f"DETACH {identifier(copy)}").fetchall()
    try:
        _take_name(new, path)
    except OSError as error:
        raise ElwError(f"{path} cannot be replaced ({error.strerror}) and stays as it is.") from error
    return Compaction(path, True, size, path.stat().st_size, before, after)


def gain_rows(gain: Compaction) -> Rows:
    """What a compaction changed: a row for the file's bytes, and one for the milliseconds of a look-up."""
    columns = [("figure", "varchar"), ("before", "double"), ("after", "double")]
    rows: list[tuple[Any, ...]] = [("bytes", gain.bytes_before, gain.bytes_after)]
    if gain.seconds_before is not None and gain.seconds_after is not None:
        milliseconds = (round(1e3 * seconds, 2) for seconds in (gain.seconds_before, gain.seconds_after))
        rows.append(("milliseconds to read a feature's activations", *milliseconds))
    return Rows.of(columns, rows)


# ------------------------------------------------------------------------------------------------ files


def _log(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _fold_log(path: Path) -> None:
    """Bring what a killed writer left in its log into the file."""
    if not _log(path).exists():
        return
    connection = connect(path, True, 0.0, {})
    try:
        with translated_errors():
            connection.execute("CHECKPOINT")
    finally:
        connection.close()
    if _log(path).exists():
        raise ElwError(f"{_log(path)} cannot be brought into {path}: see who may write there.")


def _make_folder(folder: Path, path: Path) -> None:
    """The folder to work in, if the disk has room. Raises ElwError."""
    try:
        wanted, free = FREE_SIZES * path.stat().st_size, shutil.disk_usage(path.parent).free
        if free < wanted:
            raise ElwError(
                f"To compact {path} takes {_megabytes(wanted)} of free disk, and {_megabytes(free)} are there: make "
                "room."
            )
        folder.mkdir()
    except OSError as error:
        raise ElwError(f"{folder} cannot be made ({error.strerror}): see who may write there.") from error


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"


def _attach(warehouse: Warehouse, file: Path, name: str, options: str) -> None:
    """Open a further database under a name."""
    access = "" if options == "READ_ONLY" else "READ_WRITE, "
    warehouse.sql(f"ATTACH {literal(str(file))} AS {identifier(name)} ({access}{options})").fetchall()


def _take_name(new: Path, path: Path) -> None:
    """Put the new file in the old one's place, for good.

    The old file must still be open to read: a writer that opened it a moment ago finds it locked, and opens this one.
    """
    if _log(new).exists():
        raise ElwError(f"{_log(new)} is left, which must not be: {path} stays as it is.")
    os.chmod(new, stat.S_IMODE(path.stat().st_mode))
    sync(new)
    os.replace(new, path)
    with contextlib.suppress(OSError):  # some file systems sync no folders
        sync(path.parent)


# ------------------------------------------------------------------------------------------------ rows


def _tables(warehouse: Warehouse, database: str) -> list[_Table]:
    """All tables, the ones that others refer to before those."""
    rows = warehouse.run("compact/tables", database=database).fetchall()
    tables = {
        (schema, name): _Table(schema, name, n_rows, has_generated, frozenset(refers_to))
        for schema, name, n_rows, has_generated, refers_to in rows
    }
    graph: Mapping[Any, Any] = {
        (schema, name): [(schema, other) for other in sorted(table.refers_to - {name})]
        for (schema, name), table in tables.items()
    }
    return [tables[key] for key in TopologicalSorter(graph).static_order()]


def _is_compact(warehouse: Warehouse, database: str, tables: list[_Table]) -> bool:
    """Whether every table lies in order, and few blocks of the file are free."""
    total, free = warehouse.run("compact/blocks", database=database).fetchall()[0]
    if free > GAPS * total:
        return False
    return not any(
        warehouse.run_formatted("compact/out_of_order", _places(table, database, table.keys)).value()
        for table in tables
        if table.keys
    )


def _reason(error: UsageError) -> str:
    """DuckDB's own, on one line."""
    return " ".join(str(error).split("\n\n")[0].split())


def _places(table: _Table, database: str, keys: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    return {"table": table.within(database), "keys": ", ".join(map(identifier, keys)), **more}


def _copy_rows(warehouse: Warehouse, old: str, copy: str, tables: list[_Table]) -> None:
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
                    raise UsageError(f"table {table.name}, {_reason(error)}") from error


def _settable(warehouse: Warehouse, table: _Table, old: str, copy: str) -> Iterator[str]:
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


def _verify_definitions(warehouse: Warehouse, old: str, copy: str, *, exactly: bool) -> None:
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


def _verify_rows(warehouse: Warehouse, old: str, copy: str, tables: list[_Table]) -> None:
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


def _look_up_seconds(warehouse: Warehouse, database: str) -> float | None:
    """Median time of reading all activations of a typical feature; None when there is none, as in an empty file."""
    place = {"table": ".".join(map(identifier, (database, "main", "activations")))}
    feature = warehouse.run_formatted("compact/typical_feature", place).fetchone()
    if feature is None:
        return None
    seconds = []
    for _ in range(LOOK_UPS):
        started = time.perf_counter()
        named = dict(zip(("run", "layer", "feature"), feature, strict=True))
        warehouse.run_formatted("compact/look_up", place, **named).fetchall()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
