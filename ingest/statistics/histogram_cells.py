"""Stored activations and the stream's counts in, joint histograms of a layer and energy by feature and category out."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.strata import Partition, RunLayout
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Bins of a where it is active, and of g.
A_BINS, G_BINS = 4, 8

#: Counts that the stream kept by group, and of how many cells.
STREAMED = {"inactive": G_BINS, "mates_active": A_BINS * G_BINS, "mates_inactive": G_BINS}


class HistogramCells:
    """Counts of one layer and energy, for features with edges of bins; for all categories, and each that fires."""

    def __init__(
        self, warehouse: Warehouse, run: RunLayout, tokens: Tokens, included: NDArray[np.bool_], layer: int, energy: str
    ) -> None:
        """included: [token] those of the layer."""
        self._warehouse, self._run, self._energy, self._tokens = warehouse, run, energy, tokens
        self._place = {"run": run.run_id, "layer": layer, "energy": energy}
        bins = warehouse.run("finish/histogram_bins", **self._place).numpy()
        self._features = np.asarray(bins.pop("feature"), dtype=np.int64)  # ascending
        edges = np.stack([np.ma.filled(values, np.nan) for values in bins.values()], axis=1)
        self._a_edges, self._g_edges = edges[:, : A_BINS - 1], edges[:, A_BINS - 1 :]
        # All documents, and their categories.
        self._partitions = run.partitions[:2]
        document = run.contexts.document[tokens.context]
        mates = included & tokens.shifted(included)
        self._n_tokens, self._n_mates = (
            [np.bincount(p.of_documents[document], chosen, len(p.strata)).astype(np.int64) for p in self._partitions]
            for chosen in (included, mates)
        )
        self._frames: list[pl.DataFrame] = []

    def read(self, start: int, stop: int) -> None:
        """What the stream counted of features start … stop − 1, for the slices that come next."""
        stored = self._warehouse.frame("finish/histogram_counts", **self._place, start=start, stop=stop)
        self._stored_features = stored["feature"].to_numpy().astype(np.int64)
        group = np.searchsorted(self._run.group_ids, stored["group_id"].to_numpy())
        self._stored_cells = self._run.group_cells[group]
        self._stored = np.concatenate(
            [stored[name].explode().to_numpy().reshape(-1, width) for name, width in STREAMED.items()], axis=1
        )

    def add(self, rows: Slice) -> None:
        """Count a slice's activations."""
        first, last = np.searchsorted(self._features, [rows.start, rows.stop])
        features = self._features[first:last]
        if not len(features):
            return
        place = np.full(rows.n_features, -1)
        place[features - rows.start] = np.arange(len(features))
        of = place[rows.feature]
        used = of >= 0
        of = of[used]
        cell = G_BINS * _bins(rows.a[used], self._a_edges[first:last], of)
        cell += _bins(rows.g[self._energy][used], self._g_edges[first:last], of)
        document = self._run.contexts.document[self._tokens.context[rows.place[used]]]
        for partition, n_tokens, n_mates in zip(self._partitions, self._n_tokens, self._n_mates, strict=True):
            n_strata, n_cells = len(partition.strata), A_BINS * G_BINS
            code = (partition.of_documents[document] * len(features) + of) * n_cells + cell
            own = np.bincount(code, minlength=n_strata * len(features) * n_cells).reshape(-1, n_cells)
            streamed = self._streamed(partition, features)
            # In a category only features that fire there.
            chosen = np.arange(len(own)) if partition.is_whole else np.flatnonzero(own.any(axis=1))
            stratum = chosen // len(features)
            lists = {"active": own[chosen]} | {
                name: streamed[chosen, at : at + width]
                for (name, width), at in zip(STREAMED.items(), (0, G_BINS, G_BINS + n_cells), strict=True)
            }
            self._frames.append(
                pl.DataFrame(
                    {
                        "feature": features[chosen % len(features)].astype(np.int32),
                        "category": pl.Series([s.category for s in partition.strata], dtype=pl.String).gather(stratum),
                        "n_tokens": n_tokens[stratum],
                        "mates_tokens": n_mates[stratum],
                        **{name: pl.Series(counts).arr.to_list() for name, counts in lists.items()},
                    }
                )
            )

    def _streamed(self, partition: Partition, features: Integers) -> Integers:
        """The stream's counts, [stratum and feature, cell]."""
        within = slice(*np.searchsorted(self._stored_features, [features[0], features[-1] + 1]))
        feature = np.searchsorted(features, self._stored_features[within])
        code = partition.of_cells[self._stored_cells[within]] * len(features) + feature
        order = np.argsort(code, kind="stable")
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        counts = np.zeros((len(partition.strata) * len(features), self._stored.shape[1]), dtype=np.int64)
        if len(starts):
            sums = np.add.reduceat(self._stored[within][order], starts, dtype=np.int64)
            counts[code[order][starts]] = sums
        return counts

    def frame(self) -> pl.DataFrame | None:
        """Rows of histogram_cells, by category and feature; None where no feature has edges."""
        if not self._frames:
            return None
        columns = {name: pl.lit(value) for name, value in self._place.items() if name != "run"}
        whole = pl.concat(self._frames).with_columns(run_id=pl.lit(self._run.run_id), **columns)
        return whole.sort("category", "feature")


def _bins(values: NDArray[np.float32], edges: NDArray[np.float32], of: Integers) -> Integers:
    """How many edges [row, edge] of its row are below each value; of: [value] its row."""
    result = np.zeros(len(values), dtype=np.int64)
    for edge in edges.T:
        result += values > edge[of]
    return result
