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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from energy_lens.analysis.attractors.landscape import Landscape
from energy_lens.analysis.current_run import CurrentRun, check_feature
from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.choosing import Request, choose
from energy_lens.analysis.interventions.controls import COVARIANCE_CONTEXTS, ControlDirections, residual_deviations
from energy_lens.analysis.interventions.edits import LOSS
from energy_lens.analysis.interventions.effects import Intervened, renew_effects, store_effects
from energy_lens.analysis.interventions.measuring import measure_batch
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.console import bar
from energy_lens.ingest.model.flash import use_flash
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DTYPES
from energy_lens.ingest.model.precision import name_of
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.histograms import read_histogram_plan
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse, ingest_lock

#: Contexts that are run unpatched at once, and committed together.
BATCH_CONTEXTS = 8


@dataclass(frozen=True)
class Planned:
    """One layer's intervention, whose features and contexts are stored: anew, or by an earlier call."""

    run_id: int
    intervention_id: int
    layer: int
    is_finished: bool

    @property
    def key(self) -> dict[str, int]:
        """Its place in the tables, as parameters of their queries."""
        return {"run": self.run_id, "intervention": self.intervention_id}

    @property
    def place(self) -> dict[str, int]:
        """Its place in the tables, as columns of their rows."""
        return {"run_id": self.run_id, "intervention_id": self.intervention_id}


def intervene(path: Path, options: InterventionOptions) -> list[Intervened]:
    """Intervene on features of the current run and store what happens, layer by layer.

    Raises UsageError when there is no run, no such layer or feature, or when the model or an SAE is another now;
    KeyboardInterrupt after Ctrl-C: what is committed stays, and the same call goes on.
    """
    request = Request.parse(options.features)
    current = CurrentRun(path)
    layers = request.layers(current, options.layers)
    saes = {layer: current.sae(layer) for layer in layers}
    for layer, feature in request.listed:
        check_feature(saes[layer], feature)
    with ingest_lock(path, "elw intervene"):
        with Warehouse(path, writable=True, create=False) as warehouse:  # migrates before the model is loaded
            renew_effects(warehouse, current.run_id)
        landscapes = {}
        if options.shift:
            landscapes = {layer: Landscape.load(current, layer) for layer in current.facts.layers if layer > layers[0]}
        options, model = _settled(current, options, request, layers)
        plans = [_plan(path, current, options, request, layer) for layer in layers]
        n_new_patches = dict.fromkeys(layers, 0)
        if any(not plan.is_finished for plan in plans):
            model = model or current.load_model(options.dtype)
            if not options.hessian:  # whose backward pass is differentiated again
                use_flash(model)
            for plan in plans:
                later = [landscape for layer, landscape in landscapes.items() if layer > plan.layer]
                if not plan.is_finished:
                    n_new_patches[plan.layer] = _carry_out(path, plan, current, options, model, saes[plan.layer], later)
    return [Intervened(plan.run_id, plan.intervention_id, plan.layer, n_new_patches[plan.layer]) for plan in plans]


# ------------------------------------------------------------------------------------------------ the plan


def _settled(
    current: CurrentRun, options: InterventionOptions, request: Request, layers: Sequence[int]
) -> tuple[InterventionOptions, LanguageModel | None]:
    """The options with a precision, where they leave it open or the model cannot run in it, and the model if loaded.

    What was begun, in whatever precision auto chose then, is gone on with.
    """
    if options.dtype == "float32":
        return options, None
    choices = [replace(options, dtype=dtype) for dtype in (DTYPES if options.dtype == "auto" else [options.dtype])]
    with Warehouse(current.path) as warehouse:
        for choice in choices:
            identities = [_settings_hash(choice, request.words_for(layer), layer) for layer in layers]
            if any(_found(warehouse, current.run_id, identity) for identity in identities):
                return choice, None
    model = current.load_model(options.dtype)
    return replace(options, dtype=name_of(model)), model


def _plan(path: Path, current: CurrentRun, options: InterventionOptions, request: Request, layer: int) -> Planned:
    """A layer's intervention as it was left, or else planned now."""
    words = request.words_for(layer)
    identity = _settings_hash(options, words, layer)
    sample = current.sample(options.contexts, options.seed)
    batches = [sample[i : i + BATCH_CONTEXTS] for i in range(0, len(sample), BATCH_CONTEXTS)]
    with Warehouse(path, writable=True, create=False) as warehouse:
        known = _found(warehouse, current.run_id, identity)
        if known is not None:
            return Planned(current.run_id, known[0], layer, known[1])
        n_others = options.directions if "decoder" in options.control_kinds else 0
        chosen = choose(warehouse, current.run_id, layer, request, options.by, options.seed, n_others)
        with warehouse.transaction():
            id_ = int(warehouse.run("interventions/next_id", run=current.run_id).value())
            plan = Planned(current.run_id, id_, layer, is_finished=False)
            _store_plan(warehouse, plan, options, identity, words, chosen, batches)
    return plan


def _found(warehouse: Warehouse, run_id: int, identity: str) -> tuple[int, bool] | None:
    """The id of an intervention of that identity, and whether it is finished; None when there is none."""
    found: tuple[int, bool] | None = warehouse.run("interventions/find", run=run_id, identity=identity).fetchone()
    return found


def _settings_hash(options: InterventionOptions, words: Sequence[str], layer: int) -> str:
    """Equal for equal interventions of a layer, whatever other layers they are asked for with."""
    settings = {
        "layer": layer, "edit": [options.edit.kind, options.edit.value, options.edit.where], "by": options.by,
        "features": words,
        "contexts": options.contexts, "probes": options.probes, "directions": options.directions,
        "path": options.path_points, "hessian": options.hessian, "shift": options.shift,
        "dtype": options.dtype, "seed": options.seed,
    }  # fmt: skip
    if options.control_kinds not in ([], ["isotropic"]):  # which is what there was at first
        settings["controls"] = options.control_kinds
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _store_plan(
    warehouse: Warehouse,
    plan: Planned,
    options: InterventionOptions,
    identity: str,
    words: Sequence[str],
    chosen: Sequence[Mapping[str, Any]],
    batches: Sequence[Sequence[int]],
) -> None:
    """Settings, features and contexts of an intervention. Call within a transaction."""
    warehouse.run(
        "interventions/create", **plan.key, identity=identity, layer=plan.layer,
        kind=options.edit.kind, value=options.edit.value, edited=options.edit.where, features=list(words),
        dtype=options.dtype, seed=options.seed, n_contexts=sum(map(len, batches)), n_probes=options.probes,
        n_directions=options.directions, path_points=options.path_points, hessian=options.hessian,
        controls=options.control_kinds or None, shift=options.shift, version=__version__,
    )  # fmt: skip
    kinds: dict[str, Any] = {"note": pl.String, "control_features": pl.List(pl.Int32)}
    features = pl.DataFrame([{**plan.place, **row} for row in chosen], schema_overrides=kinds)
    warehouse.append("intervention_features", features)
    rows = [{**plan.place, "batch": i, "context_id": id_} for i, batch in enumerate(batches) for id_ in batch]
    warehouse.append("intervention_contexts", pl.DataFrame(rows))


# ------------------------------------------------------------------------------------------------ measuring


def _carry_out(
    path: Path,
    plan: Planned,
    current: CurrentRun,
    options: InterventionOptions,
    model: LanguageModel,
    sae: SparseAutoencoder,
    later: Sequence[Landscape],
) -> int:
    """Measure what is left of an intervention, then finish it; returns the number of new patches.

    later: the layers whose attractors are read.
    """
    with Warehouse(path) as warehouse:
        pending = warehouse.run("interventions/pending", **plan.key).fetchall()
        features = [feature for (feature,) in warehouse.run("interventions/features", **plan.key).fetchall()]
        bins = read_histogram_plan(warehouse, plan.run_id, {plan.layer: sae}, [LOSS]).layers.get(plan.layer)
        others: dict[Any, Any] = dict(warehouse.run("interventions/control_features", **plan.key).fetchall())
        first = warehouse.run("interventions/first_contexts", **plan.key, n=COVARIANCE_CONTEXTS).fetchall()
    n_new_patches = 0
    if pending and features:  # else nothing is left, or none of them ever fires, which is on record
        deviations = None
        if "covariance" in options.control_kinds:
            deviations = residual_deviations(
                model, sae, [tokens for _, tokens in current.contexts(id_ for (id_,) in first)]
            )
        controls = ControlDirections(sae, options.control_kinds, options.directions, options.seed, others, deviations)
        with bar(f"Layer {plan.layer}", sum(len(ids) for _, ids in pending), "context") as progress:
            for batch, ids in pending:
                contexts = [tokens for _, tokens in current.contexts(ids)]
                above = {landscape.layer: landscape.sae for landscape in later}
                baseline = Baseline(model, sae, contexts, ids, options.probes, options.seed, above)
                frames = measure_batch(baseline, ids, features, later, bins, controls, options)
                _store_batch(path, plan, batch, frames)
                n_new_patches += len(frames.get("interventions", ()))
                progress.set_postfix_str(f"{n_new_patches:,} patches", refresh=False)
                progress.update(len(ids))
    with Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
        store_effects(warehouse, plan.run_id, plan.intervention_id, options.seed)
    return n_new_patches


def _store_batch(path: Path, plan: Planned, batch: int, frames: Mapping[str, pl.DataFrame]) -> None:
    """What was measured in a batch, and that it was, in one transaction."""
    with Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
        for table, frame in frames.items():
            keyed = frame.with_columns(**{name: pl.lit(id_) for name, id_ in plan.place.items()})
            warehouse.append(table, keyed, ("feature", "direction", "context_id"))
        warehouse.run("interventions/commit_batch", **plan.key, batch=batch)
