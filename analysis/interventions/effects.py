"""Stored interventions in, effects with intervals and the agreement of each predictor out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from energy_lens.analysis.interventions.agreement import ratio_interval
from energy_lens.analysis.interventions.dose_response import dose_tables
from energy_lens.analysis.interventions.predictors import JOINT_POINTS
from energy_lens.analysis.interventions.validation import validations
from energy_lens.warehouse.categories import ALL
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.output import Kind, Rows

#: Raised when statistics of the same patches become others.
STATISTICS_VERSION = 3

#: A limit that no listing reaches.
ALL_ROWS = 2**31 - 1


#: What grows with the dose, in symbols.
GROWS = {"kl": "KL", "delta_total": "|ΔE|"}

#: What a kind of control is along, in words.
ALONG = {
    "isotropic": "isotropic random directions", "covariance": "random directions of the residuals' covariance",
    "decoder": "other features' directions",
}  # fmt: skip


@dataclass(frozen=True)
class Intervened:
    """An intervention of one layer, finished."""

    run_id: int
    intervention_id: int
    layer: int
    n_new_patches: int


def store_effects(warehouse: Warehouse, run_id: int, intervention_id: int, seed: int) -> None:
    """Fill the tables of effects, predictors and doses from the stored patches. Call within a transaction."""
    key = {"run": run_id, "intervention": intervention_id}
    for table in ("effect_statistics", "predictor_statistics", "dose_statistics", "dose_summaries"):
        warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run AND intervention_id = $intervention", **key)
    warehouse.run("interventions/note_inactive", **key)
    patches = warehouse.run("interventions/patches", **key).pl()
    if not patches.is_empty():
        place = {"run_id": pl.lit(run_id), "intervention_id": pl.lit(intervention_id)}
        warehouse.append("effect_statistics", _effect_intervals(patches).with_columns(**place))
        readings = warehouse.run("interventions/readings", **key).pl()
        documents = warehouse.run("interventions/documents", **key).pl()
        if rows := list(validations(patches.filter(pl.col("direction") == 0), readings, documents, seed)):
            n_probes = int(warehouse.run("interventions/probes", **key).value())
            warehouse.append("predictor_statistics", _predictor_frame(rows, n_probes).with_columns(**place))
        if warehouse.run("interventions/has_doses", **key).value():
            points = warehouse.run("interventions/doses", **key).pl()
            for table, frame in dose_tables(points).items():
                warehouse.append(table, frame.with_columns(**place))
    warehouse.run("interventions/finish", **key, version=STATISTICS_VERSION)


def renew_effects(warehouse: Warehouse, run_id: int) -> None:
    """Compute the statistics of a run's finished interventions anew where they are of an older version."""
    outdated = warehouse.run("interventions/outdated", run=run_id, version=STATISTICS_VERSION).fetchall()
    for intervention_id, seed in outdated:
        with warehouse.transaction():
            store_effects(warehouse, run_id, intervention_id, seed)


def _effect_intervals(patches: pl.DataFrame) -> pl.DataFrame:
    """Rows of effect_statistics: intervals of delta_per_token by feature, direction and category."""
    patches = patches.with_columns(delta=pl.col("delta_edited") + pl.col("delta_later"))
    everything = patches.with_columns(category=pl.lit(ALL))
    frames = []
    for (category,), part in pl.concat([everything, patches]).group_by("category", maintain_order=True):
        rows = part.select("feature", "direction").unique(maintain_order=True)
        row_of = {key: i for i, key in enumerate(rows.iter_rows())}
        documents = part["document_id"].unique().sort()
        cells = np.array([row_of[key] for key in part.select("feature", "direction").iter_rows()])
        columns = np.searchsorted(documents.to_numpy(), part["document_id"].to_numpy())
        sums = np.zeros((2, len(rows), len(documents)))
        for total, name in zip(sums, ("delta", "n_edited"), strict=True):
            np.add.at(total, (cells, columns), part[name].to_numpy())
        low, high = ratio_interval(sums[0], sums[1])
        frames.append(
            rows.with_columns(
                category=pl.lit(category), delta_low=pl.Series(low).fill_nan(None),
                delta_high=pl.Series(high).fill_nan(None),
            )
        )  # fmt: skip
    return pl.concat(frames)


def _passes(n_probes: int) -> dict[str, int]:
    """Backward passes over a context that give a predictor for all features at once."""
    probed = 1 + n_probes
    return {
        "random": 0, "density": 0, "n_edited": 0, "sum_change2": 0, "efas": 1, "abs_efas": 1, "efas_active": 1,
        "attribution": 1, "mi": 1, "first_order": 1, "empirical_fisher": 1,
        "change_times_gradient": 1, "integrated": JOINT_POINTS,
        **dict.fromkeys(("aligned", "blended", "norm_curvature", "curvature", "curvature_context"), probed),
        **dict.fromkeys(("labels", "labels_context"), probed),
    }  # fmt: skip


def _predictor_frame(rows: Sequence[Mapping[str, Any]], n_probes: int) -> pl.DataFrame:
    """Rows of predictor_statistics with their backward passes, NULL for NaN."""
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
        backward_passes=pl.col("predictor").replace_strict(_passes(n_probes), default=None),
    )
    numbers = [name for name, kind in frame.schema.items() if kind == pl.Float64]
    return frame.with_columns(pl.col(name).fill_nan(None) for name in numbers)


# ------------------------------------------------------------------------------------------------ what is shown


def effects(warehouse: Warehouse, done: Sequence[Intervened], limit: int) -> Rows:
    """The largest effects of interventions over all categories, and the means along their control directions beside."""
    largest = warehouse.run(
        "interventions/effects",
        interventions=[one.intervention_id for one in done],
        limit=min(limit or ALL_ROWS, ALL_ROWS),
    )
    return Rows(largest.columns, [Kind.of(kind) for kind in largest.kinds], [largest.fetchall()])


def effect_sentences(warehouse: Warehouse, done: Sequence[Intervened]) -> Iterator[str]:
    """A sentence or two for each intervention: what happened, and what predicted it."""
    for one in done:
        n_features, n_patches, n_failed = warehouse.run(
            "interventions/summary", intervention=one.intervention_id
        ).fetchall()[0]
        sizes = warehouse.run("interventions/sizes", intervention=one.intervention_id).fetchall()
        moved = ", ".join(f"{ratio:.1f} times as much as along {ALONG[control]}" for control, ratio in sizes)
        yield (
            f"Layer {one.layer}, intervention {one.intervention_id}: {n_patches:,} patches of {n_features} features"
            + (f", {n_failed:,} of which gave numbers that are not finite" if n_failed else "")
            + (f"; the loss moved {moved}." if moved else ".")
        )
        notes = warehouse.run("interventions/notes", intervention=one.intervention_id).fetchall()
        for note, features in notes:
            named = ", ".join(map(str, features[:5])) + (" …" if len(features) > 5 else "")
            yield f"Layer {one.layer}, {len(features)} without an effect ({named}): {note}"
        yield from _dose_sentences(warehouse, one)
        best = warehouse.run("interventions/best_predictors", intervention=one.intervention_id).fetchall()
        if best:
            listed = ", ".join(f"{predictor} {value:.2f}" for predictor, value in best)
            yield f"Layer {one.layer}, Spearman of sums with the measurement on the same tokens: {listed}."


def _dose_sentences(warehouse: Warehouse, one: Intervened) -> Iterator[str]:
    """By which power of the dose effects grow, where there are exponents."""
    found = warehouse.run("interventions/dose_summary", intervention=one.intervention_id).fetchall()
    by_measure: dict[str, list[str]] = {}
    for measure, control, p, low, high in found:
        bounds = "" if low is None else f" ({low:.2f} to {high:.2f})"
        along = "the features" if control is None else ALONG[control]
        by_measure.setdefault(measure, []).append(f"{p:.2f}{bounds} along {along}")
    for measure, powers in by_measure.items():
        yield f"Layer {one.layer}, powers of the dose by which {GROWS[measure]} grows: {', '.join(powers)}."
