"""`elw merge`: warehouses of shards and staged groups in, one warehouse out."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_line
from energy_lens.cli.options import Database, examples
from energy_lens.console import say


@app.command(
    epilog=examples("elw merge shards/*.duckdb --db whole.duckdb", "elw merge s3://bucket/stage --db whole.duckdb")
)
def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Warehouses of elw ingest --shard, and folders or URLs of elw ingest --stage, in any number and "
            "order; without any, what the warehouse itself knows to be staged.",
        ),
    ] = None,
    db: Database = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ID",
            help="Which run, where all sources hold several: its number in the first warehouse, or how its identity "
            "begins.",
        ),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Finish the statistics of what is there, although groups are missing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Join the shards and the staged groups of one run in a warehouse, and finish its statistics.

    The warehouse is made if it is not there; of one that is, what it lacks is taken over, and nothing twice. Whatever
    stops it, the same command does the rest.
    """
    from energy_lens.analysis import merging
    from energy_lens.errors import require
    from energy_lens.warehouse.database import warehouse_path

    require(all(sources or ()), "A source is empty: name a warehouse, a folder or a URL.")
    summary = merging.merge(sources or (), warehouse_path(db), run, finish)
    if as_json:
        import json

        print_line(json.dumps(summary.as_dict(), indent=2))
    else:
        say(str(summary))
