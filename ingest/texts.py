"""A text file in, its text out in pieces: UTF-8 is proved on the way, and no file is held in memory as a whole."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from energy_lens.errors import UsageError

#: Bytes of a file that are read at once.
PIECE = 1 << 20

#: What a file may begin with that is no part of its text.
BOM = "\ufeff"


def read_bytes(path: Path) -> Iterator[bytes]:
    """A file's bytes in pieces. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise unreadable(path, error) from error


def decoded(pieces: Iterator[bytes], name: str) -> Iterator[str]:
    """The text of bytes, without a leading BOM. name: of the file, for a refusal.

    UTF-8 only: a guess at another encoding would change the tokens without anyone noticing. Raises UsageError for
    bytes that are no UTF-8 text.
    """
    remedy = "convert it to UTF-8 or leave it out with --exclude"
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, at_start = 0, True  # the offset of the next piece
    for piece in chain(pieces, [b""]):  # the empty one is the end, where no character may be unfinished
        if b"\0" in piece:
            raise UsageError(f"{name} is a binary file, not text: {remedy}.")
        n_waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            bad = f"byte 0x{error.object[error.start]:02x} at offset {offset - n_waiting + error.start}"
            raise UsageError(f"{name} is not UTF-8 ({bad}): {remedy}.") from error
        offset += len(piece)
        if at_start and text:
            text, at_start = text.removeprefix(BOM), False
        if text:
            yield text


def unreadable(path: str | Path, error: OSError | ValueError) -> UsageError:
    """The refusal of a path that the system does not let us read."""
    reason = getattr(error, "strerror", None) or str(error)
    return UsageError(f"{path} cannot be read ({reason}): check that it exists and who may read it.")
