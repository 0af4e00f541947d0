"""`elw ingest`: text, a model and SAEs in, a filled warehouse out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from energy_lens.cli import completion
from energy_lens.cli.app import app
from energy_lens.cli.cluster import ClusterCommand, Ray, ThreadsPerWorker, Workers, cluster_of
from energy_lens.cli.listing import print_line
from energy_lens.cli.options import (
    DEFAULT_MODEL,
    Bos,
    BosChoice,
    CategoryColumn,
    Compile,
    ContextLength,
    Database,
    Dtype,
    Excludes,
    IdColumn,
    Layers,
    Model,
    Paths,
    Saes,
    TextColumn,
    examples,
    numbers,
    path_given,
    words,
)
from energy_lens.console import say
from energy_lens.errors import UsageError

if TYPE_CHECKING:
    from energy_lens.ingest.pipeline import IngestOptions
    from energy_lens.ingest.pipes import Pipe


@app.command(
    cls=ClusterCommand,
    epilog=examples("elw ingest my-corpus/ --model gpt2 --train-saes", "elw ingest my-corpus/ --ray --workers 4"),
)
def ingest(
    paths: Paths,
    db: Database = None,
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    sae: Saes = None,
    energies: Annotated[
        str,
        typer.Option(
            "--energies",
            autocompletion=completion.known_energies,
            metavar="NAME,...",
            help="Of nll, logit_lens, tuned_lens, attention, native, hopfield; or package.module:Class for your own.",
        ),
    ] = "nll,hopfield",
    train_saes: Annotated[
        bool,
        typer.Option("--train-saes", help="Train SAEs first, in minutes, for layers that have none; they are kept."),
    ] = False,
    train_on: Annotated[
        list[Path] | None,
        typer.Option(
            "--train-on",
            metavar="PATH",
            parser=path_given,
            help="Text to train them on, as PATH; repeatable; else the corpus and the package's sample.",
        ),
    ] = None,
    sae_tokens: Annotated[
        int | None,
        typer.Option("--sae-tokens", metavar="N", help="Tokens to train them on; 100,000 unless given."),
    ] = None,
    lens: Annotated[
        Path | None,
        typer.Option(
            "--lens",
            metavar="FILE",
            parser=path_given,
            help="Maps of the energy tuned_lens; else those shipped for the model.",
        ),
    ] = None,
    context: ContextLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Contexts in a forward pass.")] = 8,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model's passes; auto takes the faster one.")
    ] = Dtype.auto,
    bos: BosChoice = Bos.auto,
    compiled: Annotated[
        Compile,
        ContextLength,
        typer.Option(
            "--compile",
            help="Fuse the model's blocks by a C++ compiler; auto: from 50,000 tokens on, or 10,000 if done before.",
        ),
    ] = Compile.auto,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", help="Stop at the first group end at or after N tokens; a larger N goes on."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the document order and the calibration.")] = 0,
    store_gradients: Annotated[
        bool, typer.Option("--store-gradients", help="Keep every token's gradient vector, which makes a large file.")
    ] = False,
    probes: Annotated[
        int,
        typer.Option(
            "--probes", metavar="N", help="Backward passes for attribution_curvature; 3 predict an ablation well."
        ),
    ] = 0,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Start afresh although a run with equal settings exists.")
    ] = False,
    ray: Ray = None,
    workers: Workers = None,
    threads_per_worker: ThreadsPerWorker = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Plan and calibrate, and compute nothing: the same command without it goes on."
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="I/N", help="Compute the I-th of N equal parts of the plan alone; elw merge joins them."
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            metavar="DIR",
            help="Write finished groups as Parquet below a folder or URL, as s3://bucket/path; elw merge takes them "
            "in.",
        ),
    ] = None,
    exclude: Excludes = None,
    text_column: TextColumn = None,
    category_column: CategoryColumn = None,
    id_column: IdColumn = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Run a model and its SAEs over text and store what they say.

    Whatever stops it, the same command goes on where it stood; on an unchanged corpus it does nothing.
    """
    from energy_lens.ingest import pipeline
    from energy_lens.ingest.pipes import held
    from energy_lens.ingest.rows import Columns
    from energy_lens.warehouse.database import warehouse_path
    from energy_lens.warehouse.shards import Shard

    options = pipeline.IngestOptions(
        db=warehouse_path(db),
        model=model,
        layers=numbers(layers, "--layers") if layers is not None else None,
        saes=tuple(sae or ()),
        energies=tuple(words(energies, "--energies")),
        lens=lens,
        context_length=context,
        batch_size=batch_size,
        dtype=dtype.value,
        bos=bos.value,
        compile=compiled.value,
        max_tokens=max_tokens,
        seed=seed,
        store_gradients=store_gradients,
        probes=probes,
        new_run=new_run,
        exclude=tuple(exclude or ()),
        columns=Columns(text_column, category_column, id_column),
        cluster=cluster_of(ray, workers, threads_per_worker),
        plan_only=plan_only,
        shard=None if shard is None else Shard.parse(shard),
        stage=stage,
    )
    notes: list[str] = []
    corpus = held(paths)  # for the SAEs and the run both
    if train_saes or train_on:
        options, notes = _with_trained(corpus, options, train_on, sae_tokens)
    elif sae_tokens is not None:
        raise UsageError("--sae-tokens has no meaning where no SAE is trained: add --train-saes.")
    summary = pipeline.ingest(corpus, options)
    summary.notes[:0] = notes
    if as_json:
        import json

        print_line(json.dumps(summary.as_dict(), indent=2))
    else:
        say(str(summary))
    if summary.interrupted:
        raise typer.Exit(130)


def _with_trained(
    paths: Sequence[str | Path | Pipe], options: IngestOptions, train_on: Sequence[Path] | None, tokens: int | None
) -> tuple[IngestOptions, list[str]]:
    """The options with an SAE for every layer, trained where there was none, and sentences on these."""
    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.model.window import settle_context_length
    from energy_lens.ingest.training.missing import MissingSaes, complete_saes
    from energy_lens.warehouse.database import check_writable

    check_writable(options.db)  # now: what cannot be written shall not cost the training first
    how = MissingSaes() if tokens is None else MissingSaes(tokens=tokens)
    context_length = settle_context_length(options.model, options.context_length)
    options = replace(options, context_length=context_length)
    text = discover(train_on, options.exclude, options.columns) if train_on else None
    folders, notes = complete_saes(
        options.model, options.layers, options.saes, lambda: discover(paths, options.exclude, options.columns), text,
        how, options.dtype, options.bos, lambda: context_length, options.cluster,
    )  # fmt: skip
    if not notes:
        say("Every layer has an SAE at hand: none is trained.")
    return replace(options, saes=folders), notes
