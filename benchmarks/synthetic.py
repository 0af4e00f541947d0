"""Synthetic activations and gradient vectors in which nothing is true of a feature, but much else is; noise, no model.

Gradients [context, position, d_model] are AR(1) noise along positions with covariance eigenvalues 1/i. A decoder has
three times as many rows as there are dimensions. Activations are what AR(1) noise of their own has above a threshold.
On that come, as `Noise` says:

  levels    of documents, and drift along positions, in activations and gradients.
  lengths   contexts of unequal length, with firing that goes with length.
  slopes    an effect along each feature's row that differs from document to document, with mean 0 over documents: true
            of the documents at hand, of none in general.
  atypical  gradients that are out of the ordinary where features fire, but not along their rows.
  skewed    gradients and activations with heavy tails to one side.

A structure (decoder, drift, atypical directions) is what its seed says; documents are drawn with a seed of their own,
so that more documents of the same structure tell what a sample of them should have found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from association import Contexts
from numpy.typing import NDArray

from energy_lens.warehouse.plan import LANES

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Noise:
    """What the data has; sizes are in standard deviations of the noise unless said otherwise."""

    levels: float = 0.3  #: of a document's level, by feature and by direction of the gradient
    shared_levels: bool = False  #: a feature's levels are those of the gradient along its row
    drift: float = 0.0  #: spread of the change from the middle of a context to its end
    correlation: float = 0.6  #: AR(1) of neighbouring tokens
    threshold: float = 1.0  #: a feature is active where its noise exceeds this
    lengths: str = "equal"  #: of contexts: equal, or drawn by contexts, by documents, or tails: for a third of contexts
    shortest: int = 12  #: tokens of the shortest context; the longest has n_positions
    firing: float = 0.0  #: spread over features of the change of a from a context of mean length to a longer one
    slopes: float = 0.0  #: spread over documents of the effect along a row, as the score_within of its documents
    atypical: str = ""  #: common, own or large, as `_atypical` says
    clusters: bool = False  #: rows come in clusters of alike ones, and the common direction is the middle of one
    skewed: bool = False
    n_documents: int = 24
    n_contexts: int = 12  #: of each document
    n_positions: int = 48
    n_features: int = 192
    d_model: int = 64


@dataclass(frozen=True)
class Sample:
    """Documents side by side in rows of LANES, as the plan has them."""

    a: Singles  #: [context, position, feature], 0 where not included
    gradients: Singles  #: ∇ [context, position, d_model]
    decoder: Singles  #: unit rows [feature, d_model]
    contexts: Contexts

    @property
    def g(self) -> Singles:
        """Decoder gradients −⟨∇, d_j⟩ [context, position, feature]."""
        return -self.gradients @ self.decoder.T


#: Size of what atypical gradients have, in root mean squares of a gradient's coordinates.
ATYPICAL = 0.5

#: Rows of a cluster have this cosine with its middle, about.
CLUSTERS, CLUSTERED = 12, 0.7


def synthetic(noise: Noise, seed: int, draw: int = 0) -> Sample:
    """Documents `draw` of the structure `seed`."""
    structure, generator = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1 + draw])
    decoder, middle = _decoder(noise, structure)
    deviations = 1 / np.sqrt(1 + np.arange(noise.d_model))  # of the gradient along its axes
    along_rows = np.sqrt((decoder * deviations) ** 2 @ np.ones(noise.d_model))
    documents = np.arange(noise.n_documents).reshape(-1, LANES).repeat(noise.n_contexts, 0).reshape(-1)
    lengths = _lengths(noise, documents, generator)
    included = np.arange(noise.n_positions) < lengths[:, None]
    contexts = Contexts(included, documents, documents, np.arange(len(documents)) // LANES)

    gradient_levels = noise.levels * generator.standard_normal((noise.n_documents, noise.d_model)) * deviations
    levels = -gradient_levels @ decoder.T / along_rows
    if not noise.shared_levels:
        levels = noise.levels * generator.standard_normal(levels.shape)
    drift = noise.drift * structure.standard_normal(noise.d_model) * deviations
    slope = noise.drift * structure.standard_normal(noise.n_features)
    place = np.linspace(-1, 1, noise.n_positions)[:, None]

    gradients = _waves(noise, len(documents), noise.d_model, generator)
    firing = _waves(noise, len(documents), noise.n_features, generator)
    firing += (levels[documents, None] + place * slope).astype(np.float32)
    relative = (lengths - lengths.mean()) / max(lengths.std(), 1e-9)
    by_length = relative[:, None, None] * noise.firing * structure.standard_normal(noise.n_features)
    a = np.maximum(firing + by_length.astype(np.float32) - np.float32(noise.threshold), 0) * included[..., None]
    if noise.skewed:
        a = np.expm1(2 * a)
        size = np.exp(_waves(noise, len(documents), 1, generator))
        gradients = size * (np.exp(gradients) - np.float32(np.exp(0.5))) / np.float32(np.sqrt(np.e * (np.e - 1)))
    gradients = gradients * deviations.astype(np.float32)
    gradients += (gradient_levels[documents, None] + place * drift).astype(np.float32)
    if noise.atypical:
        gradients = _atypical(noise, gradients, a, middle, deviations, structure)
    if noise.slopes:
        by_document = noise.slopes * generator.standard_normal((noise.n_documents, noise.n_features))
        gradients += effect(contexts, a, gradients, decoder, by_document[documents])
    return Sample(a.astype(np.float32), gradients.astype(np.float32), decoder.astype(np.float32), contexts)


def planted(sample: Sample, size: float) -> Sample:
    """The same with an effect along every feature's row; size: the score_within that it alone would have."""
    gradients = sample.gradients + effect(sample.contexts, sample.a, sample.gradients, sample.decoder, np.array(size))
    return Sample(sample.a, gradients, sample.decoder, sample.contexts)


def effect(contexts: Contexts, a: Singles, gradients: Singles, decoder: Floats | Singles, sizes: Floats) -> Singles:
    """What to add to the gradients: −Σ_j size_cj·κ_j·ã_j·d_j with ã = a centred in its context, κ = √(Σg̃²/Σã²).

    sizes: by context and feature, or one for all.
    """
    centred_a, centred = contexts.centred(a), contexts.centred(gradients)
    flat = centred.reshape(-1, centred.shape[-1])
    g2 = np.einsum("kd,de,ke->k", decoder, flat.T @ flat, decoder)
    a2 = np.maximum(np.einsum("ctf,ctf->f", centred_a, centred_a), 1e-30)
    scale = np.broadcast_to(sizes * np.sqrt(g2 / a2), (len(a), a.shape[-1])).astype(np.float32)
    return -(scale[:, None] * centred_a) @ decoder.astype(np.float32)


def _decoder(noise: Noise, structure: np.random.Generator) -> tuple[Floats, Floats]:
    """Unit rows [feature, d_model] and a direction [d_model]: the middle of a cluster, where there are such."""
    rows = structure.standard_normal((noise.n_features, noise.d_model))
    middle = structure.standard_normal((CLUSTERS, noise.d_model))
    if noise.clusters:
        cluster = structure.integers(CLUSTERS, size=noise.n_features)
        rows = CLUSTERED * middle[cluster] + np.sqrt(1 - CLUSTERED**2) * rows
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), middle[0] / np.linalg.norm(middle[0])


def _atypical(
    noise: Noise, gradients: Singles, a: Singles, middle: Floats, deviations: Floats, structure: np.random.Generator
) -> Singles:
    """Gradients that are out of the ordinary where features fire.

    common  the more features fire (Σa at the token), the more there is of one direction.
    own     each feature brings a direction of its own, drawn as the gradients are, which is not its row.
    large   the more features fire, the larger is the gradient: a document's level comes with it.
    """
    scale = ATYPICAL * np.sqrt((deviations**2).mean())
    total = a.sum(-1, keepdims=True)
    total = (total - total.mean()) / total.std()
    if noise.atypical == "large":
        return gradients * np.maximum(1 + total, 0)
    if noise.atypical == "own":
        directions = structure.standard_normal((noise.n_features, noise.d_model)) * deviations
        return gradients + scale * (a @ directions.astype(np.float32))
    return gradients + (np.sqrt(noise.d_model) * scale * total * middle).astype(np.float32)


def _waves(noise: Noise, n_contexts: int, n: int, generator: np.random.Generator) -> Singles:
    """n independent AR(1) of unit deviation along each context's positions [context, position, n]."""
    wave = generator.standard_normal((n_contexts, noise.n_positions, n), dtype=np.float32)
    rest = np.float32(np.sqrt(1 - noise.correlation**2))
    for t in range(1, noise.n_positions):
        wave[:, t] = np.float32(noise.correlation) * wave[:, t - 1] + rest * wave[:, t]
    return wave


def _lengths(noise: Noise, documents: Ids, generator: np.random.Generator) -> Ids:
    """Tokens of each context [context]."""
    lengths = np.full(len(documents), noise.n_positions)
    bounds = noise.shortest, noise.n_positions + 1
    if noise.lengths == "contexts":
        lengths = generator.integers(*bounds, size=len(documents))
    elif noise.lengths == "documents":
        lengths = generator.integers(*bounds, size=noise.n_documents)[documents]
    elif noise.lengths == "tails":
        is_tail = generator.random(len(documents)) < 1 / 3
        lengths[is_tail] = generator.integers(*bounds, size=is_tail.sum())
    return lengths
