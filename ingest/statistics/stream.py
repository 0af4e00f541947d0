"""Rows of the plan in, sums by feature out: what must be taken in the stream, since dense gradients are never formed.

For feature j at token t, g = −⟨∂E/∂x_t, s_t·d_j⟩ = −⟨∇_t, d_j⟩ with ∇_t = s_t·∂E/∂x_t; s_t is 1 unless the SAE
normalises (`SparseAutoencoder.token_scales`). Sums over all tokens follow from sums over gradients: Σg = −d_j·Σ∇ and
Σg² = d_jᵀ(Σ∇∇ᵀ)d_j. Only at active features is g itself needed: O(active · d_model).

The within-context test asks whether a and g go together inside contexts, beyond what position explains:

  g̃    g minus its mean over the context's included tokens, minus the mean at the same position of its mates' so
       centred g, minus the mean of what is then left over the context's counted tokens. Mates are the other contexts of
       the plan's row, all of other documents.
  S_c  Σ_t a·g̃ over the context; z = ΣS_c / √ΣS_c².
  null the same with the centred g of the row's next context (cyclic), minus the mean of the mates other than both:
       the run's own negative control.

The last centring makes S_c the context's covariance of a and g̃, since Σg̃ = 0: without it a feature that fires more in
short contexts would go with whatever drifts along positions.

Is it this direction? Almost any direction goes with a gradient that is merely out of the ordinary where the feature
fires. So m_j = −Σ_c Σ_t a·∇̃ is also taken along directions that all features share (`directions`).

Curvature probes (`curvature`) add Σa²h²·growth(a‖d‖/‖x‖) over active tokens, the mean of the probes.

A position with fewer than MIN_MATES mates is not counted. Centring is linear, so it is done on ∇, not on g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.energies.curvature import growth
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics.directions import Directions, without_own
from energy_lens.ingest.statistics.significance import MIN_MATES

#: Decoder rows gathered at once, in numbers: 8 M float32 are 32 MB, whatever K and d_model are.
GATHER_NUMBERS = 8_000_000

#: Decoder rows made float64 at once: all 65,536 of a wide SAE would be 300 MB and more.
ROWS = 8_192


@dataclass
class LayerRow:
    """One row of the plan at one layer: contexts of different documents side by side."""

    included: Tensor  #: [context, position] bool
    activations: SparseActivations  #: [context, position, K]; empty where not included
    gradients: Mapping[str, Tensor]  #: energy: s_t·∂E/∂x [context, position, d_model] float32
    probes: Sequence[Tensor] = ()  #: s_t times each curvature probe [context, position, d_model]
    norms: Tensor | None = None  #: ‖x_t‖/s_t [context, position]; needed with probes


class RowGradients(NamedTuple):
    """Decoder gradients at a row's activations, by energy [context, position, K]."""

    g: dict[str, Tensor]
    mates_g: dict[str, Tensor]  #: of the row's next context (cyclic) at the same position; 0 where not included
    counted: Tensor  #: [context, position] bool: tokens that the within-context test counts
    contexts: ContextSums  #: what statistics by document are made of


class PairSums(NamedTuple):
    """Sums of one energy over a context's tokens, for n pairs of a context and a feature; float64."""

    s: Tensor  #: S_c [n]
    g2: Tensor  #: Σg² over included tokens, whether the feature is active there or not [n]
    norm2: Tensor  #: Σ‖∇‖² over the same tokens [n]


class ContextSums(NamedTuple):
    """Sums by context and feature, for the n pairs of them in which the feature is active."""

    contexts: Tensor  #: [n] place in the row, ascending
    features: Tensor  #: [n] ascending within a context
    energies: dict[str, PairSums]
    a2h2: Tensor | None  #: Σa²h²·growth [n] float64; None without probes


class RowMates(NamedTuple):
    """What of a row can be compared with other contexts at the same position."""

    included: Tensor  #: [context, position, 1] 1 where the token is included, else 0
    n: Tensor  #: [context, position, 1] other contexts that are included there
    counted: Tensor  #: [context, position, 1] bool: tokens that the within-context test counts
    n_null: Tensor  #: [context, position, 1] the same as n without the row's next context
    null_counted: Tensor  #: [context, position, 1] bool: tokens that the negative control counts


class EnergyParts(NamedTuple):
    """What the statistics need of one energy at each token.

    First as vectors [context, position, d_model]; then −⟨vector, d_j⟩ at each activation [context·position, K].
    """

    gradient: Tensor  #: ∇, 0 where not included
    tested: Tensor  #: ∇̃, 0 where not counted
    null: Tensor  #: ∇̃ of the negative control, 0 where that is not counted
    following: Tensor  #: ∇ of the row's next context (cyclic)


class RowActivations(NamedTuple):
    """A row's n activations that are not 0, in the order of context, position and slot."""

    slots: Tensor  #: [context·position, K] bool: where they are
    values: Tensor  #: [n] float32
    features: Tensor  #: [n]
    contexts: Tensor  #: [n] place in the row
    n_contexts: int


@dataclass
class Moments:
    """Sums of one energy over a group, by feature unless said otherwise; float64."""

    gradient_sum: Tensor  #: Σ∇ [d_model]
    gradient_outer: Tensor  #: Σ∇∇ᵀ [d_model, d_model]
    centred_outer: Tensor  #: Σ∇̃∇̃ᵀ over counted tokens [d_model, d_model]
    s: Tensor  #: ΣS_c [d_sae]
    s2: Tensor  #: ΣS_c² [d_sae]
    null_s: Tensor  #: [d_sae]
    null_s2: Tensor  #: [d_sae]
    along: Tensor  #: ⟨m_j, shared direction⟩ [d_sae, direction]; float32, since it is stored in a byte


@dataclass
class LayerStatistics:
    """Accumulates a group's rows at one layer."""

    sae: SparseAutoencoder
    energies: Sequence[str]
    directions: Directions | None = None  #: shared by all features; None: nothing is summed along any
    moments: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        d, m = self.sae.d_model, self.sae.d_sae
        self.n_tokens = 0
        self.n_contexts = torch.zeros(m, dtype=torch.int64)
        self.n_counted = torch.zeros(m, dtype=torch.int64)
        self.sum_a2h2 = torch.full((m,), torch.nan, dtype=torch.float64)  #: NaN until a row comes with probes
        self._row_norms = self.sae.W_dec.norm(dim=1)
        for energy in self.energies:
            wide = [torch.zeros(shape, dtype=torch.float64) for shape in ((d,), (d, d), (d, d), (m,), (m,), (m,), (m,))]
            along = torch.zeros(m, 0 if self.directions is None else len(self.directions.vectors))
            self.moments[energy] = Moments(*(*wide, along))

    @torch.no_grad()
    def add(self, row: LayerRow) -> RowGradients:
        """Take in a row; returns g at its activations."""
        mates = row_mates(row.included)
        vectors = []
        for energy in self.energies:
            parts = energy_vectors(row.gradients[energy], mates)
            self._add_moments(self.moments[energy], parts)
            vectors.append(parts)
        self.n_tokens += int(row.included.sum())
        g, h = self._at_activations(row, vectors)
        activations = row_activations(row.activations)
        self._add_counts(activations, mates.counted)
        for energy, of_energy in zip(self.energies, vectors, strict=True):
            self._add_along(self.moments[energy], activations, of_energy.tested)
        active = self._by_context(torch.ones_like(activations.features), activations) > 0
        contexts, features = active.nonzero(as_tuple=True)
        pairs = {
            energy: PairSums(
                self._add_test(self.moments[energy], activations, g[energy])[active],
                self._squares(of_energy.gradient, contexts, features),
                of_energy.gradient.double().square().sum((1, 2))[contexts],
            )
            for energy, of_energy in zip(self.energies, vectors, strict=True)
        }
        a2h2 = self._add_curvature(row, activations, h)[active] if row.probes else None
        shape = row.activations.values.shape
        return RowGradients(
            g={energy: parts.gradient.reshape(shape) for energy, parts in g.items()},
            mates_g={energy: parts.following.reshape(shape) for energy, parts in g.items()},
            counted=mates.counted[..., 0],
            contexts=ContextSums(contexts, features, pairs, a2h2),
        )

    def _add_moments(self, moments: Moments, vectors: EnergyParts) -> None:
        """Add to the sums over tokens, from which those of every feature follow."""
        moments.gradient_sum += vectors.gradient.double().sum((0, 1))
        moments.gradient_outer += _outer(vectors.gradient)
        moments.centred_outer += _outer(vectors.tested)

    def _at_activations(self, row: LayerRow, vectors: Sequence[EnergyParts]) -> tuple[dict[str, EnergyParts], Tensor]:
        """−⟨v, d_j⟩ of all vectors at the row's activations: by energy, and of the probes [token, K, probe]."""
        # [token, vector, d_model]: all vectors share the gathered decoder rows.
        together = [*(vector for parts in vectors for vector in parts), *row.probes]
        stacked = torch.stack([vector.reshape(-1, self.sae.d_model) for vector in together], 1)
        products = -self._decoder_products(row.activations.indices.flatten(0, 1), stacked)  # [token, K, vector]
        n_parts = len(EnergyParts._fields)
        by_energy = {
            energy: EnergyParts(*products[..., n_parts * i : n_parts * (i + 1)].unbind(-1))
            for i, energy in enumerate(self.energies)
        }
        return by_energy, products[..., n_parts * len(self.energies) :]

    def _decoder_products(self, indices: Tensor, vectors: Tensor) -> Tensor:
        """⟨d_j, v⟩ for each token's active features and vectors: [token, K, vector]."""
        size = max(1, GATHER_NUMBERS // (indices.shape[1] * self.sae.d_model))
        chunks = [
            torch.bmm(self.sae.W_dec[i], v.transpose(1, 2))
            for i, v in zip(indices.split(size), vectors.split(size), strict=True)
        ]
        return torch.cat(chunks)

    def _add_counts(self, activations: RowActivations, counted: Tensor) -> None:
        """Count active tokens that the test counts, and their contexts. counted: [context, position, 1]."""
        is_counted = counted.reshape(-1, 1).expand_as(activations.slots)[activations.slots]
        counts = self._by_context(is_counted.long(), activations)
        self.n_counted += counts.sum(0)
        self.n_contexts += (counts > 0).sum(0)

    def _add_test(self, moments: Moments, activations: RowActivations, g: EnergyParts) -> Tensor:
        """Add each context's S_c, and that of the control, and their squares; returns S_c [context, d_sae]."""
        found = []
        for centred_g, s, s2 in ((g.tested, moments.s, moments.s2), (g.null, moments.null_s, moments.null_s2)):
            products = (activations.values * centred_g[activations.slots]).double()
            by_context = self._by_context(products, activations)
            s += by_context.sum(0)
            s2 += by_context.square().sum(0)
            found.append(by_context)
        return found[0]

    def _add_along(self, moments: Moments, activations: RowActivations, tested: Tensor) -> None:
        """Add −Σa·⟨∇̃, direction⟩. tested: ∇̃ [context, position, d_model]."""
        if self.directions is None:
            return
        along = -tested.reshape(-1, self.sae.d_model) @ self.directions.vectors.T  # [token, direction]
        tokens = torch.arange(len(along))[:, None].expand_as(activations.slots)[activations.slots]
        moments.along.index_add_(0, activations.features, activations.values[:, None] * along[tokens])

    def _squares(self, gradient: Tensor, contexts: Tensor, features: Tensor) -> Tensor:
        """Σ_t ⟨∇_t, d_j⟩² for pairs of a context and a feature [n]; gradient: [context, position, d_model]."""
        sizes = torch.bincount(contexts, minlength=len(gradient)).tolist()
        of_context = zip(gradient, features.split(sizes), strict=True)
        return torch.cat([(v @ self.sae.W_dec[j].float().T).double().square().sum(0) for v, j in of_context])

    def _add_curvature(self, row: LayerRow, activations: RowActivations, h: Tensor) -> Tensor:
        """Add Σa²h²·growth; returns it by context [context, d_sae].

        h: of each probe at the activations [context·position, K, probe].
        """
        assert row.norms is not None
        values, features = (part.flatten(0, 1) for part in row.activations)
        h2 = h.double().square().mean(-1)
        relative = values * self._row_norms[features] / row.norms.reshape(-1, 1)
        a2h2 = (values.double().square() * h2 * growth(relative.double()))[activations.slots]
        by_context = self._by_context(a2h2, activations)
        self.sum_a2h2.nan_to_num_(0).add_(by_context.sum(0))
        return by_context

    def _by_context(self, values: Tensor, activations: RowActivations) -> Tensor:
        """Σ of values [n], one of each activation, by context and feature: [context, d_sae]."""
        flat = torch.zeros(activations.n_contexts * self.sae.d_sae, dtype=values.dtype)
        flat.index_add_(0, activations.contexts * self.sae.d_sae + activations.features, values)
        return flat.view(activations.n_contexts, self.sae.d_sae)

    def columns(self, energy: str) -> dict[str, NDArray[np.generic]]:
        """Columns of feature_moments for one energy, each [d_sae]."""
        moments = self.moments[energy]
        rows = self.sae.W_dec
        return {
            "sum_g": -products(rows, moments.gradient_sum).numpy(),
            "sum_g2": quadratic_form(rows, moments.gradient_outer).numpy(),
            "sum_gc2": quadratic_form(rows, moments.centred_outer).numpy(),
            "n_contexts": self.n_contexts.numpy(),
            "n_counted": self.n_counted.numpy(),
            "sum_s": moments.s.numpy(),
            "sum_s2": moments.s2.numpy(),
            "null_s": moments.null_s.numpy(),
            "null_s2": moments.null_s2.numpy(),
            # Probes are of the model's own output, so their curvature is that of nll.
            "sum_a2h2": (self.sum_a2h2 if energy == "nll" else torch.full_like(self.sum_a2h2, torch.nan)).numpy(),
        }

    def along(self, energy: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Features active at counted tokens [n], and their ⟨m_j, direction⟩ [n, direction], 0 along their own row."""
        features = self.n_counted.nonzero()[:, 0].numpy()
        along = self.moments[energy].along.numpy()[features]
        return features, along if self.directions is None else without_own(along, features, self.directions.references)


def row_mates(included: Tensor) -> RowMates:
    """Which tokens of a row have enough mates. included: [context, position] bool."""
    is_included = included[..., None]
    inc = is_included.float()
    following = inc.roll(-1, 0)
    n = inc.sum(0) - inc
    n_null = n - following
    counted = is_included & (n >= MIN_MATES)
    null_counted = is_included & (following > 0) & (n_null >= MIN_MATES - 1)
    return RowMates(inc, n, counted, n_null, null_counted)


def energy_vectors(gradients: Tensor, mates: RowMates) -> EnergyParts:
    """The vectors of one energy, from s_t·∂E/∂x [context, position, d_model], which is anything where not included."""
    gradient = gradients * mates.included
    centred = centred_by_context(gradient, mates.included)
    total = centred.sum(0)
    tested = less_mates(centred, total, mates.n, mates.counted)
    following = centred.roll(-1, 0)
    null = less_mates(following, total - centred, mates.n_null, mates.null_counted)
    return EnergyParts(gradient, tested, null, gradient.roll(-1, 0))


def less_mates(centred: Tensor, total: Tensor, n: Tensor, counted: Tensor) -> Tensor:
    """∇̃: centred gradients less the mean of their mates', centred once more over the counted tokens; 0 elsewhere.

    centred: [context, position, d_model]. total: its sum over the row's contexts, which holds centred itself. n: how
    many mates make up the rest of total [context, position, 1]. counted: [context, position, 1] bool.
    """
    counts = counted.to(centred.dtype)
    return centred_by_context((centred - (total - centred) / n.clamp_min(1)) * counts, counts)


def row_activations(activations: SparseActivations) -> RowActivations:
    """The activations that are not 0, of those of a row [context, position, K]."""
    n_contexts, n_positions, _ = activations.values.shape
    values, features = (part.flatten(0, 1) for part in activations)
    context = torch.arange(n_contexts).repeat_interleave(n_positions)[:, None].expand_as(features)
    slots = values > 0
    return RowActivations(slots, values[slots], features[slots], context[slots], n_contexts)


def centred_by_context(gradient: Tensor, included: Tensor) -> Tensor:
    """Gradients [context, position, d_model], 0 where not included, minus their context's mean; 0 there again.

    included: [context, position, 1], 0 or 1.
    """
    return (gradient - gradient.sum(1, keepdim=True) / included.sum(1, keepdim=True).clamp_min(1)) * included


def _outer(vectors: Tensor) -> Tensor:
    """Σ v vᵀ over all leading dimensions: [d, d] float64. The product of one row is float32, sums over rows are not."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    return (flat.T @ flat).double()


def products(rows: Tensor, vector: Tensor) -> Tensor:
    """⟨d, v⟩ for each row d [n, d] of any precision: [n] float64."""
    return torch.cat([part.double() @ vector for part in rows.split(ROWS)])


def quadratic_form(rows: Tensor, matrix: Tensor) -> Tensor:
    """dᵀ M d for each row d [n, d] of any precision: [n] float64, never below 0."""
    wide = (part.double() for part in rows.split(ROWS))
    return torch.cat([((part @ matrix) * part).sum(1) for part in wide]).clamp_min_(0)
