"""The energy `nll`: the model's own surprise at the next token, nats.

E_t = −log p(x_{t+1} | x_≤t). Its gradient at x_t is that of Σ_s E_s over every s of the context that has a next token:
what token t does to all later predictions. One backward pass serves all layers.
"""

from __future__ import annotations

import torch

from energy_lens.ingest.energies.base import Energy, Reading
from energy_lens.ingest.energies.forward import ForwardPass


class NegativeLogLikelihood(Energy):
    """E_t = −log p(x_{t+1} | x_≤t) of the model's own output."""

    name = "nll"
    units = "nats"
    version = 1
    at_layers = False
    is_loss = True

    def read(self, forward: ForwardPass) -> Reading:
        layers = list(forward.residuals)
        residuals = [forward.residuals[layer] for layer in layers]
        below = torch.autograd.grad(forward.hidden, residuals, forward.output.gradients)
        return Reading(
            {None: forward.output.values}, {layer: g.float() for layer, g in zip(layers, below, strict=True)}
        )
