"""Text files in, documents out.

A document is a file; files with equal content are one document, named by the smallest path, the others are its
aliases. Its category is the first folder below the path that was given, else that path's own name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from energy_lens.warehouse.errors import UsageError


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
    """All documents below the given files and folders, sorted by path; hidden files are left out.

    exclude: shell patterns, matched against a file's name and its path below the root.
    Raises UsageError for a missing path, a file that is not UTF-8 text, or a corpus without any text.
    """
    found: dict[str, list[tuple[str, str, int, Path]]] = {}
    for name, category, source in _files(paths, exclude):
        data = _read(source)
        if not _decode(data, source).strip():
            continue
        digest = hashlib.sha256(data).hexdigest()
        found.setdefault(digest, []).append((name, category, len(data), source))
    if not found:
        given = ", ".join(str(p) for p in paths)
        raise UsageError(f"There is no text in {given}: give a folder or a file with UTF-8 text.")
    documents = []
    for digest, copies in found.items():
        (name, category, n_bytes, source), *others = sorted(copies, key=lambda copy: (copy[0], str(copy[3])))
        aliases = tuple(other[0] for other in others)
        documents.append(Document(name, category, digest, n_bytes, source, aliases))
    return sorted(documents, key=lambda document: (document.path, document.sha256))


def _files(paths: Sequence[str | Path], exclude: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """(name, category, file) for every file below `paths`; a file reached twice counts once."""
    seen: set[Path] = set()
    for given in paths:
        root = Path(given)
        if not root.exists():
            raise UsageError(f"{root} does not exist: give a file or folder with text.")
        own_name = root.resolve().name
        for source in [root] if root.is_file() else sorted(_walk(root)):
            relative = Path(source.name) if source == root else source.relative_to(root)
            if _excluded(relative, exclude) or source.resolve() in seen:
                continue
            seen.add(source.resolve())
            category = relative.parts[0] if len(relative.parts) > 1 else own_name
            yield relative.as_posix(), category, source


def _walk(folder: Path) -> Iterable[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(here, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _excluded(relative: Path, exclude: Sequence[str]) -> bool:
    return any(fnmatch(relative.name, p) or fnmatch(relative.as_posix(), p) for p in exclude)


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise UsageError(f"{source} cannot be read ({error.strerror}): check its permissions.") from error


def _decode(data: bytes, source: Path) -> str:
    """UTF-8 only: a guess at another encoding would change the tokens without anyone noticing."""
    remedy = "convert it to UTF-8 or leave it out with --exclude"
    if b"\0" in data:
        raise UsageError(f"{source} is a binary file, not text: {remedy}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise UsageError(f"{source} is not UTF-8 ({bad}): {remedy}.") from error
