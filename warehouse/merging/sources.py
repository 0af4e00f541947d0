"""A file, folder or URL in, what it holds of runs out: their plans, and the groups that can be taken from there.

Either kind of source answers for each of its `runs`: `digests` and `plan` of what it was planned to be, `calibrations`,
and `groups`, which can be taken over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from energy_lens.errors import UsageError, WarehouseError
from energy_lens.warehouse.database import LockedError, Warehouse
from energy_lens.warehouse.digests import PlanDigests, calibration_sha256, digests_of_tables, plan_digests
from energy_lens.warehouse.locks import holder_of
from energy_lens.warehouse.plan_tables import read_plan
from energy_lens.warehouse.staging.groups import Staged, find_staged
from energy_lens.warehouse.staging.places import is_url, place_at


@dataclass(frozen=True)
class FoundRun:
    """A run in a source."""

    identity: str
    what: str  #: model, layers, energies and precision
    run_id: int | None  #: its number in a warehouse
    shards: frozenset[str]  #: of its plan that the source is of, as in 3/16


class _Known(NamedTuple):
    """What a warehouse holds of a run."""

    digests: PlanDigests
    calibration: str | None
    groups: dict[int, str | None]  #: the processor of each group that is stored, by group_id
    staged: dict[int, str]  #: the location of each that is staged, by group_id


class WarehouseSource:
    """A warehouse, such as that of a shard. It is open only while it is asked something."""

    def __init__(self, path: Path, *, is_ours: bool = False) -> None:
        """is_ours: the one who asks has the file's ingest lock; it is brought to this version's schema.

        Raises WarehouseError for a file that cannot be read as it has to be, LockedError for one that is written.
        """
        self.path = path
        self.name = str(path)
        self.runs: dict[str, FoundRun] = {}
        self._read: dict[str, _Known] = {}
        with Warehouse(path) as warehouse:  # first, since it says best what is wrong with a file
            if not warehouse.behind:
                self._look(warehouse)
            elif not is_ours:
                raise WarehouseError(
                    f"{path} was made by an older version of elw and lacks some tables: elw migrate --db {path} brings "
                    "it to this one."
                )
        if warehouse.behind:
            with Warehouse(path, writable=True, create=False) as warehouse:
                self._look(warehouse)
        real = Path(os.path.realpath(path))
        if not is_ours and (holder := holder_of(real.with_name(real.name + ".ingest.lock"))) is not None:
            raise LockedError(f"{path} is being written by {holder}: wait for it, then merge.")

    def _look(self, warehouse: Warehouse) -> None:
        """See which runs there are, and more of one that is alone, since the file is open."""
        self.runs = {
            row["identity"]: FoundRun(
                row["identity"], _described(row), row["run_id"], frozenset(filter(None, [row["shard"]]))
            )
            for row in warehouse.run("merge/runs").dicts()
        }
        if len(self.runs) == 1:
            (run,) = self.runs.values()
            self._read[run.identity] = _read(warehouse, self.run_id(run.identity))

    def run_id(self, identity: str) -> int:
        """The number of a run in this file."""
        run_id = self.runs[identity].run_id
        assert run_id is not None
        return run_id

    def _known(self, identity: str) -> _Known:
        """What is compared of a run, and where its groups are; read once."""
        if identity not in self._read:
            with Warehouse(self.path) as warehouse:
                self._read[identity] = _read(warehouse, self.run_id(identity))
        return self._read[identity]

    def digests(self, identity: str) -> PlanDigests:
        """The plan of a run, to be compared."""
        return self._known(identity).digests

    def calibrations(self, identity: str) -> dict[str, str]:
        """What its groups are measured by, by hash, with the name of something that is; none: nothing is measured."""
        found = self._known(identity).calibration
        return {} if found is None else {found: self.name}

    def plan(self, identity: str) -> Mapping[str, pl.DataFrame]:
        """The tables of its plan (`plan_tables.read_plan`)."""
        with Warehouse(self.path) as warehouse:
            return read_plan(warehouse, self.run_id(identity))

    def groups(self, identity: str) -> dict[int, str | None]:
        """Ids of the groups whose rows are there, each with the processor that computed it, where that is known."""
        return self._known(identity).groups

    def staged(self, identity: str) -> dict[int, str]:
        """Where those of its groups lie that are finished and staged, by group_id."""
        return self._known(identity).staged


def _read(warehouse: Warehouse, run_id: int) -> _Known:
    return _Known(
        plan_digests(warehouse, run_id),
        calibration_sha256(warehouse, run_id),
        dict(warehouse.run("merge/committed", run=run_id).fetchall()),
        dict(warehouse.run("merge/staged", run=run_id).fetchall()),
    )


class StageSource:
    """Staged groups: all of a stage, or those that a warehouse knows of."""

    def __init__(self, name: str, found: Sequence[Staged]) -> None:
        self.name = name
        self._plans = [staged for staged in found if staged.told["kind"] == "plan"]
        self._groups = [staged for staged in found if staged.told["kind"] == "group"]
        identities = dict.fromkeys(staged.told["identity"] for staged in found)
        self.runs = {one: FoundRun(one, self._what(one), None, self._shards(one)) for one in identities}

    @classmethod
    def at(cls, name: str) -> StageSource:
        """A stage by its name. Raises UsageError where there is none."""
        place = place_at(name)
        found = find_staged(place.name)
        if not found:
            raise UsageError(
                f"{place.name} holds no staged group or plan: name a folder that elw ingest --stage wrote to, or the "
                "warehouse of a shard."
                if place.exists()
                else f"There is nothing at {place.name}: name a warehouse or a folder of staged groups."
            )
        return cls(place.name, found)

    def _what(self, identity: str) -> str:
        for staged in self._plans:
            if staged.told["identity"] == identity and (run := staged.table("runs")) is not None:
                return _described(run.row(0, named=True))
        return "of which nothing but groups is there"

    def _shards(self, identity: str) -> frozenset[str]:
        told = (staged.told["shard"] for staged in self._groups if staged.told["identity"] == identity)
        return frozenset(filter(None, told))

    @cached_property
    def _longest(self) -> dict[str, tuple[PlanDigests, Mapping[str, pl.DataFrame]]]:
        """The plan of each run, the latest of those that were staged as it grew."""
        longest: dict[str, tuple[PlanDigests, Mapping[str, pl.DataFrame]]] = {}
        for staged in self._plans:
            tables = dict(staged.tables())
            digests, identity = digests_of_tables(tables), staged.told["identity"]
            if identity not in longest or longest[identity][0].size < digests.size:
                longest[identity] = digests, tables
        return longest

    def digests(self, identity: str) -> PlanDigests | None:
        """The latest plan of a run that is there, to be compared; None: there are groups alone."""
        return self._longest[identity][0] if identity in self._longest else None

    def plan(self, identity: str) -> Mapping[str, pl.DataFrame]:
        """The tables of that plan (`plan_tables.read_plan`)."""
        return self._longest[identity][1]

    def calibrations(self, identity: str) -> dict[str, str]:
        """What its groups are measured by, by hash, with the name of something that is; none: nothing is measured."""
        every = [*self._plans, *self._groups]
        return {s.told["calibration_sha256"]: s.location for s in every if s.told["identity"] == identity}

    def staged_groups(self, identity: str) -> dict[int, Staged]:
        """The groups of a run, by group_id."""
        return {staged.group_id: staged for staged in self._groups if staged.told["identity"] == identity}

    def groups(self, identity: str) -> dict[int, str | None]:
        """Ids of the groups whose rows are there, each with the processor that computed it, where that is known."""
        return {group_id: staged.told["cpu"] for group_id, staged in self.staged_groups(identity).items()}


#: Where groups come from.
Source = WarehouseSource | StageSource


def source_at(name: str) -> Source:
    """What a word names: a warehouse where it is a file, else a stage.

    Raises what these raise.
    """
    if is_url(name) or os.path.isdir(name):
        return StageSource.at(name)
    return WarehouseSource(Path(name))


def registered_source(name: str, locations: Mapping[int, str]) -> StageSource:
    """The staged groups that a warehouse knows of, as far as they are still there.

    locations: by group_id.
    """
    wanted = set(locations.values())
    parents = dict.fromkeys(location.rpartition("/")[0] for location in wanted)
    found = [staged for parent in parents for staged in find_staged(parent)]
    return StageSource(name, [s for s in found if s.told["kind"] == "plan" or s.location in wanted])


def _described(run: Mapping[str, Any]) -> str:
    """What a user tells a run apart by, from its row of `runs`."""
    layers, energies = (",".join(map(str, run[name])) for name in ("layers", "energies"))
    return f"{run['model']}, layers {layers}, {energies}, {run['dtype']}"
