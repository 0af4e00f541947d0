"""`elw export --format parquet`: every table and the main views of the current run as Parquet files.

    NAME/layer=N/data.parquet    where rows are of layers, as Hive lays partitions out; the column is the folder's name
    NAME/data.parquet            where they are not, or there are none
    manifest.json                facts of the run; of each table its columns, types, meanings and rows; of each file its
                                 size and SHA-256

One run, since the views show one and a data set that is handed on is about one: elw runs --use chooses another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energy_lens.errors import UsageError
from energy_lens.reports.exports.source import read_source
from energy_lens.reports.queries import ONE_THREAD
from energy_lens.sql import FOLDER, identifier, statement
from energy_lens.warehouse import output as formats
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.export_folder import MANIFEST, export_folder
from energy_lens.warehouse.exporting import Exported

#: Which rows of a relation are of the current run.
SCOPES = {
    "run": "run_id = (SELECT run_id FROM current_run)",
    "model": "model_sha256 = (SELECT model_sha256 FROM current_run)",
    "all": "true",
}

#: Folders of sql/views/ whose views are exported; the others are steps on the way to them.
_VIEWS = ("30_marts", "40_derived")

#: Of every run of the file, so that efas has the rows.
_LEFT_OUT = {"efas_all"}

#: What a missing layer is called where folders are partitions: readers of Parquet take it for NULL.
NO_LAYER = "__HIVE_DEFAULT_PARTITION__"

_OPTIONS = "FORMAT parquet, COMPRESSION zstd"


@dataclass(frozen=True)
class Relation:
    """A table or view of the warehouse."""

    kind: str  #: table or view
    name: str
    comment: str
    columns: Mapping[str, str]  #: with their comments
    layers: Sequence[int | None]  #: of its rows; empty where they are of none

    @property
    def identifiers(self) -> dict[str, str]:
        """What stands for the {placeholders} of sql/exports/rows*.sql."""
        # Rows of a table stay as they lie, which for activations is by feature and token.
        order = "ORDER BY ALL" if self.kind == "view" else ""
        return {"relation": identifier(self.name), "condition": SCOPES[scope(self.name, self.columns)], "order": order}

    def files(self) -> list[tuple[str, int | None]]:
        """(name, layer) of each of its files."""
        if not self.layers:
            return [(f"{self.name}/data.parquet", None)]
        return [(f"{self.name}/layer={NO_LAYER if n is None else n}/data.parquet", n) for n in self.layers]


def export(db: Path, output: Path, features: Sequence[str] | None = None) -> Exported:
    """Write the current run's tables and main views as Parquet into the folder `output`.

    Raises UsageError for features, since tables go as a whole, and for a folder that will not do; ElwError for a
    warehouse without a run.
    """
    if features:
        raise UsageError("Parquet files hold every row of the run: leave out --features.")
    with Warehouse(db, config=ONE_THREAD) as warehouse:
        source = read_source(warehouse)
        relations = _relations(warehouse)
    with export_folder(output, "parquet", source.told) as folder:
        paths = {name: folder.file(name) for relation in relations for name, _ in relation.files()}
        with Warehouse(db, config=ONE_THREAD, allowed_files=list(paths.values())) as warehouse:
            folder.about["tables"] = [_write(warehouse, relation, paths) for relation in relations]
        n_rows = sum(table["rows"] for table in folder.about["tables"])
        folder.notes.append(
            f"{n_rows:,} rows of {len(relations)} tables and views of run {source.facts['run_id']}; other runs of the "
            "file are left out (elw runs --use ID chooses another), and so are its lists of migrations and run ids."
        )
    return Exported([output / MANIFEST], folder.notes)


def scope(name: str, columns: Mapping[str, str]) -> str:
    """Which of SCOPES keeps a relation to the current run."""
    return "run" if "run_id" in columns else "model" if name == "models" else "all"


def _relations(warehouse: Warehouse) -> list[Relation]:
    """What is exported: tables of runs and models, and views of the marts and of what is derived from them."""
    views = {path.stem for folder in _VIEWS for path in (FOLDER / "views" / folder).glob("*.sql")} - _LEFT_OUT
    found = []
    for kind, name, comment, names, comments in warehouse.run("exports/relations").fetchall():
        columns = dict(zip(names, comments, strict=True))
        if name in views if kind == "view" else scope(name, columns) != "all":
            identifiers = Relation(kind, name, comment, columns, []).identifiers
            of_layers = warehouse.run_formatted("exports/layers", identifiers).fetchall() if "layer" in columns else []
            found.append(Relation(kind, name, comment, columns, [layer for (layer,) in of_layers]))
    return found


def _write(warehouse: Warehouse, relation: Relation, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Write the files of a relation; returns what the manifest says of it."""
    import polars

    by_layer = bool(relation.layers)
    types: dict[str, str] = {"layer": "BIGINT"} if by_layer else {}
    files = []
    for name, layer in relation.files():
        parameters = {"layer": layer} if by_layer else {}
        query, of_columns = _query(warehouse, relation, parameters)
        types |= of_columns
        warehouse.copy_to(paths[name], query, _OPTIONS, **parameters)
        rows = polars.scan_parquet(paths[name], hive_partitioning=False).select(polars.len()).collect().item()
        files.append({"path": name, "rows": rows} | ({"layer": layer} if by_layer else {}))
    return {
        "name": relation.name, "kind": relation.kind, "comment": relation.comment,
        "partitioned_by": ["layer"] if by_layer else [], "rows": sum(file["rows"] for file in files),
        "columns": [
            {"name": name, "type": types[name], "comment": comment} for name, comment in relation.columns.items()
        ],
        "files": files,
    }  # fmt: skip


def _query(warehouse: Warehouse, relation: Relation, parameters: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The query of a file with its columns as Parquet takes them, and their types there."""
    inner = statement("exports/rows_of_layer" if parameters else "exports/rows")
    for placeholder, text in relation.identifiers.items():
        inner = inner.replace("{" + placeholder + "}", text)
    shape = warehouse.sql(f"FROM (\n{inner}\n) LIMIT 0", **parameters)
    kinds = [formats.Kind.of(kind) for kind in shape.kinds]
    columns = ", ".join(f"c{i}" for i in range(len(kinds)))
    query = f"SELECT {formats.projection('parquet', shape.columns, kinds)} FROM (\n{inner}\n) AS result({columns})"
    types = dict(zip(shape.columns, warehouse.sql(f"{query} LIMIT 0", **parameters).types, strict=True))
    return query, types
