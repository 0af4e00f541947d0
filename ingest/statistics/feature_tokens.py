"""A layer's activations in, the tokens of the vocabulary that each feature fires on most often out."""

from __future__ import annotations

import numpy as np
import polars as pl

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.tokens import Mask, Tokens
from energy_lens.warehouse.database import Warehouse

#: Tokens of the vocabulary that are told of a feature.
N_TOKENS = 10


class FeatureTokens:
    """Gathers the features of a layer slice by slice."""

    def __init__(self, tokens: Tokens, included: Mask) -> None:
        self._vocabulary_ids = tokens.vocabulary_ids
        self._occurrences = np.bincount(tokens.vocabulary_ids[included])
        self._frames: list[pl.DataFrame] = []

    def of(self, rows: Slice) -> pl.DataFrame:
        """Rows of feature_tokens of a slice, without run, layer and text."""
        ids = self._vocabulary_ids[rows.place]
        code = rows.feature.astype(np.int64) * (int(ids.max(initial=0)) + 1) + ids
        order = np.argsort(code, kind="stable")
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        first = order[starts]
        n_active = np.diff(np.append(starts, len(code)))
        total = np.add.reduceat(rows.a[order].astype(np.float64), starts) if len(starts) else np.empty(0)
        return (
            pl.DataFrame({
                "feature": (rows.feature[first] + rows.start).astype(np.int32), "vocabulary_id": ids[first],
                "n_active": n_active, "n_tokens": self._occurrences[ids[first]], "mean_activation": total / n_active,
            })
            .sort("feature", "n_active", "mean_activation", "vocabulary_id", descending=[False, True, True, False])
            .with_columns(place=(pl.int_range(pl.len()).over("feature") + 1).cast(pl.Int16))
            .filter(pl.col("place") <= N_TOKENS)
        )  # fmt: skip

    def add(self, part: pl.DataFrame) -> None:
        """Take in what `of` made of a slice."""
        self._frames.append(part)

    def store(self, warehouse: Warehouse, run_id: int, layer: int) -> None:
        """Fill feature_tokens of the layer. Call within a transaction."""
        frame = pl.concat(self._frames) if self._frames else pl.DataFrame()
        if len(frame):
            warehouse.run("finish/create_fired_on")
            warehouse.append("fired_on", frame)
            warehouse.run("finish/feature_tokens", run=run_id, layer=layer)
            warehouse.run("finish/drop_fired_on")
