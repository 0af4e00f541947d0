"""Contexts in, readings out: one forward and backward pass per batch, then everything that is kept of each context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.contexts import padded, special_tokens
from energy_lens.ingest.energies.base import Energy, discrete_gradient
from energy_lens.ingest.energies.curvature import probe_generator, read_probes
from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.inclusion import INCLUDED, exclusion_reasons
from energy_lens.ingest.model.finite import check_residuals
from energy_lens.ingest.model.flash import use_flash
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import ModelOnDemand
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.warehouse.plan import Context

#: Batches whose contexts are sorted by length, and whose readings are held meanwhile: about those of a group.
SORTED_BATCHES = 6


@dataclass
class LayerReading:
    """A context at one layer; n is the number of its tokens."""

    norms: Tensor  #: ‖x‖ [n]
    reasons: NDArray[np.int8]  #: codes of inclusion.REASONS [n]
    activations: SparseActivations  #: [n, K], empty where not included
    gradients: dict[str, Tensor]  #: energy: ∂E/∂x [n, d_model]
    discrete: dict[str, NDArray[np.float64]]  #: energy: −derivative of E along the text [n], NaN where undefined
    scales: Tensor | None = None  #: s_t [n]: one unit of feature j adds s_t·d_j to x; None: all 1
    probes: Tensor | None = None  #: gradients of curvature probes [probe, n, d_model]; None: none were asked for

    def decoder_gradients(self, energy: str) -> Tensor:
        """s_t·∂E/∂x [n, d_model], whose product with a decoder row d_j is −g_{t,j}."""
        return self._scaled(self.gradients[energy])

    def decoder_probes(self) -> Tensor | None:
        """s_t times the probes [probe, n, d_model], whose products with d_j are −h_{t,j}."""
        return None if self.probes is None else self._scaled(self.probes)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return vectors if self.scales is None else vectors * self.scales[:, None]

    @property
    def included(self) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = self.reasons == INCLUDED
        return result


@dataclass
class ContextReading:
    """What the model and its SAEs said about one context."""

    context: Context
    tokens: NDArray[np.int64]  #: vocabulary ids [n]
    energies: dict[tuple[str, int | None], NDArray[np.float32]]  #: (energy, layer or None): E [n]
    layers: dict[int, LayerReading]
    #: the same as energies for KL(p‖q), where the energy has one
    divergences: dict[tuple[str, int | None], NDArray[np.float32]] = field(default_factory=dict)


@dataclass
class Reader:
    """Runs contexts through a model and its SAEs."""

    model: LanguageModel
    saes: Mapping[int, SparseAutoencoder]
    energies: Sequence[Energy]
    batch_size: int
    n_probes: int = 0  #: curvature probes of each context
    seed: int = 0  #: of their signs

    def __post_init__(self) -> None:
        self._special = special_tokens(self.model)

    def read(self, contexts: Sequence[tuple[Context, NDArray[np.int32]]]) -> Iterator[ContextReading]:
        """Readings of (context, token ids), in order, `batch_size` contexts in a forward pass.

        Contexts of about equal length share one, as far as SORTED_BATCHES of them allow: what is padded is run too.
        Raises NotFiniteError where the model's numbers are not finite.
        """
        size = self.batch_size * SORTED_BATCHES
        for start in range(0, len(contexts), size):
            together = contexts[start : start + size]
            by_length = sorted(range(len(together)), key=lambda i: -len(together[i][1]))
            readings: dict[int, ContextReading] = {}
            next_one = 0
            for first in range(0, len(together), self.batch_size):
                places = by_length[first : first + self.batch_size]
                readings.update(zip(places, self._read_batch([together[i] for i in places]), strict=True))
                while next_one in readings:
                    yield readings.pop(next_one)
                    next_one += 1

    def _read_batch(self, batch: Sequence[tuple[Context, NDArray[np.int32]]]) -> list[ContextReading]:
        tokens, lengths = padded([ids for _, ids in batch])
        norms: dict[int, Tensor] = {}
        reasons: dict[int, NDArray[np.int8]] = {}

        def included(layer: int, layer_norms: Tensor) -> Tensor:
            median = self.saes[layer].norm_median
            assert median is not None
            norms[layer] = layer_norms
            reasons[layer] = exclusion_reasons(layer_norms, median, lengths, tokens, self._special, f"layer {layer}")
            return torch.from_numpy(reasons[layer] == INCLUDED)

        forward = run_forward(self.model, self.saes, tokens, lengths, included)
        real = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        check_residuals(forward.hidden.detach().float().norm(dim=-1), "the final norm", real)
        probes: dict[int, Tensor] = {}
        if self.n_probes:  # before the energies, which use up the graph
            generators = [probe_generator(self.seed, context.context_id) for context, _ in batch]
            probes = read_probes(forward, self.n_probes, generators)
        readings = {energy.name: energy.read(forward) for energy in self.energies}
        results = []
        for i, (context, ids) in enumerate(batch):
            n = len(ids)
            layers = {
                layer: LayerReading(
                    norms[layer][i, :n],
                    reasons[layer][i, :n],
                    SparseActivations(
                        *(part.view(*tokens.shape, -1)[i, :n] for part in forward.activations[layer]),
                    ),
                    {name: reading.gradients[layer][i, :n] for name, reading in readings.items()},
                    {},
                    None if (scales := forward.scales[layer]) is None else scales[i, :n],
                    probes[layer][:, i, :n] if probes else None,
                )
                for layer in self.saes
            }
            energies = {
                (name, layer): values[i, :n].numpy()
                for name, reading in readings.items()
                for layer, values in reading.values.items()
            }
            divergences: dict[tuple[str, int | None], NDArray[np.float32]] = {
                (name, layer): values[i, :n].numpy()
                for name, reading in readings.items()
                for layer, values in reading.divergences.items()
            }
            for (name, at_layer), values in energies.items():
                for layer, layer_reading in layers.items():
                    if at_layer in (None, layer):
                        defined = np.arange(n) < n - 1 if at_layer is None else layer_reading.included
                        layer_reading.discrete[name] = discrete_gradient(values.astype(np.float64), defined)
            results.append(ContextReading(context, ids.astype(np.int64), energies, layers, divergences))
        return results


@dataclass(frozen=True)
class Instruments:
    """What a run reads with, settled before anything is loaded; the fields are those of Reader."""

    model: ModelOnDemand
    saes: Mapping[int, SparseAutoencoder]
    energies: Sequence[Energy]
    batch_size: int
    n_probes: int
    seed: int

    def with_medians(self, norm_medians: Mapping[int, float]) -> Instruments:
        """The same with the norm median of each layer, by which tokens are included."""
        saes = {layer: replace(sae, norm_median=norm_medians[layer]) for layer, sae in self.saes.items()}
        return replace(self, saes=saes)

    def reader(self) -> Reader:
        """A reader, with the model loaded. Every SAE needs a norm median."""
        model = self.model.load()
        use_flash(model)
        return Reader(model, self.saes, self.energies, self.batch_size, self.n_probes, self.seed)
