"""What a patch does to the attractors of later layers: patched and unpatched residuals in, changes of basin out.

A residual is read at a later hooked layer with that layer's own SAE and β. Two fixed points are of one basin when both
join the same attractor of the layer's stored sample, or, where neither joins one, when their cosine exceeds MERGED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.attractors.landscape import Landscape, compare
from energy_lens.analysis.attractors.network import Settled
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import padded
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import harvest_residuals, residual_stream
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.output import Kind, Rows

#: Factors tried on the way down and up before the interval that holds a change is halved so many times.
DOWN, UP = (0.75, 0.5, 0.25, 0.0), (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
HALVINGS = 8

#: Contexts in a forward pass.
BATCH = 16


# ------------------------------------------------------------------------------------------------ critical dose


@dataclass(frozen=True)
class DoseOptions:
    """What `elw attractors --patch` can be told."""

    layer: int
    feature: int
    tokens: int = 32
    seed: int = 0


def critical_doses(path: Path, options: DoseOptions) -> int:
    """Bisect the factor at which a token's basin at the next hooked layer changes, and store it; returns that layer.

    At each of a sample of tokens at which the feature is active, that token alone is edited. A basin may change and
    change back on the way: what is found is the change nearest to 1 on a grid of factors, halved down.
    Raises UsageError for a layer or feature that is not there, the last hooked layer, and a feature that never fires.
    """
    current = CurrentRun(path)
    sae = current.sae(options.layer)
    if options.feature >= sae.d_sae:
        raise UsageError(
            f"Layer {options.layer} has no feature {options.feature}: its features are 0 to {sae.d_sae - 1}."
        )
    later = [layer for layer in current.facts.layers if layer > options.layer]
    if not later:
        raise UsageError(f"Layer {options.layer} is the last hooked layer: a patch has no later one to be read at.")
    landscape = Landscape.load(current, later[0])
    with Warehouse(path) as warehouse:
        rows = warehouse.run(
            "attractors/active_tokens", run=current.run_id, layer=options.layer, feature=options.feature
        ).numpy()
    if not len(rows["token_id"]):
        raise UsageError(f"Feature {options.layer}:{options.feature} never fires in run {current.run_id}.")
    order = np.random.default_rng(options.seed).permutation(len(rows["token_id"]))[: options.tokens]
    token_ids = np.sort(rows["token_id"][order])
    with ingest_lock(path):
        frame = _doses(current, current.load_model("float32"), sae, landscape, options.feature, token_ids)
        key = {"run": current.run_id, "layer": options.layer, "feature": options.feature}
        with Warehouse(path, writable=True) as warehouse, warehouse.transaction():
            warehouse.run("attractors/forget_doses", **key)
            place = {"run_id": current.run_id, "layer": options.layer, "feature": options.feature}
            warehouse.append(
                "critical_doses",
                frame.with_columns(later_layer=pl.lit(landscape.layer), **{k: pl.lit(v) for k, v in place.items()}),
            )
    return landscape.layer


def _doses(
    current: CurrentRun,
    model: LanguageModel,
    sae: SparseAutoencoder,
    landscape: Landscape,
    feature: int,
    token_ids: NDArray[np.int64],
) -> pl.DataFrame:
    frames = []
    length = current.facts.context_length
    for start in range(0, len(token_ids), BATCH):
        own = token_ids[start : start + BATCH]
        ids = (own // length).tolist()
        tokens, _ = padded([contexts for _, contexts in current.contexts(ids)])
        x = harvest_residuals(model, tokens, [sae.layer])[sae.layer]
        row, position = torch.arange(len(own)), torch.from_numpy(own % length)
        at = x[row, position].float()
        values, indices = sae.encode(at)
        a = (values * (indices == feature)).sum(1)
        scale = sae.token_scales(at)
        unit = sae.W_dec[feature] * (a if scale is None else a * scale)[:, None]  # what the feature adds to x

        def settle_at(factor: Tensor, x: Tensor = x, unit: Tensor = unit, tokens: Tensor = tokens,
                      row: Tensor = row, position: Tensor = position) -> Settled:  # fmt: skip
            """Fixed points of each token with its feature scaled by factor [n]."""
            moved = x.clone()
            moved[row, position] += ((factor - 1)[:, None] * unit).to(x.dtype)
            with torch.no_grad(), residual_stream(model, [landscape.layer]) as residuals:
                model.hidden_above(tokens, sae.layer, moved)
            return landscape.settle(residuals[landscape.layer][row, position])

        before = settle_at(torch.ones(len(own)))
        found: dict[str, Any] = {
            "token_id": own, "activation": a.double().numpy(),
            "attractor": landscape.attractors.assign(before.z).astype(np.int32),
        }  # fmt: skip
        for name, grid in (("down", DOWN), ("up", UP)):
            factor, attractor = _first_change(landscape, before, settle_at, grid)
            found |= {f"scale_{name}": factor, f"attractor_{name}": attractor.astype(np.int32)}
        frames.append(pl.DataFrame(found))
    frame = pl.concat(frames)
    return frame.with_columns(
        *(pl.col(name).fill_nan(None) for name in ("scale_down", "scale_up")),
        *(pl.when(pl.col(name) >= 0).then(pl.col(name)) for name in ("attractor", "attractor_down", "attractor_up")),
    )


def _first_change(
    landscape: Landscape, before: Settled, settle_at: Any, grid: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The factor nearest to 1 on a grid at which the basin is another, halved down; NaN and −1 where there is none."""
    n = len(before.z)
    inside, outside = np.ones(n), np.full(n, np.nan)
    attractor = np.full(n, -1, dtype=np.int64)

    def changed(factor: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        after = settle_at(torch.from_numpy(factor).float())
        return compare(landscape, before, after).changed, landscape.attractors.assign(after.z)

    for factor in grid:
        open_ = np.isnan(outside)
        if not open_.any():
            break
        is_changed, now = changed(np.full(n, factor))
        hit = open_ & is_changed
        outside[hit], attractor[hit] = factor, now[hit]
        inside[open_ & ~is_changed] = factor
    for _ in range(HALVINGS):
        if np.isnan(outside).all():
            break
        middle = np.where(np.isnan(outside), 1.0, (inside + outside) / 2)
        is_changed, now = changed(middle)
        hit = is_changed & ~np.isnan(outside)
        outside[hit], attractor[hit] = middle[hit], now[hit]
        inside[~is_changed] = middle[~is_changed]
    return outside, attractor


def doses(warehouse: Warehouse, options: DoseOptions) -> Rows:
    """The critical doses of a feature, token by token."""
    found = warehouse.run("attractors/doses", layer=options.layer, feature=options.feature)
    return Rows(found.columns, [Kind.of(kind) for kind in found.kinds], [found.fetchall()])
