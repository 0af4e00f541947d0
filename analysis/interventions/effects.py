"""Stored interventions in, effects with intervals and the agreement of each predictor out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.analysis.interventions.agreement import (
    bootstrap,
    drawn_scores,
    drawn_sums,
    partial_spearman,
    pearson,
    ratio_interval,
    spearman,
)
from energy_lens.analysis.interventions.predictors import JOINT_POINTS, alignment
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.output import Kind, Rows

Floats = NDArray[np.float64]


#: Parts of the predictions `aligned` and `blended`, which need a sum over all contexts.
PARTS = ("aligned_scale", "aligned_share", "blended_gradient", "blended_scale", "blended_share")


#: Predictions that take features away, so that they are of ablations alone.
ABLATIONS = ("integrated", "blended_gradient", "blended_scale", "blended_share")


#: Names of predictions in the order of the table; the last two are asked for.
PREDICTORS = (
    "first_order", "norm_curvature", "curvature", "curvature_context", "labels", "labels_context", "empirical_fisher",
    "integrated", "change_times_gradient", "hessian", "own_path",
)  # fmt: skip


@dataclass(frozen=True)
class Intervened:
    """An intervention of one layer, finished."""

    run_id: int
    intervention_id: int
    layer: int
    n_new_patches: int


def finish(warehouse: Warehouse, run_id: int, intervention_id: int, layer: int, seed: int) -> None:
    """Fill effect_statistics and predictor_statistics from the stored patches. Call within a transaction."""
    key = {"run": run_id, "intervention": intervention_id}
    for table in ("effect_statistics", "predictor_statistics"):
        warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run AND intervention_id = $intervention", **key)
    warehouse.run("interventions/note_inactive", **key)
    patches = warehouse.run("interventions/patches", **key).pl()
    place = {"run_id": pl.lit(run_id), "intervention_id": pl.lit(intervention_id)}
    if not patches.is_empty():
        warehouse.append("effect_statistics", _effect_intervals(patches, seed).with_columns(**place))
        place_of = {"run": run_id, "layer": layer}
        scores = {half: warehouse.run("interventions/scores", **place_of, half=half).pl() for half in ("A", "AB")}
        if rows := list(_validations(patches.filter(pl.col("direction") == 0), scores, seed)):
            n_probes = int(warehouse.run("interventions/probes", **key).value())
            frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
                backward_passes=pl.col("predictor").replace_strict(_passes(n_probes), default=None),
            )
            numbers = [name for name, kind in frame.schema.items() if kind == pl.Float64]
            frame = frame.with_columns(pl.col(name).fill_nan(None) for name in numbers)
            warehouse.append("predictor_statistics", frame.with_columns(**place))
    warehouse.run("interventions/finish", **key)


def _effect_intervals(patches: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Rows of effect_statistics: intervals of delta_per_token by feature, direction and category."""
    patches = patches.with_columns(delta=pl.col("delta_edited") + pl.col("delta_later"))
    everything = patches.with_columns(category=pl.lit("all"))
    frames = []
    for (category,), own in pl.concat([everything, patches]).group_by("category", maintain_order=True):
        rows = own.select("feature", "direction").unique(maintain_order=True)
        row_of = {key: i for i, key in enumerate(rows.iter_rows())}
        documents = own["document_id"].unique().sort()
        cells = np.array([row_of[key] for key in own.select("feature", "direction").iter_rows()])
        columns = np.searchsorted(documents.to_numpy(), own["document_id"].to_numpy())
        sums = np.zeros((2, len(rows), len(documents)))
        for total, name in zip(sums, ("delta", "n_edited"), strict=True):
            np.add.at(total, (cells, columns), own[name].to_numpy())
        low, high = ratio_interval(sums[0], sums[1], seed)
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
        "attribution_per_token": 1, "mi_excess": 1, "first_order": 1, "empirical_fisher": 1,
        "change_times_gradient": 1, "integrated": JOINT_POINTS,
        **dict.fromkeys(("aligned", "blended", "norm_curvature", "curvature", "curvature_context"), probed),
        **dict.fromkeys(("labels", "labels_context"), probed),
    }  # fmt: skip


def _validations(patches: pl.DataFrame, scores: Mapping[str, pl.DataFrame], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of predictor_statistics, without the backward passes."""
    halves = {half: patches.filter(pl.col("half") == half) for half in "AB"}
    yield from _validation("same", patches, patches, scores["AB"], seed)
    if all(len(own) for own in halves.values()):
        yield from _validation("transfer", halves["A"], halves["B"], scores["A"], seed)


def _validation(
    name: str, predicted_on: pl.DataFrame, measured_on: pl.DataFrame, scores: pl.DataFrame, seed: int
) -> Iterator[dict[str, Any]]:
    """Every predictor against the measurement, over the features that have patches on both sides."""
    features = sorted(set(predicted_on["feature"]) & set(measured_on["feature"]))
    if len(features) < 2:
        return
    sides = []
    for frame in (predicted_on, measured_on):
        own = frame.filter(pl.col("feature").is_in(features)).with_columns(
            measured=pl.col("delta_edited") + pl.col("delta_later")
        )
        documents = np.unique(own["document_id"].to_numpy())
        draws = bootstrap(len(documents), len(features), seed)
        sides.append((own, documents, draws))
    # Features are drawn alike on both sides: the seed and their number are the same, the documents need not be.
    drawn_features = sides[0][2].features
    sides = [(own, documents, draws._replace(features=drawn_features)) for own, documents, draws in sides]

    def sums(side: int, column: str) -> Floats:
        own, documents, draws = sides[side]
        values = np.zeros((len(features), len(documents)))
        rows = np.searchsorted(features, own["feature"].to_numpy())
        columns = np.searchsorted(documents, own["document_id"].to_numpy())
        np.add.at(values, (rows, columns), own[column].to_numpy().astype(np.float64))
        return drawn_sums(values, draws)

    measured, edited = sums(1, "measured"), sums(1, "n_edited")
    edited_before = sums(0, "n_edited")
    given = {"n_edited": edited_before, "sum_change2": sums(0, "sum_change2")}
    known = [column for column in PREDICTORS if column in predicted_on.columns and predicted_on[column].count()]
    predictors = {column: sums(0, column) for column in (*known, "sum_change2", "n_edited")}
    for combined, gradient in (("aligned", "first_order"), ("blended", "blended_gradient")):
        if predicted_on[f"{combined}_scale"].count():
            rho = alignment(sums(0, f"{combined}_share"), edited_before)
            predictors[combined] = sums(0, gradient) + rho * sums(0, f"{combined}_scale")
    if name == "transfer":
        predictors["measured"] = sums(0, "measured")
    by_feature = {
        column: drawn_scores(_aligned(scores, column, features), sides[0][2])
        for column in scores.columns
        if column != "feature" and scores[column].count()
    }
    by_feature["random"] = drawn_scores(np.random.default_rng(seed).standard_normal(len(features)), sides[0][2])
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = {column: values / edited_before for column, values in predictors.items() if column != "n_edited"}
        measured_rate = measured / edited
    cases = {
        "sum": (predictors | by_feature, measured),
        "per_token": (rates | by_feature, measured_rate),
        "partial": ({k: v for k, v in (predictors | by_feature).items() if k not in given}, measured),
    }
    for target, (candidates, truth) in cases.items():
        for predictor, values in candidates.items():
            if target == "partial":
                ranks, linear = partial_spearman(values, truth, given), None
            else:
                ranks, linear = spearman(values, truth), pearson(values, truth)
            yield {
                "validation": name, "target": target, "predictor": predictor, "n_features": len(features),
                "spearman": ranks.value, "spearman_low": ranks.low, "spearman_high": ranks.high,
                **{
                    f"pearson{suffix}": float("nan") if linear is None else value
                    for suffix, value in zip(("", "_low", "_high"), linear or ranks, strict=True)
                },
            }  # fmt: skip


def _aligned(scores: pl.DataFrame, column: str, features: Sequence[int]) -> Floats:
    """A score of these features [feature], NaN where it is NULL."""
    known = dict(scores.select("feature", column).drop_nulls().iter_rows())
    return np.array([known.get(feature, np.nan) for feature in features], dtype=np.float64)


def effects(warehouse: Warehouse, done: Sequence[Intervened], limit: int) -> Rows:
    """The largest effects of interventions over all categories, and the median of their random directions beside."""
    found = warehouse.run(
        "interventions/effects", interventions=[own.intervention_id for own in done], limit=limit or 2**31
    )
    return Rows(found.columns, [Kind.of(kind) for kind in found.kinds], [found.fetchall()])


def summaries(warehouse: Warehouse, done: Sequence[Intervened]) -> Iterator[str]:
    """A sentence or two for each intervention: what happened, and what predicted it."""
    for own in done:
        n_features, n_patches, n_failed, ratio = warehouse.run(
            "interventions/summary", intervention=own.intervention_id
        ).fetchall()[0]
        yield (
            f"Layer {own.layer}, intervention {own.intervention_id}: {n_patches:,} patches of {n_features} features"
            + (f", {n_failed:,} of which gave numbers that are not finite" if n_failed else "")
            + ("." if ratio is None else f"; the loss moved {ratio:.1f} times as much as along random directions.")
        )
        notes = warehouse.run("interventions/notes", intervention=own.intervention_id).fetchall()
        for note, features in notes:
            named = ", ".join(map(str, features[:5])) + (" …" if len(features) > 5 else "")
            yield f"Layer {own.layer}, {len(features)} without an effect ({named}): {note}"
        best = warehouse.run("interventions/best_predictors", intervention=own.intervention_id).fetchall()
        if best:
            listed = ", ".join(f"{predictor} {value:.2f}" for predictor, value in best)
            yield f"Layer {own.layer}, Spearman of sums with the measurement on the same tokens: {listed}."
