"""Normal and t distributions and the false discovery rate, through scipy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def two_sided_p(z: Floats) -> Floats:
    """P(|Z| >= |z|) for a standard normal Z."""
    from scipy.special import ndtr

    p: Floats = 2 * ndtr(-np.abs(z))
    return p


def two_sided_t_p(t: Floats, degrees_of_freedom: int) -> Floats:
    """P(|T| >= |t|) for Student's T."""
    from scipy.special import stdtr

    p: Floats = 2 * stdtr(degrees_of_freedom, -np.abs(t))
    return p


def t_quantile(degrees_of_freedom: int, level: float = 0.975) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, level))


def benjamini_hochberg(p: Floats) -> Floats:
    """q values: the false discovery rate at which each test is just rejected."""
    from scipy.stats import false_discovery_control

    q: Floats = false_discovery_control(p)
    return q
