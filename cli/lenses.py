"""`elw lens`: a corpus and a model in, tuned lenses fitted to a file and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from energy_lens.cli.app import lens_app
from energy_lens.cli.listing import print_rows, rounded
from energy_lens.cli.options import (
    DEFAULT_MODEL,
    Bos,
    BosChoice,
    CategoryColumn,
    ContextLength,
    Dtype,
    Excludes,
    IdColumn,
    Layers,
    ListingFormat,
    Model,
    Paths,
    TextColumn,
    TextFormat,
    examples,
    layers_to_train,
    path_given,
)
from energy_lens.console import bar, say
from energy_lens.errors import UsageError

if TYPE_CHECKING:
    from energy_lens.warehouse.output import Rows


@lens_app.command("train", epilog=examples("elw lens train my-text/ --model gpt2 --output gpt2.lens.safetensors"))
def lens_train(
    paths: Paths,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", parser=path_given, help="File for the maps, .safetensors.")
    ],
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Training tokens.")] = 131_072,
    context: ContextLength = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the token order.")] = 0,
    bos: BosChoice = Bos.auto,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model's passes; auto takes the faster one.")
    ] = Dtype.auto,
    half: Annotated[bool, typer.Option("--half", help="Store the maps in float16.")] = False,
    exclude: Excludes = None,
    text_column: TextColumn = None,
    category_column: CategoryColumn = None,
    id_column: IdColumn = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Fit each layer's tuned lens on the training documents of a corpus, and measure it on held-out ones."""
    import torch

    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.energies.translators import save_translators
    from energy_lens.ingest.model.bos import settle_bos
    from energy_lens.ingest.model.loading import check_layers_of
    from energy_lens.ingest.model.precision import load_in
    from energy_lens.ingest.model.window import LEAST_CONTEXT, settle_context_length
    from energy_lens.ingest.rows import Columns
    from energy_lens.ingest.training.lenses import FitOptions, fit_translators
    from energy_lens.warehouse.locks import claimed_file

    options = FitOptions(
        tokens=tokens, context_length=LEAST_CONTEXT if context is None else context, seed=seed
    )  # before a model is fetched
    options = replace(options, context_length=settle_context_length(model, context))
    chosen = layers_to_train(layers, model)
    check_layers_of(model, chosen)
    if output.exists():
        raise UsageError(f"{output} exists already: choose another --output, or remove it.")
    with claimed_file(output, "elw lens train"):  # now: what cannot be written shall not cost the fit first
        documents = discover(paths, tuple(exclude or ()), Columns(text_column, category_column, id_column))
        language_model = load_in(model, dtype.value, options.context_length)
        settle_bos(language_model, bos.value)
        with bar("", 1.0, form="{desc}{percentage:.1f}% [{elapsed}<{remaining}]") as progress:

            def show(what: str, share: float) -> None:
                if what != progress.desc.removesuffix(": "):
                    progress.reset()
                    progress.set_description(what)
                progress.update(share - progress.n)

            translators = fit_translators(language_model, documents, chosen, options, show)
        save_translators(translators, output, torch.float16 if half else torch.float32)
    if held_out := translators.metadata.get("held_out"):
        say(f"On {held_out['tokens']:,} tokens of documents that were held out, in nats:")
        print_rows(_rows_of_held_out(held_out), form)
    else:
        say("No document was held out, so nothing was measured: that needs 3 documents in a category.")


def _rows_of_held_out(held_out: Mapping[str, Any]) -> Rows:
    """A row a layer: losses and divergences on held-out tokens, in nats."""
    from energy_lens.warehouse.output import Rows

    names = ["logit_lens_loss", "tuned_lens_loss", "logit_lens_kl", "tuned_lens_kl"]
    columns = [("layer", "integer"), *((name, "double") for name in names), ("output_loss", "double")]
    rows = [
        [int(layer), *(rounded(figures[name]) for name in names), rounded(held_out["output_loss"])]
        for layer, figures in held_out["layers"].items()
    ]
    return Rows.of(columns, rows)
