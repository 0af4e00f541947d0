"""The energy `attention`: the Energy Transformer's attention energy of the next block, nats.

E_t = −Σ_h logsumexp_{s≤t}(q_t·k_s·scale) (Hoover et al. 2023, arXiv 2302.07253, eq. 3; HAMUX), times its β, read at
that block's input: its norm, its projections, its positions. Its gradient is of Σ_t E_t, so x_t counts as a query and
as a key of later tokens. A pretrained model does not descend it (W_O·W_V is not W_Qᵀ): it is evaluated, not minimised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.energies.base import Energy, Reading
from energy_lens.ingest.energies.forward import ForwardPass
from energy_lens.ingest.model.attention import AttentionInputs
from energy_lens.ingest.model.language_model import LanguageModel


class AttentionEnergy(Energy):
    """E_t = −Σ_h logsumexp_{s≤t}(q_t·k_s·scale) of the block above each hooked layer, at every token."""

    name = "attention"
    units = "nats"
    version = 1
    at_layers = True
    of_block_outputs = True  # what goes into the next block

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        if (last := model.n_layers - 1) in layers:
            raise UsageError(
                f"The attention energy of layer {last} is that of the next block, and {model.name} has none: "
                "leave out the last layer (--layers) or this energy (--energies)."
            )
        tokens = model.any_tokens(1, 2)
        for layer in layers:  # which raises for a model whose queries and keys cannot be read, before the work
            model.attention_inputs(tokens, layer, torch.zeros(1, 2, model.d_model, dtype=model.dtype))

    def read(self, forward: ForwardPass) -> Reading:
        values: dict[int | None, Tensor] = {}
        gradients = {}
        within = forward.places
        for layer, residual in forward.residuals.items():
            below = forward.saes[layer].site_out.output_of
            assert below is not None
            with torch.enable_grad():
                x = residual.detach().requires_grad_(True)
                scores = attention_scores(forward.model.attention_inputs(forward.tokens, below, x))
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
