"""`elw attractors`: a sample of the current run's tokens in, attractors, basins and their dependence on β out.

Layer by layer, one transaction each, what was there before is replaced. Labels are chosen on documents of half A and
tested on those of half B, so that a label says more than which tokens happened to fall together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from energy_lens.analysis.attractors.labels import label_basins
from energy_lens.analysis.attractors.landscape import firing_rows, start_of
from energy_lens.analysis.attractors.network import (
    Attractors,
    Memories,
    Settled,
    calibrate,
    descent,
    kinds,
    portray,
    random_rows,
    sweep,
)
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import padded
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import harvest_residuals
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.output import Kind, Rows

#: Tokens of the sample that calibrate β and are swept.
CALIBRATION_TOKENS = 512

#: β of the sweep, relative to the calibrated one.
SWEPT = tuple(2.0 ** (i / 2) for i in range(-6, 7))

#: Contexts that the sample's tokens come from, at most, and contexts in a forward pass.
CONTEXTS, BATCH_CONTEXTS = 256, 8

#: Features that are kept of an attractor.
TOP_FEATURES = 5


#: Steps along which energies are kept.
DESCENT_STEPS = 32


@dataclass(frozen=True)
class AttractorOptions:
    """What `elw attractors` can be told."""

    layers: tuple[int, ...] | None = None  #: None: all of the run
    tokens: int = 4_096
    target: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 16:
            raise UsageError(f"--tokens is {self.tokens}; at least 16 are needed.")
        if not 1 < self.target < 1e6:
            raise UsageError(f"--perplexity is {self.target:g}; it must be above 1.")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; it must not be negative.")


@dataclass(frozen=True)
class _Sample:
    """Tokens of a layer."""

    token_ids: NDArray[np.int64]
    texts: NDArray[np.object_]
    halves: NDArray[np.object_]
    start: Tensor  #: z0 [n, d]


def find_attractors(path: Path, options: AttractorOptions) -> list[int]:
    """Find and store the attractors of the current run's layers; returns the layers.

    Raises UsageError when there is no run or no such layer, or when the model or an SAE is another now.
    """
    current = CurrentRun(path)
    layers = current.chosen(options.layers, current.facts.layers, "layer")
    saes = {layer: current.sae(layer) for layer in layers}
    with ingest_lock(path):
        with Warehouse(path, writable=True):  # brings the schema up to date before any time goes into the model
            pass
        samples = _samples(current, current.load_model(), saes, options)
        every = 0.5 if sys.stderr.isatty() else 30
        for layer in tqdm(layers, unit="layer", mininterval=every, desc="Attractors"):
            _store(path, current.run_id, layer, _frames(current, saes[layer], samples[layer], options))
    return layers


def _samples(
    current: CurrentRun, model: LanguageModel, saes: dict[int, SparseAutoencoder], options: AttractorOptions
) -> dict[int, _Sample]:
    """The same number of included tokens of every layer, from the same contexts."""
    ids = sorted(current.sample(CONTEXTS, options.seed))
    length = current.facts.context_length
    known: dict[int, dict[str, NDArray[Any]]] = {}
    chosen: dict[int, NDArray[np.int64]] = {}
    with Warehouse(current.path) as warehouse:
        for layer in saes:
            place = {"run": current.run_id, "layer": layer, "context_length": length, "contexts": ids}
            known[layer] = warehouse.run("attractors/tokens", **place).numpy()
            n = len(known[layer]["token_id"])
            order = np.random.default_rng([options.seed, layer]).permutation(n)[: options.tokens]
            chosen[layer] = np.sort(order)
    starts: dict[int, list[Tensor]] = {layer: [] for layer in saes}
    contexts = current.contexts(ids)
    every = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(ids), unit="context", mininterval=every, desc="Residuals") as bar:
        for first in range(0, len(ids), BATCH_CONTEXTS):
            batch = ids[first : first + BATCH_CONTEXTS]
            tokens, _ = padded([own for _, own in contexts[first : first + BATCH_CONTEXTS]])
            residuals = harvest_residuals(model, tokens, list(saes))
            for layer, sae in saes.items():
                wanted = known[layer]["token_id"][chosen[layer]]
                own = wanted[np.isin(wanted // length, batch)]
                row = np.searchsorted(batch, own // length)
                starts[layer].append(start_of(sae, residuals[layer].float()[row, own % length]))
            bar.update(len(batch))
    return {
        layer: _Sample(
            known[layer]["token_id"][chosen[layer]], known[layer]["text"][chosen[layer]],
            known[layer]["half"][chosen[layer]], torch.cat(starts[layer]),
        )
        for layer in saes
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ one layer


def _frames(
    current: CurrentRun, sae: SparseAutoencoder, sample: _Sample, options: AttractorOptions
) -> dict[str, pl.DataFrame]:
    """Rows of every table, without run and layer."""
    with Warehouse(current.path) as warehouse:
        rows, firing = firing_rows(warehouse, current.run_id, sae)
    part = sample.start[:: max(1, len(sample.start) // CALIBRATION_TOKENS)][:CALIBRATION_TOKENS]
    own = Memories.of(rows)
    settings, sweeps, frames = [], [], {}
    for dictionary in ("decoder", "random"):
        memories = own if dictionary == "decoder" else Memories.of(random_rows(own.rows, options.seed))
        found = calibrate(memories, part, options.target)
        portrait, settled, attractors = portray(memories.at(found.beta), sample.start)
        settings.append(
            {
                "dictionary": dictionary, "target_perplexity": options.target, "is_reached": found.reached,
                "note": found.note, "n_memories": len(memories.rows), "n_tokens": len(sample.start),
                "seed": options.seed, **portrait._asdict(),
            }
        )  # fmt: skip
        sweeps += [
            {"dictionary": dictionary, **one._asdict()}
            for one in sweep(memories, part, [found.beta * factor for factor in SWEPT])
        ]
        if dictionary == "decoder":
            memories = memories.at(found.beta)
            frames["attractors"] = _attractor_rows(memories, attractors, firing, sample)
            frames["basins"] = _basin_rows(memories, settled, attractors, sample)
            energies = descent(memories, part, DESCENT_STEPS).double().numpy()
            q25, median, q75 = np.percentile(energies, [25, 50, 75], axis=1)
            steps = np.arange(len(energies), dtype=np.int32)
            frames["attractor_descents"] = pl.DataFrame({"step": steps, "q25": q25, "median": median, "q75": q75})
    frames["attractor_settings"] = pl.DataFrame(
        settings, schema_overrides={"note": pl.String}, infer_schema_length=None
    )
    frames["attractor_sweeps"] = pl.DataFrame(sweeps, infer_schema_length=None)
    return {name: frame.with_columns(pl.col(pl.Float64).fill_nan(None)) for name, frame in frames.items()}


def _store(path: Path, run_id: int, layer: int, frames: dict[str, pl.DataFrame]) -> None:
    """Replace what the warehouse holds of a layer's attractors."""
    with Warehouse(path, writable=True) as warehouse, warehouse.transaction():
        created = warehouse.sql("SELECT now() AT TIME ZONE 'UTC'").value()
        for table, frame in frames.items():
            warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run AND layer = $layer", run=run_id, layer=layer)
            if table == "attractor_settings":
                frame = frame.with_columns(created_at=pl.lit(created))
            warehouse.append(table, frame.with_columns(run_id=pl.lit(run_id), layer=pl.lit(layer)))


def _attractor_rows(
    memories: Memories, attractors: Attractors, features: NDArray[np.int32], sample: _Sample
) -> pl.DataFrame:
    weights, places = memories.weights(attractors.vectors).topk(min(TOP_FEATURES, len(memories.rows)), dim=1)
    labels = label_basins(attractors.basin, len(attractors.sizes), sample.texts, sample.halves)
    n = len(attractors.sizes)
    return pl.DataFrame(
        {
            "attractor": np.arange(n, dtype=np.int32),
            "type": kinds(memories, attractors),
            "n_tokens": attractors.sizes.astype(np.int32),
            "perplexity": memories.perplexity(attractors.vectors).double().numpy(),
            "energy": memories.energy(attractors.vectors).double().numpy(),
            "features": pl.Series(features[places.numpy()].tolist(), dtype=pl.List(pl.Int32)),
            "weights": pl.Series(weights.tolist(), dtype=pl.List(pl.Float32)),
            "vector": pl.Series(attractors.vectors.tolist(), dtype=pl.List(pl.Float32)),
            **{
                f"label{suffix}": pl.Series([getattr(own, name) for own in labels], dtype=kind)
                for suffix, name, kind in (
                    ("", "text", pl.String), ("_lift", "lift", pl.Float64), ("_p", "p", pl.Float64),
                    ("_q", "q", pl.Float64),
                )
            },
        }
    )  # fmt: skip


def _basin_rows(memories: Memories, settled: Settled, attractors: Attractors, sample: _Sample) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "token_id": sample.token_ids,
            "attractor": attractors.basin.astype(np.int32),
            "steps": settled.steps.numpy().astype(np.int32),
            "cosine": (sample.start * settled.z).sum(1).numpy(),
            "perplexity_start": memories.perplexity(sample.start).numpy(),
            "perplexity": settled.perplexity.numpy(),
            "energy_start": memories.energy(sample.start).numpy(),
            "energy": memories.energy(settled.z).numpy(),
        }
    ).with_columns(pl.when(pl.col("attractor") >= 0).then(pl.col("attractor")))


# ------------------------------------------------------------------------------------------------ labels


# ------------------------------------------------------------------------------------------------ what is shown


def listing(warehouse: Warehouse, layers: Sequence[int], limit: int) -> Rows:
    """The largest attractors of each layer."""
    found = warehouse.run("attractors/listing", layers=list(layers), limit=limit or 2**31 - 1)
    return Rows(found.columns, [Kind.of(kind) for kind in found.kinds], [found.fetchall()])


def summaries(warehouse: Warehouse, layers: Sequence[int]) -> Iterator[str]:
    """A sentence for each layer and dictionary."""
    for row in warehouse.run("attractors/settings", layers=list(layers)).pl().iter_rows(named=True):
        what = "" if row["dictionary"] == "decoder" else ", random dictionary"
        agreement = "undefined" if row["argmax_agreement"] is None else f"{row['argmax_agreement']:.0%}"
        yield (
            f"Layer {row['layer']}{what}: {row['n_attractors']:,} attractors of {row['n_tokens']:,} tokens at "
            f"β = {row['beta']:.3g} (median perplexity {row['perplexity_start']:.0f} at the start, "
            f"{row['perplexity']:.1f} at the end); entropy of basins {row['entropy']:.2f} nats, agreement with the "
            f"nearest row {agreement}, {row['unconverged_share']:.1%} unconverged."
            + (f" {row['note']}" if row["note"] else "")
        )
