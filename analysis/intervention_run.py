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

from energy_lens.analysis.attractor_shift import Landscape, ShiftReader
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions import JOINT_POINTS, Baseline, Edit, Outcome, Patches, alignment
from energy_lens.analysis.validation import (
    bootstrap,
    drawn_scores,
    drawn_sums,
    partial_spearman,
    pearson,
    ratio_interval,
    spearman,
)
from energy_lens.errors import UsageError
from energy_lens.ingest.models import LanguageModel
from energy_lens.ingest.pipeline import DTYPES
from energy_lens.ingest.sae import SparseAutoencoder
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.output import Kind, Rows

Floats = NDArray[np.float64]

#: What features can be chosen by, strongest first: columns of sql/interventions/candidates.sql, by absolute value.
SCORES = ("attribution", "score", "z", "attribution_curvature", "mi_excess", "density")

#: Active tokens in the run that a feature must have to be chosen by rank or at random.
MIN_ACTIVE = 20

#: A random feature is one of this many that fire most nearly as often as the one it is matched to.
MATCHES = 5

#: Contexts that are run unpatched at once, and committed together.
BATCH_CONTEXTS = 8

#: Patches whose Hessian or path is computed at once: their graphs reach up to the vocabulary.
GRAPH_PATCHES = 4

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


@dataclass(frozen=True)
class Request:
    """--features taken apart."""

    top: int = 0
    random: int = 0
    listed: tuple[tuple[int, int], ...] = ()  #: (layer, feature)
    classes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> Request:
        """Raises UsageError for a word that is none of top:N, random:N, LAYER:FEATURE, class:NAME."""
        top, random, listed, classes = 0, 0, [], []
        for word in words:
            kind, _, rest = word.partition(":")
            if kind == "class" and rest:
                classes.append(rest)
            elif rest.isdecimal() and kind in ("top", "random"):
                top, random = (int(rest), random) if kind == "top" else (top, int(rest))
            elif kind.isdecimal() and rest.isdecimal():
                listed.append((int(kind), int(rest)))
            else:
                raise UsageError(
                    f"--features does not know {word!r}: say top:50, random:50, 15:656 (layer:feature) or class:regex, "
                    "separated by commas."
                )
        if not (top or random or listed or classes):
            raise UsageError("No feature was chosen: say top:50, random:50, 15:656 or class:regex (--features).")
        return cls(top, random, tuple(dict.fromkeys(listed)), tuple(classes))


@dataclass(frozen=True)
class Intervened:
    """An intervention of one layer, finished."""

    run_id: int
    intervention_id: int
    layer: int
    n_new_patches: int


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


# ------------------------------------------------------------------------------------------------ finish


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


# ------------------------------------------------------------------------------------------------ what is shown


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
