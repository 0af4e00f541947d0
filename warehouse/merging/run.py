"""The names of sources and of a file in, the file with all groups that they have out.

1. Look at every source; each says what is wrong with it. A warehouse brings the staged groups that it knows of with it.
2. Settle the run, and compare plans and calibrations, before anything is written.
3. Make the file and its run if they are not there, or append what their plan lacks, in one transaction.
4. Take over the groups that the file lacks, source by source.

Killed anywhere, the same call does the rest; what is there already is skipped, whoever brought it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from energy_lens.console import bar, say
from energy_lens.errors import UsageError
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.digests import calibration_sha256
from energy_lens.warehouse.merging.settling import Settled, settle
from energy_lens.warehouse.merging.sources import Source, WarehouseSource, registered_source, source_at
from energy_lens.warehouse.merging.taking import Target, take
from energy_lens.warehouse.plan_tables import extend_plan, write_plan
from energy_lens.warehouse.runs import current_run, make_current
from energy_lens.warehouse.shards import Shard, deal
from energy_lens.warehouse.staging.registered import staged_locations


@dataclass(frozen=True)
class Merged:
    """What taking groups over has done."""

    new_groups: int
    new_tokens: int
    new_rows: int
    seconds: float


class Merge:
    """A run of a file, planned there, and the groups of it that sources have and the file lacks."""

    def __init__(self, names: Sequence[str], db: Path, wanted: str | None = None) -> None:
        """Look at the sources, and write the run's plan to the file. Call with the file's ingest lock held.

        names: of warehouses, folders and URLs; what the file itself knows to be staged is taken in, too.
        wanted: a run's number in the first warehouse among them, or the beginning of its identity; None: the one that
        all of them hold.
        Raises UsageError, ElwError and WarehouseError for sources that will not do, before the file is changed.
        """
        self.db = db
        own = _own(db)
        sources: list[Source] = [
            source_at(name) for name in names if not (own and os.path.exists(name) and os.path.samefile(name, db))
        ]
        if not sources:
            _keep_what_is_staged(db, own)
        settled = settle(sources, own, wanted)
        self.run, self._shards = settled.run, _shards_of([*sources, *([own] if own else [])], settled.run.identity)
        self.run_id = _write_plan(db, own, settled)
        self.look()
        known = [
            (source.name, source.staged(self.run.identity)) for source in sources if isinstance(source, WarehouseSource)
        ]
        registered = [registered_source(name, staged) for name, staged in [*known, (str(db), self._staged)] if staged]
        self.to_take: dict[Source, list[int]] = {}
        found = set(self.committed)
        for source in (*sources, *registered):
            self.to_take[source] = sorted(source.groups(self.run.identity).keys() - found)
            found |= source.groups(self.run.identity).keys()
        self.missing = sorted(set(self.n_tokens) - found)  #: ids of groups that no source has
        self.notes = _unreachable_notes(db, [self._staged[group] for group in self.missing if group in self._staged])

    def look(self) -> None:
        """Read what the file holds of the run."""
        with Warehouse(self.db) as warehouse:
            rows = warehouse.run("merge/groups", run=self.run_id).fetchall()
            self._context_length, stats_groups = warehouse.run("merge/run", run=self.run_id).fetchall()[0]
            self._staged = staged_locations(warehouse, self.run_id)
        self._cells = [(category, half, n_tokens) for _, category, half, n_tokens, _ in rows]
        self.n_tokens: Mapping[int, int] = {group_id: n_tokens for group_id, _, _, n_tokens, _ in rows}
        self.committed = frozenset(group_id for group_id, *_, is_committed in rows if is_committed)
        #: Whether the statistics are of all groups that are there.
        self.is_finished = stats_groups == len(self.committed) > 0

    @property
    def tokens(self) -> int:
        """Tokens that the file holds."""
        return sum(self.n_tokens[group] for group in self.committed)

    @property
    def missing_shards(self) -> list[str]:
        """Shards that the missing groups are of, where the sources are of shards of one division."""
        divisions = {shard.of for shard in self._shards}
        if len(divisions) != 1 or not self.missing:
            return []
        (n_shards,) = divisions
        of_groups = dict(zip(self.n_tokens, deal(self._cells, n_shards), strict=True))
        return [f"{index}/{n_shards}" for index in sorted({of_groups[group] for group in self.missing})]

    def carry_out(self) -> Merged:
        """Take over what the file lacks. Raises what `taking.take` raises; what was taken before that stays."""
        target = Target(self.db, self.run_id, self.run.identity, self._context_length, self.n_tokens)
        wanted = [group for groups in self.to_take.values() for group in groups]
        n_tokens, n_rows = sum(self.n_tokens[group] for group in wanted), 0
        started = time.monotonic()
        with bar("Merge", n_tokens, "token", hidden=not wanted) as progress:

            def told(groups: Sequence[int], rows: int) -> None:
                nonlocal n_rows
                n_rows += rows
                progress.update(sum(self.n_tokens[group] for group in groups))

            for source, groups in self.to_take.items():
                take(target, source, groups, told)
        seconds = time.monotonic() - started
        if wanted:
            self.look()
        return Merged(len(wanted), n_tokens, n_rows, seconds)


def _own(db: Path) -> WarehouseSource | None:
    """The file that is merged into; None: there is none yet."""
    if not os.path.exists(db) or (os.path.isfile(db) and not os.path.getsize(db)):
        return None
    return WarehouseSource(db, is_ours=True)


def _unreachable_notes(db: Path, gone: Sequence[str]) -> list[str]:
    """A sentence on groups that the file notes as staged and that are not found there.

    gone: where they should be.
    """
    if not gone:
        return []
    are = "1 staged group is" if len(gone) == 1 else f"{len(gone):,} staged groups are"
    note = f"{are} not where {db} knows them to be, such as {gone[0]}: bring them back, or name where they are now."
    say(note)
    return [note]


def _keep_what_is_staged(db: Path, own: WarehouseSource | None) -> None:
    """Of a file's runs, keep those with staged groups where there are any: without sources, one of them is meant."""
    if own is None or not own.runs:
        raise UsageError(
            f"There is nothing to merge into {db}: name warehouses of shards, or folders of staged groups."
        )
    if staged := {identity: run for identity, run in own.runs.items() if own.staged(identity)}:
        own.runs = staged


def _shards_of(sources: Sequence[Source], identity: str) -> set[Shard]:
    """Shards that sources say they are of."""
    runs = [source.runs[identity] for source in sources if identity in source.runs]
    return {Shard.parse(shard) for run in runs for shard in run.shards}


def _write_plan(db: Path, own: WarehouseSource | None, settled: Settled) -> int:
    """Have the file hold the run and its plan; returns the run's number there."""
    identity = settled.run.identity
    if own and identity in own.runs:
        run_id = own.run_id(identity)
        digests = own.digests(identity)
        if digests == settled.digests and own.calibrations(identity):
            return run_id
        tables = settled.planned_by.plan(identity)
        with Warehouse(db, writable=True, create=False) as warehouse, warehouse.transaction():
            extend_plan(warehouse, run_id, tables, *digests.size)
            _check_calibration(warehouse, run_id, settled)
        return run_id
    tables = settled.planned_by.plan(identity)
    with Warehouse(db, writable=True) as warehouse, warehouse.transaction():
        run_id = write_plan(warehouse, tables)
        _check_calibration(warehouse, run_id, settled)
        if current_run(warehouse) is None:
            make_current(warehouse, run_id)
    return run_id


def _check_calibration(warehouse: Warehouse, run_id: int, settled: Settled) -> None:
    """Raises UsageError unless what was written is what the groups were measured by."""
    if settled.calibration is not None and calibration_sha256(warehouse, run_id) != settled.calibration:
        raise UsageError(
            f"{settled.planned_by.name} has the plan and not the calibration of what is merged: give the warehouse "
            "that was planned with elw ingest --plan-only, too."
        )
