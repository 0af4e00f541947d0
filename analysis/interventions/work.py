"""A batch of contexts in, its rows by table out: measured in this process, or as a job for workers.

A batch depends on nothing but its contexts, the edits of its layer and the seed, so that it is the same wherever it is
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.attractors.landscape import Landscape, StoredLandscape
from energy_lens.analysis.current_run import StoredSae
from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.controls import ControlDirections
from energy_lens.analysis.interventions.measuring import measure_batch
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.ingest.cluster import PackedFrames, Task
from energy_lens.ingest.cluster.job import Progress
from energy_lens.ingest.model.bos import set_bos
from energy_lens.ingest.model.facts import DIGITS, model_facts
from energy_lens.ingest.model.flash import use_flash
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DTYPES, load_model
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.histograms import LayerBins


@dataclass(frozen=True)
class LayerEdits:
    """What is edited at a layer, the same in every batch."""

    features: Sequence[int]
    bins: LayerBins | None  #: in which activations and gradients of the loss are counted; None without quartiles
    others: Mapping[int, Sequence[int]]  #: feature: those whose rows are its control `decoder`
    deviations: Tensor | None  #: x less its mean [token, d_model], for the control `covariance`


@dataclass(frozen=True)
class Batch:
    """Contexts that are run unpatched at once, and edited at a layer."""

    layer: int
    number: int  #: among those of the layer
    context_ids: Sequence[int]
    token_ids: Sequence[NDArray[np.int32]]  #: vocabulary ids of each

    def task(self) -> Task:
        return Task(f"batch {self.number + 1} of layer {self.layer}", self, len(self.context_ids))


@dataclass(frozen=True)
class Apparatus:
    """The model, the SAEs whose features are edited, and the attractors that are read, by layer."""

    model: LanguageModel
    saes: Mapping[int, SparseAutoencoder]
    landscapes: Mapping[int, Landscape]
    options: InterventionOptions

    def measure(self, edits: LayerEdits, batch: Batch) -> dict[str, pl.DataFrame]:
        """Rows by table, keyed by feature, direction and context."""
        options, sae = self.options, self.saes[batch.layer]
        later = [landscape for layer, landscape in self.landscapes.items() if layer > batch.layer]
        controls = ControlDirections(
            sae, options.control_kinds, options.directions, options.seed, edits.others, edits.deviations
        )
        above = {landscape.layer: landscape.sae for landscape in later}
        baseline = Baseline(self.model, sae, batch.token_ids, batch.context_ids, options.probes, options.seed, above)
        return measure_batch(baseline, batch.context_ids, edits.features, later, edits.bins, controls, options)


def prepare(model: LanguageModel, has_bos: bool, options: InterventionOptions) -> None:
    """Have a loaded model read as the run did, and be as fast as what is measured allows."""
    set_bos(model, has_bos)
    if not options.hessian:  # whose backward pass is differentiated again
        use_flash(model)


@dataclass(frozen=True)
class InterventionJob:
    """All that a worker needs to know to measure batches."""

    model: str  #: by the name that the run stored
    has_bos: bool  #: whether contexts begin with BOS
    saes: Mapping[int, StoredSae]  #: by layer: those that are edited, and those whose attractors are read
    edits: Mapping[int, LayerEdits]  #: by layer
    landscapes: Mapping[int, StoredLandscape]  #: by layer
    options: InterventionOptions  #: its dtype settled
    of_model: Mapping[str, str]  #: what the model has to be, by name

    @property
    def expected(self) -> dict[str, str]:
        return {**self.of_model, **{_name(layer): stored.sha256[:DIGITS] for layer, stored in self.saes.items()}}

    def facts(self) -> dict[str, str]:
        """Raises UsageError and ElwError for a model or an SAE that is not there."""
        saes = {_name(layer): stored.load().sha256[:DIGITS] for layer, stored in self.saes.items()}
        return {**model_facts(self.model), **saes}

    def take_up(self) -> Callable[[Batch, Progress], PackedFrames]:
        """Load the model, the SAEs and the landscapes, for what measures a batch with them."""
        model = load_model(self.model, DTYPES[self.options.dtype])
        prepare(model, self.has_bos, self.options)
        saes = {layer: stored.load() for layer, stored in self.saes.items()}
        landscapes = {layer: stored.of(saes[layer]) for layer, stored in self.landscapes.items()}
        apparatus = Apparatus(model, saes, landscapes, self.options)

        def compute(batch: Batch, progress: Progress) -> PackedFrames:
            frames = apparatus.measure(self.edits[batch.layer], batch)
            progress(len(batch.context_ids))
            return PackedFrames.of(frames)

        return compute


def _name(layer: int) -> str:
    return f"the SAE of layer {layer}"
