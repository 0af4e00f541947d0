"""Text files in, documents out.

A document is a file; files with equal content are one document, named by the smallest path, the others are its
aliases. Its category is the first folder below the path that was given, else that path's own name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from energy_lens.console import say
from energy_lens.errors import UsageError


@dataclass(frozen=True)
class Document:
    """One distinct text of the corpus."""

    path: str  #: its name: the path below the given root, with forward slashes
    category: str
    sha256: str  #: of the file's bytes
    n_bytes: int
    source: Path  #: where the text can be read
    aliases: tuple[str, ...] = ()  #: further paths with the same content

    def text(self) -> str:
        """The document's text.

        Raises UsageError when the file no longer holds what was catalogued.
        """
        data = _read(self.source)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UsageError(f"{self.source} changed while it was being read; run the command again.")
        return _decode(data, self.source)


def discover(paths: Sequence[str | Path], exclude: Sequence[str] = ()) -> list[Document]:
    """All documents below the given files and folders, sorted by path, whatever order those are given in.

    Hidden files are left out; a link to a folder is not followed (nor lost: it is named on stderr).
    exclude: shell patterns, matched against a file's name and its path below the root.
    Raises UsageError for a path that is missing or cannot be read, a file that is not UTF-8 text, or a corpus
    without any text.
    """
    copies_of: dict[str, list[tuple[str, str, int, Path]]] = {}
    seen: set[Path] = set()
    # A file that is reached twice counts once, under the smallest of its names.
    for name, category, source in sorted(_files(paths, exclude)):
        if (file := source.resolve()) in seen:
            continue
        seen.add(file)
        data = _read(source)
        if not _decode(data, source).strip():
            continue
        digest = hashlib.sha256(data).hexdigest()
        copies_of.setdefault(digest, []).append((name, category, len(data), source))
    if not copies_of:
        looked_in = ", ".join(str(p) for p in paths)
        raise UsageError(f"There is no text in {looked_in}: give a folder or a file with UTF-8 text.")
    documents = []
    for digest, copies in copies_of.items():
        (name, category, n_bytes, source), *others = copies
        aliases = tuple(other[0] for other in others)
        documents.append(Document(name, category, digest, n_bytes, source, aliases))
    return sorted(documents, key=lambda document: (document.path, document.sha256))


def _files(paths: Sequence[str | Path], exclude: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """(name, category, file) for every file below `paths`, as often as it is reached."""
    for path in paths:
        root = Path(path)
        try:
            root.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{root} does not exist: give a file or folder with text.") from error
        except (OSError, ValueError) as error:
            raise _unreadable(root, error) from error
        root_name = Path(os.path.abspath(root)).name
        for source in [root] if root.is_file() else _walk(root):
            relative = Path(source.name) if source == root else source.relative_to(root)
            if _excluded(relative, exclude):
                continue
            category = relative.parts[0] if len(relative.parts) > 1 else root_name
            name = relative.as_posix()
            try:
                (name + category).encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"{str(source)!r} has a name that is not UTF-8: rename the file.") from error
            yield name, category, source


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise _unreadable(error.filename, error) from error

    for here, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (Path(here, name) for name in folders if Path(here, name).is_symlink()):
            say(f"{link} links to a folder and is not followed: give it as a path of its own.")
        paths = (Path(here, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _excluded(relative: Path, exclude: Sequence[str]) -> bool:
    return any(fnmatch(relative.name, p) or fnmatch(relative.as_posix(), p) for p in exclude)


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(path: str | Path, error: OSError | ValueError) -> UsageError:
    reason = getattr(error, "strerror", None) or str(error)
    return UsageError(f"{path} cannot be read ({reason}): check that it exists and who may read it.")


def _decode(data: bytes, source: Path) -> str:
    """UTF-8 only: a guess at another encoding would change the tokens without anyone noticing."""
    remedy = "convert it to UTF-8 or leave it out with --exclude"
    if b"\0" in data:
        raise UsageError(f"{source} is a binary file, not text: {remedy}.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise UsageError(f"{source} is not UTF-8 ({bad}): {remedy}.") from error
