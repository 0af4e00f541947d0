"""`elw attractors native`: a sample of contexts in, the attractors of an energy transformer itself and its patches out.

1. Tokens of the sample settle on the model's own landscape (`settling`), and so do those of a model of the same
   configuration whose weights were never trained: the null. Settled directions are merged as those of any attractors.
2. Features of each hooked layer that goes into a step, a random sample of those that fire often enough, are edited at
   single tokens (`patching`).

What was there before is replaced, in one transaction. Labels are chosen on half A and tested on half B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from energy_lens.analysis.attractors.labels import label_basins
from energy_lens.analysis.attractors.network import MERGED, Attractors, Still, merge
from energy_lens.analysis.attractors.run import ALL_ROWS
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.native.patching import DIRECTIONS, KINDS, Patching, Places, choose_places, step_of
from energy_lens.analysis.native.settling import (
    REMEDY,
    SettledContexts,
    block_applied,
    settle_contexts,
)
from energy_lens.console import bar, say
from energy_lens.errors import LARGEST_COUNT, require, require_at_most, require_seed
from energy_lens.ingest.contexts import padded
from energy_lens.ingest.model.energy_transformer import EnergyTransformerForCausalLM, energy_transformer_in
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.resolving import find_parts
from energy_lens.ingest.model.sites import Site, harvest
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.output import Kind, Rows

#: Contexts that settle at once.
BATCH = 8

#: Steps that the model makes beyond its own, to see whether they lead where tokens settle.
BLOCK_STEPS = 64

#: Next tokens that are kept of an attractor.
SAID = 5

#: Contexts and patched tokens, at most: all are held at once.
MOST_CONTEXTS, MOST_PATCHED = 4_096, 10_000


@dataclass(frozen=True)
class NativeOptions:
    """What `elw attractors native` can be told."""

    layers: tuple[int, ...] | None = None  #: whose features are edited; None: all that go into a step
    contexts: int = 48
    features: int = 24  #: of a layer; 0: none are edited
    tokens: int = 8  #: at which each is edited
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is out of range."""
        require(self.contexts >= 1, f"--contexts is {self.contexts}; at least 1 is needed.")
        require_at_most("--contexts", self.contexts, MOST_CONTEXTS)
        require(self.features >= 0, f"--features is {self.features}; it must not be negative.")
        require_at_most("--features", self.features, LARGEST_COUNT)
        require(self.tokens >= 1, f"--tokens is {self.tokens}; at least 1 is needed.")
        require_at_most("--tokens", self.tokens, MOST_PATCHED)
        require_seed(self.seed)


@dataclass(frozen=True)
class Sample:
    """Contexts, and the tokens of them that are looked at."""

    context_ids: list[int]
    tokens: Tensor  #: vocabulary ids [context, position], padded on the right
    row: Tensor  #: of each token's context [n]
    position: Tensor  #: [n]
    token_ids: NDArray[np.int64]
    categories: NDArray[np.object_]
    texts: NDArray[np.object_]
    halves: NDArray[np.object_]

    @property
    def vocabulary_ids(self) -> NDArray[np.int64]:
        return self.tokens[self.row, self.position].numpy()


def find_native_attractors(path: Path, options: NativeOptions) -> None:
    """Find and store where tokens of the current run settle, and what features do to that.

    Raises UsageError when there is no run, when its model is no energy transformer, or is another now.
    """
    current = CurrentRun(path)
    with ingest_lock(path, "elw attractors native"):
        with Warehouse(path, writable=True, create=False):  # migrates before any time goes into the model
            pass
        model = current.load_model("float32")
        energy_transformer_in(model, REMEDY)
        layers = current.chosen(options.layers, current.facts.layers, "layer")
        sample = sampled(current, options)
        frames: dict[str, list[pl.DataFrame]] = {}
        settled: SettledContexts | None = None
        for weights, of_weights in (("trained", model), ("random", untrained(model, options.seed))):
            contexts, rows = _settled(of_weights, sample, weights)
            settled = settled or contexts
            for table, frame in _frames(of_weights, rows, sample, options, weights).items():
                frames.setdefault(table, []).append(frame.with_columns(weights=pl.lit(weights)))
        assert settled is not None
        edited = layers if options.features else []
        frames["native_patches"] = _patches(current, model, settled, sample, edited, options)
        _store(path, current.run_id, frames)


def sampled(current: CurrentRun, options: NativeOptions) -> Sample:
    context_ids = sorted(current.sample(options.contexts, options.seed))
    tokens, _ = padded([ids for _, ids in current.contexts(context_ids)])
    length = current.facts.context_length
    with Warehouse(current.path) as warehouse:
        found = warehouse.run(
            "attractors/tokens", run=current.run_id, layer=max(current.facts.layers), context_length=length,
            contexts=context_ids,
        ).numpy()  # fmt: skip
    ids = found["token_id"]
    row = torch.from_numpy(np.searchsorted(context_ids, ids // length))
    position = torch.from_numpy(ids % length)
    return Sample(context_ids, tokens, row, position, ids, found["category"], found["text"], found["half"])


def untrained(model: LanguageModel, seed: int) -> LanguageModel:
    """A model of the same configuration with weights drawn by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = EnergyTransformerForCausalLM(energy_transformer_in(model, REMEDY).config).float()
    return find_parts(model.name, module, model.tokenizer, "")


@dataclass(frozen=True)
class _Rows:
    """What became of the sample's tokens, [n] each."""

    start: Tensor  #: x behind the last step [n, d_model]
    settled: Still
    energy_start: Tensor
    energy: Tensor
    turn: Tensor  #: by which the last of BLOCK_STEPS turned a token, radians
    same: Tensor  #: whether it settles in the same place when these are made first
    both: Tensor  #: whether it settles both ways


def _settled(model: LanguageModel, sample: Sample, weights: str) -> tuple[SettledContexts, _Rows]:
    """Contexts where they have settled, and rows of the sample's tokens."""
    module, last = energy_transformer_in(model, REMEDY), Site(model.n_layers - 1)
    parts: list[SettledContexts] = []
    columns: list[list[Tensor]] = []
    with bar(f"Settle, {weights} weights", len(sample.tokens), "context") as progress:
        for tokens in sample.tokens.split(BATCH):
            x = harvest(model, tokens, {0: last})[0]
            contexts = settle_contexts(module, x)
            before = block_applied(module, x, BLOCK_STEPS - 1)
            after = block_applied(module, before, 1)
            again = settle_contexts(module, after)
            cosine = (functional.normalize(contexts.x, dim=-1) * functional.normalize(again.x, dim=-1)).sum(-1)
            columns.append(
                [
                    x, module.energy_and_gradient(-1, x)[0], module.energy_and_gradient(-1, contexts.x)[0],
                    2 * ((after - before).norm(dim=-1) / before.norm(dim=-1) / 2).clamp(max=1).asin(),
                    cosine > MERGED, contexts.converged & again.converged,
                ]
            )  # fmt: skip
            parts.append(contexts)
            progress.update(len(tokens))
    x, energy_start, energy, turn, same, both = (
        torch.cat(column)[sample.row, sample.position] for column in zip(*columns, strict=True)
    )
    contexts = SettledContexts(
        module, torch.cat([p.x for p in parts]), torch.cat([p.steps for p in parts]),
        torch.cat([p.converged for p in parts]),
    )  # fmt: skip
    at = sample.row, sample.position
    settled = Still(functional.normalize(contexts.x[at], dim=-1), contexts.steps[at], contexts.converged[at])
    return contexts, _Rows(x, settled, energy_start, energy, turn, same, both)


def _frames(
    model: LanguageModel,
    rows: _Rows,
    sample: Sample,
    options: NativeOptions,
    weights: str,
) -> dict[str, pl.DataFrame]:
    """Rows of settings, attractors and basins, without run and weights."""
    attractors = merge(rows.settled)
    cosine = (functional.normalize(rows.start, dim=1) * rows.settled.z).sum(1)
    both = rows.both.double().sum()
    settings = {
        "n_contexts": len(sample.context_ids), "n_tokens": len(sample.token_ids), "seed": options.seed,
        "n_attractors": len(attractors.sizes), "entropy": attractors.entropy,
        "largest_share": float(attractors.sizes[0] / attractors.sizes.sum()) if len(attractors.sizes) else None,
        "unconverged_share": float((~rows.settled.converged).double().mean()),
        "steps": float(rows.settled.steps.double().median()), "cosine": float(cosine.median()),
        "energy_start": float(rows.energy_start.double().mean()), "energy": float(rows.energy.double().mean()),
        "block_steps": BLOCK_STEPS, "block_turn": float(rows.turn.median()),
        "block_agreement": float((rows.same & rows.both).double().sum() / both) if both else None,
    }  # fmt: skip
    basins = pl.DataFrame(
        {
            "token_id": sample.token_ids, "vocabulary_id": sample.vocabulary_ids.astype(np.int32),
            "category": sample.categories, "attractor": attractors.basin.astype(np.int32),
            "steps": rows.settled.steps.int().numpy(), "cosine": cosine.numpy(),
            "energy_start": rows.energy_start.numpy(), "energy": rows.energy.numpy(),
        }
    ).with_columns(pl.when(pl.col("attractor") >= 0).then(pl.col("attractor")))  # fmt: skip
    return {
        "native_settings": pl.DataFrame([settings]),
        "native_attractors": _attractor_rows(model, attractors, sample, says=weights == "trained"),
        "native_basins": basins,
    }


def _attractor_rows(model: LanguageModel, attractors: Attractors, sample: Sample, says: bool) -> pl.DataFrame:
    """says: whether the model's unembedding says what an attractor is for; that of untrained weights means nothing."""
    n = len(attractors.sizes)
    labels = label_basins(attractors.basin, n, sample.texts, sample.halves)
    said: list[list[str]] = [[] for _ in range(n)]
    if says and n:
        logits = model.logits(model.final_norm(attractors.vectors * model.d_model**0.5))
        said = [[model.tokenizer.decode([i]) for i in row] for row in logits.topk(SAID, dim=1).indices.tolist()]
    distinct = [len(np.unique(sample.vocabulary_ids[attractors.basin == i])) for i in range(n)]
    columns: dict[str, Any] = {
        "attractor": np.arange(n, dtype=np.int32), "n_tokens": attractors.sizes.astype(np.int32),
        "n_distinct": np.array(distinct, dtype=np.int32),
        "label": pl.Series([label.text for label in labels], dtype=pl.String),
        "says": pl.Series(said, dtype=pl.List(pl.String)),
        "vector": pl.Series(attractors.vectors.tolist(), dtype=pl.List(pl.Float32)),
    }  # fmt: skip
    for name in ("lift", "p", "q"):
        columns[f"label_{name}"] = pl.Series([getattr(label, name) for label in labels], dtype=pl.Float64)
    return pl.DataFrame(columns)


def _patches(
    current: CurrentRun,
    model: LanguageModel,
    settled: SettledContexts,
    sample: Sample,
    layers: Sequence[int],
    options: NativeOptions,
) -> list[pl.DataFrame]:
    """Rows of native_patches, without run."""
    frames = []
    saes = {layer: current.sae(layer) for layer in layers}
    steps = {layer: step_of(sae, model.n_layers) for layer, sae in saes.items()}
    if none := [layer for layer, step in steps.items() if step is None]:
        say(f"The SAE of layer {', '.join(map(str, none))} reads no step's input: its features are not edited.")
    for layer, step in steps.items():
        if step is None:
            continue
        places = places_of(current, layer, sample, options)
        if not len(places.feature):
            say(f"No feature of layer {layer} is active at {options.tokens} tokens of the sample: none is edited.")
        patching = Patching(model, saes[layer], step, sample.tokens, settled, options.seed)
        with bar(f"Patches of layer {layer}", len(places.feature), "token") as progress:
            for frame in patching.frames(places):
                frames.append(frame.with_columns(layer=pl.lit(layer)))
                progress.update(frame.height // (len(KINDS) * len(DIRECTIONS)))
    return frames


def places_of(current: CurrentRun, layer: int, sample: Sample, options: NativeOptions) -> Places:
    """Features of a layer and tokens of the sample at which they are edited."""
    length = current.facts.context_length
    with Warehouse(current.path) as warehouse:
        active = warehouse.run(
            "attractors/tokens_of_features", run=current.run_id, layer=layer, contexts=sample.context_ids,
            context_length=length,
        ).numpy()  # fmt: skip
    return choose_places(
        active["feature"], active["token_id"], sample.context_ids, length, (options.features, options.tokens),
        np.random.default_rng([options.seed, layer]),
    )  # fmt: skip


def _store(path: Path, run_id: int, frames: dict[str, list[pl.DataFrame]]) -> None:
    """Replace what the warehouse holds of the run."""
    with Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
        created = warehouse.sql("SELECT now() AT TIME ZONE 'UTC'").value()
        for table, parts in frames.items():
            warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run", run=run_id)
            for frame in parts:
                if table == "native_settings":
                    frame = frame.with_columns(created_at=pl.lit(created))
                warehouse.append(table, frame.with_columns(run_id=pl.lit(run_id)))


# ------------------------------------------------------------------------------------------------ what is shown


def largest_native_attractors(warehouse: Warehouse, limit: int) -> Rows:
    """The largest attractors of the trained model; limit 0: all."""
    found = warehouse.run("attractors/native_listing", limit=min(limit or ALL_ROWS, ALL_ROWS))
    return Rows(found.columns, [Kind.of(kind) for kind in found.kinds], [found.fetchall()])


def native_sentences(warehouse: Warehouse) -> Iterator[str]:
    """A sentence for trained weights and one for random ones."""
    for row in warehouse.run("attractors/native_settings").pl().iter_rows(named=True):
        same = "undefined" if row["block_agreement"] is None else f"{row['block_agreement']:.0%}"
        yield (
            f"{row['weights'].capitalize()} weights: {row['n_attractors']:,} attractors of {row['n_tokens']:,} tokens, "
            f"entropy of basins {row['entropy']:.2f} nats; E falls from {row['energy_start']:.4g} behind the last step "
            f"to {row['energy']:.4g}, at a cosine of {row['cosine']:.2f}; {row['unconverged_share']:.1%} unconverged. "
            f"Step {row['block_steps']} beyond the last turns a token by {row['block_turn']:.2g} radians, and {same} "
            "settle in the same place when all of these are made first."
        )
