"""`elw attractors`: basins of a layer's decoder; `dose`: how far a feature must be scaled to change one; `native`."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli import completion
from energy_lens.cli.app import attractors_app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import (
    Database,
    ListingFormat,
    TextFormat,
    examples,
    leave_aside,
    numbers,
    refuse_before,
    typed,
)
from energy_lens.console import say
from energy_lens.warehouse.features import FeatureName

#: Tokens of `dose` when no number is given.
DOSE_TOKENS = 32


@attractors_app.callback(invoke_without_command=True, epilog=examples("elw attractors --layer 12,20"))
def attractors_find(
    context: typer.Context,
    db: Database = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="N,N,...", autocompletion=completion.layers, help="Layers; else all of the run."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens of the sample.")] = 4_096,
    perplexity: Annotated[
        float,
        typer.Option("--perplexity", metavar="X", help="Median number of decoder rows that a fixed point is made of."),
    ] = 16.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sample and the random dictionary.")] = 0,
    patch: Annotated[
        str | None,
        typer.Option("--patch", metavar="LAYER:FEATURE", help="The older spelling of elw attractors dose."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Attractors a layer to show, 0: all.")] = 10,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Let residuals fall to the fixed points of a Hopfield network whose memories are the SAE's decoder rows.

    Attractors, basins, a sweep of β and a random dictionary as a null go to the tables attractors, basins,
    attractor_settings, attractor_sweeps and attractor_descents.
    """
    options = typed(context)
    if context.invoked_subcommand is not None:
        refuse_before(context.invoked_subcommand, options.values())
        return
    if patch is not None:
        name = FeatureName.parse(patch, "--patch")
        say(f"--patch {name} is now spelled elw attractors dose {name}; the older spelling goes on working.")
        leave_aside((options[name] for name in ("layer", "perplexity") if name in options), "dose")
        dose_tokens = tokens if "tokens" in options else DOSE_TOKENS
        attractors_dose(str(name), dose_tokens, seed, rows if "rows" in options else 0, form, db)
        return
    from energy_lens.analysis.attractors import run as attractor_run
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    attractor_options = attractor_run.AttractorOptions(
        layers=numbers(layer, "--layer") if layer is not None else None, tokens=tokens, target=perplexity, seed=seed
    )
    layers = attractor_run.find_attractors(warehouse_path(db), attractor_options)
    limit = rows if form is TextFormat.table else 0
    with Warehouse(db) as warehouse:
        print_rows(attractor_run.largest_attractors(warehouse, layers, limit), form)
        for sentence in attractor_run.attractor_sentences(warehouse, layers):
            say(sentence)


@attractors_app.command("dose", epilog=examples("elw attractors dose 12:1848"))
def attractors_dose(
    feature: Annotated[str, typer.Argument(metavar="LAYER:FEATURE", help="The feature to scale, as in 15:656.")],
    tokens: Annotated[
        int,
        typer.Option("--tokens", metavar="N", help="Tokens at which it is active, a sample; fewer where there are."),
    ] = DOSE_TOKENS,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sample.")] = 0,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Tokens to show, 0: all.")] = 0,
    form: ListingFormat = TextFormat.table,
    db: Database = None,
) -> None:
    """Find how far a feature must be scaled at a token to change that token's basin at the next hooked layer.

    Doses go to the table critical_doses. The attractors must be known: run elw attractors first.
    """
    from energy_lens.analysis.attractors.doses import DoseOptions, critical_doses, dose_rows
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    name = FeatureName.parse(feature, "LAYER:FEATURE")
    options = DoseOptions(name.layer, name.feature, tokens, seed)
    critical_doses(warehouse_path(db), options)
    with Warehouse(db) as warehouse:
        print_rows(dose_rows(warehouse, options, rows if form is TextFormat.table else 0), form)


@attractors_app.command("native", epilog=examples("elw attractors native --db native.duckdb"))
def attractors_native(
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="N,N,...", autocompletion=completion.layers, help="Whose features are edited; else all."
        ),
    ] = None,
    contexts: Annotated[int, typer.Option("--contexts", metavar="N", help="Contexts of the sample.")] = 48,
    features: Annotated[
        int, typer.Option("--features", metavar="N", help="Features of a layer that are edited, a sample; 0: none.")
    ] = 24,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens at which each is edited.")] = 8,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of the sample, the random weights and the directions.")
    ] = 0,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Attractors to show, 0: all.")] = 10,
    form: ListingFormat = TextFormat.table,
    db: Database = None,
) -> None:
    """Let tokens settle on an energy transformer's own landscape, and see what single features do to that.

    For runs of models that elw energy-model train made. Tables native_settings, native_attractors, native_basins and
    native_patches; views native_agreement and native_patch_effects. Untrained weights are the null.
    """
    from energy_lens.analysis.native import run as native_run
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    options = native_run.NativeOptions(
        layers=numbers(layer, "--layer") if layer is not None else None, contexts=contexts, features=features,
        tokens=tokens, seed=seed,
    )  # fmt: skip
    native_run.find_native_attractors(warehouse_path(db), options)
    with Warehouse(db) as warehouse:
        print_rows(native_run.largest_native_attractors(warehouse, rows if form is TextFormat.table else 0), form)
        for sentence in native_run.native_sentences(warehouse):
            say(sentence)
