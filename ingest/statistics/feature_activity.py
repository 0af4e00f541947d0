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

    def add(self, rows: Slice) -> None:
        """Take in a slice's features."""
        bounds = np.flatnonzero(np.diff(rows.feature, prepend=-1, append=-1))
        if len(bounds) < 2:
            return
        starts, n_active = bounds[:-1], np.diff(bounds)
        feature = rows.feature[starts] + np.int32(rows.start)
        total = np.add.reduceat(rows.a.astype(np.float64), starts)
        strongest = [start + _strongest(rows.a[start:stop]) for start, stop in zip(starts, bounds[1:], strict=True)]
        self._frames.append(
            pl.DataFrame(
                {
                    "feature": feature, "n_active": n_active, "mean_activation": total / n_active,
                    "max_activation": np.maximum.reduceat(rows.a, starts),
                }
            )
        )  # fmt: skip
        sizes = [len(of_feature) for of_feature in strongest]
        self._top.append(
            pl.DataFrame(
                {
                    "feature": np.repeat(feature, sizes), "place": np.concatenate([np.arange(n) for n in sizes]),
                    "token_id": self._tokens.ids[rows.place[np.concatenate(strongest)]],
                }
            )
        )  # fmt: skip

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
