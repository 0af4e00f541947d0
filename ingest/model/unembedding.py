"""The last step of a language model: the final norm's outputs h in, losses and gradients over the vocabulary out.

  p = softmax(l)    l = c·(W_U·h + b), bent to k·tanh(l/k) by models that cap their logits

With s = ∂l/∂(W_U·h + b), a number or a diagonal, a gradient u by the logits is W_Uᵀ(s⊙u) by h.

No graph is built over the vocabulary, which would cost more memory and time than the blocks: gradients are closed form.
Nor are a token's logits ever there as a whole. The vocabulary comes in tiles, each of which is multiplied, reduced and
multiplied back while a cache holds it; what was summed so far shrinks when a larger logit comes.

Source of sums over a softmax in pieces: Milakov and Gimelshein 2018 (arXiv 1805.02867); with products, as here,
FlashAttention, Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from energy_lens.ingest.model.language_model import COARSE, LanguageModel

#: Rows of the vocabulary, and tokens, whose logits are held at once: 1,024 x 2,048 in float32 are 8 MB.
TILE_ROWS, TILE_TOKENS = 2_048, 1_024


def next_token_nll(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log p[target] [n], nats, and its gradient by h, W_Uᵀ(p − onehot) [n, d_model], for h [n, d_model]."""

    def read(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        at_target, expected = Targets(hidden, targets), ExpectedRows(hidden)
        normaliser, total = reduced(model, hidden, [at_target, expected])
        at_target_row = model.centred_unembedding[targets].to(expected.sums.dtype) * at_target.slope(model)
        return normaliser - at_target.logits, (expected.sums / total - at_target_row).to(hidden.dtype)

    losses, gradients = _in_pieces(read, hidden, targets)
    return losses, gradients


@torch.no_grad()
def next_token_losses(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """−log p[target] [n], nats, for h [n, d_model]; without a gradient."""

    def read(hidden: Tensor, targets: Tensor) -> tuple[Tensor]:
        at_target = Targets(hidden, targets)
        normaliser, _ = reduced(model, hidden, [at_target])
        return (normaliser - at_target.logits,)

    return _in_pieces(read, hidden, targets)[0]


@torch.no_grad()
def next_token_outcomes(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log p[target] [n], nats, and the likeliest next token [n] int64, for h [n, d_model]."""

    def read(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        at_target, likeliest = Targets(hidden, targets), Likeliest(hidden)
        normaliser, _ = reduced(model, hidden, [at_target, likeliest])
        return normaliser - at_target.logits, likeliest.tokens

    losses, top = _in_pieces(read, hidden, targets)
    return losses, top


@torch.no_grad()
def expected_rows(model: LanguageModel, hidden: Tensor) -> Tensor:
    """Σ_v p_v·s_v·W_U[v] [n, d_model] for h [n, d_model]: the gradient by h of log Σ exp l."""

    def read(hidden: Tensor) -> tuple[Tensor]:
        expected = ExpectedRows(hidden)
        _, total = reduced(model, hidden, [expected])
        return ((expected.sums / total + model.common_row * model.logit_scale).to(hidden.dtype),)

    return _in_pieces(read, hidden)[0]


@torch.no_grad()
def sign_draws(model: LanguageModel, hidden: Tensor, n_draws: int, generator: np.random.Generator) -> Tensor:
    """W_Uᵀ(s⊙u) [draw, n, d_model] for h [n, d_model], u = √p⊙ε − p·⟨√p, ε⟩ with random signs ε over the vocabulary.

    E[u uᵀ] = diag p − ppᵀ, the curvature of the loss by the logits (`curvature`).
    """

    def read(hidden: Tensor) -> tuple[Tensor]:
        expected, signed = ExpectedRows(hidden), SignedRows(hidden, n_draws, generator)
        _, total = reduced(model, hidden, [expected, signed])
        rows = (signed.sums - signed.of_signs * (expected.sums / total)) / total.sqrt()
        return (rows.to(hidden.dtype).transpose(0, 1),)

    return _in_pieces(read, hidden)[0].transpose(0, 1)


@torch.no_grad()
def label_draws(model: LanguageModel, hidden: Tensor, n_draws: int, generator: np.random.Generator) -> Tensor:
    """The same with u = p − onehot(v), v a next token that is drawn from the model."""

    def read(hidden: Tensor) -> tuple[Tensor]:
        expected, drawn = ExpectedRows(hidden), DrawnTokens(hidden, n_draws, generator)
        _, total = reduced(model, hidden, [expected, drawn])
        drawn_rows = model.centred_unembedding[drawn.tokens].to(expected.sums.dtype)
        if not model.is_linear:
            products = (hidden.to(drawn_rows.dtype) * drawn_rows).sum(-1)
            if model.unembedding.bias is not None:
                products += model.unembedding.bias[drawn.tokens]
            drawn_rows = drawn_rows * model.slope(model.bent(products))[..., None]  # type: ignore[index]
        else:
            drawn_rows = drawn_rows * model.logit_scale
        return ((expected.sums / total - drawn_rows).to(hidden.dtype).transpose(0, 1),)

    return _in_pieces(read, hidden)[0].transpose(0, 1)


@torch.no_grad()
def divergence(model: LanguageModel, q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """KL(p‖q) [n] float32, nats, of two next-token distributions at the same tokens.

    q: losses E [n] and h [n, d_model]; p: losses, h, and the loss's gradient by h [n, d_model] (`next_token_nll`).

    Where logits are linear in h the loss is a log-sum-exp minus a linear term, and KL its Bregman divergence, whatever
    the next token is: KL(p‖q) = E(h_q) − E(h_p) − ⟨∂E/∂h at h_p, h_q − h_p⟩ (Banerjee et al. 2005, JMLR 6, theorem 4).
    That costs an inner product a token, and asks for float32: the difference of what bfloat16 rounds may be below 0.
    Else logits of both are taken together: Σ p·(l_p − l_q) − log Σ exp l_p + log Σ exp l_q.
    """
    (q_losses, q_hidden), (p_losses, p_hidden, p_gradients) = q, p
    if model.is_linear and model.dtype not in COARSE:
        away = (q_hidden - p_hidden).float()
        return q_losses.float() - p_losses.float() - (p_gradients.float() * away).sum(-1)

    def read(p_hidden: Tensor, q_hidden: Tensor) -> tuple[Tensor]:
        other = OtherLogits(model, p_hidden, q_hidden)
        p_normaliser, total = reduced(model, p_hidden, [other])
        return ((other.gaps / total)[:, 0] - p_normaliser + other.normaliser,)

    return _in_pieces(read, p_hidden, q_hidden)[0].float()


# ------------------------------------------------------------------------------------------------ one pass


class Reduction(Protocol):
    """What is made of logits that come a tile at a time, with their weights exp(logit − largest so far)."""

    def see(self, first: int, logits: Tensor) -> None:
        """Logits [n, row] of the vocabulary from `first` on; they are overwritten afterwards."""

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        """rows of W_U [row, d_model]; weights [n, row]; s, [n, row] or one for all; by what sums so far are to be
        multiplied [n, 1].
        """


def reduced(model: LanguageModel, hidden: Tensor, reductions: Sequence[Reduction]) -> tuple[Tensor, Tensor]:
    """Go through the vocabulary for h [n, d_model]: log Σ exp [n], and Σ exp over the largest's [n, 1]."""
    W_U, bias = model.centred_unembedding, model.unembedding.bias
    highest, total = _of(hidden, 1).fill_(-torch.inf), _of(hidden, 1)
    for first in range(0, len(W_U), TILE_ROWS):
        rows = W_U[first : first + TILE_ROWS]
        logits = torch.nn.functional.linear(hidden, rows, None if bias is None else bias[first : first + TILE_ROWS])
        logits = model.bent(logits.to(total.dtype))
        for reduction in reductions:
            reduction.see(first, logits)
        slope = model.slope(logits)
        above = torch.maximum(highest, logits.amax(1, keepdim=True))
        shrinking = (highest - above).exp_()
        weights = logits.sub_(above).exp_()
        total = total * shrinking + weights.sum(1, keepdim=True)
        for reduction in reductions:
            reduction.add(rows, weights, slope, shrinking)
        highest = above
    return (highest + total.log())[:, 0], total


def _of(hidden: Tensor, *shape: int) -> Tensor:
    """Zeros [n, …] for h [n, d_model]: at least float32, whatever the model's precision."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return torch.zeros(len(hidden), *shape, dtype=dtype)


def _in_pieces(read: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """What `read` makes of so many tokens at a time, joined; each input and output is [n, …]."""
    pieces: Iterator[tuple[Tensor, ...]] = zip(*(tensor.split(TILE_TOKENS) for tensor in inputs), strict=True)
    return tuple(torch.cat(parts) for parts in zip(*(read(*piece) for piece in pieces), strict=True))


class Targets:
    """The logit of one token each."""

    def __init__(self, hidden: Tensor, targets: Tensor) -> None:
        """targets: [n]."""
        self._targets = targets
        self.logits = _of(hidden)  #: [n]

    def see(self, first: int, logits: Tensor) -> None:
        here = ((self._targets >= first) & (self._targets < first + logits.shape[1])).nonzero()[:, 0]
        self.logits[here] = logits[here, self._targets[here] - first]

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        pass

    def slope(self, model: LanguageModel) -> Tensor | float:
        """s at the targets, [n, 1] or one for all."""
        slope = model.slope(self.logits)
        return slope[:, None] if isinstance(slope, Tensor) else slope


class OtherLogits:
    """Of another h at the same tokens: its log Σ exp, and Σ of the weights times the difference of the logits."""

    def __init__(self, model: LanguageModel, hidden: Tensor, other: Tensor) -> None:
        """hidden, whose logits come, and the other: [n, d_model]."""
        self._model, self._hidden = model, other
        self._first, self._logits = 0, _of(hidden, 1)
        self._highest, self._total = _of(hidden, 1).fill_(-torch.inf), _of(hidden, 1)
        self.gaps = _of(hidden, 1)  #: [n, 1]

    @property
    def normaliser(self) -> Tensor:
        """log Σ exp of the other's logits [n]."""
        return (self._highest + self._total.log())[:, 0]

    def see(self, first: int, logits: Tensor) -> None:
        self._first, self._logits = first, logits.clone()

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        bias = self._model.unembedding.bias
        part = None if bias is None else bias[self._first : self._first + len(rows)]
        logits = self._model.bent(torch.nn.functional.linear(self._hidden, rows, part).to(weights.dtype))
        self.gaps.mul_(shrinking).add_((weights * (self._logits - logits)).sum(1, keepdim=True))
        above = torch.maximum(self._highest, logits.amax(1, keepdim=True))
        self._total = self._total * (self._highest - above).exp() + (logits - above).exp().sum(1, keepdim=True)
        self._highest = above


class Likeliest:
    """The token with the largest logit, of equal ones the first."""

    def __init__(self, hidden: Tensor) -> None:
        self._largest = _of(hidden).fill_(-torch.inf)
        self.tokens = torch.zeros(len(hidden), dtype=torch.int64)  #: [n]

    def see(self, first: int, logits: Tensor) -> None:
        largest = logits.amax(1)
        better = (largest > self._largest).nonzero()[:, 0]  # few but in the first tiles, and a place is dear to find
        self._largest[better], self.tokens[better] = largest[better], logits[better].argmax(1) + first

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        pass


class ExpectedRows:
    """Σ of the weights times the rows."""

    def __init__(self, hidden: Tensor) -> None:
        self.sums = _of(hidden, hidden.shape[1])  #: [n, d_model]

    def see(self, first: int, logits: Tensor) -> None:
        pass

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        weights = _times(weights, slope)
        if self.sums.dtype == rows.dtype:
            self.sums.mul_(shrinking).addmm_(weights, rows)
        else:
            self.sums.mul_(shrinking).add_(weights.to(rows.dtype) @ rows)


class SignedRows:
    """Σ of the weights' roots times rows with random signs, and of the roots times the signs themselves."""

    def __init__(self, hidden: Tensor, n_draws: int, generator: np.random.Generator) -> None:
        self._generator = generator
        self.sums = torch.stack([_of(hidden, hidden.shape[1])] * n_draws)  #: [draw, n, d_model]
        self.of_signs = torch.stack([_of(hidden, 1)] * n_draws)  #: [draw, n, 1]

    def see(self, first: int, logits: Tensor) -> None:
        pass

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        roots, shrinking = weights.sqrt(), shrinking.sqrt()
        for sums, of_signs in zip(self.sums, self.of_signs, strict=True):
            signed = roots * _signs(roots.shape, self._generator)
            sums.mul_(shrinking).add_(_times(signed, slope).to(rows.dtype) @ rows)
            of_signs.mul_(shrinking).add_(signed.sum(1, keepdim=True))


class DrawnTokens:
    """Tokens drawn from p: a tile takes over with its share of the weights so far, and gives one of its own."""

    def __init__(self, hidden: Tensor, n_draws: int, generator: np.random.Generator) -> None:
        self._generator = generator
        self._first, self._total = 0, _of(hidden, 1)
        self.tokens = torch.zeros(n_draws, len(hidden), dtype=torch.int64)  #: [draw, n]

    def see(self, first: int, logits: Tensor) -> None:
        self._first = first

    def add(self, rows: Tensor, weights: Tensor, slope: Tensor | float, shrinking: Tensor) -> None:
        cumulative = weights.cumsum(1)
        of_tile = cumulative[:, -1:].contiguous()
        self._total = self._total * shrinking + of_tile
        uniform = torch.from_numpy(self._generator.random((len(weights), len(self.tokens)))).to(weights.dtype)
        # Below the tile's share of the total, what is left of the uniform number is uniform within the tile.
        within = uniform * self._total
        place = torch.searchsorted(cumulative, within).clamp_max(len(rows) - 1)
        self.tokens = torch.where((within < of_tile).T, self._first + place.T, self.tokens)


def _times(weights: Tensor, slope: Tensor | float) -> Tensor:
    return weights if isinstance(slope, float) and slope == 1 else weights * slope


def _signs(shape: torch.Size, generator: np.random.Generator) -> Tensor:
    """Independent −1 and 1 with equal chances, float32; of a random bit each, since bytes take eight times as long."""
    n = shape.numel()
    bits = np.unpackbits(np.frombuffer(generator.bytes(-(-n // 8)), dtype=np.uint8), count=n)
    return torch.from_numpy(bits).float().mul_(2).sub_(1).view(shape)
