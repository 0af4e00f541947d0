"""The comments of the SQL in, the data dictionary out.

python -m energy_lens.warehouse.dictionary > docs/data-dictionary.md
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from energy_lens.warehouse.database import Warehouse

_HEAD = """# Data dictionary

Generated from the comments in `sql/` by `python -m energy_lens.warehouse.dictionary`; do not edit.
In a warehouse, `elw tables` and `elw describe NAME` show the same.

"""


def data_dictionary() -> str:
    """Every public view, macro and table with its columns, as Markdown."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "empty.duckdb"
        with Warehouse(path, writable=True) as warehouse:
            relations = warehouse.run("queries/dictionary_relations").fetchall()
            columns = warehouse.run("queries/dictionary_columns").fetchall()
    parts = [_HEAD]
    kind_before = None
    for kind, name, comment in relations:
        if kind != kind_before:
            parts.append(f"## {kind}\n\n")
            kind_before = kind
        parts.append(f"### {name}\n\n{comment}\n\n")
        described = [(column, type_, text) for relation, column, type_, text in columns if relation == name]
        if any(text for _, _, text in described):
            parts.append("| column | type | meaning |\n|---|---|---|\n")
            parts += [f"| `{column}` | {type_} | {_cell(text)} |\n" for column, type_, text in described]
            parts.append("\n")
        elif described:
            names = ", ".join(f"`{column}`" for column, _, _ in described)
            parts.append(f"Columns: {names}.\n\n")
    return "".join(parts).rstrip() + "\n"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    print(data_dictionary(), end="")
