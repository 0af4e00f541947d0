"""Is it this direction? An SAE and a seed in, directions that all its features share out; sums along them in, p out.

m_j = −Σ_c Σ_t a·∇̃ (`stream`) has d_model numbers for each feature, energy and group, too many to keep. What is asked
of it is its inner product with

  references  up to N_REFERENCES decoder rows, made unit vectors. How large m_j is along d_j is compared with how large
              it is along these: is it this direction, or any?
  probes      N_PROBES random directions, orthonormal: ‖m_j‖, for the cosine of m_j with d_j, follows from them to
              1/√(2·N_PROBES) of itself; exactly where d_model is not larger.

With N_jk = ⟨m_j, d_k⟩/√(d_kᵀ(Σ∇̃∇̃ᵀ)d_k), t_specific = N_jj/√(mean of N_jk² over the references k ≠ j). It is Student's
t with as many degrees of freedom where d_j is exchangeable with the other rows, be m_j noise or the trace of a gradient
that is out of the ordinary where the feature fires. Sizes are compared and not z's, since a z cannot exceed √contexts.

Sums of a group are stored as small integers times a scale. A rounding error is at most 0.5/LARGEST of a row's largest
number and about a fortieth of the usual one; over 64 of them, squared, a thousandth is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.kernels import unpacked_sums
from energy_lens.ingest.statistics.significance import two_sided_t_p
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

N_REFERENCES, N_PROBES = 64, 64

#: Fewer references than this, as in a toy SAE, are no comparison.
MIN_REFERENCES = 8

#: Of a stored number: six bits with its sign, which DuckDB packs as such.
LARGEST = 31


@dataclass(frozen=True)
class Directions:
    """The shared directions of one layer."""

    references: Integers  #: features whose rows they are [reference], ascending
    probes: Tensor  #: [probe, d_model] orthonormal
    vectors: Tensor  #: unit rows of the references, then the probes [direction, d_model]

    @classmethod
    def of(cls, sae: SparseAutoencoder, references: Integers, seed: int) -> Directions:
        """Those of an SAE, from the references that were chosen for it."""
        rows = sae.W_dec[torch.from_numpy(references)].float()
        probes = random_probes(sae.d_model, seed, sae.layer)
        vectors = torch.cat([rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30), probes])
        return cls(references, probes, vectors)


def choose_references(sae: SparseAutoencoder, seed: int) -> Integers:
    """A seeded choice among the features that fired in the SAE's training, which have quartiles; ascending.

    Rows of dead features are whatever training left of a random start, and no fair comparison. Where fewer than
    N_REFERENCES features have quartiles all take part.
    """
    alive = torch.ones(sae.d_sae, dtype=torch.bool)
    if sae.quartiles is not None and int((known := ~sae.quartiles.isnan().any(1)).sum()) > N_REFERENCES:
        alive = known
    candidates = alive.nonzero()[:, 0].numpy()
    chosen = np.random.default_rng([seed, sae.layer]).permutation(candidates)[:N_REFERENCES]
    return np.sort(chosen).astype(np.int64)


@cache
def random_probes(d_model: int, seed: int, layer: int) -> Tensor:
    """Orthonormal directions, isotropic [min(N_PROBES, d_model), d_model] float32."""
    drawn = np.random.default_rng([seed, layer, N_PROBES]).standard_normal((d_model, min(N_PROBES, d_model)))
    return torch.from_numpy(np.linalg.qr(drawn)[0].T.astype(np.float32)).contiguous()


def reference_rows(sae: SparseAutoencoder, seed: int) -> pl.DataFrame:
    """The SAE's rows of `reference_rows`, without run_id."""
    references = choose_references(sae, seed).astype(np.int32)
    return pl.DataFrame({"layer": np.full(len(references), sae.layer, dtype=np.int16), "feature": references})


def read_references(warehouse: Warehouse, run_id: int, layer: int) -> Integers:
    """Features that were chosen for a run and layer, ascending."""
    rows = warehouse.run("ingest/reference_rows", run=run_id, layer=layer).numpy()
    return np.asarray(rows["feature"], dtype=np.int64)


def read_directions(
    warehouse: Warehouse, run_id: int, saes: Mapping[int, SparseAutoencoder], seed: int
) -> dict[int, Directions]:
    """What the stream sums along, by layer."""
    return {layer: Directions.of(sae, read_references(warehouse, run_id, layer), seed) for layer, sae in saes.items()}


def without_own(along: NDArray[np.float32], features: Integers, references: Integers) -> NDArray[np.float32]:
    """0 where a feature [n] is itself the reference [n, direction]: of no use, and often the largest number."""
    result = along.copy()
    result[:, : len(references)][features[:, None] == references] = 0
    return result


def packed(along: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Numbers [n, direction] as a scale [n] times small integers [n, direction]."""
    scale = np.abs(along).max(axis=1, initial=0) / LARGEST
    codes = np.rint(along / np.where(scale > 0, scale, 1)[:, None])
    return scale.astype(np.float32), codes.astype(np.int8)


def unpacked(scale: NDArray[np.float32], codes: NDArray[np.int8]) -> Floats:
    """What `packed` was given, to within rounding [n, direction]."""
    result: Floats = unpacked_sums(np.arange(len(scale)), scale, codes, len(scale))
    return result


# ------------------------------------------------------------------------------------------------ the test


@dataclass(frozen=True)
class DecoderRows:
    """The rows of a layer's SAE and what they are compared with."""

    decoder: NDArray[np.floating]  #: [feature, d_model], of all features
    references: Integers  #: [reference]
    probes: Floats  #: [probe, d_model] orthonormal

    @cached_property
    def norms(self) -> Floats:
        """[feature]"""
        norms: Floats = np.linalg.norm(self.decoder, axis=1).astype(np.float64)
        return norms

    @cached_property
    def along_probes(self) -> Floats:
        """Unit rows along the probes [feature, probe]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            along: Floats = self.decoder / self.norms[:, None] @ self.probes.T
        return along


@dataclass(frozen=True)
class Sizes:
    """What the test of the direction needs of a layer and energy, over some of the groups."""

    rows: DecoderRows
    sum_s: Floats  #: ⟨m_j, d_j⟩ [feature]
    sum_gc2: Floats  #: d_jᵀ(Σ∇̃∇̃ᵀ)d_j [feature]


class DirectionTest(NamedTuple):
    """By feature [n]; NaN where there is nothing to compare."""

    t: Floats
    p: Floats
    p_reference: Floats  #: with a reference row in place of the feature's own, compared with the other references
    cosine: Floats  #: of m_j with d_j


def direction_test(sizes: Sizes, features: Integers, along: Floats) -> DirectionTest:
    """Test features [n] from their sums along the shared directions [n, direction]."""
    references = sizes.rows.references
    each, n_references = np.arange(len(features)), len(references)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(sizes.sum_gc2[references]) / sizes.rows.norms[references]  # of the gradient along unit rows
        reference_sizes = along[:, :n_references] / spread
        own = sizes.sum_s[features] / np.sqrt(sizes.sum_gc2[features])
    usable = np.isfinite(reference_sizes) & (references != features[:, None])
    squares = np.where(usable, reference_sizes, 0) ** 2
    t, p = _compared(own, squares.sum(1), usable.sum(1))
    p_reference = np.full(len(features), np.nan)
    if n_references:
        # The one that stands in is another one from feature to feature, so that their share is that of all of them.
        place = features % n_references
        place = np.where(references[place] == features, (place + 1) % n_references, place)
        others = squares.sum(1) - squares[each, place]
        _, p_reference = _compared(reference_sizes[each, place], others, usable.sum(1) - 1)
    return DirectionTest(t, p, p_reference, _cosine(sizes, features, along[:, n_references:]))


def _compared(size: Floats, sum_squares: Floats, n: Integers) -> tuple[Floats, Floats]:
    """A size over the root mean square of n others, and its p; NaN below MIN_REFERENCES."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((n >= MIN_REFERENCES) & (sum_squares > 0), size / np.sqrt(sum_squares / n), np.nan)
    return t, two_sided_t_p(t, n)


def _cosine(sizes: Sizes, features: Integers, along_probes: Floats) -> Floats:
    """Cosine of m_j with d_j: the part along d_j is exact, the size of the rest is estimated from the probes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        along_row = sizes.sum_s[features] / sizes.rows.norms[features]
        rest = along_probes - along_row[:, None] * sizes.rows.along_probes[features]
        n_probes, d_model = sizes.rows.probes.shape
        cosine: Floats = along_row / np.sqrt(along_row**2 + d_model / n_probes * (rest**2).sum(1))
    return cosine
