"""`elw intervene`: features edited, and what that did; and `try`: one feature on a text of yours."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli import completion
from energy_lens.cli.app import intervene_app
from energy_lens.cli.cluster import ClusterGroup, Ray, ThreadsPerWorker, Workers, cluster_of
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import (
    Database,
    Dtype,
    ListingFormat,
    TextFormat,
    examples,
    factors,
    leave_aside,
    numbers,
    refuse_before,
    typed,
    words,
)
from energy_lens.console import say
from energy_lens.errors import require
from energy_lens.warehouse.features import FeatureName

EditKind = Annotated[str, typer.Option("--kind", metavar="KIND", help="ablate, scale, clamp or add.")]
EditValue = Annotated[
    float | None, typer.Option("--value", metavar="X", help="Of scale (factor), clamp (target) and add.")
]
EditPlace = Annotated[
    str, typer.Option("--where", metavar="PLACE", help="active: where the feature is; all: all included tokens.")
]
PassDtype = Annotated[
    Dtype, typer.Option("--dtype", help="Precision of the passes; float32 resolves the least effects, auto is faster.")
]
ShownRows = Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Rows to show, 0 for all.")]

#: Length of a continuation when no number is given.
TRY_TOKENS = 20

#: What `--text`, the older spelling of `try`, can be combined with.
TRY_PARAMETERS = ("db", "features", "kind", "value", "where", "dtype", "text", "tokens", "rows", "form")


@intervene_app.callback(
    cls=ClusterGroup,
    invoke_without_command=True,
    epilog=examples(
        "elw intervene --layer 20 --features top:25,random:25",
        "elw intervene --layer 20 --features random:30 --dose 0.125,0.25,0.5,2",
        "elw intervene --features random:100 --ray --workers 4",
    ),
)
def intervene_measure(
    context: typer.Context,
    db: Database = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            metavar="N,N,...",
            autocompletion=completion.layers,
            help="Layers; else all of the run, or the listed ones.",
        ),
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
    kind: EditKind = "ablate",
    value: EditValue = None,
    where: EditPlace = "active",
    contexts: Annotated[
        int, typer.Option("--contexts", metavar="N", help="Contexts to measure on, from every category and half.")
    ] = 96,
    probes: Annotated[int, typer.Option("--probes", metavar="N", help="Curvature probes of each kind.")] = 3,
    directions: Annotated[
        int, typer.Option("--directions", metavar="N", help="Control directions of each kind beside each feature.")
    ] = 1,
    controls: Annotated[
        str,
        typer.Option(
            "--controls",
            metavar="KIND,...",
            help="isotropic and covariance: random ones, the latter as residuals vary; decoder: of other features.",
        ),
    ] = "isotropic,covariance,decoder",
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
    dose: Annotated[
        str | None,
        typer.Option(
            "--dose",
            metavar="X,X,...",
            help="Also measure each patch with its change multiplied by these, for the exponent of what it does.",
        ),
    ] = None,
    dtype: PassDtype = Dtype.float32,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Patches in a forward pass.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of contexts, random features, directions and probes.")
    ] = 0,
    ray: Ray = None,
    workers: Workers = None,
    threads_per_worker: ThreadsPerWorker = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="The older spelling of elw intervene try TEXT.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="With --text: length of the continuation.")
    ] = TRY_TOKENS,
    rows: ShownRows = 20,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Edit single features and measure what it does to the model, beside what every score predicted.

    Effects go to the tables and views interventions, intervention_effects and predictor_validation. Whatever stops it,
    the same command goes on where it stood. try shows one feature on a text of yours instead.
    """
    options = typed(context)
    if context.invoked_subcommand is not None:
        refuse_before(context.invoked_subcommand, options.values())
        return
    if text is not None:
        require("features" in options, "--text takes one feature: say --feature 15:656 (layer:feature).")
        say("--text is now spelled elw intervene try TEXT; the older spelling goes on working.")
        leave_aside((option for name, option in options.items() if name not in TRY_PARAMETERS), "try")
        feature = ",".join(words(features, "--features"))
        intervene_try(text, feature, kind, value, where, tokens, dtype, rows, form, db)
        return
    if "tokens" in options:
        say("--tokens is of elw intervene try and changes nothing here.")
    from energy_lens.analysis.interventions.edits import Edit
    from energy_lens.analysis.interventions.effects import effect_sentences, effects
    from energy_lens.analysis.interventions.options import InterventionOptions
    from energy_lens.analysis.interventions.run import intervene
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    intervention = InterventionOptions(
        edit=Edit(kind, value, where), features=tuple(words(features, "--features")),
        layers=numbers(layer, "--layer") if layer is not None else None, by=by, contexts=contexts, probes=probes,
        directions=directions,
        controls=tuple(words(controls, "--controls")), path_points=path, hessian=hessian, shift=shift,
        doses=factors(dose, "--dose") if dose is not None else (),
        dtype=dtype.value, batch_size=batch_size, seed=seed, cluster=cluster_of(ray, workers, threads_per_worker),
    )  # fmt: skip
    done = intervene(warehouse_path(db), intervention)
    with Warehouse(db) as warehouse:
        print_rows(effects(warehouse, done, rows if form is TextFormat.table else 0), form)
        for sentence in effect_sentences(warehouse, done):
            say(sentence)


@intervene_app.command(
    "try", epilog=examples('elw intervene try "The quick brown fox" --feature 20:1758 --kind ablate')
)
def intervene_try(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text, of at least two tokens.")],
    feature: Annotated[
        str, typer.Option("--feature", "--features", metavar="LAYER:FEATURE", help="The feature to edit, as in 15:656.")
    ],
    kind: EditKind = "ablate",
    value: EditValue = None,
    where: EditPlace = "active",
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Length of the continuation.")] = TRY_TOKENS,
    dtype: PassDtype = Dtype.float32,
    rows: ShownRows = 20,
    form: ListingFormat = TextFormat.table,
    db: Database = None,
) -> None:
    """Edit one feature on a text: next-token probabilities before and after, and a greedy continuation of each.

    The continuation is edited as it grows, so a feature that is inactive in the text may still change it. Nothing is
    stored.
    """
    from energy_lens.analysis.interventions.edits import Edit
    from energy_lens.analysis.interventions.example import try_on_text

    name, edit = FeatureName.parse(feature, "--feature"), Edit(kind, value, where)
    example = try_on_text(db, text, name, edit, tokens, dtype.value)
    print_rows(example.rows(rows), form)
    for sentence in example.sentences():
        say(sentence)
