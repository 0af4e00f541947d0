"""`elw intervene`: features edited, and what that did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import Database, ListingFormat, TextFormat, TrainingDtype, numbers, words
from energy_lens.console import say

if TYPE_CHECKING:
    pass


@app.command()
def intervene(
    db: Database = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="N,N,...", help="Layers; else all of the run, or the listed ones.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            "--features",
            "--feature",
            metavar="WORD,...",
            help="top:N, random:N (firing as often as the others), LAYER:FEATURE, class:NAME; combined at will.",
        ),
    ] = "top:25,random:25",
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="SCORE",
            help="What top goes by, in size: attribution, score, z, attribution_curvature, mi_excess, density.",
        ),
    ] = "attribution",
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="ablate, scale, clamp or add.")] = "ablate",
    value: Annotated[
        float | None, typer.Option("--value", metavar="X", help="Of scale (factor), clamp (target) and add.")
    ] = None,
    where: Annotated[
        str, typer.Option("--where", metavar="PLACE", help="active: where the feature is; all: all included tokens.")
    ] = "active",
    contexts: Annotated[
        int, typer.Option("--contexts", metavar="N", help="Contexts to measure on, from every category and half.")
    ] = 96,
    probes: Annotated[int, typer.Option("--probes", metavar="N", help="Curvature probes of each kind.")] = 3,
    directions: Annotated[
        int, typer.Option("--directions", metavar="N", help="Random directions beside each feature, as a control.")
    ] = 1,
    hessian: Annotated[
        bool, typer.Option("--hessian", help="Also predict by a Hessian-vector product for each patch; slow.")
    ] = False,
    path: Annotated[
        int,
        typer.Option("--path", metavar="N", help="Also integrate gradients along each path, at N points; slow."),
    ] = 0,
    shift: Annotated[
        int,
        typer.Option(
            "--shift", metavar="N", help="Also read attractors of later layers, at edited and N later tokens; slow."
        ),
    ] = 0,
    dtype: Annotated[TrainingDtype, typer.Option("--dtype", help="Precision of the passes.")] = TrainingDtype.float32,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Patches in a forward pass.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of contexts, random features, directions and probes.")
    ] = 0,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Try one feature on this text instead; nothing is stored."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="With --text: length of the continuation.")] = 20,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Rows to show, 0 for all.")] = 20,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Edit single features and measure what it does to the model, beside what every score predicted.

    Effects go to the tables and views interventions, intervention_effects and predictor_validation. Whatever stops it,
    the same command goes on where it stood. --text shows one feature on a text of yours instead.
    """
    from energy_lens.analysis.interventions.edits import Edit
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    edit = Edit(kind, value, where)
    chosen = tuple(words(features, "--features"))
    if text is not None:
        from energy_lens.analysis.interventions.example import try_on_text

        example = try_on_text(db, text, chosen, edit, tokens, dtype.value)
        print_rows(example.rows(rows), form)
        for sentence in example.sentences():
            say(sentence)
        return
    from energy_lens.analysis.interventions.effects import effects, summaries
    from energy_lens.analysis.interventions.run import InterventionOptions, intervene

    options = InterventionOptions(
        edit=edit, layers=numbers(layer, "--layer") if layer is not None else None, features=chosen, by=by,
        contexts=contexts, probes=probes, directions=directions, path_points=path, hessian=hessian, shift=shift,
        dtype=dtype.value,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    done = intervene(warehouse_path(db), options)
    with Warehouse(db) as warehouse:
        found = effects(warehouse, done, rows if form is TextFormat.table else 0)
        print_rows(found, form)
        for sentence in summaries(warehouse, done):
            say(sentence)
