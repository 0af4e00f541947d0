"""What tables of benchmarks/significance.py and benchmarks/scrutiny.py are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.significance import benjamini_hochberg

Floats = NDArray[np.float64]

#: A table, its head first, under a heading.
Table = tuple[str, list[list[str]]]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


class Rejected(NamedTuple):
    """Of several families of p, each with a false discovery rate of its own."""

    n: int
    at_5: float  #: share below 0.05
    at_01: float  #: share below 0.001
    n_q: int  #: q < 0.05


def rejected(families: Sequence[Floats]) -> Rejected:
    """families: p by layer, without NaN."""
    p = np.concatenate(list(families)) if families else np.zeros(0)
    n_q = sum(int((benjamini_hochberg(family) < 0.05).sum()) for family in families if len(family))
    return Rejected(len(p), float((p < 0.05).mean()), float((p < 0.001).mean()), n_q)


def levels(families: Sequence[Floats]) -> str:
    total = rejected(families)
    return f"{total.at_5:.1%} / {total.at_01:.2%}"


def with_totals(results: Mapping[tuple[int, str], Any]) -> Iterator[tuple[list[str], list[Any]]]:
    """First cells and results of each layer and energy, then of each energy over all layers."""
    energies = list(dict.fromkeys(energy for _, energy in results))
    for energy in energies:
        of_energy = {layer: result for (layer, name), result in results.items() if name == energy}
        for layer, result in of_energy.items():
            yield [energy, str(layer)], [result]
        if len(of_energy) > 1:
            yield [energy, "all"], list(of_energy.values())
