"""Stored sums along a layer's shared directions in, the test of the direction out, slice by slice."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.columns import Columns
from energy_lens.ingest.statistics.directions import (
    DecoderRows,
    Sizes,
    direction_test,
    random_probes,
    read_references,
)
from energy_lens.ingest.statistics.kernels import unpacked_sums
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.strata import Partition, RunLayout
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class DirectionSums(NamedTuple):
    """Sums along the directions of some features."""

    codes: Integers  #: [n] a feature times cells, plus cell, ascending
    sums: Floats  #: [n, direction]


class AlongDirections:
    """The shared directions of one layer, and sums along them for one energy."""

    def __init__(
        self, warehouse: Warehouse, run: RunLayout, layer: int, energy: str, decoder: NDArray[np.floating]
    ) -> None:
        self._warehouse, self._run = warehouse, run
        self._place = {"run": run.run_id, "layer": layer, "energy": energy}
        self._references = read_references(warehouse, run.run_id, layer)
        probes = random_probes(decoder.shape[1], run.seed, layer).numpy().astype(np.float64)
        self._rows = DecoderRows(decoder, self._references, probes)
        self._reference_gc2 = self._spread_of_references()

    def read(self, start: int, stop: int) -> DirectionSums:
        """Sums over the groups of each cell, of features start … stop − 1."""
        stored = self._warehouse.frame("finish/direction_sums", **self._place, start=start, stop=stop)
        if not len(stored):
            return DirectionSums(np.zeros(0, dtype=np.int64), np.zeros((0, 0)))
        codes, place = self._run.by_cell(stored, start, stop)
        packed = stored["along"].explode().to_numpy().reshape(len(stored), -1)
        return DirectionSums(codes, unpacked_sums(place, stored["scale"].to_numpy(), packed, len(codes)))

    def test(self, keys: Keys, partition: Partition, rows: Slice, columns: Columns, stored: DirectionSums) -> Columns:
        """t_specific, p_specific, p_reference, cosine [key]; columns: those of the keys so far."""
        result = {name: np.full(len(keys), np.nan) for name in ("t_specific", "p_specific", "p_reference", "cosine")}
        n_cells = len(partition.of_cells)
        within = slice(*np.searchsorted(stored.codes, [rows.start * n_cells, rows.stop * n_cells]))
        code, along = stored.codes[within] - rows.start * n_cells, stored.sums[within]
        if not len(code):
            return result
        feature, stratum = code // n_cells, partition.of_cells[code % n_cells]
        order = np.lexsort((feature, stratum))
        joint = stratum[order] * rows.n_features + feature[order]
        starts = np.flatnonzero(np.diff(joint, prepend=-1))
        sums = np.add.reduceat(along[order], starts)
        found_feature, found_stratum = joint[starts] % rows.n_features, joint[starts] // rows.n_features
        place = np.full((len(partition.strata), rows.n_features), -1)
        place[keys.stratum, keys.feature] = np.arange(len(keys))
        reference_gc2 = partition.of(self._reference_gc2)
        for s in np.unique(found_stratum):
            own = np.flatnonzero((found_stratum == s) & (place[found_stratum, found_feature] >= 0))
            at, features = place[s, found_feature[own]], found_feature[own] + rows.start
            sum_s, sum_gc2 = (np.zeros(len(self._rows.decoder)) for _ in range(2))
            sum_gc2[self._references] = reference_gc2[s]
            sum_s[features], sum_gc2[features] = columns["sum_s"][at], columns["sum_gc2"][at]
            sizes = Sizes(self._rows, sum_s, sum_gc2)
            for column, values in zip(result.values(), direction_test(sizes, features, sums[own]), strict=True):
                column[at] = values
        return result

    def _spread_of_references(self) -> Floats:
        """d_kᵀ(Σ∇̃∇̃ᵀ)d_k [cell, reference]."""
        stored = self._warehouse.run("finish/reference_spreads", **self._place).numpy()
        spread = np.zeros((self._run.n_cells, len(self._references)))
        spread[stored["cell"], np.searchsorted(self._references, stored["feature"])] = stored["sum_gc2"]
        return spread
