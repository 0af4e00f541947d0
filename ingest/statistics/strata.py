"""A run in; its contexts, documents and the strata for which statistics are made out: all, each category, each half.

Strata come in up to three partitions of the documents (all together, by category, by half), so that whatever is known
of a document or of a pair of document and feature enters one sum in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.warehouse.categories import ALL
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Mask = NDArray[np.bool_]

#: The name of both halves together, as ALL is of all categories.
BOTH = "AB"


def summed(values: NDArray[np.number] | Mask, place: NDArray[np.integer], n: int) -> Floats:
    """[n] sums of values whose places are given."""
    result: Floats = np.bincount(place, values, n).astype(np.float64, copy=False)
    return result


class Stratum(NamedTuple):
    """A combination of category and half."""

    category: str
    half: str


@dataclass(frozen=True)
class Partition:
    """Every document in one of several strata."""

    strata: list[Stratum]
    of_cells: Integers  #: [cell] place in strata
    of_documents: Integers  #: [document] place in strata

    @property
    def is_whole(self) -> bool:
        """Whether its one stratum is all documents."""
        return len(self.strata) == 1 and self.strata[0] == Stratum(ALL, BOTH)

    def of(self, by_cell: NDArray[np.number]) -> Floats:
        """[stratum, …] sums of by_cell [cell, …]."""
        sums = np.zeros((len(self.strata), *by_cell.shape[1:]))
        for stratum, of_cell in zip(self.of_cells.tolist(), by_cell, strict=True):
            sums[stratum] += of_cell
        return sums


@dataclass(frozen=True)
class Contexts:
    """Committed contexts, by context_id."""

    ids: Integers  #: [context] ascending
    document: Integers  #: [context] place among the run's documents, ascending
    row: Integers  #: [context] rows of the plan, numbered from 0
    following: Integers  #: [context] place of the row's next context, cyclic; −1 in a row of one


@dataclass(frozen=True)
class RunLayout:
    run_id: int
    context_length: int
    seed: int
    layers: list[int]
    energies: list[str]
    document_ids: Integers  #: [document] ascending
    cells: Integers  #: [document] its cell: a combination of category and half, numbered in the order of both
    group_ids: Integers  #: [committed group] ascending
    group_cells: Integers  #: [committed group] the same of its documents
    contexts: Contexts
    partitions: list[Partition]

    @property
    def n_cells(self) -> int:
        return len(self.partitions[0].of_cells)

    def by_cell(self, stored: pl.DataFrame, start: int, stop: int) -> tuple[Integers, Integers]:
        """Rows of features start … stop − 1 by feature and cell: which of them occur, and each row's place among them.

        stored: with feature and group_id. The first are feature times cells, plus cell [n], ascending; the last [row].
        """
        cell = self.group_cells[np.searchsorted(self.group_ids, stored["group_id"].to_numpy())]
        code = (stored["feature"].to_numpy().astype(np.int64) - start) * self.n_cells + cell
        occurs = np.zeros((stop - start) * self.n_cells, dtype=bool)
        occurs[code] = True
        codes = np.flatnonzero(occurs)
        place = np.empty(len(occurs), dtype=np.int32)
        place[codes] = np.arange(len(codes), dtype=np.int32)
        return codes + start * self.n_cells, place[code].astype(np.int64)


def read_run(warehouse: Warehouse, run_id: int) -> RunLayout:
    """The layout of the groups that are committed."""
    row = warehouse.run("finish/run", run=run_id).fetchone()
    assert row is not None
    context_length, seed, layers, energies = row
    groups = warehouse.run("finish/groups", run=run_id).fetchall()
    documents = warehouse.run("finish/documents", run=run_id).fetchall()
    kinds = sorted({(category, half) for _, category, half in groups})
    place = {kind: i for i, kind in enumerate(kinds)}
    cells = np.array([place[category, half] for _, category, half in documents], dtype=np.int64)
    group_cells = np.array([place[category, half] for _, category, half in groups], dtype=np.int64)

    def partition(kind_of_cell: list[Stratum]) -> Partition:
        strata = sorted(set(kind_of_cell))
        of_cell = np.array([strata.index(stratum) for stratum in kind_of_cell], dtype=np.int64)
        return Partition(strata, of_cell, of_cell[cells])

    partitions = [partition([Stratum(ALL, BOTH) for _ in kinds]), partition([Stratum(c, BOTH) for c, _ in kinds])]
    if len({half for _, half in kinds}) > 1:
        partitions.append(partition([Stratum(ALL, half) for _, half in kinds]))
    ids = np.array([document_id for document_id, _, _ in documents], dtype=np.int64)
    group_ids = np.array([group_id for group_id, _, _ in groups], dtype=np.int64)
    contexts = _contexts(warehouse, run_id, ids)
    return RunLayout(
        run_id, context_length, seed, list(layers), list(energies), ids, cells, group_ids, group_cells, contexts,
        partitions,
    )  # fmt: skip


def _contexts(warehouse: Warehouse, run_id: int, document_ids: Integers) -> Contexts:
    stored = warehouse.run("finish/contexts", run=run_id).numpy()
    columns = {name: np.asarray(values, dtype=np.int64) for name, values in stored.items()}
    n = len(columns["context_id"])
    order = np.lexsort((columns["lane"], columns["row"], columns["group_id"]))
    begins = np.diff(columns["group_id"][order], prepend=-1) | np.diff(columns["row"][order], prepend=-1)
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.append(starts, n))
    row, following, nexts = np.empty(n, np.int64), np.empty(n, np.int64), np.arange(1, n + 1)
    row[order] = np.repeat(np.arange(len(starts)), sizes)
    nexts[starts + sizes - 1] = starts
    following[order] = order[nexts]
    following[order[np.repeat(sizes == 1, sizes)]] = -1
    document = np.searchsorted(document_ids, columns["document_id"])
    return Contexts(columns["context_id"], document, row, following)
