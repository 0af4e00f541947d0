"""`elw energy-model`: a corpus in, a small language model trained on it out, energy transformer or plain; its card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from energy_lens.cli.app import energy_model_app
from energy_lens.cli.listing import print_line, print_rows, rounded
from energy_lens.cli.options import (
    CategoryColumn,
    Excludes,
    IdColumn,
    ListingFormat,
    Paths,
    Precision,
    TextColumn,
    TextFormat,
    examples,
    path_given,
    typed,
)
from energy_lens.console import say
from energy_lens.errors import UsageError

if TYPE_CHECKING:
    from energy_lens.ingest.training.energy_model_evaluation import HeldOut
    from energy_lens.warehouse.output import Rows

#: Options that a model which is trained further has settled, by their parameters.
SETTLED = ("plain", "width", "steps", "heads", "memories", "vocabulary")


@energy_model_app.command(
    "train",
    epilog=examples(
        "elw energy-model train my-texts/ --output my-model/",
        "elw energy-model train my-texts/ --output my-plain-model/ --plain",
    ),
)
def energy_model_train(
    command: typer.Context,
    paths: Paths,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", parser=path_given, help="Folder for the model.")
    ],
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Train a plain transformer with as many parameters instead, to compare with."),
    ] = False,
    begin_from: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="DIR",
            parser=path_given,
            help="Train a model of this command further: its weights and tokenizer, a new optimizer.",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="Tokens to train on, repetitions counted.")
    ] = 10_000_000,
    width: Annotated[
        int, typer.Option("--width", metavar="N", help="Numbers of the residual stream of the energy transformer.")
    ] = 256,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Steps down the landscape; blocks of a plain transformer.")
    ] = 6,
    heads: Annotated[int, typer.Option("--heads", metavar="N", help="Attention heads of the energy transformer.")] = 8,
    memories: Annotated[
        int, typer.Option("--memories", metavar="N", help="Memories of the landscape, as hidden units are.")
    ] = 1024,
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", metavar="N", help="Entries of the tokenizer, at most.")
    ] = 4096,
    context: Annotated[int, typer.Option("--context", metavar="T", help="Tokens in a context.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Contexts of a step of AdamW.")] = 8,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="X", help="AdamW's, at its highest.")
    ] = 3e-3,
    weight_decay: Annotated[float, typer.Option("--weight-decay", metavar="X", help="AdamW's, of matrices.")] = 0.1,
    dtype: Annotated[
        Precision,
        typer.Option("--dtype", help="Precision of products; bfloat16 is faster where the processor has it."),
    ] = Precision.float32,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of weights and the order of text.")] = 0,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    exclude: Excludes = None,
    text_column: TextColumn = None,
    category_column: CategoryColumn = None,
    id_column: IdColumn = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Train a small language model whose forward pass descends an energy, or a plain one beside it.

    A tokenizer is learnt on the way, documents are held out by content, and the losses on them are printed and kept
    with the model, in a card. Whatever stops it, the same command goes on from the last checkpoint.
    """
    import shutil

    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.rows import Columns
    from energy_lens.ingest.training.energy_model_card import save_trained
    from energy_lens.ingest.training.energy_model_sizes import EnergyModelOptions
    from energy_lens.ingest.training.energy_models import CHECKPOINT, begun_from, train_energy_model
    from energy_lens.ingest.training.progress import LossBar
    from energy_lens.warehouse.locks import claimed_folder

    options = EnergyModelOptions(
        plain=plain, width=width, steps=steps, heads=heads, memories=memories, vocabulary=vocabulary,
        context_length=context, tokens=tokens, batch_size=batch_size, learning_rate=learning_rate,
        weight_decay=weight_decay, dtype=dtype.value, seed=seed,
    )  # fmt: skip
    if begin_from is not None and (given := [word for name, word in typed(command).items() if name in SETTLED]):
        raise UsageError(f"{', '.join(given)} cannot be given with --init: the model in {begin_from} has settled that.")
    _check_new(output)
    documents = discover(paths, tuple(exclude or ()), Columns(text_column, category_column, id_column))
    scratch = output / ".training"
    with claimed_folder(output, "elw energy-model train"):  # now: what cannot be written shall not cost hours first
        _check_new(output)  # once more: another training may have come first
        begin = None if begin_from is None else begun_from(begin_from, context)
        if begin is not None:
            options = replace(options, plain=begin.is_plain)
        scratch.mkdir(exist_ok=True)
        try:
            with LossBar() as shown:
                trained = train_energy_model(documents, options, scratch, shown.update, begin)
        except UsageError:
            if not (scratch / CHECKPOINT).exists():  # there is nothing in it that took long
                shutil.rmtree(scratch)
            raise
        save_trained(trained, output, scratch, half)
        print_line(output)
        shutil.rmtree(scratch)
    if trained.held_out is None:
        say("No document was held out, so nothing was measured: that needs 3 documents in a category.")
    else:
        say("On documents that were held out, in nats:")
        print_rows(_rows_of_losses(trained.held_out), form)


@energy_model_app.command("card", epilog=examples("elw energy-model card my-model/ --beside my-plain-model/"))
def energy_model_card(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=path_given, help="A model that elw energy-model train wrote.")
    ],
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside", metavar="DIR", parser=path_given, help="Another one, whose losses are set beside its own."
        ),
    ] = None,
) -> None:
    """Write a model's card anew, with the losses of another one beside its own; print the card's path."""
    from energy_lens.ingest.training.energy_model_card import write_card

    print_line(write_card(folder, beside))


def _check_new(output: Path) -> None:
    if (output / "config.json").exists():
        raise UsageError(f"{output} holds a model already: choose another --output, or remove it.")


def _rows_of_losses(figures: HeldOut) -> Rows:
    """A row a category, then all of them."""
    from energy_lens.warehouse.output import Rows

    columns = [("category", "varchar"), ("tokens", "bigint"), ("bytes", "bigint")]
    columns += [("nats_per_token", "double"), ("nats_per_byte", "double")]
    rows = [
        (category, loss.tokens, loss.bytes, rounded(loss.nats_per_token), rounded(loss.nats_per_byte))
        for category, loss in [*figures.categories.items(), ("all", figures.all)]
    ]
    return Rows.of(columns, rows)
