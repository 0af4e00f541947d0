"""The current run of a warehouse in, what a permutation test needs of each layer and energy out.

Gradient vectors are the stored ones, or those of the model run again on a seeded sample of the plan's rows: whole rows,
since a context's mates are needed for its g̃. Activations, included and counted tokens always come from the warehouse,
and so do the tokens that the model is run on: no text has to be there any more. Nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.permutation import Integers, PairedContexts, within_rows
from energy_lens.console import bar, say
from energy_lens.errors import LARGEST_COUNT, UsageError, did_you_mean, require, require_at_most, require_seed
from energy_lens.ingest.reading import Reader
from energy_lens.ingest.statistics.significance import MIN_MATES
from energy_lens.warehouse.categories import ALL
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import rounds

#: Contexts that the model is run on again when no number is given.
DEFAULT_CONTEXTS = 256

#: Numbers of gradient vectors held at once: 0.8 GB.
MAX_GRADIENT_NUMBERS = 200_000_000

#: With fewer, (b + 1)/(N + 1) cannot be 0.05.
FEWEST_PERMUTATIONS = 19

#: Beyond what says anything more of a p, and what is held of each.
MOST_PERMUTATIONS = 1_000_000


@dataclass(frozen=True)
class PermutationOptions:
    """What `elw efas test` can be told."""

    layers: tuple[int, ...] | None = None  #: None: all of the run
    energies: tuple[str, ...] | None = None
    category: str = ALL
    permutations: int = 1_000
    contexts: int | None = None  #: size of the sample; None: all that are stored, else DEFAULT_CONTEXTS
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is out of range."""
        n, contexts = self.permutations, self.contexts
        require(n >= FEWEST_PERMUTATIONS, f"--permutations is {n}; p = 0.05 needs {FEWEST_PERMUTATIONS}.")
        require_at_most("--permutations", n, MOST_PERMUTATIONS)
        require(contexts is None or contexts >= 1, f"--contexts is {contexts}; at least 1 is needed.")
        require_at_most("--contexts", contexts or 0, LARGEST_COUNT)
        require_seed(self.seed)


@dataclass(frozen=True)
class _Used:
    """The contexts used, row by row of the plan."""

    ids: Integers
    categories: NDArray[np.object_]
    documents: Integers
    ranks: Integers  #: the how manieth of its document's used contexts it is
    rows: list[Integers]  #: places in the arrays above


@dataclass(frozen=True)
class Inputs:
    """What one layer and energy is tested on."""

    layer: int
    energy: str
    tested: Mapping[str, NDArray[Any]]  #: feature, z, p_value and q_value of `efas`
    contexts: PairedContexts
    centred: Tensor  #: ∇̃ [context, position, d_model]
    decoder: Tensor  #: rows of the tested features


class PermutationInputs:
    """What the test takes from the current run of a warehouse."""

    def __init__(self, path: Path | None, options: PermutationOptions) -> None:
        """Raises UsageError as `check_run` does."""
        self.path, self.options = path, options
        self._current = CurrentRun(path)
        self.run = self._current.facts
        self.layers = self._current.chosen(options.layers, self.run.layers, "layer")
        self.energies = self._current.chosen(options.energies, self.run.energies, "energy")
        with Warehouse(path) as warehouse:
            self.tested = self._tested(warehouse)
            self.saes = {layer: self._current.sae(layer) for layer in self.layers}
            # A normalised SAE's gradients need each token's scale, which is not stored.
            self.stored = self.run.store_gradients and all(s.normalisation == "none" for s in self.saes.values())
            self.used = self._sample(warehouse)

    def inputs(self) -> Iterator[Inputs]:
        """What to test, by layer and energy."""
        computed = None if self.stored else self._computed()
        for (layer, energy), tested in self.tested.items():
            included = self._included(layer)
            gradients = (
                computed.pop((layer, energy)) if computed is not None else self._vectors(layer, energy, included)
            )
            yield Inputs(
                layer, energy, tested, self._paired(layer, tested["feature"]),
                within_rows(gradients, included, self.used.rows),
                self.saes[layer].W_dec[torch.from_numpy(tested["feature"].astype(np.int64))],
            )  # fmt: skip

    # -- what is asked

    def _tested(self, warehouse: Warehouse) -> dict[tuple[int, str], dict[str, NDArray[Any]]]:
        """What efas says of the features it tests, by layer and energy."""
        category = self.options.category
        columns = warehouse.run("permutation/tested_features", run=self.run.run_id, category=category).numpy()
        places = list(zip(columns["layer"].tolist(), columns["energy"].tolist(), strict=True))
        wanted = {(layer, energy) for layer in self.layers for energy in self.energies} & set(places)
        if not wanted:
            known = [name for (name,) in warehouse.run("permutation/categories").fetchall()]
            if known and category not in known:
                raise UsageError(
                    f"Run {self.run.run_id} has no category {category}{did_you_mean(category, known)}: choose among "
                    f"{', '.join(known)} (--category)."
                )
            raise UsageError(
                f"efas tests nothing there in run {self.run.run_id} (z is NULL): a feature needs 50 active counted "
                "tokens in 10 contexts of 5 documents, and a category 4 documents in a half; ingest more text."
            )
        place = np.array([wanted_place in wanted for wanted_place in places])
        layers, energies = columns["layer"], columns["energy"].astype(object)
        return {
            (layer, energy): {
                name: np.asarray(values[place & (layers == layer) & (energies == energy)])
                for name, values in columns.items()
            }
            for layer, energy in sorted(wanted)
        }

    # -- contexts

    def _sample(self, warehouse: Warehouse) -> _Used:
        """Rows of the plan with mates enough, all of them or a seeded sample in turn from each category."""
        stored = warehouse.run("permutation/rows", run=self.run.run_id, category=self.options.category).fetchall()
        rows: dict[int, list[tuple[str, int, int, int]]] = {}
        for number, *context in stored:
            rows.setdefault(number, []).append(tuple(context))
        usable = [row for row in rows.values() if len(row) > MIN_MATES]
        available = sum(map(len, usable))
        limit, why = self._limit()
        if limit < available:
            by_category: dict[str, list[list[tuple[str, int, int, int]]]] = {}
            for row in usable:
                by_category.setdefault(row[0][0], []).append(row)
            usable = []
            for in_turn in rounds(by_category, self.options.seed):
                if sum(map(len, usable)) >= limit:
                    break
                usable += in_turn
            n_used = sum(map(len, usable))
            if n_used < available:
                say(f"A sample of {n_used:,} of {available:,} contexts is used{why}; z and q are of all of them.")
        contexts = [context for row in usable for context in row]
        categories, ids, documents, indices = (np.array(column) for column in zip(*contexts, strict=True))
        order = np.lexsort((indices, documents))
        first = np.concatenate(([True], np.diff(documents[order]) != 0))
        ranks = np.empty(len(ids), dtype=np.int64)
        ranks[order] = np.arange(len(ids)) - np.flatnonzero(first)[np.cumsum(first) - 1]
        ends = np.cumsum([len(row) for row in usable])
        places = [np.arange(end - len(row), end) for row, end in zip(usable, ends, strict=True)]
        return _Used(ids, categories.astype(object), documents, ranks, places)

    def _limit(self) -> tuple[float, str]:
        """Contexts to use at most, and why no more."""
        held = 1 if self.stored else len(self.layers) * len(self.energies)
        memory = max(1, MAX_GRADIENT_NUMBERS // (self.run.context_length * self.run.d_model * held))
        if self.options.contexts or self.stored:
            wanted, why = self.options.contexts or math.inf, ""
        else:
            wanted, why = DEFAULT_CONTEXTS, ", since the model is run again (--contexts takes more)"
        return (memory, ", for want of memory") if memory < wanted else (wanted, why)

    def _places(self, token_ids: Integers) -> tuple[Integers, Integers]:
        """Place of its context and position of each token."""
        order = np.argsort(self.used.ids)
        context = order[np.searchsorted(self.used.ids, token_ids // self.run.context_length, sorter=order)]
        return context, token_ids % self.run.context_length

    def _included(self, layer: int) -> Tensor:
        """[context, position] bool."""
        with Warehouse(self.path) as warehouse:
            columns = warehouse.run("permutation/included", **self._of(layer)).numpy()
        included = torch.zeros(len(self.used.ids), self.run.context_length, dtype=torch.bool)
        included[tuple(map(torch.from_numpy, self._places(columns["token_id"])))] = True
        return included

    def _paired(self, layer: int, features: NDArray[Any]) -> PairedContexts:
        with Warehouse(self.path) as warehouse:
            active = warehouse.run("permutation/activations", features=features.tolist(), **self._of(layer)).numpy()
        context, position = self._places(active["token_id"])
        feature = np.searchsorted(features, active["feature"])
        used = self.used
        return PairedContexts(
            used.categories, used.documents, used.ranks, context, position, feature,
            active["activation"].astype(np.float64),
        )  # fmt: skip

    def _of(self, layer: int) -> dict[str, Any]:
        return {
            "run": self.run.run_id, "layer": layer, "context_length": self.run.context_length,
            "contexts": self.used.ids.tolist(),
        }  # fmt: skip

    # -- gradients

    def _vectors(self, layer: int, energy: str, included: Tensor) -> Tensor:
        """Stored ∂E/∂x [context, position, d_model]."""
        with Warehouse(self.path) as warehouse:
            columns = warehouse.run("permutation/vectors", energy=energy, **self._of(layer)).numpy()
        gradients = torch.zeros(*included.shape, self.run.d_model)
        vectors = torch.from_numpy(np.stack(list(columns["vector"])))
        gradients[tuple(map(torch.from_numpy, self._places(columns["token_id"])))] = vectors
        return gradients

    def _computed(self) -> dict[tuple[int, str], Tensor]:
        """s_t·∂E/∂x [context, position, d_model] by layer and energy, from the model run again."""
        run = self.run
        self._current.check_model()
        energies = self._current.make_energies(self.energies)
        shape = (len(self.used.ids), run.context_length, run.d_model)
        gradients = {(layer, energy): torch.zeros(shape) for layer in self.layers for energy in self.energies}
        contexts = self._current.contexts(self.used.ids.tolist())
        readings = Reader(self._current.load_model(), self.saes, energies, batch_size=8).read(contexts)
        with bar("Gradients", len(contexts), "context") as progress:
            for i, reading in enumerate(readings):
                for layer, layer_reading in reading.layers.items():
                    for energy in self.energies:
                        vectors = layer_reading.decoder_gradients(energy)
                        gradients[layer, energy][i, : len(vectors)] = vectors
                progress.update()
        return gradients
