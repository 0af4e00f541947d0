"""What commands show: rows in, a listing on stdout out, its numbers shortened."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from energy_lens.cli import streams
from energy_lens.cli.options import TextFormat
from energy_lens.console import say

if TYPE_CHECKING:
    from energy_lens.warehouse.output import Rows


def print_rows(rows: Rows, form: TextFormat) -> None:
    """A listing, all of it, as far as it is read."""
    from energy_lens.warehouse.query import print_listing

    with _while_read():
        for note in print_listing(rows, form.value):
            say(note)


def print_line(text: object) -> None:
    """A line of data: the path of what was written, or a summary."""
    with _while_read():
        print(text)


def print_lines(lines: Iterable[str]) -> None:
    """Lines of data, in UTF-8 where they go to a file or a pipe, as far as they are read."""
    from energy_lens.warehouse.output import standard_output

    with _while_read():
        stream = standard_output()
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()


@contextlib.contextmanager
def _while_read() -> Iterator[None]:
    """A reader that has seen enough ends the printing, and not what the command has yet to do."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        if not streams.reader_has_left():
            raise


def to_six_digits(value: float | str) -> float | str:
    """A number to six digits, whatever its size."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, int | float) and not math.isnan(value) else None
