"""An SAE's evaluation in, columns of `saes` and rows of `sae_quality` out.

The evaluation is what `Evaluation.as_dict()` gives (ingest.sae.figures). It may come from the config of an SAE that
somebody else made, so whatever is no finite number becomes NULL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from energy_lens.warehouse.categories import ALL, MACRO
from energy_lens.warehouse.database import Warehouse

#: Figures that `saes` had before evaluations: an SAE's own are kept where it has no evaluation.
STORED_FIGURES = ("l0", "fvu", "cosine", "dead_share")

POOLED_FIGURES = (*STORED_FIGURES, "dense_share", "ce_clean", "delta_ce", "ce_recovered_zero", "ce_recovered_mean")

COUNTS = ("n_documents", "n_tokens", "n_excluded", "n_massive", "n_loss_tokens")
MEASURES = (*POOLED_FIGURES, "ce_sae", "ce_zero", "ce_mean")


def evaluation_of(sae: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evaluation in a row of `saes`, among its metadata; empty when there is none."""
    return _object(_object(json.loads(sae["metadata"])).get("evaluation"))


def sae_columns(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of `saes` that an evaluation fills."""
    pooled = _object(evaluation.get(ALL))
    return {
        **{name: _number(pooled.get(name)) for name in POOLED_FIGURES},
        "fvu_macro": _number(_object(evaluation.get(MACRO)).get("fvu")),
        "evaluated_tokens": _count(pooled.get("n_tokens")),
        "evaluated_on": json.dumps(_object(evaluation.get("measured_on"))),
    }


def quality_rows(run_id: int, layer: int, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `sae_quality`: all, macro and each category."""
    reserved = {name: _object(evaluation.get(name)) for name in (ALL, MACRO)}
    categories: dict[str, Mapping[str, Any]] = {}
    for name, figures in sorted(_object(evaluation.get("categories")).items()):
        # An evaluation of ours has names as they are stored, others may have any: also `all` beside `all/`.
        known = name.encode(errors="backslashreplace").decode()  # JSON can spell half a character, which no table holds
        while known in reserved or known in categories:
            known += "/"
        categories[known] = _object(figures)
    return [
        {
            "run_id": run_id, "layer": layer, "category": category,
            **{name: _count(figures.get(name)) for name in COUNTS},
            **{name: _number(figures.get(name)) for name in MEASURES},
        }
        for category, figures in (reserved | categories).items() if figures
    ]  # fmt: skip


def insert_saes(warehouse: Warehouse, run_id: int, saes: Sequence[Mapping[str, Any]]) -> None:
    """Insert a run's SAEs, given as rows of `saes`, and the figures they carry. Call within a transaction."""
    rows, quality = [], []
    for sae in saes:
        row = {"run_id": run_id, **sae, **{name: _number(sae.get(name)) for name in STORED_FIGURES}}
        if evaluation := evaluation_of(sae):
            row |= sae_columns(evaluation)
            quality += quality_rows(run_id, sae["layer"], evaluation)
        rows.append(row)
    _append(warehouse, "saes", rows)
    _append(warehouse, "sae_quality", quality)


def runs_of(warehouse: Warehouse, sae_sha256: str, model_sha256: str) -> list[tuple[int, int]]:
    """(run, layer) wherever an SAE is used on a model."""
    rows = warehouse.run("ingest/runs_of_sae", sae_sha256=sae_sha256, model_sha256=model_sha256).fetchall()
    return [(run_id, layer) for run_id, layer in rows]


def store_evaluation(
    warehouse: Warehouse, sae_sha256: str, model_sha256: str, evaluation: Mapping[str, Any]
) -> list[int]:
    """Put an evaluation in place of what the runs that use the SAE had; returns these runs."""
    uses = runs_of(warehouse, sae_sha256, model_sha256)
    with warehouse.transaction():
        for run_id, layer in uses:
            warehouse.run("ingest/update_sae_quality", run=run_id, layer=layer, **sae_columns(evaluation))
            warehouse.sql("DELETE FROM sae_quality WHERE run_id = $run AND layer = $layer", run=run_id, layer=layer)
            _append(warehouse, "sae_quality", quality_rows(run_id, layer, evaluation))
    return [run_id for run_id, _ in uses]


def _append(warehouse: Warehouse, table: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        whole = [{name: row.get(name) for name in names} for row in rows]
        warehouse.append(table, pl.DataFrame(whole, infer_schema_length=None))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int | None:
    """A whole number that a BIGINT can hold; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None
