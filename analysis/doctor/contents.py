"""A warehouse file: whether it opens, its schema, its runs, what was left over, and whether it keeps its promises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from energy_lens.analysis.doctor.finding import Finding, note, ok, problem, size
from energy_lens.errors import ElwError
from energy_lens.warehouse.checks import check_names, run_check
from energy_lens.warehouse.database import LockedError, Warehouse, compaction_folder

#: Checks that read no table of tokens or activations, so that they take no longer in a large file.
QUICK_CHECKS = (
    "current_run", "energies_of_runs", "keys_of_attractors", "keys_of_run_ids", "keys_of_runs", "p_and_q",
    "sums_over_categories", "sums_over_halves",
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
    for run in runs:
        if (done := run["stats_tokens"]) < run["planned_tokens"]:
            said = f"run {run['run_id']} has statistics of {done:,} of {run['planned_tokens']:,} planned tokens"
            yield note(
                "unfinished run",
                said,
                f"the same elw ingest completes it, elw runs --delete {run['run_id']} removes it",
            )
    for (run_id,) in opened.run("runs/orphans").fetchall():
        yield problem("left rows", f"there are rows of run {run_id}, which is gone", f"elw runs --delete {run_id}")


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
