"""`elw attractors`: basins of a layer's decoder."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import Database, ListingFormat, TextFormat, numbers
from energy_lens.console import say
from energy_lens.errors import UsageError


@app.command()
def attractors(
    db: Database = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="N,N,...", help="Layers; else all of the run.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens of the sample.")] = 4_096,
    perplexity: Annotated[
        float,
        typer.Option("--perplexity", metavar="X", help="Median number of decoder rows that a fixed point is made of."),
    ] = 16.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sample and the random dictionary.")] = 0,
    patch: Annotated[
        str | None,
        typer.Option(
            "--patch",
            metavar="LAYER:FEATURE",
            help="Find how far this feature must be scaled to change the basin at the next hooked layer instead.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Attractors a layer to show, 0: all.")] = 10,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Let residuals fall to the fixed points of a Hopfield network whose memories are the SAE's decoder rows.

    Attractors, basins, a sweep of β and a random dictionary as a null go to the tables attractors, basins,
    attractor_settings, attractor_sweeps and attractor_descents.
    """
    from energy_lens.analysis.attractors import run as attractor_run
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    if patch is not None:
        from energy_lens.analysis.attractors import doses as attractor_shift

        words = patch.split(":")
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            raise UsageError(f"--patch is {patch!r}; say layer and feature, as in 15:656.")
        dose = attractor_shift.DoseOptions(int(words[0]), int(words[1]), min(tokens, 32), seed)
        attractor_shift.critical_doses(warehouse_path(db), dose)
        with Warehouse(db) as warehouse:
            print_rows(attractor_shift.doses(warehouse, dose), form)
        return
    options = attractor_run.AttractorOptions(
        layers=numbers(layer, "--layer") if layer is not None else None, tokens=tokens, target=perplexity, seed=seed
    )
    layers = attractor_run.find_attractors(warehouse_path(db), options)
    with Warehouse(db) as warehouse:
        print_rows(attractor_run.listing(warehouse, layers, rows if form is TextFormat.table else 0), form)
        for sentence in attractor_run.summaries(warehouse, layers):
            say(sentence)
