"""The program `elw` and its groups of commands; each command is in the file of its group."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli.options import examples
from energy_lens.console import say

# Plain help: rich would take longer to load than a query takes to run.
app = typer.Typer(name="elw", rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
intervene_app = typer.Typer(subcommand_metavar="[COMMAND [ARGS]...]")  # its help is that of its callback
attractors_app = typer.Typer(subcommand_metavar="[COMMAND [ARGS]...]")
features_app = typer.Typer(subcommand_metavar="[COMMAND [ARGS]...]")
efas_app = typer.Typer(
    help="Put EFAS to the test: a replay of the draft's protocol, and permuted documents.",
    epilog=examples("elw efas test --permutations 2000"),
)
sae_app = typer.Typer(
    help="Train, evaluate, import, export and list sparse autoencoders (SAEs).", epilog=examples("elw sae list")
)
lens_app = typer.Typer(
    help="Train tuned lenses, for the energy tuned_lens.",
    epilog=examples("elw lens train my-text/ --model gpt2 --output gpt2.lens.safetensors"),
)
model_app = typer.Typer(
    help="Fetch language models, list those at hand, and check what works with one.",
    epilog=examples("elw model list"),
)
energy_model_app = typer.Typer(
    help="Train small language models whose forward pass descends an energy.",
    epilog=examples("elw energy-model train my-texts/ --output my-model/"),
)
app.add_typer(features_app, name="features")
app.add_typer(intervene_app, name="intervene")
app.add_typer(attractors_app, name="attractors")
app.add_typer(efas_app, name="efas")
app.add_typer(sae_app, name="sae")
app.add_typer(lens_app, name="lens")
app.add_typer(model_app, name="model")
app.add_typer(energy_model_app, name="energy-model")


def _show_version(wanted: bool) -> None:
    if wanted:
        from energy_lens.version import __version__

        print(f"elw {__version__}")
        raise typer.Exit


def _install_completion(wanted: bool) -> None:
    if wanted:
        from energy_lens.cli.completion import install

        shell, path = install()
        say(f"{shell} completes elw from its next start on, by {path}.")
        raise typer.Exit


def _show_completion(wanted: bool) -> None:
    if wanted:
        from energy_lens.cli.completion import script

        print(script())
        raise typer.Exit


@app.callback(
    invoke_without_command=True, no_args_is_help=False,
    epilog=examples("elw ingest corpus/", "elw sql @top_nll", "elw ingest --help"),
)  # fmt: skip
def elw(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_install_completion,
            is_eager=True,
            help="Have the shell in use (bash, zsh or fish) complete elw with Tab, and leave.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=_show_completion,
            is_eager=True,
            help="Print what that shell would read for it, and leave.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from; may also stand behind a command.")
    ] = False,
) -> None:
    """An analytics warehouse for mechanistic interpretability.

    elw ingest runs a language model and its sparse autoencoders over your text and writes token energies, energy
    gradients and feature activations into one DuckDB file; after that every question is SQL.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 the warehouse cannot be opened, 130 interrupted,
    128 + n ended by signal n.
    """
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)
