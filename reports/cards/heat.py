"""Tokens with numbers in, a line of them painted by these numbers out; and bars of block characters.

A line is made of spans, each a text that is visible as it stands with how it is painted. Widths are counted before
colours come in, so that a line has the same width with them and without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from energy_lens.warehouse.terminal import cut, visible, width

#: Bars of eight heights.
BLOCKS = "▁▂▃▄▅▆▇█"

#: xterm's colours of a background, from little to much: pale yellow to amber. Text on them is always set too, so that a
#: terminal's own colours, light or dark, do not matter.
SCALE = (230, 229, 228, 222, 215)

#: xterm's colours of text on them: the least contrast of any pair is 5.6, where WCAG asks for 4.5.
BLACK, BLUE, RED = 16, 18, 88

#: Characters of a token that are shown; a longer one ends in an ellipsis.
LONGEST = 120

#: How characters that have a width of their own but nothing to see are shown.
_SIGNS = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True)
class Span:
    """A text, visible as it stands, and how it is painted."""

    text: str
    background: int | None = None  #: a colour of xterm's 256
    foreground: int | None = None
    is_bold: bool = False
    is_faint: bool = False
    is_marked: bool = False  #: made by `marked`

    def painted(self) -> str:
        """The text with colours, a marked one underlined in place of its signs."""
        codes = ["1"] * self.is_bold + ["2"] * self.is_faint + ["4"] * self.is_marked
        codes += [] if self.foreground is None else [f"38;5;{self.foreground}"]
        codes += [] if self.background is None else [f"48;5;{self.background}"]
        text = self.text.removeprefix("«").removesuffix("»") if self.is_marked else self.text
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes and text else text


Line = Sequence[Span]


def marked(text: str) -> str:
    """The text of the token that a line is about, as it stands where there are no colours."""
    return f"«{text}»"


def rendered(line: Line, colours: bool) -> str:
    """A line as it is printed; without colours, what is faint or bold is as everything else."""
    return "".join(span.painted() if colours else span.text for span in line).rstrip()


def shown(text: str) -> str:
    """A token's text within a line: blanks as they are, ends of lines and tabs as signs, what hides spelled out."""
    return visible((text if len(text) <= LONGEST else text[:LONGEST] + "…").translate(_SIGNS))


def quoted(text: str, columns: int) -> str:
    """A token's text on its own, its blanks seen, cut to a width: ␣the. Blanks of other kinds are spelled by number."""
    seen = shown(text[: 4 * columns + 4]).replace(" ", "␣")
    spelled = "".join(f"\\u{ord(character):04x}" if character.isspace() else character for character in seen)
    return cut(spelled or '""', columns)


# ------------------------------------------------------------------------------------------------ numbers to paint


def step(value: float | None, low: float, high: float, n: int) -> int | None:
    """Which of n equal steps from low to high a value is in, from 0, or is nearest to; None for what is no number."""
    if value is None or not isfinite(value):
        return None
    if high <= low:
        return n - 1 if value >= high else 0
    return min(n - 1, max(0, int((value - low) / (high - low) * n)))


def sparkline(counts: Sequence[float]) -> str:
    """A bar for each count, as high as the largest; blank where there is none at all."""
    most = max(counts, default=0)
    return "".join(" " if not count or not most else BLOCKS[min(7, int(8 * count / most))] for count in counts)


def fewer(counts: Sequence[int], n: int) -> list[int]:
    """Counts of as many neighbouring bins taken together as leave at most n."""
    together = max(1, -(-len(counts) // max(1, n)))
    return [sum(counts[i : i + together]) for i in range(0, len(counts), together)]


# ------------------------------------------------------------------------------------------------ lines of tokens


def around(texts: Sequence[str], mark: int, columns: int) -> tuple[int, int]:
    """The first and last + 1 of the texts around the marked one that fit a width together; it alone is always there.

    Two texts before it for each one behind: a feature fires because of what it has read.
    """
    first, end, left = mark, mark + 1, columns - width(texts[mark])
    blocked_before = blocked_after = False
    while not (blocked_before and blocked_after):
        for _ in range(2):
            blocked_before = blocked_before or first == 0 or width(texts[first - 1]) > left
            if not blocked_before:
                first -= 1
                left -= width(texts[first])
        blocked_after = blocked_after or end == len(texts) or width(texts[end]) > left
        if not blocked_after:
            left -= width(texts[end])
            end += 1
    return first, end


def fitted(spans: Iterable[Span], columns: int) -> list[Span]:
    """Spans up to a width; the one that does not fit is cut, the others left out.

    Signs that join what stands before them can make a whole wider than its parts, so the whole is measured.
    """
    kept: list[Span] = []
    text = ""
    for span in spans:
        if width(text + span.text) > columns:
            room = columns - width(text)
            while room > 0 and width(text + cut(span.text, room)) > columns:
                room -= 1
            if room > 0:
                kept.append(replace(span, text=cut(span.text, room)))
            break
        kept.append(span)
        text += span.text
    return kept


def broken(spans: Sequence[Span], columns: int) -> list[list[tuple[int, Span]]]:
    """Spans in lines of at most a width, each with its number; broken between spans, or within one that is longer."""
    lines: list[list[tuple[int, Span]]] = [[]]
    text = ""
    for number, span in enumerate(spans):
        for piece in _pieces(span, columns):
            if text and width(text + piece.text) > columns:
                lines.append([])
                text = ""
            lines[-1].append((number, piece))
            text += piece.text
    return lines


def _pieces(span: Span, columns: int) -> Iterator[Span]:
    """A span in parts of at most a width."""
    text = span.text
    while width(text) > columns:
        part = cut(text, columns)[:-1] or text[:1]  # without its ellipsis
        yield replace(span, text=part)
        text = text[len(part) :]
    yield replace(span, text=text)
