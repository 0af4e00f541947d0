"""Features and a batch of contexts in; the rows of `interventions` and its companions for it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.attractors.landscape import Landscape
from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.controls import ControlDirections
from energy_lens.analysis.interventions.doses import measure_doses
from energy_lens.analysis.interventions.edits import LOSS, Outcome, Patches
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.predictors import (
    ABLATIONS,
    PARTS,
    PREDICTORS,
    SharedGradients,
    predict,
    predict_along_path,
    predict_by_hessian,
)
from energy_lens.analysis.interventions.readings import read_features
from energy_lens.analysis.interventions.shifts import ShiftReader
from energy_lens.ingest.statistics.histograms import LayerBins

#: Patches whose Hessian or path is computed at once: their graphs reach up to the vocabulary.
GRAPH_PATCHES = 4


def measure_batch(
    baseline: Baseline,
    context_ids: Sequence[int],
    features: Sequence[int],
    later: Sequence[Landscape],
    bins: LayerBins | None,
    controls: ControlDirections,
    options: InterventionOptions,
) -> dict[str, pl.DataFrame]:
    """Rows by table for a batch of contexts, keyed by feature, direction and context; no patches if nothing is edited.

    baseline: of the contexts that have these ids; later: attractors of later layers that are read, with --shift;
    bins: in which activations and gradients of the loss are counted; controls: what else is edited along.
    """
    frames = {"intervention_readings": read_features(baseline, context_ids, features, bins, LOSS)}
    keys, patches = _every_patch(baseline, context_ids, features, controls, options)
    if not len(patches):
        return frames
    shared = SharedGradients(baseline)
    shifts = ShiftReader(baseline, later, options.shift, options.seed) if later else None
    measured: list[dict[str, NDArray[Any]]] = []
    shifted: list[dict[str, Any]] = []
    for part in patches.split(options.batch_size):
        outcome = baseline.measure(part)
        measured.append(_measurements(part, outcome) | _predictions(shared, part, options.edit.kind))
        shifted += [] if shifts is None else shifts.read(part, outcome)
    columns = {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}
    frame = pl.concat([keys, pl.DataFrame(columns)], how="horizontal")
    frames["interventions"] = _with_failures(_with_dear_predictions(frame, baseline, patches, options))
    if options.other_doses:
        frames["intervention_doses"] = _with_failures(measure_doses(baseline, keys, patches, options))
    if shifted:
        numbered = keys.drop("control").with_row_index("patch")
        joined = pl.DataFrame(shifted).join(numbered, on="patch", how="inner", maintain_order="left")
        frames["attractor_shifts"] = joined.drop("patch")
    return frames


def _every_patch(
    baseline: Baseline,
    context_ids: Sequence[int],
    features: Sequence[int],
    controls: ControlDirections,
    options: InterventionOptions,
) -> tuple[pl.DataFrame, Patches]:
    """The patches of a batch, and feature, direction (0: its own), control and context_id of each."""
    frames: list[pl.DataFrame] = []
    parts: list[Patches] = []
    ids = np.array(context_ids, dtype=np.int32)
    for feature in features:
        own: list[tuple[int, str | None, Tensor | None]] = [(0, None, None)]
        for direction, kind, row in own + controls.of(feature):
            part = baseline.patches(options.edit, feature, row)
            numbers = {"feature": np.full(len(part), feature, np.int32), "context_id": ids[part.context.numpy()]}
            frames.append(
                pl.DataFrame(numbers).with_columns(
                    direction=pl.lit(direction, dtype=pl.Int32), control=pl.lit(kind, dtype=pl.String)
                )
            )
            parts.append(part)
    return pl.concat(frames), Patches.joined(parts)


def _measurements(patches: Patches, outcome: Outcome) -> dict[str, NDArray[Any]]:
    """What was done and what it did by column, [n]: sums over edited tokens and over later ones."""
    later = outcome.looked_at & ~patches.edited
    return {
        "n_edited": patches.edited.sum(1).numpy().astype(np.int32),
        "n_later": later.sum(1).numpy().astype(np.int32),
        "sum_change": patches.change.double().sum(1).numpy(),
        "sum_change2": patches.change.double().square().sum(1).numpy(),
        **outcome.sums(patches),
    }


def _predictions(shared: SharedGradients, patches: Patches, kind: str) -> dict[str, NDArray[Any]]:
    """Predictions by column, [n]; for another kind of edit than ablate without those that take features away."""
    predicted = predict(shared, patches)
    return {name: sums.numpy() for name, sums in predicted.items() if kind == "ablate" or name not in ABLATIONS}


def _with_dear_predictions(
    frame: pl.DataFrame, baseline: Baseline, patches: Patches, options: InterventionOptions
) -> pl.DataFrame:
    """With the predictions that need passes of their own for each patch, for the features themselves."""
    is_feature = torch.from_numpy(frame["direction"].to_numpy() == 0)
    asked_for: list[tuple[str, Callable[[Patches], Tensor]]] = []
    if options.hessian:
        asked_for.append(("hessian", lambda part: predict_by_hessian(baseline, part)))
    if options.path_points:
        asked_for.append(("own_path", lambda part: predict_along_path(baseline, part, options.path_points)))
    for name, predicted in asked_for:
        values = torch.full((len(patches),), torch.nan, dtype=torch.float64)
        values[is_feature] = torch.cat([predicted(part) for part in patches.where(is_feature).split(GRAPH_PATCHES)])
        frame = frame.with_columns(pl.Series(name, values.numpy()).fill_nan(None))
    return frame


def _with_failures(frame: pl.DataFrame) -> pl.DataFrame:
    """Patches that gave numbers which are not finite keep none, and say so."""
    measured = [name for name in frame.columns if name.startswith(("delta_", "kl_", "top_changed_"))]
    numbers = [name for name, kind in frame.schema.items() if kind == pl.Float64]
    finite = pl.all_horizontal(pl.col(name).is_finite().fill_null(True) for name in numbers)
    kept = [*measured, *(name for name in frame.columns if name in (*PREDICTORS, *PARTS))]
    return frame.with_columns(
        *(pl.when(finite).then(pl.col(name)) for name in kept),
        failure=pl.when(~finite).then(pl.lit("The patch gave numbers that are not finite.")),
    )
