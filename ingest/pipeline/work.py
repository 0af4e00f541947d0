"""A run's settings in, a job that any machine can take up; a group's documents in, its tables packed as Arrow out.

What is computed is what `process` computes in one process: the same groups by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_lens.console import say
from energy_lens.errors import UsageError
from energy_lens.ingest.cluster import PackedFrames, Task
from energy_lens.ingest.cluster.job import Progress
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.energies.registry import choose_translators, make_energies
from energy_lens.ingest.model.compiling import compile_blocks
from energy_lens.ingest.pipeline.groups import GroupBuilder, GroupTables
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.pipeline.settling import choose_instruments, wanted_settings
from energy_lens.ingest.pipeline.stage import Stage
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.ingest.sources import TextFile, source_at
from energy_lens.ingest.statistics.directions import Directions
from energy_lens.ingest.statistics.histograms import HistogramPlan
from energy_lens.warehouse.plan import Group
from energy_lens.warehouse.runs import RunSettings, StoredDocument, StoredRun
from energy_lens.warehouse.staging.groups import StagedGroup


@dataclass(frozen=True)
class GroupWork:
    """A group to compute, with where its texts are."""

    group: Group
    documents: Mapping[int, StoredDocument]  #: by document_id
    #: context_id: vocabulary ids, for a machine that has not the texts; None: it tokenises them itself
    token_ids: Mapping[int, NDArray[np.int32]] | None = None

    @property
    def needs_ids(self) -> bool:
        """Whether a text is no file, so that every machine would have to read a whole table for it."""
        return not all(isinstance(source_at(document.source), TextFile) for document in self.documents.values())


@dataclass(frozen=True)
class PackedGroup:
    """A group's tables on their way."""

    group: Group
    cpu: str
    frames: PackedFrames

    @property
    def n_bytes(self) -> int:
        return self.frames.n_bytes

    @classmethod
    def of(cls, made: GroupTables) -> PackedGroup:
        return cls(made.group, made.cpu, PackedFrames.of(made.frames))

    def unpacked(self) -> GroupTables:
        return GroupTables(self.group, self.cpu, self.frames.unpacked())


@dataclass(frozen=True)
class Lacking:
    """A group was not computed: the machine has not its texts, or has others under their names."""

    reason: str


@dataclass(frozen=True)
class GroupJob:
    """All that a worker needs to know of a run to compute its groups."""

    options: IngestOptions
    settings: RunSettings
    run_id: int
    norm_medians: Mapping[int, float]  #: by layer
    histogram_plan: HistogramPlan
    directions: Mapping[int, Directions]  #: by layer
    compiled: bool  #: whether blocks are fused
    stage: Stage | None = None  #: where rows are written, so that they need not come back

    @property
    def expected(self) -> dict[str, str]:
        """What a machine has to have, by name: all of a run's identity that is read from files there."""
        return _facts(self.settings)

    def facts(self) -> dict[str, str]:
        """The same of this machine. Raises UsageError and ElwError for a model or an SAE that is not there."""
        here = wanted_settings(self.options, *self._chosen())
        # A run that an older version began does not know the configuration.
        known = here if self.settings.configuration_sha256 else replace(here, configuration_sha256="")
        return _facts(known)

    def take_up(self) -> Callable[[GroupWork, Progress], PackedGroup | StagedGroup | Lacking]:
        """Load the model and the SAEs, for what computes a group with them."""
        options = self.options
        instruments = choose_instruments(options, self.settings, *self._chosen()).with_medians(self.norm_medians)
        reader = instruments.reader()
        if self.compiled:
            shape = (options.batch_size, self.settings.context_length)
            if reason := compile_blocks(reader.model, shape, min(reader.saes)):
                say(f"The model's blocks are not compiled here: {reason}.")
        source = TokenSource(instruments.model.load, {})
        builder = GroupBuilder(
            self.run_id, self.settings.context_length, reader, self.histogram_plan, self.directions,
            self.settings.store_gradients,
        )  # fmt: skip

        def compute(work: GroupWork, progress: Progress) -> PackedGroup | StagedGroup | Lacking:
            token_ids = work.token_ids
            if token_ids is None:
                try:
                    token_ids = source.contexts_of(work.documents, contexts_in(work.group))
                except UsageError as error:
                    return Lacking(str(error))
            made = builder.build(work.group, token_ids, on_tokens=progress)
            return self.stage.write(made) if self.stage else PackedGroup.of(made)

        return compute

    def _chosen(self) -> tuple[list[Energy], dict[int, SparseAutoencoder]]:
        options = self.options
        energies = make_energies(options.energies, lambda: choose_translators(options.model, options.lens))
        return energies, choose_saes(options.model, options.layers, options.saes)


def group_task(run: StoredRun, group: Group, source: TokenSource, send_ids: bool) -> Task:
    """A group as a task. send_ids: with its token ids, since the machines have not the texts."""
    documents = {context.document_id: run.by_id[context.document_id] for context in contexts_in(group)}
    work = GroupWork(group, documents)
    if send_ids or work.needs_ids:
        work = replace(work, token_ids=source.contexts_of(documents, contexts_in(group)))
    return Task(f"group {group.group_id}", work, group.n_tokens)


def contexts_in(group: Group) -> list[Any]:
    """All contexts of a group, row by row."""
    return [context for row in group.rows for context in row]


def _facts(settings: RunSettings) -> dict[str, str]:
    facts = {
        "model": settings.model_sha256, "its configuration": settings.configuration_sha256,
        "its tokenizer": settings.tokenizer_sha256, "BOS": "yes" if settings.bos else "no",
    }  # fmt: skip
    facts |= {f"the SAE of layer {layer}": sha256 for layer, sha256 in settings.saes.items()}
    facts |= {f"the energy {name}": str(identity) for name, identity in settings.energies.items()}
    return {name: value[:12] for name, value in facts.items()}
