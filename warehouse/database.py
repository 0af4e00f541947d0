"""A warehouse file: opened to read or to write, with one connection, and every failure a sentence.

    with Warehouse("elw.duckdb") as warehouse:                        # read-only, without file or network access
        frame = warehouse.sql("SELECT * FROM efas WHERE feature = $feature", feature=656).pl()

Ingest opens a warehouse only to commit a group, so readers and a running ingest take turns: whoever finds the file
held waits for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from energy_lens.errors import UsageError, WarehouseError
from energy_lens.warehouse import migrations
from energy_lens.warehouse.interrupts import interruptibly, interrupts_noticed, translated_errors
from energy_lens.warehouse.locks import HeldError, NoLocksError, lock
from energy_lens.warehouse.opening import (
    LockedError,
    compaction_folder,
    create_if_missing,
    opening_failure,
    warehouse_path,
)
from energy_lens.warehouse.refusals import file_statement
from energy_lens.warehouse.results import Result
from energy_lens.warehouse.sharing import Membership, Terms, join, keeps_something

if TYPE_CHECKING:
    import polars


__all__ = ["LockedError", "Statement", "Warehouse", "compaction_folder", "ingest_lock", "warehouse_path"]

#: Words with which a statement begins a transaction.
_BEGINNING = ("BEGIN", "START")

#: A commit holds the file for a tenth of a second, so a reader that waits this long meets another reader or a fault.
READER_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Statement:
    """One statement of a script, as DuckDB's parser cuts it."""

    text: str
    parameters: frozenset[str]  #: names of its $name parameters
    is_query: bool  #: it can stand in parentheses where a table can


class Warehouse:
    """A warehouse file, open. Reading is the default: read-only, no files, no network, configuration locked.

    path: the file; else ELW_WAREHOUSE, else elw.duckdb in this folder.
    writable: open to write; the file is brought to this version's schema.
    wait_seconds: how long to wait while another process holds the file; by default READER_WAIT_SECONDS.
    config: further DuckDB settings, such as memory_limit.
    restricted: statements reach no file or network and change no setting; by default so when reading.
    allowed_files: files that restricted statements may reach all the same.
    create: of a writable one, whether to make the file if there is none.

    Several of one file in a process share it, in threads too. One that wants it in another way, as a writer beside a
    reader, has it as soon as the others are idle, and they have it again when they are next used.
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
        config: Mapping[str, Any] | None = None,
        restricted: bool | None = None,
        allowed_files: Sequence[Path] = (),
        create: bool = True,
    ) -> None:
        self.path = warehouse_path(path)
        self.writable = writable
        self._wait = READER_WAIT_SECONDS if wait_seconds is None else wait_seconds
        self._terms = Terms(
            writable,
            restricted=not writable if restricted is None else restricted,
            config=tuple((str(name), str(value)) for name, value in (config or {}).items()),
            allowed_files=tuple(map(str, allowed_files)),
        )
        self._turn = threading.RLock()  # a connection takes one call at a time
        self._last: Callable[[], Result | None] = lambda: None  # a weak reference: DuckDB may have its rows yet
        self._member: Membership | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._in_transaction = False
        self._closed = False
        if writable and create:
            create_if_missing(self.path)
        try:
            with self._connected() as connection:
                if writable:
                    with interrupts_noticed():
                        migrations.migrate(connection, self.path)
                self.behind = not writable and migrations.check(connection, self.path)
        except BaseException as error:
            self.close()
            if isinstance(error, duckdb.Error):
                raise opening_failure(self.path, error) from error
            raise

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._turn:
            self._closed = True
            if (result := self._last()) is not None:
                result.lose()
            self._leave()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, for one statement; the last result holds its own rows from now on."""
        with self._turn:
            if self._closed:
                raise UsageError(f"{self.path} was closed: open it again with Warehouse(…).")
            if self._connection is None:
                self._member = join(self.path, self._terms, self._let_go, self._wait)
                self._connection = self._member.connection
            if (result := self._last()) is not None:
                result.hold()
            self._last = lambda: None
            yield self._connection

    def rest(self) -> bool:
        """Close the file until it is used again, so that others may have it meanwhile; whether it is closed now.

        Not within a transaction, nor where temporary tables would be lost.
        """
        return self._let_go()

    def _let_go(self) -> bool:
        """Close the connection until it is wanted again, for somebody who wants the file in another way.

        Not while a statement or a transaction is under way, nor where temporary tables would be lost.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self._connection is None:
                return True
            if self._in_transaction:
                return False
            if (result := self._last()) is not None:
                result.hold()
            self._last = lambda: None
            if keeps_something(self._connection):
                return False
            self._leave()
            return True
        finally:
            self._turn.release()

    def _leave(self) -> None:
        member, self._member, self._connection = self._member, None, None
        if member is not None:
            member.leave()

    @property
    def schema_number(self) -> int:
        """The last migration that was applied to the file."""
        number: int = self.run("queries/schema_number").value()
        return number

    def remake_views(self) -> list[str]:
        """Make elw's views and macros anew; returns the names of those that were gone or had been changed."""
        with self._connected() as connection:
            return migrations.remake_views(connection, self.path)

    def sql(self, query: str, /, **parameters: Any) -> Result:
        """Run one statement; `$name` in it is bound to the keyword argument of that name.

        Of several statements all are run, and the result is the last one's. It holds its own rows, whatever runs next.
        Raises UsageError, with DuckDB's own reason, when the statement cannot be run.
        """
        with self._connected() as connection:
            with translated_errors():
                parsed = connection.extract_statements(query)
            if not parsed:
                raise UsageError("The query is empty: give a statement.")
            if self._terms.restricted:
                _refuse_files(query, parsed)
            words = [_first_word(s.query) for s in parsed if s.type.name == "TRANSACTION" and s.query.split()]
            self._in_transaction |= any(word in _BEGINNING for word in words)
            bound = {name: _plain(value) for name, value in parameters.items()} or None
            result = Result(interruptibly(connection, lambda: connection.execute(query, bound)), self._turn, self)
            if words and words[-1] not in _BEGINNING:
                self._in_transaction = False
            self._last = weakref.ref(result)
            return result

    def statements(self, script: str) -> list[Statement]:
        """The statements of a script, in order; comments and empty statements are none.

        Raises UsageError when the script cannot be parsed.
        """
        with self._connected() as connection, translated_errors():
            parsed = connection.extract_statements(script)
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
        with self._connected() as connection:
            return interruptibly(connection, lambda: polars.DataFrame(connection.sql(text, params=parameters or None)))

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
        with self._connected() as connection:
            interruptibly(connection, lambda: connection.execute(statement, parameters or None))

    def append(self, table: str, frame: polars.DataFrame, order_by: Sequence[str] = ()) -> None:
        """Insert a frame's rows by column name, sorted by `order_by`; columns that are left out become NULL."""
        # polars' Null type has no validity bitmap in Arrow, which DuckDB refuses; such a column is NULL anyway.
        frame = frame.select(name for name, kind in frame.schema.items() if str(kind) != "Null")
        present = [column for column in order_by if column in frame.columns]
        order = f" ORDER BY {', '.join(present)}" if present else ""
        statement = f"INSERT INTO {table} BY NAME SELECT * FROM frame_to_append{order}"
        with self._connected() as connection:

            def insert() -> None:
                connection.register("frame_to_append", _ArrowStream(frame))
                try:
                    connection.execute(statement)
                finally:
                    # After a failure the transaction is aborted and refuses this too; the first error is to be told.
                    with contextlib.suppress(duckdb.Error):
                        connection.unregister("frame_to_append")

            interruptibly(connection, insert)  # DuckDB calls Python meanwhile, which a signal must not meet there

    @property
    def progress(self) -> float:
        """Share of the statement under way that is done, as DuckDB guesses; to be asked from another thread."""
        connection = self._connection  # without its turn, which whoever runs the statement has
        return 0.0 if connection is None else max(0.0, connection.query_progress() / 100)

    @property
    def in_transaction(self) -> bool:
        """Whether a statement began a transaction that is not ended yet."""
        return self._in_transaction

    def abandon_transaction(self) -> bool:
        """Roll back a transaction that a script began and did not end; whether there was one."""
        with self._connected() as connection:
            try:
                connection.execute("ROLLBACK")
            except duckdb.Error:
                return False
            finally:
                self._in_transaction = False
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: commits at the end, rolls back on any error, Ctrl-C included."""
        with self._connected() as connection, translated_errors():
            connection.execute("BEGIN TRANSACTION")
            self._in_transaction = True
        try:
            yield
            with self._connected() as connection, translated_errors():
                connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error, UsageError), self._connected() as connection:
                connection.execute("ROLLBACK")
            raise
        finally:
            self._in_transaction = False


def _refuse_files(query: str, parsed: Sequence[duckdb.Statement]) -> None:
    """Refuse what writes files, since DuckDB lets a statement reach the warehouse's own whatever its settings are:
    COPY … TO would overwrite a file that is open to read (measured with DuckDB 1.5).
    """
    word = file_statement(parsed, query)
    if word is not None:
        raise UsageError(f"{word} is refused, since a query reaches no files: elw sql --output writes its rows.")


def _first_word(statement: str) -> str:
    return statement.split()[0].upper().rstrip(";")


def _plain(value: Any) -> Any:
    """A parameter as Python has it, since DuckDB takes no numbers of numpy; its times to the microsecond."""
    if type(value).__module__ != "numpy":
        return value
    kind = value.dtype.kind
    if kind in "mM" and str(value.dtype).endswith("[ns]"):
        value = value.astype(f"{kind}8[us]")
    return value.tolist()


class _ArrowStream:
    """Hands a polars frame to DuckDB as an Arrow stream; DuckDB wants pyarrow when it sees the frame itself."""

    def __init__(self, frame: polars.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


# ------------------------------------------------------------------------------------------------ writing alone


def check_writable(path: str | Path) -> None:
    """Raises WarehouseError unless a warehouse can be written at that path, be it there yet or not; makes nothing.

    For work that takes long before it stores anything.
    """
    path = warehouse_path(path)
    if os.path.exists(path):
        Warehouse(path).close()
    elif not os.path.isdir(path.parent):
        raise WarehouseError(f"The folder {path.parent} does not exist: make it, or name another file with --db.")
    for place in (path, path.parent):  # DuckDB makes a log beside the file
        if os.path.exists(place) and not os.access(place, os.W_OK):
            raise WarehouseError(f"{place} cannot be written: change its mode, or name another file with --db.")


@contextlib.contextmanager
def ingest_lock(path: Path, command: str = "elw ingest") -> Iterator[None]:
    """Hold FILE.ingest.lock: one command that writes a warehouse at a time, by whatever link the file is named.

    The lock is the kernel's and ends with the process, however that ends; the file stays. Whoever holds it knows that
    no compaction is at work, and removes what a killed one left.
    command: that takes it, as a user types it. Raises LockedError when another process holds it.
    """
    path = Path(os.path.realpath(path))
    file = path.with_name(path.name + ".ingest.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(file, command))
        except HeldError as error:
            raise LockedError(
                f"{path} is being written by {error.holder}: wait for it, or name another file with --db."
            ) from error
        except NoLocksError as error:
            raise WarehouseError(
                f"{file} cannot be locked ({error.strerror}), since its file system knows no locks: keep the "
                "warehouse on a disk of this machine (--db)."
            ) from error
        except OSError as error:
            raise WarehouseError(
                f"{file} cannot be written ({error.strerror}): name another file with --db."
            ) from error
        shutil.rmtree(compaction_folder(path), ignore_errors=True)
        yield
