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
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from energy_lens.errors import UsageError, WarehouseError
from energy_lens.warehouse import migrations
from energy_lens.warehouse.files import HeldError, lock, sync
from energy_lens.warehouse.interrupts import interruptibly, interrupts_noticed, translated_errors
from energy_lens.warehouse.results import Result

if TYPE_CHECKING:
    import polars


DEFAULT_FILE = "elw.duckdb"

#: Files are written so that every DuckDB from this version on can read them.
STORAGE_VERSION = "v1.5.0"

#: Statements that reach files; COPY … FROM DATABASE and IMPORT DATABASE come as PRAGMA in DuckDB 2.0.
_FILE_STATEMENTS = {"COPY", "COPY_DATABASE", "EXPORT", "ATTACH", "LOAD"}
_FILE_WORDS = re.compile(r"\b(copy|export|import|attach|load)\b", re.IGNORECASE)

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
    is_query: bool  #: it can stand in parentheses where a table can


class Warehouse:
    """A warehouse file, open. Reading is the default: read-only, no files, no network, configuration locked.

    path: the file; else ELW_WAREHOUSE, else elw.duckdb in this folder.
    writable: open to write; the file is made if there is none, and brought to this version's schema.
    wait_seconds: how long to wait while another process holds the file; by default READER_WAIT_SECONDS.
    config: further DuckDB settings, such as memory_limit.
    restricted: statements reach no file or network and change no setting; by default so when reading.
    allowed_files: files that restricted statements may reach all the same.
    Raises WarehouseError when the file is missing, held for too long, damaged, or of a newer version.
    """

    #: The file lacks migrations of this version; it is read as it is.
    behind: bool

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        writable: bool = False,
        wait_seconds: float | None = None,
        config: Mapping[str, str] | None = None,
        restricted: bool | None = None,
        allowed_files: Sequence[Path] = (),
    ) -> None:
        self.path = warehouse_path(path)
        self.writable = writable
        self._restricted = False
        wait = READER_WAIT_SECONDS if wait_seconds is None else wait_seconds
        if writable:
            _create_if_missing(self.path)
        self._connection = connect(self.path, writable, wait, dict(config or {}))
        try:
            if not writable if restricted is None else restricted:
                self._restrict(allowed_files)
            if writable:
                with interrupts_noticed():
                    migrations.migrate(self._connection, self.path)
            self.behind = not writable and migrations.check(self._connection, self.path)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, duckdb.Error):
                raise _opening_failure(self.path, error) from error
            raise

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def schema_number(self) -> int:
        """The last migration that was applied to the file."""
        number: int = self.run("queries/schema_number").value()
        return number

    def sql(self, query: str, /, **parameters: Any) -> Result:
        """Run one statement; `$name` in it is bound to the keyword argument of that name.

        Raises UsageError, with DuckDB's own reason, when the statement cannot be run.
        """
        if self._restricted:
            self._refuse_files(query)
        return Result(interruptibly(self._connection, lambda: self._connection.execute(query, parameters or None)))

    def statements(self, script: str) -> list[Statement]:
        """The statements of a script, in order; comments and empty statements are none.

        Raises UsageError when the script cannot be parsed.
        """
        with translated_errors():
            parsed = self._connection.extract_statements(script)
        if not all(statement.query.strip() for statement in parsed):
            # DuckDB 1.5 makes two statements of a PIVOT and loses their text, so the script stays in one piece.
            parameters = frozenset[str]().union(*(statement.named_parameters for statement in parsed))
            return [Statement(script, parameters, is_query=len(parsed) == 2)]
        queries = ("SELECT", "MULTI")  # MULTI is how PIVOT comes in DuckDB 2.0
        return [
            Statement(statement.query, frozenset(statement.named_parameters), statement.type.name in queries)
            for statement in parsed
        ]

    def run(self, name: str, /, **parameters: Any) -> Result:
        """Run the statement in sql/<name>.sql."""
        from energy_lens.sql import statement

        return self.sql(statement(name), **parameters)

    def frame(self, name: str, /, **parameters: Any) -> polars.DataFrame:
        """The rows of the statement in sql/<name>.sql as Arrow brings them: lists by the million come in no time.

        The types are Arrow's: a HUGEINT becomes a float, unlike with `Result.pl`.
        """
        import polars

        from energy_lens.sql import statement

        text = statement(name)
        return interruptibly(
            self._connection, lambda: polars.DataFrame(self._connection.sql(text, params=parameters or None))
        )

    def run_formatted(self, name: str, identifiers: Mapping[str, str], /, **parameters: Any) -> Result:
        """Run sql/<name>.sql with quoted identifiers put in for its {placeholders}."""
        from energy_lens.sql import statement

        text = statement(name)
        for placeholder, identifier in identifiers.items():
            text = text.replace("{" + placeholder + "}", identifier)
        return self.sql(text, **parameters)

    def copy_to(self, file: Path, query: str, options: str, /, **parameters: Any) -> None:
        """Write the rows of a query to a file, by DuckDB itself: as `options` say, such as FORMAT parquet.

        A restricted warehouse must have been given the file among its `allowed_files`.
        """
        target = str(file).replace("'", "''")
        statement = f"COPY (\n{query}\n) TO '{target}' ({options}, USE_TMP_FILE false)"
        interruptibly(self._connection, lambda: self._connection.execute(statement, parameters or None))

    def append(self, table: str, frame: polars.DataFrame, order_by: Sequence[str] = ()) -> None:
        """Insert a frame's rows by column name, sorted by `order_by`; columns that are left out become NULL."""
        # polars' Null type has no validity bitmap in Arrow, which DuckDB refuses; such a column is NULL anyway.
        frame = frame.select(name for name, kind in frame.schema.items() if str(kind) != "Null")
        present = [column for column in order_by if column in frame.columns]
        order = f" ORDER BY {', '.join(present)}" if present else ""
        with translated_errors():
            self._connection.register("frame_to_append", _ArrowStream(frame))
            try:
                self._connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM frame_to_append{order}")
            finally:
                # After a failure the transaction is aborted and refuses this too; the first error is the one to tell.
                with contextlib.suppress(duckdb.Error):
                    self._connection.unregister("frame_to_append")

    @property
    def progress(self) -> float:
        """Share of the statement under way that is done, as DuckDB guesses; to be asked from another thread."""
        percent: float = self._connection.query_progress()
        return max(0.0, percent / 100)

    def abandon_transaction(self) -> bool:
        """Roll back a transaction that a script began and did not end; whether there was one."""
        try:
            self._connection.execute("ROLLBACK")
        except duckdb.Error:
            return False
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: commits at the end, rolls back on any error, Ctrl-C included."""
        with translated_errors():
            self._connection.execute("BEGIN TRANSACTION")
        try:
            yield
            with translated_errors():
                self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                self._connection.execute("ROLLBACK")
            raise

    def _restrict(self, allowed_files: Sequence[Path]) -> None:
        """No files, no network, and the configuration locked, so that a statement cannot undo it."""
        if allowed_files:
            self.sql("SET allowed_paths = $paths", paths=[str(file) for file in allowed_files])
        self.sql("SET enable_external_access = false")
        self.sql("SET lock_configuration = true")
        self._restricted = True

    def _refuse_files(self, query: str) -> None:
        """Refuse what writes files, since DuckDB lets a statement reach the warehouse's own whatever its settings are:
        COPY … TO would overwrite a file that is open to read (measured).
        """
        with translated_errors():
            statements = self._connection.extract_statements(query)
        for statement in statements:
            name = statement.type.name
            wrapped = name in ("EXPLAIN", "PREPARE", "PRAGMA") and _FILE_WORDS.search(query)
            if name in _FILE_STATEMENTS or wrapped:
                word = wrapped[1].upper() if wrapped else name.replace("_", " ")
                raise UsageError(
                    f"{word} is refused, since a query reaches no files: elw sql --output writes its rows."
                )


class _ArrowStream:
    """Hands a polars frame to DuckDB as an Arrow stream; DuckDB wants pyarrow when it sees the frame itself."""

    def __init__(self, frame: polars.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


# ------------------------------------------------------------------------------------------------ opening


def _create_if_missing(path: Path) -> None:
    """Make a new warehouse whole or not at all: FILE.new gets the schema and then the name, whatever kills us.

    An empty file, such as mktemp leaves, counts as missing.
    """

    def missing() -> bool:
        return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))

    if not missing() or not os.path.isdir(path.parent):
        return
    new = path.with_name(path.name + ".new")
    log = path.with_name(path.name + ".wal")
    try:
        with _folder_lock(path.parent):
            if not missing():  # another process was faster
                return
            if log.exists():
                raise WarehouseError(f"{log} is left of a warehouse that is gone: bring {path} back, or remove {log}.")
            for leftover in (new, new.with_name(new.name + ".wal")):
                leftover.unlink(missing_ok=True)
            connection = connect(new, True, 0.0, {})
            try:
                with interrupts_noticed():
                    migrations.migrate(connection, path)
                    connection.execute("CHECKPOINT")
            finally:
                connection.close()
            sync(new)
            os.replace(new, path)  # not through `files`: DuckDB makes the file, and a log beside it
            sync(path.parent)
    except OSError as error:
        raise WarehouseError(f"{path} cannot be made ({error.strerror}): name another file with --db.") from error


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time makes a warehouse in a folder; without effect where folders cannot be locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def connect(path: Path, writable: bool, wait_seconds: float, config: dict[str, str]) -> duckdb.DuckDBPyConnection:
    """A connection to a file as it is: what `Warehouse` opens, before it looks at the schema.

    Raises WarehouseError when there is no such file to open, LockedError when it is held for longer than that.
    """
    if path.parent.name == compaction_folder(path).name:
        whole = path.parent.parent / path.name
        raise WarehouseError(f"{path} is the unfinished work of elw compact: name {whole} with --db.")
    if not writable and not os.path.exists(path):
        raise WarehouseError(f"There is no warehouse at {path}: make one with elw ingest, or name another with --db.")
    if os.path.isdir(path):
        raise WarehouseError(f"{path} is a folder, not a warehouse file: name a file with --db.")
    if writable and not os.path.isdir(path.parent):
        raise WarehouseError(f"The folder {path.parent} does not exist: make it, or name another file with --db.")
    settings = {"python_enable_replacements": "false", **config}
    if writable:
        settings["storage_compatibility_version"] = STORAGE_VERSION
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=not writable, config=settings)
            # In python -c, a prompt or a notebook DuckDB draws a bar on stdout, among the data.
            connection.execute("SET enable_progress_bar = false")
            return connection
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


def compaction_folder(path: Path) -> Path:
    """Where a compaction of that file works; hidden, so that no corpus takes it for text."""
    return path.with_name(f".{path.name}.compact")


@contextlib.contextmanager
def ingest_lock(path: Path) -> Iterator[None]:
    """Hold FILE.ingest.lock: one ingest or compaction per warehouse, by whatever link it is named.

    The lock is the kernel's and ends with the process, however that ends; the file stays. Whoever holds it knows that
    no compaction is at work, and removes what a killed one left.
    Raises LockedError when another process holds it.
    """
    path = Path(os.path.realpath(path))
    file = path.with_name(path.name + ".ingest.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(file))
        except HeldError as error:
            raise LockedError(
                f"Another ingest or compaction (process {error.holder}) is writing {path}: wait for it, or name "
                "another file with --db."
            ) from error
        except OSError as error:
            raise WarehouseError(
                f"{file} cannot be written ({error.strerror}): name another file with --db."
            ) from error
        shutil.rmtree(compaction_folder(path), ignore_errors=True)
        yield


# ------------------------------------------------------------------------------------------------ polars
