"""What the shell remembers between lines, and what it does with one: SQL, a saved query, or a word of its own.

A line in, rows on stdout and sentences on stderr out. The file is let go of after every line, so that an ingest and
others have it meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import TextFormat
from energy_lens.console import say
from energy_lens.errors import UsageError, did_you_mean
from energy_lens.warehouse import query as queries
from energy_lens.warehouse import saved_queries as saved
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.mistakes import in_one_sentence
from energy_lens.warehouse.parameters import declared, parse_parameters
from energy_lens.warehouse.terminal import visible
from energy_lens.warehouse.typing_aid import Names


class Word(NamedTuple):
    """A word of the shell's own."""

    usage: str
    does: str
    method: Callable[[Session, str], None]
    offers: tuple[str, ...] | None = ()  #: what may stand behind it; None: a table, view or macro


@dataclass
class Session:
    """A warehouse that is asked line by line."""

    warehouse: Warehouse
    query: queries.Query  #: format, rows, digits and parameters of the lines to come; its script is not looked at
    is_over: bool = False
    _names: Names | None = field(default=None, repr=False)

    def names(self) -> Names:
        """What a query can name, read when it is first asked for."""
        if self._names is None:
            self._names = Names.of(self.warehouse)
            self.warehouse.rest()
        return self._names

    def obey(self, line: str) -> None:
        """Do what a line says. Raises ElwError when that cannot be done."""
        text = line.strip()
        try:
            if text.startswith("."):
                self._obey_word(text)
            elif text.startswith("@"):
                name, _, rest = text.rstrip(";").partition(" ")
                script = saved.find(name).script
                words = [word for word in _words(rest) if word != "-p"]
                self._run(script, parse_parameters(words, declared(script)))
            elif text.strip("; \n"):
                self._run(line, {})
        finally:
            self.warehouse.rest()

    def end(self) -> None:
        """Undo a transaction that was left open, and say so."""
        if self.warehouse.in_transaction and self.warehouse.abandon_transaction():
            say("A transaction was left open, so its changes are undone: end it with COMMIT.")

    def _run(self, script: str, parameters: Mapping[str, Any]) -> None:
        """Values that were set for all queries are left out of those that have no such parameter."""
        with in_one_sentence(self.warehouse, script):
            statements = self.warehouse.statements(script)
        named = {name for statement in statements for name in statement.parameters}
        values = {name: value for name, value in self.query.parameters.items() if name in named} | dict(parameters)
        query = replace(self.query, script=script, parameters=values)
        try:
            for note in queries.answer(self.warehouse, query, query.format or "table"):
                say(note)
        finally:
            if self.warehouse.writable:
                self._names = None  # there may be new ones

    def _obey_word(self, text: str) -> None:
        word, _, argument = text.partition(" ")
        if word not in WORDS:
            raise UsageError(f"There is no {word}{did_you_mean(word, WORDS)}: .help lists what there is.")
        WORDS[word].method(self, argument.strip().rstrip(";"))

    # -- words of its own

    def help(self, _: str) -> None:
        width = max(len(word.usage) for word in WORDS.values())
        say(
            "SQL ends with a semicolon and may take several lines; of several statements the last one's rows are shown."
        )
        say(f"{'@NAME [NAME=VALUE …]':{width}}  run a saved query")
        for word in WORDS.values():
            say(f"{word.usage:{width}}  {word.does}")
        say("Tab completes, the arrow up goes back, Ctrl-R searches. Ctrl-C ends a query, Ctrl-D the shell.")

    def tables(self, text: str) -> None:
        rows = queries.tables(self.warehouse)
        found = [row for batch in rows.batches for row in batch if text.lower() in str(row[1]).lower()]
        if not found:
            near = did_you_mean(text, self.names().relations)
            raise UsageError(f"No table, view or macro has {text!r} in its name{near}: .tables lists all.")
        print_rows(replace(rows, batches=iter([found])), self._text_format())

    def describe(self, name: str) -> None:
        if not name:
            raise UsageError(".describe is of a table, view or macro: name one, as in .describe efas.")
        head, columns = queries.describe(self.warehouse, name)
        say(head)
        print_rows(columns, self._text_format())

    def format(self, text: str) -> None:
        known = [form.value for form in TextFormat]
        if text and text not in known:
            raise UsageError(f"There is no format {text!r}{did_you_mean(text, known)} here: choose {', '.join(known)}.")
        if text:
            self.query = replace(self.query, format=text, digits=self.query.digits if text == "table" else None)
        say(f"Rows are written as {self.query.format or 'table'}.")

    def rows(self, text: str) -> None:
        if text:
            self.query = replace(self.query, rows=_number(".rows", text, 0, 10**9))
        shown = self.query.rows
        say(f"A table shows {'40 rows' if shown is None else 'all rows' if shown == 0 else f'{shown:,} rows'}.")

    def digits(self, text: str) -> None:
        if text:
            self.query = replace(self.query, digits=_number(".digits", text, 1, 17))
        say(f"A table shows {self.query.digits or 6} digits of floating point numbers.")

    def set(self, text: str) -> None:
        if text:
            self.query = replace(self.query, parameters={**self.query.parameters, **parse_parameters(_words(text))})
        values = ", ".join(f"${name} = {value!r}" for name, value in self.query.parameters.items())
        say(visible(values) if values else "No parameter is set: .set layer=20 sets $layer for the queries to come.")

    def queries(self, _: str) -> None:
        print_rows(saved.listing(saved.saved_queries()), self._text_format())

    def read(self, text: str) -> None:
        path = Path(text).expanduser() if text else None
        if path is None:
            raise UsageError(".read is of a file with SQL: name one, as in .read query.sql.")
        try:
            script = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UsageError(f"{path} cannot be read ({reason}): name a file with SQL.") from error
        self._run(script, {})

    def quit(self, _: str) -> None:
        self.is_over = True

    def _text_format(self) -> TextFormat:
        return TextFormat(self.query.format or "table")


def _words(text: str) -> list[str]:
    """Words between spaces, those in single quotes in one piece. Raises UsageError for a quote that is not closed."""
    if text.count("'") % 2:
        raise UsageError(f"A quote in {text!r} is not closed: write NAME='VALUE'.")
    return re.findall(r"(?:[^\s']|'[^']*')+", text)


def _number(word: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:12]) <= most:
        raise UsageError(f"{word} is {text[:40]!r}; a number from {least} to {most:,} is needed.")
    return int(text)


_FORMATS = tuple(form.value for form in TextFormat)

#: The shell's own words, in the order of its help.
WORDS: dict[str, Word] = {
    ".help": Word(".help", "this", Session.help),
    ".tables": Word(".tables [TEXT]", "tables, views and macros, those with TEXT in their names", Session.tables),
    ".describe": Word(".describe NAME", "columns and what they mean", Session.describe, None),
    ".queries": Word(".queries", "saved queries and their parameters", Session.queries),
    ".set": Word(".set [NAME=VALUE …]", "values of $NAME in the queries to come", Session.set),
    ".format": Word(".format [FORMAT]", "how rows are written", Session.format, _FORMATS),
    ".rows": Word(".rows [N]", "rows of a table, 0 for all", Session.rows),
    ".digits": Word(".digits [N]", "digits of floating point numbers in a table", Session.digits),
    ".read": Word(".read FILE", "run the SQL of a file", Session.read),
    ".quit": Word(".quit", "leave, as Ctrl-D does", Session.quit),
    ".exit": Word(".exit", "the same", Session.quit),
}
