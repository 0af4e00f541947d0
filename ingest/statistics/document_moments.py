"""Gradients summed by document in, what an interval needs of documents in which a feature does not fire out.

There a is 0, so a document's influence on the correlation is a linear form α·g' + β·n + γ·w in three of its numbers:
its summed gradient g' along the row, centred over the run, its tokens n, and a weight w. Sums over documents of its
square and fourth power are polynomials in α, β, γ whose coefficients, the moments of (g', n, w), do not depend on
where the feature fires. So no number is held for each document and feature, only for those that go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.strata import Partition, RunLayout

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Numbers in one documents x features array.
CHUNK_NUMBERS = 2_000_000

#: Exponents of (g', n, w) by degree: the terms of a square and of a fourth power.
EXPONENTS = {
    degree: [(i, k, degree - i - k) for i in range(degree, -1, -1) for k in range(degree - i, -1, -1)]
    for degree in (2, 4)
}


@dataclass(frozen=True)
class Documents:
    """Numbers of each document, feature by feature or the same for all."""

    n: Floats  #: [document] tokens
    w: Floats  #: [document]
    gradients: Floats  #: [document, d] summed vectors, minus n times their mean over the run

    @classmethod
    def of(cls, n: Floats, w: Floats, gradients: Floats) -> Documents:
        return cls(n, w, gradients - n[:, None] * (gradients.sum(0) / max(n.sum(), 1.0)))


def moments(
    run: RunLayout, documents: Documents, rows: Floats, pair_feature: Integers, pair_document: Integers
) -> tuple[Floats, dict[int, Floats]]:
    """Σ over the documents of each cell of the terms of degree 2 and 4, and g' of pairs.

    rows: [feature, d]; g' of a document is its gradient times a row. pair_feature, pair_document: [pair].
    Returns g' [pair], and by degree [cell, feature, term].
    """
    order = np.argsort(run.cells, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    pair_rank = rank[pair_document]
    by_rank = np.argsort(pair_rank, kind="stable")
    n_cells = int(run.cells.max()) + 1 if len(order) else 0
    sums = {degree: np.zeros((n_cells, len(terms), len(rows))) for degree, terms in EXPONENTS.items()}
    of_pairs = np.empty(len(pair_rank))
    step = max(1, CHUNK_NUMBERS // max(1, len(rows)))
    for first in range(0, len(order), step):
        chunk = order[first : first + step]
        g = documents.gradients[chunk] @ rows.T
        within = by_rank[slice(*np.searchsorted(pair_rank[by_rank], [first, first + len(chunk)]))]
        of_pairs[within] = g[pair_rank[within] - first, pair_feature[within]]
        bounds = np.flatnonzero(np.diff(run.cells[chunk], prepend=-1, append=-1))
        powers = [g]
        for _ in range(3):
            powers.append(powers[-1] * g)
        for degree, terms in EXPONENTS.items():
            weights = {
                power: np.stack([documents.n[chunk] ** k * documents.w[chunk] ** m for i, k, m in terms if i == power])
                for power in range(degree + 1)
            }
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
                total = sums[degree][run.cells[chunk[start]]]
                at = 0
                for power in range(degree, -1, -1):
                    weight = weights[power][:, start:stop]
                    term = weight.sum(1)[:, None] if power == 0 else weight @ powers[power - 1][start:stop]
                    total[at : at + len(weight)] += term
                    at += len(weight)
    return of_pairs, {degree: np.moveaxis(values, 1, 2) for degree, values in sums.items()}


def sum_of_powers(
    by_cell: dict[int, Floats], partition: Partition, feature: Integers, stratum: Integers, form: Floats, degree: int
) -> Floats:
    """Σ over a stratum's documents of (α·g' + β·n + γ·w)^degree [key].

    by_cell: from `moments`. feature, stratum: [key]. form: α, β, γ [3, key].
    """
    of_keys = partition.of(by_cell[degree])[stratum, np.minimum(feature, by_cell[degree].shape[1] - 1)]
    alpha, beta, gamma = form
    result = np.zeros(len(feature))
    for (i, k, m), moment in zip(EXPONENTS[degree], of_keys.T, strict=True):
        multiplicity = factorial(degree) // (factorial(i) * factorial(k) * factorial(m))
        result += multiplicity * alpha**i * beta**k * gamma**m * moment
    return result
