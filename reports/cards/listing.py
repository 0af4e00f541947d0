"""Ranked features in, the rows of `elw features` out: few columns for a table, all of them for a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from energy_lens.reports.cards.heat import quoted
from energy_lens.reports.cards.verdicts import (
    EFFECTS_EXPLAINED,
    EXPLAINED,
    ROLES_EXPLAINED,
    effect_word,
    of_score,
    role_word,
)
from energy_lens.reports.formatting import plural
from energy_lens.warehouse.output import Rows
from energy_lens.warehouse.terminal import cut, visible

Row = Mapping[str, Any]

#: Columns of all formats but the table: kinds by name.
COLUMNS = {
    "layer": "smallint", "feature": "integer", "class": "varchar", "n_active": "bigint", "density": "double",
    "max_activation": "float", "efas": "double", "z": "double", "cosine": "double", "q_specific": "double",
    "q_value": "double", "q_documents": "double", "attribution": "double", "q_attribution": "double",
    "role": "varchar", "mi": "double", "effect": "double", "effect_low": "double", "effect_high": "double",
    "test": "varchar", "top_tokens": "json",
}  # fmt: skip

#: Texts that a feature fires on in a table, and columns of the terminal for each.
N_TEXTS, TEXT_COLUMNS = 4, 10

#: Terminals of fewer columns than this have the names of classes cut.
WIDE = 90

#: Columns of a class's name: of the longest, and of one that is cut.
LONGEST_CLASS, CUT_CLASS = 11, 8

#: Columns that a table takes without classes and texts; and those of texts where there is no terminal.
OTHERS, FREE = 61, 40

#: What the columns that a table is ranked by are called there; that of efas is always there.
RANKED = {"z": "z", "mi": "mi bits", "density": "density"}


def table_rows(found: Sequence[Row], by: str, terminal: int | None = None) -> Rows:
    """Columns that a terminal of 80 has room for: what it is, its score, what it is ranked by, and the tests.

    terminal: its columns, None where there is none.
    """
    of_class = CUT_CLASS if terminal is not None and terminal < WIDE else LONGEST_CLASS
    of_texts = FREE if terminal is None else min(FREE, max(CUT_CLASS, terminal - OTHERS - of_class))
    columns: dict[str, tuple[str, Callable[[Row], Any]]] = {
        "feature": ("varchar", lambda row: f"{row['layer']}:{row['feature']}"),
        "class": ("varchar", lambda row: cut(visible(row["class"] or "–"), of_class)),
        "active": ("bigint", lambda row: row["n_active"]),
        "efas": ("double", lambda row: _short(row["efas"])),
    }
    if by == "attribution":
        del columns["active"]  # in whose place two columns come
        columns["sum a·g"] = ("double", lambda row: _short(row["attribution"]))
        columns["role"] = ("varchar", role_word)
    elif by == "effect":
        del columns["active"]
        columns["effect"] = ("double", lambda row: _short(row["effect"]))
        columns["measured"] = ("varchar", effect_word)
    elif by in RANKED:
        columns[RANKED[by]] = ("double", lambda row: _short(row[by]))
    columns["test"] = ("varchar", lambda row: of_score(row).word)
    columns["fires on"] = ("varchar", lambda row: cut(_texts(row), of_texts))
    cells = [[of(row) for _, of in columns.values()] for row in found]
    return Rows.of([(name, kind) for name, (kind, _) in columns.items()], cells)


def _texts(row: Row) -> str:
    return " ".join(quoted(text, TEXT_COLUMNS) for text in list(dict.fromkeys(row["top_tokens"]))[:N_TEXTS])


def all_rows(found: Sequence[Row]) -> Rows:
    """Every column, numbers as they are stored; test is the word of the table."""
    from energy_lens.reports.cards.as_json import as_json

    rows = []
    for row in found:
        cells = {**row, "test": of_score(row).word, "top_tokens": as_json(row["top_tokens"])}
        rows.append([cells[name] for name in COLUMNS])
    return Rows.of(list(COLUMNS.items()), rows)


def sentences(found: Sequence[Row], by: str, is_table: bool) -> list[str]:
    """What is to be said beside the listing: how many are shown, and what its words mean."""
    if not found:
        return ["No feature that fires in the current run is like that."]
    said = []
    n_found = found[0]["n_found"]
    if len(found) < n_found:
        said.append(f"{len(found):,} of {plural(n_found, 'feature')} are shown: --rows 0 shows all.")
    if by == "effect" and all(row["effect"] is None for row in found):
        said.append("No feature's ablation has been measured: elw intervene does it.")
    elif all(row[by] is None for row in found):
        said.append(f"No feature has a value of {by}: the run is too small to test, or does not have it.")
    if by == "mi":
        said.append("mi bits: mutual information above what unrelated contexts come to; nothing tests it.")
    if is_table and by == "effect":
        said.append(EFFECTS_EXPLAINED)
    if is_table:
        said.append(f"{ROLES_EXPLAINED} {EXPLAINED}" if by == "attribution" else EXPLAINED)
    return said


def _short(value: float | None) -> float | None:
    """To three digits: an estimate has no more."""
    return None if value is None else float(f"{value:.3g}")
