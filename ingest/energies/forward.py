"""Token ids in, one forward pass out, with all that energies read from it: residuals, activations, losses, graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import Site, tensors_at
from energy_lens.ingest.model.unembedding import next_token_nll
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder


@dataclass
class ForwardPass:
    """What an energy can read: a batch of contexts after the model ran on it."""

    model: LanguageModel
    tokens: Tensor  #: [batch, position] int64, padded on the right
    lengths: Tensor  #: [batch] int64, tokens of each context
    residuals: Mapping[
        int, Tensor
    ]  #: layer: x [batch, position, d_model] at its SAE's `site_out`, as precise as the model
    inputs: Mapping[int, Tensor]  #: layer: what its SAE reads [batch, position, d_in]: x itself, but for transcoders
    hidden: Tensor  #: final norm's output [batch, position, d_model], with a graph down to the lowest layer
    included: Mapping[int, Tensor]  #: layer: [batch, position] mask of the tokens whose activations are read
    activations: Mapping[int, SparseActivations]  #: layer: [batch·position, K], empty at excluded tokens
    saes: Mapping[int, SparseAutoencoder]
    scales: Mapping[int, Tensor | None]  #: layer: s_t [batch, position], what a unit of a feature is there; None: 1
    others: Mapping[Site, Tensor] = field(default_factory=dict)  #: further places that were asked for

    @property
    def places(self) -> Tensor:
        """[batch, position] mask of what is no padding."""
        return torch.arange(self.tokens.shape[1])[None] < self.lengths[:, None]

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


def run_forward(
    model: LanguageModel,
    saes: Mapping[int, SparseAutoencoder],
    tokens: Tensor,
    lengths: Tensor,
    included: Callable[[int, Tensor], Tensor],
    others: Sequence[Site] = (),
) -> ForwardPass:
    """Run a batch with a graph above the lowest place where an SAE writes, and encode its included tokens.

    included: (layer, norms of what is read [batch, position]) → mask [batch, position] of the tokens whose activations
        are read. others: further places whose tensors are kept.
    """
    layers = sorted(saes)
    written = {layer: saes[layer].site_out for layer in layers}
    # By what they are for: a place may be read by one SAE, and written by it or another.
    wanted: dict[tuple[str, Any], Site] = {("written", layer): site for layer, site in written.items()}
    wanted |= {("read", layer): saes[layer].site for layer in layers} | {("other", site): site for site in others}
    with torch.enable_grad(), tensors_at(model, wanted, min(written.values())) as found:
        hidden = model.hidden(tokens)
    residuals = {layer: found["written", layer] for layer in layers}
    inputs = {layer: found["read", layer].detach() for layer in layers}
    masks = {}
    activations = {}
    scales = {}
    with torch.no_grad():
        for layer in layers:
            x = inputs[layer].float()
            masks[layer] = included(layer, x.norm(dim=-1))
            x = x.view(-1, x.shape[-1])
            activations[layer] = saes[layer].encode(x, masks[layer].view(-1))
            scale = saes[layer].token_scales(x)
            scales[layer] = None if scale is None else scale.view(tokens.shape)
    return ForwardPass(
        model, tokens, lengths, residuals, inputs, hidden, masks, activations, saes, scales,
        {site: found["other", site].detach() for site in others},
    )  # fmt: skip
