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
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.histograms import LayerBins

#: Patches whose Hessian or path is computed at once: their graphs reach up to the vocabulary.
GRAPH_PATCHES = 4


def measure_batch(
    baseline: Baseline,
    context_ids: Sequence[int],
    features: Sequence[int],
    later: Sequence[Landscape],
    bins: LayerBins | None,
    options: InterventionOptions,
) -> dict[str, pl.DataFrame]:
    """Rows by table for a batch of contexts, keyed by feature, direction and context; no patches if nothing is edited.

    baseline: of the contexts that have these ids; later: attractors of later layers that are read, with --shift;
    bins: in which activations and gradients of the loss are counted.
    """
    frames = {"intervention_readings": read_features(baseline, context_ids, features, bins, LOSS)}
    pairs, patches = _every_patch(baseline, features, options)
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
    keys = pl.DataFrame(
        {
            "feature": pl.Series([feature for feature, _ in pairs], dtype=pl.Int32),
            "direction": pl.Series([direction for _, direction in pairs], dtype=pl.Int32),
            "context_id": np.array(context_ids, dtype=np.int32)[patches.context.numpy()],
        }
    )
    columns = {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}
    frame = pl.concat([keys, pl.DataFrame(columns)], how="horizontal")
    frames["interventions"] = _with_failures(_with_dear_predictions(frame, baseline, patches, options))
    if shifted:
        numbered = keys.with_row_index("patch")
        joined = pl.DataFrame(shifted).join(numbered, on="patch", how="inner", maintain_order="left")
        frames["attractor_shifts"] = joined.drop("patch")
    return frames


def _every_patch(
    baseline: Baseline, features: Sequence[int], options: InterventionOptions
) -> tuple[list[tuple[int, int]], Patches]:
    """The patches of a batch, and (feature, direction) of each: direction 0 is the feature's own, the others random."""
    pairs: list[tuple[int, int]] = []
    parts: list[Patches] = []
    for feature in features:
        for direction in range(options.directions + 1):
            row = None if direction == 0 else random_direction(baseline.sae, feature, direction, options.seed)
            part = baseline.patches(options.edit, feature, row)
            pairs += [(feature, direction)] * len(part)
            parts.append(part)
    return pairs, Patches.joined(parts)


def random_direction(sae: SparseAutoencoder, feature: int, number: int, seed: int) -> Tensor:
    """A direction [d_model] of the norm of the feature's decoder row, the same in every batch."""
    generator = np.random.default_rng([seed, sae.layer, feature, number])
    direction = torch.from_numpy(generator.standard_normal(sae.d_model)).float()
    length = float(sae.W_dec[feature].norm() / direction.norm())
    return direction * length


def _measurements(patches: Patches, outcome: Outcome) -> dict[str, NDArray[Any]]:
    """What was done and what it did by column, [n]: sums over edited tokens and over later ones."""
    later = outcome.looked_at & ~patches.edited
    integer = np.int32
    columns: dict[str, NDArray[Any]] = {
        "n_edited": patches.edited.sum(1).numpy().astype(integer),
        "n_later": later.sum(1).numpy().astype(integer),
        "sum_change": patches.change.double().sum(1).numpy(),
        "sum_change2": patches.change.double().square().sum(1).numpy(),
    }
    for suffix, where in (("edited", patches.edited), ("later", later)):
        columns[f"delta_{suffix}"] = (outcome.delta.double() * where).sum(1).numpy()
        columns[f"kl_{suffix}"] = (outcome.divergence.double() * where).sum(1).numpy()
        columns[f"top_changed_{suffix}"] = (outcome.top_changed & where).sum(1).numpy().astype(integer)
    return columns


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
