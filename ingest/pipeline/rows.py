"""Readings and sums of a group in, its rows out: a function a table.

A function gives the rows of one context, or of one layer and energy, as columns; `table_frame` sets those of a whole
group one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from energy_lens.ingest.inclusion import REASONS
from energy_lens.ingest.reading import ContextReading
from energy_lens.ingest.statistics.directions import packed
from energy_lens.ingest.statistics.documents import DocumentSums
from energy_lens.ingest.statistics.histograms import LayerHistograms
from energy_lens.ingest.statistics.stream import LayerStatistics
from energy_lens.ingest.token_classes import token_classes

#: Some rows of a table: columns by name, each an array [row] or a value that all of these rows have in common.
Columns = dict[str, NDArray[Any] | float | str | None]

#: Columns in which a number that is not defined is NaN here and NULL in the warehouse.
_NAN_IS_NULL = ("discrete", "kl_to_output", "sum_a2h2")

# ------------------------------------------------------------------------------------------------ by context


def token_ids(reading: ContextReading, context_length: int) -> NDArray[np.int64]:
    """The warehouse's ids of a context's tokens [n]."""
    return np.int64(reading.context.context_id) * context_length + np.arange(len(reading.tokens))


def token_rows(
    reading: ContextReading, ids: NDArray[np.int64], texts: Sequence[str], begins_with_bos: bool = False
) -> Columns:
    """Rows of `tokens`. ids: of the tokens [n]; texts: of each token, which a leading BOS is no part of."""
    classes = ["other", *token_classes(texts[1:])] if begins_with_bos else token_classes(texts)
    return {
        "token_id": ids,
        "position": np.arange(len(ids), dtype=np.int16),
        "vocabulary_id": reading.tokens.astype(np.int32),
        "text": np.array(texts, dtype=object),
        "class": np.array(classes, dtype=object),
    }


def energy_rows(reading: ContextReading, ids: NDArray[np.int64]) -> Iterator[Columns]:
    """Rows of `energies`, for each energy and layer: where the token is included, or has a next one without a layer."""
    for (energy, layer), values in reading.energies.items():
        kept = np.arange(len(ids)) < len(ids) - 1 if layer is None else reading.layers[layer].included
        divergence = reading.divergences.get((energy, layer))
        yield {
            "token_id": ids[kept], "layer": layer, "energy": energy, "value": values[kept],
            "kl_to_output": np.full(kept.sum(), np.nan) if divergence is None else divergence[kept],
        }  # fmt: skip


def token_layer_rows(
    reading: ContextReading, layer: int, ids: NDArray[np.int64], counted: NDArray[np.bool_]
) -> Columns:
    """Rows of `token_layers`. counted: [n] whether the within-context test counts the token."""
    at_layer = reading.layers[layer]
    return {
        "token_id": ids, "layer": layer, "norm": at_layer.norms.numpy(), "included": at_layer.included,
        "reason": np.array([REASONS[code] if code else None for code in at_layer.reasons], dtype=object),
        "counted": counted,
    }  # fmt: skip


def gradient_rows(
    reading: ContextReading, layer: int, energy: str, ids: NDArray[np.int64], with_vectors: bool
) -> Columns:
    """Rows of `gradients` at included tokens. with_vectors: store ∂E/∂x itself beside its norm."""
    at_layer = reading.layers[layer]
    included = at_layer.included
    gradients = at_layer.gradients[energy][torch.from_numpy(included)]
    rows: Columns = {
        "token_id": ids[included], "layer": layer, "energy": energy, "norm": gradients.norm(dim=1).numpy(),
        "discrete": at_layer.discrete[energy][included].astype(np.float32),
    }  # fmt: skip
    return {**rows, "vector": gradients.numpy()} if with_vectors else rows


def activation_rows(
    reading: ContextReading, layer: int, ids: NDArray[np.int64], g: Mapping[str, NDArray[np.float32]]
) -> Columns:
    """Rows of `activations`. g: decoder gradients at the layer's activations, by energy [n, K]."""
    values, features = (part.numpy() for part in reading.layers[layer].activations)
    active = values > 0
    return {
        "layer": layer,
        "feature": features[active].astype(np.int32),
        "token_id": np.broadcast_to(ids[:, None], active.shape)[active],
        "activation": values[active],
        **{f"g_{energy}": of_energy[active] for energy, of_energy in g.items()},
    }


# ------------------------------------------------------------------------------------------------ by group


def moment_rows(statistics: LayerStatistics, group_id: int, layer: int, energy: str) -> Columns:
    """Rows of `feature_moments` of one layer and energy, a row for every feature."""
    features = np.arange(statistics.sae.d_sae, dtype=np.int32)
    return {"group_id": group_id, "layer": layer, "energy": energy, "feature": features, **statistics.columns(energy)}


def histogram_rows(histograms: LayerHistograms, group_id: int, layer: int, energy: str) -> Columns:
    """Rows of `feature_histograms` of one layer and energy, a row for every feature with quartiles."""
    return {"group_id": group_id, "layer": layer, "energy": energy, **histograms.columns(energy)}


def direction_rows(statistics: LayerStatistics, group_id: int, layer: int, energy: str) -> Columns:
    """Rows of `feature_directions` of one layer and energy, a row for every feature that the group's test counts."""
    features, along = statistics.along(energy)
    scale, codes = packed(along)
    place: Columns = {"group_id": group_id, "layer": layer, "energy": energy}
    return {**place, "feature": features.astype(np.int32), "scale": scale, "along": codes}


def feature_document_rows(sums: DocumentSums, group_id: int, layer: int, energy: str) -> Columns:
    """Rows of `feature_documents` of one layer and energy, a row for every feature that is active in a document."""
    return {"group_id": group_id, "layer": layer, "energy": energy, **sums.columns(energy)}


def document_gradient_rows(
    group_id: int, document_id: int, layer: int, energy: str, n_tokens: int, sum_norm2: float,
    gradient_sum: NDArray[np.float64],
) -> Columns:  # fmt: skip
    """The row of `document_gradients` of one document: sums of s_t·∂E/∂x [d_model] and of its square over n_tokens."""
    return {
        "group_id": group_id, "document_id": np.array([document_id], dtype=np.int32), "layer": layer, "energy": energy,
        "n_tokens": n_tokens, "sum_norm2": sum_norm2, "gradient_sum": gradient_sum[None],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ a table


def table_frame(run_id: int, parts: Sequence[Columns]) -> pl.DataFrame:
    """All rows of a group for one table, in the order of the parts, which name the same columns."""
    sizes = [next(len(column) for column in part.values() if isinstance(column, np.ndarray)) for part in parts]
    data: dict[str, Any] = {"run_id": np.full(sum(sizes), run_id, dtype=np.int32)}
    for name in parts[0]:
        pieces = [
            column if isinstance(column := part[name], np.ndarray) else np.full(size, column)
            for part, size in zip(parts, sizes, strict=True)
        ]
        whole = np.concatenate(pieces)
        data[name] = whole.tolist() if whole.dtype == object else whole
    frame = pl.DataFrame(data)
    return frame.with_columns(pl.col(name).fill_nan(None) for name in _NAN_IS_NULL if name in frame.columns)
