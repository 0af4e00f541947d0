"""The last step of a language model: the final norm's outputs h in, losses and gradients over the vocabulary out.

  p = softmax(W_U·h + b)

No graph is built over the vocabulary, which would cost more memory and time than the blocks: gradients are closed
form, and logits exist for LOGIT_CHUNK tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from energy_lens.ingest.model.language_model import LanguageModel

#: Tokens whose logits are held at once: 128 x 49,152 in float32 is 25 MB, which stays near the cache.
LOGIT_CHUNK = 128


def next_token_nll(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log p[target] [n], nats, and its gradient by h, W_Uᵀ(p − onehot) [n, d_model], for h [n, d_model]."""
    W_U = model.unembedding.weight
    energies, gradients = _empty_losses(hidden), torch.empty_like(hidden)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        target = targets[chunk, None]
        energies[chunk] = (normaliser - logits.gather(1, target))[:, 0]
        p = logits.sub_(normaliser).exp_()
        p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype))
        gradients[chunk] = p.to(W_U.dtype) @ W_U
    return energies, gradients


@torch.no_grad()
def next_token_losses(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """−log p[target] [n], nats, for h [n, d_model]; without a gradient."""
    losses = _empty_losses(hidden)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        losses[chunk] = (normaliser - logits.gather(1, targets[chunk, None]))[:, 0]
    return losses


@torch.no_grad()
def next_token_outcomes(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log p[target] [n], nats, and the likeliest next token [n] int64, for h [n, d_model]."""
    losses, top = _empty_losses(hidden), torch.empty(len(hidden), dtype=torch.int64)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        losses[chunk] = (normaliser - logits.gather(1, targets[chunk, None]))[:, 0]
        top[chunk] = logits.argmax(-1)
    return losses, top


def _empty_losses(hidden: Tensor) -> Tensor:
    """[n] for losses of h [n, d_model]: at least float32, whatever the model's precision."""
    return torch.empty(len(hidden), dtype=torch.float32 if hidden.dtype != torch.float64 else hidden.dtype)


def _logit_chunks(model: LanguageModel, hidden: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of every LOGIT_CHUNK rows of h [n, d_model]: which they are, logits [rows, vocabulary], log Σ exp [rows, 1]."""
    for start in range(0, len(hidden), LOGIT_CHUNK):
        chunk = slice(start, start + LOGIT_CHUNK)
        logits = torch.nn.functional.linear(hidden[chunk], model.unembedding.weight, model.unembedding.bias)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        yield chunk, logits, logits.logsumexp(dim=-1, keepdim=True)


@torch.no_grad()
def sign_draws(model: LanguageModel, hidden: Tensor, n_draws: int, generator: np.random.Generator) -> Tensor:
    """W_Uᵀu [draw, n, d_model] for h [n, d_model], u = √p⊙ε − p·⟨√p, ε⟩ with random signs ε over the vocabulary.

    E[u uᵀ] = diag p − ppᵀ, the curvature of the loss by the logits (`curvature`).
    """
    W_U = model.unembedding.weight
    draws = hidden.new_empty(n_draws, *hidden.shape)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        p = logits.sub_(normaliser).exp_()
        root = p.sqrt()
        for draw in draws:
            u = root * _signs(p.shape, generator)
            u.sub_(p * u.sum(-1, keepdim=True))
            draw[chunk] = u.to(W_U.dtype) @ W_U
    return draws


@torch.no_grad()
def label_draws(model: LanguageModel, hidden: Tensor, n_draws: int, generator: np.random.Generator) -> Tensor:
    """The same with u = p − onehot(v), v a next token that is drawn from the model."""
    W_U = model.unembedding.weight
    draws = hidden.new_empty(n_draws, *hidden.shape)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        p = logits.sub_(normaliser).exp_()
        cumulative = p.cumsum(-1)
        expected = p.to(W_U.dtype) @ W_U
        for draw in draws:
            chance = torch.from_numpy(generator.random((len(p), 1))).to(p.dtype) * cumulative[:, -1:]
            drawn = torch.searchsorted(cumulative, chance).clamp_max(p.shape[1] - 1)
            draw[chunk] = expected - W_U[drawn[:, 0]]
    return draws


def _signs(shape: torch.Size, generator: np.random.Generator) -> Tensor:
    """Independent −1 and 1 with equal chances, float32; of a random bit each, since bytes take eight times as long."""
    n = shape.numel()
    bits = np.unpackbits(np.frombuffer(generator.bytes(-(-n // 8)), dtype=np.uint8), count=n)
    return torch.from_numpy(bits).float().mul_(2).sub_(1).view(shape)


@torch.no_grad()
def expected_rows(model: LanguageModel, hidden: Tensor) -> Tensor:
    """Σ_v p_v·W_U[v] [n, d_model] for h [n, d_model]: the gradient by h of log Σ exp(W_U·h + b)."""
    W_U = model.unembedding.weight
    rows = torch.empty_like(hidden)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        rows[chunk] = logits.sub_(normaliser).exp_().to(W_U.dtype) @ W_U
    return rows


def divergence(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """KL(p‖q) [n] float32, nats, of two next-token distributions at the same tokens, for an inner product each.

    q: losses E [n] and h [n, d_model]; p: losses, h, and the loss's gradient by h [n, d_model] (`next_token_nll`).

    As a function of h the loss is a log-sum-exp minus a linear term, and KL is its Bregman divergence, whatever the
    next token is: KL(p‖q) = E(h_q) − E(h_p) − ⟨∂E/∂h at h_p, h_q − h_p⟩ (Banerjee et al. 2005, JMLR 6, theorem 4).
    """
    (q_losses, q_hidden), (p_losses, p_hidden, p_gradients) = q, p
    away = (q_hidden - p_hidden).float()
    return q_losses.float() - p_losses.float() - (p_gradients.float() * away).sum(-1)
