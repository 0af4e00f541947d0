"""A layer's activations in; histograms of them and example tokens, the strongest and some of every strength, out.

Of a context only one token stands for it among the strongest, and one in each interval: twenty examples are twenty
contexts. Which of an interval's tokens are shown is drawn by a hash of token and seed, so that it depends neither on
how features are cut into slices nor on what else is in the run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.compiled import compiled
from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

Integers = NDArray[np.int64]

#: Bins of a histogram, as SAEDashboard has them.
N_BINS = 50

#: Examples among the strongest activations, intervals of equal width between 0 and the largest one, examples of each.
N_TOP, N_INTERVALS, N_OF_INTERVAL = 20, 5, 5


class Examples(NamedTuple):
    """Of the features of a slice; −1 where there is no example."""

    low: NDArray[np.float32]  #: [feature] smallest activation; 0 where it never fires
    high: NDArray[np.float32]  #: [feature] largest
    histogram: NDArray[np.int32]  #: [feature, bin]
    top: Integers  #: [feature, example] places among the slice's activations
    sizes: Integers  #: [feature, interval] tokens in it
    drawn: Integers  #: [feature, interval, example] places among the slice's activations


class FeatureExamples:
    """Gathers the features of a layer slice by slice."""

    def __init__(self, tokens: Tokens, seed: int) -> None:
        self._tokens, self._seed = tokens, seed
        self._histograms: list[pl.DataFrame] = []
        self._intervals: list[pl.DataFrame] = []

    def of(self, rows: Slice) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """Of a slice's features that fire: their histograms and their examples, as the tables have them."""
        ids = self._tokens.ids[rows.place]
        found = Examples(*examples(rows.a, ids, rows.cells, rows.cell_features, np.uint64(self._seed)))
        fires = np.flatnonzero(found.high > 0)
        if not len(fires):
            return None
        feature = (fires + rows.start).astype(np.int32)
        histograms = pl.DataFrame({
            "feature": feature, "low": found.low[fires], "high": found.high[fires],
            "counts": pl.Series(found.histogram[fires].tolist(), dtype=pl.List(pl.Int32)),
        })  # fmt: skip
        top = _told(found.top[fires], rows.a, ids)
        weakest = [rows.a[chosen[chosen >= 0]].min() for chosen in found.top[fires]]
        frames = [
            pl.DataFrame({
                "feature": feature, "interval": np.zeros(len(fires), dtype=np.int16),
                "low": np.array(weakest, dtype=np.float32), "high": found.high[fires],
                "n_tokens": found.sizes[fires].sum(1), "token_ids": top,
            })
        ]  # fmt: skip
        for i in range(N_INTERVALS):
            share = found.high[fires].astype(np.float64) / N_INTERVALS
            frames.append(
                pl.DataFrame({
                    "feature": feature, "interval": np.full(len(fires), i + 1, dtype=np.int16),
                    "low": (share * i).astype(np.float32), "high": (share * (i + 1)).astype(np.float32),
                    "n_tokens": found.sizes[fires, i], "token_ids": _told(found.drawn[fires, i], rows.a, ids),
                })
            )  # fmt: skip
        return histograms, pl.concat(frames)

    def add(self, part: tuple[pl.DataFrame, pl.DataFrame] | None) -> None:
        """Take in what `of` made of a slice."""
        if part is not None:
            self._histograms.append(part[0])
            self._intervals.append(part[1])

    def store(self, warehouse: Warehouse, run_id: int, layer: int) -> None:
        """Fill activation_histogram and activation_intervals of the layer. Call within a transaction."""
        for table, parts, order in (
            ("activation_histogram", self._histograms, ("feature",)),
            ("activation_intervals", self._intervals, ("feature", '"interval"')),
        ):
            if parts:
                frame = pl.concat(parts).with_columns(run_id=pl.lit(run_id), layer=pl.lit(layer))
                warehouse.append(table, frame.sort([name.strip('"') for name in order]))


def _told(chosen: Integers, a: NDArray[np.float32], ids: Integers) -> pl.Series:
    """[feature] token ids of places [feature, example], the strongest first, of equal ones the earlier."""
    told = []
    for places in chosen:
        places = places[places >= 0]
        told.append(ids[places[np.lexsort((ids[places], -a[places]))]].tolist())
    return pl.Series(told, dtype=pl.List(pl.Int64))


@compiled
def examples(
    a: NDArray[np.float32], ids: Integers, cells: Integers, cell_features: Integers, seed: np.uint64
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], Integers, Integers, Integers]:
    """The fields of Examples.

    a: [activation], sorted by feature and token. ids: [activation] of tokens. cells: [cell + 1] bounds of a feature's
    activations in one context. cell_features: [feature + 1] bounds of features among cells.
    """
    n = len(cell_features) - 1
    low, high = np.zeros(n, dtype=np.float32), np.zeros(n, dtype=np.float32)
    histogram = np.zeros((n, N_BINS), dtype=np.int32)
    top = np.full((n, N_TOP), -1, dtype=np.int64)
    sizes = np.zeros((n, N_INTERVALS), dtype=np.int64)
    drawn = np.full((n, N_INTERVALS, N_OF_INTERVAL), -1, dtype=np.int64)
    hashes = np.zeros((N_INTERVALS, N_OF_INTERVAL), dtype=np.uint64)
    best_hash = np.zeros(N_INTERVALS, dtype=np.uint64)
    best_place = np.zeros(N_INTERVALS, dtype=np.int64)
    for feature in range(n):
        first, last = cells[cell_features[feature]], cells[cell_features[feature + 1]]
        if first == last:
            continue
        low[feature], high[feature] = a[first:last].min(), a[first:last].max()
        largest = np.float64(high[feature])
        width = (largest - np.float64(low[feature])) / N_BINS
        n_top = 0
        n_drawn = np.zeros(N_INTERVALS, dtype=np.int64)
        for cell in range(cell_features[feature], cell_features[feature + 1]):
            strongest = cells[cell]
            best_place[:] = -1
            for i in range(cells[cell], cells[cell + 1]):
                value = np.float64(a[i])
                bin_ = int((value - np.float64(low[feature])) / width) if width > 0 else 0
                histogram[feature, min(bin_, N_BINS - 1)] += 1
                interval = min(int(value / largest * N_INTERVALS), N_INTERVALS - 1)
                sizes[feature, interval] += 1
                if a[i] > a[strongest]:
                    strongest = i
                # splitmix64: Steele, Lea and Flood 2014
                mixed = np.uint64(ids[i]) + (seed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
                mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                mixed = mixed ^ (mixed >> np.uint64(31))
                if best_place[interval] < 0 or mixed < best_hash[interval]:
                    best_place[interval], best_hash[interval] = i, mixed
            n_top = _inserted_top(top[feature], n_top, strongest, a)
            for interval in range(N_INTERVALS):
                if best_place[interval] >= 0:
                    n_drawn[interval] = _inserted_drawn(
                        drawn[feature, interval], hashes[interval], n_drawn[interval], best_place[interval],
                        best_hash[interval],
                    )  # fmt: skip
    return low, high, histogram, top, sizes, drawn


@compiled
def _inserted_top(kept: Integers, n: int, place: int, a: NDArray[np.float32]) -> int:
    """Put a place among those kept, which are the strongest, largest first; returns how many there are."""
    if n == len(kept) and a[place] <= a[kept[n - 1]]:
        return n
    at = n if n < len(kept) else n - 1
    while at > 0 and a[kept[at - 1]] < a[place]:
        kept[at] = kept[at - 1]
        at -= 1
    kept[at] = place
    return min(n + 1, len(kept))


@compiled
def _inserted_drawn(kept: Integers, hashes: NDArray[np.uint64], n: int, place: int, hash_: np.uint64) -> int:
    """Put a place among those kept, which are of the smallest hashes, smallest first; returns how many there are."""
    if n == len(kept) and hash_ >= hashes[n - 1]:
        return n
    at = n if n < len(kept) else n - 1
    while at > 0 and hashes[at - 1] > hash_:
        kept[at], hashes[at] = kept[at - 1], hashes[at - 1]
        at -= 1
    kept[at], hashes[at] = place, hash_
    return min(n + 1, len(kept))
