"""What DuckDB says of a query that cannot run in, a line with the remedy that is elw's to give out.

DuckDB names the tables, columns and functions that come close where it can; where it cannot, the nearest are looked for
among the file's own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from energy_lens.errors import UsageError, did_you_mean
from energy_lens.warehouse.database import Warehouse

#: What DuckDB says, and the remedy.
_REMEDIES = {
    "read-only mode": "A query only reads: add --write to change the warehouse.",
    "disabled by configuration": "A query reaches no files: --output writes its result to one.",
    "disabled through configuration": "A query loads no extensions.",
    "configuration has been locked": "A query changes no settings.",
    "Values were not provided": "Give it with -p name=value.",
    "Table with name": "elw tables lists what there is.",
}

#: Words that a statement begins with, or whose misspelling ends one: few, so that a name is not taken for one.
_COMMON = (
    "SELECT", "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "WITH", "DESCRIBE", "EXPLAIN", "SUMMARIZE", "SHOW",
    "INSERT", "UPDATE", "DELETE", "CREATE", "JOIN", "USING", "QUALIFY", "PIVOT", "UNPIVOT", "VALUES", "BY",
)  # fmt: skip


@contextlib.contextmanager
def in_one_sentence(warehouse: Warehouse, script: str) -> Iterator[None]:
    """Inside, DuckDB's messages come on one line, without its drawing of the query."""
    try:
        yield
    except UsageError as error:
        sentence = " ".join(re.split(r"\n\s*\n", str(error).strip())[0].split())
        sentence += "" if sentence[-1:] in ".!?…" else "."
        remedy = next((text for sign, text in _REMEDIES.items() if sign in sentence), "")
        if not remedy:
            remedy = _nearest_names(warehouse, script, sentence)
        raise UsageError(f"{sentence} {remedy}".strip()) from error


def _nearest_names(warehouse: Warehouse, script: str, sentence: str) -> str:
    """A question whether something near was meant, where DuckDB asks none; empty where nothing is near."""
    if misspelled := re.search(r'syntax error at or near "(\w+)"', sentence):
        word = misspelled[1].upper()
        guess = "" if word in _COMMON else did_you_mean(word, _COMMON)
    elif lacking := re.search(r'does not have a column named "([^"]+)"', sentence):
        guess = did_you_mean(lacking[1], _columns(warehouse, script))
    else:
        return ""
    question = guess.strip(" ()")
    return question[:1].upper() + question[1:]


def _columns(warehouse: Warehouse, script: str) -> list[str]:
    """Columns of the tables and views that a script names."""
    words = {word.lower() for word in re.findall(r"\w+", script)}
    with contextlib.suppress(UsageError):  # inside a transaction that the error has ended, nothing can be asked
        rows = warehouse.run("queries/names").fetchall()
        return [name for kind, name, owner in rows if kind == "column" and owner.lower() in words]
    return []
