"""`elw features`, `feature`, `context` and `token`: a warehouse in; a list, a card or a heat line of text out."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from energy_lens.cli.app import app, features_app
from energy_lens.cli.listing import print_lines, print_rows
from energy_lens.cli.options import Database, ListingFormat, TextFormat, examples, numbers, refuse_before, typed
from energy_lens.console import say
from energy_lens.errors import LARGEST_COUNT, UsageError
from energy_lens.warehouse.features import FeatureName

CardFormat = StrEnum("CardFormat", "text json")

#: Features of a table when no number is given.
TABLE_ROWS = 20

#: Columns that a card is laid out for: with fewer, a line of numbers would not be whole.
NARROWEST, WIDEST = 80, 120

OneEnergy = Annotated[
    str | None, typer.Option("--energy", metavar="NAME", help="The energy; else nll, or the run's first.")
]
OneLayer = Annotated[
    int | None,
    typer.Option("--layer", metavar="N", help="Where an energy of layers is read; else at the run's last layer."),
]
Width = Annotated[
    int | None,
    typer.Option("--width", metavar="N", min=NARROWEST, max=1000, help="Columns; else the terminal's, 80 to 120."),
]
HowPrinted = Annotated[CardFormat, typer.Option("--format", "-f", help="text to read, or all there is as JSON.")]


@features_app.callback(
    invoke_without_command=True,
    epilog=examples("elw features", "elw features --layer 20 --by z", "elw features --search '('"),
)
def features_list(
    context: typer.Context,
    db: Database = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="N,N,...", help="Layers; else all of the run.")
    ] = None,
    of_class: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only features of this class, as regex or general.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by", metavar="RANKING", help="What goes first, by size: attribution, efas, z, mi, density, effect."
        ),
    ] = "attribution",
    search: Annotated[
        str | None,
        typer.Option(
            "--search", metavar="TEXT", help="Only those that fire on a token with this in it, or promote it."
        ),
    ] = None,
    energy: OneEnergy = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            metavar="N",
            min=0,
            max=LARGEST_COUNT,
            help="Features to list, 0: all; unless given, 20 in a table and all elsewhere.",
        ),
    ] = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """List the features that fire, the first those that matter most to an energy.

    What its scores are is said in docs/definitions.md, and elw
    feature LAYER:FEATURE shows one of them.
    """
    if context.invoked_subcommand is not None:
        refuse_before(context.invoked_subcommand, typed(context).values())
        return
    from energy_lens.reports.cards.choosing import ranked
    from energy_lens.reports.cards.listing import all_rows, sentences, table_rows
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state
    from energy_lens.warehouse.terminal import terminal_width

    is_table = form is TextFormat.table
    limit = (TABLE_ROWS if is_table else 0) if rows is None else rows
    layers = None if layer is None else numbers(layer, "--layer")
    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        found = ranked(warehouse, by, energy, layers, of_class, search, limit or None)
    terminal = terminal_width(sys.stdout) if sys.stdout else None
    print_rows(table_rows(found, by, terminal) if is_table else all_rows(found), form)
    for sentence in sentences(found, by, is_table):
        say(sentence)


@features_app.command("build", epilog=examples("elw features build --db elw.duckdb"))
def features_build(db: Database = None) -> None:
    """Fill what cards show, for a run that a version without cards finished; an ingest does it by itself.

    Needs the run's model and SAEs.
    """
    from energy_lens.analysis.feature_cards import build_cards
    from energy_lens.warehouse.database import warehouse_path

    path = warehouse_path(db)
    built = build_cards(path)
    n = f"{built.n_features:,} feature{'s' * (built.n_features != 1)}"
    say(f"The cards of {n} of run {built.run_id} of {path} are built: elw features lists them.")


@app.command("feature", epilog=examples("elw feature 20:768", "elw feature 20:768 --energy hopfield"))
def feature_show(
    feature: Annotated[str, typer.Argument(metavar="LAYER:FEATURE", help="The feature, as in 20:768.")],
    db: Database = None,
    energy: Annotated[
        str | None,
        typer.Option("--energy", metavar="NAME", help="Whose gradient contexts show; else nll, or the run's first."),
    ] = None,
    width: Width = None,
    form: HowPrinted = CardFormat.text,
) -> None:
    """Show a feature's card: what it fires on and does, its scores, what ablating it did, and its contexts.

    Colours show activations and gradients on a terminal; NO_COLOR=1 leaves them
    out, FORCE_COLOR=1 sends them through a pipe too. What cannot be told from noise is said to be so in its line.
    """
    from energy_lens.reports.cards.reading import WHOLE, read_card
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state

    which = FeatureName.parse(feature, "LAYER:FEATURE")
    if form is CardFormat.json:
        from energy_lens.reports.cards.as_json import as_json, card_object

        with Warehouse(db) as warehouse:
            announce_state(warehouse)
            card = read_card(warehouse, *which, energy, WHOLE)
        print_lines([as_json(card_object(card))])
        return
    from energy_lens.reports.cards.terminal import WINDOW, card_lines

    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        card = read_card(warehouse, *which, energy, WINDOW)
    print_lines(card_lines(card, _columns(width), _colours()))


@app.command("context", epilog=examples("elw context 283 --token 83 --energy nll"))
def context_read(
    context_id: Annotated[int, typer.Argument(metavar="ID", help="Its number: 283 where elw feature says 283@83.")],
    db: Database = None,
    energy: OneEnergy = None,
    layer: OneLayer = None,
    token: Annotated[
        int | None,
        typer.Option("--token", metavar="POSITION", help="Also show the features that are active at this token of it."),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=0, help="With --token: features of each layer to show, 0: all.")
    ] = 10,
    width: Width = None,
    form: HowPrinted = CardFormat.text,
) -> None:
    """Show a context with an energy of each token, as a heat line; and of one token its features with a, g and a·g."""
    from energy_lens.reports.cards.contexts import read_context
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state

    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        found = read_context(warehouse, context_id, energy, layer, token)
    if form is CardFormat.json:
        from energy_lens.reports.cards.as_json import as_json

        print_lines([as_json(found)])
        return
    from energy_lens.reports.cards.terminal_contexts import context_lines

    print_lines(context_lines(found, _columns(width), _colours(), rows))


@app.command("token", epilog=examples("elw token ' the'"))
def token_find(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="The token, spaces counted: ' the' or ␣the; \\n is a line's end."),
    ] = None,
    vocabulary_id: Annotated[
        int | None, typer.Option("--id", metavar="N", help="Its number in the vocabulary, in place of the text.")
    ] = None,
    db: Database = None,
    energy: OneEnergy = None,
    layer: OneLayer = None,
    width: Width = None,
    form: HowPrinted = CardFormat.text,
) -> None:
    """Show where a token occurs, its mean energies, which features fire on it most often, and some occurrences."""
    from energy_lens.reports.cards.contexts import find_token
    from energy_lens.reports.cards.terminal_contexts import AFTER, BEFORE, token_lines
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state

    if (text is None) == (vocabulary_id is None):
        raise UsageError("Name one token: its text, as in elw token ' the', or its --id.")
    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        found = find_token(warehouse, text, vocabulary_id, energy, layer, BEFORE, AFTER)
    if form is CardFormat.json:
        from energy_lens.reports.cards.as_json import as_json

        print_lines([as_json(found)])
        return
    print_lines(token_lines(found, _columns(width), _colours()))


def _columns(width: int | None) -> int:
    """Columns to lay out for."""
    from energy_lens.warehouse.terminal import terminal_width

    if width is not None:
        return width
    return min(WIDEST, max(NARROWEST, terminal_width(sys.stdout) or 0 if sys.stdout else 0))


def _colours() -> bool:
    from energy_lens.warehouse.terminal import shows_colours

    return sys.stdout is not None and shows_colours(sys.stdout)
