"""Gradients summed by document in, what an interval needs of documents in which a feature does not fire out.

There a is 0, so a document's influence on the correlation is a linear form α·g' + β·n + γ·w in three of its numbers:
its summed gradient g' along the row, centred over the run, its tokens n, and a weight w. Sums over documents of its
square and fourth power are polynomials in α, β, γ whose coefficients, the moments of (g', n, w), do not depend on
where the feature fires. So no number is held for each document and feature, only for those that go together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import factorial

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.strata import Partition, RunLayout

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Numbers in one documents x features array.
CHUNK_NUMBERS = 500_000

#: Exponents of (g', n, w) by degree: the terms of a square and of a fourth power.
EXPONENTS = {
    degree: [(i, k, degree - i - k) for i in range(degree, -1, -1) for k in range(degree - i, -1, -1)]
    for degree in (2, 4)
}


class Documents:
    """Numbers of every document of a run, and their moments along rows."""

    def __init__(self, run: RunLayout, n: Floats, w: Floats, gradients: Floats) -> None:
        """n: tokens [document]; w: [document]; gradients: Σ of the tokens' vectors [document, d]."""
        self.n, self.w = n, w
        self.mean = gradients.sum(0) / max(n.sum(), 1.0)  #: of a token's vector [d]
        self._order = np.argsort(run.cells, kind="stable")
        self._rank = np.empty(len(n), dtype=np.int64)
        self._rank[self._order] = np.arange(len(n))
        self._gradients = (gradients - n[:, None] * self.mean)[self._order]
        self._cells = run.cells[self._order]
        self._n_cells = int(run.cells.max(initial=-1)) + 1
        ordered_n, ordered_w = n[self._order], w[self._order]
        # By degree and power of g': n^k·w^m of the terms with that power [term, document].
        self._weights = {
            degree: [
                np.stack([ordered_n**k * ordered_w**m for i, k, m in terms if i == power])
                for power in range(degree + 1)
            ]
            for degree, terms in EXPONENTS.items()
        }

    def moments(self, rows: Floats, pair_feature: Integers, pair_document: Integers) -> Moments:
        """Σ over the documents of each cell of the terms of degree 2 and 4, and g' of pairs.

        rows: [feature, d], or one row for all features; g' of a document is its centred gradient times a row.
        pair_feature, pair_document: [pair].
        """
        pair_feature = np.minimum(pair_feature, len(rows) - 1)
        sums = {degree: np.zeros((self._n_cells, len(terms), len(rows))) for degree, terms in EXPONENTS.items()}
        pair_rank = self._rank[pair_document]
        by_rank = np.argsort(pair_rank, kind="stable")
        of_pairs = np.empty(len(pair_rank))
        step = max(1, CHUNK_NUMBERS // max(1, len(rows)))
        for first in range(0, len(self._order), step):
            last = min(first + step, len(self._order))
            g = self._gradients[first:last] @ rows.T
            within = by_rank[slice(*np.searchsorted(pair_rank[by_rank], [first, last]))]
            of_pairs[within] = g[pair_rank[within] - first, pair_feature[within]]
            g2 = g * g
            powers = [np.ones((len(g), 1)), g, g2, g2 * g, g2 * g2]
            bounds = np.flatnonzero(np.diff(self._cells[first:last], prepend=-1, append=-1))
            for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                cell = self._cells[first + start]
                for degree, weights in self._weights.items():
                    # Terms come by falling power of g'.
                    terms = [w[:, first + start : first + stop] @ power[start:stop]
                             for w, power in zip(weights, powers, strict=False)]  # fmt: skip
                    at = 0
                    for term in reversed(terms):
                        sums[degree][cell, at : at + len(term)] += term
                        at += len(term)
        by_cell = {degree: np.moveaxis(values, 1, 2) for degree, values in sums.items()}
        return Moments(self, rows, pair_document, of_pairs, by_cell)

    def forms(self, row: Floats, form: Floats) -> Floats:
        """α·g' + β·n + γ·w of every document [document]. row: [d]; form: α, β, γ [3]."""
        values = np.empty(len(self.n))
        values[self._order] = self._gradients @ row
        result: Floats = form[0] * values + form[1] * self.n + form[2] * self.w
        return result


@dataclass(frozen=True)
class Moments:
    """What `Documents.moments` returns."""

    documents: Documents
    rows: Floats  #: [feature, d], or one for all features
    pair_document: Integers  #: [pair]
    g: Floats  #: g' [pair]
    by_cell: dict[int, Floats]  #: degree: [cell, feature, term]

    def at(self, pairs: Integers) -> Moments:
        """The same with some of the pairs, in their order."""
        return replace(self, pair_document=self.pair_document[pairs], g=self.g[pairs])

    def sum_of_powers(
        self, partition: Partition, feature: Integers, stratum: Integers, form: Floats, degree: int
    ) -> tuple[Floats, Floats]:
        """Σ over a stratum's documents of (α·g' + β·n + γ·w)^degree, and the size of the terms it was added from [key].

        feature, stratum: [key]. form: α, β, γ [3, key].
        """
        of_keys = partition.of(self.by_cell[degree])[stratum, np.minimum(feature, len(self.rows) - 1)]
        powers = np.ones((degree + 1, *form.shape))
        for exponent in range(1, degree + 1):
            powers[exponent] = powers[exponent - 1] * form
        result, size = np.zeros(len(feature)), np.zeros(len(feature))
        for (i, k, m), moment in zip(EXPONENTS[degree], of_keys.T, strict=True):
            multiplicity = factorial(degree) // (factorial(i) * factorial(k) * factorial(m))
            term = multiplicity * powers[i, 0] * powers[k, 1] * powers[m, 2] * moment
            result += term
            size += np.abs(term)
        return result, size

    def forms(self, feature: int, form: Floats) -> Floats:
        """α·g' + β·n + γ·w of every document [document]. form: α, β, γ [3]."""
        return self.documents.forms(self.rows[min(feature, len(self.rows) - 1)], form)
