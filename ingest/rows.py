"""A table file in, its rows out one after the other: JSON lines, CSV and Parquet, read by DuckDB in batches.

The connection has no network, installs nothing and sees that one file. A row that is no text is handed on as such, with
its number; a file that is broken ends the reading with a sentence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from energy_lens.errors import UsageError, did_you_mean
from energy_lens.ingest.texts import unreadable
from energy_lens.sql import identifier, literal, statement

if TYPE_CHECKING:
    import duckdb

#: Kinds of table by suffix, and how their files may be compressed, by a second one (as DuckDB knows it too).
KINDS = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

#: Bytes of the longest row that is read: a longer one is a file without line ends, or a text that is better a file.
LONGEST_ROW = 32 << 20

#: What makes a name one that stands for several files.
GLOB = re.compile(r"[*?\[]")

#: Rows that are taken from DuckDB at once, which itself holds some tens of MB.
BATCH = 64


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what."""

    text: str | None = None  #: None: the column called text, and no table inside a folder is meant
    category: str | None = None  #: None: rows have their file's category
    id: str | None = None  #: None: rows are named by their number

    @property
    def of_text(self) -> str:
        return self.text or "text"


class Row(NamedTuple):
    """A row of a table."""

    number: int  #: from 1
    text: str | None  #: None: the row has none
    category: str | None
    id: str | None


@dataclass(frozen=True)
class TableFile:
    """A file of rows."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def location(self) -> str:
        """Where it is, for the warehouse: a URL of its own scheme, since a plain path stands for a text."""
        return f"rows:{quote(str(self.path.resolve()))}"

    def rows(self, columns: Columns) -> Iterator[Row]:
        """Its rows in order.

        Raises UsageError for a file that cannot be read, is broken or has no such column.
        """
        kind = kind_of(self.path)
        read = {"JSON lines": self._json_lines, "CSV": self._csv, "Parquet": self._parquet}[kind]
        with self._connection(kind) as connection:
            for number, (text, category, id_) in enumerate(read(connection, columns), 1):
                if text is not None and len(text) > LONGEST_ROW // 4 and len(text.encode()) > LONGEST_ROW:
                    raise self._too_long(f"Row {number} of {self.path}")
                yield Row(number, text, category, id_)

    # -- the three kinds: an iterator over (text, category, id)

    def _json_lines(self, connection: Any, columns: Columns) -> Iterator[Sequence[str | None]]:
        wanted = {"text": columns.of_text, "category": columns.category, "id": columns.id}
        pointers = {name: None if column is None else _pointer(column) for name, column in wanted.items()}
        query = connection.execute(
            statement("rows/json_lines"),
            {"file": str(self.path), "largest": LONGEST_ROW, **pointers},
        )
        keys: dict[str, None] = {}  # in the order in which they are met
        number, missing = 0, {column for column in wanted.values() if column is not None}
        for broken, of_row, type_, text, category, id_ in _fetched(query):
            number += 1
            if broken:
                raise UsageError(
                    f"Row {number} of {self.path} is no JSON: each line is to hold one object; repair or remove it."
                )
            if missing or number == 1:
                keys |= dict.fromkeys(of_row)
                missing -= keys.keys()
            yield text if type_ == "VARCHAR" else None, category, id_
        if number:
            self._check_columns([column for column in wanted.values() if column], list(keys))

    def _csv(self, connection: Any, columns: Columns) -> Iterator[Sequence[str | None]]:
        delimiter = "\t" if ".tsv" in self.path.suffixes[-2:] else ","
        settings = {"file": str(self.path), "delimiter": delimiter, "largest": LONGEST_ROW}
        known = [name for name, *_ in connection.execute(statement("rows/csv_columns"), settings).fetchall()]
        selected = self._selected(columns, known)
        names = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in known)
        query = statement("rows/csv").replace("{columns}", f"{{{names}}}").replace("{selected}", selected)
        return _fetched(connection.execute(query, settings))

    def _parquet(self, connection: Any, columns: Columns) -> Iterator[Sequence[str | None]]:
        file = {"file": str(self.path)}
        types = {
            name: type_ for name, type_, *_ in connection.execute(statement("rows/parquet_columns"), file).fetchall()
        }
        selected = self._selected(columns, list(types))
        if (type_ := types[columns.of_text]) != "VARCHAR" and not type_.startswith("ENUM"):
            raise UsageError(
                f"Column {columns.of_text} of {self.path} holds {type_}, not text: name another with --text-column."
            )
        return _fetched(connection.execute(statement("rows/parquet").replace("{selected}", selected), file))

    def _selected(self, columns: Columns, known: Sequence[str]) -> str:
        """The columns of text, category and id as SQL selects them."""
        wanted = (columns.of_text, columns.category, columns.id)
        self._check_columns([column for column in wanted if column], known)
        return ", ".join("NULL" if column is None else f"{identifier(column)}::VARCHAR" for column in wanted)

    def _check_columns(self, wanted: Sequence[str], known: Sequence[str]) -> None:
        check_columns(str(self.path), wanted, known)

    # -- DuckDB

    @contextlib.contextmanager
    def _connection(self, kind: str) -> Iterator[Any]:
        """A connection that sees this file alone; what DuckDB says of it becomes a sentence."""
        import duckdb

        if GLOB.search(str(self.path)):
            raise UsageError(
                f"{self.path} has *, ? or [ in its name, which DuckDB takes for a pattern: rename the file."
            )
        try:
            with self.path.open("rb"):
                pass
        except OSError as error:
            raise unreadable(self.path, error) from error
        # One thread: rows come in the order of the file, and no more than a buffer of them is held.
        settings = {"threads": "1", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute(f"SET allowed_paths = [{literal(str(self.path))}]")
            connection.execute("SET enable_external_access = false")
            # It would be drawn on stdout, among the data; where there is none, DuckDB may refuse to be told so.
            if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() != [(False,)]:
                connection.execute("SET enable_progress_bar = false")
            connection.execute("SET lock_configuration = true")
            try:
                yield connection
            except duckdb.Error as error:
                raise self._refusal(kind, error) from error

    def _refusal(self, kind: str, error: duckdb.Error) -> UsageError:
        message = str(error)
        if "maximum_object_size" in message or "Maximum line size" in message:
            return self._too_long(f"A row of {self.path}")
        return UsageError(f"{self.path} cannot be read as {kind} ({_reason(message)}): is the file whole, and UTF-8?")

    def _too_long(self, row: str) -> UsageError:
        return UsageError(
            f"{row} is longer than {LONGEST_ROW >> 20} MB: split its text, or give it as a file of its own."
        )


def check_columns(table: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raises UsageError for a column that the table does not have."""
    if lacking := [column for column in wanted if column not in known]:
        has = ", ".join(known[:20]) + (" …" if len(known) > 20 else "") if known else "none"
        raise UsageError(
            f"{table} has no column {lacking[0]}{did_you_mean(lacking[0], known)}: it has {has} (--text-column, "
            "--category-column, --id-column)."
        )


def kind_of(path: Path) -> str:
    """The kind of a table file by its suffix; empty for what is no table."""
    suffixes = path.suffixes[-2:]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    kind = KINDS.get(suffixes[-2 if compressed else -1], "") if len(suffixes) > compressed else ""
    return "" if compressed and kind == "Parquet" else kind


def _pointer(column: str) -> str:
    """A JSON pointer to a field (RFC 6901)."""
    return "/" + column.replace("~", "~0").replace("/", "~1")


def _fetched(query: Any) -> Iterator[Sequence[Any]]:
    while batch := query.fetchmany(BATCH):
        yield from batch


def _reason(message: str) -> str:
    """What DuckDB finds wrong, without its kind of error, its advice and the query."""
    message = re.split(r"\n\s*\n|Possible [Ss]olution|Possible fixes|\nLINE ", message)[0]
    message = re.sub(r"^(\w+ )+Error: ", "", message)
    message = re.sub(r"Original Line: .*\n", "", message)
    return " ".join(message.split()).rstrip(".")[:300]
