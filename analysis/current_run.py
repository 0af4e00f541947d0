"""The current run of a warehouse, brought back: its model, its SAEs and the tokens of its contexts.

Analyses that run the model again begin here. Everything is checked against what the run stored, so that a number is
never taken on another model or SAE than the ones it is put beside; and tokens come from the warehouse, so that no text
has to be there any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from energy_lens.console import say
from energy_lens.errors import ElwError, UsageError, did_you_mean, require
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.energies.registry import ENERGIES, choose_translators, make_energies
from energy_lens.ingest.model.bos import set_bos
from energy_lens.ingest.model.configuration import configuration_sha256
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import locate
from energy_lens.ingest.model.precision import load_in
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import stored_folder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.model_names import note_another_model
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import Context, rounds
from energy_lens.warehouse.query import announce_state

T = TypeVar("T")


@dataclass(frozen=True)
class RunFacts:
    """What the table `runs` says of it."""

    run_id: int
    model: str
    model_sha256: str
    context_length: int
    d_model: int
    dtype: str
    store_gradients: bool
    layers: list[int]
    energies: list[str]
    settings: str  #: JSON


@dataclass(frozen=True)
class StoredSae:
    """An SAE of a run, by what the run stored of it."""

    layer: int
    sha256: str
    source: str  #: where it was
    norm_median: float

    def load(self) -> SparseAutoencoder:
        """What is there now, with the run's norm median. Raises UsageError and ElwError where nothing is."""
        return replace(load_sae(stored_folder(self.source, self.layer), layer=self.layer), norm_median=self.norm_median)


class CurrentRun:
    """The current run of a warehouse; its model and SAEs are loaded when they are asked for."""

    def __init__(self, path: Path | None, run_id: int | None = None) -> None:
        """run_id: another run than the current one, to be made that. Raises UsageError when there is no such run."""
        self.path = path
        with Warehouse(path) as warehouse:
            if run_id is None:
                announce_state(warehouse)
            row = warehouse.run("current_run/facts", run=run_id).fetchone()
            if row is None:
                raise UsageError(f"There is no run in {warehouse.path}: make one with elw ingest.")
            self.facts = RunFacts(*row)
            saes = warehouse.run("current_run/saes", run=self.run_id).fetchall()
        self.saes: Mapping[int, StoredSae] = {layer: StoredSae(layer, *place) for layer, *place in saes}  #: by layer
        self._noted: set[int] = set()  # layers whose SAE is known to be, or not to be, of the run's model

    @property
    def run_id(self) -> int:
        return self.facts.run_id

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the run's identity covers."""
        settings: Mapping[str, Any] = json.loads(self.facts.settings)
        return settings

    def chosen(self, wanted: Sequence[T] | None, known: Sequence[T], what: str) -> list[T]:
        """The known ones that are wanted, all when nothing is. Raises UsageError for one that is not there."""
        if missing := [name for name in wanted or () if name not in known]:
            has, near = ", ".join(map(str, known)), did_you_mean(missing[0], known)
            raise UsageError(f"Run {self.run_id} has no {what} {missing[0]}{near}: choose among {has} (--{what}).")
        return [name for name in known if wanted is None or name in wanted]

    def sae(self, layer: int) -> SparseAutoencoder:
        """The SAE of a hooked layer, with the run's norm median.

        Raises UsageError when the run has none there, and when it is not where it was, or is another.
        """
        self.chosen([layer], list(self.saes), "layer")
        stored = self.saes[layer]
        try:
            sae = stored.load()
        except ElwError as error:
            raise UsageError(
                f"The SAE of layer {layer} cannot be read any more ({str(error).rstrip('.')}): bring it back, or "
                "ingest anew."
            ) from error
        if sae.sha256 != stored.sha256:
            raise UsageError(
                f"The SAE of layer {layer}, {stored.source}, is another now than in run {self.run_id}: bring that one "
                "back, or ingest anew."
            )
        if layer not in self._noted:
            note_another_model(sae, self.facts.model)
            self._noted.add(layer)
        return sae

    def make_energies(self, names: Sequence[str]) -> list[Energy]:
        """Energies of the run, made again as it had them; those from outside the package by the names it stored.

        Raises UsageError for one that cannot be made any more, or that is computed in another way now.
        """
        identities = self.settings["energies"]
        sources = self._energy_sources([name for name in names if name not in ENERGIES])
        # A changed version is told before the tuned lens is looked for.
        changed = [
            name
            for name in names
            if name in ENERGIES and str(identities[name]).split("-")[0] != str(ENERGIES[name].version)
        ]
        for name, source in sources.items():  # a file of a stranger's may name whatever is installed here
            say(f"The energy {name} is made by {source}, as {self.path or 'the warehouse'} says.")
        energies: list[Energy] = []
        if not changed:
            words = [sources.get(name, name) for name in names]
            energies = make_energies(words, lambda: choose_translators(self.facts.model))
            made = {energy.name: energy.identity for energy in energies}
            changed = [name for name in names if made.get(name) != identities[name]]
        if changed:
            maker = sources.get(changed[0], "This version of elw")
            raise UsageError(f"{maker} computes {changed[0]} in another way than run {self.run_id} did: ingest anew.")
        return energies

    def _energy_sources(self, names: Sequence[str]) -> dict[str, str]:
        """What makes energies from outside the package, package.module:Class by name.

        Raises UsageError when the run does not say.
        """
        if not names:
            return {}
        with Warehouse(self.path) as warehouse:
            sources: dict[Any, Any] = (
                {} if warehouse.behind else dict(warehouse.run("current_run/energies", run=self.run_id).fetchall())
            )
        if unknown := [name for name in names if not sources.get(name)]:
            raise UsageError(
                f"Run {self.run_id}, begun by an older version of elw, does not say what class made the energy "
                f"{unknown[0]}: ingest anew, or choose others with --energy."
            )
        return {name: sources[name] for name in names}

    def load_model(self, dtype: str | None = None) -> LanguageModel:
        """The run's model, in its precision or by another word of --dtype. Raises UsageError when it is another."""
        self.check_model()
        model = load_in(self.facts.model, dtype or self.facts.dtype, self.facts.context_length)
        set_bos(model, self.has_bos)
        return model

    @property
    def has_bos(self) -> bool:
        """Whether the run's contexts begin with BOS."""
        return bool(self.settings.get("bos", False))

    def check_model(self) -> None:
        """Raises UsageError when the run's model is another now."""
        folder, sha256 = locate(self.facts.model)
        configuration = self.settings.get("configuration_sha256")
        if sha256 != self.facts.model_sha256 or configuration not in (None, configuration_sha256(folder)):
            raise UsageError(
                f"{self.facts.model} is another model now than the one of run {self.run_id}: bring that one back, or "
                "ingest anew."
            )

    def sample(self, n_contexts: int, seed: int) -> list[int]:
        """Ids of committed contexts, a seeded sample in turn from each category and half; fewer where there are."""
        with Warehouse(self.path) as warehouse:
            committed = warehouse.run("current_run/committed_contexts", run=self.run_id).fetchall()
        cells: dict[tuple[str, str], list[int]] = {}
        for category, half, context in committed:
            cells.setdefault((category, half), []).append(context)
        return list(islice(chain.from_iterable(rounds(cells, seed)), n_contexts))

    def contexts(self, ids: Iterable[int]) -> list[tuple[Context, NDArray[np.int32]]]:
        """The contexts of these ids with their vocabulary ids, in the order given; all must be committed.

        Of a Context only its id and its number of tokens mean anything here.
        """
        wanted = np.array(list(ids), dtype=np.int64)
        with Warehouse(self.path) as warehouse:
            tokens = warehouse.run(
                "current_run/tokens", run=self.run_id, context_length=self.facts.context_length,
                contexts=wanted.tolist(),
            ).numpy()  # fmt: skip
        starts = np.searchsorted(tokens["context_id"], wanted)
        ends = np.searchsorted(tokens["context_id"], wanted, side="right")
        return [
            (Context(int(id_), 0, 0, 0, int(end - start)), tokens["vocabulary_id"][start:end])
            for id_, start, end in zip(wanted, starts, ends, strict=True)
        ]


def check_feature(sae: SparseAutoencoder, feature: int) -> None:
    """Raises UsageError for a feature that the SAE does not have."""
    require(feature < sae.d_sae, f"Layer {sae.layer} has no feature {feature}: its features are 0 to {sae.d_sae - 1}.")
