"""Sources in, the run that is meant out, and the proof that all of them hold the same plan and calibration of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energy_lens.console import some_of
from energy_lens.errors import UsageError, require
from energy_lens.warehouse.digests import PlanDigests
from energy_lens.warehouse.merging.sources import FoundRun, Source, StageSource, WarehouseSource

#: Characters of an identity that are shown, and the fewest that are taken for one.
SHOWN, FEWEST = 12, 6

#: Digits of a run's number, at most.
_DIGITS = 9

_PLAN_ONCE = "plan once with elw ingest --plan-only, and run each shard on a copy of that warehouse"


@dataclass(frozen=True)
class Settled:
    """What is merged."""

    run: FoundRun
    digests: PlanDigests  #: the longest of the plans, of which all others are beginnings
    planned_by: Source  #: which has it
    calibration: str | None  #: None: no source is calibrated, and none has a group


def settle(sources: Sequence[Source], target: Source | None, wanted: str | None) -> Settled:
    """Find the run that is meant, and compare what is known of it everywhere.

    target: the file that is merged into, if it holds runs. wanted: a run's number in the first warehouse among the
    sources, or the beginning of its identity.
    Raises UsageError where no run or more than one may be meant, and where plans or calibrations differ.
    """
    run = choose_run(sources, target, wanted)
    asked = [source for source in (target, *sources) if source is not None and run.identity in source.runs]
    calibrations = [source.calibrations(run.identity) for source in asked]
    # Of equal plans one that is calibrated, since the file may have to be made of it.
    in_turn = [source for source, found in zip(asked, calibrations, strict=True) if found]
    in_turn += [source for source in asked if source not in in_turn]
    digests, planned_by = _longest_plan(in_turn, run.identity)
    return Settled(run, digests, planned_by, _one_calibration(calibrations))


def choose_run(sources: Sequence[Source], target: Source | None, wanted: str | None) -> FoundRun:
    """The run that is wanted, else the only one that all sources hold. Raises UsageError."""
    for source in sources:
        require(bool(source.runs), f"{source.name} holds no run: leave it out.")
    if wanted is not None:
        return _wanted(sources, target, wanted)
    first, *others = sources or [source for source in (target,) if source]
    common = [run for identity, run in first.runs.items() if all(identity in other.runs for other in others)]
    if not common:
        other = next(other for other in others if not set(first.runs) & set(other.runs))
        mine, theirs = (next(iter(source.runs.values())).what for source in (first, other))
        raise UsageError(
            f"{other.name} holds another run ({theirs}) than {first.name} ({mine}): merge each into a file of its own, "
            "or leave one out."
        )
    if len(common) > 1:
        listed = some_of([f"{run.identity[:SHOWN]} ({run.what})" for run in common])
        raise UsageError(f"The sources hold {len(common)} runs: choose one with --run, of {listed}.")
    return common[0]


def _wanted(sources: Sequence[Source], target: Source | None, wanted: str) -> FoundRun:
    every = [source for source in (*sources, target) if source is not None]
    numbered = next((source for source in every if isinstance(source, WarehouseSource)), None)
    is_number = wanted.isascii() and wanted.isdigit() and len(wanted) <= _DIGITS
    found = [run for run in numbered.runs.values() if is_number and run.run_id == int(wanted)] if numbered else []
    if not found and len(wanted) >= FEWEST:  # an identity may begin with digits alone
        found = [run for source in every for run in source.runs.values() if run.identity.startswith(wanted)]
    identities = dict.fromkeys(run.identity for run in found)
    if len(identities) != 1:
        choices = {f"{run.identity[:SHOWN]} ({run.what})": None for source in every for run in source.runs.values()}
        shown = repr(wanted if len(wanted) <= 40 else wanted[:40] + "…")
        raise UsageError(f"--run {shown} names no run, or several: choose {some_of(list(choices))}.")
    for source in sources:
        require(
            found[0].identity in source.runs,
            f"{source.name} does not hold run {found[0].identity[:SHOWN]} ({found[0].what}): leave it out.",
        )
    return found[0]


def _longest_plan(sources: Sequence[Source], identity: str) -> tuple[PlanDigests, Source]:
    """The longest plan and who has it. Raises UsageError unless every other one is the beginning of it."""
    plans = [(digests, source) for source in sources if (digests := source.digests(identity)) is not None]
    if not plans:
        raise UsageError(
            f"{sources[0].name} holds groups and not their plan: give the warehouse that was planned, too, or the "
            "whole folder of the stage."
        )
    longest, planned_by = max(plans, key=lambda plan: plan[0].size)
    for digests, source in plans:
        if not longest.begins_with(digests):
            raise UsageError(
                f"{source.name} and {planned_by.name} hold different plans of one run, as of texts that differed: "
                f"{_PLAN_ONCE}."
            )
    for source in sources:
        if isinstance(source, StageSource):
            _check_staged(source, identity, longest, planned_by)
    return longest, planned_by


def _check_staged(source: StageSource, identity: str, plan: PlanDigests, planned_by: Source) -> None:
    for group_id, staged in source.staged_groups(identity).items():
        if group_id >= len(plan.groups) or staged.told["group_sha256"] != plan.groups[group_id]:
            raise UsageError(f"{staged.location} is of another plan than the one of {planned_by.name}: {_PLAN_ONCE}.")


def _one_calibration(calibrations: Sequence[Mapping[str, str]]) -> str | None:
    """The calibration of all sources that have one. Raises UsageError where they differ."""
    found: dict[str, str] = {}
    for of_source in calibrations:
        found = {**of_source, **found}
    if len(found) > 1:
        first, other, *_ = found.values()
        raise UsageError(
            f"{first} and {other} were calibrated each on its own and came to different numbers, as unlike processors "
            f"do: {_PLAN_ONCE}."
        )
    return next(iter(found), None)
