"""A warehouse file in, the same warehouse out, sorted as a whole and without gaps: what `elw compact` does.

Ingest sorts the rows of each group, so that a file of many groups holds a feature's activations in as many places.

1. Hold the ingest lock; remove what a killed compaction left; fold a write-ahead log in.
2. Open the file to read only: other readers go on, and no writer gets in before the end. If it is not compact yet and
   the disk has room, a new database in a hidden folder beside it gets the same definitions, whoever made them, then
   each table's rows, sorted by `physical_order.SORTED_BY` where that names the table, else in the order they lie in.
3. Close the new file and read it anew: definitions, counts and sums of hashes must equal the old file's.
4. Have the disk hold it, and give it the old one's name. Until this last step the old file is not touched, and the step
   itself happens or does not: a kill at any moment leaves the old file or the new one, either of them whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.sql import identifier, literal
from energy_lens.warehouse.copying import (
    copy_rows,
    is_compact,
    reason_of,
    tables_of,
    verify_definitions,
    verify_rows,
)
from energy_lens.warehouse.database import LockedError, Warehouse, compaction_folder, ingest_lock, warehouse_path
from energy_lens.warehouse.files import sync
from energy_lens.warehouse.interrupts import translated_errors
from energy_lens.warehouse.opening import STORAGE_VERSION, connect
from energy_lens.warehouse.output import Rows

#: What DuckDB may hold in memory; what it sorts beyond that goes to a file in the hidden folder.
MEMORY_LIMIT = "1200MB"

#: Free disk that is asked for, in sizes of the file: the new one, and what a sort puts aside.
FREE_SIZES = 2

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
    with ingest_lock(path, "elw compact"):
        for name in dict.fromkeys((named, path)):  # DuckDB names the log after the link through which it opened
            _fold_log(name)
        folder = compaction_folder(path)
        _make_folder(folder)
        try:
            config = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(folder / "spill")}
            with Warehouse(path, restricted=False, config=config) as warehouse:
                if _log(path).exists():
                    raise LockedError(f"{path} was changed meanwhile: run elw compact again.")
                with contextlib.suppress(UsageError):  # refused in a notebook without ipywidgets: then nobody can ask
                    for setting in ("enable_progress_bar = true", "enable_progress_bar_print = false"):
                        warehouse.sql(f"SET {setting}")
                return _compacted(warehouse, path, folder / path.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _compacted(warehouse: Warehouse, path: Path, new: Path) -> Compaction:
    """The work on a file that is open to read, with everything around it done."""
    old = str(warehouse.sql("SELECT current_database()").value())
    tables = tables_of(warehouse, old)
    size = path.stat().st_size
    before = _look_up_seconds(warehouse, old)
    if is_compact(warehouse, old, tables):
        return Compaction(path, False, size, size, before, before)
    _check_room(path)
    copy = f"{old} compacted"
    try:
        _attach(warehouse, new, copy, f"STORAGE_VERSION {literal(STORAGE_VERSION)}")
        warehouse.sql(f"COPY FROM DATABASE {identifier(old)} TO {identifier(copy)} (SCHEMA)").fetchall()
        verify_definitions(warehouse, old, copy, exactly=True)
        copy_rows(warehouse, old, copy, tables)
        warehouse.sql(f"CHECKPOINT {identifier(copy)}").fetchall()
        warehouse.sql(f"DETACH {identifier(copy)}").fetchall()
    except UsageError as error:  # of a statement that is ours: something in the file cannot be made again
        reason = reason_of(error)
        raise ElwError(f"{path} cannot be compacted and stays as it is ({reason}): drop what that names.") from error
    _attach(warehouse, new, copy, "READ_ONLY")
    verify_definitions(warehouse, old, copy, exactly=False)
    verify_rows(warehouse, old, copy, tables)
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
    connection = connect(path, True, {})
    try:
        with translated_errors():
            connection.execute("CHECKPOINT")
    finally:
        connection.close()
    if _log(path).exists():
        raise ElwError(f"{_log(path)} cannot be brought into {path}: see who may write there.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as error:
        raise ElwError(f"{folder} cannot be made ({error.strerror}): see who may write there.") from error


def _check_room(path: Path) -> None:
    """Raises ElwError when the disk has too little room for the new file and what a sort puts aside."""
    wanted, free = FREE_SIZES * path.stat().st_size, shutil.disk_usage(path.parent).free
    if free < wanted:
        raise ElwError(
            f"To compact {path} takes {_megabytes(wanted)} of free disk, and {_megabytes(free)} are there: make room."
        )


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
