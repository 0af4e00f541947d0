"""How well predictions agree with measurements over features: sums by feature and document in, correlations out.

Intervals are percentiles of a bootstrap that draws documents and features anew, since both are samples. Documents of a
draw have weights (how often each was drawn), so that a draw is one product with the sums by document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

#: Draws of a bootstrap, and the percentiles that bound 95 % of them.
REPLICATES = 400
BOUNDS = (2.5, 97.5)

#: An interval across documents needs this many of them.
MIN_BOOTSTRAP_DOCUMENTS = 5

#: A correlation over features needs this many.
MIN_FEATURES = 5


class Agreement(NamedTuple):
    """A correlation over features, with the bounds of its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


class BootstrapDraws(NamedTuple):
    """What a bootstrap drew; draw 0 is the data themselves."""

    weights: Floats  #: [draw, document]
    features: NDArray[np.int64]  #: [draw, feature] which ones


def bootstrap(n_documents: int, n_features: int, seed: int, replicates: int = REPLICATES) -> BootstrapDraws:
    """Draws of documents and of features, independent of each other."""
    generator = np.random.default_rng(seed)
    equal = np.full(n_documents, 1 / n_documents)
    weights = generator.multinomial(n_documents, equal, size=replicates).astype(np.float64)
    features = generator.integers(0, n_features, size=(replicates, n_features))
    return BootstrapDraws(
        np.concatenate([np.ones((1, n_documents)), weights]),
        np.concatenate([np.arange(n_features)[None], features]),
    )


def drawn_sums(values: Floats, draws: BootstrapDraws) -> Floats:
    """Σ over documents of values [feature, document] in each draw: [draw, feature], features as drawn."""
    return np.take_along_axis(draws.weights @ values.T, draws.features, axis=1)


def drawn_scores(values: Floats, draws: BootstrapDraws) -> Floats:
    """Values [feature] that no draw of documents changes: [draw, feature], features as drawn."""
    return values[draws.features]


def spearman(predicted: Floats, measured: Floats) -> Agreement:
    """Rank correlation of [draw, feature]; a draw's features without a number are left out of it."""
    return _agreement(predicted, measured, lambda a, b: _pearson(rankdata(a), rankdata(b)))


def pearson(predicted: Floats, measured: Floats) -> Agreement:
    """Pearson's correlation of [draw, feature]."""
    return _agreement(predicted, measured, _pearson)


def partial_spearman(predicted: Floats, measured: Floats, controls: Mapping[str, Floats]) -> Agreement:
    """Rank correlation of [draw, feature] of what the ranks of `controls`, each [draw, feature], do not explain."""
    values = []
    for i, (a, b) in enumerate(zip(predicted, measured, strict=True)):
        known = np.isfinite(a) & np.isfinite(b)
        if known.sum() < MIN_FEATURES:
            values.append(np.nan)
            continue
        design = np.stack(
            [np.ones(known.sum()), *(rankdata(control[i][known]) for control in controls.values())], axis=1
        )
        basis, _, _ = np.linalg.svd(design, full_matrices=False)
        left = [ranks - basis @ (basis.T @ ranks) for ranks in (rankdata(a[known]), rankdata(b[known]))]
        # A score that the controls explain entirely leaves rounding errors, which correlate with nothing.
        explained = any(np.square(rest).sum() < 1e-9 * known.sum() ** 3 for rest in left)
        values.append(np.nan if explained else _pearson(*left))
    return _with_bounds(values)


def _agreement(predicted: Floats, measured: Floats, correlation: Callable[[Floats, Floats], float]) -> Agreement:
    values = []
    for a, b in zip(predicted, measured, strict=True):
        known = np.isfinite(a) & np.isfinite(b)
        values.append(correlation(a[known], b[known]) if known.sum() >= MIN_FEATURES else np.nan)
    return _with_bounds(values)


def _with_bounds(values: list[float]) -> Agreement:
    drawn = np.array(values[1:])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, BOUNDS) if len(drawn) > 1 else (np.nan, np.nan)
    return Agreement(values[0], float(low), float(high))


def _pearson(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def ratio_interval(numerator: Floats, denominator: Floats, seed: int) -> tuple[Floats, Floats]:
    """95 % intervals over documents of Σ numerator / Σ denominator, each [row, document]: two [row].

    NaN for a row with fewer than MIN_BOOTSTRAP_DOCUMENTS documents that count.
    """
    n_rows, n_documents = numerator.shape
    weights = bootstrap(n_documents, 1, seed).weights[1:]
    low, high = np.full(n_rows, np.nan), np.full(n_rows, np.nan)
    enough = (denominator > 0).sum(1) >= MIN_BOOTSTRAP_DOCUMENTS
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (numerator[enough] @ weights.T) / (denominator[enough] @ weights.T)  # [row, draw]
    if enough.any():
        low[enough], high[enough] = np.nanpercentile(ratios, BOUNDS, axis=1)
    return low, high
