"""Rows of the plan in, cells of joint histograms out: what of mutual information no stored table can give later.

Activations a fall into 4 bins by the quartiles stored with the SAE (and into bin 0 where inactive), gradients g into
8 by the edges that the run's calibration gave. A value lies in the bin whose number is the count of edges below it,
so one on an edge belongs to the lower bin. Everything is compared as float32, as stored: finish bins the activations
of the warehouse by the same edges and gets the same counts.

Active cells are sparse and counted at every token: own ones by finish, the mates' here, where a of a context meets g of
the row's next one (cyclic) at the same position, if both tokens are included. g where a feature is inactive needs the
dense product, token x feature, so it is formed in sampled contexts only. There one product serves both pairings: with
the activations of the context itself, and with those of the one before it in the row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.stream import LayerRow
from energy_lens.warehouse.database import Warehouse

#: Bins of an active feature's activation, and of a gradient.
ACTIVATION_BINS, GRADIENT_BINS = 4, 8

#: The dense product is formed for so many tokens and features at once: 4 MB of float32, whatever d_sae is. More than
#: 255 tokens could not be counted in a byte.
DENSE_TOKENS, DENSE_FEATURES = 255, 4_096


@dataclass(frozen=True)
class LayerBins:
    """Edges of one layer's bins, by feature; NaN for a feature without quartiles."""

    activation: Tensor  #: [d_sae, 3] float32
    gradients: Mapping[str, Tensor]  #: energy: [d_sae, 7] float32


@dataclass(frozen=True)
class HistogramPlan:
    """What the stream needs to know to count: the same for every group of a run."""

    layers: Mapping[int, LayerBins]  #: layers whose SAE has quartiles
    sampled: frozenset[int]  #: ids of the contexts in which inactive features' gradients are binned


@dataclass
class Cells:
    """Counts of one energy over a group, by feature; int32."""

    inactive: Tensor  #: [d_sae, 8] by g, sampled tokens
    mates_active: Tensor  #: [d_sae, 4·8] by a (outer) and g, every token pair
    mates_inactive: Tensor  #: [d_sae, 8] by g, sampled token pairs


def quartile_rows(sae: SparseAutoencoder) -> pl.DataFrame:
    """The SAE's rows of `activation_quartiles`, without run_id; none where a feature has no quartiles."""
    quartiles = torch.empty(0, 3) if sae.quartiles is None else sae.quartiles.float()
    known = (~quartiles.isnan().any(1)).nonzero()[:, 0]
    return pl.DataFrame(
        {"layer": np.full(len(known), sae.layer, dtype=np.int16), "feature": known.numpy().astype(np.int32)}
        | {name: quartiles[known, i].numpy() for i, name in enumerate(("q25", "q50", "q75"))}
    )


def read_histogram_plan(
    warehouse: Warehouse, run_id: int, saes: Mapping[int, SparseAutoencoder], energies: Sequence[str]
) -> HistogramPlan:
    """Bins and sampled contexts of a calibrated run."""
    sampled = frozenset(context_id for (context_id,) in warehouse.run("ingest/sampled_contexts", run=run_id).fetchall())
    layers = {}
    for layer, sae in saes.items():
        activation, gradients = torch.full((sae.d_sae, ACTIVATION_BINS - 1), math.nan), {}
        for energy in energies:
            rows = warehouse.run("ingest/histogram_bins", run=run_id, layer=layer, energy=energy).numpy()
            features = torch.from_numpy(rows.pop("feature").astype(np.int64))
            edges = torch.from_numpy(np.stack([np.asarray(column) for column in rows.values()], 1))
            activation[features] = edges[:, : ACTIVATION_BINS - 1]
            gradients[energy] = torch.full((sae.d_sae, GRADIENT_BINS - 1), math.nan)
            gradients[energy][features] = edges[:, ACTIVATION_BINS - 1 :]
        if not activation.isnan().all():
            layers[layer] = LayerBins(activation, gradients)
    return HistogramPlan(layers, sampled)


@dataclass
class LayerHistograms:
    """Accumulates a group's rows at one layer."""

    sae: SparseAutoencoder
    energies: Sequence[str]
    bins: LayerBins
    cells: dict[str, Cells] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for energy in self.energies:
            widths = (GRADIENT_BINS, ACTIVATION_BINS * GRADIENT_BINS, GRADIENT_BINS)
            self.cells[energy] = Cells(*(torch.zeros(self.sae.d_sae, width, dtype=torch.int32) for width in widths))
        # Edge by edge: contiguous over the features of a token.
        self._edges = {energy: edges.T.contiguous().numpy() for energy, edges in self.bins.gradients.items()}

    @torch.no_grad()
    def add(self, row: LayerRow, mates_g: Mapping[str, Tensor], sampled: Sequence[bool]) -> None:
        """Take in a row.

        mates_g: g of the next context at the row's activations, by energy [context, position, K]
        (`RowGradients.mates_g`). sampled: [context] whether to bin the gradients of inactive features.
        """
        alone = len(row.included) == 1  # the next context would be the same one
        paired = row.included & row.included.roll(-1, 0) & (not alone)
        features = torch.where(row.activations.values > 0, row.activations.indices, -1)
        self._add_mates(row.activations.values, features, paired, mates_g)
        dense = row.included & torch.tensor(sampled)[:, None]
        # Activations that meet a sampled token's gradient: those of its context, and of the one before that in the row.
        same = torch.ones(int(dense.sum()), dtype=torch.bool), features[dense]
        before = paired.roll(1, 0)[dense], features.roll(1, 0)[dense]
        for energy in self.energies:
            gradients = row.gradients[energy][dense]
            for start in range(0, len(gradients), DENSE_TOKENS):
                part = slice(start, start + DENSE_TOKENS)
                pairings = ((tokens[part], active[part]) for tokens, active in (same, before))
                self._add_inactive(energy, gradients[part], *pairings)

    def _add_mates(self, values: Tensor, features: Tensor, paired: Tensor, mates_g: Mapping[str, Tensor]) -> None:
        """Bin the mates' g of active features; features [context, position, K], -1 for an empty slot."""
        active = (features >= 0) & paired[..., None]
        feature = features[active]
        a_bin = _bin(values[active], self.bins.activation[feature])
        for energy, cells in self.cells.items():
            g_bin = _bin(mates_g[energy][active], self.bins.gradients[energy][feature])
            cell = (feature * ACTIVATION_BINS + a_bin) * GRADIENT_BINS + g_bin
            cells.mates_active.view(-1).index_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))

    def _add_inactive(
        self, energy: str, gradients: Tensor, same: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]
    ) -> None:
        """Bin g of inactive features.

        gradients: s_t·∂E/∂x of at most DENSE_TOKENS sampled tokens [token, d_model]. same, before: for each pairing the
        tokens that it has [token] bool, and the features that are active there [token, K], -1 for an empty slot.
        """
        cells, edges = self.cells[energy], self.bins.gradients[energy]
        for start in range(0, self.sae.d_sae, DENSE_FEATURES):
            part = slice(start, start + DENSE_FEATURES)
            g = -gradients @ self.sae.W_dec[part].T  # [token, feature]
            above = [g.numpy() > edge for edge in self._edges[energy][:, part]]
            for (tokens, features), counts in ((same, cells.inactive), (before, cells.mates_inactive)):
                counts[part] += _by_bin(above, tokens)
                # An active feature's own g of the same product is taken off again, so no count falls below 0.
                inside = (features >= start) & (features < start + g.shape[1]) & tokens[:, None]
                token, slot = inside.nonzero(as_tuple=True)
                feature = features[token, slot]
                cell = feature * GRADIENT_BINS + _bin(g[token, feature - start], edges[feature])
                counts.view(-1).index_add_(0, cell, torch.full_like(cell, -1, dtype=torch.int32))

    def columns(self, energy: str) -> dict[str, NDArray[np.generic]]:
        """Columns of feature_histograms for one energy, by feature with quartiles."""
        known = (~self.bins.activation.isnan().any(1)).nonzero()[:, 0]
        counts = {name: tensor[known].numpy() for name, tensor in vars(self.cells[energy]).items()}
        return {"feature": known.numpy().astype(np.int32), **counts}


def _bin(values: Tensor, edges: Tensor) -> Tensor:
    """Bin of each value [n] between its own edges [n, edge]: how many are below it, from 0."""
    return (values[:, None] > edges).sum(1)


def _by_bin(above: Sequence[NDArray[np.bool_]], tokens: Tensor) -> Tensor:
    """Counts by bin [feature, bin] over the chosen tokens, from masks [token, feature] of the values above each edge.

    Summed as bytes, token after token, which is a hundred times as fast as a sum of booleans (measured).
    """
    chosen = tokens.numpy()
    masks = above if chosen.all() else [mask[chosen] for mask in above]
    sums = [np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8).astype(np.int32) for mask in masks]
    everything, nothing = np.full_like(sums[0], chosen.sum()), np.zeros_like(sums[0])
    counts = np.stack([everything, *sums, nothing], 1)
    return torch.from_numpy(counts[:, :-1] - counts[:, 1:])
