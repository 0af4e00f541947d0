"""Energies: one small provider each, from a forward pass to energies per token and gradients at every hooked layer.

A provider's `read` returns both at once, because the softmax that gives an energy also gives its gradient.

nll       E_t = −log p(x_{t+1} | x_≤t), nats. Its gradient at x_t is that of Σ_s E_s over every s of the context
          that has a next token: what token t does to all later predictions. One backward pass serves all layers.
logit_lens
          E_t = −log softmax(W_U·norm_f(x_t))[x_{t+1}] at a hooked layer, nats: the model's own unembedding read early
          (nostalgebraist 2020). Local: token t's energy moves with x_t alone. At the last block it is nll's energy.
tuned_lens
          The same after a fitted affine map of x_t (Belrose et al. 2023, arXiv 2303.08112; `tuned_lens`), its Jacobian
          in the gradient.
attention E_t = −Σ_h logsumexp_{s≤t}(q_t·k_s·scale), nats: the Energy Transformer's attention energy (Hoover et al.
          2023, eq. 3; HAMUX) of the next block, times its β, read at that block's input: its norm, its projections,
          its positions. Its gradient is of Σ_t E_t, so x_t counts as a query and as a key of later tokens.
hopfield  E_t = −½ Σ_j a_{t,j}², squared activation units: the Energy Transformer's Hopfield energy (Hoover et al.
          2023, arXiv 2302.07253, eq. 7) with the SAE as memories. Its gradient goes through the SAE's own encoder
          and normalisation, so it is aligned with active features by construction: the positive control.

A pretrained model does not descend `attention` (W_O·W_V is not W_Qᵀ): it is evaluated, not minimised.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.models import AttentionInputs, LanguageModel, residual_stream
from energy_lens.ingest.sae import SparseActivations, SparseAutoencoder
from energy_lens.ingest.tuned_lens import Translators
from energy_lens.ingest.unembedding import divergence, next_token_nll


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

    @cached_property
    def output(self) -> OutputLosses:
        """The model's own losses at every token that has a next one; taken once, for all energies that read them."""
        has_next = self.has_next
        values = torch.zeros(self.tokens.shape)
        gradients = torch.zeros_like(self.hidden)
        with torch.no_grad():
            energies, at_hidden = next_token_nll(self.model, self.hidden[has_next], self.next_tokens[has_next])
            values[has_next] = energies.float()
            gradients[has_next] = at_hidden
        return OutputLosses(values, gradients)


class OutputLosses(NamedTuple):
    """What the model's output says of each next token; 0 where there is none."""

    values: Tensor  #: −log p(x_{t+1} | x_≤t) [batch, position] float32, nats
    gradients: Tensor  #: its gradient at the final norm's output [batch, position, d_model]


class Reading(NamedTuple):
    """Energies and gradients of one batch."""

    values: dict[int | None, Tensor]  #: layer (None: not read at a layer): E [batch, position] float32
    gradients: dict[int, Tensor]  #: layer: ∂E/∂x [batch, position, d_model] float32; 0 where E does not reach
    #: layer: KL(p‖q) [batch, position] float32, nats, of the model's own distribution p and the q that E reads there
    divergences: Mapping[int, Tensor] = {}


class Energy(ABC):
    """A provider; derive from it."""

    name: str  #: the part of a column's name: small letters, digits and _
    units: str
    version: int  #: enters a run's identity: raise it when numbers change
    at_layers: bool  #: whether E is read at each hooked layer (else once, at the model's output)

    @property
    def identity(self) -> int | str:
        """What a run's identity holds of this energy: its version, and whatever else its numbers depend on."""
        return self.version

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:  # noqa: B027 - nothing to refuse
        """Raises UsageError where the energy is not defined for a model at these layers; by default it always is."""

    @abstractmethod
    def read(self, forward: ForwardPass) -> Reading:
        """Energies and gradients of a batch; called while the batch's graph is alive."""


class NegativeLogLikelihood(Energy):
    """E_t = −log p(x_{t+1} | x_≤t) of the model's own output."""

    name = "nll"
    units = "nats"
    version = 1
    at_layers = False

    def read(self, forward: ForwardPass) -> Reading:
        layers = list(forward.residuals)
        residuals = [forward.residuals[layer] for layer in layers]
        below = torch.autograd.grad(forward.hidden, residuals, forward.output.gradients)
        return Reading(
            {None: forward.output.values}, {layer: g.float() for layer, g in zip(layers, below, strict=True)}
        )


class LogitLens(Energy):
    """E_t = −log softmax(W_U·norm_f(x_t))[x_{t+1}] at each hooked layer; 0 at excluded tokens, where it is not read.

    The divergence KL(p‖q) of its distribution q from the model's own p comes with it, for an inner product a token
    (`unembedding.divergence`).
    """

    name = "logit_lens"
    units = "nats"
    version = 1
    at_layers = True

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        divergences = {}
        for layer, residual in forward.residuals.items():
            read = forward.included[layer] & forward.has_next
            values[layer] = torch.zeros(forward.tokens.shape)
            divergences[layer] = torch.zeros(forward.tokens.shape)
            gradients[layer] = torch.zeros(residual.shape)
            with torch.enable_grad():
                x = residual.detach()[read].requires_grad_(True)
                hidden = forward.model.final_norm(self.translated(layer, x))
            with torch.no_grad():
                energies, at_hidden = next_token_nll(forward.model, hidden, forward.next_tokens[read])
            (gradient,) = torch.autograd.grad(hidden, x, at_hidden)
            values[layer][read] = energies.float()
            divergences[layer][read] = divergence(
                (energies, hidden.detach()),
                (forward.output.values[read], forward.hidden[read].detach(), forward.output.gradients[read]),
            )
            gradients[layer][read] = gradient.float()
        return Reading(values, gradients, divergences)

    def translated(self, layer: int, x: Tensor) -> Tensor:
        """What the model's last steps read in place of residuals x [n, d_model] of a layer: x itself."""
        return x


class TunedLens(LogitLens):
    """The same after an affine map of each layer, fitted to have it read as the last layer (`tuned_lens`)."""

    name = "tuned_lens"
    version = 1

    def __init__(self, translators: Translators) -> None:
        self.translators = translators

    @property
    def identity(self) -> str:
        return f"{self.version}-{self.translators.sha256}"

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        self.translators.check(model, layers)

    def translated(self, layer: int, x: Tensor) -> Tensor:
        return self.translators.of(layer)(x)


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


#: The energies that the package brings, in the order in which they are listed.
ENERGIES: dict[str, type[Energy]] = {
    energy.name: energy for energy in (NegativeLogLikelihood, LogitLens, TunedLens, AttentionEnergy, Hopfield)
}

#: Of an energy: it becomes a part of a column's name.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


def make_energies(names: Sequence[str], translators: Callable[[], Translators] | None = None) -> list[Energy]:
    """Providers by name, without repetition; `package.module:Class` is one from outside the package.

    translators: gives the tuned lens' maps; called when that energy is among them.
    Raises UsageError for an unknown energy, and for one from outside that cannot be imported or is none.
    """
    if not names:
        raise UsageError(f"No energy was given: choose among {', '.join(ENERGIES)} (--energies).")
    energies: dict[str, Energy] = {}
    for name in dict.fromkeys(names):
        if ":" in name:
            energy = _imported(name)
        elif name not in ENERGIES:
            raise UsageError(
                f"There is no energy {name!r}: choose among {', '.join(ENERGIES)}, or name a class of your own as "
                "package.module:Class (--energies)."
            )
        elif name == TunedLens.name:
            if translators is None:
                raise UsageError("tuned_lens needs fitted maps: leave it out (--energies).")
            energy = TunedLens(translators())
        else:
            energy = ENERGIES[name]()
        if energy.name in energies:
            raise UsageError(f"Two energies are called {energy.name}: leave one out (--energies).")
        energies[energy.name] = energy
    return list(energies.values())


def _imported(name: str) -> Energy:
    """An energy from outside the package, by `package.module:Class`."""
    module_name, _, class_name = name.partition(":")
    try:
        energy = getattr(importlib.import_module(module_name), class_name)()
    except Exception as error:  # whatever the other code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"The energy {name} cannot be made ({reason}): is its module on PYTHONPATH?") from error
    if not isinstance(energy, Energy):
        raise UsageError(f"{name} is no energy: derive it from energy_lens.ingest.energies.Energy.")
    if lacking := [part for part in ("name", "units", "version", "at_layers") if not hasattr(energy, part)]:
        raise UsageError(f"The energy {name} has no {lacking[0]}: say it in the class.")
    if energy.name in ENERGIES or not _NAME.fullmatch(str(energy.name)):
        raise UsageError(
            f"The energy {name} is called {energy.name!r}: give it a name of its own, of at most 31 small letters, "
            "digits and _."
        )
    return energy


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
