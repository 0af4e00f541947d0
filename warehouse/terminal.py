"""Text in, what a terminal shows of it out: on one line, nothing hidden, with its width in columns of the terminal.

Widths are those of the package wcwidth, which follows Unicode and terminals: a Hangul syllable in three parts, an emoji
with its skin tone and a family joined to one picture are two columns, an accent on its own is none. Text is broken
between what a reader takes for characters, never within one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import TextIO

#: What would move the cursor, change colours, turn the writing direction or show nothing at all. The two joiners
#: (200c, 200d) are part of writing between characters of scripts that use them and between emoji; elsewhere they hide.
_JOINED = "[^\x00-\u02ff\u2000-\u200f\u2028-\u202f\u205f-\u206f]"
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
    f"|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})"
)
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream shows on; None when it is a file or a pipe."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def shows_colours(stream: TextIO) -> bool:
    """Whether text for a stream may hold colours: on a terminal that has any, unless the user says otherwise.

    NO_COLOR (no-color.org) and FORCE_COLOR (force-color.org) count when they are not empty, the first before the
    second, and both before TERM=dumb.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def visible(text: str) -> str:
    """Text on one line, with escapes in place of characters that a terminal would act on or hide."""
    return _INVISIBLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _NAMED.get(match[0]) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def width(text: str) -> int:
    """Columns that a text, made visible, takes on a terminal behind a space, on which a vowel sign alone is written."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth  # 60 ms, which a query of numbers need not wait for

    # Character by character: of a whole text, wcswidth counts nothing for whatever stands behind a joiner.
    return sum(max(wcswidth(character), 0) for character in _characters(f" {text}")) - 1


def cut(text: str, columns: int) -> str:
    """Text of at most this width, an ellipsis at its end when something is missing."""
    return text if width(text) <= columns else text[: _fitting(text, columns - 1)] + "…"


def wrapped(text: str, columns: int) -> list[str]:
    """Text in lines of at most this width, broken at spaces where there are any; a wider character has its own line."""
    lines = []
    while (end := _fitting(text, columns)) < len(text):
        space = text.rfind(" ", 1, end + 1)
        end = space if space > 0 else end or len(next(_characters(text)))
        lines.append(text[:end])
        text = text[end:].lstrip(" ")
    return [*lines, text]


def _fitting(text: str, columns: int) -> int:
    """How many code points of a text fit a width, in whole characters."""
    end = 0
    for character in _characters(text):
        columns -= width(character)
        if columns < 0:
            return end
        end += len(character)
    return end


def _characters(text: str) -> Iterator[str]:
    """What a reader takes for characters: Unicode's extended grapheme clusters."""
    if text.isascii():
        return iter(text)
    from wcwidth import iter_graphemes

    return iter_graphemes(text)
