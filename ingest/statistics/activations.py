"""A layer's stored activations in, a slice of its features at a time; sums by context, document and feature out.

A slice's activations are sorted by feature and token, so that those of a feature in a context (a cell) lie side by
side, and so do the contexts of a document (a pair of feature and document): `kernels` adds up such stretches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.kernels import stable_order
from energy_lens.ingest.statistics.strata import RunLayout
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.sql import gradient_column
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Activations that are read at once, and features times cells of the run.
READ_ACTIVATIONS, READ_NUMBERS = 6_000_000, 1_000_000

#: Activations that are worked on at once, and features times cells of the run.
SLICE_ACTIVATIONS, SLICE_NUMBERS = 100_000, 20_000


@dataclass(frozen=True)
class Slice:
    """Activations of some features of a layer, sorted by feature and token, and where stretches of them begin."""

    start: int  #: first feature
    stop: int
    feature: NDArray[np.int32]  #: [activation] counted from `start`
    place: NDArray[np.int32]  #: [activation] of its token
    a: NDArray[np.float32]  #: [activation]
    g: Mapping[str, NDArray[np.float32]]  #: energy: decoder gradient [activation]
    cells: Integers  #: [cell + 1] of a feature and context, among activations
    pairs: Integers  #: [pair + 1] of a feature and document, among activations
    cell_pairs: Integers  #: [pair + 1] of pairs among cells
    cell_features: Integers  #: [feature + 1] of all features among cells
    pair_features: Integers  #: [feature + 1] of all features among pairs
    cell_context: Integers  #: [cell]
    pair_feature: Integers  #: [pair] counted from `start`
    pair_document: Integers  #: [pair]

    @property
    def n_features(self) -> int:
        return self.stop - self.start


class Activations:
    """Stored activations of consecutive features of a layer."""

    def __init__(self, warehouse: Warehouse, run: RunLayout, tokens: Tokens, layer: int, start: int, stop: int) -> None:
        """Reads those of features start … stop − 1, with the decoder gradients of the run's energies."""
        self.start, self.stop = start, stop
        columns = {f"g{i}": gradient_column(energy) for i, energy in enumerate(run.energies)}
        gradients = "".join(f", {column} AS {name}" for name, column in columns.items())
        place_of = {"run": run.run_id, "layer": layer, "start": start, "stop": stop}
        stored = warehouse.run_formatted("finish/activations", {"gradients": gradients}, **place_of).numpy()
        feature, place = stored.pop("feature"), tokens.places(stored.pop("token_id"))
        order = activation_order(feature, place, start, stop - start)
        self._feature, self._place = feature[order], place[order]
        self._a = stored.pop("activation")[order]
        self._g = {energy: np.ma.filled(stored.pop(name), np.nan)[order]
                   for name, energy in zip(columns, run.energies, strict=True)}  # fmt: skip
        self._context_document, self._tokens = run.contexts.document, tokens
        self._n_cells = run.n_cells

    def slices(self) -> Iterator[Slice]:
        """All of them, so many at a time that a processor's cache holds the sums."""
        widest = max(1, SLICE_NUMBERS // max(1, self._n_cells))
        counts = np.bincount(self._feature - self.start, minlength=self.stop - self.start)
        for start, stop in _runs(counts, SLICE_ACTIVATIONS, widest):
            yield self._slice(self.start + start, self.start + stop)

    def _slice(self, start: int, stop: int) -> Slice:
        chosen = slice(*np.searchsorted(self._feature, [start, stop]))
        feature, place = self._feature[chosen] - start, self._place[chosen]
        context = self._tokens.context[place]
        document = self._context_document[context]
        cells, pairs = _starts(feature, context), _starts(feature, document)
        features, n = np.arange(stop - start + 1), len(feature)
        return Slice(
            start, stop, feature, place, self._a[chosen], {energy: g[chosen] for energy, g in self._g.items()},
            cells=np.append(cells, n), pairs=np.append(pairs, n),
            cell_pairs=np.append(np.searchsorted(cells, pairs), len(cells)),
            cell_features=np.searchsorted(feature[cells], features),
            pair_features=np.searchsorted(feature[pairs], features),
            cell_context=context[cells], pair_feature=feature[pairs].astype(np.int64), pair_document=document[pairs],
        )  # fmt: skip


def activation_order(feature: NDArray[np.int32], place: NDArray[np.int32], start: int, n_features: int) -> Integers:
    """By feature and token. Rows come by token within a feature, but for those of a file that is not elw's own."""
    order: Integers = stable_order(feature, start, n_features)
    ascending = (np.diff(place[order]) > 0) | (np.diff(feature[order]) > 0)
    if not ascending.all():
        order = np.lexsort((place, feature))
    return order


def ranges(warehouse: Warehouse, run: RunLayout, layer: int, d_sae: int) -> Iterator[tuple[int, int]]:
    """(first feature, one past the last) of the features of a layer that are read at once."""
    counted = warehouse.run("finish/active_counts", run=run.run_id, layer=layer).numpy()
    counts = np.zeros(d_sae, dtype=np.int64)
    counts[counted["feature"]] = counted["n_active"]
    return _runs(counts, READ_ACTIVATIONS, max(1, READ_NUMBERS // max(1, run.n_cells)))


def _runs(counts: Integers, most: int, widest: int) -> Iterator[tuple[int, int]]:
    """Consecutive features cut into runs of at most `most` activations and `widest` features, but at least one."""
    start, total = 0, 0
    for feature, count in enumerate(counts.tolist()):
        if feature > start and (total + count > most or feature - start >= widest):
            yield start, feature
            start, total = feature, 0
        total += count
    yield start, len(counts)


def _starts(feature: NDArray[np.integer], other: NDArray[np.integer]) -> Integers:
    """Where stretches of equal feature and `other` begin."""
    begins = (np.diff(feature, prepend=-1) != 0) | (np.diff(other, prepend=-1) != 0)
    starts: Integers = np.flatnonzero(begins)
    return starts
