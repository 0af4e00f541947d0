"""Numbers in, shapes of small inline SVG drawings out: coordinates only, templates draw them.

Every drawing has a view box in its own units; colours and line widths are the style sheet's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: View box of a histogram.
BARS_WIDTH, BARS_HEIGHT = 300, 72

#: View box of strips: the width, the height of one, and the room for its name and for its count.
STRIPS_WIDTH, STRIP_HEIGHT, NAME_WIDTH, COUNT_WIDTH = 640, 22, 64, 110

#: View box of a scatter, and the margins in which its ticks stand.
SCATTER_WIDTH, SCATTER_HEIGHT, LEFT, BELOW, ABOVE, RIGHT = 640, 420, 64, 36, 12, 14


@dataclass(frozen=True)
class Bars:
    """A histogram: one path for all of its bars."""

    path: str
    low: float
    high: float
    largest: int  #: count of the highest bar
    zero: float | None  #: where 0 is along the width, if inside


def bars(low: float, high: float, counts: Sequence[int]) -> Bars:
    """The bars of equal width between two edges; one that holds anything is at least half a unit high."""
    largest = max(counts)
    step = BARS_WIDTH / len(counts)
    path = []
    for place, n in enumerate(counts):
        if n:
            height = max(0.5, BARS_HEIGHT * n / largest)
            path.append(f"M{place * step:g} {BARS_HEIGHT}v{-height:.1f}h{step * 0.9:g}V{BARS_HEIGHT}z")
    zero = BARS_WIDTH * -low / (high - low) if low < 0 < high else None
    return Bars("".join(path), low, high, largest, zero)


@dataclass(frozen=True)
class Tick:
    place: float  #: along the axis, in units of the view box
    value: float


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    name: tuple[int, int]  #: layer and feature
    predicted: float
    measured: float


@dataclass(frozen=True)
class Scatter:
    """Predicted along x against measured along y, on one scale for both, so that x = y is a diagonal."""

    points: Sequence[Point]
    ticks_x: Sequence[Tick]
    ticks_y: Sequence[Tick]
    zero_x: float
    zero_y: float
    diagonal: tuple[float, float, float, float]  #: x1, y1, x2, y2
    n_left_out: int  #: points beyond the cap
    threshold: float  #: below it the scale is about linear


def scatter(rows: Sequence[tuple[tuple[int, int], float, float]], cap: int) -> Scatter | None:
    """rows: (name, predicted, measured); the scale is that of asinh, linear up to the median size and then log.

    Of more rows than the cap the largest measured ones are drawn. None without rows.
    """
    rows = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
    if not rows:
        return None
    drawn = sorted(rows, key=lambda row: -abs(row[2]))[:cap]
    sizes = sorted(abs(value) for row in drawn for value in row[1:] if value)
    threshold = sizes[len(sizes) // 2] if sizes else 1.0
    reach = math.asinh((sizes[-1] if sizes else 1.0) / threshold) * 1.06

    def scaled(value: float, start: float, end: float) -> float:
        return start + (math.asinh(value / threshold) / reach + 1) / 2 * (end - start)

    def x(value: float) -> float:
        return scaled(value, LEFT, SCATTER_WIDTH - RIGHT)

    def y(value: float) -> float:
        return scaled(value, SCATTER_HEIGHT - BELOW, ABOVE)

    limit = threshold * math.sinh(reach)
    ticks = _ticks(threshold, limit)
    return Scatter(
        points=[Point(x(row[1]), y(row[2]), *row) for row in drawn],
        ticks_x=[Tick(x(value), value) for value in ticks],
        ticks_y=[Tick(y(value), value) for value in ticks],
        zero_x=x(0),
        zero_y=y(0),
        diagonal=(x(-limit), y(-limit), x(limit), y(limit)),
        n_left_out=len(rows) - len(drawn),
        threshold=threshold,
    )


def _ticks(threshold: float, limit: float) -> list[float]:
    """0 and powers of ten from about the threshold on, of either sign; with few of these, twice and five times them."""
    exponents = range(math.floor(math.log10(threshold)), math.floor(math.log10(limit)) + 1)
    powers = [10.0**exponent for exponent in exponents]
    if len(powers) < 3:
        powers = [step * power for power in powers for step in (1, 2, 5)]
    powers = [power for power in powers if threshold / 2 <= power <= limit]
    return [-value for value in reversed(powers)] + [0.0, *powers]


@dataclass(frozen=True)
class Strip:
    """Quantiles of a distribution along x: 5 %, 25 %, median, 75 %, 95 %."""

    name: str
    y: float
    quantiles: tuple[float, float, float, float, float]
    values: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Strips:
    strips: Sequence[Strip]
    height: float
    zero: float
    ends: tuple[Tick, Tick]


def strips(rows: Sequence[tuple[str, Sequence[float | None]]]) -> Strips | None:
    """rows: (name, five quantiles), drawn on one scale that is alike on both sides of 0. None without any."""
    whole = [(name, tuple(value for value in values if value is not None)) for name, values in rows]
    whole = [(name, values) for name, values in whole if len(values) == 5]
    reach = max((abs(value) for _, values in whole for value in values), default=0.0)
    if not reach:
        return None
    start, end = NAME_WIDTH, STRIPS_WIDTH - COUNT_WIDTH
    middle, half = (start + end) / 2, (end - start) / 2 - 6

    def x(value: float) -> float:
        return middle + value / reach * half

    drawn = []
    for place, (name, values) in enumerate(whole):
        a, b, c, d, e = values
        drawn.append(Strip(name, (place + 0.5) * STRIP_HEIGHT, (x(a), x(b), x(c), x(d), x(e)), (a, b, c, d, e)))
    return Strips(drawn, len(drawn) * STRIP_HEIGHT, middle, (Tick(x(-reach), -reach), Tick(x(reach), reach)))
