"""`elw sql`, `tables`, `describe`, `runs` and `migrate`: a warehouse in, rows out."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from energy_lens.cli import completion
from energy_lens.cli.app import app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import STDOUT, Database, Format, ListingFormat, OutputOrStdout, TextFormat, examples
from energy_lens.cli.streams import is_terminal
from energy_lens.console import say
from energy_lens.errors import UsageError


class SqlCommand(TyperCommand):
    """A command whose argument is SQL, which may begin with a dash: most files of SQL begin with a comment."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = self._query_last(args)
        if ctx.resilient_parsing and words and self._spelled().get(words[-1]) is False:
            del words[-1]  # a shell asks for its value: without one all the other words would be lost
        return super().parse_args(ctx, words)

    def _spelled(self) -> dict[str, bool]:
        """Each option as it is spelled, and whether it is a switch."""
        return {word: bool(option.is_flag) for option in self.params for word in option.opts if word[0] == "-"}  # type: ignore[attr-defined]

    def _query_last(self, words: list[str]) -> list[str]:
        """The words with a query that begins with a dash behind a --, where it is not taken for an option."""
        spelled = self._spelled()
        left: list[str] = []
        queries: list[str] = []
        following = iter(words)
        for word in following:
            if word == "--":
                return [*left, "--", *queries, *following]
            if self._is_query(word, spelled):
                queries.append(word)
                continue
            left.append(word)
            if spelled.get(word) is False:  # the next word is its value, whatever that looks like
                left.extend([value] if (value := next(following, None)) is not None else [])
        return [*left, "--", *queries] if queries else left

    @staticmethod
    def _is_query(word: str, spelled: dict[str, bool]) -> bool:
        """Whether a word that begins with a dash is SQL: it has a space where no option has one, or is no name at all.

        spelled: the options. A mistyped one stays one, to be told as such.
        """
        if not word.startswith("-") or word == "-":
            return False
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        has_space = any(character.isspace() for character in word)
        return name not in spelled and (has_space or not name.lstrip("-")[:1].isalpha())


@app.command(
    cls=SqlCommand,
    epilog=examples('elw sql "SELECT * FROM efas WHERE abs(score) > 0.7"', "elw sql @top_nll -p layer=20"),
)
def sql(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY|@NAME|-",
            autocompletion=completion.queries,
            help="SQL, or @NAME for a saved query; - or nothing reads it from stdin; nothing on a terminal is a shell.",
            show_default=False,
        ),
    ] = None,
    db: Database = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="How to write the rows; else by the ending of --output, else table."),
    ] = None,
    output: OutputOrStdout = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUE",
            autocompletion=completion.parameters,
            help="Value of $NAME: a number, true, false or null if it reads so, else a string; n=\"'42'\" is a string. "
            "Repeatable.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", metavar="N", min=0, help="Rows of a table to show, 0 for all; else 40, and all in a file."
        ),
    ] = None,
    digits: Annotated[
        int | None,
        typer.Option(
            "--digits",
            metavar="N",
            min=1,
            max=17,
            help="Digits of floating point numbers in a table; 6 unless given, and with 17 they are as stored.",
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Let the query change the warehouse.")] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="List the saved queries, your own first, with what they answer.")
    ] = False,
) -> None:
    """Run SQL on the warehouse: read-only, without access to files or the network.

    Of several statements all are run, each committed on its own, and the last one's rows are shown. Your own saved
    queries are the .sql files in $ELW_QUERIES, else in ~/.config/elw/queries.
    """
    if listed:
        _list_queries(query, form)
        return
    from energy_lens.warehouse import query as queries
    from energy_lens.warehouse.parameters import declared, parse_parameters

    as_shell = query is None and output is None and is_terminal()
    script = "" if as_shell else queries.read_script(query)
    request = queries.Query(
        script=script,
        parameters=parse_parameters(parameter or [], declared(script)),
        format=form.value if form else None,
        output=None if output == STDOUT else output,
        rows=rows,
        write=write,
        digits=digits,
    )
    if as_shell:
        from energy_lens.cli.shell.run import run_shell

        run_shell(db, request)
        return
    for note in queries.run(db, request):
        say(note)


def _list_queries(query: str | None, form: Format | None) -> None:
    """The saved queries. Raises UsageError where a query was given too, or a format that is no text."""
    from energy_lens.warehouse.saved_queries import listing, saved_queries

    if query is not None:
        raise UsageError("--list and a query are two wishes: run elw sql once for each.")
    if form is Format.parquet:
        raise UsageError("Parquet is binary: choose another --format for --list.")
    print_rows(listing(saved_queries()), TextFormat(form.value if form else "table"))


@app.command(epilog=examples("elw tables --db elw.duckdb"))
def tables(db: Database = None, form: ListingFormat = TextFormat.table) -> None:
    """List every table, view and macro with what it holds."""
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state
    from energy_lens.warehouse.query import tables as catalogue

    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        print_rows(catalogue(warehouse), form)


@app.command(epilog=examples("elw describe efas"))
def describe(
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=completion.relations, help="A table, view or macro.")
    ],
    db: Database = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Show the columns of a table or view, or the parameters of a macro, and what they mean."""
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import describe as columns_of

    with Warehouse(db) as warehouse:
        head, columns = columns_of(warehouse, name)
        say(head)
        print_rows(columns, form)


@app.command(epilog=examples("elw runs --use 1"))
def runs(
    db: Database = None,
    use: Annotated[
        int | None,
        typer.Option(
            "--use",
            metavar="ID",
            autocompletion=completion.run_ids,
            help="Make this run the one that efas and the other views show.",
        ),
    ] = None,
    delete: Annotated[
        int | None,
        typer.Option(
            "--delete",
            metavar="ID",
            autocompletion=completion.run_ids,
            help="Remove this run and all its rows; its id is not given again.",
        ),
    ] = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """List the runs of the warehouse, choose the current one, or delete one."""
    from energy_lens.warehouse.database import Warehouse, warehouse_path
    from energy_lens.warehouse.query import announce_state, count_runs, list_runs, say_unmerged, use_run
    from energy_lens.warehouse.run_rows import delete_run

    if use is not None and delete is not None:
        raise UsageError("--use and --delete are two wishes: run elw runs once for each.")
    if delete is not None:
        deletion = delete_run(warehouse_path(db), delete)
        say(f"Run {delete} of {deletion.path} is gone, {deletion.n_rows:,} rows; elw compact gives their room back.")
        if deletion.staged:
            what = f"{len(deletion.staged):,} staged group{'s' * (len(deletion.staged) != 1)}"
            say(f"{what} of it stay where they are, such as {deletion.staged[0]}: remove what nobody wants to merge.")
        if deletion.current is not None:
            say(f"Run {deletion.current} is current.")
        return
    with Warehouse(db) as warehouse:  # also when one is chosen: no warehouse is made for it
        if use is None:
            announce_state(warehouse)
            say_unmerged(warehouse)
            print_rows(list_runs(warehouse), form)
            if not count_runs(warehouse):
                say(f"There is no run in {warehouse.path} yet: elw ingest makes one.")
    if use is not None:
        with Warehouse(db, writable=True, create=False) as warehouse:
            use_run(warehouse, use)
            say(f"Run {use} of {warehouse.path} is current now.")


@app.command(epilog=examples("elw migrate --db elw.duckdb"))
def migrate(db: Database = None) -> None:
    """Bring an older warehouse to this version's tables and views, and make views anew that were changed."""
    from energy_lens.warehouse.database import Warehouse

    with Warehouse(db) as warehouse:
        behind = warehouse.behind
    with Warehouse(db, writable=True, create=False) as warehouse:
        remade = warehouse.remake_views()
        number = warehouse.schema_number
        say(f"{warehouse.path} {'is now' if behind else 'was and is'} at schema {number}, with this version's views.")
        if remade:
            named = ", ".join(remade[:3]) + (f" and {len(remade) - 3} more" if len(remade) > 3 else "")
            say(f"Made anew, since {'it was' if len(remade) == 1 else 'they were'} gone or changed: {named}.")
