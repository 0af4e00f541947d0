"""What the tests of a feature share: how much they need, the normal and t distributions, the false discovery rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Other contexts that must be included at a position for its mean to be subtracted.
MIN_MATES = 3

#: The within-context test needs this many active counted tokens, contexts and documents.
MIN_TEST_TOKENS, MIN_TEST_CONTEXTS, MIN_TEST_DOCUMENTS = 50, 10, 5


def two_sided_p(z: Floats) -> Floats:
    """P(|Z| >= |z|) for a standard normal Z."""
    from scipy.special import ndtr

    p: Floats = 2 * ndtr(-np.abs(z))
    return p


def two_sided_t_p(t: Floats, degrees_of_freedom: float | NDArray[np.number]) -> Floats:
    """P(|T| >= |t|) for Student's T."""
    from scipy.special import stdtr

    p: Floats = 2 * stdtr(degrees_of_freedom, -np.abs(t))
    return p


def t_quantile(degrees_of_freedom: float | NDArray[np.number], level: float = 0.975) -> Floats:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    quantile: Floats = np.asarray(stdtrit(degrees_of_freedom, level))
    return quantile


def benjamini_hochberg(p: Floats) -> Floats:
    """q values: the false discovery rate at which each test is just rejected."""
    from scipy.stats import false_discovery_control

    q: Floats = false_discovery_control(p)
    return q


def known_q(p: Floats) -> Floats:
    """q of the p that are not NaN, among themselves; NaN where p is."""
    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = benjamini_hochberg(p[known])
    return q


def hypergeometric_tail(n_in: Integers, n_tokens: int, n_class: int, n_active: Integers) -> Floats:
    """P(X >= n_in) where n_active of n_tokens tokens are drawn, n_class of which are in the class.

    The probabilities of the shorter side are summed from its largest one on, each from the one before, until none
    matters; scipy's sums them one feature at a time.
    """
    from scipy.special import gammaln

    def log_choose(n: NDArray[np.number] | int, k: NDArray[np.number]) -> Floats:
        result: Floats = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n, dtype=np.float64) - k + 1.0)
        return result

    k, n = n_in.astype(np.float64), n_active.astype(np.float64)
    low, high = np.maximum(n + n_class - n_tokens, 0), np.minimum(n, n_class)
    upper = k > n * n_class / max(n_tokens, 1)  # above the mean
    at = np.where(upper, k, k - 1)
    inside = (at >= low) & (at <= high)
    safe = np.where(inside, at, low)
    first = np.exp(log_choose(n_class, safe) + log_choose(n_tokens - n_class, n - safe) - log_choose(n_tokens, n))
    total, term, at = np.where(inside, first, 0.0), np.where(inside, first, 0.0), safe
    left = np.flatnonzero(inside)
    while len(left):
        x, up, drawn = at[left], upper[left], n[left]
        with np.errstate(divide="ignore", invalid="ignore"):
            rising = (n_class - x) * (drawn - x) / ((x + 1) * (n_tokens - n_class - drawn + x + 1))
            falling = x * (n_tokens - n_class - drawn + x) / ((n_class - x + 1) * (drawn - x + 1))
        term[left] *= np.where(up, rising, falling)
        total[left] += term[left]
        at[left] += np.where(up, 1, -1)
        left = left[(term[left] > 1e-18 * total[left]) & (at[left] > low[left]) & (at[left] < high[left])]
    return np.clip(np.where(upper, total, 1 - total), 0, 1)
