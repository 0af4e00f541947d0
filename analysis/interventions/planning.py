"""What is asked for in, an intervention of each layer out: its features and contexts chosen and stored, or found again.

What a layer's intervention depends on is its identity, so that the same call finds it, whatever other layers are asked
for with it and whoever measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions.choosing import Request, choose
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DTYPES
from energy_lens.ingest.model.precision import name_of
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse

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


def settled(
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


def plan_layer(path: Path, current: CurrentRun, options: InterventionOptions, request: Request, layer: int) -> Planned:
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
    if options.other_doses:  # there were none at first
        settings["doses"] = options.other_doses
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
        controls=options.control_kinds or None, shift=options.shift,
        doses=options.other_doses or None, version=__version__,
    )  # fmt: skip
    kinds: dict[str, Any] = {"note": pl.String, "control_features": pl.List(pl.Int32)}
    features = pl.DataFrame([{**plan.place, **row} for row in chosen], schema_overrides=kinds)
    warehouse.append("intervention_features", features)
    rows = [{**plan.place, "batch": i, "context_id": id_} for i, batch in enumerate(batches) for id_ in batch]
    warehouse.append("intervention_contexts", pl.DataFrame(rows))
