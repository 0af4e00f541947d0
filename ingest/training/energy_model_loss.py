"""Hidden states and targets in, the mean next-token loss out; its gradient is closed form, without a graph over logits.

Logits of a few hundred tokens at a time stay in the processor's cache, where those of a whole batch are written and
read half a dozen times (6 % of a training step, measured).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Tokens whose logits are held at once.
CHUNK = 512


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
        at_hidden, at_unembedding = torch.empty_like(hidden), torch.zeros_like(unembedding)
        total = torch.zeros((), dtype=torch.float64)
        for place in range(0, len(targets), CHUNK):
            h, t = hidden[place : place + CHUNK], targets[place : place + CHUNK, None]
            logits = h @ unembedding.T
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += (normaliser - logits.gather(1, t)).sum().double()
            slope = logits.sub_(normaliser).exp_()  # p − onehot, over the number of tokens
            slope.scatter_add_(1, t, torch.full_like(t, -1, dtype=slope.dtype))
            slope /= len(targets)
            torch.mm(slope, unembedding, out=at_hidden[place : place + CHUNK])
            at_unembedding.addmm_(slope.T, h)
        context.save_for_backward(at_hidden, at_unembedding)
        return (total / len(targets)).to(hidden.dtype)

    @staticmethod
    def backward(context: Any, *slopes: Any) -> tuple[Tensor, Tensor, None]:
        at_hidden, at_unembedding = context.saved_tensors
        return at_hidden * slopes[0], at_unembedding * slopes[0], None


def mean_loss(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(W_U·h)[target], in nats, the mean over tokens; differentiable once.

    hidden: [token, d_model]; unembedding: W_U [vocabulary, d_model]; targets: [token].
    """
    loss: Tensor = _MeanLoss.apply(hidden, unembedding, targets)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def losses(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """The same of each token [token]."""
    parts = []
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = h @ unembedding.T
        parts.append(logits.logsumexp(-1) - logits.gather(1, t[:, None]).squeeze(1))
    return torch.cat(parts)
