"""A user's SQL in, its rows out: what `elw sql`, `elw tables`, `elw describe` and `elw runs` do.

A query runs as it is given, in a warehouse that is open to read, without files, network or settings. It may be a
script: all its statements run in order and the last one's result is shown, as in DuckDB's clients. Each statement
commits on its own unless the script says BEGIN and COMMIT.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from energy_lens.console import say
from energy_lens.errors import UsageError, WarehouseError, did_you_mean, nearest
from energy_lens.sql import identifier, literal
from energy_lens.warehouse import output
from energy_lens.warehouse.database import Statement, Warehouse, warehouse_path
from energy_lens.warehouse.files import is_special, replacing, text_file
from energy_lens.warehouse.mistakes import in_one_sentence
from energy_lens.warehouse.parameters import with_defaults
from energy_lens.warehouse.results import Result
from energy_lens.warehouse.saved_queries import find
from energy_lens.warehouse.terminal import terminal_width

#: Rows that are fetched at a time.
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Query:
    """What to run and where its rows go."""

    script: str
    parameters: Mapping[str, Any] = field(default_factory=dict)  #: bound to $name
    format: str | None = None  #: one of output.FORMATS; None: what the output's ending says, else table
    output: Path | None = None  #: a file; None is stdout
    rows: int | None = None  #: rows of a table that are shown, 0 for all; None: 40 on stdout, all in a file
    write: bool = False  #: let the script change the warehouse
    digits: int | None = None  #: significant ones of floating point numbers in a table; None: 6. No other format has it


# ------------------------------------------------------------------------------------------------ what is asked


def read_script(argument: str | None) -> str:
    """The SQL that is meant: the argument, a saved query for @name, or what comes through stdin for `-` or none."""
    if argument is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("There is no query: give one, as in elw sql 'SELECT * FROM efas', or send it through a pipe.")
    try:
        script = _stdin() if argument is None or argument == "-" else _utf8(argument)
    except UnicodeError as error:
        raise UsageError("The query is not UTF-8 text: convert it.") from error
    script = script.removeprefix("\ufeff")  # which some editors begin a file with
    if argument is not None and script.lstrip().startswith("@"):  # with which no SQL begins
        return find(script).script
    if not script.strip():
        raise UsageError("The query is empty: give SQL, as in elw sql 'SELECT * FROM efas'.")
    return script


def _stdin() -> str:
    """All of stdin, as UTF-8, whatever encoding the stream has: it may be a caller's and is left so."""
    if sys.stdin is None:
        return ""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return str(sys.stdin.read())
    text: str = sys.stdin.buffer.read().decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _utf8(argument: str) -> str:
    """A command-line argument read as UTF-8, whatever the locale took its bytes for."""
    return os.fsencode(argument).decode("utf-8")


def _chosen_format(query: Query) -> str:
    if query.format is None and query.output is None:
        return "table"
    if query.format is None:
        assert query.output is not None
        if query.output.suffix.lower() not in output.ENDINGS:
            known = ", ".join(output.ENDINGS)
            raise UsageError(f"{query.output} does not say its format by its ending ({known}): name it with --format.")
        return output.ENDINGS[query.output.suffix.lower()]
    if query.format not in output.FORMATS:
        near = did_you_mean(query.format, output.FORMATS)
        raise UsageError(f"There is no format {query.format!r}{near}: choose {', '.join(output.FORMATS)}.")
    if query.format == "parquet" and query.output is None:
        raise UsageError("Parquet is binary: name a file with --output.")
    return query.format


# ------------------------------------------------------------------------------------------------ running it


def run(db: Path | None, query: Query) -> list[str]:
    """Run a query on a warehouse and write its rows; returns sentences for the user about what was left out.

    Raises UsageError for a query, parameter, format or output that will not do, WarehouseError when the file cannot
    be opened.
    """
    form = _chosen_format(query)
    if query.digits is not None and form != "table":
        raise UsageError(f"--digits is for tables, and {form} keeps all digits: leave it out, or round in the query.")
    path = warehouse_path(db)
    if query.write and not os.path.exists(path):
        raise WarehouseError(f"There is no warehouse at {path}: make one with elw ingest, or name another with --db.")
    if query.output is None:
        with Warehouse(path, writable=query.write, restricted=True) as warehouse:
            return _run_script(warehouse, query, form, None)
    if os.path.exists(query.output) and os.path.exists(path) and query.output.samefile(path):
        raise UsageError(f"{query.output} is the warehouse itself: name another file with --output.")
    if is_special(query.output):
        if form == "parquet":
            raise UsageError(f"{query.output} is not a file, which Parquet needs: name one with --output.")
        with (
            contextlib.suppress(BrokenPipeError),  # its reader has seen enough
            Warehouse(path, writable=query.write, restricted=True) as warehouse,
        ):
            return _run_script(warehouse, query, form, query.output)
        return []
    with replacing(query.output) as scratch:
        allowed = [scratch] if form == "parquet" else []
        with Warehouse(path, writable=query.write, restricted=True, allowed_files=allowed) as warehouse:
            return _run_script(warehouse, query, form, scratch)


def _run_script(warehouse: Warehouse, query: Query, form: str, file: Path | None) -> list[str]:
    """Run all statements and write the last one's rows to a file, or stdout."""
    announce_state(warehouse)
    notes = answer(warehouse, query, form, file)
    if warehouse.abandon_transaction():
        notes.append("A transaction was left open, so its changes are undone: end it with COMMIT.")
    return notes


def answer(warehouse: Warehouse, query: Query, form: str = "table", file: Path | None = None) -> list[str]:
    """Run all statements on an open warehouse and write the last one's rows to a file, or stdout; returns notes.

    A transaction that they leave open stays so.
    """
    with in_one_sentence(warehouse, query.script):
        statements = warehouse.statements(query.script)
        if not statements:
            raise UsageError("The query holds nothing but comments: give a statement.")
        known = frozenset().union(*(statement.parameters for statement in statements))
        if unknown := sorted(set(query.parameters) - known):
            near = did_you_mean(unknown[0], known)
            raise UsageError(f"The query has no parameter ${unknown[0]}{near}: leave out -p {unknown[0]}=….")
        parameters = with_defaults(query.script, query.parameters)
        *before, last = statements
        for statement in before:
            warehouse.sql(statement.text, **_parameters_of(parameters, statement))
        return _write_result(warehouse, last, replace(query, parameters=parameters), form, file)


def _write_result(warehouse: Warehouse, statement: Statement, query: Query, form: str, file: Path | None) -> list[str]:
    parameters = _parameters_of(query.parameters, statement)
    rendered = _rendered(warehouse, statement, parameters, form)
    # CSV is written here, for DuckDB 2.0's own writer waits for ever, once in some hundred times, when the query
    # fails after its first rows (measured, with one thread and with two).
    if rendered and file and form == "parquet":
        warehouse.copy_to(file, rendered[0], "FORMAT parquet", **parameters)
        return []
    if form == "parquet":
        raise UsageError("Only the rows of a query can be written as Parquet: choose another --format.")
    if rendered:
        result = warehouse.sql(rendered[0], **parameters)
        kinds: Sequence[output.Kind] = rendered[1]
    else:
        result = warehouse.sql(statement.text, **parameters)
        kinds = [output.Kind.of(kind) for kind in result.kinds]
        if (effect := _effect(result)) is not None:
            if file and not is_special(file):
                file.unlink()  # nothing to write: `replacing` leaves an old file as it is
            return [effect]
    rows = output.Rows(result.columns, kinds, _batches(result))
    with text_file(file) if file else contextlib.nullcontext(output.standard_output()) as stream:
        if form == "table" and result.columns == ["explain_key", "explain_value"]:
            for _, plan in (row for batch in rows.batches for row in batch):
                stream.write(f"{plan}\n")
            return []
        shown = output.TABLE_ROWS if query.rows is None and file is None else query.rows
        digits = output.DIGITS if query.digits is None else query.digits
        return output.write(rows, form, stream, shown or None, terminal_width(stream), digits=digits)


def _rendered(
    warehouse: Warehouse, statement: Statement, parameters: Mapping[str, Any], form: str
) -> tuple[str, list[output.Kind]] | None:
    """The statement inside one that renders its columns for a format, with their kinds; None if it is no query."""
    if not statement.is_query:  # not found out by trying, since an error would abort the script's transaction
        return None
    inner = f"FROM (\n{_bare(warehouse, statement.text)}\n)"
    try:
        shape = warehouse.sql(f"SELECT * {inner} LIMIT 0", **parameters)
    except UsageError:
        return None  # then it says itself what is wrong when it runs
    names, kinds = shape.columns, [output.Kind.of(kind) for kind in shape.kinds]
    columns = ", ".join(f"c{i}" for i in range(len(names)))
    return f"SELECT {output.projection(form, names, kinds)} {inner} AS result({columns})", kinds


def _bare(warehouse: Warehouse, text: str) -> str:
    """A statement without the semicolon that ends it and the comments behind that."""
    for semicolon in reversed([match.start() for match in re.finditer(";", text)]):
        with contextlib.suppress(UsageError):  # this one is inside a string or a comment
            if not warehouse.statements(text[semicolon + 1 :]) and warehouse.statements(text[:semicolon]):
                return text[:semicolon]
    return text


def _effect(result: Result) -> str | None:
    """What a statement without rows of its own did; None for one with rows."""
    if result.columns == ["Success"]:
        return "Done."
    if result.columns != ["Count"]:
        return None
    count = result.value()
    return "Done." if count is None else f"{count:,} row{'' if count == 1 else 's'} changed."


def _parameters_of(parameters: Mapping[str, Any], statement: Statement) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name in statement.parameters}


def _batches(result: Result) -> Iterator[list[tuple[Any, ...]]]:
    while rows := result.fetchmany(BATCH_ROWS):
        yield rows


def print_listing(rows: output.Rows, form: str) -> list[str]:
    """Print all rows in a text format; a table's long texts are wrapped to the terminal's width."""
    stream = output.standard_output()
    return output.write(rows, form, stream, width=terminal_width(stream), wrap=True)


# ------------------------------------------------------------------------------------------------ what is said


def announce_state(warehouse: Warehouse) -> None:
    """Say when the file is of an older version, or when its statistics lag behind what was ingested."""
    if warehouse.behind:
        say("This warehouse was made by an older version and lacks some tables or views: run elw migrate.")
        return
    say_left_rows(warehouse)
    n_runs, current = warehouse.run("runs/states").fetchall()[0]
    if n_runs and current is None:
        say("No run is current, so that efas and the other views are empty: choose one with elw runs --use ID.")
    if elsewhere := next((run for run in warehouse.run("queries/unmerged").dicts() if run["is_current"]), None):
        say(_where_groups_are(warehouse, elsewhere))
    elif lag := warehouse.run("queries/lag").fetchone():
        run_id, committed, covered = lag
        say(
            f"The statistics of run {run_id} cover {covered:,} of its {committed:,} tokens: its ingest is under way "
            "or was cut short, and the same elw ingest completes them."
        )


def say_unmerged(warehouse: Warehouse) -> None:
    """Say which runs other than the current one, of which `announce_state` does, have groups elsewhere."""
    if not warehouse.behind:
        for run in warehouse.run("queries/unmerged").dicts():
            if not run["is_current"]:
                say(_where_groups_are(warehouse, run))


def _where_groups_are(warehouse: Warehouse, run: Mapping[str, Any]) -> str:
    """A sentence on a row of queries/unmerged."""
    run_id, n_staged = run["run_id"], run["n_staged"]
    if n_staged:
        are = "1 group" if n_staged == 1 else f"{n_staged:,} groups"
        return f"{are} of run {run_id} are staged and not here yet: elw merge --db {warehouse.path} takes them in."
    return f"Run {run_id} is here as shard {run['shard']} of its plan: elw merge joins it with the other shards."


def say_left_rows(warehouse: Warehouse) -> None:
    """Say which runs are gone and left rows behind, as DELETE FROM runs does."""
    if left := [run_id for (run_id,) in warehouse.run("runs/orphans").fetchall()]:
        which = f"run {left[0]}" if len(left) == 1 else f"{len(left)} runs, such as run {left[0]},"
        say(f"{warehouse.path} has rows of {which} that it does not hold: elw runs --delete {left[0]} removes them.")


# ------------------------------------------------------------------------------------------------ catalogue


def tables(warehouse: Warehouse) -> output.Rows:
    """Every table, view and macro: kind, name, rows (of tables), comment."""
    relations = warehouse.run("queries/catalogue").fetchall()
    names = [name for kind, name, _ in relations if kind == "table"]
    counts = [f"SELECT {literal(name)} AS name, count(*) AS rows FROM {identifier(name)}" for name in names]
    rows: dict[str, int] = dict(warehouse.sql(" UNION ALL ".join(counts)).fetchall()) if counts else {}
    columns = [("kind", "varchar"), ("name", "varchar"), ("rows", "bigint"), ("comment", "varchar")]
    return output.Rows.of(columns, [(kind, name, rows.get(name), comment) for kind, name, comment in relations])


def describe(warehouse: Warehouse, name: str) -> tuple[str, output.Rows]:
    """What a table, view or macro is, in a line, and its columns (of a macro: its parameters and definition).

    Raises UsageError, with the names that come close, when there is none of this name.
    """
    relations = {
        known.lower(): (kind, known, comment) for kind, known, comment in warehouse.run("queries/catalogue").fetchall()
    }
    if name.lower() not in relations:
        close = nearest(name, relations)
        hint = f"did you mean {' or '.join(close)}?" if close else "elw tables lists what there is."
        raise UsageError(f"There is no table, view or macro named {name}: {hint}")
    kind, known, comment = relations[name.lower()]
    result = warehouse.run("queries/describe_macro" if kind == "macro" else "queries/describe_columns", name=known)
    head = f"{known} ({kind})" + (f": {comment}" if comment else "")
    return head, output.Rows.of([(column, "varchar") for column in result.columns], result.fetchall())


def list_runs(warehouse: Warehouse) -> output.Rows:
    """The runs of a warehouse, how far they are and which is current."""
    result = warehouse.run("queries/runs")
    kinds = [output.Kind.of(kind) for kind in result.kinds]
    return output.Rows(result.columns, kinds, _batches(result))


def count_runs(warehouse: Warehouse) -> int:
    """How many runs a warehouse has."""
    return int(warehouse.run("runs/states").value())


def use_run(warehouse: Warehouse, run_id: int) -> None:
    """Make a run the current one. Raises UsageError when there is none of this number."""
    known = [number for (number,) in warehouse.sql("SELECT run_id FROM runs ORDER BY run_id").fetchall()]
    if run_id not in known:
        has = f"it has {', '.join(map(str, known))}" if known else "it has none yet; elw ingest makes one"
        raise UsageError(f"There is no run {run_id} in {warehouse.path}: {has}.")
    with warehouse.transaction():
        warehouse.run("queries/use_run", run_id=run_id)
