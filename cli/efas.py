"""`elw efas test` and `replay-draft`: a warehouse, or a model and noise, in; how far EFAS can be believed out."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli import completion
from energy_lens.cli.app import efas_app
from energy_lens.cli.listing import print_rows, rounded, to_six_digits
from energy_lens.cli.options import (
    DEFAULT_MODEL,
    Database,
    Layers,
    ListingFormat,
    Model,
    Saes,
    TextFormat,
    examples,
    numbers,
    words,
)
from energy_lens.console import say


@efas_app.command("test", epilog=examples("elw efas test --energy nll --layer 10,20 --permutations 10000"))
def efas_test(
    db: Database = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="N,N,...", autocompletion=completion.layers, help="Layers to test; else all of the run."
        ),
    ] = None,
    energy: Annotated[
        str | None,
        typer.Option(
            "--energy",
            metavar="NAME,...",
            autocompletion=completion.energies,
            help="Energies to test; else all of the run.",
        ),
    ] = None,
    category: Annotated[
        str,
        typer.Option(
            "--category", metavar="NAME", autocompletion=completion.categories, help="A category of documents, or all."
        ),
    ] = "all",
    permutations: Annotated[
        int, typer.Option("--permutations", metavar="N", min=19, help="Random pairings of documents.")
    ] = 1_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of permutations and sample.")] = 0,
    contexts: Annotated[
        int | None,
        typer.Option(
            "--contexts", metavar="N", min=1, help="Sample of contexts; else all with stored gradients, or 256 anew."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=0, help="Rows of a table to show, strongest first; 0 for all.")
    ] = 40,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Check z by permuting documents: a feature's activations with the gradients of other documents.

    Whatever efas tests is tested again without the normal distribution. Gradients are those stored by ingest
    --store-gradients, or taken anew on a sample of contexts. Nothing is written.
    """
    from energy_lens.analysis import permutation_check as check
    from energy_lens.analysis.permutation_inputs import PermutationOptions
    from energy_lens.warehouse.output import Rows

    options = PermutationOptions(
        layers=numbers(layer, "--layer") if layer is not None else None,
        energies=tuple(words(energy, "--energy")) if energy is not None else None,
        category=category,
        permutations=permutations,
        contexts=contexts,
        seed=seed,
    )
    outcomes = check.check_run(db, options)
    columns = [("layer", "integer"), ("energy", "varchar"), ("feature", "integer"), ("n_active", "bigint")]
    columns += [("n_contexts", "bigint"), ("statistic", "double"), ("z_permutation", "double")]
    columns += [("p_permutation", "double"), ("q_permutation", "double"), ("p_sum", "double")]
    columns += [("z", "double"), ("p_value", "double"), ("q_value", "double")]
    tested = sorted((row for outcome in outcomes for row in outcome.rows()), key=lambda row: (row[7], -abs(row[6])))
    shown = tested[:rows] if form is TextFormat.table and rows else tested
    print_rows(Rows.of(columns, [[to_six_digits(value) for value in row] for row in shown]), form)
    if len(shown) < len(tested):
        say(f"{len(shown)} of {len(tested):,} rows are shown: --rows 0 shows all.")
    for sentence in check.permutation_sentences(outcomes):
        say(sentence)


@efas_app.command("replay-draft", epilog=examples("elw efas replay-draft --repetitions 100 --seed 1"))
def efas_replay_draft(
    model: Model = DEFAULT_MODEL,
    sae: Saes = None,
    layers: Layers = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the noise and the permutations.")] = 0,
    repetitions: Annotated[
        int, typer.Option("--repetitions", metavar="N", min=1, help="How often noise is drawn.")
    ] = 20,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Replay the draft's protocol on a model and on noise: what 496 alignments of up to 0.8559 are worth.

    Five short texts; of each text and layer the 20 features whose activation goes most with the energy gradient, from
    |r| = 0.1 on. Noise is drawn several times: means are shown, and standard deviations (_sd). Needs no warehouse.
    """
    from dataclasses import asdict

    from energy_lens.analysis.replay import check_drawing, conclusion, replay
    from energy_lens.ingest.model import loading as models
    from energy_lens.ingest.model.bos import settle_bos
    from energy_lens.ingest.sae.choosing import choose_saes
    from energy_lens.warehouse.output import Rows

    check_drawing(seed, repetitions)
    chosen = numbers(layers, "--layers") if layers is not None else None
    saes = choose_saes(model, chosen, sae or ())
    language_model = models.load_model(model)
    settle_bos(language_model, "auto", saes.values())
    arms = replay(language_model, list(saes.values()), seed, repetitions)
    figures = ["tested", "alignments", "mean_r", "p95_r", "max_r", "survive_t", "survive_permutation"]
    spreads = ["mean_r", "p95_r", "max_r", "survive_permutation"]
    columns = [("arm", "varchar"), ("repetitions", "integer"), *((name, "double") for name in figures)]
    rows = []
    for arm in arms:
        means, spread = asdict(arm.figures), asdict(arm.spread) if arm.spread else {}
        rows.append(
            (
                arm.name,
                arm.repetitions,
                *(rounded(means[n]) for n in figures),
                *(rounded(spread.get(n)) for n in spreads),
            )
        )
    print_rows(Rows.of([*columns, *((f"{name}_sd", "double") for name in spreads)], rows), form)
    for sentence in conclusion(arms):
        say(sentence)
