"""`elw sae`: SAEs trained and evaluated on text, pulled, imported, exported and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from energy_lens.cli.app import sae_app
from energy_lens.cli.cluster import ClusterCommand, Ray, ThreadsPerWorker, Workers, cluster_of
from energy_lens.cli.listing import print_line, print_rows, rounded
from energy_lens.cli.options import (
    DEFAULT_MODEL,
    ActivationScale,
    Bos,
    BosChoice,
    Calibrate,
    CategoryColumn,
    ContextLength,
    CopyFolder,
    Dtype,
    Excludes,
    IdColumn,
    LayerOfSae,
    Layers,
    ListingFormat,
    Model,
    Paths,
    SaeFormat,
    Saes,
    TextColumn,
    TextFormat,
    examples,
    layers_to_train,
    numbers,
    path_given,
)
from energy_lens.console import say
from energy_lens.errors import ElwError, UsageError

if TYPE_CHECKING:
    from energy_lens.ingest.sae.figures import Evaluation
    from energy_lens.warehouse.output import Rows


@sae_app.command(
    "train",
    cls=ClusterCommand,
    epilog=examples(
        "elw sae train my-texts/ --model gpt2 --layers 4,6 --output my-saes/",
        "elw sae train my-texts/ --output my-saes/ --ray --workers 4",
    ),
)
def sae_train(
    paths: Paths,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=path_given,
            help="Folder for one folder a layer, or one a k and layer.",
        ),
    ],
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    features: Annotated[
        int | None, typer.Option("--features", metavar="N", help="Features; 2048 unless given.")
    ] = None,
    k: Annotated[
        str | None,
        typer.Option("--k", metavar="N,...", help="Active features a token; 8 unless given. One SAE a layer for each."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", metavar="NAME", help="topk, or batchtopk, which is saved as jumprelu."),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="NAME", help="adam, or lbfgs: Adam, then L-BFGS as a polish.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Distinct tokens to train on; 2,000,000 unless given.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option("--passes", metavar="N", help="Times that each token is trained on.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Tokens a step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="X", help="Adam's, at its highest.")
    ] = None,
    context: ContextLength = None,
    hook_point: Annotated[
        str, typer.Option("--hook-point", metavar="NAME", help="Where in each block, such as resid_mid or mlp_out.")
    ] = "resid_post",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of weights and token order.")] = 0,
    bos: BosChoice = Bos.auto,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model's forward pass; auto takes the faster one.")
    ] = Dtype.auto,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    ray: Ray = None,
    workers: Workers = None,
    threads_per_worker: ThreadsPerWorker = None,
    exclude: Excludes = None,
    text_column: TextColumn = None,
    category_column: CategoryColumn = None,
    id_column: IdColumn = None,
) -> None:
    """Train SAEs for every layer in one pass of the model over a corpus.

    Whatever stops it, the same command goes on from the last round.
    """
    import shutil

    import torch

    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.model.bos import settle_bos
    from energy_lens.ingest.model.loading import check_layers_of
    from energy_lens.ingest.model.precision import load_as_begun
    from energy_lens.ingest.model.window import settle_context_length
    from energy_lens.ingest.rows import Columns
    from energy_lens.ingest.sae.saving import save_sae
    from energy_lens.ingest.training.progress import TrainingBar
    from energy_lens.ingest.training.saes import TrainingConfig, train_saes
    from energy_lens.warehouse.locks import claimed_folder

    chosen = layers_to_train(layers, model)
    cluster = cluster_of(ray, workers, threads_per_worker)
    settings = {
        "d_sae": features, "ks": None if k is None else numbers(k, "--k"), "architecture": architecture,
        "optimizer": optimizer, "tokens": tokens, "passes": passes, "batch_size": batch_size,
        "learning_rate": learning_rate, "context_length": context, "point": hook_point,
    }  # fmt: skip
    config = TrainingConfig(seed=seed, **{name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]
    config = replace(config, context_length=settle_context_length(model, context))  # which may fetch the model
    check_layers_of(model, chosen)
    parents = [output] if len(config.ks) == 1 else [output / f"k_{n_active}" for n_active in config.ks]
    places = [parent / f"layer_{layer}" for parent in parents for layer in chosen]
    _check_none_exists(places)
    documents = discover(paths, tuple(exclude or ()), Columns(text_column, category_column, id_column))
    scratch = output / ".training"
    with claimed_folder(output, "elw sae train"):  # now: what cannot be written shall not cost an hour first
        _check_none_exists(places)  # once more: another training may have come first
        scratch.mkdir(exist_ok=True)
        try:
            language_model = load_as_begun(scratch, model, dtype.value, config.context_length, max(chosen))
            settle_bos(language_model, bos.value)
            with TrainingBar() as bar:
                saes = train_saes(language_model, documents, chosen, config, scratch, bar.update, cluster=cluster)
        except ElwError:
            if not any(scratch.glob("round_*/round.json")):  # there is nothing in it that took long
                shutil.rmtree(scratch)
            raise
        for sae, place in zip(saes, places, strict=True):
            save_sae(sae, place, torch.float16 if half else torch.float32)
            print_line(place)
        shutil.rmtree(scratch)


def _check_none_exists(places: Sequence[Path]) -> None:
    if taken := [folder for folder in places if folder.exists()]:
        raise UsageError(f"{taken[0]} exists already: choose another --output, or remove it.")


@sae_app.command("evaluate", epilog=examples("elw sae evaluate my-texts/ --model gpt2 --sae my-saes/"))
def sae_evaluate(
    paths: Paths,
    sae: Saes = None,
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", metavar="N", min=0, help="Tokens of a sample, balanced over categories; 0: all."),
    ] = 50_000,
    context: ContextLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Contexts in a forward pass.")] = 8,
    bos: BosChoice = Bos.auto,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model's passes; auto takes the faster one.")
    ] = Dtype.float32,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sample.")] = 0,
    ce_tokens: Annotated[
        int,
        typer.Option("--ce-tokens", metavar="N", min=0, help="Tokens of the sample whose losses are measured; 0: all."),
    ] = 16_000,
    no_ce: Annotated[
        bool, typer.Option("--no-ce", help="Leave out the model's loss with and without the SAE, most of the work.")
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the figures in the cfg.json of each --sae.")] = False,
    db: Annotated[
        Path | None,
        typer.Option(
            "--db",
            metavar="FILE",
            parser=path_given,
            help="A warehouse: store the figures with its runs that use these SAEs.",
        ),
    ] = None,
    exclude: Excludes = None,
    text_column: TextColumn = None,
    category_column: CategoryColumn = None,
    id_column: IdColumn = None,
    form: ListingFormat = TextFormat.table,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures, and what they were measured on, as JSON.")
    ] = False,
) -> None:
    """Measure how much SAEs leave out of text they never saw, and what that costs the model.

    FVU, cosine, L0 and dead features over included tokens; the model's loss with their residuals replaced by the SAE's
    reconstruction, by zero and by the mean. By category, pooled (all) and as the mean over categories (macro).
    """
    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.model.bos import settle_bos
    from energy_lens.ingest.model.precision import load_in
    from energy_lens.ingest.model.window import DEFAULT_CONTEXT, settle_context_length
    from energy_lens.ingest.rows import Columns
    from energy_lens.ingest.sae import evaluation as sae_evaluation
    from energy_lens.ingest.sae.choosing import saes_to_evaluate
    from energy_lens.ingest.sae.saving import check_keeps_figures, save_evaluation
    from energy_lens.warehouse import quality
    from energy_lens.warehouse.database import Warehouse, check_writable

    if save and not sae:
        raise UsageError("--save changes the folders given with --sae, and none was given: name them.")
    options = sae_evaluation.EvaluationOptions(
        max_tokens or None, DEFAULT_CONTEXT if context is None else context, batch_size, seed, ce=not no_ce,
        ce_tokens=ce_tokens or None,
    )  # fmt: skip
    options = replace(options, context_length=settle_context_length(model, context))  # which may fetch the model
    chosen = numbers(layers, "--layers") if layers is not None else None
    documents = discover(paths, tuple(exclude or ()), Columns(text_column, category_column, id_column))
    saes = saes_to_evaluate(model, chosen, sae or ())
    for entry in saes if save else ():  # now: what cannot be kept shall not cost the evaluation first
        check_keeps_figures(entry.source)
    language_model = load_in(model, dtype.value, options.context_length)
    settle_bos(language_model, bos.value, saes)
    if db is not None:
        check_writable(db)
        with Warehouse(db) as warehouse:  # before the work; and no warehouse is made for it
            used = [entry for entry in saes if quality.runs_of(warehouse, entry.sha256, language_model.sha256)]
            if not used:
                raise UsageError(f"No run of {db} uses any of these SAEs on {model}: leave out --db, or name another.")
    evaluations = sae_evaluation.evaluate(language_model, saes, documents, options)
    for note, noted_layers in _layers_by_note(evaluations).items():
        say(f"Layer {', '.join(map(str, noted_layers))}: {note}")
    if as_json:
        import json
        from dataclasses import asdict

        print_line(json.dumps([asdict(entry) for entry in evaluations], indent=2))
    else:
        print_rows(_rows_of_figures(evaluations), form)
    for evaluation in evaluations:
        if save:
            say(f"Saved with the SAE in {save_evaluation(evaluation)}.")
        if db is not None:
            with Warehouse(db, writable=True, create=False) as warehouse:
                runs = quality.store_evaluation(
                    warehouse, evaluation.sae_sha256, language_model.sha256, evaluation.as_dict()
                )
            where = f"with run {', '.join(map(str, runs))} of {db}" if runs else f"nowhere: no run of {db} uses it"
            say(f"The figures of {evaluation.source} are stored {where}.")


def _layers_by_note(evaluations: Sequence[Evaluation]) -> dict[str, list[int]]:
    """{note: the layers it is made of}, in order and without repetition."""
    layers: dict[str, list[int]] = {}
    for evaluation in evaluations:
        for note in evaluation.notes:
            if evaluation.layer not in layers.setdefault(note, []):
                layers[note].append(evaluation.layer)
    return layers


def _rows_of_figures(evaluations: Sequence[Evaluation]) -> Rows:
    """One row for each SAE and category, then its macro average and all tokens together."""
    from energy_lens.warehouse.output import Rows

    names = ["l0", "fvu", "cosine", "dead_share", "dense_share", "ce_clean", "delta_ce"]
    names += ["ce_recovered_zero", "ce_recovered_mean"]
    columns = [("layer", "integer"), ("category", "varchar"), ("n_tokens", "bigint")]
    columns += [(name, "double") for name in names] + [("folder", "varchar")]
    rows = [
        (entry.layer, category, figures.n_tokens, *(rounded(getattr(figures, name)) for name in names), entry.source)
        for entry in evaluations
        for category, figures in [*entry.categories.items(), ("macro", entry.macro), ("all", entry.all)]
    ]
    return Rows.of(columns, rows)


@sae_app.command("import", epilog=examples("elw sae import my-saes/layers.5 --model gpt2"))
def sae_import(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=path_given, help="An SAE's folder, of SAELens or sparsify.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model it was trained on.")],
    output: CopyFolder = None,
    layer: LayerOfSae = None,
    activation_scale: ActivationScale = None,
    calibrate: Calibrate = None,
) -> None:
    """Register an SAE for a model: check it, write a copy in SAELens v6 format, print its folder."""
    from energy_lens.ingest.sae.registry import import_sae as register

    print_line(register(folder, model, output, layer, activation_scale, tuple(calibrate or ())))


@sae_app.command("pull", epilog=examples("elw sae pull gpt2-small-res-jb/blocks.8.hook_resid_pre"))
def sae_pull(
    address: Annotated[
        str,
        typer.Argument(
            metavar="SAE",
            help="hf:owner/repo/path[@revision], or RELEASE/SAE_ID of SAELens' registry where sae-lens is installed.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model it was trained on; else the one that it names."),
    ] = None,
    output: CopyFolder = None,
    layer: LayerOfSae = None,
    activation_scale: ActivationScale = None,
    calibrate: Calibrate = None,
) -> None:
    """Fetch a published SAE from the Hugging Face hub and register it as elw sae import does; print its folder."""
    import shlex

    from energy_lens.ingest.sae.pulling import pull_sae

    folder, model_name = pull_sae(address, model, output, layer, activation_scale, tuple(calibrate or ()))
    print_line(folder)
    say(f"To read with it: elw ingest PATH --model {shlex.quote(model_name)} --sae {shlex.quote(str(folder))}")


@sae_app.command("export", epilog=examples("elw sae export my-saes/layers.5 --format saelens --output copy/"))
def sae_export(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=path_given, help="An SAE's folder, in any format that can be read.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", parser=path_given, help="Folder to write; sparsify's is layers.N in it."
        ),
    ],
    form: Annotated[SaeFormat, typer.Option("--format", "-f", help="Format to write.")] = SaeFormat.saelens,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
) -> None:
    """Write an SAE in another format; print its folder."""
    from energy_lens.ingest.sae.registry import export_sae as export

    print_line(export(folder, form.value, output, half))


@sae_app.command("list", epilog=examples("elw sae list --model smollm2-135m"))
def sae_list(model: Model = DEFAULT_MODEL, form: ListingFormat = TextFormat.table) -> None:
    """List a model's SAEs, those of the package and the registered ones, with their figures on held-out documents."""
    from energy_lens.ingest.sae.choosing import listed
    from energy_lens.warehouse.output import Rows

    figures = ("l0", "fvu", "cosine", "dead_share")
    saes = listed(model)
    if not saes:
        raise UsageError(
            f"No SAE comes with the package for {model}, and none is registered: train one with elw sae train, "
            "or register one with elw sae pull or elw sae import."
        )
    columns = [
        ("layer", "integer"),
        ("hook", "varchar"),
        ("source", "varchar"),
        ("architecture", "varchar"),
        ("features", "integer"),
    ]
    columns += [("k", "integer"), ("norm_median", "double"), *((name, "double") for name in figures)]
    rows = [
        (
            sae.layer,
            sae.hook_name if not sae.is_transcoder else f"{sae.hook_name} > {sae.site_out.hook_name}",
            source,
            sae.architecture,
            sae.d_sae,
            sae.k,
            rounded(sae.norm_median),
            *(rounded(sae.metadata.get(name)) for name in figures),
            sae.metadata.get("trained_tokens"),
            sae.source,
        )
        for source, sae in saes
    ]
    print_rows(Rows.of([*columns, ("trained_tokens", "bigint"), ("folder", "varchar")], rows), form)
