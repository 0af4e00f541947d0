"""Text files, tables, data sets and pipes in, documents out.

A document is a file of text, or a row of a table: of JSON lines, CSV or Parquet, or of a data set of the Hugging Face
hub; or what one pipe brings. Equal texts are one document, named by the smallest path, the others are its aliases. The
category of a file is the first folder below the path that was given, else that path's own name; of a file given singly
it is its folder's name, so that those of one folder stand together; a row has its own, where a column says so, else its
file's name. What elw itself wrote (`ingest/own_files.py`) is no text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from energy_lens.console import say, some_of
from energy_lens.errors import UsageError
from energy_lens.ingest.hub import SCHEME, hub_dataset
from energy_lens.ingest.own_files import OwnFiles
from energy_lens.ingest.pipes import Pipe, held
from energy_lens.ingest.rows import Columns, Row, TableFile, kind_of
from energy_lens.ingest.sources import Source, Table, TableRow, TextFile, at_start, contents
from energy_lens.ingest.texts import BOM, decoded, read_bytes, unreadable
from energy_lens.warehouse.categories import renamed_categories, stored_category

#: Rows without text that are named one by one.
NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Document:
    """One distinct text of the corpus."""

    path: str  #: its name: the path below the given root, with forward slashes; of a row, file:row or its id
    category: str  #: as it is stored: one called like a total has a slash behind it
    sha256: str  #: of the file's bytes, or of the row's text in UTF-8
    n_bytes: int
    source: Source  #: where the text can be read
    aliases: tuple[str, ...] = ()  #: further paths with the same content
    alias_categories: tuple[str, ...] = ()  #: the category that each of them would have

    def text(self) -> str:
        """The document's text, as a whole.

        Raises UsageError when its source no longer holds what was catalogued.
        """
        return "".join(piece for _, pieces in texts([self]) for piece in pieces)


class ChangedError(UsageError):
    """A source holds another text than when it was catalogued."""

    def __init__(self, source: Source) -> None:
        self.source = source
        super().__init__(f"{at_start(source)} changed while it was being read; run the command again.")


def texts(documents: Iterable[Document]) -> Iterator[tuple[Document, Iterator[str]]]:
    """Each document with its text in pieces, to be read to the end before the next one.

    In an order in which every table is read once: files, then rows by table.
    Raises UsageError when a source no longer holds what was catalogued, at the latest after the last piece.
    """
    by_source = {document.source: document for document in documents}
    for source, pieces in contents(list(by_source)):
        yield by_source[source], decoded(_checked(by_source[source], pieces), str(source))


def _checked(document: Document, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces. Raises ChangedError after them when they are not the document's."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != document.sha256:
        raise ChangedError(document.source)


class _Copy(NamedTuple):
    """A text where it was found."""

    order: tuple[str, int]  #: name of its file below the root, and number of its row
    path: str
    category: str
    n_bytes: int
    source: Source


def discover(
    paths: Sequence[str | Path | Pipe], exclude: Sequence[str] = (), columns: Columns | None = None
) -> list[Document]:
    """All documents below the given files, folders, data sets and pipes, sorted by path, whatever order those are in.

    Hidden files are left out; a link to a folder is not followed (nor lost: it is named on stderr), and what elw wrote
    is named there too. A table is read by rows when it is given as a path of its own, and inside a folder when
    `columns` names the column of text. `-` is stdin, one document, as is any path that is neither file nor folder.
    exclude: shell patterns of files and folders, matched against the name and the path below the root.
    Raises UsageError for a path that is missing or cannot be read, a file that is not UTF-8 text, a table that is
    broken, or a corpus without any text.
    """
    columns = columns or Columns()
    copies_of: dict[str, list[_Copy]] = {}
    for sha256, copy in _copies(paths, exclude, columns):
        copies_of.setdefault(sha256, []).append(copy)
    if not copies_of:
        looked_in = some_of([str(path) for path in paths])
        raise UsageError(f"There is no text in {looked_in}: give a folder or a file with UTF-8 text.")
    documents, given = [], set[str]()
    for sha256, copies in sorted(copies_of.items(), key=lambda entry: (entry[1][0].order, entry[0])):
        (_, path, category, n_bytes, source), *others = copies
        given.update((category, *(other.category for other in others)))
        documents.append(
            Document(
                path,
                stored_category(category),
                sha256,
                n_bytes,
                source,
                tuple(other.path for other in others),
                tuple(stored_category(other.category) for other in others),
            )
        )
    if note := renamed_categories(given):
        say(note)
    return documents


def _copies(
    paths: Sequence[str | Path | Pipe], exclude: Sequence[str], columns: Columns
) -> Iterator[tuple[str, _Copy]]:
    """(sha256, copy) of every text, in order of file names and rows."""
    hubs = sorted({str(path) for path in paths if str(path).startswith(SCHEME)})
    others = held([path for path in paths if str(path) not in hubs])
    pipes = [path for path in others if isinstance(path, Pipe)]
    found = list(_files([Path(path) for path in others if not isinstance(path, Pipe)], exclude, columns))
    tables = {source.resolve() for *_, source, is_table in found if is_table}
    names: dict[str, str] = {}  # of rows that have an id: which row has it
    seen: set[Path] = set()
    # A file that is reached twice counts once, under the smallest of its names.
    for name, category, source, _ in sorted(found, key=lambda entry: entry[:3]):
        if (file := source.resolve()) in seen:
            continue
        seen.add(file)
        if file in tables:
            yield from _rows(TableFile(source), name, category, columns, names)
        elif (hashed := _hashed(source)) is not None:
            sha256, n_bytes = hashed
            yield sha256, _Copy((name, 0), name, category, n_bytes, TextFile(source))
    for pipe in sorted(pipes, key=str):
        if (received := pipe.text()) is not None:
            text, n_bytes = received
            yield text.sha256, _Copy((pipe.name, 0), pipe.name, pipe.category, n_bytes, text)
    for hub in hubs:
        dataset = hub_dataset(hub)
        yield from _rows(dataset, dataset.name, dataset.name, columns, names)


def _hashed(source: Path) -> tuple[str, int] | None:
    """sha256 and size of a file; None for one that is blank. Raises UsageError for one that is no UTF-8 text."""
    digest, n_bytes, blank = hashlib.sha256(), 0, True

    def pieces() -> Iterator[bytes]:
        nonlocal n_bytes
        for piece in read_bytes(source):
            digest.update(piece)
            n_bytes += len(piece)
            yield piece

    for text in decoded(pieces(), str(source)):
        blank = blank and not text.strip()
    return None if blank else (digest.hexdigest(), n_bytes)


def _rows(
    table: Table, name: str, category: str, columns: Columns, names: dict[str, str]
) -> Iterator[tuple[str, _Copy]]:
    """(sha256, copy) of each row that has a text. Those that have none are counted and named on stderr.

    names: ids met so far, and whose they are. Raises UsageError for an id that two rows have.
    """
    lacking: list[int] = []
    for row in table.rows(columns):
        if not _is_text(row):
            lacking.append(row.number)
            continue
        assert row.text is not None
        place = f"{name}:{row.number}"
        if row.id is not None and (other := names.setdefault(row.id, place)) != place:
            raise UsageError(
                f"{other} and {place} have the same id, {row.id}: name another column with --id-column, or none."
            )
        text = row.text.encode()
        source = TableRow(table, row.number, columns.of_text)
        copy = _Copy((name, row.number), row.id or place, row.category or category, len(text), source)
        yield hashlib.sha256(text).hexdigest(), copy
    if lacking:
        numbers = ", ".join(map(str, lacking[:NAMED_ROWS])) + (" …" if len(lacking) > NAMED_ROWS else "")
        rows, have, are = ("row", "has", "is") if len(lacking) == 1 else ("rows", "have", "are")
        say(f"{len(lacking):,} {rows} of {table} {have} no text and {are} left out: {rows} {numbers}.")


def _is_text(row: Row) -> bool:
    return row.text is not None and "\0" not in row.text and bool(row.text.removeprefix(BOM).strip())


def _files(paths: Sequence[Path], exclude: Sequence[str], columns: Columns) -> Iterator[tuple[str, str, Path, bool]]:
    """(name, category, file, whether it is read by rows) for every file below `paths`, as often as it is reached.

    Says at the end what was passed over, in a line each.
    """
    links: dict[str, None] = {}  # to folders
    own: dict[str, None] = {}  # files that elw wrote
    own_files = OwnFiles()
    for root in paths:
        try:
            is_folder = S_ISDIR(root.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{root} does not exist: give a file or folder with text.") from error
        except (OSError, ValueError) as error:
            if _excluded(Path(root.name), exclude):
                continue
            raise unreadable(root, error) from error
        absolute = Path(os.path.abspath(root))
        root_name = absolute.name or "/"
        for relative in _walk(root, exclude, links) if is_folder else [Path(root.name)]:
            if _excluded(relative, exclude):
                continue
            source = root / relative if is_folder else root
            if source in own_files:
                own[str(source)] = None
                continue
            by_rows = (columns.text is not None or not is_folder) and kind_of(source) != ""
            if len(relative.parts) > 1:
                category = relative.parts[0]
            else:
                category = root_name if is_folder or by_rows else absolute.parent.name or "/"
            name = relative.as_posix()
            try:
                (name + category).encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"{str(source)!r} has a name that is not UTF-8: rename the file.") from error
            yield name, category, source, by_rows
    if links:
        are = "links to a folder and is" if len(links) == 1 else "link to folders and are"
        say(f"{some_of(list(links))} {are} not followed: give such a folder as a path of its own.")
    if own:
        are, them = ("is", "it") if len(own) == 1 else ("are", "them")
        say(f"{some_of(list(own))} {are} left out: elw wrote {them}.")


def _walk(root: Path, exclude: Sequence[str], links: dict[str, None]) -> Iterator[Path]:
    """The path below the root of every file that is not hidden nor below an excluded folder; notes links to folders."""

    def stop(error: OSError) -> None:
        if Path(error.filename) != root or not _excluded(Path(root.name), exclude):
            raise unreadable(error.filename, error) from error

    for here, folders, files in os.walk(root, onerror=stop):
        below = Path(here).relative_to(root)
        folders[:] = [
            name for name in folders if not name.startswith(".") and not _excluded_folder(below / name, exclude)
        ]
        for name in folders:
            if Path(here, name).is_symlink():
                links[str(Path(here, name))] = None
        for name in files:
            if name.startswith(".") or _excluded(below / name, exclude):
                continue
            try:
                if Path(here, name).is_file():
                    yield below / name
            except OSError as error:
                raise unreadable(Path(here, name), error) from error


def _excluded(relative: Path, exclude: Sequence[str]) -> bool:
    return any(fnmatch(relative.name, p) or fnmatch(relative.as_posix(), p) for p in exclude)


def _excluded_folder(relative: Path, exclude: Sequence[str]) -> bool:
    """Whether a pattern names the folder, with or without a slash behind it, or everything in it."""
    if _excluded(relative, exclude):
        return True
    as_folders = [pattern for pattern in exclude if pattern.endswith(("/", "*"))]
    return any(fnmatch(f"{name}/", p) for name in (relative.name, relative.as_posix()) for p in as_folders)
