"""The current run in, the contexts that its SAEs are measured on out: a seeded sample of what they never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.errors import LARGEST_COUNT, UsageError, require, require_at_most
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.evaluation import documents_seen
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import rounds


@dataclass(frozen=True)
class Sample:
    """Contexts of a run, the same for all its SAEs."""

    contexts: list[NDArray[np.int32]]  #: token ids, in turn from each category and half
    n_of_run: int  #: all that the run has read
    n_seen: int  #: of these, of documents that an SAE was trained on or chosen by
    seen_are_in: bool  #: whether those are sampled too, there being no others
    seed: int

    @property
    def n_tokens(self) -> int:
        return sum(len(ids) for ids in self.contexts)


def take_sample(current: CurrentRun, saes: Sequence[SparseAutoencoder], n_contexts: int, seed: int = 0) -> Sample:
    """At most n_contexts of the contexts that the run has read.

    Raises UsageError for a run that has read none.
    """
    require(n_contexts >= 1, f"--contexts is {n_contexts}; at least 1 is needed.")
    require_at_most("--contexts", n_contexts, LARGEST_COUNT)
    with Warehouse(current.path) as warehouse:
        rows = warehouse.run("saebench/contexts", run=current.run_id).fetchall()
    if not rows:
        raise UsageError(f"Run {current.run_id} has read no context yet: go on with elw ingest.")
    seen = set[str]().union(*(documents_seen(sae) or () for sae in saes))
    unseen_rows = [row for row in rows if row[3][:16] not in seen]
    cells: dict[tuple[str, str], list[int]] = {}
    for category, half, context, _ in unseen_rows or rows:
        cells.setdefault((category, half), []).append(context)
    ids = list(islice(chain.from_iterable(rounds(cells, seed)), n_contexts))
    contexts = [tokens for _, tokens in current.contexts(ids)]
    return Sample(contexts, len(rows), len(rows) - len(unseen_rows), not unseen_rows, seed)
