"""`elw check`: a warehouse in, its promises and the rows that break them out."""

from __future__ import annotations

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import Database, ListingFormat, TextFormat, examples
from energy_lens.console import say
from energy_lens.errors import ElwError


@app.command(epilog=examples("elw check --db elw.duckdb"))
def check(db: Database = None, form: ListingFormat = TextFormat.table) -> None:
    """Check that the warehouse holds what it promises: keys, sums, plan, tests and statistics, of all its runs.

    Shows each promise with the number of rows that break it and the first of them. Nothing is written. Exit code 0
    when nothing is broken, else 1.
    """
    from energy_lens.warehouse.checks import outcome_rows, run_checks
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state

    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        outcomes = run_checks(warehouse)
        path = warehouse.path
    print_rows(outcome_rows(outcomes), form)
    if unchecked := [outcome.check for outcome in outcomes if outcome.n_broken is None]:
        say(f"Not checked, since an older file lacks what it takes: {', '.join(unchecked)}.")
    if broken := [outcome.check for outcome in outcomes if outcome.n_broken]:
        raise ElwError(
            f"{path} breaks {len(broken)} of {len(outcomes)} promises ({', '.join(broken)}): restore it from a copy, "
            "or ingest anew."
        )
    say(f"{path} keeps all {len(outcomes) - len(unchecked)} promises.")
