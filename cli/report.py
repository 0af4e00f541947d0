"""`elw report`: a warehouse in, a folder with a report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_line
from energy_lens.cli.options import Database, examples, path_given, words
from energy_lens.errors import UsageError, did_you_mean


@app.command(epilog=examples("elw report --output report/"))
def report(
    db: Database = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", parser=path_given, help="Folder of the report.")
    ] = Path("report"),
    form: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT,...", help="md, html or both.")] = "md,html",
) -> None:
    """Write a report with tables and figures; print the paths of its files."""
    from energy_lens.warehouse.database import warehouse_path

    formats = words(form, "--format")
    if unknown := [name for name in formats if name not in ("md", "html")]:
        near = did_you_mean(unknown[0], ("md", "html"))
        raise UsageError(f"There is no report format {unknown[0]!r}{near}: choose md, html or md,html.")
    from energy_lens.reports.render import render

    for path in render(warehouse_path(db), output, tuple(formats)):
        print_line(path)
