"""Whose structure are the attractors: a folder of text in, basins of several kinds of memories beside each other out.

    python benchmarks/attractor_memories.py [TEXTS] [--layers 15] [--tokens 4096] [--seed 0] [--json FILE]

`elw attractors` lets residuals fall to the fixed points of a Hopfield network whose memories are decoder rows. Here the
same tokens fall to those of other memories: as many, of unit length, each kind at its own β by the same rule (a median
perplexity of TARGET at the fixed points, on the same CALIBRATION_TOKENS tokens).

  decoder rows              of the features that fire in the text
  isotropic                 Gaussian directions
  residual covariance       Gaussian with mean and covariance of z0 = (x − b)/‖x − b‖ of other documents' tokens
  decoder covariance        Gaussian with mean and covariance of the decoder rows
  other tokens' residuals   z0 of tokens of other documents

Documents are halved by content in each category: the tokens that fall are of one half, "other documents" is the other.
Attractors are counted on samples of several sizes, since a larger sample finds more. Sizes below --tokens are means
over disjoint parts of the sample. Tables are Markdown; TEXTS is by default corpus/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from significance import markdown
from torch import Tensor

from energy_lens.analysis.attractors.landscape import start_of
from energy_lens.analysis.attractors.network import Memories, Settled, calibrated_beta, merge, random_rows
from energy_lens.analysis.attractors.run import CALIBRATION_TOKENS
from energy_lens.ingest.contexts import side_by_side, special_tokens
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.inclusion import included_everywhere
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DEFAULT_MODEL, load_model
from energy_lens.ingest.model.residuals import harvest_residuals
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.ingest.training.documents import cut_contexts
from energy_lens.warehouse.plan import assign_halves

CORPUS = Path(__file__).parent.parent / "corpus"
CONTEXT, BATCH = 128, 8

#: Median perplexity at the fixed points by which β is chosen, as `elw attractors` does unless told otherwise.
TARGET = 16.0

#: The smallest sample; each next one is twice as large.
SMALLEST = 512


class Basins(NamedTuple):
    """What a sample of so many tokens falls to; means where several samples were taken."""

    tokens: int
    attractors: float
    shared: float  #: attractors of at least two of the tokens
    entropy: float  #: of basin sizes, nats
    largest: float  #: share of the largest basin


class Outcome(NamedTuple):
    """One kind of memories at one layer."""

    memories: str
    n_memories: int
    beta: float
    reached: bool  #: whether β meets the target
    perplexity_start: float  #: median at z0
    unconverged: float  #: share of the tokens
    basins: list[Basins]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="?", type=Path, default=CORPUS, help="a folder of categories")
    parser.add_argument("--layers", default="15", help="N,N,...")
    parser.add_argument("--tokens", type=int, default=4_096, help="that fall, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    layers = [int(layer) for layer in arguments.layers.split(",")]
    saes = choose_saes(DEFAULT_MODEL, layers)
    halves = halved(discover([arguments.texts]))
    model = load_model(DEFAULT_MODEL)
    residuals = {half: included_residuals(model, documents, saes) for half, documents in halves.items()}
    results: dict[int, list[Outcome]] = {}
    for layer in layers:
        results[layer] = outcomes(
            saes[layer], residuals["A"][layer], residuals["B"][layer], arguments.tokens, arguments.seed
        )
        print(f"Layer {layer}, {results[layer][0].n_memories:,} memories of each kind:\n")
        print(markdown(table(results[layer])), flush=True)
        print()
    if arguments.json:
        figures = {
            layer: [outcome._asdict() | {"basins": [b._asdict() for b in outcome.basins]} for outcome in of_layer]
            for layer, of_layer in results.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def halved(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """The documents of each half, A and B, decided by content in each category as in an ingest."""
    halves = assign_halves([(document.category, document.sha256) for document in documents])
    return {half: [document for document in documents if halves[document.sha256] == half] for half in "AB"}


def included_residuals(
    model: LanguageModel, documents: Sequence[Document], saes: Mapping[int, SparseAutoencoder]
) -> dict[int, Tensor]:
    """x [n, d_model] by layer: the included tokens of the documents."""
    kept: dict[int, list[Tensor]] = {layer: [] for layer in saes}
    special = special_tokens(model)
    for tokens, lengths in side_by_side(cut_contexts(model, documents, CONTEXT), BATCH * CONTEXT):
        for layer, x in harvest_residuals(model, tokens, list(saes)).items():
            median = saes[layer].norm_median
            assert median is not None, "the shipped SAEs have one"
            mask = included_everywhere({layer: x}, {layer: median}, lengths, tokens, special)
            kept[layer].append(x.float()[mask])
    return {layer: torch.cat(parts) for layer, parts in kept.items()}


def outcomes(sae: SparseAutoencoder, falling: Tensor, other: Tensor, n_tokens: int, seed: int) -> list[Outcome]:
    """Every kind of memories, for residuals x [n, d_model] of the tokens that fall and of other documents' tokens."""
    firing = torch.zeros(sae.d_sae, dtype=torch.bool)
    for x in (falling, other):
        activations = sae.encode(x)
        firing[activations.indices[activations.values > 0]] = True
    rows = torch.nn.functional.normalize(sae.W_dec[firing], dim=1)
    generator = np.random.default_rng([seed, sae.layer])
    start = start_of(sae, falling[torch.from_numpy(generator.permutation(len(falling))[:n_tokens])])
    elsewhere = start_of(sae, other)
    chosen = torch.from_numpy(generator.permutation(len(elsewhere))[: len(rows)])
    kinds = {
        "decoder rows": rows,
        "isotropic": random_rows(rows, seed),
        "residual covariance": gaussian_like(elsewhere, len(rows), generator),
        "decoder covariance": gaussian_like(rows, len(rows), generator),
        "other tokens' residuals": elsewhere[chosen],
    }
    return [outcome(name, Memories.of(memories), start) for name, memories in kinds.items()]


def gaussian_like(sample: Tensor, n: int, generator: np.random.Generator) -> Tensor:
    """[n, d] Gaussian vectors with the mean and the covariance of a sample [m, d]."""
    mean = sample.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(sample.double().T))
    noise = torch.from_numpy(generator.standard_normal((n, sample.shape[1])))
    return (mean + noise * values.clamp_min(0).sqrt() @ vectors.T).to(sample.dtype)


def outcome(name: str, memories: Memories, start: Tensor) -> Outcome:
    """Calibrate β on the first tokens of start [n, d], let all fall, and count on samples of each size."""
    calibration = calibrated_beta(memories, start[:CALIBRATION_TOKENS], TARGET)
    calibrated = memories.at(calibration.beta)
    settled = calibrated.settle(start)
    sizes = [SMALLEST]
    while sizes[-1] * 2 <= len(start):
        sizes.append(sizes[-1] * 2)
    return Outcome(
        name, len(memories.rows), calibration.beta, calibration.reached, float(calibrated.perplexity(start).median()),
        float((~settled.converged).double().mean()), [basins(settled, size) for size in sizes if size <= len(start)],
    )  # fmt: skip


def basins(settled: Settled, size: int) -> Basins:
    """Means over the disjoint samples of `size` points that settled points make, in their order."""
    found = []
    for first in range(0, len(settled.z) - size + 1, size):
        attractors = merge(Settled(*(column[first : first + size] for column in settled)))
        shared = float((attractors.sizes > 1).sum())
        largest = float(attractors.sizes[0] / attractors.sizes.sum()) if len(attractors.sizes) else np.nan
        found.append((len(attractors.sizes), shared, attractors.entropy, largest))
    return Basins(size, *(float(mean) for mean in np.mean(found, axis=0)))


def table(results: Sequence[Outcome]) -> list[list[str]]:
    """Rows of one layer's table, its head first; entropy and largest share are of the largest sample."""
    sizes = [sample.tokens for sample in results[0].basins]
    rows = [
        ["memories", "β", *(f"{size:,} tokens" for size in sizes), "of two tokens or more", "entropy (nats)", "largest"]
    ]
    for result in results:
        last = result.basins[-1]
        beta = f"{result.beta:.3g}" + ("" if result.reached else " (target not met)")
        counts = [f"{sample.attractors:,.0f}" for sample in result.basins]
        rows.append(
            [result.memories, beta, *counts, f"{last.shared:,.0f}", f"{last.entropy:.2f}", f"{last.largest:.0%}"]
        )
    return rows


if __name__ == "__main__":
    main()
