"""A group of the plan in, its rows for every table out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.cluster import processor
from energy_lens.ingest.model.token_texts import TokenTexts
from energy_lens.ingest.pipeline.rows import (
    Columns,
    activation_rows,
    direction_rows,
    document_gradient_rows,
    energy_rows,
    feature_document_rows,
    gradient_rows,
    histogram_rows,
    moment_rows,
    table_frame,
    token_ids,
    token_layer_rows,
    token_rows,
)
from energy_lens.ingest.reading import ContextReading, Reader
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder, widened
from energy_lens.ingest.statistics.directions import Directions
from energy_lens.ingest.statistics.documents import DocumentSums
from energy_lens.ingest.statistics.histograms import HistogramPlan, LayerHistograms
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics, RowGradients
from energy_lens.warehouse.plan import Group


@dataclass
class GroupTables:
    """All rows of a group, ready to be stored in one transaction."""

    group: Group
    cpu: str  #: the kind of processor that computed it
    frames: dict[str, pl.DataFrame]


class GroupBuilder:
    """Runs groups of one run; what it keeps from one to the next is the text of each vocabulary id."""

    def __init__(
        self, run_id: int, context_length: int, reader: Reader, histogram_plan: HistogramPlan,
        directions: Mapping[int, Directions], store_gradients: bool,
    ) -> None:  # fmt: skip
        self.run_id = run_id
        self.context_length = context_length
        self.reader = reader
        self.histogram_plan = histogram_plan
        self.directions = directions
        self.store_gradients = store_gradients
        self.energies = [energy.name for energy in reader.energies]
        self._texts = TokenTexts(reader.model.tokenizer)

    def build(
        self,
        group: Group,
        token_ids: Mapping[int, NDArray[np.int32]],
        on_tokens: Callable[[int], object] | None = None,
    ) -> GroupTables:
        """Run a group.

        token_ids: context_id: vocabulary ids. on_tokens: called with the number of tokens done since the last call.
        """
        parts: dict[str, list[Columns]] = defaultdict(list)
        sums = GroupSums(self.reader.saes, self.energies, self.histogram_plan, self.directions)
        contexts = [(context, token_ids[context.context_id]) for row in group.rows for context in row]
        readings = self.reader.read(contexts)
        for row in group.rows:
            row_readings = [next(readings) for _ in row]
            for layer in self.reader.saes:
                at_active = sums.add(row_readings, layer)
                for place, reading in enumerate(row_readings):
                    self._add_layer_rows(parts, reading, layer, at_active, place)
            for reading in row_readings:
                self._add_context_rows(parts, reading)
            if on_tokens:
                on_tokens(sum(len(reading.tokens) for reading in row_readings))
        sums.add_rows(parts, group.group_id)
        frames = {table: table_frame(self.run_id, of_table) for table, of_table in parts.items()}
        return GroupTables(group, processor(), frames)

    def _add_layer_rows(
        self, parts: dict[str, list[Columns]], reading: ContextReading, layer: int, at_active: RowGradients, place: int
    ) -> None:
        """Rows of a context at one layer. place: of the context in its row of the plan."""
        ids = token_ids(reading, self.context_length)
        # The row is padded to its longest context and widest activations.
        n, n_slots = reading.layers[layer].activations.values.shape
        g = {energy: values[place, :n, :n_slots].numpy() for energy, values in at_active.g.items()}
        parts["token_layers"].append(token_layer_rows(reading, layer, ids, at_active.counted[place, :n].numpy()))
        parts["gradients"] += [
            gradient_rows(reading, layer, energy, ids, self.store_gradients) for energy in self.energies
        ]
        parts["activations"].append(activation_rows(reading, layer, ids, g))

    def _add_context_rows(self, parts: dict[str, list[Columns]], reading: ContextReading) -> None:
        """Rows of a context that belong to no SAE."""
        ids = token_ids(reading, self.context_length)
        texts = [self._texts[vocabulary_id] for vocabulary_id in reading.tokens.tolist()]
        parts["tokens"].append(token_rows(reading, ids, texts, self.reader.model.bos is not None))
        parts["energies"] += energy_rows(reading, ids)


class GroupSums:
    """What a group is summed up to, token by token, at each layer: moments, histograms, and sums of its documents."""

    def __init__(
        self, saes: Mapping[int, SparseAutoencoder], energies: Sequence[str], histogram_plan: HistogramPlan,
        directions: Mapping[int, Directions],
    ) -> None:  # fmt: skip
        self._energies = energies
        self._statistics = {layer: LayerStatistics(sae, energies, directions[layer]) for layer, sae in saes.items()}
        self._by_document = {layer: DocumentSums(energies) for layer in saes}
        self._histograms = {
            layer: LayerHistograms(saes[layer], energies, bins) for layer, bins in histogram_plan.layers.items()
        }
        self._sampled = histogram_plan.sampled
        #: (document_id, layer, energy): included tokens, and Σ of the square of s_t·∂E/∂x and of itself [d_model]
        self._documents: dict[tuple[int, int, str], tuple[int, float, NDArray[np.float64]]] = {}

    def add(self, readings: Sequence[ContextReading], layer: int) -> RowGradients:
        """Take in one row of the plan at one layer; returns the gradients at its activations."""
        row = layer_row(readings, layer)
        at_active = self._statistics[layer].add(row)
        if layer in self._histograms:
            sampled = [reading.context.context_id in self._sampled for reading in readings]
            self._histograms[layer].add(row, at_active.mates_g, sampled)
        self._by_document[layer].add(at_active.contexts, np.array([r.context.document_id for r in readings]))
        for reading in readings:
            self._add_to_document(reading, layer)
        return at_active

    def _add_to_document(self, reading: ContextReading, layer: int) -> None:
        at_layer = reading.layers[layer]
        included = torch.from_numpy(at_layer.included)
        for energy in self._energies:
            key = (reading.context.document_id, layer, energy)
            gradients = at_layer.decoder_gradients(energy)[included].double()
            total, square = gradients.sum(0).numpy(), float(gradients.square().sum())
            n_before, square_before, total_before = self._documents.get(key, (0, 0.0, np.zeros_like(total)))
            self._documents[key] = n_before + int(included.sum()), square_before + square, total_before + total

    def add_rows(self, parts: dict[str, list[Columns]], group_id: int) -> None:
        """Add the sums' rows, by table, to those of the group."""
        for layer, statistics in self._statistics.items():
            for energy in self._energies:
                parts["feature_moments"].append(moment_rows(statistics, group_id, layer, energy))
                parts["feature_directions"].append(direction_rows(statistics, group_id, layer, energy))
                by_document = feature_document_rows(self._by_document[layer], group_id, layer, energy)
                parts["feature_documents"].append(by_document)
                if layer in self._histograms:
                    rows = histogram_rows(self._histograms[layer], group_id, layer, energy)
                    parts["feature_histograms"].append(rows)
        for (document_id, layer, energy), (n_tokens, square, total) in self._documents.items():
            rows = document_gradient_rows(group_id, document_id, layer, energy, n_tokens, square, total)
            parts["document_gradients"].append(rows)


def layer_row(readings: Sequence[ContextReading], layer: int) -> LayerRow:
    """Readings of one row of the plan side by side, padded on the right."""
    length = max(len(reading.tokens) for reading in readings)
    at_layer = [reading.layers[layer] for reading in readings]
    # Batches differ in how many features their busiest token has, unless the SAE is TopK.
    n_slots = max(reading.activations.values.shape[-1] for reading in at_layer)
    activations = [widened(reading.activations, n_slots) for reading in at_layer]

    def stack(parts: Sequence[Tensor]) -> Tensor:
        stacked = parts[0].new_zeros(len(parts), length, *parts[0].shape[1:])
        for i, part in enumerate(parts):
            stacked[i, : len(part)] = part
        return stacked

    probes = [of_context for reading in at_layer if (of_context := reading.decoder_probes()) is not None]
    return LayerRow(
        included=stack([torch.from_numpy(reading.included) for reading in at_layer]),
        activations=SparseActivations(
            stack([values for values, _ in activations]),
            stack([indices for _, indices in activations]),
        ),
        gradients={
            energy: stack([reading.decoder_gradients(energy) for reading in at_layer])
            for energy in at_layer[0].gradients
        },
        probes=tuple(stack(list(parts)) for parts in zip(*probes, strict=True)),
        norms=stack([r.norms if r.scales is None else r.norms / r.scales for r in at_layer]) if probes else None,
    )
