"""What the tests of a feature share: how much they need, the normal and t distributions, the false discovery rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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
