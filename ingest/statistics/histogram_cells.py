"""Stored activations and the stream's counts in, joint histograms of a layer and energy by feature and category out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.kernels import add_rows, joint_counts
from energy_lens.ingest.statistics.strata import Partition, RunLayout
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Bins of a where it is active, and of g.
A_BINS, G_BINS = 4, 8

#: Counts that the stream kept by group, and of how many cells.
STREAMED = {"inactive": G_BINS, "mates_active": A_BINS * G_BINS, "mates_inactive": G_BINS}


class StoredCounts(NamedTuple):
    """The stream's counts of some features, by feature and cell of the run."""

    feature: Integers  #: [n] ascending
    cell: Integers  #: [n]
    counts: Integers  #: [n, cell of the histograms in STREAMED]


class HistogramCells:
    """Counts of one layer and energy, for features with edges of bins; for all categories, and each that fires."""

    def __init__(
        self, warehouse: Warehouse, run: RunLayout, tokens: Tokens, included: NDArray[np.bool_], layer: int, energy: str
    ) -> None:
        """included: [token] those of the layer."""
        self._warehouse, self._run, self._energy = warehouse, run, energy
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
        self._parts: list[list[dict[str, Integers]]] = [[] for _ in self._partitions]

    def read(self, start: int, stop: int) -> StoredCounts:
        """What the stream counted of features start … stop − 1, over the groups of each cell."""
        stored = self._warehouse.frame("finish/histogram_counts", **self._place, start=start, stop=stop)
        codes, place = self._run.by_cell(stored, start, stop)
        counts = np.zeros((len(codes), sum(STREAMED.values())), dtype=np.int64)
        first = 0
        for name, width in STREAMED.items():
            add_rows(counts[:, first : first + width], place, stored[name].explode().to_numpy().reshape(-1, width))
            first += width
        return StoredCounts(codes // self._run.n_cells, codes % self._run.n_cells, counts)

    def counts(self, rows: Slice, stored: StoredCounts) -> list[dict[str, Integers]]:
        """Of a slice's activations, by partition: columns, categories as their places. stored: of its features."""
        first, last = np.searchsorted(self._features, [rows.start, rows.stop])
        features = self._features[first:last]
        if not len(features):
            return []
        place = np.full(rows.n_features, -1)
        place[features - rows.start] = np.arange(len(features))
        place_of_pair = place[rows.pair_feature]
        n_cells, by_category = A_BINS * G_BINS, self._partitions[1]
        row = by_category.of_documents[rows.pair_document] * len(features) + place_of_pair
        counts = joint_counts(
            rows.pairs, np.where(place_of_pair < 0, -1, row), place_of_pair, rows.a, rows.g[self._energy],
            self._a_edges[first:last], self._g_edges[first:last], len(by_category.strata) * len(features),
        )  # fmt: skip
        result = []
        for partition in self._partitions:
            own_counts = counts
            if partition.is_whole:
                own_counts = counts.reshape(-1, len(features), n_cells).sum(0)
            streamed = _streamed(stored, partition, features)
            # In a category only features that fire there.
            chosen = np.arange(len(own_counts)) if partition.is_whole else np.flatnonzero(own_counts.any(axis=1))
            lists = {"active": own_counts[chosen]} | {
                name: streamed[chosen, at : at + width]
                for (name, width), at in zip(STREAMED.items(), (0, G_BINS, G_BINS + n_cells), strict=True)
            }
            place_of = {"feature": features[chosen % len(features)], "stratum": chosen // len(features)}
            result.append(place_of | lists)
        return result

    def add(self, counts: Sequence[dict[str, Integers]]) -> None:
        """Take in a slice's counts; slices come in order."""
        for part, of_partition in zip(self._parts, counts, strict=False):
            part.append(of_partition)

    def frame(self) -> pl.DataFrame | None:
        """Rows of histogram_cells, by category and feature; None where no feature has edges."""
        frames = []
        for partition, parts, n_tokens, n_mates in zip(
            self._partitions, self._parts, self._n_tokens, self._n_mates, strict=True
        ):
            if not parts:
                continue
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            stratum, feature = columns.pop("stratum").astype(np.int64), columns.pop("feature")
            categories = pl.Series([s.category for s in partition.strata], dtype=pl.String)
            sizes = {"n_tokens": n_tokens[stratum], "mates_tokens": n_mates[stratum]}
            lists = {name: pl.Series(counts).arr.to_list() for name, counts in columns.items()}
            place = {"feature": feature.astype(np.int32), "category": categories.gather(stratum)}
            frames.append(pl.DataFrame(place | sizes | lists))
        if not frames:
            return None
        where = {"run_id": self._run.run_id, "layer": self._place["layer"], "energy": self._energy}
        named = {name: pl.lit(value) for name, value in where.items()}
        return pl.concat(frames).with_columns(**named).sort("category", "feature")


def _streamed(stored: StoredCounts, partition: Partition, features: Integers) -> Integers:
    """The stream's counts of features, [stratum and feature, cell of the histograms]."""
    within = slice(*np.searchsorted(stored.feature, [features[0], features[-1] + 1]))
    place = partition.of_cells[stored.cell[within]] * len(features) + np.searchsorted(features, stored.feature[within])
    counts = np.zeros((len(partition.strata) * len(features), stored.counts.shape[1]), dtype=np.int64)
    add_rows(counts, place, stored.counts[within])
    return counts
