"""Norms and token ids in, which tokens count in statistics out, with the reason why the others do not.

A context's first token, or the BOS token before it, is an attention sink and a few tokens carry massive activations
(Sun et al. 2024, arXiv 2402.17762): norms of up to 29,440 against a median of 172 at layer 15 of SmolLM2-135M. With
them, an SAE's FVU looks far better than it is and one feature's ablation effect dwarfs all others. Excluded tokens stay
in the model's input and are attended to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.model.finite import check_residuals

#: A token whose ‖x‖ exceeds this multiple of the layer's median norm is excluded.
MASSIVE_NORM_RATIO = 10.0

#: Values of token_layers.reason, by the code that `exclusion_reasons` returns; 0 is an included token.
REASONS = ("included", "first token", "massive norm", "special token", "no next token", "BOS")
INCLUDED, FIRST, MASSIVE, SPECIAL, LAST, BOS = range(len(REASONS))


class SpecialTokens(NamedTuple):
    """Tokens that are no text."""

    ids: Tensor  #: [n] int64, in the order of numbers
    bos_leads: bool = False  #: whether every context begins with BOS


def exclusion_reasons(
    norms: Tensor,
    norm_median: float,
    lengths: Tensor,
    tokens: Tensor,
    special: SpecialTokens,
    place: str = "the residual stream",
) -> NDArray[np.int8]:
    """Reason codes [context, position]; positions beyond a context's length get LAST, being padding.

    norms: [context, position]; lengths: [context]; tokens: [context, position]. Where several reasons apply the first
    of REASONS stands. A context that begins with BOS has its sink there: the first token of its text counts.
    place: of the norms, for who is told. Raises NotFiniteError for a token whose norm is not finite.
    """
    positions = torch.arange(norms.shape[1])[None]
    check_residuals(norms, place, positions < lengths[:, None])
    reasons = torch.zeros(norms.shape, dtype=torch.int8)
    reasons[positions >= lengths[:, None] - 1] = LAST
    reasons[torch.isin(tokens, special.ids)] = SPECIAL
    reasons[norms > MASSIVE_NORM_RATIO * norm_median] = MASSIVE
    reasons[:, 0] = BOS if special.bos_leads else FIRST
    result: NDArray[np.int8] = reasons.numpy()
    return result


def included_everywhere(
    residuals: Mapping[int, Tensor],
    norm_medians: Mapping[int, float],
    lengths: Tensor,
    tokens: Tensor,
    special: SpecialTokens,
) -> Tensor:
    """Mask [context, position] of the tokens that are included at every layer: those that are trained on.

    residuals: layer: x [context, position, d_model]; the rest as in exclusion_reasons, the median by layer.
    """
    reasons = [
        exclusion_reasons(x.float().norm(dim=-1), norm_medians[layer], lengths, tokens, special, f"layer {layer}")
        for layer, x in residuals.items()
    ]
    return torch.from_numpy((np.stack(reasons) == INCLUDED).all(0))
