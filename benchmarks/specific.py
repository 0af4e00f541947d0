"""Whether what a feature does to the gradient lies along its own decoder row: m_j and rows in, t_specific out.

  m_j     −Σ a·∇̃ over the counted tokens of the run (`measured`).
  N_jk    ⟨m_j, d_k⟩/√(d_kᵀCd_k), C = Σ∇̃∇̃ᵀ over counted tokens: the size of m_j along row k.
  t       N_jj/√(mean of N_jk² over K reference rows k ≠ j), Student's t with K degrees of freedom: d_j is exchangeable
          with the other rows, be m_j noise or a gradient that is atypical where the feature fires.

Variants differ in which rows are references, in what sizes are measured in, and one takes ranks in place of t. Each is
tried where nothing is true (another row in place of d_j; m_j of the negative control) and where an effect is planted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from measured import Measured, outer
from numpy.typing import NDArray
from scipy import sparse

from energy_lens.ingest.statistics.significance import two_sided_p, two_sided_t_p

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: References are drawn this many times, and counts are means over draws.
DRAWS = 5

#: Reference rows of t_specific.
REFERENCES = (16, 64, 256)

#: Reference rows of the variants.
K = 64

#: A row whose feature is active at a larger share of a feature's tokens co-fires with it: 8 of 2,048 are 0.4 %.
CO_FIRING = 0.1

#: Rows with a larger |cosine| are alike.
ALIKE = 0.3

#: Planted cosines of m_j with the tested direction.
COSINES = (0.1, 0.2, 0.3)

#: This share of their mean is added to the eigenvalues of Σ∇̃∇̃ᵀ before it is inverted.
RIDGE = 1e-3


@dataclass(frozen=True)
class Variant:
    """A way to compare m_j along d_j with m_j along reference rows."""

    sizes: Floats  #: N_jk [tested, row]
    planted: Floats  #: what a unit vector along the rows in front adds to N: [row, row]
    candidates: Mask  #: rows that may be references [tested, row]
    k: int | None = K  #: reference rows; None: all candidates, and p is the rank
    shared: bool = False  #: all features have the same references


@dataclass
class Specific:
    """What a variant gives: p of the tested features, by draw of references."""

    true: list[Floats] = field(default_factory=list)  #: along d_j
    null: list[Floats] = field(default_factory=list)  #: along another row, drawn as references are
    any_row: list[Floats] = field(default_factory=list)  #: along any other row
    noise: list[Floats] = field(default_factory=list)  #: along d_j with m_j of the negative control
    power: dict[float, list[Floats]] = field(default_factory=dict)  #: planted along the row of `null`, by cosine


class SpecificResult(NamedTuple):
    """Of one layer and energy."""

    variants: dict[str, Specific]
    z_p: Floats  #: p of z [tested]
    cosine: Floats  #: of m_j with d_j [tested]


def readers(decoder: Floats, covariance: Floats) -> dict[str, Floats]:
    """Vectors v_k [row, d_model] with N_jk = ⟨m_j, v_k⟩, by what sizes are measured in.

    `g` is d_k over the root of d_kᵀCd_k, the size of g along it. `unit` is d_k over its length. `inverse` is C⁻¹d_k
    over the root of d_kᵀC⁻¹d_k: ∇̃ and d_k are both divided by the root of C. `less mean` is `g` after the mean of all
    unit rows was subtracted.
    """
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-30)
    less_mean = unit - unit.mean(0)
    ridge = covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.solve(ridge, unit.T).T

    def scaled(rows: Floats) -> Floats:
        size = np.einsum("kd,kd->k", rows @ covariance, rows)
        result: Floats = rows / np.sqrt(np.maximum(size, 1e-300))[:, None]
        return result

    return {
        "g": scaled(unit),
        "unit": unit,
        "inverse": inverse / np.sqrt(np.einsum("kd,kd->k", inverse, unit))[:, None],
        "less mean": scaled(less_mean),
    }


def draw_references(variant: Variant, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """k reference rows of each feature [tested, k], and one more, the null's [tested]."""
    n_features, n_rows = variant.candidates.shape
    keys = generator.random((1 if variant.shared else n_features, n_rows))
    keys = np.where(variant.candidates, keys, np.inf)
    k = variant.k or 0
    drawn = np.argpartition(keys, k, axis=1)[:, : k + 1]
    return drawn[:, :k], drawn[:, k]


def t_specific(sizes: Floats, tested_sizes: Floats, references: Ids) -> Floats:
    """N_jj over the root mean square of N_jk over references [tested, k]: [tested]; sizes: [tested, row]."""
    spread = np.sqrt(np.mean(np.take_along_axis(sizes, references, 1) ** 2, axis=1))
    t: Floats = tested_sizes / spread
    return t


def rank_p(sizes: Floats, tested_sizes: Floats, candidates: Mask) -> Floats:
    """Share of candidates, the tested row with them, whose |N| is at least that of the tested row [tested]."""
    larger = ((np.abs(sizes) >= np.abs(tested_sizes)[:, None]) & candidates).sum(1)
    p: Floats = (larger + 1) / (candidates.sum(1) + 1)
    return p


def specific_p(
    variant: Variant, noise: Floats, lengths: Floats, tested: Ids, generator: np.random.Generator
) -> Specific:
    """p by draw, under the truth, the nulls and planted effects.

    noise: N of the negative control [tested, row]; lengths: ‖m_j‖ [tested]; tested: the features' ids.
    """
    p_values = Specific(power={cosine: [] for cosine in COSINES})
    each = np.arange(len(tested))
    n_needed = (variant.k or K) + 1
    usable = variant.candidates.sum(1) >= n_needed
    for _ in range(DRAWS):
        references, other = draw_references(variant, generator)
        anybody = (tested + generator.integers(1, variant.sizes.shape[1], len(tested))) % variant.sizes.shape[1]

        def p(sizes: Floats, rows: Ids, references: Ids = references) -> Floats:
            along = sizes[each, rows]
            if variant.k is None:
                without = variant.candidates.copy()
                without[each, rows] = False
                return rank_p(sizes, along, without)[usable]
            return two_sided_t_p(t_specific(sizes, along, references), variant.k)[usable]

        p_values.true.append(p(variant.sizes, tested))
        p_values.null.append(p(variant.sizes, other))
        p_values.any_row.append(p(variant.sizes, anybody))
        p_values.noise.append(p(noise, tested))
        for cosine in COSINES:
            planted = variant.sizes + cosine * lengths[:, None] * variant.planted[other]
            p_values.power[cosine].append(p(planted, other))
        if variant.k is None:
            break  # nothing but the null's row is drawn
    return p_values


def specific(measured: Measured, generator: np.random.Generator) -> SpecificResult:
    """p of each variant, p of z and the cosine of m_j with d_j, of the tested features."""
    tested = np.flatnonzero(measured.enough)
    decoder = measured.decoder.astype(np.float64)
    m, null_m = measured.m()[tested], measured.m(measured.null)[tested]
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    lengths = np.linalg.norm(m, axis=1)
    vectors = readers(decoder, outer(measured.tested))
    null_vectors = readers(decoder, outer(measured.null))
    sizes = {name: m @ v.T for name, v in vectors.items()}
    noise = {name: null_m @ v.T for name, v in null_vectors.items()}
    planted = {name: unit @ v.T for name, v in vectors.items()}
    others = np.ones((len(tested), len(decoder)), bool)
    others[np.arange(len(tested)), tested] = False
    alike = np.abs(unit[tested] @ unit.T) > ALIKE
    among_tested = others & measured.enough
    fires = np.bincount(measured.pairs.features, measured.pairs.n_active, len(decoder)) > 0
    together = co_firing(measured)[tested] > CO_FIRING

    def g(candidates: Mask, k: int | None = K, *, shared: bool = False) -> tuple[str, Variant]:
        return "g", Variant(sizes["g"], planted["g"], candidates, k, shared)

    variants = {f"K = {k}": g(others, k) for k in REFERENCES}
    variants |= {
        f"shared references, K = {K}": g(others, shared=True),
        f"references that fire, K = {K}": g(others & fires),
        f"tested references, K = {K}": g(among_tested),
        f"no co-firing references, K = {K}": g(others & ~together),
        f"no alike references, K = {K}": g(others & ~alike),
        f"neither co-firing nor alike, K = {K}": g(others & ~alike & ~together),
        f"tested, neither co-firing nor alike, K = {K}": g(among_tested & ~alike & ~together),
        "rank among all rows": g(others, None),
        "rank among tested rows": g(among_tested, None),
    }
    for name in ("unit", "inverse", "less mean"):
        variants[f"sizes: {name}, K = {K}"] = name, Variant(sizes[name], planted[name], others)
    results = {
        name: specific_p(variant, noise[reader], lengths, tested, generator)
        for name, (reader, variant) in variants.items()
    }
    z = measured.z(measured.s([measured.decoder])[0])[tested]
    return SpecificResult(results, two_sided_p(z), (m * unit[tested]).sum(1) / lengths)


def co_firing(measured: Measured) -> Floats:
    """Share of a feature's active tokens at which another one is active too [d_sae, d_sae]."""
    shape = (measured.counted.size, len(measured.decoder))
    is_active = sparse.csr_array((np.ones(len(measured.tokens)), (measured.tokens, measured.features)), shape=shape)
    both = (is_active.T @ is_active).toarray()
    share: Floats = both / np.maximum(both.diagonal(), 1)[:, None]
    return share
