"""The energies `logit_lens` and `tuned_lens`: the surprise of a hooked layer that is read as if it were the last, nats.

logit_lens  E_t = −log softmax(W_U·norm_f(x_t))[x_{t+1}]: the model's own unembedding read early (nostalgebraist 2020).
tuned_lens  The same after a fitted affine map of x_t (Belrose et al. 2023, arXiv 2303.08112; `translators`), its
            Jacobian in the gradient.

Both are local: token t's energy moves with x_t alone. At the last block logit_lens is nll.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from energy_lens.ingest.energies.base import Energy, Reading
from energy_lens.ingest.energies.forward import ForwardPass
from energy_lens.ingest.energies.translators import Translators
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import RESIDUAL, Site
from energy_lens.ingest.model.unembedding import divergence, next_token_nll


class LogitLens(Energy):
    """E_t = −log softmax(W_U·norm_f(x_t))[x_{t+1}] at each hooked layer; 0 at excluded tokens, where it is not read.

    The divergence KL(p‖q) of its distribution q from the model's own p comes with it, for an inner product a token
    (`unembedding.divergence`).
    """

    name = "logit_lens"
    units = "nats"
    version = 1
    at_layers = True
    is_loss = True
    points: tuple[str, ...] | None = RESIDUAL

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
                hidden = forward.model.final_norm(self.translated(forward.saes[layer].site_out, x))
            with torch.no_grad():
                energies, at_hidden = next_token_nll(forward.model, hidden, forward.next_tokens[read])
            (gradient,) = torch.autograd.grad(hidden, x, at_hidden)
            values[layer][read] = energies.float()
            divergences[layer][read] = divergence(
                forward.model,
                (energies, hidden.detach()),
                (forward.output.values[read], forward.hidden[read].detach(), forward.output.gradients[read]),
            )
            gradients[layer][read] = gradient.float()
        return Reading(values, gradients, divergences)

    def translated(self, site: Site, x: Tensor) -> Tensor:
        """What the model's last steps read in place of residuals x [n, d_model] at a place: x itself."""
        return x


class TunedLens(LogitLens):
    """The same after an affine map of each layer, fitted to have it read as the last layer (`training.lenses`)."""

    name = "tuned_lens"
    version = 1
    of_block_outputs = True  # of which its maps are

    def __init__(self, translators: Translators) -> None:
        self.translators = translators

    @property
    def identity(self) -> str:
        return f"{self.version}-{self.translators.sha256}"

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        self.translators.check(model, layers)

    def translated(self, site: Site, x: Tensor) -> Tensor:
        assert site.output_of is not None
        return self.translators.of(site.output_of)(x)
