"""A warehouse file: whether it opens, its schema, its runs, what was left over, and whether it keeps its promises."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from energy_lens.analysis.doctor.finding import Finding, note, ok, problem, size
from energy_lens.errors import ElwError
from energy_lens.warehouse.checks import check_names, run_check
from energy_lens.warehouse.database import LockedError, Warehouse, compaction_folder
from energy_lens.warehouse.staging.places import MANIFEST, is_url
from energy_lens.warehouse.staging.registered import staged_locations

#: Checks that read no table of tokens or activations, so that they take no longer in a large file.
QUICK_CHECKS = (
    "current_run", "energies_of_runs", "keys_of_attractors", "keys_of_run_ids", "keys_of_runs",
    "keys_of_staged_groups", "p_and_q", "staged_groups", "sums_over_categories", "sums_over_halves",
)  # fmt: skip

#: Seconds that somebody who holds the file is waited for.
PATIENCE = 2.0


def warehouse(path: Path, is_named: bool, checks: str) -> Iterator[Finding]:
    """What is to be said of a file.

    is_named: the user named it, so that there should be one. checks: quick, all or none.
    """
    if not os.path.exists(path) and not is_named:
        yield note("warehouse", f"there is none at {path} yet", "elw ingest makes one; --db FILE looks at another")
        return
    try:
        with Warehouse(path, wait_seconds=PATIENCE) as opened:
            yield ok("warehouse", f"{path}: {size(path.stat().st_size)}")
            yield from _schema(opened)
            yield from _runs(opened)
            yield from _kept_promises(opened, checks)
    except LockedError as error:
        sentence, _, remedy = str(error).partition(": ")
        yield note("warehouse", sentence, remedy.rstrip("."))
    except ElwError as error:
        sentence, _, remedy = str(error).rpartition(": ")
        yield problem("warehouse", sentence or remedy, remedy.rstrip(".") if sentence else None)
    yield from _left_over(path)


def _schema(opened: Warehouse) -> Iterator[Finding]:
    if opened.behind:
        yield note("schema", f"{opened.schema_number}, which an older version made", "elw migrate adds what it lacks")
    else:
        yield ok("schema", f"{opened.schema_number}, this version's")


def _runs(opened: Warehouse) -> Iterator[Finding]:
    """Runs that are not finished, a file without a current one, and rows of runs that are gone."""
    if opened.behind:
        return
    runs = opened.run("queries/runs").dicts()
    if not runs:
        yield note("runs", "there is none yet", "elw ingest makes one")
    elif not any(run["current"] for run in runs):
        yield note("runs", "none is current, so that efas and the other views are empty", "elw runs --use ID")
    else:
        tokens = sum(run["tokens"] for run in runs)
        yield ok("runs", f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of {tokens:,} tokens")
    elsewhere = {run["run_id"]: run for run in opened.run("queries/unmerged").dicts()}
    for run in runs:
        run_id = run["run_id"]
        if (done := run["stats_tokens"]) < run["planned_tokens"]:
            said = f"run {run_id} has statistics of {done:,} of {run['planned_tokens']:,} planned tokens"
            completes = "the same elw ingest completes it"
            if other := elsewhere.get(run_id):
                said += _where(other)
                completes = "elw merge completes it"
            yield note("unfinished run", said, f"{completes}, elw runs --delete {run_id} removes it")
        if run_id in elsewhere:
            yield from _staged(opened, run_id)
    for (run_id,) in opened.run("runs/orphans").fetchall():
        yield problem("left rows", f"there are rows of run {run_id}, which is gone", f"elw runs --delete {run_id}")


def _where(run: Mapping[str, Any]) -> str:
    """What is said of a run whose groups are elsewhere, too."""
    if run["n_staged"]:
        return f": {run['n_staged']:,} of its groups are staged"
    return f": this file is for shard {run['shard']} of its plan"


def _staged(opened: Warehouse, run_id: int) -> Iterator[Finding]:
    """Whether the staged groups of a run are where it knows them to be; object stores are not asked."""
    locations = {group: place for group, place in staged_locations(opened, run_id).items() if not is_url(place)}
    gone = [place for place in locations.values() if not os.path.exists(os.path.join(place, MANIFEST))]
    if gone:
        said = f"{len(gone):,} of {len(locations):,} groups of run {run_id} are gone, such as {gone[0]}"
        yield problem("staged groups", said, "bring them back, or let the same elw ingest compute them again")
    elif locations:
        yield ok("staged groups", f"all {len(locations):,} of run {run_id} are there")


def _kept_promises(opened: Warehouse, checks: str) -> Iterator[Finding]:
    """The checks of elw check, those that are quick or all of them."""
    names = {"quick": QUICK_CHECKS, "all": check_names(), "none": ()}[checks]
    outcomes = [run_check(opened, name) for name in names]
    broken = [outcome for outcome in outcomes if outcome.n_broken]
    for outcome in broken:
        said = f"{outcome.check}: {outcome.n_broken:,} rows break it, such as {outcome.first_broken}. {outcome.promise}"
        yield problem("promise", said, "restore the file from a copy, or ingest anew")
    if outcomes and not broken:
        rest = "" if checks == "all" else "; elw check holds it to all of them"
        yield ok("promises", f"{sum(outcome.n_broken == 0 for outcome in outcomes)} were checked and are kept{rest}")


def _left_over(path: Path) -> Iterator[Finding]:
    """What a process that was killed leaves beside the file."""
    real = Path(os.path.realpath(path))
    if os.path.isdir(compaction_folder(real)):
        yield note("left over", f"{compaction_folder(real)}, of a compaction", "nothing: the next writer removes it")
    log = real.with_name(real.name + ".wal")
    if os.path.exists(log) and not os.path.exists(real):
        yield problem("left over", f"{log}, of a warehouse that is gone", f"bring {real} back, or remove {log}")
