"""A text that comes through a pipe (stdin, `<(command)`, a FIFO) in, the same out as often as it is asked for.

It is read once and kept in a file without a name, which is gone with the process, whatever ends that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

from energy_lens.errors import ElwError
from energy_lens.ingest.texts import PIECE, decoded, unreadable

#: How stdin is named among paths.
STDIN = "-"

#: What a location of such a text begins with.
SCHEME = "pipe:"


@dataclass(frozen=True, slots=True)
class PipedText:
    """A text that came through a pipe; only the process that read it can have it again."""

    name: str
    sha256: str
    kept: BinaryIO | None = field(default=None, compare=False, repr=False)  #: None: another process read it

    def __str__(self) -> str:
        return self.name

    @property
    def location(self) -> str:
        """A URL of its own scheme: no path leads there."""
        return f"{SCHEME}{quote(self.name)}?sha256={self.sha256}"

    @classmethod
    def at(cls, location: str) -> PipedText:
        """The text of that location, which is gone."""
        name, _, query = location.removeprefix(SCHEME).rpartition("?")
        return cls(unquote(name), query.removeprefix("sha256="))

    def pieces(self) -> Iterator[bytes]:
        assert self.kept is not None
        offset = 0
        while piece := os.pread(self.kept.fileno(), PIECE, offset):
            yield piece
            offset += len(piece)


class Pipe:
    """stdin, or a path that is neither file nor folder: read when its text is first asked for."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._text: PipedText | None = None
        self._n_bytes: int | None = None  #: None: not read yet

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        if str(self._path) == STDIN:
            return "stdin"
        path = Path(self._path)
        return f"pipe-{path.name}" if path.parent.name == "fd" else path.name  # <(command) is /dev/fd/63

    @property
    def category(self) -> str:
        """That of a file given singly, its folder's; what has no folder is by itself."""
        folder = Path(os.path.abspath(self._path)).parent
        if str(self._path) == STDIN or folder == Path("/dev"):
            return self.name
        return "pipe" if folder.name == "fd" else folder.name

    def text(self) -> tuple[PipedText, int] | None:
        """The text and its size in bytes; None when it is blank.

        Raises UsageError for what is no UTF-8 text or cannot be read, ElwError when there is no room for it.
        """
        if self._n_bytes is None:
            self._read()
        return None if self._text is None else (self._text, self._n_bytes or 0)

    def _read(self) -> None:
        digest, n_bytes, blank = hashlib.sha256(), 0, True
        kept = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115

        def pieces(stream: BinaryIO) -> Iterator[bytes]:
            nonlocal n_bytes
            while piece := stream.read(PIECE):
                digest.update(piece)
                n_bytes += len(piece)
                try:
                    kept.write(piece)
                    kept.flush()
                except OSError as error:
                    folder = tempfile.gettempdir()
                    raise ElwError(
                        f"{self.name} cannot be kept in {folder} ({error.strerror}): make room there, or write the "
                        "text to a file and give that."
                    ) from error
                yield piece

        try:
            with self._opened() as stream:
                for text in decoded(pieces(stream), self.name):
                    blank = blank and not text.strip()
        except OSError as error:
            raise unreadable(self.name, error) from error
        self._n_bytes = n_bytes
        self._text = None if blank else PipedText(self.name, digest.hexdigest(), kept)

    def _opened(self) -> contextlib.AbstractContextManager[BinaryIO]:
        if str(self._path) != STDIN:
            return open(self._path, "rb")
        if sys.stdin is None:
            return io.BytesIO()
        stream = getattr(sys.stdin, "buffer", None)  # which a stand-in of a notebook or a test may lack
        return contextlib.nullcontext(stream if stream is not None else io.BytesIO(sys.stdin.read().encode()))


def held(paths: Sequence[str | Path | Pipe]) -> list[str | Path | Pipe]:
    """The paths, with a Pipe for each that can be read only once."""
    return [Pipe(path) if not isinstance(path, Pipe) and _is_pipe(path) else path for path in paths]


def _is_pipe(path: str | Path) -> bool:
    if str(path) == STDIN:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
