"""Contexts side by side in, the residuals that are trained on out: in this process, or as a job for workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.cluster import Task
from energy_lens.ingest.cluster.job import Progress
from energy_lens.ingest.contexts import special_tokens
from energy_lens.ingest.inclusion import SpecialTokens, included_everywhere
from energy_lens.ingest.model.bos import set_bos
from energy_lens.ingest.model.facts import model_facts
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DTYPES, load_model, resolved
from energy_lens.ingest.model.precision import name_of
from energy_lens.ingest.model.sites import Site, check_sites, harvest


@dataclass(frozen=True)
class Harvester:
    """A model, where it is read, and which of its tokens count."""

    model: LanguageModel
    sites: Mapping[int, Site]  #: by layer
    norm_medians: Mapping[int, float]  #: by layer: median ‖x‖

    def harvest(self, tokens: Tensor, lengths: Tensor) -> dict[int, Tensor]:
        """x of the tokens that are included at every layer, by layer: bfloat16 [token, width], in their order.

        tokens: ids [context, position] int64, padded on the right; lengths: [context].
        """
        residuals = harvest(self.model, tokens, self.sites)
        included = included_everywhere(residuals, self.norm_medians, lengths, tokens, self._special)
        return {layer: x[included].bfloat16() for layer, x in residuals.items()}

    @cached_property
    def _special(self) -> SpecialTokens:
        return special_tokens(self.model)


def bits(x: Tensor) -> NDArray[np.int16]:
    """A bfloat16 tensor as numpy can hold it."""
    own: NDArray[np.int16] = x.contiguous().view(torch.int16).numpy()
    return own


# ------------------------------------------------------------------------------------------------ by workers


@dataclass(frozen=True)
class Batch:
    """Contexts of a round that the model reads at once."""

    round: int
    place: int  #: in the round
    tokens: Tensor  #: ids [context, position] int64, padded on the right
    lengths: Tensor  #: [context]

    def task(self) -> Task:
        return Task(f"batch {self.place + 1} of round {self.round + 1}", self, self.tokens.numel())


@dataclass(frozen=True)
class Harvested:
    """What a batch gave, on its way."""

    residuals: Mapping[int, NDArray[np.int16]]  #: by layer: the bits of `Harvester.harvest`, [token, width]

    @property
    def n_bytes(self) -> int:
        return sum(x.nbytes for x in self.residuals.values())


@dataclass(frozen=True)
class HarvestJob:
    """All that a worker needs to know to harvest batches as the process that trains would."""

    model: str  #: by a name that holds from everywhere
    dtype: str  #: one of DTYPES
    bos: bool
    sites: Mapping[int, Site]  #: by layer
    norm_medians: Mapping[int, float]  #: by layer
    expected: Mapping[str, str]  #: of the model, by name

    @classmethod
    def of(cls, harvester: Harvester) -> HarvestJob:
        model = harvester.model
        name = resolved(model.name)
        return cls(
            name, name_of(model), model.bos is not None, harvester.sites, harvester.norm_medians, model_facts(name)
        )

    def facts(self) -> dict[str, str]:
        return model_facts(self.model)

    def take_up(self) -> Callable[[Batch, Progress], Harvested]:
        """Load the model, for what harvests a batch with it."""
        model = load_model(self.model, DTYPES[self.dtype])
        set_bos(model, self.bos)
        check_sites(model, self.sites.values())
        harvester = Harvester(model, self.sites, self.norm_medians)

        def compute(batch: Batch, progress: Progress) -> Harvested:
            found = harvester.harvest(batch.tokens, batch.lengths)
            progress(batch.tokens.numel())
            return Harvested({layer: bits(x) for layer, x in found.items()})

        return compute
