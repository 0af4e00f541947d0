"""The matrix products of a model and its SAEs alone: what of a token's time the machine cannot spare.

    python benchmarks/products.py [--dtype float32 bfloat16] [--seconds 30]

Each product of the model's own shapes is timed by itself, on a batch of tokens, and its time counted as often as a
token needs it: forward through every block, backward through those above the lowest layer, over the vocabulary there
and back, through the SAEs' encoders. Nothing else is counted, so no program is faster. The vocabulary is taken whole or
in tiles, whichever is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from tables import markdown
from torch import Tensor, nn

from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, DTYPES, load_model
from energy_lens.ingest.model.unembedding import TILE_ROWS
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.ingest.sae.formats import load_sae

#: Rows and columns of a weight.
Shape = tuple[int, int]

BATCH_TOKENS = 1_024

FORWARD, BACKWARD, VOCABULARY, ENCODERS = "forward", "backward", "vocabulary", "SAEs"


@dataclass
class Products:
    """Of a model in its own precision, the SAEs taken to be as the model is."""

    model: LanguageModel
    saes: Sequence[SparseAutoencoder]
    there: dict[Shape, float] = field(default_factory=dict)  #: seconds a token of x·Wᵀ
    back: dict[Shape, float] = field(default_factory=dict)  #: of y·W

    @property
    def shapes(self) -> list[Shape]:
        return list({*_shapes(self.model.blocks), self.vocabulary, *((sae.d_sae, sae.d_model) for sae in self.saes)})

    @property
    def vocabulary(self) -> Shape:
        return self.model.vocabulary_size, self.model.d_model

    def measure(self, seconds: float) -> None:
        """Time every product again and again for so long, at least twice after a first time, and take the medians."""
        found: dict[tuple[bool, Shape], list[float]] = {}
        begun, rounds = time.perf_counter(), 0
        while rounds < 3 or time.perf_counter() - begun < seconds:
            for shape in self.shapes:
                for is_back in (False, True):
                    found.setdefault((is_back, shape), []).append(_seconds(shape, self.model.dtype, is_back))
            rounds += 1
        for (is_back, shape), times in found.items():
            (self.back if is_back else self.there)[shape] = statistics.median(times[1:]) / BATCH_TOKENS

    def of_token(self) -> dict[str, tuple[float, float]]:
        """FLOP and seconds of a token of an ingest, by part."""
        lowest = min(sae.layer for sae in self.saes)
        backward = _shapes(list(self.model.blocks)[lowest + 1 :])
        encoders = [(sae.d_sae, sae.d_model) for sae in self.saes]
        (flop, there), (_, back) = self._sum([self.vocabulary], self.there), self._sum([self.vocabulary], self.back)
        return {
            FORWARD: self._sum(_shapes(self.model.blocks), self.there), BACKWARD: self._sum(backward, self.back),
            VOCABULARY: (2 * flop, there + back), ENCODERS: self._sum(encoders, self.there),
        }  # fmt: skip

    @property
    def tokens_per_second(self) -> float:
        """What the machine can do at most."""
        return 1 / sum(seconds for _, seconds in self.of_token().values())

    def of_patches(self, layer: int, n_tokens: int, n_looked_at: int) -> float:
        """Seconds of patches above a layer, of so many tokens in all, whose losses are read at n_looked_at of them."""
        _, above = self._sum(_shapes(list(self.model.blocks)[layer + 1 :]), self.there)
        return above * n_tokens + self.there[self.vocabulary] * n_looked_at

    def of_predictions(self, layer: int, n_probes: int, n_other_points: int) -> float:
        """Seconds a token of the contexts that run unpatched, for the predictions and controls of their patches.

        A pass with its gradient, and another one below for the covariance of residuals; probes of two kinds, the first
        with a product of the vocabulary for each, and points elsewhere, each a pass above the layer with its gradient.
        """
        blocks = list(self.model.blocks)
        _, whole = self._sum(_shapes(blocks), self.there)
        _, below = self._sum(_shapes(blocks[: layer + 1]), self.there)
        _, above = self._sum(_shapes(blocks[layer + 1 :]), self.there)
        _, down = self._sum(_shapes(blocks[layer + 1 :]), self.back)
        there, back = self.there[self.vocabulary], self.back[self.vocabulary]
        probes = 2 * n_probes * down + 2 * there + (n_probes + 2) * back
        return whole + below + there + back + down + probes + n_other_points * (above + there + back + down)

    def _sum(self, shapes: Iterable[Shape], seconds: dict[Shape, float]) -> tuple[float, float]:
        counted = Counter(shapes)
        return sum(2.0 * a * b * n for (a, b), n in counted.items()), sum(seconds[s] * n for s, n in counted.items())


def _shapes(blocks: Iterable[nn.Module]) -> list[Shape]:
    """Of every weight matrix [out, in], whatever the architecture calls it; GPT-2's are the other way round."""
    weights = [parameter for block in blocks for parameter in block.parameters() if parameter.dim() == 2]
    return [(weight.shape[0], weight.shape[1]) for weight in weights]


@torch.no_grad()
def _seconds(shape: Shape, dtype: torch.dtype, is_back: bool) -> float:
    """Of a batch of tokens: there (x·Wᵀ), or back (y·W)."""
    weight = torch.randn(shape, dtype=dtype)
    x = torch.randn(BATCH_TOKENS, shape[0] if is_back else shape[1], dtype=dtype)
    whole = _timed(lambda: x @ weight if is_back else torch.nn.functional.linear(x, weight))
    if shape[0] < 8 * TILE_ROWS:
        return whole
    tiles = [weight[i : i + TILE_ROWS] for i in range(0, shape[0], TILE_ROWS)]
    if is_back:
        parts, total = [part.contiguous() for part in x.split(TILE_ROWS, 1)], torch.zeros(BATCH_TOKENS, shape[1])
        total = total.to(dtype)
        return min(whole, _timed(lambda: _summed(total, parts, tiles)))
    return min(whole, _timed(lambda: [torch.nn.functional.linear(x, tile) for tile in tiles][-1]))


def _summed(total: Tensor, parts: Sequence[Tensor], tiles: Sequence[Tensor]) -> Tensor:
    for part, tile in zip(parts, tiles, strict=True):
        total.addmm_(part, tile)
    return total


def _timed(product) -> float:
    started = time.perf_counter()
    product()
    return time.perf_counter() - started


def default_products(dtype: str) -> Products:
    """Of the default model and its SAEs, to be measured."""
    saes = [load_sae(shipped_folder(DEFAULT_MODEL, layer)) for layer in DEFAULT_LAYERS]
    return Products(load_model(DEFAULT_MODEL, DTYPES[dtype]), saes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=30, help="for each precision")
    arguments = parser.parse_args()
    of = {dtype: default_products(dtype) for dtype in arguments.dtype}
    for products in of.values():
        products.measure(arguments.seconds)
    rows = [["", "MFLOP a token", *(f"{name}, us a token" for name in of)]]
    parts = [products.of_token() for products in of.values()]
    for part, (flop, _) in parts[0].items():
        rows.append([part, f"{flop / 1e6:.0f}", *(f"{found[part][1] * 1e6:.0f}" for found in parts)])
    total = sum(flop for flop, _ in parts[0].values())
    speeds = [products.tokens_per_second for products in of.values()]
    rows.append(["all", f"{total / 1e6:.0f}", *(f"{1e6 / speed:.0f}" for speed in speeds)])
    rows.append(["GFLOP/s", "", *(f"{total * speed / 1e9:.0f}" for speed in speeds)])
    rows.append(["tokens/s at most", "", *(f"{speed:.0f}" for speed in speeds)])
    print(markdown(rows))


if __name__ == "__main__":
    main()
