"""Contexts in, readings out: one forward and backward pass per batch, then everything that is kept of each context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.energies import Energy, discrete_gradient, run_forward
from energy_lens.ingest.inclusion import INCLUDED, exclusion_reasons
from energy_lens.ingest.models import LanguageModel
from energy_lens.ingest.sae import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics import LayerRow
from energy_lens.warehouse.plan import Context


@dataclass
class LayerReading:
    """A context at one layer; n is the number of its tokens."""

    norms: Tensor  #: ‖x‖ [n]
    reasons: NDArray[np.int8]  #: codes of inclusion.REASONS [n]
    activations: SparseActivations  #: [n, K], empty where not included
    gradients: dict[str, Tensor]  #: energy: ∂E/∂x [n, d_model]
    discrete: dict[str, NDArray[np.float64]]  #: energy: −derivative of E along the text [n], NaN where undefined

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


@dataclass
class Reader:
    """Runs contexts through a model and its SAEs."""

    model: LanguageModel
    saes: Mapping[int, SparseAutoencoder]
    energies: Sequence[Energy]
    batch_size: int

    def __post_init__(self) -> None:
        self._special_ids = torch.tensor(sorted(self.model.tokenizer.all_special_ids), dtype=torch.int64)

    def read(self, contexts: Sequence[tuple[Context, NDArray[np.int32]]]) -> Iterator[ContextReading]:
        """Readings of (context, token ids), in order, `batch_size` contexts in a forward pass."""
        for start in range(0, len(contexts), self.batch_size):
            yield from self._read_batch(contexts[start : start + self.batch_size])

    def _read_batch(self, batch: Sequence[tuple[Context, NDArray[np.int32]]]) -> list[ContextReading]:
        lengths = torch.tensor([len(ids) for _, ids in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.int64)
        for i, (_, ids) in enumerate(batch):
            tokens[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        norms: dict[int, Tensor] = {}
        reasons: dict[int, NDArray[np.int8]] = {}

        def included(layer: int, layer_norms: Tensor) -> Tensor:
            median = self.saes[layer].norm_median
            assert median is not None
            norms[layer] = layer_norms
            reasons[layer] = exclusion_reasons(layer_norms, median, lengths, tokens, self._special_ids)
            return torch.from_numpy(reasons[layer] == INCLUDED)

        forward = run_forward(self.model, self.saes, tokens, lengths, included)
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
                )
                for layer in self.saes
            }
            energies = {
                (name, layer): values[i, :n].numpy()
                for name, reading in readings.items()
                for layer, values in reading.values.items()
            }
            for (name, at_layer), values in energies.items():
                for layer, own in layers.items():
                    if at_layer in (None, layer):
                        defined = np.arange(n) < n - 1 if at_layer is None else own.included
                        own.discrete[name] = discrete_gradient(values.astype(np.float64), defined)
            results.append(ContextReading(context, ids.astype(np.int64), energies, layers))
        return results


def layer_row(readings: Sequence[ContextReading], layer: int) -> LayerRow:
    """Readings of one row of the plan side by side, padded on the right."""
    length = max(len(reading.tokens) for reading in readings)
    own = [reading.layers[layer] for reading in readings]

    def stack(parts: Sequence[Tensor]) -> Tensor:
        stacked = parts[0].new_zeros(len(parts), length, *parts[0].shape[1:])
        for i, part in enumerate(parts):
            stacked[i, : len(part)] = part
        return stacked

    return LayerRow(
        included=stack([torch.from_numpy(reading.included) for reading in own]),
        activations=SparseActivations(
            stack([reading.activations.values for reading in own]),
            stack([reading.activations.indices for reading in own]),
        ),
        gradients={energy: stack([reading.gradients[energy] for reading in own]) for energy in own[0].gradients},
    )
