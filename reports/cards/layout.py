"""Cells and blocks of text in, lines that fit a width out; every width is counted in columns of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from energy_lens.warehouse.terminal import cut, width, wrapped

#: Columns between blocks, and between columns of a table where there is room; else there is one.
GAP = 2


def padded(text: str, columns: int, is_right: bool = False) -> str:
    """Text of exactly a width, cut if it is longer."""
    text = cut(text, columns)
    space = " " * (columns - width(text))
    return space + text if is_right else text + space


def table(rows: Sequence[Sequence[str]], sides: str, columns: int, flexible: int | None = None) -> list[str]:
    """Rows with their cells below each other, in lines of at most a width.

    sides: l or r for each column. flexible: the column of texts that is cut when the others leave it less room; cells
    of others are whole, since a number that is cut is another number, and lines beyond the width end in an ellipsis.
    """
    if not rows:
        return []
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    gap = GAP if sum(widths) + GAP * (len(widths) - 1) <= columns else 1
    if flexible is not None:
        others = sum(widths) - widths[flexible] + gap * (len(widths) - 1)
        widths[flexible] = max(1, min(widths[flexible], columns - others))
    cells = ([padded(cell, w, side == "r") for cell, w, side in zip(row, widths, sides, strict=True)] for row in rows)
    return [cut((" " * gap).join(row).rstrip(), columns) for row in cells]


def beside(blocks: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Blocks of lines beside each other, of equal widths."""
    each = (columns - GAP * (len(blocks) - 1)) // len(blocks)
    return [
        (" " * GAP).join(padded(line, each) for line in lines).rstrip() for lines in zip_longest(*blocks, fillvalue="")
    ]


def paragraph(text: str, columns: int, indent: str = "") -> list[str]:
    """Text in lines of at most a width, those behind the first indented."""
    first, *_ = lines = wrapped(text, columns)
    if len(lines) == 1:
        return [first]
    rest = text[len(first) :].lstrip(" ")
    return [first, *(indent + line for line in wrapped(rest, columns - len(indent)))]
