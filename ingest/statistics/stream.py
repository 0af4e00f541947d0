"""Statistics that must be taken in the stream, because a dense matrix of gradients is never formed.

For feature j at token t, g = −⟨∂E/∂x_t, s_t·d_j⟩ = −⟨∇_t, d_j⟩ with ∇_t = s_t·∂E/∂x_t; s_t is 1 unless the SAE
normalises (`SparseAutoencoder.token_scales`). Sums over all tokens follow from sums over gradients: Σg = −d_j·Σ∇ and
Σg² = d_jᵀ(Σ∇∇ᵀ)d_j. Only at active features is g itself needed: O(active · d_model).

The within-context test asks whether a and g go together inside contexts, beyond what position explains:

  g̃    g minus its mean over the context's included tokens, minus the mean at the same position of its mates' so
       centred g. Mates are the other contexts of the plan's row, all of other documents.
  S_c  Σ_t a·g̃ over the context; z = ΣS_c / √ΣS_c².
  null the same with the centred g of the row's next context (cyclic), minus the mean of the mates other than both:
       the run's own negative control.

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

    own: dict[str, Tensor]
    mates: dict[str, Tensor]  #: g of the row's next context (cyclic) at the same position; 0 where that is not included
    counted: Tensor  #: [context, position] bool: tokens that the within-context test counts


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


@dataclass
class LayerStatistics:
    """Accumulates a group's rows at one layer."""

    sae: SparseAutoencoder
    energies: Sequence[str]
    moments: dict[str, Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        d, m = self.sae.d_model, self.sae.d_sae
        self.n_tokens = 0
        self.n_contexts = torch.zeros(m, dtype=torch.int64)
        self.n_counted = torch.zeros(m, dtype=torch.int64)
        self.sum_a2h2 = torch.full((m,), torch.nan, dtype=torch.float64)  #: NaN until a row comes with probes
        self._row_norms = self.sae.W_dec.norm(dim=1)
        for energy in self.energies:
            shapes = ((d,), (d, d), (d, d), (m,), (m,), (m,), (m,))
            self.moments[energy] = Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    @torch.no_grad()
    def add(self, row: LayerRow) -> RowGradients:
        """Take in a row; returns g at its activations."""
        n_contexts, _, d_model = next(iter(row.gradients.values())).shape
        inc = row.included[..., None].float()  # [context, position, 1]
        mates = inc.sum(0) - inc
        counted = row.included & (mates[..., 0] >= MIN_MATES)
        following = inc.roll(-1, 0)
        null_mates = mates - following
        null_counted = row.included & (following[..., 0] > 0) & (null_mates[..., 0] >= MIN_MATES - 1)

        vectors = []
        for energy in self.energies:
            gradient = row.gradients[energy] * inc
            centred = centred_by_context(gradient, inc)
            total = centred.sum(0)
            tested = (centred - (total - centred) / mates.clamp_min(1)) * counted[..., None]
            shifted = centred.roll(-1, 0)
            null = (shifted - (total - centred - shifted) / null_mates.clamp_min(1)) * null_counted[..., None]
            moments = self.moments[energy]
            moments.gradient_sum += gradient.double().sum((0, 1))
            moments.gradient_outer += _outer(gradient)
            moments.centred_outer += _outer(tested)
            vectors += [gradient, tested, null, gradient.roll(-1, 0)]
        self.n_tokens += int(row.included.sum())

        # [context·position, 4·energies + probes, d_model]: all vectors share the gathered decoder rows.
        vectors += row.probes
        stacked = torch.stack([vector.reshape(-1, d_model) for vector in vectors], 1)
        values = row.activations.values.flatten(0, 1)
        indices = row.activations.indices.flatten(0, 1)
        g = -self._decoder_products(indices, stacked)  # [token, K, 4·energies + probes]
        context = torch.arange(n_contexts).repeat_interleave(row.included.shape[1])[:, None].expand_as(indices)
        active = values > 0
        self._count(active & counted.reshape(-1, 1), context, indices, n_contexts)
        for i, energy in enumerate(self.energies):
            moments = self.moments[energy]
            for offset, s, s2 in ((1, moments.s, moments.s2), (2, moments.null_s, moments.null_s2)):
                products = (values * g[..., 4 * i + offset]).double()
                by_context = self._by_context(products[active], context[active], indices[active], n_contexts)
                s += by_context.sum(0)
                s2 += by_context.square().sum(0)
        if row.probes:
            h2 = g[..., 4 * len(self.energies) :].double().square().mean(-1)
            assert row.norms is not None
            relative = values * self._row_norms[indices] / row.norms.reshape(-1, 1)
            a2h2 = (values.double().square() * h2 * growth(relative.double()))[active]
            self.sum_a2h2.nan_to_num_(0).index_add_(0, indices[active], a2h2)
        shape = row.activations.values.shape
        own, following_g = (
            {energy: g[..., 4 * i + offset].reshape(shape) for i, energy in enumerate(self.energies)}
            for offset in (0, 3)
        )
        return RowGradients(own, following_g, counted)

    def _decoder_products(self, indices: Tensor, vectors: Tensor) -> Tensor:
        """⟨d_j, v⟩ for each token's active features and vectors: [token, K, vector]."""
        size = max(1, GATHER_NUMBERS // (indices.shape[1] * self.sae.d_model))
        chunks = [
            torch.bmm(self.sae.W_dec[i], v.transpose(1, 2))
            for i, v in zip(indices.split(size), vectors.split(size), strict=True)
        ]
        return torch.cat(chunks)

    def _by_context(self, values: Tensor, context: Tensor, feature: Tensor, n_contexts: int) -> Tensor:
        """Σ of values by context and feature: [context, d_sae]."""
        flat = torch.zeros(n_contexts * self.sae.d_sae, dtype=values.dtype)
        flat.index_add_(0, context * self.sae.d_sae + feature, values)
        return flat.view(n_contexts, self.sae.d_sae)

    def _count(self, active: Tensor, context: Tensor, indices: Tensor, n_contexts: int) -> None:
        ones = torch.ones(int(active.sum()), dtype=torch.int64)
        counts = self._by_context(ones, context[active], indices[active], n_contexts)
        self.n_counted += counts.sum(0)
        self.n_contexts += (counts > 0).sum(0)

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
