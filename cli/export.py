"""`elw export`: a warehouse in, a folder of pages or of files for other tools out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_line
from energy_lens.cli.options import Database, examples, path_given, words
from energy_lens.console import say
from energy_lens.errors import UsageError, did_you_mean

#: Formats, and the module and function that write each; only that of the chosen one is imported.
EXPORTS: dict[str, str] = {
    "html": "energy_lens.reports.site.render:export_site",
    "saedashboard": "energy_lens.reports.exports.saedashboard:export",
    "neuronpedia": "energy_lens.reports.exports.neuronpedia:export",
    "delphi": "energy_lens.reports.exports.delphi:export",
    "saebench": "energy_lens.analysis.saebench.export:export_saebench",
    "parquet": "energy_lens.reports.exports.parquet:export",
}

#: Formats whose numbers are measured on a sample of contexts.
MEASURED = ("saebench",)


@app.command(epilog=examples("elw export site/ --format html --features top:200"))
def export(
    output: Annotated[Path, typer.Argument(metavar="DIR", parser=path_given, help="Folder to write; made if need be.")],
    form: Annotated[
        str, typer.Option("--format", "-f", metavar="FORMAT", help="html, or that of another tool.")
    ] = "html",
    db: Database = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="WORD,...",
            help="all, top:N, class:NAME, LAYER:FEATURE; else what the format is mostly wanted for.",
        ),
    ] = None,
    contexts: Annotated[
        int | None,
        typer.Option("--contexts", metavar="N", help="Contexts that saebench measures on, drawn by a seed; else 64."),
    ] = None,
) -> None:
    """Write features of the current run as pages or as files for other tools; print the paths of the main files."""
    from importlib import import_module

    from energy_lens.warehouse.database import warehouse_path

    if form not in EXPORTS:
        raise UsageError(
            f"There is no export format {form!r}{did_you_mean(form, EXPORTS)}: choose {', '.join(EXPORTS)}."
        )
    module, _, function = EXPORTS[form].partition(":")
    write = getattr(import_module(module), function)
    if contexts is not None and form not in MEASURED:
        raise UsageError(f"--contexts is for {', '.join(MEASURED)}, which measures: {form} writes what is stored.")
    sample = {} if contexts is None else {"contexts": contexts}
    done = write(warehouse_path(db), output, None if features is None else words(features, "--features"), **sample)
    for path in done.files:
        print_line(path)
    for note in done.notes:
        say(note)
