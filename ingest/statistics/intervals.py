"""Sums of pairs of feature and document in; intervals and tests that take documents for the independent samples out.

The formulas are those of `across_documents`, which holds a number for each document and feature; here documents in
which a feature does not fire enter through `document_moments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.across_documents import MIN_DOCUMENTS
from energy_lens.ingest.statistics.document_moments import Moments
from energy_lens.ingest.statistics.kernels import linear_forms
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.significance import t_quantile, two_sided_t_p
from energy_lens.ingest.statistics.strata import Partition

Floats = NDArray[np.float64]

#: A difference of sums that is smaller than this share of them has lost too many digits, and is summed anew.
LOST = 1e-5


@dataclass(frozen=True)
class PairSums:
    """Of pairs of a feature and a document in which it fires, over the document's tokens [pair]."""

    n: Floats  #: tokens
    a: Floats
    a2: Floats
    ag: Floats
    w: Floats  #: the document's weight
    g2: Floats  #: Σg² as far as it was summed where the feature fires
    share: Floats  #: weight by which the document takes part in what is left of Σg²


@dataclass(frozen=True)
class Totals:
    """Over all documents of a key's stratum [key]."""

    n: Floats  #: tokens
    w: Floats  #: Σ of the documents' weights
    run_g: Floats  #: mean of g over the run, which moments are centred by
    g: Floats  #: Σg
    g2: Floats  #: Σg²


def interval(
    keys: Keys, partition: Partition, pairs: PairSums, totals: Totals, moments: Moments
) -> tuple[Floats, Floats]:
    """ΣI_d² and the 97.5 % quantile of Student's t with E degrees of freedom [key]; NaN where undefined.

    moments: of the slice's features, and Σg of its pairs, minus n times its mean over the run.
    """
    a, a2, ag, g2, lost = keys.sums(pairs.a, pairs.a2, pairs.ag, pairs.g2, pairs.w - pairs.share)
    n, mean_a, mean_g = totals.n, a / totals.n, totals.g / totals.n
    shift = mean_g - totals.run_g  # of the stratum's mean from the run's
    weights, rest = np.maximum(totals.w - lost, 0), np.maximum(totals.g2 - g2, 0)
    # Where the feature fires all over, what is left of either is rounding.
    rate = np.where(weights > 1e-12 * totals.w, rest / np.maximum(weights, 1e-300), 0)
    covariance = ag / n - mean_a * mean_g
    var_a, var_g = a2 / n - mean_a**2, (g2 + rate * weights) / n - mean_g**2
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(var_a * var_g)
        half_r = covariance / scale / 2
        # In a document without the feature: I_d = α·g' + β·n + γ·w.
        alpha = -mean_a / (n * scale) + 2 * half_r * mean_g / (n * var_g)
        of_n = (mean_g**2 - 2 * mean_g * totals.run_g) / (n * var_g)
        beta = mean_a * shift / (n * scale) - half_r * (mean_a**2 / (n * var_a) + of_n)
        gamma = -half_r * rate / (n * var_g)
        # Where it fires, there are Σa·g, Σa, Σa² and the known part of Σg² besides.
        of_a = (2 * half_r * mean_a / var_a - mean_g / scale) / n
        of_active = [1 / (n * scale), of_a, -half_r / (n * var_a), -half_r / (n * var_g)]
        form = np.stack([alpha, beta, gamma])
        idle = linear_forms(keys.of_pair, form, np.stack([moments.g, pairs.n, pairs.w]))
        active = linear_forms(
            keys.of_pair,
            np.stack([*form, *of_active]),
            np.stack([moments.g, pairs.n, pairs.share, pairs.ag, pairs.a, pairs.a2, pairs.g2]),
        )
        i2, i4 = _sums(keys, partition, active, idle, form, moments)
        return i2, t_quantile(np.where(i4 > 0, i2**2 / i4, np.nan))


def _sums(
    keys: Keys, partition: Partition, active: Floats, idle: Floats, form: Floats, moments: Moments
) -> tuple[Floats, Floats]:
    """ΣI_d² and ΣI_d⁴ [key]: of the linear form over all documents, less that of pairs, plus their own influences.

    active, idle: influence of a pair's document, and what the form gives instead [pair]. form: [3, key].
    """
    i2, size2 = moments.sum_of_powers(partition, keys.feature, keys.stratum, form, 2)
    i4, size4 = moments.sum_of_powers(partition, keys.feature, keys.stratum, form, 4)
    active2, idle2 = active * active, idle * idle
    change2, change4 = keys.sums(active2 - idle2, active2 * active2 - idle2 * idle2)
    i2, i4 = i2 + change2, i4 + change4
    for key in np.flatnonzero((i2 < LOST * size2) | (i4 < LOST * size4)).tolist():
        of_documents = moments.forms(int(keys.feature[key]), form[:, key])
        own = keys.of_pair == key
        of_documents[moments.pair_document[own]] = active[own]
        squares = of_documents[partition.of_documents == keys.stratum[key]] ** 2
        i2[key], i4[key] = squares.sum(), (squares**2).sum()
    return i2, i4


def mean_p(
    keys: Keys, n: Floats, total: Floats, n_pairs: Floats, values: Floats, takes_part: NDArray[np.bool_]
) -> Floats:
    """Two-sided p of the t test that documents' numbers have mean 0 [key]; NaN below MIN_DOCUMENTS.

    n: documents that count [key]. Those `n_pairs` [key] of them that pairs stand for have `values` [pair] where they
    take part, the others 0. total: Σ of the values [key].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / n
        deviation = values - mean[keys.of_pair]
        (of_pairs,) = keys.sums(deviation * deviation * takes_part)
        deviations = of_pairs + (n - n_pairs) * mean**2
        t = total / np.sqrt(n / (n - 1) * deviations)
        p = two_sided_t_p(t, np.maximum(n - 1, 1))
    p[(n < MIN_DOCUMENTS) | ~np.isfinite(t)] = np.nan
    return p
