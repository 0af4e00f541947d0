"""A forward pass in, curvature probes out: what a first-order prediction of an edit misses, for every feature at once.

An edit δ of the residual changes the model's output, and the loss with it, even where the gradient is 0. To second
order, without the curvature of the network itself (Gauss–Newton):

  ΔE ≈ ⟨∇E, δ⟩ + ½ δᵀHδ,  H = Σ_s J_sᵀ W_Uᵀ (diag p_s − p_s p_sᵀ) W_U J_s

J_s maps a change of the residual to one of the final norm's output at token s. A probe draws signs ε over the
vocabulary at every token, puts u_s = √p_s⊙ε − p_s·⟨√p_s, ε⟩ in place of the loss's gradient by the logits, and goes
back once. E[u uᵀ] = diag p − ppᵀ, so h = −⟨probe's gradient, d⟩ has E[h²] = dᵀHd for every decoder row d at once.
Signs are a lower-variance draw than labels sampled from the model, whose second moment is the same (the Fisher
information).

On a language model that is not enough: an ablation costs twice as much as this predicts, most of all where the edit is
large beside the residual, since the norms that follow divide by what is left. So each token's term is multiplied by
`growth`, exp(2·‖δ‖/‖x‖). The exponent was chosen on SmolLM2 (docs/how-to/intervene.md says how far it carries).

Sources: optimal brain damage, LeCun et al. 1989; Fisher pruning, Theis et al. 2018 (arXiv 1801.05787); Gauss–Newton
by random signs, Hutchinson 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from energy_lens.ingest.energies.forward import ForwardPass
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.unembedding import label_draws, sign_draws

__all__ = ["Draws", "growth", "label_draws", "probe_generator", "read_probes", "sign_draws"]

#: (model, h [n, d_model], draws, generator) → gradients by h [draw, n, d_model].
Draws = Callable[[LanguageModel, Tensor, int, np.random.Generator], Tensor]

#: How fast the curvature grows with the size of an edit relative to the residual's norm.
GROWTH = 2.0


def growth(relative: Tensor, rate: float = GROWTH) -> Tensor:
    """What multiplies a token's ½δᵀHδ for an edit of ‖δ‖/‖x‖ = relative."""
    return (rate * relative).exp()


def probe_generator(seed: int, context_id: int) -> np.random.Generator:
    """The source of a context's signs: the same ones whatever else is in its batch."""
    return np.random.default_rng([seed, context_id])


def read_probes(
    forward: ForwardPass, n_probes: int, generators: Sequence[np.random.Generator], draw: Draws = sign_draws
) -> dict[int, Tensor]:
    """Gradients of probes by layer, [probe, batch, position, d_model] float32; the graph of `forward` stays.

    generators: of each context of the batch; draw: sign_draws, or label_draws.
    """
    layers = list(forward.residuals)
    drawn = torch.zeros(n_probes, *forward.hidden.shape, dtype=forward.hidden.dtype)
    for i, generator in enumerate(generators):
        has_next = forward.has_next[i]
        drawn[:, i, has_next] = draw(forward.model, forward.hidden[i, has_next], n_probes, generator)
    residuals = [forward.residuals[layer] for layer in layers]
    probes = [torch.autograd.grad(forward.hidden, residuals, at_hidden, retain_graph=True) for at_hidden in drawn]
    return {layer: torch.stack([probe[i].float() for probe in probes]) for i, layer in enumerate(layers)}
