"""The energy `native`: what an energy transformer's own next step descends, in the model's own units.

E_t of `ingest.model.energy_landscape` with the gain of the step whose input is read; what comes out of a block is what
goes into the next step. The keys of earlier tokens are held fixed, as the step holds them, and a token's own key is not
in its sum: the gradient at token t is exactly that of E_t by x_t, in closed form and through the norm. What x_t does to
the energies of later tokens, whose keys move with it, is no part of a step, and none of this gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.energies.base import Energy, Reading
from energy_lens.ingest.energies.forward import ForwardPass
from energy_lens.ingest.model.language_model import COARSE, LanguageModel

if TYPE_CHECKING:
    from energy_lens.ingest.model.energy_transformer import EnergyTransformerModel

#: What helps with another model.
REMEDY = "leave native out (--energies)."


class NativeEnergy(Energy):
    """E_t of the step above each hooked layer, at every token."""

    name = "native"
    units = "the model's own units"
    version = 1
    at_layers = True
    of_block_outputs = True  # what goes into the next step
    of_own_token = True

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        _module(model)
        if (last := model.n_layers - 1) in layers:
            raise UsageError(
                f"The native energy after step {last} is that of the next step, and {model.name} has none: leave out "
                "the last layer (--layers) or this energy (--energies)."
            )

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        within = forward.places
        model = self._precise(forward.model)
        for layer, residual in forward.residuals.items():
            below = forward.saes[layer].site_out.output_of
            assert below is not None
            with torch.no_grad():
                x = residual.detach().to(model.dtype)
                energies, gradient = model.energy_and_gradient(below + 1, x)
                values[layer] = torch.where(within, energies, 0).float()
                gradients[layer] = torch.where(within[..., None], gradient, 0).float()
        return Reading(values, gradients)

    def _precise(self, model: LanguageModel) -> EnergyTransformerModel:
        """The model at least in float32: sums of a thousand squares are no work for eight binary digits."""
        module = _module(model)
        if model.dtype not in COARSE:
            return module
        known: dict[str, EnergyTransformerModel] = vars(model)
        if "_precise" not in known:
            known["_precise"] = copy.deepcopy(module).float()
        return known["_precise"]


def _module(model: LanguageModel) -> EnergyTransformerModel:
    # Only with such a model: transformers takes a second to import, and whoever ingests imports all energies.
    from energy_lens.ingest.model.energy_transformer import energy_transformer_in

    return energy_transformer_in(model, REMEDY)
