"""How well predictions agree with measurements over features: values by feature in, correlations with intervals out.

An interval is about other documents and other features of the same kind, as many of each: both are samples, so both are
left out in turn (jackknife), and Fisher's z of the correlation gets the error

  V = V_features + max(0, V_documents − V_cells)

V_cells is what leaving a document out for a single feature changes: chance that is in both of the others, and must
count once (Cameron, Gelbach and Miller 2011). The quantile is Student's t, with as many degrees of freedom as units
count, since a few features or documents may carry most of the error (`effective_number`).

Between two halves of the documents the measured effect itself correlates by its *reliability* ρ. Measured as T + error,
a perfect predictor of T reaches √ρ, so r/√ρ is what a prediction would reach were the measurement exact (Spearman
1904).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from energy_lens.ingest.statistics.significance import t_quantile

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

#: An interval across documents needs this many of them, on each side where prediction and measurement have their own.
MIN_DOCUMENTS = 15

#: A correlation over features needs this many.
MIN_FEATURES = 5

#: Features are left out in at most so many groups, and cells of at most so many features are: more change no digit.
MAX_GROUPS, CELL_FEATURES = 100, 64


class Agreement(NamedTuple):
    """A correlation over features, with the bounds of its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


UNKNOWN = Agreement(np.nan, np.nan, np.nan)


class Values(NamedTuple):
    """A figure of each feature: from all documents, and from all but each; a mean over documents, never their sum."""

    whole: Floats  #: [feature]; NaN where there is none
    without: Floats  #: [document, feature]


@dataclass(frozen=True)
class Replicates:
    """A correlation of all, and without each document, group of features, and cell."""

    value: float
    documents: Floats  #: [document]
    features: Floats  #: [group of features]
    cells: Floats  #: [feature, document]; of some features, see `cell_share`
    cell_share: float  #: the share of all features that have cells here
    sides: Ids  #: [document] 0; or 0 and 1 where prediction and measurement are of different documents

    def agreement(self) -> Agreement:
        """With the interval of Fisher's z; no bounds below MIN_DOCUMENTS on a side."""
        if not self._enough():
            return Agreement(self.value, np.nan, np.nan)
        centre, half = np.arctanh(np.clip(self.value, -1 + 1e-12, 1 - 1e-12)), self._half_width(_fisher)
        return Agreement(self.value, float(np.tanh(centre - half)), float(np.tanh(centre + half)))

    def plain(self) -> Agreement:
        """The number itself with its interval, where it is not a correlation; no bounds below MIN_DOCUMENTS."""
        half = self._half_width(np.positive) if self._enough() else np.nan
        return Agreement(self.value, self.value - half, self.value + half)

    def disattenuated(self, reliability: Replicates) -> Agreement:
        """r/√ρ with an interval that has the error of both; NaN where ρ's own interval reaches 0, or has no bounds.

        reliability: ρ of the same documents and features.
        """
        if not self._enough() or not reliability.agreement().low > 0:
            return UNKNOWN

        def ratio(r: Floats, rho: Floats) -> Floats:
            result: Floats = r / np.sqrt(np.maximum(rho, 1e-3))
            return result

        value = self.value / np.sqrt(reliability.value)
        half = self._half_width(ratio, reliability)
        return Agreement(value, value - half, value + half)

    def difference(self, other: Replicates) -> Agreement:
        """By how much this correlation is above another of the same documents and features, with its interval."""
        value = self.value - other.value
        if not (self._enough() and other._enough()):
            return Agreement(value, np.nan, np.nan)
        half = self._half_width(np.subtract, other)
        return Agreement(value, value - half, value + half)

    def _enough(self) -> bool:
        smallest = np.bincount(self.sides).min() if len(self.sides) else 0
        return bool(np.isfinite(self.value) and smallest >= MIN_DOCUMENTS)

    def _half_width(self, of: Callable[..., Floats], *others: Replicates) -> float:
        """Of the 95 % interval of a function of this correlation and of others."""
        parts = (self, *others)
        documents, features, cells = (
            of(*(getattr(part, what) for part in parts)) for what in ("documents", "features", "cells")
        )
        of_sides = [self.sides == side for side in np.unique(self.sides)]
        by_document = sum(jackknife_variance(documents[side]) for side in of_sides)
        by_cell = sum(jackknife_variance(row[side]) for row in cells for side in of_sides) / self.cell_share
        by_feature, added = jackknife_variance(features), max(by_document - by_cell, 0.0)
        parts_of_error = ((by_feature, effective_number(features)), (added, effective_number(documents)))
        freedom = (by_feature + added) ** 2 / (sum(v**2 / n for v, n in parts_of_error) + 1e-300)
        return float(t_quantile(max(freedom, 1.0)) * np.sqrt(by_feature + added))


def _fisher(r: Floats) -> Floats:
    z: Floats = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return z


def jackknife_variance(values: Floats) -> float:
    """Variance from values that leave out one unit each; units that left nothing are passed over."""
    values = values[np.isfinite(values)]
    n = len(values)
    return float((n - 1) * values.var()) if n > 1 else 0.0


def effective_number(values: Floats) -> float:
    """Of values that leave out one unit each, how many units carry the error: (Σ e²)²/Σ e⁴ about their mean, from 1."""
    squares = np.square(values[np.isfinite(values)] - np.nanmean(values)) if np.isfinite(values).any() else np.zeros(1)
    fourth = float(np.square(squares).sum())
    return float(squares.sum() ** 2 / fourth) if fourth > 0 else 1.0


# ------------------------------------------------------------------------------------------------ correlations


@dataclass(frozen=True)
class Comparison:
    """What a correlation is taken of: numbers, ranks, or what the ranks of controls leave of ranks."""

    of_ranks: bool
    controls: tuple[Floats, ...] = ()  #: [feature] each

    def only(self, which: Ids | NDArray[np.bool_]) -> Comparison:
        """The same for some of the features."""
        return Comparison(self.of_ranks, tuple(control[which] for control in self.controls))

    def of(self, a: Floats, b: Floats) -> Floats:
        """The correlation of each row of [n, feature]: [n]; NaN where nothing varies."""
        return self._of_placed(*((rankdata(rows, axis=-1) if self.of_ranks else rows) for rows in (a, b)))

    def with_one_changed(self, pairs: Sequence[tuple[Floats, Floats]], feature: int) -> Floats:
        """The correlation [n] of two sides, each [feature], when one feature has other numbers, [n] on each side."""
        return self._of_placed(*(self._changed(whole, other, feature) for whole, other in pairs))

    def _changed(self, whole: Floats, other: Floats, feature: int) -> Floats:
        if not self.of_ranks:
            changed = np.tile(whole, (len(other), 1))
            changed[:, feature] = other
            return changed
        # Ranks without sorting anew: each other feature counts as above (1), level (½) or below.
        above = (whole > other[:, None]) + (whole == other[:, None]) / 2
        below = len(whole) - 1 - (above.sum(1) - above[:, feature])
        was_above = (whole > whole[feature]) + (whole == whole[feature]) / 2
        ranks: Floats = rankdata(whole) - was_above + above
        ranks[:, feature] = below + 1
        return ranks

    def _of_placed(self, a: Floats, b: Floats) -> Floats:
        """Of numbers, or of ranks as they stand."""
        n = a.shape[-1]
        a, b = (rows - rows.mean(-1, keepdims=True) for rows in (a, b))
        if self.controls:
            ranks = np.stack([rankdata(control) for control in self.controls], axis=1)
            basis, _, _ = np.linalg.svd(ranks - ranks.mean(0), full_matrices=False)
            a, b = (rows - (rows @ basis) @ basis.T for rows in (a, b))
        squares = (a * a).sum(-1), (b * b).sum(-1)
        # What the controls explain entirely leaves rounding errors, which correlate with nothing.
        left = 1e-9 * n**3 if self.controls else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (a * b).sum(-1) / np.sqrt(squares[0] * squares[1])
        defined: Floats = np.where((squares[0] > left) & (squares[1] > left), np.clip(r, -1, 1), np.nan)
        return defined


def replicates(predicted: Values, measured: Values, sides: Ids, comparison: Comparison, seed: int = 0) -> Replicates:
    """The correlation of predictions and measurements over features, and what leaving parts out makes of it.

    Features without a number on either side are left out. seed: of the groups of features and of those with cells.
    """
    known = np.isfinite(predicted.whole) & np.isfinite(measured.whole)
    n = int(known.sum())
    if n < MIN_FEATURES:
        nothing = np.empty(0)
        return Replicates(np.nan, nothing, nothing, np.empty((0, 0)), 1.0, sides)
    comparison = comparison.only(known)
    (x, x_without), (y, y_without) = ((side.whole[known], side.without[:, known]) for side in (predicted, measured))
    order = np.random.default_rng(seed).permutation(n)
    left = [np.delete(np.arange(n), group) for group in np.array_split(order, min(n, MAX_GROUPS))]
    with_cells = order[:CELL_FEATURES]
    return Replicates(
        float(comparison.of(x[None], y[None])[0]),
        np.array([_of_known(a, b, comparison) for a, b in zip(x_without, y_without, strict=True)]),
        np.array([_of_known(x[kept], y[kept], comparison.only(kept)) for kept in left]),
        np.array([
            comparison.with_one_changed([(x, _else(x_without, x, j)), (y, _else(y_without, y, j))], j)
            for j in with_cells
        ]),
        len(with_cells) / n,
        sides,
    )  # fmt: skip


def _of_known(a: Floats, b: Floats, comparison: Comparison) -> float:
    """The correlation of [feature], without the features that have no number any more; NaN with too few to compare."""
    known = np.isfinite(a) & np.isfinite(b)
    return float(comparison.only(known).of(a[None, known], b[None, known])[0]) if known.sum() > 2 else np.nan


def _else(without: Floats, whole: Floats, feature: int) -> Floats:
    """A feature's numbers without each document [document], its whole one where it has none then."""
    own = without[:, feature]
    kept: Floats = np.where(np.isfinite(own), own, whole[feature])
    return kept


# ------------------------------------------------------------------------------------------------ over documents


def means_without(sums: Floats) -> Values:
    """Means over documents of sums by feature and document [feature, document]."""
    n = sums.shape[1]
    total = sums.sum(1)
    return Values(total / n, (total[:, None] - sums).T / max(n - 1, 1))


def ratio_interval(numerator: Floats, denominator: Floats) -> tuple[Floats, Floats]:
    """95 % intervals across documents of Σ numerator / Σ denominator, each [row, document]: two [row].

    By leaving out one document at a time; Student's t with as many degrees of freedom as documents carry the error. NaN
    for a row with fewer than MIN_DOCUMENTS documents that count.
    """
    low, high = np.full(len(numerator), np.nan), np.full(len(numerator), np.nan)
    for row, (above, below) in enumerate(zip(numerator, denominator, strict=True)):
        counts = below > 0
        if counts.sum() < MIN_DOCUMENTS:
            continue
        above, below = above[counts], below[counts]
        without = (above.sum() - above) / (below.sum() - below)
        half = t_quantile(effective_number(without)) * np.sqrt(jackknife_variance(without))
        low[row], high[row] = above.sum() / below.sum() + half * np.array([-1, 1])
    return low, high
