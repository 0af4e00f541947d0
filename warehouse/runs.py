"""Settings in, the run that they name out: what makes two ingests the same run, and what a warehouse knows of one.

A run's identity is the hash of everything that its numbers depend on. Paths, batch size, --max-tokens and output are
no part of it, so an ingest with another of these continues the run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from energy_lens.errors import WarehouseError
from energy_lens.sql import gradient_column
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import MIN_DOCUMENT, MIN_TAIL, Context, Group, PlannedDocument
from energy_lens.warehouse.quality import insert_saes
from energy_lens.warehouse.run_rows import give_id

#: Version of what the stream accumulates; raise it when stored numbers change their meaning.
STATISTICS_VERSION = 3

#: Rows of a plan, of which there are millions for 1 GB of text, that are handed to or had from DuckDB at once.
ROWS_AT_ONCE = 100_000


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run's numbers depend on, apart from its documents."""

    model_sha256: str
    tokenizer_sha256: str
    context_length: int
    saes: Mapping[int, str]  #: layer: sha256 of the SAE's weights
    energies: Mapping[str, int | str]  #: name: version, and what else its numbers depend on
    dtype: str  #: float32 or bfloat16
    seed: int
    store_gradients: bool
    probes: int = 0
    min_tail: int = MIN_TAIL
    min_document: int = MIN_DOCUMENT
    statistics_version: int = STATISTICS_VERSION
    bos: bool = False  #: whether every context begins with BOS
    #: Of the model; empty where its weights' file holds the configuration, or a run is older.
    configuration_sha256: str = ""
    generation: int = 0  #: raised by --new-run, to start afresh with equal settings

    def as_json(self) -> str:
        """Canonical JSON: equal settings give equal text; what came later is left out at its first value."""
        settings = asdict(self)
        for name in ("bos", "configuration_sha256"):
            if not settings[name]:
                del settings[name]
        return json.dumps(settings, sort_keys=True)

    @property
    def identity(self) -> str:
        return hashlib.sha256(self.as_json().encode()).hexdigest()


@dataclass(frozen=True)
class StoredDocument:
    """A document as the warehouse knows it."""

    document_id: int
    path: str
    category: str
    half: str
    sha256: str
    source: str
    n_contexts: int


@dataclass(frozen=True)
class StoredRun:
    """A run's plan and how far it was carried out."""

    run_id: int
    identity: str  #: of its settings
    created_at: datetime  #: UTC
    dtype: str
    segment_contexts: int
    documents: Mapping[str, StoredDocument]  #: by sha256
    n_contexts: int
    groups: Sequence[Group]  #: in order
    committed: frozenset[int]  #: group ids
    staged: frozenset[int]  #: ids of groups that are finished and lie in a stage
    norm_medians: Mapping[int, float]  #: by layer
    calibrated: bool
    stats_groups: int

    @cached_property
    def by_id(self) -> Mapping[int, StoredDocument]:
        """Its documents by document_id."""
        return {document.document_id: document for document in self.documents.values()}

    @property
    def committed_tokens(self) -> int:
        return sum(group.n_tokens for group in self.groups if group.group_id in self.committed)

    @property
    def done_tokens(self) -> int:
        """Tokens of the groups that need not be computed any more."""
        return sum(group.n_tokens for group in self.groups if group.group_id in self.done)

    @cached_property
    def done(self) -> frozenset[int]:
        """Ids of groups that need not be computed any more."""
        return self.committed | self.staged


def find_run(warehouse: Warehouse, identity: str) -> StoredRun | None:
    """The run of that identity, with its plan; None when there is none."""
    row = warehouse.run("ingest/find_run", identity=identity).fetchone()
    if row is None:
        return None
    run_id, dtype, segment_contexts, stats_groups, calibrated, created_at = row
    documents = [StoredDocument(*row) for row in warehouse.run("ingest/documents", run=run_id).fetchall()]
    groups, committed, staged, n_contexts = _read_groups(warehouse, run_id)
    medians = warehouse.run("ingest/norm_medians", run=run_id).fetchall()
    by_hash = {document.sha256: document for document in documents}
    return StoredRun(
        run_id, identity, created_at, dtype, segment_contexts, by_hash, n_contexts, groups, committed, staged,
        dict(medians), calibrated, stats_groups,
    )  # fmt: skip


def open_again(db: Path, run: StoredRun, wait_seconds: float | None = None) -> Warehouse:
    """The warehouse that a run is planned in, open to write.

    Raises WarehouseError when the file is gone, or is another one that does not hold that very run.
    """
    ended = "was removed or replaced while its ingest was under way: bring it back and run the command again."
    if not os.path.exists(db):
        raise WarehouseError(f"{db} {ended}")
    warehouse = Warehouse(db, writable=True, create=False, wait_seconds=wait_seconds)
    try:
        which = {"run": run.run_id, "identity": run.identity, "created_at": run.created_at}
        if not warehouse.run("ingest/is_planned", **which).value():
            raise WarehouseError(f"{db} no longer holds run {run.run_id}: it {ended}")
    except BaseException:
        warehouse.close()
        raise
    return warehouse


def latest_generation(warehouse: Warehouse, settings: RunSettings) -> int:
    """The highest generation of runs that differ from these settings in nothing else; 0 when there is none."""
    wanted = json.loads(settings.as_json())
    generations = [0]
    for (text,) in warehouse.sql("SELECT settings FROM runs").fetchall():
        stored = json.loads(text)
        if {**stored, "generation": 0} == {**wanted, "generation": 0}:
            generations.append(int(stored["generation"]))
    return max(generations)


def _read_groups(warehouse: Warehouse, run_id: int) -> tuple[list[Group], frozenset[int], frozenset[int], int]:
    head = warehouse.run("ingest/groups", run=run_id).fetchall()
    cells: dict[int, dict[int, list[Context]]] = {group_id: {} for group_id, *_ in head}
    n_contexts = 0
    plan = warehouse.run("ingest/plan", run=run_id)
    while some := plan.fetchmany(ROWS_AT_ONCE):
        n_contexts += len(some)
        for group_id, row, *context in some:
            cells[group_id].setdefault(row, []).append(Context(*context))
    groups = [
        Group(group_id, category, half, tuple(tuple(row) for _, row in sorted(cells[group_id].items())))
        for group_id, category, half, *_ in head
    ]
    committed = frozenset(group_id for group_id, _, _, is_committed, _ in head if is_committed)
    staged = frozenset(group_id for group_id, *_, is_staged in head if is_staged)
    return groups, committed, staged, n_contexts


def add_gradient_columns(warehouse: Warehouse, energies: Iterable[str]) -> None:
    """Give `activations` a column g_<energy> for each energy that has none yet. Call within a transaction."""
    known = {name for (name,) in warehouse.run("ingest/activation_columns").fetchall()}
    for energy in energies:
        if f"g_{energy}" in known:
            continue
        column = gradient_column(energy)
        comment = f"The same for the energy {energy}; NULL in a run without it."
        warehouse.sql(f"ALTER TABLE activations ADD COLUMN IF NOT EXISTS {column} FLOAT")
        warehouse.sql(f"COMMENT ON COLUMN activations.{column} IS '{comment}'")


def create_run(
    warehouse: Warehouse,
    settings: RunSettings,
    model: Mapping[str, Any],
    saes: Sequence[Mapping[str, Any]],
    energies: Sequence[Mapping[str, Any]],
    segment_contexts: int,
    version: str,
) -> int:
    """Insert a run, its model, its energies and its SAEs with the figures they carry; returns its id.

    energies: rows of `run_energies` in the order of settings.energies, as Energy.facts gives them.
    Call within a transaction.
    """
    run_id = give_id(warehouse)
    warehouse.run(
        "ingest/create_run", run=run_id, identity=settings.identity, settings=settings.as_json(), version=version,
        model=model["name"], model_sha256=settings.model_sha256, tokenizer_sha256=settings.tokenizer_sha256,
        vocabulary_size=model["vocabulary_size"], n_layers=model["n_layers"], d_model=model["d_model"],
        context_length=settings.context_length, segment_contexts=segment_contexts, layers=sorted(settings.saes),
        energies=list(settings.energies), energy_units=[energy["units"] for energy in energies],
        dtype=settings.dtype, seed=settings.seed, store_gradients=settings.store_gradients, has_bos=settings.bos,
    )  # fmt: skip
    warehouse.run("ingest/create_model", model_sha256=settings.model_sha256, **model)
    rows = [{"run_id": run_id, "position": position, **energy} for position, energy in enumerate(energies)]
    warehouse.append("run_energies", pl.DataFrame(rows))
    insert_saes(warehouse, run_id, saes)
    return run_id


def append_plan(
    warehouse: Warehouse,
    run_id: int,
    documents: Sequence[PlannedDocument],
    details: Mapping[int, Mapping[str, Any]],
    groups: Sequence[Group],
) -> None:
    """Insert documents, their aliases and contexts, and the groups that process them. Call within a transaction.

    details: document_id: path, source, aliases, n_bytes, n_tokens and n_dropped_tokens.
    """
    if not documents:
        return
    rows, aliases = [], []
    for document in documents:
        detail = details[document.document_id]
        rows.append(
            {
                "run_id": run_id, "document_id": document.document_id, "category": document.category,
                "half": document.half, "sha256": document.sha256, "n_contexts": len(document.contexts),
                **{k: detail[k] for k in ("path", "source", "n_bytes", "n_tokens", "n_dropped_tokens")},
            }
        )  # fmt: skip
        aliases += [{"run_id": run_id, "document_id": document.document_id, "path": path} for path in detail["aliases"]]
    warehouse.append("documents", pl.DataFrame(rows))
    if aliases:
        warehouse.append("document_aliases", pl.DataFrame(aliases))
    names = [field.name for field in fields(Context)]
    contexts = (attrgetter(*names)(context) for document in documents for context in document.contexts)
    _append_numbers(warehouse, "contexts", run_id, names, contexts)
    if groups:
        warehouse.append("plan_groups", pl.DataFrame([_group_row(run_id, group) for group in groups]))
    cells = (
        (context.context_id, group.group_id, row, lane)
        for group in groups
        for row, contexts_of_row in enumerate(group.rows)
        for lane, context in enumerate(contexts_of_row)
    )
    _append_numbers(warehouse, "plan", run_id, ["context_id", "group_id", "row", "lane"], cells)


def _append_numbers(
    warehouse: Warehouse, table: str, run_id: int, names: Sequence[str], rows: Iterable[Sequence[int]]
) -> None:
    """Insert rows of integers, which may be millions: never more than some of them are Python objects."""
    waiting = iter(rows)
    while len(some := np.array(list(islice(waiting, ROWS_AT_ONCE)), dtype=np.int32)):
        columns = {name: some[:, i] for i, name in enumerate(names)}
        warehouse.append(table, pl.DataFrame(columns).with_columns(run_id=pl.lit(run_id, dtype=pl.Int32)))


def _group_row(run_id: int, group: Group) -> dict[str, Any]:
    return {
        "run_id": run_id, "group_id": group.group_id, "category": group.category, "half": group.half,
        "n_contexts": group.n_contexts, "n_tokens": group.n_tokens,
    }  # fmt: skip


def current_run(warehouse: Warehouse) -> int | None:
    """The run that the public views show; None when there is none."""
    current: int | None = warehouse.run("runs/states").fetchall()[0][1]
    return current


def make_current(warehouse: Warehouse, run_id: int) -> None:
    """Let the public views show this run. Call within a transaction."""
    warehouse.run("queries/use_run", run_id=run_id)
