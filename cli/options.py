"""Options that several commands share, each declared once, and how lists of words and numbers are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from energy_lens.console import say
from energy_lens.errors import UsageError

#: As energy_lens.ingest.model.loading has it, which would load torch.
DEFAULT_MODEL = "smollm2-135m"

Format = StrEnum("Format", "table csv json jsonl markdown parquet")
TextFormat = StrEnum("TextFormat", "table csv json jsonl markdown")
Dtype = StrEnum("Dtype", "auto float32 bfloat16")
Precision = StrEnum("Precision", "float32 bfloat16")
Compile = StrEnum("Compile", "auto on off")
Bos = StrEnum("Bos", "auto yes no")
SaeFormat = StrEnum("SaeFormat", "saelens sparsify")

#: What `-` means where something is written.
STDOUT = Path("-")


def path_given(text: str) -> Path:
    """The path that a word names. An empty one, as of a variable that is not set, would be the current folder.

    `-` stays for stdin or stdout, and `./-` is the file of that name. Raises BadParameter for an empty word.
    """
    if not text:
        raise typer.BadParameter("the path is empty; name a file or folder, as . for the current one")
    return Path(os.path.abspath(text)) if text != "-" and Path(text) == Path("-") else Path(text)


def examples(*lines: str) -> str:
    """The end of a command's help: lines that a user can type, which a test runs or at least parses.

    The mark before them keeps the lines from being put together.
    """
    return "\b\n" + "\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


Database = Annotated[
    Path | None,
    typer.Option(
        "--db", metavar="FILE", parser=path_given, help="The warehouse; else $ELW_WAREHOUSE, else elw.duckdb here."
    ),
]
OutputOrStdout = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", parser=path_given,
        help="Write to a file, whole or not at all; - is stdout.",
    ),
]  # fmt: skip
ListingFormat = Annotated[TextFormat, typer.Option("--format", "-f", help="How to print it.")]
Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        parser=path_given,
        help="Files and folders of UTF-8 text, - for one text from stdin; tables whose rows are texts (.jsonl, .csv, "
        ".tsv, .parquet, the first three also .gz or .zst); data sets as hf:owner/name[/config][:split][@revision].",
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        "--text-column",
        metavar="NAME",
        help="Column of a table with the text; text unless given. If given, tables in folders are read by rows too.",
    ),
]
CategoryColumn = Annotated[
    str | None,
    typer.Option("--category-column", metavar="NAME", help="Column with a row's category; else the file's is taken."),
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id-column", metavar="NAME", help="Column with a row's name; else it is file:row, counted from 1."),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Built-in name, Hugging Face name (owner/name or owner/name@revision), model folder or GGUF file.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="N,N,...",
        help="Layers whose output is read; else those of the SAEs given, or 10,12,15,20,25 of the default model.",
    ),
]
Saes = Annotated[
    list[Path] | None,
    typer.Option(
        "--sae",
        metavar="DIR",
        parser=path_given,
        help="An SAE's folder, or a folder of such; repeatable; else the shipped ones.",
    ),
]
Excludes = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Leave out files and folders whose name or path matches; repeatable."
    ),
]

ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context", metavar="T", help="Tokens in a context; 128 unless given, or the fewer that the model can read."
    ),
]
BosChoice = Annotated[
    Bos,
    typer.Option(
        "--bos", help="Whether BOS stands before every context; auto: as SAEs were trained, else as the tokenizer does."
    ),
]

#: Of an SAE that is registered, whether it was imported or pulled.
CopyFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", parser=path_given, help="Folder of the copy; else in the cache."),
]
LayerOfSae = Annotated[
    int | None, typer.Option("--layer", metavar="N", help="Block that it reads at, if the files do not say.")
]
ActivationScale = Annotated[
    float | None,
    typer.Option("--activation-scale", metavar="X", help="Factor on its input, for expected_average_only_in."),
]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibrate", metavar="PATH", parser=path_given, help="Text to measure the median norm on; repeatable."
    ),
]


def layers_to_train(layers: str | None, model: str) -> tuple[int, ...]:
    """The layers given, or the default ones of the default model."""
    from energy_lens.ingest.model import loading as models

    if layers is None and model != models.DEFAULT_MODEL:
        raise UsageError(f"Name the layers of {model} to train on, as in --layers 6,8.")
    return models.DEFAULT_LAYERS if layers is None else numbers(layers, "--layers")


def words(text: str, option: str) -> list[str]:
    """The words of a list with commas."""
    listed = [word.strip() for word in text.split(",") if word.strip()]
    if not listed:
        raise UsageError(f"{option} is empty: name at least one.")
    return listed


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers of a list with commas, without repetition."""
    try:
        return tuple(dict.fromkeys(int(word) for word in words(text, option)))
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}: numbers with commas between are expected, as in 10,12.") from error


def factors(text: str, option: str) -> tuple[float, ...]:
    """The decimal numbers of a list with commas, without repetition."""
    try:
        return tuple(dict.fromkeys(float(word) for word in words(text, option)))
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}: numbers with commas between are expected, as in 0.5,2.") from error


def typed(context: typer.Context) -> dict[str, str]:
    """{parameter: --option} of the options that the user typed, in the order in which the help shows them."""
    spelled = {
        parameter.name: "/".join(word for word in parameter.opts if word.startswith("--"))
        for parameter in context.command.params
        if parameter.name is not None
    }
    sources = {name: context.get_parameter_source(name) for name in spelled}
    return {name: option for name, option in spelled.items() if getattr(sources[name], "name", "") == "COMMANDLINE"}


def leave_aside(options: Iterable[str], command: str) -> None:
    """Say which of the typed options an older spelling leaves aside, since the command that it stands for has none."""
    if listed := list(options):
        say(f"{', '.join(listed)} {'is' if len(listed) == 1 else 'are'} left aside: {command} has no such option.")


def refuse_before(command: str, options: Iterable[str]) -> None:
    """Raises UsageError when options were typed before the name of a subcommand, which would not see them."""
    if listed := list(options):
        has = "has" if len(listed) == 1 else "have"
        raise UsageError(f"{', '.join(listed)} {has} no meaning before {command}: put what {command} knows behind it.")
