"""Stored sums along a layer's shared directions in, the test of the direction out, slice by slice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.columns import Columns
from energy_lens.ingest.statistics.directions import Sizes, direction_test, random_probes, read_references, unpacked
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.strata import Partition, RunLayout
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Stored rows that are unpacked at once: 64 kB numbers, which a cache holds.
CHUNK = 512


class AlongDirections:
    """The shared directions of one layer, and sums along them for one energy."""

    def __init__(
        self, warehouse: Warehouse, run: RunLayout, layer: int, energy: str, decoder: NDArray[np.floating]
    ) -> None:
        self._warehouse, self._run, self._decoder = warehouse, run, decoder
        self._place = {"run": run.run_id, "layer": layer, "energy": energy}
        self._references = read_references(warehouse, run.run_id, layer)
        self._probes = random_probes(decoder.shape[1], run.seed, layer).numpy().astype(np.float64)
        self._reference_gc2 = self._spread_of_references()
        self._read: tuple[int, Integers, Floats] | None = None

    def test(self, keys: Keys, partition: Partition, rows: Slice, columns: Columns) -> Columns:
        """t_specific, p_specific, p_reference, cosine [key]; columns: those of the keys so far."""
        result = {name: np.full(len(keys), np.nan) for name in ("t_specific", "p_specific", "p_reference", "cosine")}
        code, along = self._sums(rows)
        if not len(code):
            return result
        n_cells = len(partition.of_cells)
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
            sum_s, sum_gc2 = (np.zeros(len(self._decoder)) for _ in range(2))
            sum_gc2[self._references] = reference_gc2[s]
            sum_s[features], sum_gc2[features] = columns["sum_s"][at], columns["sum_gc2"][at]
            sizes = Sizes(self._decoder, self._references, self._probes, sum_s, sum_gc2)
            for column, values in zip(result.values(), direction_test(sizes, features, sums[own]), strict=True):
                column[at] = values
        return result

    def _sums(self, rows: Slice) -> tuple[Integers, Floats]:
        """Sums [n, direction] over the groups of a cell, and what they are of [n]: feature of the slice times cells,
        plus cell; ascending.
        """
        if self._read is None or self._read[0] != rows.start:
            self._read = rows.start, *self._summed(rows)
        return self._read[1:]

    def _summed(self, rows: Slice) -> tuple[Integers, Floats]:
        bounds = {"start": rows.start, "stop": rows.stop}
        stored = self._warehouse.frame("finish/direction_sums", **self._place, **bounds)
        if not len(stored):
            return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
        cell = self._run.group_cells[np.searchsorted(self._run.group_ids, stored["group_id"].to_numpy())]
        n_cells = int(self._run.group_cells.max()) + 1
        code = (stored["feature"].to_numpy().astype(np.int64) - rows.start) * n_cells + cell
        order = np.argsort(code, kind="stable")
        codes = stored["along"].explode().to_numpy().reshape(len(code), -1)
        scale = stored["scale"].to_numpy()
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        bounds_of = np.append(starts, len(code))
        sums = np.zeros((len(starts), codes.shape[1]))
        first = 0
        while first < len(starts):
            last = max(first + 1, int(np.searchsorted(bounds_of, bounds_of[first] + CHUNK, side="right")) - 1)
            chunk = order[bounds_of[first] : bounds_of[last]]
            numbers = unpacked(scale[chunk], codes[chunk])
            sums[first:last] = np.add.reduceat(numbers, bounds_of[first:last] - bounds_of[first])
            first = last
        return code[order][starts], sums

    def _spread_of_references(self) -> Floats:
        """d_kᵀ(Σ∇̃∇̃ᵀ)d_k [cell, reference]."""
        stored = self._warehouse.run("finish/reference_spreads", **self._place).numpy()
        spread = np.zeros((int(self._run.group_cells.max(initial=-1)) + 1, len(self._references)))
        spread[stored["cell"], np.searchsorted(self._references, stored["feature"])] = stored["sum_gc2"]
        return spread
