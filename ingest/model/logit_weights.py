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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.compiled import compiled
from energy_lens.ingest.model.language_model import LanguageModel

#: Directions whose logits are held at once: 256 x 49,152 in float32 are 50 MB.
BLOCK = 256

#: Root mean square of what is put into a norm to read off its gain: large enough that its epsilon does not show.
LARGE = 1e4


class LogitSummary(NamedTuple):
    """Of n directions."""

    top_ids: NDArray[np.int64]  #: [n, k] of the largest l, largest first; of equal ones the first
    top: NDArray[np.float32]  #: [n, k]
    bottom_ids: NDArray[np.int64]  #: [n, k] of the smallest l, smallest first
    bottom: NDArray[np.float32]  #: [n, k]
    low: NDArray[np.float32]  #: [n] the smallest l
    high: NDArray[np.float32]  #: [n] the largest
    counts: NDArray[np.int32]  #: [n, bins] tokens of the vocabulary by l, in bins of equal width


def final_gain(model: LanguageModel) -> tuple[Tensor, bool]:
    """γ [d_model] in float32, and whether the final norm takes the mean out of what it reads."""
    weight = model.unembedding.weight
    sign = torch.ones(model.d_model, dtype=torch.float64)
    sign[1::2] = -1  # of mean 0, or nearly
    probe = (LARGE * sign).to(weight.dtype)

    @torch.no_grad()
    def normed(x: Tensor) -> Tensor:
        of_x: Tensor = model.final_norm(x.view(1, 1, -1))
        return of_x.view(-1).float()

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
        yield summarised(logits.numpy(), n_told, n_bins)


def summarised(logits: NDArray[np.float32], n_told: int, n_bins: int) -> LogitSummary:
    """Of l [n, vocabulary]."""
    k = min(n_told, logits.shape[1])
    top_ids, bottom_ids = _largest(logits, k, np.float32(1)), _largest(logits, k, np.float32(-1))
    top, bottom = (np.take_along_axis(logits, ids, 1) for ids in (top_ids, bottom_ids))
    return LogitSummary(top_ids, top, bottom_ids, bottom, bottom[:, 0], top[:, 0], _histograms(logits, n_bins))


@compiled
def _largest(logits: NDArray[np.float32], k: int, sign: np.float32) -> NDArray[np.int64]:
    """[n, k] places of the largest sign·l of each row, largest first; of equal ones the first."""
    kept = np.empty((len(logits), k), dtype=np.int64)
    values = np.empty(k, dtype=np.float32)
    for row in range(len(logits)):
        n = 0
        for place in range(logits.shape[1]):
            value = sign * logits[row, place]
            if n == k and value <= values[k - 1]:
                continue
            at = n if n < k else k - 1
            while at > 0 and values[at - 1] < value:
                values[at], kept[row, at] = values[at - 1], kept[row, at - 1]
                at -= 1
            values[at], kept[row, at] = value, place
            n = min(n + 1, k)
    return kept


@compiled
def _histograms(logits: NDArray[np.float32], n_bins: int) -> NDArray[np.int32]:
    """[n, bins] how many of a row are in each bin between its smallest and its largest; on an edge, the upper one."""
    counts = np.zeros((len(logits), n_bins), dtype=np.int32)
    for row in range(len(logits)):
        low, high = logits[row].min(), logits[row].max()
        scale = n_bins / (np.float64(high) - np.float64(low)) if high > low else 0.0
        for value in logits[row]:
            counts[row, min(int((np.float64(value) - np.float64(low)) * scale), n_bins - 1)] += 1
    return counts
