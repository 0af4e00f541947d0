"""Numbers and foreign text in, how a report shows them out.

Token texts, categories and model names come from outside and may hold anything: markup, table pipes, line breaks,
characters that reverse a line. `visible` makes every character of them seen; `markdown` and `html` escape.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

NOTHING = "–"

# ------------------------------------------------------------------------------------------------ numbers


def count(n: int | None) -> str:
    """1,234"""
    return NOTHING if n is None else _typeset(f"{n:,}")


def plural(n: int, noun: str) -> str:
    """1 pair, 19 pairs"""
    return f"{count(n)} {noun}{'s' * (n != 1)}"


def fixed(x: float | None, digits: int = 3) -> str:
    """A number with that many decimals, without a negative zero."""
    if x is None:
        return NOTHING
    text = f"{x:,.{digits}f}"
    return _typeset(text.removeprefix("-") if float(text.replace(",", "")) == 0 else text)


def percent(share: float | None, digits: int = 1) -> str:
    """5.3 %"""
    return NOTHING if share is None else f"{fixed(100 * share, digits)} %"


def significant(x: float | None) -> str:
    """A number with three significant digits: 0.0736, 58.9, 1,340,000."""
    if x is None:
        return NOTHING
    if x == 0:
        return "0"
    rounded = abs(float(f"{x:.3g}"))
    if rounded >= 100:
        return _typeset(f"{float(f'{x:.3g}'):,.0f}")
    return _typeset(f"{x:#.3g}" if rounded >= 1e-4 else f"{x:.2e}")


def probability(p: float | None) -> str:
    """0.042, or 2.1e−21 below a thousandth."""
    if p is None:
        return NOTHING
    return _typeset(f"{p:.1e}") if 0 < p < 1e-3 else fixed(p)


def noise_count(expected: float) -> str:
    """How many noise gives on average: 126, 6.6, none."""
    if expected < 0.05:
        return "none"
    return count(round(expected)) if expected >= 10 else fixed(expected, 1)


def interval(low: float | None, high: float | None, digits: int | None = 3) -> str:
    """[low, high] with that many decimals, or with three significant digits."""
    if low is None or high is None:
        return NOTHING
    if digits is None:
        return f"[{significant(low)}, {significant(high)}]"
    return f"[{fixed(low, digits)}, {fixed(high, digits)}]"


def _typeset(number: str) -> str:
    return number.replace("-", "−")


# ------------------------------------------------------------------------------------------------ foreign text


@dataclass(frozen=True)
class Foreign:
    """A text of a table's cell that comes from outside."""

    text: str


@dataclass(frozen=True)
class Tokens:
    """Token texts of a table's cell, each shown on its own."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class TextPiece:
    """A token of a running text."""

    text: str
    is_marked: bool  #: the one that the text is shown for
    is_active: bool  #: whether the feature fires there


#: A table's cell: the program's own text, or one that must be escaped.
Cell = str | Foreign | Tokens


#: Longer texts are cut: one hostile name must not push a table off the page.
MAX_TEXT, MAX_TOKEN = 120, 40

#: Of a running text: no cut, since each of its few tokens is cut.
MAX_RUNNING = 1 << 20

_SHOWN = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def visible(text: str, length: int = MAX_TEXT) -> str:
    """The text on one line, cut to a length, its invisible and direction-changing characters spelt out."""
    shown = []
    for character in text[:length]:
        if character != " " and character not in _SHOWN and unicodedata.category(character)[0] in "CZ":
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(_SHOWN.get(character, character))
    return "".join(shown) + ("…" if len(text) > length else "")


def visible_token(text: str) -> str:
    """A token's text, its blanks seen: ␣the"""
    return visible(text.replace(" ", "␣"), MAX_TOKEN)


#: Entities for what ends a cell or begins HTML, since every Markdown reader knows them; backslashes for the rest.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "\\": "&#92;"}
_BACKSLASHED = "*_~[]$#!:@"


def markdown(text: str, length: int = MAX_TEXT) -> str:
    """Foreign text as Markdown that shows it literally, in a table's cell too."""
    escaped = "".join(
        _ENTITIES.get(character) or ("\\" + character if character in _BACKSLASHED else character)
        for character in visible(text, length)
    )
    return re.sub(r"(?i)\bwww\.", lambda found: found[0][:-1] + "&#46;", escaped)  # GitHub makes a link of it


def running_markdown(pieces: Sequence[TextPiece]) -> str:
    """A running text as Markdown, the marked token as code, its blanks seen."""
    shown = []
    for is_marked, group in groupby(pieces, lambda piece: piece.is_marked):
        texts = [piece.text for piece in group]
        if is_marked:
            shown += [_markdown_token(text) for text in texts]
        else:
            # Escaped as a whole: what is harmless in each of two tokens may be markup where they meet.
            shown.append(markdown("".join(visible(text, MAX_TOKEN) for text in texts), MAX_RUNNING))
    return "".join(shown)


def running_html(pieces: Sequence[TextPiece]) -> Markup:
    """A running text as HTML: the marked token in <mark>, others at which the feature fires underlined."""
    shown = []
    for piece in pieces:
        if piece.is_marked:
            shown.append(Markup("<mark>{}</mark>").format(visible_token(piece.text)))
        elif piece.is_active:
            shown.append(Markup("<u>{}</u>").format(visible(piece.text, MAX_TOKEN)))
        else:
            shown.append(escape(visible(piece.text, MAX_TOKEN)))
    return Markup("").join(shown)


def markdown_cell(cell: Cell) -> str:
    """A cell as Markdown: tokens as code, foreign text escaped."""
    match cell:
        case Tokens(texts):
            return " ".join(map(_markdown_token, texts)) or NOTHING
        case Foreign(text):
            return markdown(text)
        case _:
            return cell


def _markdown_token(text: str) -> str:
    shown = visible_token(text)
    return f"<code>{markdown(shown)}</code>" if set(shown) & set(_ENTITIES) else f"`{shown}`"


def html_cell(cell: Cell) -> Markup:
    """A cell as HTML: tokens as code, everything escaped."""
    match cell:
        case Tokens(texts):
            codes = [Markup("<code>{}</code>").format(visible_token(text)) for text in texts]
            return Markup(" ").join(codes) if codes else Markup(NOTHING)
        case Foreign(text):
            return escape(visible(text))
        case _:
            return escape(cell)


def code(name: str) -> str:
    """A name in the prose that both formats share: `name`."""
    return "`" + visible(name).replace("`", "'") + "`"


def prose_as_html(text: str) -> Markup:
    """The shared prose as HTML: everything escaped, then `code` and **strong**."""
    marked = re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(str(text))))
    unbroken = marked.replace(" &lt; ", "\N{NO-BREAK SPACE}&lt;\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", unbroken))


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and most Markdown readers make it: what-was-run"""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def capitalised(text: str) -> str:
    """With a capital first letter; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def listing(items: Sequence[object]) -> str:
    """a, b and c"""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
