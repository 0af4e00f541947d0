"""Single-feature interventions: contexts and edits in, measured and predicted changes of the loss out.

  x_t ← x_t + (a' − a)·s_t·d_j

a is the feature's activation in the unpatched pass, a' what the edit makes of it; the SAE's error term stays, since
only the difference is added. Excluded tokens are never edited. Blocks up to the hooked one are not run again.

Measured, over every token s of the context that has a next one: ΔE_s = E_s(patched) − E_s, KL(p_s‖p'_s), and whether
the likeliest next token is another. Tokens before the first edited one cannot change and are not looked at.

Predicted on the same tokens, with δ_t = (a' − a)·s_t and g = −⟨∇E, d⟩, h = −⟨probe's gradient, d⟩ (`curvature`):

  first_order         −Σ_t δ·g                                          attribution patching (Nanda 2023)
  curvature           first_order + ½ Σ_t δ²·h², the mean of the probes; `_context`: ½ (Σ_t δ·h)² instead
  labels              the same with labels sampled from the model in place of signs (Fisher information); `_context`
  norm_curvature      as curvature, each token's term times exp(2·‖δd‖/‖x‖): the norms that follow see what is left
  aligned             first_order + ρ·½ Σ_t δ²·‖∇h‖²·exp(‖δd‖/‖x‖), ‖∇h‖ the length of the probe's gradient and
                      ρ the feature's mean share of it, h²/‖∇h‖². That mean does not hang on the few tokens of largest
                      curvature, so it is far less noisy than Σ δ²·h²; it is taken over all contexts, drawn towards the
                      mean of all features as by PRIOR_TOKENS tokens (`alignment`)
  blended             as aligned, with half of first_order taken where a third of what all features add is taken away,
                      and one probe less: no more backward passes (for ablations)
  empirical_fisher    ½ (Σ_t δ·g)²                                      Fisher pruning (Theis et al. 2018)
  integrated          −Σ_t δ·ḡ, ḡ the mean gradient while all features are taken away together (for ablations)
  hessian             first_order + ½ δᵀ(∂²E/∂x²)δ, a Hessian-vector product for each patch
  own_path            −Σ_t δ·ḡ, ḡ the mean gradient along this patch's own path: as dear as the patch itself
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.interventions.edits import Edit, Outcome, Patches
from energy_lens.analysis.interventions.predictors import ALIGNED_GROWTH, BLENDED_SHARE, JOINT_POINTS, midpoints
from energy_lens.ingest.contexts import padded, special_ids
from energy_lens.ingest.energies.curvature import Draws, growth, label_draws, probe_generator, read_probes, sign_draws
from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.inclusion import INCLUDED, exclusion_reasons
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.model.unembedding import divergence, next_token_nll, next_token_outcomes
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder, weighted_rows


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
        later: Sequence[int] = (),
    ) -> None:
        """Run the contexts.

        contexts: vocabulary ids; ids: of the contexts, which with the seed choose their probes' draws.
        n_probes: probes of each kind. later: layers above whose residuals are kept, of the contexts and of patches.
        """
        assert sae.norm_median is not None
        self.model, self.sae, self.later = model, sae, tuple(later)
        self.tokens, self.lengths = padded(contexts)
        excluded = special_ids(model)

        def included(_layer: int, norms: Tensor) -> Tensor:
            reasons = exclusion_reasons(norms, sae.norm_median or 0.0, self.lengths, self.tokens, excluded)
            return torch.from_numpy(reasons == INCLUDED)

        forward = run_forward(model, {sae.layer: sae}, self.tokens, self.lengths, included)
        self.has_next, self.next_tokens = forward.has_next, forward.next_tokens
        self.included = forward.included[sae.layer]
        self.activations = forward.activations[sae.layer]
        self.scales = forward.scales[sae.layer]
        self.probes = {
            name: read_probes(forward, n_probes, [probe_generator(seed, id_) for id_ in ids], draw)[sae.layer]
            for name, draw in _DRAWS.items()
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
        own_losses, top[where] = next_token_outcomes(self.model, hidden[where], targets[where])
        losses[where] = own_losses.float()
        return losses, top

    def activation(self, feature: int) -> Tensor:
        """a of a feature, [context, position]."""
        values, indices = self.activations
        return (values * (indices == feature)).sum(-1).view(self.tokens.shape)

    @cached_property
    def reconstruction(self) -> Tensor:
        """Σ_j a_j·s_t·d_j, what all features together add to x [context, position, d_model]."""
        features = weighted_rows(self.activations, self.sae.W_dec).view(self.x.shape)
        return features if self.scales is None else features * self.scales[..., None]

    @cached_property
    def joint_gradient(self) -> Tensor:
        """Mean ∂E/∂x while all features are taken away together, at midpoints of the way."""
        return torch.stack([self._gradient_without(share) for share in midpoints(JOINT_POINTS)]).mean(0)

    @cached_property
    def blended_gradient(self) -> Tensor:
        """Mean of ∂E/∂x at x and where a third of all features' contribution is taken away."""
        return (self.gradient + self._gradient_without(BLENDED_SHARE)) / 2

    def _gradient_without(self, share: float) -> Tensor:
        """∂E/∂x with a share of what all features add to x taken away."""
        x = self.x - (share * self.reconstruction).to(self.x.dtype)
        return self._gradient_at(x, torch.arange(len(self.tokens)))

    # -- patches

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
        context = patches.context
        hidden, residuals = self._hidden_and_later(self._patched(patches), context)
        looked_at = self.has_next[context] & (patches.edited.cumsum(1) > 0)
        losses, top = self._outcomes(hidden, looked_at, context)
        own = (self.losses[context], self.hidden[context], self.loss_gradients[context])
        kl = torch.zeros(looked_at.shape)
        kl[looked_at] = divergence(
            (losses[looked_at], hidden[looked_at]),
            (own[0][looked_at], own[1][looked_at], own[2][looked_at]),
        )
        # The difference of two equal distributions may come out a rounding error below 0.
        return Outcome(
            torch.where(looked_at, losses - own[0], 0), kl.clamp_min(0), looked_at & (top != self.top[context]),
            looked_at, residuals,
        )  # fmt: skip

    def _patched(self, patches: Patches, share: float = 1.0) -> Tensor:
        """x with a share of the displacement, [n, position, d_model]."""
        return self.x[patches.context] + (share * patches.displacement).to(self.x.dtype)

    def _hidden_above(self, x: Tensor, context: Tensor) -> Tensor:
        return self.model.hidden_above(self.tokens[context], self.sae.layer, x)

    def _hidden_and_later(self, x: Tensor, context: Tensor) -> tuple[Tensor, Mapping[int, Tensor]]:
        """The final norm's output, and the residuals of the later layers that were asked for."""
        if not self.later:
            return self._hidden_above(x, context), {}
        with residual_stream(self.model, self.later) as residuals:
            return self._hidden_above(x, context), residuals

    def _gradient_at(self, x: Tensor, context: Tensor) -> Tensor:
        """∂E/∂x [n, position, d_model] float32 at residuals of contexts."""
        x = x.detach().requires_grad_(True)
        has_next = self.has_next[context]
        with torch.enable_grad():
            hidden = self._hidden_above(x, context)
        at_hidden = torch.zeros_like(hidden)
        _, at_hidden[has_next] = next_token_nll(
            self.model, hidden[has_next].detach(), self.next_tokens[context][has_next]
        )
        (gradient,) = torch.autograd.grad(hidden, x, at_hidden)
        return gradient.float()

    # -- predictions

    @torch.no_grad()
    def predict(self, patches: Patches) -> dict[str, Tensor]:
        """Predicted ΔE of each patch by method, [n], nats, and what a prediction may be measured against."""
        context, change = patches.context, patches.change.double()

        def along(vectors: Tensor) -> Tensor:
            """⟨v, direction⟩ [..., n, position] for v [..., context, position, d_model], float64."""
            products = torch.einsum("...npd,nd->...np", vectors[..., context, :, :], patches.direction)
            return products.double()

        slope = along(self.gradient)
        first = (change * slope).sum(-1)
        found = {
            "first_order": first,
            "empirical_fisher": first.square() / 2,
            "integrated": (change * along(self.joint_gradient)).sum(-1),
            "change_times_gradient": (change * slope).abs().sum(-1),
        }
        for name, probes in self.probes.items():
            moved = change * along(probes)  # [probe, n, position]
            found[name] = first + moved.square().sum(-1).mean(0) / 2
            found[f"{name}_context"] = first + moved.sum(-1).square().mean(0) / 2
            if name == "curvature":
                size = patches.direction.norm(dim=1)[:, None] * patches.change.abs() / self.x[context].norm(dim=-1)
                grown = growth(size.double())
                found["norm_curvature"] = first + (moved.square().mean(0) / 2 * grown).sum(-1)
                found |= self._aligned("aligned", probes, patches, along(probes), size.double())
                if len(probes) > 1:
                    found["blended_gradient"] = (change * along(self.blended_gradient)).sum(-1)
                    found |= self._aligned("blended", probes[:-1], patches, along(probes[:-1]), size.double())
        return found

    def _aligned(self, name: str, probes: Tensor, patches: Patches, h: Tensor, size: Tensor) -> dict[str, Tensor]:
        """The parts of `aligned` and `blended` that add up over contexts, [n].

        scale: ½ Σ δ²·‖∇h‖²·growth; share: Σ over edited tokens of h²/‖∇h‖², the mean of the probes.
        """
        squares = probes.double().square().sum(-1)[:, patches.context].clamp_min(1e-30)  # [probe, n, position]
        terms = patches.change.double().square() * squares.mean(0) * growth(size, ALIGNED_GROWTH)
        shares = (h.square() / squares).mean(0) * patches.edited
        return {f"{name}_scale": terms.sum(-1) / 2, f"{name}_share": shares.sum(-1)}

    def predict_along_path(self, patches: Patches, points: int) -> Tensor:
        """`own_path` [n], nats: a forward and a backward pass at each of `points` midpoints of the patch's path."""
        total = torch.zeros(len(patches), dtype=torch.float64)
        for share in midpoints(points):
            gradient = self._gradient_at(self._patched(patches, share), patches.context)
            total += (gradient.double() * patches.displacement.double()).sum((1, 2))
        return total / points

    def predict_by_hessian(self, patches: Patches) -> Tensor:
        """`hessian` [n], nats: the exact second-order expansion, by one more backward pass through the gradient."""
        context, displacement = patches.context, patches.displacement.to(self.x.dtype)
        has_next = self.has_next[context]
        with torch.enable_grad():
            x = self.x[context].detach().requires_grad_(True)
            hidden = self._hidden_above(x, context)
            logits = self.model.unembedding(hidden[has_next])
            loss = torch.nn.functional.cross_entropy(
                logits.float(), self.next_tokens[context][has_next], reduction="sum"
            )
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            (curved,) = torch.autograd.grad((gradient * displacement).sum(), x)
        per_token = (gradient.detach() + curved / 2).double() * displacement.double()
        return per_token.sum((1, 2))


#: Kinds of probes, by the name of the prediction that they give.
_DRAWS: dict[str, Draws] = {"curvature": sign_draws, "labels": label_draws}
