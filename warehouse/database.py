"""A warehouse file: opened to read or to write, with one connection, and every failure a sentence.

    with Warehouse("elw.duckdb") as warehouse:                        # read-only, without file or network access
        frame = warehouse.sql("SELECT * FROM efas WHERE feature = $feature", feature=656).pl()

Ingest opens a warehouse only to commit a group, so readers and a running ingest take turns: whoever finds the file
held waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from energy_lens.warehouse import migrations
from energy_lens.warehouse.errors import ElwError, UsageError, WarehouseError

if TYPE_CHECKING:
    import polars

T = TypeVar("T")

DEFAULT_FILE = "elw.duckdb"

#: Files are written so that every DuckDB from this version on can read them.
STORAGE_VERSION = "v1.5.0"

#: A commit holds the file for a tenth of a second, so a reader that waits this long meets another reader or a fault.
READER_WAIT_SECONDS = 10.0


def warehouse_path(path: str | Path | None = None) -> Path:
    """The file that is meant: the given one, else ELW_WAREHOUSE, else elw.duckdb here."""
    return Path(path or os.environ.get("ELW_WAREHOUSE") or DEFAULT_FILE).expanduser()


class LockedError(WarehouseError):
    """Another process holds the file; waiting may help."""


@dataclass(frozen=True)
class Statement:
    """One statement of a script, as DuckDB's parser cuts it."""

    text: str
    parameters: frozenset[str]  #: names of its $name parameters
    changes_rows: bool  #: INSERT and its like, whose result is a count of rows unless it says RETURNING
    has_result: bool  #: False for CREATE, SET and the like


class Result:
    """Rows of a query, fetched once by whichever accessor is called."""

    def __init__(self, relation: duckdb.DuckDBPyConnection) -> None:
        self._cursor = relation

    @property
    def columns(self) -> list[str]:
        return [column[0] for column in self._cursor.description or []]

    @property
    def types(self) -> list[str]:
        """DuckDB type names, by column."""
        return [str(column[1]) for column in self._cursor.description or []]

    @property
    def kinds(self) -> list[Any]:
        """DuckDB types, by column, as objects that know their children."""
        return [column[1] for column in self._cursor.description or []]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return _interruptibly(self._cursor, self._cursor.fetchall)

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        return _interruptibly(self._cursor, lambda: self._cursor.fetchmany(size))

    def fetchone(self) -> tuple[Any, ...] | None:
        return _interruptibly(self._cursor, self._cursor.fetchone)

    def value(self) -> Any:
        """The first column of the first row; None when there is no row."""
        row = self.fetchone()
        return row[0] if row else None

    def numpy(self) -> dict[str, Any]:
        """Columns as numpy arrays (masked where there are NULLs)."""
        return _interruptibly(self._cursor, self._cursor.fetchnumpy)

    def pl(self) -> polars.DataFrame:
        """A polars frame; needs no pyarrow. Names that repeat become name, name_1, …"""
        from energy_lens.warehouse.frames import frame

        return frame(self)


class Warehouse:
    """A warehouse file, open. Reading is the default: read-only, no files, no network, configuration locked.

    path: the file; else ELW_WAREHOUSE, else elw.duckdb in this folder.
    writable: open to write; the file is made if there is none, and brought to this version's schema.
    wait_seconds: how long to wait while another process holds the file.
    Raises WarehouseError when the file is missing, held for too long, damaged, or of a newer version.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        writable: bool = False,
        wait_seconds: float = READER_WAIT_SECONDS,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.path = warehouse_path(path)
        self.writable = writable
        self._connection = _connect(self.path, writable, wait_seconds, dict(config or {}))
        try:
            if writable:
                migrations.migrate(self._connection, self.path)
            else:
                self.behind = migrations.check(self._connection, self.path)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def sql(self, query: str, /, **parameters: Any) -> Result:
        """Run one statement; `$name` in it is bound to the keyword argument of that name.

        Raises UsageError, with DuckDB's own reason, when the statement cannot be run.
        """
        with translated_errors():
            if parameters:
                return Result(self._connection.execute(query, parameters))
            return Result(self._connection.execute(query))

    def run(self, name: str, /, **parameters: Any) -> Result:
        """Run the statement in sql/<name>.sql."""
        from energy_lens.sql import statement

        return self.sql(statement(name), **parameters)

    def run_formatted(self, name: str, identifiers: Mapping[str, str], /, **parameters: Any) -> Result:
        """Run sql/<name>.sql with quoted identifiers put in for its {placeholders}."""
        from energy_lens.sql import statement

        text = statement(name)
        for placeholder, identifier in identifiers.items():
            text = text.replace("{" + placeholder + "}", identifier)
        return self.sql(text, **parameters)

    def append(self, table: str, frame: polars.DataFrame, order_by: Sequence[str] = ()) -> None:
        """Insert a frame's rows by column name, sorted by `order_by`; columns that are left out become NULL."""
        # polars' Null type has no validity bitmap in Arrow, which DuckDB refuses; such a column is NULL anyway.
        frame = frame.select(name for name, kind in frame.schema.items() if str(kind) != "Null")
        order = f" ORDER BY {', '.join(order_by)}" if order_by else ""
        with translated_errors():
            self._connection.register("frame_to_append", _ArrowStream(frame))
            try:
                self._connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM frame_to_append{order}")
            finally:
                # After a failure the transaction is aborted and refuses this too; the first error is the one to tell.
                with contextlib.suppress(duckdb.Error):
                    self._connection.unregister("frame_to_append")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: commits at the end, rolls back on any error, Ctrl-C included."""
        self._connection.execute("BEGIN TRANSACTION")
        try:
            yield
            with translated_errors():
                self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                self._connection.execute("ROLLBACK")
            raise


class _ArrowStream:
    """Hands a polars frame to DuckDB as an Arrow stream; DuckDB wants pyarrow when it sees the frame itself."""

    def __init__(self, frame: polars.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


# ------------------------------------------------------------------------------------------------ opening


def _connect(path: Path, writable: bool, wait_seconds: float, config: dict[str, str]) -> duckdb.DuckDBPyConnection:
    if not writable and not path.exists():
        raise WarehouseError(f"There is no warehouse at {path}: make one with elw ingest, or name another with --db.")
    if path.is_dir():
        raise WarehouseError(f"{path} is a folder, not a warehouse file: name a file with --db.")
    if writable and not path.parent.is_dir():
        raise WarehouseError(f"The folder {path.parent} does not exist: make it, or name another file with --db.")
    settings = {"python_enable_replacements": "false", **config}
    if writable:
        settings["storage_compatibility_version"] = STORAGE_VERSION
    else:
        settings |= {"enable_external_access": "false", "lock_configuration": "true"}
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return duckdb.connect(str(path), read_only=not writable, config=settings)
        except duckdb.Error as error:
            failure = _opening_failure(path, error)
        if not isinstance(failure, LockedError) or time.monotonic() >= deadline:
            raise failure
        time.sleep(0.05)


def _opening_failure(path: Path, error: duckdb.Error) -> WarehouseError:
    text = " ".join(str(error).split())
    if "lock on file" in text or "Conflicting lock" in text:
        holder = re.search(r"held in (.+?) \(PID (\d+)\)", text)
        who = f"{holder[1]} (process {holder[2]})" if holder else "another process"
        return LockedError(f"{path} is held by {who}: wait for it or close it, then try again.")
    if "different configuration" in text:
        return WarehouseError(f"{path} is already open in this process: use that Warehouse, or close it first.")
    if "version number" in text or "newer version" in text:
        return WarehouseError(f"{path} was written by a newer DuckDB than {duckdb.__version__}: upgrade duckdb.")
    if "Permission denied" in text or "read-only" in text.lower():
        return WarehouseError(f"{path} cannot be opened for want of permission: check its owner and mode.")
    if "No space left" in text:
        return WarehouseError(f"{path} cannot be opened, since the disk is full: make room and run it again.")
    return WarehouseError(f"{path} is not a readable warehouse ({text[:160]}): restore it from a copy or ingest anew.")


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """DuckDB's errors as ours: a bad statement is a usage error, a full disk and the rest are failures."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InternalException, duckdb.FatalException) as error:
        text = str(error).strip()
        if "No space left" in text or ("disk" in text.lower() and "full" in text.lower()):
            raise ElwError("The disk is full; nothing was half-written: make room and run the command again.") from error
        raise ElwError(f"DuckDB failed: {text.splitlines()[0]}") from error
    except duckdb.Error as error:
        raise UsageError(str(error).strip()) from error


@contextlib.contextmanager
def ingest_lock(path: Path) -> Iterator[None]:
    """Hold FILE.ingest.lock: one ingest (or compaction) per warehouse.

    The lock is the kernel's and ends with the process, however that ends; the empty file stays.
    Raises LockedError when another process holds it.
    """
    lock = path.with_name(path.name + ".ingest.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise WarehouseError(f"{lock} cannot be written ({error.strerror}): name another file with --db.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(
                f"Another ingest (process {holder}) is writing {path}: wait for it, or name another file with --db."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
