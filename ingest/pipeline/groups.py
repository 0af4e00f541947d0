"""A group of the plan in, its rows for every table out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.inclusion import REASONS
from energy_lens.ingest.reading import ContextReading, Reader
from energy_lens.ingest.sae.autoencoder import SparseActivations, widened
from energy_lens.ingest.statistics.histograms import HistogramPlan, LayerHistograms
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics
from energy_lens.ingest.token_classes import token_classes
from energy_lens.warehouse.plan import Group

#: Physical order of a group's rows, which is what a look-up by layer and feature profits from.
SORTED_BY = {
    "activations": ("layer", "feature", "token_id"),
    "feature_moments": ("layer", "energy", "feature"),
    "feature_histograms": ("layer", "energy", "feature"),
    "token_layers": ("layer", "token_id"),
    "gradients": ("energy", "layer", "token_id"),
    "energies": ("energy", "layer", "token_id"),
    "document_gradients": ("layer", "energy", "document_id"),
    "tokens": ("token_id",),
}


@dataclass
class GroupTables:
    """All rows of a group, ready to be stored in one transaction."""

    group: Group
    frames: dict[str, pl.DataFrame]


class GroupBuilder:
    """Turns readings into rows; `token_texts` caches the text of each vocabulary id."""

    def __init__(
        self, run_id: int, context_length: int, reader: Reader, histogram_plan: HistogramPlan, store_gradients: bool
    ) -> None:
        self.run_id = run_id
        self.histogram_plan = histogram_plan
        self.context_length = context_length
        self.reader = reader
        self.energies = [energy.name for energy in reader.energies]
        self.store_gradients = store_gradients
        self.token_texts: dict[int, str] = {}

    def build(self, group: Group, token_ids: Mapping[int, NDArray[np.int32]], on_tokens: Any = None) -> GroupTables:
        """Run a group.

        token_ids: context_id: vocabulary ids. on_tokens: called with the number of tokens done since the last call.
        """
        columns: dict[str, list[dict[str, Any]]] = defaultdict(list)
        statistics = {layer: LayerStatistics(sae, self.energies) for layer, sae in self.reader.saes.items()}
        histograms = {
            layer: LayerHistograms(self.reader.saes[layer], self.energies, bins)
            for layer, bins in self.histogram_plan.layers.items()
        }
        document_sums: dict[tuple[int, int, str], tuple[int, NDArray[np.float64]]] = {}
        contexts = [(context, token_ids[context.context_id]) for row in group.rows for context in row]
        readings = self.reader.read(contexts)
        for row in group.rows:
            row_readings = [next(readings) for _ in row]
            for layer, layer_statistics in statistics.items():
                padded = layer_row(row_readings, layer)
                at_active = layer_statistics.add(padded)
                if layer in histograms:
                    sampled = [context.context_id in self.histogram_plan.sampled for context in row]
                    histograms[layer].add(padded, at_active.mates, sampled)
                for i, reading in enumerate(row_readings):
                    n, n_slots = reading.layers[layer].activations.values.shape
                    own_g = {energy: values[i, :n, :n_slots].numpy() for energy, values in at_active.own.items()}
                    self._layer_rows(columns, reading, layer, own_g, at_active.counted[i, :n].numpy())
                    self._add_document_sums(document_sums, reading, layer)
            for reading in row_readings:
                self._context_rows(columns, reading)
            if on_tokens:
                on_tokens(sum(len(reading.tokens) for reading in row_readings))
        for layer, layer_statistics in statistics.items():
            for energy in self.energies:
                moments = layer_statistics.columns(energy)
                features = np.arange(layer_statistics.sae.d_sae, dtype=np.int32)
                place = {"group_id": group.group_id, "layer": layer, "energy": energy}
                columns["feature_moments"].append({**place, "feature": features, **moments})
                if layer in histograms:
                    columns["feature_histograms"].append({**place, **histograms[layer].columns(energy)})
        for (document_id, layer, energy), (n_tokens, total) in document_sums.items():
            columns["document_gradients"].append(
                {
                    "group_id": group.group_id, "document_id": np.array([document_id], dtype=np.int32), "layer": layer,
                    "energy": energy, "n_tokens": n_tokens, "gradient_sum": total[None],
                }
            )  # fmt: skip
        return GroupTables(group, {table: self._frame(parts) for table, parts in columns.items()})

    def _token_ids(self, reading: ContextReading) -> NDArray[np.int64]:
        return np.int64(reading.context.context_id) * self.context_length + np.arange(len(reading.tokens))

    def _context_rows(self, columns: dict[str, list[dict[str, Any]]], reading: ContextReading) -> None:
        token_ids = self._token_ids(reading)
        texts = [self._text(int(token)) for token in reading.tokens]
        columns["tokens"].append(
            {
                "token_id": token_ids,
                "position": np.arange(len(token_ids), dtype=np.int16),
                "vocabulary_id": reading.tokens.astype(np.int32),
                "text": np.array(texts, dtype=object),
                "class": np.array(token_classes(texts), dtype=object),
            }
        )
        for (energy, layer), values in reading.energies.items():
            if layer is None:
                kept = np.arange(len(token_ids)) < len(token_ids) - 1
            else:
                kept = reading.layers[layer].included
            divergence = reading.divergences.get((energy, layer))
            columns["energies"].append(
                {
                    "token_id": token_ids[kept], "layer": layer, "energy": energy, "value": values[kept],
                    "kl_to_output": np.full(kept.sum(), np.nan) if divergence is None else divergence[kept],
                }
            )  # fmt: skip

    def _layer_rows(
        self,
        columns: dict[str, list[dict[str, Any]]],
        reading: ContextReading,
        layer: int,
        g: Mapping[str, NDArray[np.float32]],
        counted: NDArray[np.bool_],
    ) -> None:
        own = reading.layers[layer]
        token_ids = self._token_ids(reading)
        included = own.included
        columns["token_layers"].append(
            {
                "token_id": token_ids, "layer": layer, "norm": own.norms.numpy(), "included": included,
                "reason": np.array([REASONS[code] if code else None for code in own.reasons], dtype=object),
                "counted": counted,
            }
        )  # fmt: skip
        for energy in self.energies:
            gradients = own.gradients[energy][torch.from_numpy(included)]
            rows = {
                "token_id": token_ids[included], "layer": layer, "energy": energy,
                "norm": gradients.norm(dim=1).numpy(), "discrete": own.discrete[energy][included].astype(np.float32),
            }  # fmt: skip
            if self.store_gradients:
                rows["vector"] = gradients.numpy()
            columns["gradients"].append(rows)
        values, features = own.activations.values.numpy(), own.activations.indices.numpy()
        active = values > 0
        columns["activations"].append(
            {
                "layer": layer,
                "feature": features[active].astype(np.int32),
                "token_id": np.broadcast_to(token_ids[:, None], active.shape)[active],
                "activation": values[active],
                **{f"g_{energy}": values_g[active] for energy, values_g in g.items()},
            }
        )

    def _add_document_sums(
        self,
        sums: dict[tuple[int, int, str], tuple[int, NDArray[np.float64]]],
        reading: ContextReading,
        layer: int,
    ) -> None:
        own = reading.layers[layer]
        included = torch.from_numpy(own.included)
        for energy in self.energies:
            key = (reading.context.document_id, layer, energy)
            total = own.decoder_gradients(energy)[included].double().sum(0).numpy()
            n_before, before = sums.get(key, (0, np.zeros_like(total)))
            sums[key] = (n_before + int(included.sum()), before + total)

    def _text(self, token: int) -> str:
        text = self.token_texts.get(token)
        if text is None:
            text = self.reader.model.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            self.token_texts[token] = text
        return text

    def _frame(self, parts: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        """One frame from column parts; a scalar in a part stands for all of the part's rows."""
        sizes = [next(len(v) for v in part.values() if isinstance(v, np.ndarray)) for part in parts]
        data: dict[str, Any] = {"run_id": np.full(sum(sizes), self.run_id, dtype=np.int32)}
        for name in parts[0]:
            pieces = [
                part[name] if isinstance(part[name], np.ndarray) else np.full(size, part[name])
                for part, size in zip(parts, sizes, strict=True)
            ]
            column = np.concatenate(pieces)
            data[name] = column.tolist() if column.dtype == object else column
        frame = pl.DataFrame(data)
        return frame.with_columns(
            pl.col(name).fill_nan(None) for name in ("discrete", "kl_to_output", "sum_a2h2") if name in frame.columns
        )


def layer_row(readings: Sequence[ContextReading], layer: int) -> LayerRow:
    """Readings of one row of the plan side by side, padded on the right."""
    length = max(len(reading.tokens) for reading in readings)
    own = [reading.layers[layer] for reading in readings]
    # Batches differ in how many features their busiest token has, unless the SAE is TopK.
    n_slots = max(reading.activations.values.shape[-1] for reading in own)
    activations = [widened(reading.activations, n_slots) for reading in own]

    def stack(parts: Sequence[Tensor]) -> Tensor:
        stacked = parts[0].new_zeros(len(parts), length, *parts[0].shape[1:])
        for i, part in enumerate(parts):
            stacked[i, : len(part)] = part
        return stacked

    probes = [own_probes for r in own if (own_probes := r.decoder_probes()) is not None]
    return LayerRow(
        included=stack([torch.from_numpy(reading.included) for reading in own]),
        activations=SparseActivations(
            stack([values for values, _ in activations]),
            stack([indices for _, indices in activations]),
        ),
        gradients={energy: stack([r.decoder_gradients(energy) for r in own]) for energy in own[0].gradients},
        probes=tuple(stack(list(parts)) for parts in zip(*probes, strict=True)),
        norms=stack([r.norms if r.scales is None else r.norms / r.scales for r in own]) if probes else None,
    )
