"""Patches of a batch in, the rows of the table `interventions` out."""

from __future__ import annotations

import polars as pl
from torch import Tensor

from energy_lens.analysis.interventions.edits import Patches
from energy_lens.analysis.interventions.effects import PARTS, PREDICTORS

#: Patches whose Hessian or path is computed at once: their graphs reach up to the vocabulary.
GRAPH_PATCHES = 4


def _columns(patches: Patches) -> tuple[Tensor, ...]:
    return patches.context, patches.direction, patches.change, patches.edited


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
