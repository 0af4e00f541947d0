"""Stored interventions in, effects with intervals and the agreement of each predictor out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.analysis.interventions.agreement import (
    Agreement,
    BootstrapDraws,
    Floats,
    bootstrap,
    drawn_scores,
    drawn_sums,
    partial_spearman,
    pearson,
    ratio_interval,
    spearman,
)
from energy_lens.analysis.interventions.edits import LOSS
from energy_lens.analysis.interventions.predictors import JOINT_POINTS, PREDICTORS, alignment
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.output import Kind, Rows

#: What a partial correlation takes as known: how many tokens were edited, and how far.
CONTROLS = ("n_edited", "sum_change2")

#: A limit that no listing reaches.
ALL_ROWS = 2**31 - 1


@dataclass(frozen=True)
class Intervened:
    """An intervention of one layer, finished."""

    run_id: int
    intervention_id: int
    layer: int
    n_new_patches: int


def store_effects(warehouse: Warehouse, run_id: int, intervention_id: int, layer: int, seed: int) -> None:
    """Fill effect_statistics and predictor_statistics from the stored patches. Call within a transaction."""
    key = {"run": run_id, "intervention": intervention_id}
    for table in ("effect_statistics", "predictor_statistics"):
        warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run AND intervention_id = $intervention", **key)
    warehouse.run("interventions/note_inactive", **key)
    patches = warehouse.run("interventions/patches", **key).pl()
    if not patches.is_empty():
        place = {"run_id": pl.lit(run_id), "intervention_id": pl.lit(intervention_id)}
        warehouse.append("effect_statistics", _effect_intervals(patches, seed).with_columns(**place))
        place_of = {"run": run_id, "layer": layer}
        scores = {
            half: warehouse.run("interventions/scores", **place_of, energy=LOSS, half=half).pl() for half in ("A", "AB")
        }
        if rows := list(_validations(patches.filter(pl.col("direction") == 0), scores, seed)):
            n_probes = int(warehouse.run("interventions/probes", **key).value())
            warehouse.append("predictor_statistics", _predictor_frame(rows, n_probes).with_columns(**place))
    warehouse.run("interventions/finish", **key)


def _effect_intervals(patches: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Rows of effect_statistics: intervals of delta_per_token by feature, direction and category."""
    patches = patches.with_columns(delta=pl.col("delta_edited") + pl.col("delta_later"))
    everything = patches.with_columns(category=pl.lit("all"))
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


def _predictor_frame(rows: Sequence[Mapping[str, Any]], n_probes: int) -> pl.DataFrame:
    """Rows of predictor_statistics with their backward passes, NULL for NaN."""
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
        backward_passes=pl.col("predictor").replace_strict(_passes(n_probes), default=None),
    )
    numbers = [name for name, kind in frame.schema.items() if kind == pl.Float64]
    return frame.with_columns(pl.col(name).fill_nan(None) for name in numbers)


# ------------------------------------------------------------------------------------------------ validation


@dataclass(frozen=True)
class DrawnPatches:
    """Patches of the features that are compared, and how a bootstrap draws features and the patches' documents."""

    patches: pl.DataFrame
    features: list[int]  #: ascending
    documents: NDArray[np.int64]  #: ascending
    draws: BootstrapDraws

    @classmethod
    def of(cls, patches: pl.DataFrame, features: list[int], seed: int) -> DrawnPatches:
        kept = patches.filter(pl.col("feature").is_in(features)).with_columns(
            measured=pl.col("delta_edited") + pl.col("delta_later")
        )
        documents = np.unique(kept["document_id"].to_numpy())
        return cls(kept, features, documents, bootstrap(len(documents), len(features), seed))

    def sums(self, column: str) -> Floats:
        """Σ of a column over a feature's patches, [draw, feature], draw 0 as they are."""
        values = np.zeros((len(self.features), len(self.documents)))
        rows = np.searchsorted(self.features, self.patches["feature"].to_numpy())
        columns = np.searchsorted(self.documents, self.patches["document_id"].to_numpy())
        np.add.at(values, (rows, columns), self.patches[column].to_numpy().astype(np.float64))
        return drawn_sums(values, self.draws)

    def scores(self, scores: pl.DataFrame, column: str) -> Floats:
        """A score of the features, [draw, feature], NaN where it is NULL."""
        known = dict(scores.select("feature", column).drop_nulls().iter_rows())
        values = np.array([known.get(feature, np.nan) for feature in self.features], dtype=np.float64)
        return drawn_scores(values, self.draws)


def _validations(patches: pl.DataFrame, scores: Mapping[str, pl.DataFrame], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of predictor_statistics, without the backward passes: on the same tokens, and from half A to half B."""
    halves = {half: patches.filter(pl.col("half") == half) for half in "AB"}
    yield from _validation("same", patches, patches, scores["AB"], seed)
    if all(len(half) for half in halves.values()):
        yield from _validation("transfer", halves["A"], halves["B"], scores["A"], seed)


def _validation(
    name: str, predicted_on: pl.DataFrame, measured_on: pl.DataFrame, scores: pl.DataFrame, seed: int
) -> Iterator[dict[str, Any]]:
    """Every predictor against the measurement, over the features that have patches on both sides."""
    features = sorted(set(predicted_on["feature"]) & set(measured_on["feature"]))
    if len(features) < 2:
        return
    before, after = (DrawnPatches.of(frame, features, seed) for frame in (predicted_on, measured_on))
    # Features must be drawn alike on both sides: the documents need not be, nor their number.
    after = replace(after, draws=after.draws._replace(features=before.draws.features))
    measured, n_edited = after.sums("measured"), before.sums("n_edited")
    controls = {column: before.sums(column) for column in CONTROLS}
    summed = _summed_predictions(before)
    if name == "transfer":
        summed["measured"] = before.sums("measured")
    by_feature = _feature_scores(before, scores, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = {column: values / n_edited for column, values in summed.items() if column != "n_edited"}
        measured_rate = measured / after.sums("n_edited")
    place = {"validation": name, "n_features": len(features)}
    yield from _correlations({**place, "target": "sum"}, summed | by_feature, measured)
    yield from _correlations({**place, "target": "per_token"}, rates | by_feature, measured_rate)
    yield from _partial_correlations({**place, "target": "partial"}, summed | by_feature, measured, controls)


def _summed_predictions(drawn: DrawnPatches) -> dict[str, Floats]:
    """Predictions that are sums over patches, [draw, feature], and what an edit's size alone predicts."""
    patches = drawn.patches
    columns = [name for name in PREDICTORS if name in patches.columns and patches[name].count()]
    predictions = {name: drawn.sums(name) for name in (*columns, "sum_change2", "n_edited")}
    for combined, gradient in (("aligned", "first_order"), ("blended", "blended_gradient")):
        if patches[f"{combined}_scale"].count():
            rho = alignment(drawn.sums(f"{combined}_share"), drawn.sums("n_edited"))
            predictions[combined] = drawn.sums(gradient) + rho * drawn.sums(f"{combined}_scale")
    return predictions


def _feature_scores(drawn: DrawnPatches, scores: pl.DataFrame, seed: int) -> dict[str, Floats]:
    """Predictions that are a score of the feature, whatever was edited, [draw, feature]; random is the null."""
    columns = [column for column in scores.columns if column != "feature" and scores[column].count()]
    by_feature = {column: drawn.scores(scores, column) for column in columns}
    random = np.random.default_rng(seed).standard_normal(len(drawn.features))
    return by_feature | {"random": drawn_scores(random, drawn.draws)}


def _correlations(
    place: Mapping[str, Any], predictions: Mapping[str, Floats], measured: Floats
) -> Iterator[dict[str, Any]]:
    """Rows of predictor_statistics for predictions and a measurement, each [draw, feature]."""
    for predictor, predicted in predictions.items():
        ranks, linear = spearman(predicted, measured), pearson(predicted, measured)
        yield {**place, "predictor": predictor, **_columns("spearman", ranks), **_columns("pearson", linear)}


def _partial_correlations(
    place: Mapping[str, Any], predictions: Mapping[str, Floats], measured: Floats, controls: Mapping[str, Floats]
) -> Iterator[dict[str, Any]]:
    """The same in ranks, of what the controls, each [draw, feature], leave unexplained."""
    undefined = _columns("pearson", Agreement(np.nan, np.nan, np.nan))
    for predictor, predicted in predictions.items():
        if predictor not in controls:
            ranks = partial_spearman(predicted, measured, controls)
            yield {**place, "predictor": predictor, **_columns("spearman", ranks), **undefined}


def _columns(name: str, agreement: Agreement) -> dict[str, float]:
    return {name: agreement.value, f"{name}_low": agreement.low, f"{name}_high": agreement.high}


# ------------------------------------------------------------------------------------------------ what is shown


def effects(warehouse: Warehouse, done: Sequence[Intervened], limit: int) -> Rows:
    """The largest effects of interventions over all categories, and the mean of their random directions beside."""
    largest = warehouse.run(
        "interventions/effects", interventions=[one.intervention_id for one in done], limit=limit or ALL_ROWS
    )
    return Rows(largest.columns, [Kind.of(kind) for kind in largest.kinds], [largest.fetchall()])


def effect_sentences(warehouse: Warehouse, done: Sequence[Intervened]) -> Iterator[str]:
    """A sentence or two for each intervention: what happened, and what predicted it."""
    for one in done:
        n_features, n_patches, n_failed, ratio = warehouse.run(
            "interventions/summary", intervention=one.intervention_id
        ).fetchall()[0]
        yield (
            f"Layer {one.layer}, intervention {one.intervention_id}: {n_patches:,} patches of {n_features} features"
            + (f", {n_failed:,} of which gave numbers that are not finite" if n_failed else "")
            + ("." if ratio is None else f"; the loss moved {ratio:.1f} times as much as along random directions.")
        )
        notes = warehouse.run("interventions/notes", intervention=one.intervention_id).fetchall()
        for note, features in notes:
            named = ", ".join(map(str, features[:5])) + (" …" if len(features) > 5 else "")
            yield f"Layer {one.layer}, {len(features)} without an effect ({named}): {note}"
        best = warehouse.run("interventions/best_predictors", intervention=one.intervention_id).fetchall()
        if best:
            listed = ", ".join(f"{predictor} {value:.2f}" for predictor, value in best)
            yield f"Layer {one.layer}, Spearman of sums with the measurement on the same tokens: {listed}."
