"""A small warehouse in, a large one out: the current run's rows many times over, under shifted ids.

    python benchmarks/grown.py SOURCE TARGET --copies 27

Every copy has documents, contexts, groups and tokens of its own, so that whatever reads the file has as much to do as
after an ingest of a corpus so many times as large; only the texts repeat. What `finish` fills is left empty.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from energy_lens import Warehouse
from energy_lens.sql import identifier, literal
from energy_lens.warehouse.runs import add_gradient_columns

#: Tables with a row for each copy's own documents, contexts, groups or tokens.
COPIED = (
    "documents", "document_aliases", "contexts", "plan_groups", "plan", "tokens", "token_layers", "energies",
    "gradients", "activations", "document_gradients", "feature_moments", "feature_documents", "feature_directions",
    "feature_histograms",
)  # fmt: skip

#: Tables that say what the run is, the same for all copies.
KEPT = ("runs", "models", "saes", "run_energies", "reference_rows", "calibration", "activation_quartiles")


def grow(source: Path, target: Path, copies: int) -> int:
    """Write `target`; returns its number of activations."""
    with Warehouse(target, writable=True) as warehouse:
        warehouse.sql(f"ATTACH {literal(str(source))} AS source (READ_ONLY)")
        run, length = warehouse.sql("SELECT run_id, context_length FROM source.runs WHERE is_current").fetchall()[0]
        energies = warehouse.sql("SELECT unnest(energies) FROM source.runs WHERE run_id = $run", run=run).fetchall()
        add_gradient_columns(warehouse, [energy for (energy,) in energies])
        sizes = {
            name: warehouse.sql(f"SELECT max({name}) + 1 FROM source.{table} WHERE run_id = $run", run=run).value()
            for name, table in (("document_id", "documents"), ("context_id", "contexts"), ("group_id", "plan_groups"))
        }
        sizes["token_id"] = sizes["context_id"] * length
        for table in KEPT:
            warehouse.sql(f"INSERT INTO {table} BY NAME SELECT * FROM source.{table}")
        for copy in range(copies):
            for table in COPIED:
                shifted = [
                    f"{identifier(name)} + {copy * sizes[name]} AS {identifier(name)}"
                    for name in _columns(warehouse, table)
                    if name in sizes
                ]
                if table == "documents":
                    shifted += [f"'{copy}/' || path AS path", f"sha256(sha256 || '{copy}') AS sha256"]
                replaced = f"* REPLACE ({', '.join(shifted)})" if shifted else "*"
                warehouse.sql(
                    f"INSERT INTO {table} BY NAME SELECT {replaced} FROM source.{table} WHERE run_id = $run", run=run
                )
        n: int = warehouse.sql("SELECT count(*) FROM activations").value()
    return n


def _columns(warehouse: Warehouse, table: str) -> list[str]:
    query = "SELECT column_name FROM duckdb_columns() WHERE table_name = $table AND database_name = current_database()"
    return [name for (name,) in warehouse.sql(query, table=table).fetchall()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--copies", type=int, default=27)
    arguments = parser.parse_args()
    print(f"{grow(arguments.source, arguments.target, arguments.copies):,} activations")
