"""A group's tables in, a staged group out, and back: what lies below a stage, for whoever has no warehouse at hand.

    STAGE/RUN/plan-HASH/         what a warehouse knows of the run before its first group: plan, calibration, SAEs
    STAGE/RUN/group-000012/      the rows of a group, sorted as they are in a warehouse, without their run_id

RUN is named after the run's identity and its calibration, so that runs may share a stage, and nothing that was measured
otherwise comes to lie where another group is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from energy_lens.errors import ElwError
from energy_lens.version import __version__
from energy_lens.warehouse.migrations import migration_files
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.staging.places import Place, place_at, read_table, read_tables

#: Of what is written here; raised when a reader of before would take it for something else.
FORMAT = 1

#: Characters of a hash in a name.
_SHORT = 16


@dataclass(frozen=True)
class StageHeader:
    """What a manifest tells of a group: which one of what plan it is, how it was measured, and who computed it."""

    identity: str  #: of the run
    plan_sha256: str  #: of the plan as it was then (`PlanDigests.sha256`)
    calibration_sha256: str
    group_id: int
    group_sha256: str  #: what the group is planned to be (`digests.group_sha256`)
    n_tokens: int
    cpu: str | None = None  #: the kind of processor that computed it
    shard: str | None = None  #: that it was computed for, as in 3/16
    is_compiled: bool = False  #: the model's blocks were fused

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return run_name(self.identity, self.calibration_sha256)


@dataclass(frozen=True)
class StagedGroup:
    """A group that is finished and whose rows lie in a stage."""

    group_id: int
    location: str
    n_rows: int
    n_bytes: int | None  #: None in an object store
    staged_at: datetime  #: UTC, without a zone


@dataclass(frozen=True)
class Staged:
    """A manifest as it was found."""

    place: Place  #: the run's
    part: str  #: name within it
    told: Mapping[str, Any]

    @property
    def location(self) -> str:
        return f"{self.place.name}/{self.part}"

    @property
    def group_id(self) -> int:
        return int(self.told["group_id"])

    @property
    def n_rows(self) -> int:
        return sum(int(file["rows"]) for file in self.told["files"])

    @property
    def registered(self) -> StagedGroup:
        """What a warehouse remembers of it."""
        sizes = [file["bytes"] for file in self.told["files"]]
        n_bytes = None if None in sizes else sum(sizes)
        staged_at = datetime.fromisoformat(self.told["staged_at"]).astimezone(UTC).replace(tzinfo=None)
        return StagedGroup(self.group_id, self.location, self.n_rows, n_bytes, staged_at)

    def table(self, name: str) -> pl.DataFrame | None:
        """The rows of a table; None where it has none. Raises DamagedError."""
        for file in self.told["files"]:
            if file["table"] == name:
                return read_table(self.place, self.part, file)
        return None

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """(table, rows) of all its files. Raises DamagedError."""
        return read_tables(self.place, self.part, self.told)


def run_name(identity: str, calibration_sha256: str) -> str:
    """Name of a run's folder in a stage."""
    return f"{identity[:_SHORT]}-{calibration_sha256[: _SHORT // 2]}"


def group_name(group_id: int) -> str:
    """Name of a group's folder in that of its run."""
    return f"group-{group_id:06d}"


# ------------------------------------------------------------------------------------------------ writing


def stage_group(destination: str, header: StageHeader, tables: Mapping[str, pl.DataFrame]) -> StagedGroup:
    """Write a group's rows below a folder or URL: all of them and a manifest, or nothing that counts.

    tables: rows by table; a run_id among the columns is left out, since it is another in every warehouse.
    A group that is there already, as of a worker that was taken for lost, stays as it is.
    Raises ElwError when it cannot be written.
    """
    frames = {table: _as_stored(table, frame) for table, frame in tables.items()}
    place = place_at(destination).below(header.run)
    head = {"kind": "group", **_made_now(), **asdict(header)}
    part = group_name(header.group_id)
    staged = Staged(place, part, place.write(part, frames, head))
    if not is_of(staged, header):
        raise ElwError(f"{staged.location} is of another plan or calibration: name another folder with --stage.")
    return staged.registered


def stage_plan(destination: str, header: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> Staged:
    """Write what a warehouse knows of a run before its first group; a plan that is there already stays as it is.

    header: identity, plan_sha256 and calibration_sha256.
    """
    place = place_at(destination).below(run_name(header["identity"], header["calibration_sha256"]))
    part = f"plan-{header['plan_sha256'][:_SHORT]}"
    if told := place.manifests(part):
        return Staged(place, part, told[part])
    frames = {table: frame for table, frame in tables.items() if len(frame)}
    return Staged(place, part, place.write(part, frames, {"kind": "plan", **_made_now(), **header}))


def _made_now() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    schema = max(number for number, _ in migration_files())
    return {"made_by": "elw", "format": FORMAT, "elw_version": __version__, "schema": schema, "staged_at": now}


def _as_stored(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of a group as its warehouse would hold them: in their order, without columns of NULL alone."""
    kept = [name for name, kind in frame.schema.items() if name != "run_id" and kind != pl.Null]
    return frame.select(kept).sort(name for name in SORTED_BY[table] if name in kept)


# ------------------------------------------------------------------------------------------------ looking


def find_staged(name: str) -> list[Staged]:
    """All plans and groups in a stage, or in the folder of one of its runs; none where there is no such place.

    Raises UsageError for what can be no place, ElwError for one that cannot be read or that a newer version wrote.
    """
    place = place_at(name)
    found = [
        Staged(place.below(part.rpartition("/")[0]) if "/" in part else place, part.rpartition("/")[2], told)
        for pattern in ("*/*", "*")
        for part, told in place.manifests(pattern).items()
        if told.get("kind") in ("group", "plan")
    ]
    for staged in found:
        _check_version(staged)
    return found


def find_groups(destination: str, identity: str, calibration_sha256: str) -> list[Staged]:
    """The groups of one run in a stage."""
    place = place_at(destination).below(run_name(identity, calibration_sha256))
    found = [Staged(place, part, told) for part, told in place.manifests("group-*").items()]
    for staged in found:
        _check_version(staged)
    return found


def is_of(staged: Staged, header: StageHeader) -> bool:
    """Whether what is staged is the group that a header tells of, whoever computed it."""
    names = ("identity", "calibration_sha256", "group_id", "group_sha256")
    return all(staged.told.get(name) == getattr(header, name) for name in names)


def missing_ids(locations: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Which of the groups with these locations are no longer there: group_id: location.

    Raises ElwError where a folder of a run cannot be read at all, such as that of a disk that is not mounted.
    """
    by_place: dict[str, dict[str, int]] = {}
    for group_id, location in locations:
        parent, _, part = location.rpartition("/")
        by_place.setdefault(parent, {})[part] = group_id
    missing: dict[int, str] = {}
    for parent, parts in by_place.items():
        place = place_at(parent)
        there = place.manifests("group-*")
        if not there and not place.exists():
            raise ElwError(
                f"{parent}, where {len(parts)} finished groups lie, is not there: mount it or bring it back, or start "
                "with --new-run."
            )
        missing |= {group_id: f"{parent}/{part}" for part, group_id in parts.items() if part not in there}
    return missing


def _check_version(staged: Staged) -> None:
    """Raises ElwError for what a newer version wrote."""
    known = max(number for number, _ in migration_files())
    if staged.told.get("format", 0) > FORMAT or staged.told.get("schema", 0) > known:
        raise ElwError(
            f"{staged.location} was written by a newer version of elw ({staged.told.get('elw_version')}, this one is "
            f"{__version__}): upgrade energy-lens."
        )
