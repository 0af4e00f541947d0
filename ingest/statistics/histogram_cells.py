"""Stored activations and the stream's counts in, joint histograms of a layer and energy by feature and category out."""

from __future__ import annotations

from collections.abc import Sequence

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

    def read(self, start: int, stop: int) -> None:
        """What the stream counted of features start … stop − 1, for the slices that come next."""
        stored = self._warehouse.frame("finish/histogram_counts", **self._place, start=start, stop=stop)
        self._stored_features = stored["feature"].to_numpy().astype(np.int64)
        group = np.searchsorted(self._run.group_ids, stored["group_id"].to_numpy())
        self._stored_cells = self._run.group_cells[group]
        self._stored = np.concatenate(
            [stored[name].explode().to_numpy().reshape(-1, width) for name, width in STREAMED.items()], axis=1
        )

    def counts(self, rows: Slice) -> list[dict[str, Integers]]:
        """Of a slice's activations, by partition: columns, categories as their places."""
        first, last = np.searchsorted(self._features, [rows.start, rows.stop])
        features = self._features[first:last]
        if not len(features):
            return []
        n_cells = A_BINS * G_BINS
        cell = np.zeros(len(rows.a), dtype=np.int64)
        starts = rows.pairs.bounds[rows.pair_features.bounds]
        for i, feature in enumerate(features - rows.start):
            own = slice(starts[feature], starts[feature + 1])
            # As many edges are below a value as there are places to the left of it.
            a_bins = np.searchsorted(self._a_edges[first + i], rows.a[own])
            cell[own] = G_BINS * a_bins + np.searchsorted(self._g_edges[first + i], rows.g[self._energy][own])
        place = np.full(rows.n_features, -1)
        place[features - rows.start] = np.arange(len(features))
        n_in_pair, place_of_pair = np.diff(rows.pairs.bounds), place[rows.pair_feature]
        used = np.repeat(place_of_pair >= 0, n_in_pair)
        result = []
        for partition in self._partitions:
            pair_code = partition.of_documents[rows.pair_document] * len(features) + place_of_pair
            code = (np.repeat(pair_code, n_in_pair) * n_cells + cell)[used]
            n_codes = len(partition.strata) * len(features) * n_cells
            own_counts = np.bincount(code, minlength=n_codes).reshape(-1, n_cells)
            streamed = self._streamed(partition, features)
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
