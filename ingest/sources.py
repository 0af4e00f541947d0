"""Where a document's text is, and how to have it again: a file of text, a row of a table, or what a pipe brought.

A source is stored with a run as its `location`: a file's path, the table's URL with the row and the column, or a URL
that leads nowhere for a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from energy_lens.errors import UsageError
from energy_lens.ingest import pipes
from energy_lens.ingest.hub import SCHEME, HubDataset, hub_dataset_at
from energy_lens.ingest.pipes import PipedText
from energy_lens.ingest.rows import Columns, TableFile
from energy_lens.ingest.texts import read_bytes

#: A table of documents.
Table = TableFile | HubDataset


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that is one text."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def location(self) -> str:
        """Its path, whatever folder we are in."""
        return str(self.path.resolve())


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table; its column holds the text."""

    table: Table
    number: int  #: from 1
    column: str

    def __str__(self) -> str:
        return f"row {self.number} of {self.table}"

    @property
    def location(self) -> str:
        """A URL: the table's, with the row and the column."""
        return f"{self.table.location}?row={self.number}&column={quote(self.column)}"


Source = TextFile | TableRow | PipedText


def source_at(location: str) -> Source:
    """The source that has this location."""
    if location.startswith(pipes.SCHEME):
        return PipedText.at(location)
    if not location.startswith(("rows:", SCHEME)):
        return TextFile(Path(location))
    where, _, query = location.rpartition("?")
    values = parse_qs(query, strict_parsing=True)
    table: Table
    if where.startswith(SCHEME):
        table = hub_dataset_at(where)
    else:
        table = TableFile(Path(unquote(where.removeprefix("rows:"))))
    return TableRow(table, int(values["row"][0]), values["column"][0])


def table_of(location: str) -> str | None:
    """The location of a row's table; None for a file of text."""
    source = source_at(location)
    return source.table.location if isinstance(source, TableRow) else None


def is_gone(location: str) -> bool:
    """Whether the file of a source does not exist any more; what was no file is not said to have been removed."""
    source = source_at(location)
    if isinstance(source, TextFile):
        return not source.path.exists()
    if isinstance(source, PipedText):
        return False
    return isinstance(source.table, TableFile) and not source.table.path.exists()


def at_start(source: Source) -> str:
    """A source's name at the start of a sentence."""
    return f"R{str(source)[1:]}" if isinstance(source, TableRow) else str(source)


class GoneError(UsageError):
    """What was at a source is not there any more."""

    def __init__(self, source: Source) -> None:
        self.source = source
        super().__init__(f"{at_start(source)} cannot be read (it is gone): check that it exists and who may read it.")


def contents(sources: Sequence[Source]) -> Iterator[tuple[Source, Iterator[bytes]]]:
    """Each source with its bytes in pieces, to be read before the next one; a table is read once for all its rows.

    Order: text files and pipes first, then by table and row. Raises GoneError for a file or row that is not there,
    UsageError for one that cannot be read.
    """
    for source in sources:
        if isinstance(source, TextFile):
            if not source.path.is_file():
                raise GoneError(source)
            yield source, read_bytes(source.path)
        elif isinstance(source, PipedText):
            if source.kept is None:
                raise GoneError(source)
            yield source, source.pieces()
    rows = [source for source in sources if isinstance(source, TableRow)]
    rows.sort(key=lambda row: (row.table.location, row.column, row.number))
    for (_, column), of_table in groupby(rows, key=lambda row: (row.table.location, row.column)):
        wanted: Mapping[int, TableRow] = {row.number: row for row in of_table}
        yield from _rows(wanted, column)


def _rows(wanted: Mapping[int, TableRow], column: str) -> Iterator[tuple[Source, Iterator[bytes]]]:
    first, last = wanted[min(wanted)], max(wanted)
    if isinstance(first.table, TableFile) and not first.table.path.is_file():
        raise GoneError(first)
    left = len(wanted)
    for row in first.table.rows(Columns(text=column)):
        if (source := wanted.get(row.number)) is not None:
            left -= 1
            yield source, iter([(row.text or "").encode()])
        if row.number >= last:
            break
    if left:
        raise GoneError(wanted[last])
