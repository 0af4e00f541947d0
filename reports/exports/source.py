"""The current run in, what every export says of it out: names, SAEs, and the corpus in a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import ElwError
from energy_lens.reports.tables import model_name
from energy_lens.warehouse.database import Warehouse

#: Facts of a run that the manifest repeats: what its numbers depend on, and no path of this machine.
_TOLD = (
    "run_id", "identity", "model_sha256", "tokenizer_sha256", "context_length", "dtype", "has_bos", "seed", "layers",
    "energies", "elw_version", "updated_at", "n_contexts", "n_tokens", "n_documents",
)  # fmt: skip


@dataclass(frozen=True)
class Sae:
    """The SAE of a hooked layer."""

    layer: int
    sae_sha256: str
    source: str
    architecture: str
    d_sae: int
    hook_name: str  #: what it reads, as TransformerLens calls it
    hook_name_out: str | None  #: what a transcoder makes up
    n_tokens: int  #: included tokens of the layer
    n_active: int  #: pairs of an included token and a feature that is active there

    @property
    def site(self) -> str:
        """res, mlp, att or transcoder, as names of sets on Neuronpedia begin."""
        if self.hook_name_out:
            return "transcoder"
        return "mlp" if "mlp" in self.hook_name else "att" if "attn" in self.hook_name else "res"


@dataclass(frozen=True)
class Source:
    """The current run, as far as exports tell of it."""

    facts: Mapping[str, Any]  #: sql/exports/run.sql
    saes: Sequence[Sae]  #: by layer

    @property
    def model(self) -> str:
        """The model's name; without the path, where it is a folder."""
        return model_name(self.facts["model"])

    @property
    def model_id(self) -> str:
        """The model's name as Neuronpedia takes ids: lower case, figures, letters, _ and - alone."""
        return re.sub(r"[^a-z0-9_-]+", "-", self.model.rsplit("/", 1)[-1].lower()).strip("-")[:128] or "model"

    @property
    def data_set(self) -> str:
        """The data set of the hub that all documents are from; empty where there is no such one."""
        (name, *others) = self.facts["data_sets"] or [""]
        return name if not others else ""

    @property
    def corpus(self) -> str:
        facts = self.facts
        return f"{facts['n_tokens']:,} tokens in {facts['n_contexts']:,} contexts of {facts['n_documents']:,} documents"

    @property
    def told(self) -> dict[str, Any]:
        """What the manifest says of the run."""
        saes = [
            {"layer": sae.layer, "sae_sha256": sae.sae_sha256, "d_sae": sae.d_sae, "hook_name": sae.hook_name}
            for sae in self.saes
        ]
        return {"model": self.model, **{name: self.facts[name] for name in _TOLD}, "saes": saes}

    def sae(self, layer: int) -> Sae:
        return next(sae for sae in self.saes if sae.layer == layer)


def read_source(warehouse: Warehouse) -> Source:
    """What there is to say of the current run. Raises ElwError when there is none, or it has no statistics."""
    facts = next(iter(warehouse.run("exports/run").dicts()), None)
    if facts is None:
        raise ElwError(f"{warehouse.path} holds no run: fill it with elw ingest.")
    saes = [Sae(**row) for row in warehouse.run("exports/saes").dicts()]
    if not saes:
        raise ElwError(
            f"Run {facts['run_id']} of {warehouse.path} has no statistics yet: run the same elw ingest again, which "
            "finishes them."
        )
    return Source(facts, saes)
