"""Token ids in, the residual stream after each block out; and how long it is, by a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.model.finite import check_residuals
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import K, Site, harvest, tensors_at

#: Tokens of the sample that gives an imported SAE its norm median.
NORM_MEDIAN_TOKENS = 50_000

#: Places of one pass over it, whatever the batch size of a run, on which its median shall not depend.
NORM_MEDIAN_PLACES = 1_024


def residual_stream(
    model: LanguageModel, layers: Sequence[int], graph: bool = False
) -> contextlib.AbstractContextManager[dict[int, Tensor]]:
    """Inside, a forward pass fills the dict with x[layer], [batch, position, d_model], after each block.

    graph: cut the graph at the lowest hooked layer, whose output becomes a leaf that requires a gradient (`sites`).
    """
    return tensors_at(model, {layer: Site(layer) for layer in layers}, Site(min(layers)) if graph else None)


def harvest_residuals(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """x[layer] [batch, position, d_model] for token ids [batch, position]; blocks above the last are not run."""
    return harvest(model, tokens, {layer: Site(layer) for layer in layers})


def norm_medians(
    model: LanguageModel, contexts: Iterable[NDArray[np.int32]], sites: Mapping[K, Site]
) -> dict[K, float]:
    """The median ‖x‖ at each place over all tokens of contexts: ids of one, or of several of equal length, each.

    Raises NotFiniteError for the first one that is not finite.
    """
    norms: dict[K, list[Tensor]] = {key: [] for key in sites}
    for ids in contexts:
        tokens = torch.from_numpy(np.atleast_2d(ids).astype(np.int64))
        for key, x in harvest(model, tokens, sites).items():
            norms[key].append(x.float().norm(dim=-1).flatten())
            check_residuals(norms[key][-1], sites[key].hook_name)
    return {key: float(torch.cat(parts).median()) for key, parts in norms.items()}
