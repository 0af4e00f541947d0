"""An unpatched batch of contexts and patches of it in, the change of the loss that each method predicts out, in nats.

Predicted over the tokens that a patch is measured at (`baseline`), with δ_t = (a' − a)·s_t and g = −⟨∇E, d⟩,
h = −⟨probe's gradient, d⟩ (`curvature`):

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

`aligned` and `blended` are stored in parts that add up over contexts, since ρ is of all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.edits import Patches
from energy_lens.ingest.energies.curvature import growth
from energy_lens.ingest.sae.autoencoder import weighted_rows

#: Names of predictions in the order of the table; hessian and own_path are asked for.
PREDICTORS = (
    "first_order", "norm_curvature", "curvature", "curvature_context", "labels", "labels_context", "empirical_fisher",
    "integrated", "change_times_gradient", "hessian", "own_path",
)  # fmt: skip

#: Parts of the predictions `aligned` and `blended`, which need a sum over all contexts.
PARTS = ("aligned_scale", "aligned_share", "blended_gradient", "blended_scale", "blended_share")

#: Predictions that take features away, so that they are of ablations alone.
ABLATIONS = ("integrated", "blended_gradient", "blended_scale", "blended_share")

#: Points of the joint path along which `integrated` takes its mean gradient, and its backward passes.
JOINT_POINTS = 3

#: Of `blended`: the share of what all features add that is taken away for its second gradient.
BLENDED_SHARE = 1 / 3

#: How fast the curvature of `aligned` and `blended` grows with ‖δ‖/‖x‖, and the weight of the mean of all features.
ALIGNED_GROWTH, PRIOR_TOKENS = 1.0, 10.0


class SharedGradients:
    """Gradients of a batch that the predictions for all its patches share; taken when first asked for, and kept."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline

    @cached_property
    def reconstruction(self) -> Tensor:
        """Σ_j a_j·s_t·d_j, what all features together add to x [context, position, d_model]."""
        baseline = self.baseline
        features = weighted_rows(baseline.activations, baseline.sae.W_dec).view(baseline.x.shape)
        return features if baseline.scales is None else features * baseline.scales[..., None]

    @cached_property
    def joint(self) -> Tensor:
        """Mean ∂E/∂x [context, position, d_model] while all features are taken away together, at midpoints."""
        return torch.stack([self.without(share) for share in midpoints(JOINT_POINTS)]).mean(0)

    @cached_property
    def blended(self) -> Tensor:
        """Mean of ∂E/∂x [context, position, d_model] at x and where a third of what all features add is gone."""
        return (self.baseline.gradient + self.without(BLENDED_SHARE)) / 2

    def without(self, share: float) -> Tensor:
        """∂E/∂x with a share of what all features add to x taken away."""
        baseline = self.baseline
        x = baseline.x - (share * self.reconstruction).to(baseline.x.dtype)
        return baseline.gradient_at(x, torch.arange(len(baseline.tokens)))


@torch.no_grad()
def predict(shared: SharedGradients, patches: Patches) -> dict[str, Tensor]:
    """Predicted ΔE of each patch by method, [n], nats, and what a prediction may be measured against."""
    change = patches.change.double()
    slope = _along(shared.baseline.gradient, patches)
    first_order = (change * slope).sum(-1)
    predictions = {
        "first_order": first_order,
        "empirical_fisher": first_order.square() / 2,
        "integrated": (change * _along(shared.joint, patches)).sum(-1),
        "change_times_gradient": (change * slope).abs().sum(-1),
    }
    slopes = {name: _along(probes, patches) for name, probes in shared.baseline.probes.items()}
    for name, h in slopes.items():
        moved = change * h  # [probe, n, position]
        predictions[name] = first_order + moved.square().sum(-1).mean(0) / 2
        predictions[f"{name}_context"] = first_order + moved.sum(-1).square().mean(0) / 2
    if "curvature" in slopes:
        predictions |= _predict_large(shared, patches, slopes["curvature"], first_order)
    return predictions


def _predict_large(shared: SharedGradients, patches: Patches, h: Tensor, first_order: Tensor) -> dict[str, Tensor]:
    """The predictions [n] in which curvature grows with the size of an edit: norm_curvature, and the parts of others.

    h: of the curvature's probes [probe, n, position]. `blended` spends a backward pass on its second gradient, and so
    has one probe less.
    """
    baseline, change = shared.baseline, patches.change.double()
    probes = baseline.probes["curvature"]
    size = patches.direction.norm(dim=1)[:, None] * patches.change.abs() / baseline.x[patches.context].norm(dim=-1)
    size = size.double()  # ‖δd‖/‖x‖ [n, position]
    grown = (change * h).square().mean(0) / 2 * growth(size)
    predictions = {"norm_curvature": first_order + grown.sum(-1)}
    predictions |= _alignment_parts("aligned", probes, patches, h, size)
    if len(probes) > 1:
        predictions["blended_gradient"] = (change * _along(shared.blended, patches)).sum(-1)
        predictions |= _alignment_parts("blended", probes[:-1], patches, _along(probes[:-1], patches), size)
    return predictions


def _alignment_parts(name: str, probes: Tensor, patches: Patches, h: Tensor, size: Tensor) -> dict[str, Tensor]:
    """The parts of `aligned` and `blended` that add up over contexts, [n].

    scale: ½ Σ δ²·‖∇h‖²·growth; share: Σ over edited tokens of h²/‖∇h‖², the mean of the probes.
    """
    squares = probes.double().square().sum(-1)[:, patches.context].clamp_min(1e-30)  # [probe, n, position]
    terms = patches.change.double().square() * squares.mean(0) * growth(size, ALIGNED_GROWTH)
    shares = (h.square() / squares).mean(0) * patches.edited
    return {f"{name}_scale": terms.sum(-1) / 2, f"{name}_share": shares.sum(-1)}


def _along(vectors: Tensor, patches: Patches) -> Tensor:
    """⟨v, direction⟩ [..., n, position] for v [..., context, position, d_model], float64."""
    products = torch.einsum("...npd,nd->...np", vectors[..., patches.context, :, :], patches.direction)
    return products.double()


def predict_along_path(baseline: Baseline, patches: Patches, points: int) -> Tensor:
    """`own_path` [n], nats: a forward and a backward pass at each of `points` midpoints of the patch's path."""
    total = torch.zeros(len(patches), dtype=torch.float64)
    for share in midpoints(points):
        gradient = baseline.gradient_at(baseline.patched(patches, share), patches.context)
        total += (gradient.double() * patches.displacement.double()).sum((1, 2))
    return total / points


def predict_by_hessian(baseline: Baseline, patches: Patches) -> Tensor:
    """`hessian` [n], nats: the exact second-order expansion, by one more backward pass through the gradient."""
    context, displacement = patches.context, patches.displacement.to(baseline.x.dtype)
    has_next = baseline.has_next[context]
    with torch.enable_grad():
        x = baseline.x[context].detach().requires_grad_(True)
        hidden = baseline.hidden_above(x, context)
        logits = baseline.model.logits(hidden[has_next])
        loss = torch.nn.functional.cross_entropy(
            logits.float(), baseline.next_tokens[context][has_next], reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        (curved,) = torch.autograd.grad((gradient * displacement).sum(), x)
    per_token = (gradient.detach() + curved / 2).double() * displacement.double()
    return per_token.sum((1, 2))


def alignment(share: NDArray[np.float64], n_edited: NDArray[np.float64]) -> NDArray[np.float64]:
    """ρ of features from their sums [..., feature]: shares over edited tokens, drawn towards that of all features."""
    mean = share.sum(-1, keepdims=True) / np.maximum(n_edited.sum(-1, keepdims=True), 1)
    drawn: NDArray[np.float64] = (share + PRIOR_TOKENS * mean) / (n_edited + PRIOR_TOKENS)
    return drawn


def midpoints(n: int) -> Iterator[float]:
    """The midpoints of n equal parts of [0, 1]."""
    return ((i + 0.5) / n for i in range(n))
