"""A run in, what a warehouse knows of it before its first group out, and into another file: a frame a table.

That is the plan, the calibration, and which model, SAEs and energies they are of: all that a group depends on, and all
that is needed to go on with the run elsewhere. A run has another id in every file, so that no frame has one.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.run_rows import give_id
from energy_lens.warehouse.runs import add_gradient_columns

#: Tables with a row for a run, or rows of it that no group brings; columns of each that belong to a file, not the run.
PLAN_TABLES: Mapping[str, tuple[str, ...]] = {
    "runs": ("is_current", "updated_at", "stats_groups", "stats_tokens", "shard"),
    "run_energies": (),
    "saes": (),
    "sae_quality": (),
    "documents": (),
    "document_aliases": (),
    "contexts": (),
    "plan": (),
    "plan_groups": ("committed_at", "cpu"),
    "calibration": (),
    "activation_quartiles": (),
    "reference_rows": (),
}

#: Of these a plan that grew has more rows; the column that numbers what they are of.
_GROWING = {
    "documents": "document_id", "document_aliases": "document_id", "contexts": "document_id", "plan": "group_id",
    "plan_groups": "group_id",
}  # fmt: skip

#: Of these a run that is not calibrated has no rows.
_OF_CALIBRATION = ("calibration", "activation_quartiles", "reference_rows")


def read_plan(warehouse: Warehouse, run_id: int) -> dict[str, pl.DataFrame]:
    """The rows of a run in all of PLAN_TABLES, and that of `models`."""
    frames = {}
    for table, left_out in PLAN_TABLES.items():
        names = {"table": table, "left_out": ", ".join(("run_id", *left_out))}
        frames[table] = warehouse.run_formatted("merge/plan_table", names, run=run_id).pl()
    frames["models"] = warehouse.run("merge/model", run=run_id).pl()
    return frames


def write_plan(warehouse: Warehouse, frames: Mapping[str, pl.DataFrame]) -> int:
    """Insert a run that the file does not have, without groups; returns its id. Call within a transaction."""
    run_id = give_id(warehouse)
    (run,) = frames["runs"].iter_rows(named=True)
    add_gradient_columns(warehouse, run["energies"])
    own = {"is_current": False, "updated_at": run["created_at"], "stats_groups": 0, "stats_tokens": 0}
    _append(warehouse, "runs", run_id, frames["runs"].with_columns(**{k: pl.lit(v) for k, v in own.items()}))
    if not warehouse.run("merge/knows_model", model_sha256=run["model_sha256"]).value():
        warehouse.append("models", frames["models"])
    for table in PLAN_TABLES:
        if table != "runs" and table in frames:
            _append(warehouse, table, run_id, frames[table])
    return run_id


def extend_plan(
    warehouse: Warehouse, run_id: int, frames: Mapping[str, pl.DataFrame], n_documents: int, n_groups: int
) -> None:
    """Insert what a plan that begins as the run's has behind it. Call within a transaction.

    n_documents, n_groups: that the run has. It gets the calibration, too, where it has none.
    """
    behind = {"document_id": n_documents, "group_id": n_groups}
    for table, column in _GROWING.items():
        if table in frames:
            _append(warehouse, table, run_id, frames[table].filter(pl.col(column) >= behind[column]))
    add_calibration(warehouse, run_id, frames)


def add_calibration(warehouse: Warehouse, run_id: int, frames: Mapping[str, pl.DataFrame]) -> None:
    """Insert the calibration of a run that has none yet. Call within a transaction."""
    if not warehouse.run("merge/is_calibrated", run=run_id).value():
        for table in _OF_CALIBRATION:
            if table in frames:
                _append(warehouse, table, run_id, frames[table])


def _append(warehouse: Warehouse, table: str, run_id: int, frame: pl.DataFrame) -> None:
    if len(frame):
        warehouse.append(table, frame.with_columns(run_id=pl.lit(run_id, dtype=pl.Int32)))
