"""`elw intervene`: features of the current run in, measured effects and how well each score predicts them out.

1. Choose features: the top by a score, random ones that fire as often, listed ones, all of a class; and contexts, a
   seeded sample in turn from each category and half. Both are stored before anything is measured.
2. Batch by batch of contexts, one transaction each: run them unpatched, take predictions, run every patch.
3. Finish: intervals over documents, and the agreement of each predictor with the measurement.

Killed anywhere, the same command goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from energy_lens.analysis.attractors.landscape import Landscape
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.choosing import MATCHES, MIN_ACTIVE, SCORES, Request
from energy_lens.analysis.interventions.edits import Edit, Outcome, Patches
from energy_lens.analysis.interventions.effects import ABLATIONS, Intervened, finish
from energy_lens.analysis.interventions.measuring import GRAPH_PATCHES, _columns, _with_failures
from energy_lens.analysis.interventions.shifts import ShiftReader
from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DTYPES
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse, ingest_lock

#: Contexts that are run unpatched at once, and committed together.
BATCH_CONTEXTS = 8


@dataclass(frozen=True)
class InterventionOptions:
    """What `elw intervene` can be told."""

    edit: Edit = field(default_factory=lambda: Edit("ablate"))
    layers: tuple[int, ...] | None = None  #: None: all of the run, or those of the listed features
    features: tuple[str, ...] = ("top:25", "random:25")  #: top:N, random:N, LAYER:FEATURE, class:NAME
    by: str = "attribution"  #: one of SCORES, of nll
    contexts: int = 96
    probes: int = 3
    directions: int = 1
    path_points: int = 0
    hessian: bool = False
    shift: int = 0  #: later tokens of each patch at which attractors of later layers are read; 0: none are
    dtype: str = "float32"
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        checks = [
            (self.by in SCORES, f"--by is {self.by!r}; choose {', '.join(SCORES)}"),
            (self.contexts >= 1, f"--contexts is {self.contexts}; at least 1 is needed"),
            (self.batch_size >= 1, f"--batch-size is {self.batch_size}; at least 1 patch is needed"),
            (self.dtype in DTYPES, f"--dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}"),
            *(
                (getattr(self, name) >= 0, f"--{name} is {getattr(self, name)}; it must not be negative")
                for name in ("probes", "directions", "seed", "shift")
            ),
            (self.path_points >= 0, f"--path is {self.path_points}; it must not be negative"),
        ]  # fmt: skip
        for ok, message in checks:
            if not ok:
                raise UsageError(message + ".")


def intervene(path: Path, options: InterventionOptions) -> list[Intervened]:
    """Intervene on features of the current run and store what happens, layer by layer.

    Raises UsageError when there is no run, no such layer or feature, or when the model or an SAE is another now;
    KeyboardInterrupt after Ctrl-C: what is committed stays, and the same call goes on.
    """
    request = Request.parse(options.features)
    current = CurrentRun(path)
    wanted = options.layers
    if wanted is None and request.listed and not (request.top or request.random or request.classes):
        wanted = tuple(sorted({layer for layer, _ in request.listed}))
    layers = current.chosen(wanted, current.facts.layers, "layer")
    if outside := [layer for layer, _ in request.listed if layer not in layers]:
        current.chosen(outside[:1], layers, "layer")
    saes = {layer: current.sae(layer) for layer in layers}
    for layer, feature in request.listed:
        if feature >= saes[layer].d_sae:
            raise UsageError(f"Layer {layer} has no feature {feature}: its features are 0 to {saes[layer].d_sae - 1}.")
    with ingest_lock(path):
        with Warehouse(path, writable=True):  # brings the schema up to date before any time goes into the model
            pass
        landscapes = {}
        if options.shift:
            landscapes = {layer: Landscape.load(current, layer) for layer in current.facts.layers if layer > layers[0]}
        works = [_Work(path, current, options, request, layer) for layer in layers]
        if any(not work.is_finished for work in works):
            model = current.load_model(options.dtype)
            for work in works:
                later = [landscape for layer, landscape in landscapes.items() if layer > work.layer]
                work.carry_out(model, saes[work.layer], later)
    return [Intervened(current.run_id, work.intervention_id, work.layer, work.n_new_patches) for work in works]


class _Work:
    """One layer's intervention: planned on construction, or found as it was left."""

    def __init__(
        self, path: Path, current: CurrentRun, options: InterventionOptions, request: Request, layer: int
    ) -> None:
        self.path, self.current, self.options, self.layer = path, current, options, layer
        self.n_new_patches = 0
        words = sorted(word for word in options.features if not word.partition(":")[0].isdecimal())
        words += [f"{of}:{feature}" for of, feature in sorted(request.listed) if of == layer]
        settings = {
            "layer": layer, "edit": [options.edit.kind, options.edit.value, options.edit.where], "by": options.by,
            "features": words,
            "contexts": options.contexts, "probes": options.probes, "directions": options.directions,
            "path": options.path_points, "hessian": options.hessian, "shift": options.shift,
            "dtype": options.dtype, "seed": options.seed,
        }  # fmt: skip
        identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        batches = self._batches()
        with Warehouse(path, writable=True) as warehouse:
            row = warehouse.run("interventions/find", run=current.run_id, identity=identity).fetchone()
            if row is None:
                chosen = self._choose(warehouse, request)
                with warehouse.transaction():
                    row = self._plan(warehouse, identity, words, chosen, batches), False
            self.intervention_id, self.is_finished = row

    @property
    def _key(self) -> dict[str, int]:
        return {"run": self.current.run_id, "intervention": self.intervention_id}

    # -- the plan

    def _choose(self, warehouse: Warehouse, request: Request) -> list[dict[str, Any]]:
        """Rows of intervention_features."""
        found = warehouse.run("interventions/candidates", layer=self.layer, energy="nll").pl()
        if found.is_empty():
            raise UsageError(
                f"Run {self.current.run_id} has no scores of nll at layer {self.layer}: ingest with --energies nll,…"
            )
        n_active = dict(found.select("feature", "n_active").iter_rows())
        chosen: dict[int, str] = {feature: "listed" for layer, feature in request.listed if layer == self.layer}
        for name in request.classes:
            of_class = warehouse.run("interventions/of_class", layer=self.layer, class_name=name).fetchall()
            if not of_class:
                raise UsageError(f"No feature of layer {self.layer} is of class {name}: see the view features.")
            chosen |= {feature: "class" for (feature,) in of_class if feature not in chosen}
        usable = found.filter(pl.col("n_active") >= MIN_ACTIVE)
        if request.top:
            ranked = usable.drop_nulls(self.options.by).sort(pl.col(self.options.by).abs(), descending=True)
            if ranked.is_empty():
                needs = {"attribution_curvature": "ingest with --probes 3", "mi_excess": "ingest more text"}
                raise UsageError(
                    f"No feature of layer {self.layer} has a {self.options.by}: "
                    f"{needs.get(self.options.by, 'ingest more text')}, or choose another score (--by)."
                )
            top = ranked["feature"].to_list()
            chosen |= {feature: "top" for feature in top[: request.top] if feature not in chosen}
        if request.random:
            chosen |= dict.fromkeys(self._matched(usable, chosen, n_active, request.random), "random")
        never = "It never fires in this run."
        return [
            {
                "feature": feature, "chosen_by": why, "n_active": n_active.get(feature, 0),
                "note": None if n_active.get(feature) else never,
            }
            for feature, why in sorted(chosen.items())
        ]  # fmt: skip

    def _matched(
        self, usable: pl.DataFrame, chosen: Mapping[int, str], n_active: Mapping[int, int], n: int
    ) -> Iterator[int]:
        """Random features that fire as often as the chosen ones, in turn; any when there are none."""
        generator = np.random.default_rng([self.options.seed, self.layer])
        rates = [n_active[feature] for feature in chosen if n_active.get(feature)]
        left = {f: count for f, count in usable.select("feature", "n_active").iter_rows() if f not in chosen}
        for i in range(min(n, len(left))):
            nearest = sorted(left)
            if rates:
                wanted = math.log(rates[i % len(rates)])
                nearest = sorted(left, key=lambda f: abs(math.log(left[f]) - wanted))[:MATCHES]
            feature = int(generator.choice(nearest))
            del left[feature]
            yield feature

    def _batches(self) -> list[list[int]]:
        """Context ids, BATCH_CONTEXTS at a time."""
        sample = self.current.sample(self.options.contexts, self.options.seed)
        return [sample[i : i + BATCH_CONTEXTS] for i in range(0, len(sample), BATCH_CONTEXTS)]

    def _plan(
        self,
        warehouse: Warehouse,
        identity: str,
        features: Sequence[str],
        chosen: Sequence[Mapping[str, Any]],
        batches: Sequence[Sequence[int]],
    ) -> int:
        options = self.options
        key = int(warehouse.run("interventions/next_id", run=self.current.run_id).value())
        warehouse.run(
            "interventions/create", run=self.current.run_id, intervention=key, identity=identity, layer=self.layer,
            kind=options.edit.kind, value=options.edit.value, edited=options.edit.where, features=list(features),
            dtype=options.dtype, seed=options.seed, n_contexts=sum(map(len, batches)), n_probes=options.probes,
            n_directions=options.directions, path_points=options.path_points, hessian=options.hessian,
            shift=options.shift, version=__version__,
        )  # fmt: skip
        place = {"run_id": self.current.run_id, "intervention_id": key}
        schema = {"note": pl.String}
        warehouse.append(
            "intervention_features", pl.DataFrame([{**place, **row} for row in chosen], schema_overrides=schema)
        )
        rows = [{**place, "batch": i, "context_id": id_} for i, batch in enumerate(batches) for id_ in batch]
        warehouse.append("intervention_contexts", pl.DataFrame(rows))
        return key

    # -- measuring

    def carry_out(self, model: LanguageModel, sae: SparseAutoencoder, later: Sequence[Landscape]) -> None:
        """Measure what is left, then finish; `later` are the layers whose attractors are read."""
        if self.is_finished:
            return
        with Warehouse(self.path) as warehouse:
            pending = warehouse.run("interventions/pending", **self._key).fetchall()
            features = [feature for (feature,) in warehouse.run("interventions/features", **self._key).fetchall()]
        if not features:  # none of them ever fires, which is on record
            pending = []
        every = 0.5 if sys.stderr.isatty() else 30
        total = sum(len(ids) for _, ids in pending)
        bars = {"total": total, "unit": "context", "mininterval": every, "disable": not total}
        with tqdm(desc=f"Layer {self.layer}", **bars) as bar:
            for batch, ids in pending:
                frames = self._measured(model, sae, features, ids, later)
                with Warehouse(self.path, writable=True) as warehouse, warehouse.transaction():
                    for table, frame in frames.items():
                        warehouse.append(table, frame, ("feature", "direction", "context_id"))
                    warehouse.run("interventions/commit_batch", **self._key, batch=batch)
                self.n_new_patches += len(frames.get("interventions", ()))
                bar.set_postfix_str(f"{self.n_new_patches:,} patches", refresh=False)
                bar.update(len(ids))
        with Warehouse(self.path, writable=True) as warehouse, warehouse.transaction():
            finish(warehouse, self.current.run_id, self.intervention_id, self.layer, self.options.seed)

    def _measured(
        self,
        model: LanguageModel,
        sae: SparseAutoencoder,
        features: Sequence[int],
        ids: Sequence[int],
        later: Sequence[Landscape],
    ) -> dict[str, pl.DataFrame]:
        """Rows of `interventions` and `attractor_shifts` for a batch of contexts; none when nothing is edited in it."""
        options = self.options
        contexts = self.current.contexts(ids)
        layers = [landscape.layer for landscape in later]
        texts = [tokens for _, tokens in contexts]
        baseline = Baseline(model, sae, texts, ids, options.probes, options.seed, layers)
        labels: list[tuple[int, int]] = []  # (feature, direction) of each patch
        parts: list[Patches] = []
        for feature in features:
            for direction in range(options.directions + 1):
                row = None if direction == 0 else self._random_direction(sae, feature, direction)
                own = baseline.patches(options.edit, feature, row)
                labels += [(feature, direction)] * len(own)
                parts.append(own)
        patches = Patches(*(torch.cat(columns) for columns in zip(*map(_columns, parts), strict=True)))
        if not len(patches):
            return {}
        shifts = ShiftReader(baseline, later, options.shift, options.seed) if later else None
        rows, shifted = [], []
        for own in patches.split(options.batch_size):
            outcome = baseline.measure(own)
            rows.append(self._rows(baseline, own, outcome))
            shifted += [] if shifts is None else shifts.read(own, outcome)
        keys = pl.DataFrame(
            {
                "feature": pl.Series([feature for feature, _ in labels], dtype=pl.Int32),
                "direction": pl.Series([direction for _, direction in labels], dtype=pl.Int32),
                "context_id": np.array(ids, dtype=np.int32)[patches.context.numpy()],
            }
        ).with_columns(run_id=pl.lit(self.current.run_id), intervention_id=pl.lit(self.intervention_id))
        columns = {name: np.concatenate([own[name] for own in rows]) for name in rows[0]}
        frame = pl.concat([keys, pl.DataFrame(columns)], how="horizontal")
        frames = {"interventions": _with_failures(self._with_dear_predictions(frame, baseline, patches))}
        if shifted:
            own_keys = keys.with_row_index("patch")
            frames["attractor_shifts"] = (
                pl.DataFrame(shifted)
                .join(own_keys, left_on="patch", right_on="patch", how="inner", maintain_order="left")
                .drop("patch")
            )
        return frames

    def _random_direction(self, sae: SparseAutoencoder, feature: int, number: int) -> Tensor:
        """A direction of the norm of the feature's decoder row, the same in every batch."""
        generator = np.random.default_rng([self.options.seed, self.layer, feature, number])
        direction = torch.from_numpy(generator.standard_normal(sae.d_model)).float()
        length = float(sae.W_dec[feature].norm() / direction.norm())
        return direction * length

    def _rows(self, baseline: Baseline, patches: Patches, outcome: Outcome) -> dict[str, NDArray[Any]]:
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
        predicted = baseline.predict(patches)
        if self.options.edit.kind != "ablate":  # they take features away
            predicted = {name: own for name, own in predicted.items() if name not in ABLATIONS}
        return columns | {name: values.numpy() for name, values in predicted.items()}

    def _with_dear_predictions(self, frame: pl.DataFrame, baseline: Baseline, patches: Patches) -> pl.DataFrame:
        """With the predictions that need passes of their own for each patch, for the features themselves."""
        options = self.options
        own = torch.from_numpy(frame["direction"].to_numpy() == 0)
        chosen = Patches(*(column[own] for column in _columns(patches)))
        wanted: list[tuple[str, Callable[[Patches], Tensor]]] = []
        if options.hessian:
            wanted.append(("hessian", baseline.predict_by_hessian))
        if options.path_points:
            wanted.append(("own_path", lambda part: baseline.predict_along_path(part, options.path_points)))
        for name, predict in wanted:
            values = torch.full((len(patches),), torch.nan, dtype=torch.float64)
            values[own] = torch.cat([predict(part) for part in chosen.split(GRAPH_PATCHES)])
            frame = frame.with_columns(pl.Series(name, values.numpy()).fill_nan(None))
        return frame


# ------------------------------------------------------------------------------------------------ finish


# ------------------------------------------------------------------------------------------------ what is shown
