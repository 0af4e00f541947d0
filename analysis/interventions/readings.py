"""A batch that ran unpatched in, what it says of each feature there out: the rows of `intervention_readings`.

With them EFAS, density and mutual information are of the very tokens that are edited, as every prediction is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.ingest.statistics.histograms import ACTIVATION_BINS, GRADIENT_BINS, LayerBins

#: Counts of one feature in one context: inactive tokens and the bins of a, by the bins of g.
CELLS = (1 + ACTIVATION_BINS) * GRADIENT_BINS


@torch.no_grad()
def read_features(
    baseline: Baseline, context_ids: Sequence[int], features: Sequence[int], bins: LayerBins | None, energy: str
) -> pl.DataFrame:
    """A row for each feature and context; g = -⟨∂E/∂x, d⟩ in nats by a unit of activation.

    baseline: of the contexts that have these ids. bins: of the layer, with edges of `energy`; None without quartiles.
    """
    included = baseline.included
    context = included.nonzero()[:, 0]
    gradient = baseline.gradient[included].double()
    if baseline.scales is not None:
        gradient = gradient * baseline.scales[included][:, None]
    by_feature = []
    for feature in features:
        a = baseline.activation(feature)[included].double()
        g = -gradient @ baseline.sae.W_dec[feature].double()
        is_active = (a > 0).double()
        summed = {
            "n_tokens": torch.ones_like(a), "n_active": is_active, "sum_a": a, "sum_a2": a * a, "sum_g": g,
            "sum_g2": g * g, "sum_ag": a * g, "active_g": is_active * g, "active_g2": is_active * g * g,
        }  # fmt: skip
        columns = {
            name: torch.zeros(len(included), dtype=torch.float64).index_add_(0, context, terms).numpy()
            for name, terms in summed.items()
        }
        counts = None if bins is None else _cells(a, g, bins.activation[feature], bins.gradients[energy][feature])
        cells = [None] * len(included) if counts is None else _by_context(counts, context, len(included))
        by_feature.append(
            pl.DataFrame({"feature": pl.Series([feature] * len(included), dtype=pl.Int32), **columns}).with_columns(
                pl.Series("context_id", context_ids, dtype=pl.Int32),
                pl.Series("cells", cells, dtype=pl.List(pl.Int32)),
                pl.col("n_tokens", "n_active").cast(pl.Int32),
            )
        )
    return pl.concat(by_feature)


def _cells(a: Tensor, g: Tensor, a_edges: Tensor, g_edges: Tensor) -> Tensor | None:
    """The cell of each token, of CELLS; None for a feature without edges. Compared as float32, as by ingest."""
    if a_edges.isnan().any() or g_edges.isnan().any():
        return None
    a_bin = torch.where(a > 0, 1 + (a.float()[:, None] > a_edges).sum(1), 0)
    return a_bin * GRADIENT_BINS + (g.float()[:, None] > g_edges).sum(1)


def _by_context(cells: Tensor, context: Tensor, n_contexts: int) -> list[list[int]]:
    """Counts by context and cell."""
    counts = np.zeros((n_contexts, CELLS), dtype=np.int32)
    np.add.at(counts, (context.numpy(), cells.numpy()), 1)
    rows: list[list[int]] = counts.tolist()
    return rows
