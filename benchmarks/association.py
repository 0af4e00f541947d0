"""Tests of whether a feature's activation and the gradient go together, on the same tokens.

In: activations a and decoder gradients g [context, position, feature], each context's document, row of the plan, and
tokens that count. Out: the two-sided p of each feature. The tests differ in what they take for an independent sample,
and the last one in what it asks:

  tokens       every token: Pearson's r with Student's t of n − 2 degrees of freedom.
  contexts     every context: t = ΣU_c / √(ΣU_c²·C/(C−1)), U_c = Σ_t (a − ā)(g − ḡ), with C − 1 degrees of freedom
               (linearisation over clusters, Liang and Zeger 1986).
  interval     every document: p < 0.05 where `ci_low` and `ci_high` of `efas` leave 0 out.
  within       the within-context test of `ingest.statistics`: z = ΣS_c / √ΣS_c², S_c = Σ_t a·g̃.
  z_documents  the t test that the sums of S_c over documents have mean 0, as in `efas`.
  t_specific   is it this direction? (`ingest.statistics.directions`)

A pairing may take its gradients from other contexts than its activations: then nothing is true, and what a test
rejects are false positives. docs/significance.md shows what comes out. This module forms dense arrays, which the
stream never does: call it with a chunk of features at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.across_documents import TokenSums, influence, interval, mean_test
from energy_lens.ingest.statistics.significance import (
    MIN_MATES,
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    t_quantile,
    two_sided_p,
    two_sided_t_p,
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]

TESTS = ("tokens", "contexts", "interval", "within", "z_documents", "t_specific")


@dataclass(frozen=True)
class Contexts:
    """Contexts with the gradients they are tested against: their own, or in a null pairing another context's."""

    included: Mask  #: [context, position], included on both sides of the pairing
    documents: Ids  #: [context] of the activations
    gradient_documents: Ids  #: [context] of the gradients
    rows: Ids  #: [context] row of the plan

    def mates(self, row: Ids) -> Singles:
        """Which contexts of a row (as indices) give whom a mean to subtract: [context, mate] 0 or 1.

        Mates of a context are of other documents than its gradients *and* its activations: the latter would bring a
        true effect back into a null pairing, with the opposite sign.
        """
        other = self.gradient_documents[row]
        mates: Singles = ((other != other[:, None]) & (other != self.documents[row][:, None])).astype(np.float32)
        return mates

    def _by_row(self) -> list[Ids]:
        order = np.argsort(self.rows, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.rows[order])) + 1)

    def counted(self) -> Mask:
        """Included tokens with at least MIN_MATES mates included at their position: [context, position]."""
        counted = np.zeros_like(self.included)
        for row in self._by_row():
            n_mates = self.mates(row) @ self.included[row].astype(np.float32)
            counted[row] = self.included[row] & (n_mates >= MIN_MATES)
        return counted

    def centred(self, x: Singles) -> Singles:
        """x [context, position, any] minus its mean over the context's included tokens; 0 where not included."""
        return centred_over(x, self.included)

    def tested(self, x: Singles, counted: Mask | None = None) -> Singles:
        """What the within-context test takes: g̃ for g, linear, so ∂E/∂x may be given as well; 0 where not counted.

        x [context, position, any] is centred, less its mates, centred once more. counted: `counted()`, if it is known.
        """
        return centred_over(self.less_mates(self.centred(x)), self.counted() if counted is None else counted)

    def less_mates(self, centred: Singles) -> Singles:
        """Centred x minus its mates' mean at the same position: what version 2 of the statistics called g̃."""
        result = np.empty_like(centred)
        for row in self._by_row():
            mates, included = self.mates(row), self.included[row].astype(np.float32)
            total = np.tensordot(mates, centred[row], axes=1)
            mean = total / np.maximum(mates @ included, 1)[..., None]
            result[row] = (centred[row] - mean) * included[..., None]
        return result


def centred_over(x: Singles, tokens: Mask) -> Singles:
    """x [context, position, any] minus its mean over the context's tokens [context, position]; 0 elsewhere."""
    weight = tokens[..., None].astype(np.float32)
    x = x * weight
    x -= x.sum(1, keepdims=True) / np.maximum(weight.sum(1, keepdims=True), 1) * weight
    return x


def enough_to_test(a: Singles, counted: Mask, documents: Ids) -> Mask:
    """Features with enough active counted tokens, contexts and documents for the within-context test: [feature]."""
    active = ((a > 0) & counted[..., None]).sum(1)  # [context, feature]
    in_documents = sum_by(documents, (active > 0).astype(np.float64)) > 0
    enough: Mask = (
        (active.sum(0) >= MIN_TEST_TOKENS)
        & ((active > 0).sum(0) >= MIN_TEST_CONTEXTS)
        & (in_documents.sum(0) >= MIN_TEST_DOCUMENTS)
    )
    return enough


def compare(a: Singles, g: Singles, centred_g: Singles, counted: Mask, documents: Ids) -> dict[str, Floats]:
    """p of each test but t_specific by feature, all over the counted tokens; NaN where a or g does not vary.

    a, g, centred_g: [context, position, feature], centred_g being g̃ (`Contexts.tested`); documents: [context].
    """
    a = a * counted[..., None]  # not counted: 0 in every sum with a
    n = counted.sum(1).astype(np.float64)
    weight = counted.astype(np.float32)
    sum_a, sum_g, sum_g2 = (_sum_over_context(*x) for x in ((weight, a), (weight, g), (weight, g, g)))
    sum_ag, sum_a2, s = (_sum_over_context(*x) for x in ((a, g), (a, a), (a, centred_g)))
    mean_a, mean_g = sum_a.sum(0) / n.sum(), sum_g.sum(0) / n.sum()
    u = sum_ag - mean_g * sum_a - mean_a * (sum_g - n[:, None] * mean_g)
    variances = (sum_a2.sum(0) - n.sum() * mean_a**2) * (sum_g2.sum(0) - n.sum() * mean_g**2)
    of_documents = [sum_by(documents, x) for x in (n[:, None], sum_a, sum_a2, sum_g, sum_ag, sum_g2, s)]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = u.sum(0) / np.sqrt(np.maximum(variances, 0))
        return {
            "tokens": two_sided_t_p(r * np.sqrt((n.sum() - 2) / (1 - r**2)), int(n.sum()) - 2),
            "contexts": _cluster_p(u[n > 0]),
            "interval": stored_interval(*_token_sums(*of_documents[:-1])).p,
            "within": two_sided_p(s.sum(0) / np.sqrt((s**2).sum(0))),
            "z_documents": mean_test(of_documents[-1], of_documents[-1] != 0),
        }


class Interval(NamedTuple):
    """The interval of `efas.score`, on the scale of Fisher's transformation, by feature."""

    r: Floats
    error: Floats  #: standard error of artanh r
    quantile: Floats  #: of Student's t: the interval is artanh r ± quantile·error
    effective: Floats  #: documents that r rests on, E
    p: Floats  #: below 0.05 where the interval leaves 0 out

    def covers(self, rho: Floats | float) -> Mask:
        """Whether the correlation rho lies in the interval."""
        inside: Mask = np.abs(np.arctanh(self.r) - np.arctanh(rho)) <= self.quantile * self.error
        return inside


def stored_interval(sums: TokenSums, total_g2: Floats) -> Interval:
    """What finish and the view `efas_scores` make of sums by document."""
    n, of_documents = sums.n.sum(), influence(sums, total_g2)
    n_documents = int((sums.n > 0).sum())
    i2, quantile = interval(sums, total_g2)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_a, mean_g = sums.a.sum(0) / n, sums.g.sum(0) / n
        variances = (sums.a2.sum(0) / n - mean_a**2) * (total_g2 / n - mean_g**2)
        r = (sums.ag.sum(0) / n - mean_a * mean_g) / np.sqrt(variances)
        error = np.sqrt(n_documents / (n_documents - 1) * i2) / (1 - r**2)
        effective = i2**2 / (of_documents**4).sum(0)
        assert np.allclose(quantile, t_quantile(effective), equal_nan=True)
        return Interval(r, error, quantile, effective, two_sided_t_p(np.arctanh(r) / error, effective))


def _token_sums(n: Floats, a: Floats, a2: Floats, g: Floats, ag: Floats, g2: Floats) -> tuple[TokenSums, Floats]:
    """Sums by document of which Σg² is known, and Σg² over all of them [feature]; n: [document, 1]."""
    nothing = np.zeros(len(n))
    return TokenSums(n[:, 0], nothing, a, a2, g, ag, g2, np.zeros_like(g2)), g2.sum(0)


def _sum_over_context(*factors: Singles) -> Floats:
    """Σ_t of a product by context and feature; float32 within a context, float64 across.

    factors: [context, position, feature], or [context, position].
    """
    names = ",".join("ct" if factor.ndim == 2 else "ctf" for factor in factors)
    result: Floats = np.einsum(f"{names}->cf", *factors).astype(np.float64)
    return result


def sum_by(clusters: Ids, values: Floats) -> Floats:
    """Sums of the rows of values [context, feature] by cluster: [cluster, feature]."""
    places = np.unique(clusters, return_inverse=True)[1]
    result = np.zeros((int(places.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(result, places, values)
    return result


def _cluster_p(u: Floats) -> Floats:
    """p of ΣU = 0 from the clusters' U [cluster, feature]."""
    n = len(u)
    return two_sided_t_p(u.sum(0) / np.sqrt((u**2).sum(0) * n / (n - 1)), n - 1)
