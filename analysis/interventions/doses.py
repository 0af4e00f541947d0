"""Patches of a batch in, what they do when their change is multiplied out: rows of `intervention_doses`.

  x_t ← x_t + dose·δ_t·direction

Dose 1 is the patch itself, whose row is in `interventions`. Dose 0 is no edit and one unit in the last place: what it
does is what rounding does, and effects must stand out from it to have an exponent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl
import torch

from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.edits import Outcome, Patches
from energy_lens.analysis.interventions.options import InterventionOptions

#: What is kept of a patch at a dose.
KEPT = ("delta_edited", "delta_later", "kl_edited", "kl_later")


def measure_doses(
    baseline: Baseline, keys: pl.DataFrame, patches: Patches, options: InterventionOptions
) -> pl.DataFrame:
    """A row for each patch and other dose, and one of dose 0 for each patch of a feature itself.

    keys: feature, direction and context_id of each patch.
    """
    keys = keys.select("feature", "direction", "context_id")
    own = keys["direction"].to_numpy() == 0
    size, features = options.batch_size, patches.where(torch.from_numpy(own))
    rounding = _measured(keys.filter(own), features, 0.0, size, baseline.measure_rounding)
    doses = (
        _measured(keys, patches, dose, size, partial(baseline.measure_dose, dose=dose)) for dose in options.other_doses
    )
    return pl.concat([rounding, *doses])


def _measured(
    keys: pl.DataFrame, patches: Patches, dose: float, size: int, measure: Callable[[Patches], Outcome]
) -> pl.DataFrame:
    """Rows of patches at a dose, by passes of at most `size` patches."""
    sums = [measure(part).sums(part) for part in patches.split(size)]
    columns = {name: np.concatenate([part[name] for part in sums]) for name in KEPT}
    return pl.concat([keys.with_columns(dose=pl.lit(dose)), pl.DataFrame(columns)], how="horizontal")
