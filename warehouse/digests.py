"""A stored plan in, what it is told by out: hashes of its documents, groups and calibration, and of rows of a table.

Two files hold the same plan when these agree, whoever made them and wherever their texts lie: paths are no part of a
hash. A plan grows at its end alone, so that of two that agree the shorter one is the beginning of the longer one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.warehouse.database import Warehouse

if TYPE_CHECKING:
    from energy_lens.warehouse.plan import Group

#: Tables that hold what every group of a run is measured by, with the order of their rows.
CALIBRATION = {
    "saes": ("layer",),
    "calibration": ("layer", "energy", "feature"),
    "activation_quartiles": ("layer", "feature"),
    "reference_rows": ("layer", "feature"),
}

#: What a plan knows of its documents, without where they lay when it was made; and of the place of each context.
_OF_DOCUMENTS = ("document_id", "category", "half", "sha256", "n_tokens", "n_contexts", "n_dropped_tokens")
_OF_CONTEXTS = ("context_id", "document_id", "context_index", "first_token", "n_tokens")
_OF_CELLS = ("row", "lane", *_OF_CONTEXTS)

_of_context = attrgetter(*_OF_CONTEXTS)

#: Of a hash.
_BYTES = hashlib.sha256().digest_size

#: Of the SAEs: which they are, and the constant that was measured with each.
_OF_SAES = ("layer", "sae_sha256", "norm_median")


@dataclass(frozen=True)
class PlanDigests:
    """A run's plan, hashed so that its beginnings can be compared."""

    documents: bytes  #: of all documents up to each one, one hash behind the other
    groups: tuple[str, ...]  #: of each group, by group_id

    @property
    def size(self) -> tuple[int, int]:
        """Its documents and groups."""
        return len(self.documents) // _BYTES, len(self.groups)

    @property
    def sha256(self) -> str:
        """Of the plan as a whole."""
        digest = hashlib.sha256(self.documents[-_BYTES:])
        digest.update("".join(self.groups).encode())
        return digest.hexdigest()

    def begins_with(self, other: PlanDigests) -> bool:
        """Whether another plan is this one, or was it before more documents were appended."""
        return self.documents.startswith(other.documents) and self.groups[: len(other.groups)] == other.groups


def plan_digests(warehouse: Warehouse, run_id: int) -> PlanDigests:
    """Those of a run as a warehouse holds it."""
    parts = (warehouse.run(f"merge/{name}", run=run_id).pl() for name in ("documents", "groups", "cells"))
    return _plan_digests(*parts)


def digests_of_tables(tables: Mapping[str, pl.DataFrame]) -> PlanDigests:
    """Those of a run as its tables hold it (`plan_tables.read_plan`)."""
    cells = tables["plan"].join(tables["contexts"], on="context_id").sort("group_id", "row", "lane")
    return _plan_digests(tables["documents"].sort("document_id"), tables["plan_groups"].sort("group_id"), cells)


def _plan_digests(documents: pl.DataFrame, groups: pl.DataFrame, cells: pl.DataFrame) -> PlanDigests:
    """documents and groups in order; cells: where the plan has each context, in order."""
    hashes = dict(documents.select("document_id", "sha256").iter_rows())
    ids, group_ids = groups["group_id"].to_numpy(), cells["group_id"].to_numpy()
    numbers = cells.select(_OF_CELLS).to_numpy()
    starts, ends = np.searchsorted(group_ids, ids), np.searchsorted(group_ids, ids, side="right")
    kinds = groups.select("group_id", "category", "half").iter_rows()
    of_groups = [
        _group_sha256(group_id, category, half, numbers[start:end], hashes)
        for (group_id, category, half), start, end in zip(kinds, starts, ends, strict=True)
    ]
    return PlanDigests(b"".join(_chained(documents.select(_OF_DOCUMENTS).iter_rows())), tuple(of_groups))


def group_sha256(group: Group, hashes: Mapping[int, str]) -> str:
    """What a group is planned to be: its contexts, where each stands in it, and their texts.

    hashes: document_id: sha256 of its text.
    """
    numbers = [
        (row, lane, *_of_context(context))
        for row, contexts in enumerate(group.rows)
        for lane, context in enumerate(contexts)
    ]
    return _group_sha256(group.group_id, group.category, group.half, np.array(numbers), hashes)


def _group_sha256(group_id: int, category: str, half: str, numbers: NDArray[Any], hashes: Mapping[int, str]) -> str:
    """numbers: [context, 7] row, lane, context_id, document_id, context_index, first_token and n_tokens, in order."""
    digest = hashlib.sha256(f"{group_id}\0{category}\0{half}\0".encode())
    digest.update(np.ascontiguousarray(numbers, dtype="<i8").data)
    for document_id in np.unique(numbers[:, _OF_CELLS.index("document_id")]).tolist():
        digest.update(hashes[document_id].encode())
    return digest.hexdigest()


def _chained(documents: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
    """A hash for each document, of it and all before it."""
    state = b""
    for facts in documents:
        state = hashlib.sha256(state + "\0".join(map(str, facts)).encode()).digest()
        yield state


def calibration_sha256(warehouse: Warehouse, run_id: int) -> str | None:
    """What a run's groups are measured by, to the last bit; None: it is not calibrated."""
    digest = hashlib.sha256()
    for table, keys in CALIBRATION.items():
        columns = ", ".join(_OF_SAES) if table == "saes" else "* EXCLUDE (run_id)"
        names = {"table": table, "columns": columns, "keys": ", ".join(keys)}
        frame = warehouse.run_formatted("merge/calibration", names, run=run_id).pl()
        if table == "calibration" and not len(frame):
            return None
        digest.update(content_sha256(frame).encode())
    return digest.hexdigest()


def content_sha256(frame: pl.DataFrame) -> str:
    """The sha256 of rows as they are, in order: names, types and values of the columns, whatever file they came from.

    A fixed-size array is a list here, since not every format tells them apart.
    """
    digest = hashlib.sha256()
    for column in frame.get_columns():
        digest.update(f"{column.name}\0{len(column)}\0".encode())
        for part in _parts(column.rechunk()):
            digest.update(part)
    return digest.hexdigest()


def _parts(column: pl.Series) -> Iterator[bytes | memoryview]:
    """Bytes that tell a column from every other."""
    kind = column.dtype
    if column.null_count():
        yield b"null"
        yield np.packbits(column.is_null().to_numpy()).data
        column = column.drop_nulls()
    if isinstance(kind, pl.Array):
        column = column.cast(pl.List(kind.inner))
        kind = column.dtype
    if isinstance(kind, pl.List):
        yield b"list"
        lengths = column.list.len()
        yield np.ascontiguousarray(lengths.cast(pl.Int64).to_numpy()).data
        yield from _parts(column.filter(lengths > 0).explode().rechunk())  # an empty list would become a NULL
        return
    yield str(kind).encode()
    if kind == pl.String:
        yield np.ascontiguousarray(column.str.len_bytes().cast(pl.Int64).to_numpy()).data
        yield "".join(column.to_list()).encode()
    elif kind == pl.Boolean:
        yield np.packbits(column.to_numpy()).data
    else:
        yield np.ascontiguousarray(column.to_physical().to_numpy()).data
