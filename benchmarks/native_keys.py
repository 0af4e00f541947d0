"""Attractors with the keys of the pass: a warehouse of an energy transformer in, tables of docs/native-energy.md out.

    python benchmarks/native_keys.py WORK/trained.duckdb [--contexts 16] [--features 16] [--tokens 4] [--seed 0]

`elw attractors native` lets all tokens of a context move until they stay, and their keys with them. A step holds the
keys of earlier tokens fixed. So here each token falls alone, on the landscape that the last step of the pass descended:
keys are those that the pass left. The same for untrained weights, and the same edits of single tokens as there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch
from native_study import EFAS, moves_table, predictions_table, read
from numpy.typing import NDArray
from tables import markdown
from torch.nn import functional

from energy_lens import Warehouse
from energy_lens.analysis.attractors.network import merge
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.native.patching import Patching, step_of
from energy_lens.analysis.native.run import NativeOptions, Sample, places_of, sampled, untrained
from energy_lens.analysis.native.settling import REMEDY, SettledContexts, block_applied
from energy_lens.ingest.model.energy_transformer import energy_transformer_in
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import Site, harvest

#: Attractors of which it is shown what they say.
SHOWN = 6

#: Further steps after which it is shown how far one turns a token.
FURTHER = (2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("warehouse", type=Path)
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    current = CurrentRun(given.warehouse)
    options = NativeOptions(contexts=given.contexts, features=given.features, tokens=given.tokens, seed=given.seed)
    sample = sampled(current, options)
    model = current.load_model("float32")
    rows = [
        ["weights", "tokens", "attractors", "entropy", "largest", "unsettled", "cosine", "shared with", "Rand index"]
    ]
    for weights, of_weights in (("trained", model), ("untrained", untrained(model, given.seed))):
        print(f"{weights}: {further_steps(of_weights, sample)}")
        rows += settled_rows(weights, of_weights, sample)
    print(f"## With the keys of the pass\n\n{markdown(rows)}\n")
    patches = edits(current, model, sample, options)
    scores = read(given.warehouse, EFAS)
    for title, table in (moves_table(patches), predictions_table(scores, patches)):
        print(f"## {title}\n\n{markdown(table)}\n")


def as_left(model: LanguageModel, tokens: torch.Tensor) -> SettledContexts:
    """Contexts as the pass leaves them, for their keys."""
    x = harvest(model, tokens, {0: Site(model.n_layers - 1)})[0]
    none = torch.zeros(x.shape[:2], dtype=torch.int64)
    return SettledContexts(energy_transformer_in(model, REMEDY), x, none, none == 0)


@torch.no_grad()
def further_steps(model: LanguageModel, sample: Sample) -> str:
    """The model's last step made again and again, keys moving too: by which median angle one turns a token."""
    contexts = as_left(model, sample.tokens)
    x, said, directions = contexts.x, [], []
    for number in range(1, FURTHER[-1] + 1):
        x = block_applied(contexts.model, x, 1)
        directions = [*directions, functional.normalize(x[sample.row, sample.position], dim=1)][-3:]
        if number in FURTHER:
            turn = 2 * ((directions[-1] - directions[-2]).norm(dim=1) / 2).clamp(max=1).asin()
            said.append(f"step {number} {turn.median():.3f}")
    to_and_fro = (directions[0] * directions[2]).sum(1).median()
    return f"{', '.join(said)} radians; cosine of x and two steps on {to_and_fro:.4f}"


@torch.no_grad()
def settled_rows(weights: str, model: LanguageModel, sample: Sample) -> list[list[str]]:
    """Where tokens settle alone, and what those of one basin share."""
    contexts = as_left(model, sample.tokens)
    x = contexts.x[sample.row, sample.position]
    still = contexts.landscapes(sample.row, sample.position).settle(x)
    found = merge(still)
    cosine = (functional.normalize(x, dim=1) * still.z).sum(1).median()
    start = [
        weights, f"{len(x):,}", f"{len(found.sizes):,}", f"{found.entropy:.2f}",
        f"{found.sizes[0] / found.sizes.sum():.0%}", f"{(~still.converged).double().mean():.1%}", f"{cosine:.2f}",
    ]  # fmt: skip
    if weights == "trained":
        logits = model.logits(model.final_norm(found.vectors[:SHOWN] * model.d_model**0.5))
        for size, row in zip(found.sizes, logits.topk(5, dim=1).indices.tolist(), strict=False):
            print(size, [model.tokenizer.decode([i]) for i in row])
    has = found.basin >= 0
    partitions = {"context": sample.row.numpy(), "category": sample.categories, "token": sample.vocabulary_ids}
    return [
        [*(start if name == "context" else [""] * len(start)), name, f"{adjusted_rand(found.basin[has], of[has]):.3f}"]
        for name, of in partitions.items()
    ]


def adjusted_rand(a: NDArray[np.int64], b: NDArray[np.generic]) -> float:
    """As in the view native_agreement."""
    frame = pl.DataFrame({"a": a, "b": pl.Series(b.tolist())})

    def pairs(*names: str) -> float:
        n = frame.group_by(names).len()["len"].cast(pl.Float64)
        return float((n * (n - 1) / 2).sum())

    both, of_a, of_b, every = pairs("a", "b"), pairs("a"), pairs("b"), len(frame) * (len(frame) - 1) / 2
    chance = of_a * of_b / every
    return (both - chance) / ((of_a + of_b) / 2 - chance)


def edits(current: CurrentRun, model: LanguageModel, sample: Sample, options: NativeOptions) -> pl.DataFrame:
    """Edits of single tokens, as native_study.PATCHES has them."""
    contexts, frames = as_left(model, sample.tokens), []
    for layer in current.facts.layers:
        sae = current.sae(layer)
        step = step_of(sae, model.n_layers)
        assert step is not None
        places = places_of(current, layer, sample, options)
        patching = Patching(model, sae, step, sample.tokens, contexts, options.seed)
        frames += [frame.with_columns(layer=pl.lit(layer)) for frame in patching.frames(places)]
    rows = pl.concat(frames)
    with Warehouse(current.path) as warehouse:
        documents = warehouse.sql(
            "SELECT token_id, document_id FROM token_places WHERE run_id = $run", run=current.run_id
        )
        return rows.join(documents.pl(), on="token_id")


if __name__ == "__main__":
    main()
