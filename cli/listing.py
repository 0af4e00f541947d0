"""What commands show: rows in, a listing on stdout out, its numbers shortened."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from energy_lens.cli.options import TextFormat
from energy_lens.console import say

if TYPE_CHECKING:
    from energy_lens.warehouse.output import Rows


def print_rows(rows: Rows, form: TextFormat) -> None:
    """A listing, all of it."""
    from energy_lens.warehouse.query import print_listing

    for note in print_listing(rows, form.value):
        say(note)


def to_six_digits(value: float | str) -> float | str:
    """A number to six digits, whatever its size."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, int | float) and not math.isnan(value) else None
