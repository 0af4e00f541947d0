"""The energy `hopfield`: the Energy Transformer's Hopfield energy with the SAE as memories, squared activation units.

E_t = −½ Σ_j a_{t,j}² (Hoover et al. 2023, arXiv 2302.07253, eq. 7). Its gradient goes through the SAE's own encoder and
normalisation, so it is aligned with active features by construction: the positive control.
"""

from __future__ import annotations

from torch import Tensor

from energy_lens.ingest.energies.base import Energy, Reading
from energy_lens.ingest.energies.forward import ForwardPass


class Hopfield(Energy):
    """E_t = −½ Σ_j a_{t,j}² at each hooked layer; 0 at excluded tokens, whose activations are not read."""

    name = "hopfield"
    units = "squared activation units"
    version = 1
    at_layers = True
    is_control = True
    of_activations = True

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        shape = forward.tokens.shape
        for layer, activations in forward.activations.items():
            values[layer] = -0.5 * activations.values.square().sum(-1).view(shape)
            x = forward.inputs[layer].float().flatten(0, 1)
            gradients[layer] = -forward.saes[layer].encoder_gradient(x, activations).view(*shape, -1)
        return Reading(values, gradients)
