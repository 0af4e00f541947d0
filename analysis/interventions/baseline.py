"""A batch of contexts that runs unpatched, once; patches of it in, what they did to the loss out.

  x_t ← x_t + δ_t·direction     (`edits`)

x is what is at the place where the SAE writes; blocks below are not run again. Measured, over every token s of the
context that has a next one: ΔE_s = E_s(patched) − E_s in nats, KL(p_s‖p'_s), and whether the likeliest next token is
another. Tokens before the first edited one cannot change and are not looked at.

The unpatched pass also keeps what predictions of patches are made of: ∂E/∂x, and probes of the curvature, which need
its graph (`predictors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.attractors.landscape import written
from energy_lens.analysis.interventions.edits import Edit, Outcome, Patches
from energy_lens.ingest.contexts import padded, special_tokens
from energy_lens.ingest.energies.curvature import Draws, label_draws, probe_generator, read_probes, sign_draws
from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.inclusion import INCLUDED, exclusion_reasons
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import hidden_from, needs_below
from energy_lens.ingest.model.unembedding import divergence, next_token_nll, next_token_outcomes
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: Kinds of probes, by the name of the prediction that they give.
PROBES: dict[str, Draws] = {"curvature": sign_draws, "labels": label_draws}


class Baseline:
    """A batch of contexts that ran unpatched, with everything that patches of it need."""

    def __init__(
        self,
        model: LanguageModel,
        sae: SparseAutoencoder,
        contexts: Sequence[NDArray[np.int32]],
        ids: Sequence[int],
        n_probes: int = 0,
        seed: int = 0,
        later: Mapping[int, SparseAutoencoder] | None = None,
    ) -> None:
        """Run the contexts.

        contexts: vocabulary ids; ids: of the contexts, which with the seed choose their probes' draws.
        n_probes: probes of each kind. later: SAEs of layers above; what their features make up is kept, of the
            contexts and of patches.
        """
        assert sae.norm_median is not None
        self.model, self.sae, self.later = model, sae, later or {}
        self.tokens, self.lengths = padded(contexts)
        excluded = special_tokens(model)

        def included(_layer: int, norms: Tensor) -> Tensor:
            reasons = exclusion_reasons(norms, sae.norm_median or 0.0, self.lengths, self.tokens, excluded)
            return torch.from_numpy(reasons == INCLUDED)

        below = [sae.site_out.before_block] if needs_below(sae.site_out) else []
        forward = run_forward(model, {sae.layer: sae}, self.tokens, self.lengths, included, below)
        self._below = forward.others.get(sae.site_out.before_block)
        self.has_next, self.next_tokens = forward.has_next, forward.next_tokens
        self.included = forward.included[sae.layer]
        self.activations = forward.activations[sae.layer]
        self.scales = forward.scales[sae.layer]
        self.probes = {
            name: read_probes(forward, n_probes, [probe_generator(seed, id_) for id_ in ids], draw)[sae.layer]
            for name, draw in PROBES.items()
        } if n_probes else {}  # fmt: skip
        self.losses, self.loss_gradients = forward.output.values, forward.output.gradients
        (gradient,) = torch.autograd.grad(forward.hidden, forward.residuals[sae.layer], self.loss_gradients)
        self.gradient = gradient.float()  #: ∂E/∂x [context, position, d_model]
        self.hidden = forward.hidden.detach()
        self.x = forward.residuals[sae.layer].detach()
        self.top = self._outcomes(self.hidden, self.has_next)[1]
        self.residuals: Mapping[int, Tensor] = {}  #: later layer: unpatched x [context, position, d_model]
        if self.later:
            with torch.no_grad():
                _, self.residuals = self._hidden_and_later(self.x, torch.arange(len(self.tokens)))

    def _outcomes(self, hidden: Tensor, where: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses and likeliest next tokens, 0 but `where`, for h [n, position, d_model] of contexts (all, in order)."""
        targets = self.next_tokens if context is None else self.next_tokens[context]
        losses, top = torch.zeros(where.shape), torch.zeros(where.shape, dtype=torch.int64)
        known_losses, top[where] = next_token_outcomes(self.model, hidden[where], targets[where])
        losses[where] = known_losses.float()
        return losses, top

    def activation(self, feature: int) -> Tensor:
        """a of a feature, [context, position]."""
        values, indices = self.activations
        return (values * (indices == feature)).sum(-1).view(self.tokens.shape)

    def patches(self, edit: Edit, feature: int, direction: Tensor | None = None) -> Patches:
        """The patches of an edit in every context of the batch where it edits a token.

        direction: [d_model] in place of the feature's decoder row.
        """
        change, edited = edit.apply(self.activation(feature), self.included)
        if self.scales is not None:
            change = change * self.scales
        context = edited.any(1).nonzero()[:, 0]
        row = self.sae.W_dec[feature] if direction is None else direction
        return Patches(context, row.expand(len(context), -1), change[context], edited[context])

    @torch.no_grad()
    def measure(self, patches: Patches) -> Outcome:
        """Run the blocks above the hooked layer on patched residuals."""
        outcome = self._outcome(patches, *self._hidden_and_later(self.patched(patches), patches.context))
        # The difference of two equal distributions may come out a rounding error below 0.
        return replace(outcome, divergence=outcome.divergence.clamp_min(0))

    @torch.no_grad()
    def measure_dose(self, patches: Patches, dose: float) -> Outcome:
        """The same with the displacement times `dose`, without residuals of later layers.

        KL may come out a rounding error below 0 at a token: to set it to 0 would add to a sum of many small ones.
        """
        return self._outcome(patches, self.hidden_above(self.patched(patches, dose), patches.context), {})

    @torch.no_grad()
    def measure_rounding(self, patches: Patches) -> Outcome:
        """The same without the patches' edits, x of edited tokens moved by one unit in its last place, upwards.

        An unchanged x need not show any rounding, since the same products are rounded alike.
        """
        x = self.x[patches.context]
        moved = torch.nextafter(x, torch.full_like(x, torch.inf))
        x = torch.where(patches.edited[..., None], moved, x)
        return self._outcome(patches, self.hidden_above(x, patches.context), {})

    def _outcome(self, patches: Patches, hidden: Tensor, residuals: Mapping[int, Tensor]) -> Outcome:
        """What patches did, by the final norm's output with them [n, position, d_model]."""
        context = patches.context
        looked_at = self.has_next[context] & (patches.edited.cumsum(1) > 0)
        losses, top = self._outcomes(hidden, looked_at, context)
        before, h, slopes = self.losses[context], self.hidden[context], self.loss_gradients[context]
        kl = torch.zeros(looked_at.shape)
        kl[looked_at] = divergence(
            self.model, (losses[looked_at], hidden[looked_at]), (before[looked_at], h[looked_at], slopes[looked_at])
        )
        changed = looked_at & (top != self.top[context])
        return Outcome(torch.where(looked_at, losses - before, 0), kl, changed, looked_at, residuals)

    def patched(self, patches: Patches, share: float = 1.0) -> Tensor:
        """x with a share of the displacement, [n, position, d_model]."""
        return self.x[patches.context] + (share * patches.displacement).to(self.x.dtype)

    def hidden_above(self, x: Tensor, context: Tensor) -> Tensor:
        """The final norm's output [n, position, d_model] for residuals x of contexts [n]."""
        below = None if self._below is None else self._below[context]
        return hidden_from(self.model, self.tokens[context], self.sae.site_out, x, below)

    def _hidden_and_later(self, x: Tensor, context: Tensor) -> tuple[Tensor, Mapping[int, Tensor]]:
        """The final norm's output, and what the features of the later layers make up (`landscape.written`)."""
        if not self.later:
            return self.hidden_above(x, context), {}
        with written(self.model, self.later) as read:
            hidden = self.hidden_above(x, context)
        return hidden, read()

    def gradient_at(self, x: Tensor, context: Tensor) -> Tensor:
        """∂E/∂x [n, position, d_model] float32 at residuals of contexts."""
        x = x.detach().requires_grad_(True)
        has_next = self.has_next[context]
        with torch.enable_grad():
            hidden = self.hidden_above(x, context)
        at_hidden = torch.zeros_like(hidden)
        _, at_hidden[has_next] = next_token_nll(
            self.model, hidden[has_next].detach(), self.next_tokens[context][has_next]
        )
        (gradient,) = torch.autograd.grad(hidden, x, at_hidden)
        return gradient.float()
