"""What is left of planned interventions in, committed batches and effects out: measured here, or by workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from energy_lens.analysis.attractors.landscape import StoredLandscape
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions.controls import COVARIANCE_CONTEXTS, residual_deviations
from energy_lens.analysis.interventions.edits import LOSS
from energy_lens.analysis.interventions.effects import store_effects
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.planning import Planned
from energy_lens.analysis.interventions.work import Apparatus, Batch, InterventionJob, LayerEdits
from energy_lens.console import bar
from energy_lens.ingest.cluster import Cluster, Crew, connected
from energy_lens.ingest.model.facts import model_facts
from energy_lens.ingest.model.loading import ModelOnDemand, weight_bytes
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.histograms import read_histogram_plan
from energy_lens.warehouse.database import Warehouse

#: What is said where a batch ends one worker after the other.
REMEDY = "what is committed stays; fewer patches in a pass (--batch-size) take less memory"


@dataclass(frozen=True)
class Instruments:
    """What interventions of the current run are measured with."""

    path: Path
    current: CurrentRun
    options: InterventionOptions  #: its dtype settled
    model: ModelOnDemand
    saes: Mapping[int, SparseAutoencoder]  #: by layer: those that are edited
    landscapes: Mapping[int, StoredLandscape]  #: by layer: the attractors that are read


@dataclass(frozen=True)
class Left:
    """What is left of an intervention."""

    plan: Planned
    features: Sequence[int]
    contexts: Mapping[int, Sequence[int]]  #: ids by number of the batch; none where nothing is left, or ever fires

    @classmethod
    def of(cls, path: Path, plan: Planned) -> Left:
        with Warehouse(path) as warehouse:
            features = [feature for (feature,) in warehouse.run("interventions/features", **plan.key).fetchall()]
            pending = warehouse.run("interventions/pending", **plan.key).fetchall()
        return cls(plan, features, dict(pending) if features else {})

    @property
    def n_contexts(self) -> int:
        return sum(map(len, self.contexts.values()))


def process(instruments: Instruments, plans: Sequence[Planned]) -> dict[int, int]:
    """Measure what is left of interventions in this process, one after the other; the new patches by layer."""
    n_patches = dict.fromkeys((plan.layer for plan in plans), 0)
    apparatus: Apparatus | None = None
    for plan in plans:
        left = Left.of(instruments.path, plan)
        if left.contexts:
            apparatus = apparatus or _apparatus(instruments)
            n_patches[plan.layer] = measure(instruments, apparatus, left)
        _finish(instruments, plan)
    return n_patches


def measure(instruments: Instruments, apparatus: Apparatus, left: Left) -> int:
    """Measure what is left of an intervention, batch by batch; the number of new patches."""
    edits = _edits(instruments, left)
    n_patches = 0
    with bar(f"Layer {left.plan.layer}", left.n_contexts, "context") as progress:
        for batch in _batches(instruments.current, left):
            n_patches += _commit(instruments.path, left.plan, batch, apparatus.measure(edits, batch))
            progress.set_postfix_str(f"{n_patches:,} patches", refresh=False)
            progress.update(len(batch.context_ids))
    return n_patches


def process_on(cluster: Cluster, instruments: Instruments, plans: Sequence[Planned]) -> dict[int, int]:
    """Have what is left of interventions measured by a cluster's workers, all layers at once; the new patches by layer.

    Batches are committed here, in the order in which they come; a layer is finished with its last one.
    """
    every = {plan.layer: Left.of(instruments.path, plan) for plan in plans}
    n_patches, n_left = dict.fromkeys(every, 0), {layer: len(left.contexts) for layer, left in every.items()}
    for layer, left in every.items():
        if not n_left[layer]:
            _finish(instruments, left.plan)
    if not any(n_left.values()):
        return n_patches
    with connected(cluster, weight_bytes(instruments.current.facts.model)) as connection:
        job = _job(instruments, [left for left in every.values() if left.contexts])
        instruments.model.forget()  # the workers have it
        tasks = (batch.task() for left in every.values() for batch in _batches(instruments.current, left))
        n_contexts = sum(left.n_contexts for left in every.values())
        with Crew(connection, job, remedy=REMEDY) as crew, bar("Intervene", n_contexts, "context") as progress:
            for report in crew.reports(tasks):
                if report is None:
                    continue
                batch, packed = report.task.content, report.result
                plan = every[batch.layer].plan
                n_patches[batch.layer] += _commit(instruments.path, plan, batch, packed.unpacked())
                progress.set_postfix_str(f"{sum(n_patches.values()):,} patches", refresh=False)
                progress.update(len(batch.context_ids))
                n_left[batch.layer] -= 1
                if not n_left[batch.layer]:
                    _finish(instruments, plan)
    return n_patches


# ------------------------------------------------------------------------------------------------ parts of it


def _apparatus(instruments: Instruments) -> Apparatus:
    current = instruments.current
    landscapes = {layer: stored.of(current.sae(layer)) for layer, stored in instruments.landscapes.items()}
    return Apparatus(instruments.model.load(), instruments.saes, landscapes, instruments.options)


def _job(instruments: Instruments, every: Sequence[Left]) -> InterventionJob:
    current, layers = instruments.current, {left.plan.layer for left in every}
    return InterventionJob(
        model=current.facts.model,
        has_bos=current.has_bos,
        saes={layer: current.saes[layer] for layer in sorted(layers | set(instruments.landscapes))},
        edits={left.plan.layer: _edits(instruments, left) for left in every},
        landscapes=instruments.landscapes,
        options=instruments.options,
        of_model=model_facts(current.facts.model),
    )


def _edits(instruments: Instruments, left: Left) -> LayerEdits:
    """What is edited at a layer; runs the model where residuals are needed of which controls are drawn."""
    plan, options, sae = left.plan, instruments.options, instruments.saes[left.plan.layer]
    with Warehouse(instruments.path) as warehouse:
        bins = read_histogram_plan(warehouse, plan.run_id, {plan.layer: sae}, [LOSS]).layers.get(plan.layer)
        others: dict[Any, Any] = dict(warehouse.run("interventions/control_features", **plan.key).fetchall())
        first = warehouse.run("interventions/first_contexts", **plan.key, n=COVARIANCE_CONTEXTS).fetchall()
    deviations = None
    if "covariance" in options.control_kinds:
        contexts = [tokens for _, tokens in instruments.current.contexts(id_ for (id_,) in first)]
        deviations = residual_deviations(instruments.model.load(), sae, contexts)
    return LayerEdits(left.features, bins, others, deviations)


def _batches(current: CurrentRun, left: Left) -> Iterator[Batch]:
    for number, ids in left.contexts.items():
        yield Batch(left.plan.layer, number, ids, [tokens for _, tokens in current.contexts(ids)])


def _commit(path: Path, plan: Planned, batch: Batch, frames: Mapping[str, pl.DataFrame]) -> int:
    """Store what was measured in a batch, and that it was, in one transaction; the number of patches."""
    with Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
        for table, frame in frames.items():
            keyed = frame.with_columns(**{name: pl.lit(id_) for name, id_ in plan.place.items()})
            warehouse.append(table, keyed, ("feature", "direction", "context_id"))
        warehouse.run("interventions/commit_batch", **plan.key, batch=batch.number)
    return len(frames.get("interventions", ()))


def _finish(instruments: Instruments, plan: Planned) -> None:
    """Store the effects of an intervention that is measured as a whole."""
    with Warehouse(instruments.path, writable=True, create=False) as warehouse, warehouse.transaction():
        store_effects(warehouse, plan.run_id, plan.intervention_id, instruments.options.seed)
