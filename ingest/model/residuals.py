"""Token ids in, the residual stream after each block out: hooks that leave nothing behind, a pass that stops early."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energy_lens.ingest.model.language_model import LanguageModel

#: Tokens of the sample that gives an imported SAE its norm median.
NORM_MEDIAN_TOKENS = 50_000


class _Stop(Exception):
    """Raised inside a hook to leave the forward pass: nothing above the last hooked layer is wanted."""


@contextlib.contextmanager
def residual_stream(model: LanguageModel, layers: Sequence[int], graph: bool = False) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass fills the yielded dict with x[layer], [batch, position, d_model], after each block.

    graph: cut the graph at the lowest hooked layer, whose output becomes a leaf that requires a gradient. With the
        parameters frozen nothing is recorded below it, which saves a third of the backward pass's memory.
    """
    residuals: dict[int, Tensor] = {}
    lowest = min(layers)

    def keep(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            if graph and layer == lowest:
                x = x.detach().requires_grad_(True)
                output = (x, *output[1:]) if isinstance(output, tuple) else x
            residuals[layer] = x
            return output

        return hook

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(model.blocks[layer].register_forward_hook(keep(layer)).remove)
        yield residuals


@torch.no_grad()
def harvest_residuals(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """x[layer] [batch, position, d_model] for token ids [batch, position]; blocks above the last are not run."""

    def stop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        raise _Stop

    with residual_stream(model, layers) as residuals:
        handle = model.blocks[max(layers)].register_forward_hook(stop)
        try:
            with contextlib.suppress(_Stop):
                model.hidden(tokens)
        finally:
            handle.remove()
    return residuals


def norm_medians(
    model: LanguageModel, contexts: Iterable[NDArray[np.int32]], layers: Sequence[int]
) -> dict[int, float]:
    """The median ‖x‖ after each layer over all tokens of contexts: ids of one, or of several of equal length, each."""
    norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for ids in contexts:
        tokens = torch.from_numpy(np.atleast_2d(ids).astype(np.int64))
        for layer, x in harvest_residuals(model, tokens, layers).items():
            norms[layer].append(x.float().norm(dim=-1).flatten())
    return {layer: float(torch.cat(parts).median()) for layer, parts in norms.items()}
