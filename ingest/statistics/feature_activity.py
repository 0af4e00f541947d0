"""A layer's activations in, how often each feature fires, how strongly and on what, out."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

Integers = NDArray[np.int64]

#: Strongest activations whose tokens are told.
N_TOP = 8


class FeatureActivity:
    """Gathers the features of a layer slice by slice."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._frames: list[pl.DataFrame] = []
        self._top: list[pl.DataFrame] = []

    def of(self, rows: Slice) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """Of a slice's features that fire: how they do, and their strongest activations."""
        starts = rows.pairs[rows.pair_features]
        fires = np.flatnonzero(np.diff(starts))
        if not len(fires):
            return None
        begins, n_active = starts[fires], np.diff(starts)[fires]
        feature = (fires + rows.start).astype(np.int32)
        total = np.add.reduceat(rows.a.astype(np.float64), begins)
        strongest = [begin + _strongest(rows.a[begin : begin + n]) for begin, n in zip(begins, n_active, strict=True)]
        sizes = [len(of_feature) for of_feature in strongest]
        largest = np.maximum.reduceat(rows.a, begins)
        summary = {
            "feature": feature, "n_active": n_active, "mean_activation": total / n_active, "max_activation": largest,
        }  # fmt: skip
        top = {
            "feature": np.repeat(feature, sizes), "place": np.concatenate([np.arange(n) for n in sizes]),
            "token_id": self._tokens.ids[rows.place[np.concatenate(strongest)]],
        }  # fmt: skip
        return pl.DataFrame(summary), pl.DataFrame(top)

    def add(self, part: tuple[pl.DataFrame, pl.DataFrame] | None) -> None:
        """Take in what `of` made of a slice."""
        if part is not None:
            self._frames.append(part[0])
            self._top.append(part[1])

    def store(self, warehouse: Warehouse, run_id: int, layer: int) -> None:
        """Fill feature_activity of the layer. Call within a transaction."""
        if not self._frames:
            return
        warehouse.run("finish/create_top_activations")
        warehouse.append("fired", pl.concat(self._frames))
        warehouse.append("strongest", pl.concat(self._top))
        warehouse.run("finish/feature_activity", run=run_id, layer=layer)
        warehouse.run("finish/drop_top_activations")


def _strongest(a: NDArray[np.float32]) -> Integers:
    """Places of the N_TOP largest, largest first; of equal ones the first."""
    candidates = np.arange(len(a))
    if len(a) > N_TOP:
        candidates = np.flatnonzero(a >= np.partition(a, -N_TOP)[-N_TOP])
    return candidates[np.argsort(-a[candidates], kind="stable")[:N_TOP]]
