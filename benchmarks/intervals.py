"""Intervals of a correlation across documents: sums of each document in, how far off the correlation may be, out.

With ã and g̃ the tokens' distances from the means over all n tokens, r = cov/(s_a s_g):

  U_d    Σ ã·g̃/n over the document's tokens; V_a,d and V_g,d the same of ã² and g̃².
  I_d    U_d/(s_a s_g) − (r/2)(V_a,d/s_a² + V_g,d/s_g²), the document's influence on r; ΣI_d = 0.

Each method gives a half-width. D documents, t a 97.5 % quantile of Student's t:

  covariance   t(D−1)·√(D/(D−1)·ΣU_d²)/(s_a s_g), as if the standard deviations were known: `efas` of version 2.
  influence    t(D−1)·√(D/(D−1)·ΣI_d²).
  effective    the same with t of E degrees of freedom, E = (ΣI_d²)²/ΣI_d⁴.
  matched      the same with t of 3E − 2, at most D − 1. For normal I_d of variances v_d, E is about (ν + 2)/3, where
               ν = (Σv_d)²/Σv_d⁴ are Satterthwaite's degrees of freedom (1946): equal v_d give D/3, not D.
  jackknife    t(D−1)·√((D−1)/D·Σ(r_−d − mean)²), r_−d without document d.
  both         the jackknife's error with t of E.

`fisher` is `effective` on the scale of Fisher's transformation, artanh r ± t(E)·error/(1 − r²): `efas` of version 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import norm

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

METHODS = ("covariance", "influence", "effective", "matched", "jackknife", "both")

#: Below this many effective documents, (ΣI²)²/ΣI⁴, an interval is not worth printing.
MIN_EFFECTIVE = 5


class Sums(NamedTuple):
    """Of each document, arrays [..., document] float64; the leading dimensions are features or repetitions."""

    n: Floats  #: tokens; [document] will do
    a: Floats
    g: Floats
    a2: Floats
    g2: Floats
    ag: Floats


class Intervals(NamedTuple):
    """Arrays [...]."""

    r: Floats
    effective: Floats  #: documents, (ΣI²)²/ΣI⁴
    half_widths: dict[str, Floats]  #: of the 95 % interval, by method
    fisher: Floats  #: half-width of the interval of artanh r


def correlation(sums: Sums, axis: int = -1) -> Floats:
    """Pearson's r over the documents' tokens together, the sum going over `axis`."""
    n, a, g, a2, g2, ag = (np.sum(x, axis) for x in sums)
    r: Floats = (n * ag - a * g) / np.sqrt((n * a2 - a**2) * (n * g2 - g**2))
    return r


def intervals(sums: Sums) -> Intervals:
    """r and the half-width of each of METHODS."""
    n = sums.n.sum(-1, keepdims=True)
    mean_a, mean_g = (x.sum(-1, keepdims=True) / n for x in (sums.a, sums.g))
    u = (sums.ag - mean_g * sums.a - mean_a * (sums.g - sums.n * mean_g)) / n
    v_a = (sums.a2 - 2 * mean_a * sums.a + sums.n * mean_a**2) / n
    v_g = (sums.g2 - 2 * mean_g * sums.g + sums.n * mean_g**2) / n
    var_a, var_g = v_a.sum(-1, keepdims=True), v_g.sum(-1, keepdims=True)
    u = u / np.sqrt(var_a * var_g)
    r = u.sum(-1, keepdims=True)
    influence = u - r / 2 * (v_a / var_a + v_g / var_g)
    n_documents = u.shape[-1]
    sum_i2, sum_i4 = ((influence**power).sum(-1) for power in (2, 4))
    effective = sum_i2**2 / sum_i4
    error = np.sqrt(n_documents / (n_documents - 1) * sum_i2)
    t = float(stdtrit(n_documents - 1, 0.975))
    left_out = jackknife_error(sums)
    half_widths = {
        "covariance": t * np.sqrt(n_documents / (n_documents - 1) * (u**2).sum(-1)),
        "influence": t * error,
        "effective": stdtrit(effective, 0.975) * error,
        "matched": stdtrit(np.clip(3 * effective - 2, 1, n_documents - 1), 0.975) * error,
        "jackknife": t * left_out,
        "both": stdtrit(effective, 0.975) * left_out,
    }
    fisher = half_widths["effective"] / (1 - r[..., 0] ** 2)
    return Intervals(r[..., 0], effective, half_widths, fisher)


def jackknife_error(sums: Sums) -> Floats:
    """Standard error of r by leaving out one document at a time [...]."""
    without = Sums(*(x.sum(-1, keepdims=True) - x for x in sums))
    left_out = correlation(Sums(*(x[..., None] for x in without)))
    n_documents = left_out.shape[-1]
    error: Floats = np.sqrt((n_documents - 1) / n_documents * left_out.var(-1) * n_documents)
    return error


# ------------------------------------------------------------------------------------------------ simulation


@dataclass(frozen=True)
class Documents:
    """Documents to simulate. a is the positive part of noise above one standard deviation, g = β_d·a + level_d + noise.

    β_d is normal about r; a and g are scaled so that r is the correlation over infinitely many documents.
    """

    r: float
    n_documents: int
    unequal: bool = False  #: sizes log-normal with unit deviation, else equal
    slopes: float = 0.0  #: deviation of β_d, and of the levels, as a share of √(1 − r²)
    tokens: int = 100  #: mean tokens of a document

    def sizes(self) -> Ids:
        """Tokens of each document [document]; of a log-normal its quantiles, the same in every repetition."""
        places = (np.arange(self.n_documents) + 0.5) / self.n_documents
        sizes = np.exp(norm.ppf(places) * self.unequal)
        return np.maximum(np.rint(self.tokens * sizes / sizes.mean()), 8).astype(np.int64)


def simulate(documents: Documents, repetitions: int, generator: np.random.Generator) -> Sums:
    """Sums by repetition and document [repetition, document]."""
    above = 1 - norm.cdf(1)
    mean = norm.pdf(1) - above  # of max(w − 1, 0), w standard normal; its mean square is 2·above − φ(1)
    deviation = np.sqrt(2 * above - norm.pdf(1) - mean**2)
    left = 1 - documents.r**2
    spread = documents.slopes * np.sqrt(left)
    noise = np.sqrt(left - 2 * spread**2)
    by_document = []
    for n in documents.sizes():
        shape = (repetitions, int(n))
        a = (np.maximum(generator.standard_normal(shape) - 1, 0) - mean) / deviation
        slope = documents.r + spread * generator.standard_normal((repetitions, 1))
        g = slope * a + spread * generator.standard_normal((repetitions, 1)) + noise * generator.standard_normal(shape)
        by_document.append([np.full(repetitions, n), *(x.sum(1) for x in (a, g, a**2, g**2, a * g))])
    return Sums(*np.moveaxis(np.array(by_document, dtype=np.float64), 0, -1))
