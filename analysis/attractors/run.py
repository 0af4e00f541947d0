"""`elw attractors`: a sample of the current run's tokens in, attractors, basins and their dependence on β out.

Layer by layer, one transaction each, what was there before is replaced. Labels are chosen on documents of half A and
tested on those of half B, so that a label says more than which tokens happened to fall together.
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

from energy_lens.analysis.attractors.labels import label_basins
from energy_lens.analysis.attractors.landscape import firing_rows, harvest_written, start_of
from energy_lens.analysis.attractors.network import (
    Attractors,
    Memories,
    Settled,
    calibrated_beta,
    descent,
    kinds,
    portray,
    random_rows,
    sweep,
)
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.console import bar
from energy_lens.errors import LARGEST_COUNT, require, require_at_most, require_seed
from energy_lens.ingest.contexts import padded
from energy_lens.ingest.model.language_model import LanguageModel
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

#: Decoder rows that no SAE has.
MOST_MEMORIES = 1_000_000

#: A limit that no listing reaches.
ALL_ROWS = 2**31 - 1


@dataclass(frozen=True)
class AttractorOptions:
    """What `elw attractors` can be told."""

    layers: tuple[int, ...] | None = None  #: None: all of the run
    tokens: int = 4_096
    target: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is out of range."""
        require(self.tokens >= 16, f"--tokens is {self.tokens}; at least 16 are needed.")
        require_at_most("--tokens", self.tokens, LARGEST_COUNT)
        require(
            1 < self.target < MOST_MEMORIES,
            f"--perplexity is {self.target:g}; it must be above 1 and below {MOST_MEMORIES:,}, since it counts decoder "
            "rows.",
        )
        require_seed(self.seed)


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
    with ingest_lock(path, "elw attractors"):
        with Warehouse(path, writable=True, create=False):  # migrates before any time goes into the model
            pass
        samples = _samples(current, current.load_model(), saes, options)
        with bar("Attractors", len(layers), "layer") as progress:
            for layer in layers:
                _store(path, current.run_id, layer, _frames(current, saes[layer], samples[layer], options))
                progress.update()
    return layers


def _samples(
    current: CurrentRun, model: LanguageModel, saes: dict[int, SparseAutoencoder], options: AttractorOptions
) -> dict[int, _Sample]:
    """The same number of included tokens of every layer, from the same contexts."""
    context_ids = sorted(current.sample(CONTEXTS, options.seed))
    with Warehouse(current.path) as warehouse:
        chosen = {layer: _chosen_tokens(warehouse, current, layer, context_ids, options) for layer in saes}
    token_ids = {layer: columns["token_id"] for layer, columns in chosen.items()}
    starts = _starting_points(current, model, saes, context_ids, token_ids)
    return {
        layer: _Sample(columns["token_id"], columns["text"], columns["half"], starts[layer])
        for layer, columns in chosen.items()
    }


def _chosen_tokens(
    warehouse: Warehouse, current: CurrentRun, layer: int, context_ids: Sequence[int], options: AttractorOptions
) -> dict[str, NDArray[Any]]:
    """Ids, texts and halves of a seeded sample of a layer's included tokens, in order of ids."""
    tokens = warehouse.run(
        "attractors/tokens", run=current.run_id, layer=layer, context_length=current.facts.context_length,
        contexts=context_ids,
    ).numpy()  # fmt: skip
    order = np.random.default_rng([options.seed, layer]).permutation(len(tokens["token_id"]))[: options.tokens]
    places = np.sort(order)
    return {name: values[places] for name, values in tokens.items()}


def _starting_points(
    current: CurrentRun,
    model: LanguageModel,
    saes: dict[int, SparseAutoencoder],
    context_ids: Sequence[int],
    token_ids: dict[int, NDArray[np.int64]],
) -> dict[int, Tensor]:
    """z0 [n, d_model] of each layer's tokens, which lie in these contexts; both are in order of ids."""
    length = current.facts.context_length
    contexts = current.contexts(context_ids)
    starts: dict[int, list[Tensor]] = {layer: [] for layer in saes}
    with bar("Residuals", len(context_ids), "context") as progress:
        for first in range(0, len(context_ids), BATCH_CONTEXTS):
            batch = context_ids[first : first + BATCH_CONTEXTS]
            tokens, _ = padded([vocabulary_ids for _, vocabulary_ids in contexts[first : first + BATCH_CONTEXTS]])
            residuals = harvest_written(model, saes, tokens)
            for layer, sae in saes.items():
                ids = token_ids[layer][np.isin(token_ids[layer] // length, batch)]
                row = np.searchsorted(batch, ids // length)
                starts[layer].append(start_of(sae, residuals[layer].float()[row, ids % length]))
            progress.update(len(batch))
    return {layer: torch.cat(parts) for layer, parts in starts.items()}


# ------------------------------------------------------------------------------------------------ one layer


def _frames(
    current: CurrentRun, sae: SparseAutoencoder, sample: _Sample, options: AttractorOptions
) -> dict[str, pl.DataFrame]:
    """Rows of every table, without run and layer."""
    with Warehouse(current.path) as warehouse:
        rows, firing = firing_rows(warehouse, current.run_id, sae)
    part = sample.start[:: max(1, len(sample.start) // CALIBRATION_TOKENS)][:CALIBRATION_TOKENS]
    decoder = Memories.of(rows)
    settings, sweeps, frames = [], [], {}
    for dictionary in ("decoder", "random"):
        memories = decoder if dictionary == "decoder" else Memories.of(random_rows(decoder.rows, options.seed))
        calibration = calibrated_beta(memories, part, options.target)
        calibrated = memories.at(calibration.beta)
        portrait, settled, attractors = portray(calibrated, sample.start)
        settings.append(
            {
                "dictionary": dictionary, "target_perplexity": options.target, "is_reached": calibration.reached,
                "note": calibration.note, "n_memories": len(memories.rows), "n_tokens": len(sample.start),
                "seed": options.seed, **portrait._asdict(),
            }
        )  # fmt: skip
        betas = [calibration.beta * factor for factor in SWEPT]
        sweeps += [{"dictionary": dictionary, **one._asdict()} for one in sweep(memories, part, betas)]
        if dictionary == "decoder":
            frames["attractors"] = _attractor_rows(calibrated, attractors, firing, sample)
            frames["basins"] = _basin_rows(calibrated, settled, attractors, sample)
            frames["attractor_descents"] = _descent_rows(calibrated, part)
    frames["attractor_settings"] = pl.DataFrame(
        settings, schema_overrides={"note": pl.String}, infer_schema_length=None
    )
    frames["attractor_sweeps"] = pl.DataFrame(sweeps, infer_schema_length=None)
    return {name: frame.with_columns(pl.col(pl.Float64).fill_nan(None)) for name, frame in frames.items()}


def _store(path: Path, run_id: int, layer: int, frames: dict[str, pl.DataFrame]) -> None:
    """Replace what the warehouse holds of a layer's attractors."""
    with Warehouse(path, writable=True, create=False) as warehouse, warehouse.transaction():
        created = warehouse.sql("SELECT now() AT TIME ZONE 'UTC'").value()
        for table, frame in frames.items():
            warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run AND layer = $layer", run=run_id, layer=layer)
            if table == "attractor_settings":
                frame = frame.with_columns(created_at=pl.lit(created))
            warehouse.append(table, frame.with_columns(run_id=pl.lit(run_id), layer=pl.lit(layer)))


def _attractor_rows(
    memories: Memories, attractors: Attractors, features: NDArray[np.int32], sample: _Sample
) -> pl.DataFrame:
    """Rows of attractors, the largest first; features: of each memory."""
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
                f"label{suffix}": pl.Series([getattr(label, name) for label in labels], dtype=kind)
                for suffix, name, kind in (
                    ("", "text", pl.String), ("_lift", "lift", pl.Float64), ("_p", "p", pl.Float64),
                    ("_q", "q", pl.Float64),
                )
            },
        }
    )  # fmt: skip


def _basin_rows(memories: Memories, settled: Settled, attractors: Attractors, sample: _Sample) -> pl.DataFrame:
    """Rows of basins, one a token of the sample."""
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


def _descent_rows(memories: Memories, start: Tensor) -> pl.DataFrame:
    """Rows of attractor_descents: quartiles of E_H along the way of points [n, d_model]."""
    energies = descent(memories, start, DESCENT_STEPS).double().numpy()
    q25, median, q75 = np.percentile(energies, [25, 50, 75], axis=1)
    steps = np.arange(len(energies), dtype=np.int32)
    return pl.DataFrame({"step": steps, "q25": q25, "median": median, "q75": q75})


# ------------------------------------------------------------------------------------------------ what is shown


def largest_attractors(warehouse: Warehouse, layers: Sequence[int], limit: int) -> Rows:
    """The largest attractors of each layer."""
    largest = warehouse.run("attractors/listing", layers=list(layers), limit=min(limit or ALL_ROWS, ALL_ROWS))
    return Rows(largest.columns, [Kind.of(kind) for kind in largest.kinds], [largest.fetchall()])


def attractor_sentences(warehouse: Warehouse, layers: Sequence[int]) -> Iterator[str]:
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
