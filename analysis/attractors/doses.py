"""A feature in, how far its activation must be scaled at a token to change that token's basin at a later layer out.

A residual is read at the next hooked layer with that layer's own SAE and β. Two fixed points are of one basin when both
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

from energy_lens.analysis.attractors.landscape import Landscape, basin_shift, written
from energy_lens.analysis.attractors.network import Settled
from energy_lens.analysis.current_run import CurrentRun, check_feature
from energy_lens.errors import LARGEST_COUNT, UsageError, require, require_at_most, require_seed
from energy_lens.ingest.contexts import padded
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import harvest, hidden_from, needs_below
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.output import Kind, Rows

#: Factors tried on the way down and up before the interval that holds a change is halved so many times.
DOWN, UP = (0.75, 0.5, 0.25, 0.0), (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
HALVINGS = 8

#: Contexts in a forward pass.
BATCH = 16


@dataclass(frozen=True)
class DoseOptions:
    """What `elw attractors dose` can be told."""

    layer: int
    feature: int
    tokens: int = 32  #: tokens at which the feature is active, at most
    seed: int = 0  #: of the sample of these

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is out of range."""
        require(self.tokens >= 1, f"--tokens is {self.tokens}; at least 1 is needed.")
        require_at_most("--tokens", self.tokens, LARGEST_COUNT)
        require_seed(self.seed)


def critical_doses(path: Path, options: DoseOptions) -> int:
    """Bisect the factor at which a token's basin at the next hooked layer changes, and store it; returns that layer.

    At each of a sample of tokens at which the feature is active, that token alone is edited. A basin may change and
    change back on the way: what is found is the change nearest to 1 on a grid of factors, halved down.
    Raises UsageError for a layer or feature that is not there, the last hooked layer, and a feature that never fires.
    """
    current = CurrentRun(path)
    sae = current.sae(options.layer)
    check_feature(sae, options.feature)
    later = [layer for layer in current.facts.layers if layer > options.layer]
    if not later:
        raise UsageError(f"Layer {options.layer} is the last hooked layer: a patch has no later one to be read at.")
    landscape = Landscape.load(current, later[0])
    key = {"run": current.run_id, "layer": options.layer, "feature": options.feature}
    with Warehouse(path) as warehouse:
        active = warehouse.run("attractors/active_tokens", **key).numpy()["token_id"]
    require(len(active) > 0, f"Feature {options.layer}:{options.feature} never fires in run {current.run_id}.")
    order = np.random.default_rng(options.seed).permutation(len(active))[: options.tokens]
    token_ids = np.sort(active[order])
    with ingest_lock(path, "elw attractors dose"):
        with Warehouse(path, writable=True):  # brings the schema up to date before any time goes into the model
            pass
        frame = _doses(current, current.load_model("float32"), sae, landscape, options.feature, token_ids)
        place = {"run_id": current.run_id, "layer": options.layer, "feature": options.feature}
        frame = frame.with_columns(later_layer=pl.lit(landscape.layer), **{k: pl.lit(v) for k, v in place.items()})
        with Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
            warehouse.run("attractors/forget_doses", **key)
            warehouse.append("critical_doses", frame)
    return landscape.layer


def dose_rows(warehouse: Warehouse, options: DoseOptions, limit: int = 0) -> Rows:
    """The critical doses of a feature, token by token; limit: of tokens, 0 for all."""
    doses = warehouse.run("attractors/doses", layer=options.layer, feature=options.feature)
    return Rows(doses.columns, [Kind.of(kind) for kind in doses.kinds], [doses.fetchall()[: limit or None]])


@dataclass(frozen=True)
class DosedTokens:
    """Tokens of a batch, one a context, at each of which a feature can be scaled."""

    model: LanguageModel
    landscape: Landscape  #: of the later layer
    sae: SparseAutoencoder  #: of the feature
    tokens: Tensor  #: vocabulary ids [n, position]
    x: Tensor  #: what is where the SAE writes [n, position, d_model]
    below: Tensor | None  #: what goes into that block, where it is needed (`sites`)
    position: Tensor  #: of each token [n]
    unit: Tensor  #: what the feature adds to x there [n, d_model]
    activation: Tensor  #: of the feature there [n]

    @classmethod
    def read(
        cls,
        current: CurrentRun,
        model: LanguageModel,
        sae: SparseAutoencoder,
        landscape: Landscape,
        feature: int,
        token_ids: NDArray[np.int64],
    ) -> DosedTokens:
        """token_ids: of tokens at which the feature is active."""
        length = current.facts.context_length
        tokens, _ = padded([ids for _, ids in current.contexts((token_ids // length).tolist())])
        below = {"below": sae.site_out.before_block} if needs_below(sae.site_out) else {}
        found = harvest(model, tokens, {"read": sae.site, "written": sae.site_out, **below})
        position = torch.from_numpy(token_ids % length)
        at = found["read"][torch.arange(len(tokens)), position].float()
        a, unit = sae.part_of(feature, at)
        return cls(model, landscape, sae, tokens, found["written"], found.get("below"), position, unit, a)

    def settle_at(self, factor: Tensor) -> Settled:
        """Fixed points at the later layer of each token with its feature scaled by factor [n]."""
        row = torch.arange(len(self.x))
        moved = self.x.clone()
        moved[row, self.position] += ((factor - 1)[:, None] * self.unit).to(self.x.dtype)
        later = {self.landscape.layer: self.landscape.sae}
        with torch.no_grad(), written(self.model, later) as read:
            hidden_from(self.model, self.tokens, self.sae.site_out, moved, self.below)
        return self.landscape.settle(read()[self.landscape.layer][row, self.position])


def _doses(
    current: CurrentRun,
    model: LanguageModel,
    sae: SparseAutoencoder,
    landscape: Landscape,
    feature: int,
    token_ids: NDArray[np.int64],
) -> pl.DataFrame:
    """Rows of critical_doses, without run, layers and feature."""
    frames = []
    for start in range(0, len(token_ids), BATCH):
        ids = token_ids[start : start + BATCH]
        dosed = DosedTokens.read(current, model, sae, landscape, feature, ids)
        before = dosed.settle_at(torch.ones(len(ids)))
        columns: dict[str, Any] = {
            "token_id": ids, "activation": dosed.activation.double().numpy(),
            "attractor": landscape.attractors.assign(before.z).astype(np.int32),
        }  # fmt: skip
        for name, grid in (("down", DOWN), ("up", UP)):
            factor, attractor = _first_change(dosed, before, grid)
            columns |= {f"scale_{name}": factor, f"attractor_{name}": attractor.astype(np.int32)}
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames).with_columns(
        *(pl.col(name).fill_nan(None) for name in ("scale_down", "scale_up")),
        *(pl.when(pl.col(name) >= 0).then(pl.col(name)) for name in ("attractor", "attractor_down", "attractor_up")),
    )


def _first_change(
    dosed: DosedTokens, before: Settled, grid: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The factor nearest to 1 on a grid at which the basin is another, halved down; NaN and −1 where there is none."""
    n = len(before.z)
    inside, outside = np.ones(n), np.full(n, np.nan)
    attractor = np.full(n, -1, dtype=np.int64)

    def changed(factor: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        after = dosed.settle_at(torch.from_numpy(factor).float())
        return basin_shift(dosed.landscape, before, after).changed, dosed.landscape.attractors.assign(after.z)

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
