"""Norms and token ids in, which tokens count in statistics out, with the reason why the others do not.

A context's first token is an attention sink and a few tokens carry massive activations (Sun et al. 2024, arXiv
2402.17762): norms of up to 29,440 against a median of 172 at layer 15 of SmolLM2-135M. With them, an SAE's FVU looks
far better than it is and one feature's ablation effect dwarfs all others. Excluded tokens stay in the model's input
and are attended to.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A token whose ‖x‖ exceeds this multiple of the layer's median norm is excluded.
MASSIVE_NORM_RATIO = 10.0

#: Values of token_layers.reason, by the code that `exclusion_reasons` returns; 0 is an included token.
REASONS = ("included", "first token", "massive norm", "special token", "no next token")
INCLUDED, FIRST, MASSIVE, SPECIAL, LAST = range(len(REASONS))


def included_tokens(norms: Tensor, norm_median: float) -> Tensor:
    """Mask [batch, position] of the tokens an SAE is trained on, from ‖x‖ [batch, position]."""
    included = norms <= MASSIVE_NORM_RATIO * norm_median
    included[:, 0] = False
    return included


def exclusion_reasons(
    norms: Tensor, norm_median: float, lengths: Tensor, tokens: Tensor, special_ids: Tensor
) -> NDArray[np.int8]:
    """Reason codes [context, position]; positions beyond a context's length get LAST, being padding.

    norms: [context, position]; lengths: [context]; tokens: [context, position]; special_ids: [n].
    Where several reasons apply the first of REASONS stands.
    """
    positions = torch.arange(norms.shape[1])[None]
    reasons = torch.zeros(norms.shape, dtype=torch.int8)
    reasons[positions >= lengths[:, None] - 1] = LAST
    reasons[torch.isin(tokens, special_ids)] = SPECIAL
    reasons[norms > MASSIVE_NORM_RATIO * norm_median] = MASSIVE
    reasons[:, 0] = FIRST
    result: NDArray[np.int8] = reasons.numpy()
    return result
