"""A run's documents and stored sums in, sums of each combination of category and half out: what finish works on.

Sums come from SQL, by feature and document, by feature and cell (category and half), or along shared directions; here
they are laid out densely over documents, a chunk of features at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.directions import Sizes, direction_test, random_probes, read_references, unpacked
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]

#: The name of all categories, or of both halves, together.
ALL, BOTH = "all", "AB"

#: Numbers in one documents x features array.
CHUNK_NUMBERS = 4_000_000


@dataclass
class Stratum:
    """A combination of category and half, with its documents."""

    category: str
    half: str
    documents: NDArray[np.bool_]


@dataclass
class RunLayout:
    run_id: int
    context_length: int
    seed: int
    layers: list[int]
    energies: list[str]
    document_ids: NDArray[np.int64]
    strata: list[Stratum]


def read_run(warehouse: Warehouse, run_id: int) -> RunLayout:
    row = warehouse.run("finish/run", run=run_id).fetchone()
    assert row is not None
    documents = warehouse.run("finish/documents", run=run_id).fetchall()
    ids = np.array([document_id for document_id, _, _ in documents], dtype=np.int64)
    categories = np.array([category for _, category, _ in documents], dtype=object)
    halves = np.array([half for _, _, half in documents], dtype=object)
    everything = np.ones(len(ids), dtype=bool)
    strata = [Stratum(ALL, BOTH, everything)]
    strata += [Stratum(str(c), BOTH, categories == c) for c in sorted(set(categories))]
    if len(set(halves)) > 1:
        strata += [Stratum(ALL, str(h), halves == h) for h in sorted(set(halves))]
    context_length, seed, layers, energies = row
    return RunLayout(run_id, context_length, seed, list(layers), list(energies), ids, strata)


def is_of(stratum: Stratum, category: NDArray[np.generic], half: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which of several cells belong to a stratum."""
    chosen = np.ones(len(category), dtype=bool)
    if stratum.category != ALL:
        chosen &= category == stratum.category
    if stratum.half != BOTH:
        chosen &= half == stratum.half
    return chosen


def chunks(d_sae: int, n_documents: int) -> Iterator[slice]:
    size = max(1, CHUNK_NUMBERS // max(1, n_documents))
    for start in range(0, d_sae, size):
        yield slice(start, min(start + size, d_sae))


# ------------------------------------------------------------------------------------------------ stored sums


def document_gradients(
    warehouse: Warehouse, run: RunLayout, layer: int, energy: str, d_model: int
) -> tuple[Floats, Floats, Floats]:
    """Included tokens and Σ‖∇‖² [document], and Σ∇ [document, d_model], summed in group order."""
    n_tokens, norm2 = np.zeros(len(run.document_ids)), np.zeros(len(run.document_ids))
    gradients = np.zeros((len(run.document_ids), d_model))
    place = {document_id: i for i, document_id in enumerate(run.document_ids.tolist())}
    result = warehouse.run("finish/document_sums", run=run.run_id, layer=layer, energy=energy)
    while batch := result.fetchmany(1_000):
        for document_id, _, n, gradient_sum, sum_norm2 in batch:
            n_tokens[place[document_id]] += n
            norm2[place[document_id]] += sum_norm2
            gradients[place[document_id]] += gradient_sum
    return n_tokens, norm2, gradients


class SumsByDocument:
    """Sums by feature and document from SQL, made dense for a chunk of features at a time."""

    def __init__(self, columns: Mapping[str, NDArray[np.generic]], run: RunLayout) -> None:
        self._features = np.asarray(columns["feature"])  # sorted
        self._documents = np.searchsorted(run.document_ids, np.asarray(columns["document_id"]))
        # sum_a2h2 is NULL without probes: NaN here.
        self._values = {
            name: np.ma.filled(np.ma.asarray(v).astype(np.float64), np.nan)
            for name, v in columns.items()
            if name not in ("feature", "document_id")
        }
        self._n_documents = len(run.document_ids)

    def dense(self, features: slice) -> dict[str, Floats]:
        """Each column as [document, feature]; `seen` is 1 where there is a row."""
        start, stop = np.searchsorted(self._features, [features.start, features.stop])
        rows, columns = self._documents[start:stop], self._features[start:stop] - features.start
        result = {}
        for name, values in {**self._values, "seen": np.ones(len(self._features))}.items():
            result[name] = np.zeros((self._n_documents, features.stop - features.start))
            result[name][rows, columns] = values[start:stop]
        return result


class SumsByCell:
    """Stream sums by feature, for each category and half."""

    WITHIN = ("n_counted", "n_counted_contexts", "sum_gc2", "sum_s", "sum_s2", "null_s", "null_s2", "sum_a2h2")

    def __init__(self, columns: Mapping[str, NDArray[np.generic]]) -> None:
        # sum_a2h2 is NULL without probes: a masked array, whose gaps become NaN here and NULL again in the frame.
        self._columns = {
            name: np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
            for name, values in columns.items()
            if name not in ("category", "half", "feature")
        }
        self._category, self._half = np.asarray(columns["category"]), np.asarray(columns["half"])

    def of(self, stratum: Stratum, features: slice) -> dict[str, Floats]:
        """Sums of one stratum by feature."""
        chosen = is_of(stratum, self._category, self._half)
        n_parts = len({*zip(self._category[chosen], self._half[chosen], strict=True)})
        return {name: values[chosen].reshape(n_parts, -1)[:, features].sum(0) for name, values in self._columns.items()}


class SumsAlongDirections:
    """Sums along the shared directions of a layer, for one energy."""

    def __init__(
        self, warehouse: Warehouse, run: RunLayout, layer: int, energy: str, rows: NDArray[np.floating]
    ) -> None:
        stored = warehouse.run("finish/direction_sums", run=run.run_id, layer=layer, energy=energy).numpy()
        self._feature = np.asarray(stored["feature"], dtype=np.int64)  # sorted
        self._category, self._half = np.asarray(stored["category"]), np.asarray(stored["half"])
        self._scale = np.asarray(stored["scale"])
        self._codes = np.stack(stored["along"]) if len(self._feature) else np.zeros((0, 0), dtype=np.int8)
        self._rows = rows
        self._references = read_references(warehouse, run.run_id, layer)
        self._probes = random_probes(rows.shape[1], run.seed, layer).numpy().astype(np.float64)

    def test(self, stratum: Stratum, sum_s: Floats, sum_gc2: Floats) -> dict[str, Floats]:
        """Columns of the test of the direction, by feature; sum_s and sum_gc2 [feature] are the stratum's."""
        chosen = np.flatnonzero(is_of(stratum, self._category, self._half))
        columns = {name: np.full(len(sum_s), np.nan) for name in ("t_specific", "p_specific", "p_reference", "cosine")}
        if not len(chosen):
            return columns
        starts = np.flatnonzero(np.diff(self._feature[chosen], prepend=-1))
        features = self._feature[chosen][starts]
        along = np.add.reduceat(unpacked(self._scale[chosen], self._codes[chosen]), starts)
        sizes = Sizes(self._rows, self._references, self._probes, sum_s, sum_gc2)
        found = direction_test(sizes, features, along)
        for column, values in zip(columns.values(), found, strict=True):
            column[features] = values
        return columns
