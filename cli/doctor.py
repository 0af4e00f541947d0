"""`elw doctor`: this machine, its cache and a warehouse in, what is well and what to mend out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import Database, ListingFormat, TextFormat, examples
from energy_lens.console import say
from energy_lens.errors import ElwError

Checks = StrEnum("Checks", "quick all none")


@app.command(epilog=examples("elw doctor", "elw doctor --db elw.duckdb --checks all --format json"))
def doctor(
    db: Database = None,
    checks: Annotated[
        Checks,
        typer.Option(
            "--checks", help="Promises of elw check: quick are those that read no table of tokens or activations."
        ),
    ] = Checks.quick,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Look for what may go wrong here: versions, processor, cache, disks, locks, and the warehouse.

    Each line is ok, a note or a problem with its remedy. Nothing is fetched, and the warehouse
    is only read. Exit code 0 without a problem, else 1.
    """
    import os

    from energy_lens.analysis.doctor.finding import Verdict, finding_rows
    from energy_lens.analysis.doctor.run import examine
    from energy_lens.warehouse.database import warehouse_path

    is_named = db is not None or bool(os.environ.get("ELW_WAREHOUSE"))
    findings = list(examine(warehouse_path(db), is_named, checks.value))
    print_rows(finding_rows(findings), form)
    if problems := [finding.subject for finding in findings if finding.verdict is Verdict.PROBLEM]:
        n = len(problems)
        raise ElwError(f"{n} {'problem' if n == 1 else 'problems'} ({', '.join(dict.fromkeys(problems))}): see above.")
    notes = sum(finding.verdict is Verdict.NOTE for finding in findings)
    say(f"No problem was found{f', and {notes} to know' if notes else ''}.")
