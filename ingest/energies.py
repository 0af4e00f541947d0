"""Energies: one small provider each, from a forward pass to energies per token and gradients at every hooked layer.

A provider's `read` returns both at once, because the softmax that gives an energy also gives its gradient.

nll       E_t = −log p(x_{t+1} | x_≤t), nats. Its gradient at x_t is that of Σ_s E_s over every s of the context
          that has a next token: what token t does to all later predictions. One backward pass serves all layers.
logit_lens
          E_t = −log softmax(W_U·norm_f(x_t))[x_{t+1}] at a hooked layer, nats: the model's own unembedding read early
          (nostalgebraist 2020). Local: token t's energy moves with x_t alone. At the last block it is nll's energy.
attention E_t = −Σ_h logsumexp_{s≤t}(q_t·k_s·scale), nats: the Energy Transformer's attention energy (Hoover et al.
          2023, eq. 3; HAMUX) of the next block, times its β, read at that block's input: its norm, its projections,
          its positions. Its gradient is of Σ_t E_t, so x_t counts as a query and as a key of later tokens.
hopfield  E_t = −½ Σ_j a_{t,j}², squared activation units: the Energy Transformer's Hopfield energy (Hoover et al.
          2023, arXiv 2302.07253, eq. 7) with the SAE as memories. Its gradient goes through the SAE's own encoder
          and normalisation, so it is aligned with active features by construction: the positive control.

A pretrained model does not descend `attention` (W_O·W_V is not W_Qᵀ): it is evaluated, not minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.models import AttentionInputs, LanguageModel, residual_stream
from energy_lens.ingest.sae import SparseActivations, SparseAutoencoder
from energy_lens.warehouse.errors import UsageError

#: Tokens whose logits are held at once: 128 x 49,152 in float32 is 25 MB, which stays near the cache.
LOGIT_CHUNK = 128


@dataclass
class ForwardPass:
    """What an energy can read: a batch of contexts after the model ran on it."""

    model: LanguageModel
    tokens: Tensor  #: [batch, position] int64, padded on the right
    lengths: Tensor  #: [batch] int64, tokens of each context
    residuals: Mapping[int, Tensor]  #: layer: x [batch, position, d_model], in the model's precision
    hidden: Tensor  #: final norm's output [batch, position, d_model], with a graph down to the lowest layer
    included: Mapping[int, Tensor]  #: layer: [batch, position] mask of the tokens whose activations are read
    activations: Mapping[int, SparseActivations]  #: layer: [batch·position, K], empty at excluded tokens
    saes: Mapping[int, SparseAutoencoder]
    scales: Mapping[int, Tensor | None]  #: layer: s_t [batch, position], what a unit of a feature is there; None: 1

    @property
    def has_next(self) -> Tensor:
        """[batch, position] mask of the tokens that have a next one in their context."""
        return torch.arange(self.tokens.shape[1])[None] < self.lengths[:, None] - 1

    @property
    def next_tokens(self) -> Tensor:
        """[batch, position] the id of each token's next one; without meaning where there is none."""
        return self.tokens.roll(-1, dims=1)


class Reading(NamedTuple):
    """Energies and gradients of one batch."""

    values: dict[int | None, Tensor]  #: layer (None: not read at a layer): E [batch, position] float32
    gradients: dict[int, Tensor]  #: layer: ∂E/∂x [batch, position, d_model] float32; 0 where E does not reach


class Energy(Protocol):
    """A provider; derive from it. `version` enters a run's identity: raise it when numbers change."""

    name: str
    units: str
    version: int
    at_layers: bool  #: whether E is read at each hooked layer (else once, at the model's output)

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        """Raises UsageError where the energy is not defined for a model at these layers; by default it always is."""

    def read(self, forward: ForwardPass) -> Reading:
        """Energies and gradients of a batch; called while the batch's graph is alive."""
        ...


class NegativeLogLikelihood(Energy):
    """E_t = −log p(x_{t+1} | x_≤t) of the model's own output."""

    name = "nll"
    units = "nats"
    version = 1
    at_layers = False

    def read(self, forward: ForwardPass) -> Reading:
        has_next = forward.has_next
        targets = forward.next_tokens[has_next]
        values = torch.zeros(forward.tokens.shape)
        at_hidden = torch.zeros_like(forward.hidden)
        with torch.no_grad():
            energies, gradients = _next_token_nll(forward.model, forward.hidden[has_next], targets)
            values[has_next] = energies.float()
            at_hidden[has_next] = gradients
        layers = list(forward.residuals)
        below = torch.autograd.grad(forward.hidden, [forward.residuals[layer] for layer in layers], at_hidden)
        return Reading({None: values}, {layer: g.float() for layer, g in zip(layers, below, strict=True)})


def _next_token_nll(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """−log softmax(W_U·h + b)[target] [n], and its gradient W_Uᵀ(p − onehot) [n, d_model], in closed form.

    No graph is built over the vocabulary: that would cost more memory and time than the blocks.
    """
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
    """−log softmax(W_U·h + b)[target] [n], nats, of the final norm's outputs h [n, d_model]; without a gradient."""
    losses = _empty_losses(hidden)
    for chunk, logits, normaliser in _logit_chunks(model, hidden):
        losses[chunk] = (normaliser - logits.gather(1, targets[chunk, None]))[:, 0]
    return losses


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


class LogitLens(Energy):
    """E_t = −log softmax(W_U·norm_f(x_t))[x_{t+1}] at each hooked layer; 0 at excluded tokens, where it is not read."""

    name = "logit_lens"
    units = "nats"
    version = 1
    at_layers = True

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        for layer, residual in forward.residuals.items():
            read = forward.included[layer] & forward.has_next
            values[layer] = torch.zeros(forward.tokens.shape)
            gradients[layer] = torch.zeros(residual.shape)
            with torch.enable_grad():
                x = residual.detach()[read].requires_grad_(True)
                hidden = forward.model.final_norm(x)
            with torch.no_grad():
                energies, at_hidden = _next_token_nll(forward.model, hidden, forward.next_tokens[read])
            (gradient,) = torch.autograd.grad(hidden, x, at_hidden)
            values[layer][read] = energies.float()
            gradients[layer][read] = gradient.float()
        return Reading(values, gradients)


class AttentionEnergy(Energy):
    """E_t = −Σ_h logsumexp_{s≤t}(q_t·k_s·scale) of the block above each hooked layer, at every token."""

    name = "attention"
    units = "nats"
    version = 1
    at_layers = True

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        if (last := model.n_layers - 1) in layers:
            raise UsageError(
                f"The attention energy of layer {last} is that of the next block, and {model.name} has none: "
                "leave out the last layer (--layers) or this energy (--energies)."
            )

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        within = torch.arange(forward.tokens.shape[1])[None] < forward.lengths[:, None]
        for layer, residual in forward.residuals.items():
            with torch.enable_grad():
                x = residual.detach().requires_grad_(True)
                scores = attention_scores(forward.model.attention_inputs(forward.tokens, layer, x))
                energies = torch.where(within, -scores.logsumexp(-1).sum(1), 0)
                (gradient,) = torch.autograd.grad(energies.sum(), x)
            values[layer] = energies.detach().float()
            gradients[layer] = gradient.float()
        return Reading(values, gradients)


def attention_scores(attention: AttentionInputs) -> Tensor:
    """q_t·k_s·scale [batch, head, t, s], −∞ where t does not attend to s; at least float32.

    Its softmax over s is the model's attention pattern, its logsumexp over s minus the energy of a head.
    """
    queries, keys = attention.queries, attention.keys
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)  # grouped: several heads share one
    scores = queries @ keys.transpose(2, 3) * attention.scale
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores
    t, s = torch.meshgrid(*[torch.arange(scores.shape[-1])] * 2, indexing="ij")
    hidden = s > t
    if attention.window is not None:
        hidden |= s <= t - attention.window
    return scores.masked_fill(hidden, -torch.inf)


class Hopfield(Energy):
    """E_t = −½ Σ_j a_{t,j}² at each hooked layer; 0 at excluded tokens, whose activations are not read."""

    name = "hopfield"
    units = "squared activation units"
    version = 1
    at_layers = True

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        shape = forward.tokens.shape
        for layer, activations in forward.activations.items():
            values[layer] = -0.5 * activations.values.square().sum(-1).view(shape)
            x = forward.residuals[layer].detach().float().flatten(0, 1)
            gradients[layer] = -forward.saes[layer].encoder_gradient(x, activations).view(*shape, -1)
        return Reading(values, gradients)


ENERGIES: dict[str, Callable[[], Energy]] = {
    energy.name: energy for energy in (NegativeLogLikelihood, LogitLens, AttentionEnergy, Hopfield)
}


def make_energies(names: Sequence[str]) -> list[Energy]:
    """Providers by name, without repetition. Raises UsageError for an unknown one."""
    if not names:
        raise UsageError(f"No energy was given: choose among {', '.join(ENERGIES)} (--energies).")
    for name in names:
        if name not in ENERGIES:
            raise UsageError(f"There is no energy {name!r}: choose among {', '.join(ENERGIES)} (--energies).")
    return [ENERGIES[name]() for name in dict.fromkeys(names)]


def run_forward(
    model: LanguageModel,
    saes: Mapping[int, SparseAutoencoder],
    tokens: Tensor,
    lengths: Tensor,
    included: Callable[[int, Tensor], Tensor],
) -> ForwardPass:
    """Run a batch with a graph above the lowest hooked layer, and encode its included tokens.

    included: (layer, norms [batch, position]) → mask [batch, position] of the tokens whose activations are read.
    """
    layers = sorted(saes)
    with torch.enable_grad(), residual_stream(model, layers, graph=True) as residuals:
        hidden = model.hidden(tokens)
    masks = {}
    activations = {}
    scales = {}
    with torch.no_grad():
        for layer in layers:
            x = residuals[layer].detach().float()
            masks[layer] = included(layer, x.norm(dim=-1))
            x = x.view(-1, x.shape[-1])
            activations[layer] = saes[layer].encode(x, masks[layer].view(-1))
            scale = saes[layer].token_scales(x)
            scales[layer] = None if scale is None else scale.view(tokens.shape)
    return ForwardPass(model, tokens, lengths, residuals, hidden, masks, activations, saes, scales)


def discrete_gradient(energy: NDArray[np.float64], defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """−numpy.gradient of E along each maximal run of defined tokens, unit spacing; NaN elsewhere.

    energy, defined: [position]. A run of fewer than two tokens has no derivative.
    """
    result = np.full(energy.shape, np.nan)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], defined, [False])).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        if stop - start >= 2:
            result[start:stop] = -np.gradient(energy[start:stop])
    return result
