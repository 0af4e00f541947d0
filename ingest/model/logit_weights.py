"""Directions of the residual stream in, what they add to the logits by the direct path out.

  l = c·W_U·(γ ∘ d) − its mean over the vocabulary

for a direction d, the final norm's gain γ, the unembedding W_U and the model's logit scale c; before a LayerNorm d is
taken without its mean, as the norm does. The mean over the vocabulary is what softmax does not notice. It is what a
unit of d would add to logits if the residual had a root mean square of 1; division by the real one, later blocks and a
cap on logits are left out. Source: logit lens of weights, as in SAEDashboard and Bricken et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from energy_lens.ingest.model.language_model import LanguageModel

#: Directions whose logits are held at once: 256 x 49,152 in float32 are 50 MB.
BLOCK = 256

#: Root mean square of what is put into a norm to read off its gain: large enough that its epsilon does not show.
LARGE = 1e4


class LogitSummary(NamedTuple):
    """Of n directions."""

    top_ids: Tensor  #: [n, k] int64, of the largest l, largest first
    top: Tensor  #: [n, k]
    bottom_ids: Tensor  #: [n, k] of the smallest l, smallest first
    bottom: Tensor  #: [n, k]
    low: Tensor  #: [n] the smallest l
    high: Tensor  #: [n] the largest
    counts: Tensor  #: [n, bins] int32: tokens of the vocabulary by l, in bins of equal width


def final_gain(model: LanguageModel) -> tuple[Tensor, bool]:
    """γ [d_model] in float32, and whether the final norm takes the mean out of what it reads."""
    weight = model.unembedding.weight
    sign = torch.ones(model.d_model, dtype=torch.float64)
    sign[1::2] = -1  # of mean 0, or nearly
    probe = (LARGE * sign).to(weight.dtype)

    @torch.no_grad()
    def normed(x: Tensor) -> Tensor:
        return model.final_norm(x.view(1, 1, -1)).view(-1).float()

    # A norm's bias falls out of the difference of two opposite probes.
    gain = (normed(probe) - normed(-probe)) / 2
    shifted = (normed(probe + LARGE) - normed(-(probe + LARGE))) / 2
    is_centred = torch.allclose(gain, shifted, rtol=0.02, atol=0.02 * float(gain.abs().max()))
    deviation = (sign - sign.mean()).float() if is_centred else sign.float()
    size = deviation.square().mean().sqrt()
    return gain / (deviation / size), is_centred


@torch.no_grad()
def summaries(model: LanguageModel, directions: Tensor, n_told: int, n_bins: int) -> Iterator[LogitSummary]:
    """Summaries of l for directions [n, d_model], so many at a time, over the tokens that the tokenizer has."""
    gain, is_centred = final_gain(model)
    W_U = model.unembedding.weight.detach().float()
    W_U = W_U[: min(len(W_U), len(model.tokenizer))]
    scale = model.logit_scale
    for start in range(0, len(directions), BLOCK):
        block = directions[start : start + BLOCK].float()
        if is_centred:
            block = block - block.mean(1, keepdim=True)
        logits = (block * gain) @ W_U.T
        logits = (logits - logits.mean(1, keepdim=True)) * scale
        k = min(n_told, logits.shape[1])
        top, bottom = logits.topk(k), logits.topk(k, largest=False)
        low, high = logits.amin(1), logits.amax(1)
        width = ((high - low) / n_bins).clamp_min(torch.finfo(torch.float32).tiny)
        bins = ((logits - low[:, None]) / width[:, None]).to(torch.int64).clamp_(0, n_bins - 1)
        bins += n_bins * torch.arange(len(block))[:, None]
        counts = torch.bincount(bins.view(-1), minlength=n_bins * len(block)).view(-1, n_bins).to(torch.int32)
        yield LogitSummary(top.indices, top.values, bottom.indices, bottom.values, low, high, counts)
