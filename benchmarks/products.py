"""The matrix products of a model and its SAEs alone: what of a token's time the machine cannot spare.

    python benchmarks/products.py [--dtype float32 bfloat16]

Each product of the model's own shapes is timed by itself, on a batch of tokens, and its time counted as often as a
token needs it: forward through every block, backward through those above the lowest layer, over the vocabulary there
and back, through the SAEs' encoders. Nothing else is counted, so no program is faster.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from tables import markdown
from torch import nn

from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, DTYPES, load_model
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.ingest.sae.formats import load_sae

#: Rows and columns of a weight.
Shape = tuple[int, int]

BATCH_TOKENS, ROUNDS = 1_024, 5


@dataclass(frozen=True)
class Products:
    """Of one token in one precision."""

    flop: dict[str, float]  #: by part
    seconds: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        """What the machine can do at most."""
        return 1 / sum(self.seconds.values())


def products(model: LanguageModel, saes: Mapping[int, SparseAutoencoder]) -> Products:
    """Time the products of a model in its own precision. The SAEs are taken to be as the model is."""
    lowest = min(saes)
    forward = Counter(_shapes(model.blocks))
    backward = Counter(_shapes(list(model.blocks)[lowest + 1 :]))
    vocabulary = Counter([tuple(model.unembedding.weight.shape)])
    encoders = Counter([(sae.d_sae, sae.d_model) for sae in saes.values()])
    ahead, back = {}, {}
    for shape in {*forward, *backward, *vocabulary, *encoders}:
        ahead[shape], back[shape] = _seconds(shape, model.dtype)

    def of(shapes: Counter[Shape], seconds: Mapping[Shape, float]) -> tuple[float, float]:
        return sum(2.0 * a * b * n for (a, b), n in shapes.items()), sum(seconds[s] * n for s, n in shapes.items())

    parts = {
        "forward": of(forward, ahead), "backward": of(backward, back), "SAEs": of(encoders, ahead),
        "vocabulary": tuple(x + y for x, y in zip(of(vocabulary, ahead), of(vocabulary, back), strict=True)),
    }  # fmt: skip
    return Products({k: v[0] for k, v in parts.items()}, {k: v[1] for k, v in parts.items()})


def _shapes(blocks: Iterable[nn.Module]) -> list[Shape]:
    """Of every weight matrix [out, in], whatever the architecture calls it; GPT-2's are the other way round."""
    weights = [parameter for block in blocks for parameter in block.parameters() if parameter.dim() == 2]
    return [(weight.shape[0], weight.shape[1]) for weight in weights]


def _seconds(shape: Shape, dtype: torch.dtype) -> tuple[float, float]:
    """Of a token: there (x·Wᵀ) and back (y·W)."""
    weight = torch.randn(shape, dtype=dtype)
    found = []
    with torch.no_grad():
        for inputs, product in (
            (torch.randn(BATCH_TOKENS, shape[1], dtype=dtype), lambda x: torch.nn.functional.linear(x, weight)),
            (torch.randn(BATCH_TOKENS, shape[0], dtype=dtype), lambda y: y @ weight),
        ):
            product(inputs)
            fastest = min(_timed(product, inputs) for _ in range(ROUNDS))
            found.append(fastest / BATCH_TOKENS)
    return found[0], found[1]


def _timed(product, inputs) -> float:
    started = time.perf_counter()
    product(inputs)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    arguments = parser.parse_args()
    saes = {layer: load_sae(shipped_folder(DEFAULT_MODEL, layer)) for layer in DEFAULT_LAYERS}
    rows = [["", "MFLOP a token", *(f"{name}, us a token" for name in arguments.dtype)]]
    of = {name: products(load_model(DEFAULT_MODEL, DTYPES[name]), saes) for name in arguments.dtype}
    first = next(iter(of.values()))
    for part, flop in first.flop.items():
        rows.append([part, f"{flop / 1e6:.0f}", *(f"{found.seconds[part] * 1e6:.0f}" for found in of.values())])
    total = sum(first.flop.values())
    rows.append(["all", f"{total / 1e6:.0f}", *(f"{1e6 / found.tokens_per_second:.0f}" for found in of.values())])
    rows.append(["GFLOP/s", "", *(f"{total * found.tokens_per_second / 1e9:.0f}" for found in of.values())])
    rows.append(["tokens/s at most", "", *(f"{found.tokens_per_second:.0f}" for found in of.values())])
    print(markdown(rows))


if __name__ == "__main__":
    main()
