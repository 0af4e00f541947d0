"""A model and token ids in, whether every energy's gradient is the derivative of that energy out.

The gradient is the one that an ingest stores: of a pass with hooks, at all layers at once. The derivative is taken from
energies alone, of passes that begin above the layer with x displaced along random directions δ, by five points:

  dE/dh ≈ (E(x − 2hδ) − 8·E(x − hδ) + 8·E(x + hδ) − E(x + 2hδ)) / 12h        (error of order h⁴)

and the two are compared in units of √(Σ_t ‖g_t‖²‖δ_t‖²/d): what ⟨g, δ⟩ comes to along a random direction. Where they
differ a smaller h is tried: a step may lead past a kink, or into another expert, and a wrong gradient is wrong at each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from energy_lens.analysis.model_check.finding import Finding, inapplicable, judged
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.energies.forward import ForwardPass, run_forward
from energy_lens.ingest.energies.registry import ENERGIES, choose_translators, make_energies
from energy_lens.ingest.model.language_model import COARSE, LanguageModel
from energy_lens.ingest.model.resolving import find_parts
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: Tokens of the context whose energies are differentiated, and directions in which.
GRADIENT_TOKENS, DIRECTIONS = 16, 2

#: h, where ‖δ_t‖ = ‖x_t‖, one after the other.
STEPS = (2e-2, 4e-3, 8e-4, 1.6e-4)

#: Where x is displaced, in steps, and the weight of E there.
STENCIL = {-2.0: 1 / 12, -1.0: -8 / 12, 1.0: 8 / 12, 2.0: -1 / 12}

#: How far gradient and derivative may be apart, by the precision of the passes; models compute norms and softmaxes in
#: float32 whatever theirs is.
TOLERANCES = {torch.float64: 2e-2, torch.float32: 5e-2}

#: Models of so many parameters at most are copied to float64 for this.
FLOAT64_PARAMETERS = 50_000_000

#: Features of the SAE with random rows that the energy hopfield is read with.
FEATURES = 64


def gradients(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> Iterator[Finding]:
    """A finding for each energy that the package brings. tokens: [context, position], of which the first is read."""
    tokens = tokens[:1, :GRADIENT_TOKENS]
    if model.dtype in COARSE:
        for name in ENERGIES:
            yield inapplicable(f"gradient of {name}", "Differences of energies need --dtype float32.")
        return
    exact = _in_float64(model, tokens)
    energies: dict[str, Energy] = {}
    for name in ENERGIES:
        try:
            (energy,) = make_energies([name], lambda: choose_translators(model.name))
            energy.check(exact, layers)
            energies[name] = energy
        except UsageError as error:  # it says that it is not defined for this model, or has no maps
            yield inapplicable(f"gradient of {name}", str(error))
    saes = {layer: _random_sae(layer, model.d_model) for layer in layers}
    lengths = torch.full((1,), tokens.shape[1])
    forward = run_forward(exact, saes, tokens, lengths, lambda _layer, norms: _included(norms))
    found = {name: energy.read(forward).gradients for name, energy in energies.items()}
    worst = dict.fromkeys(energies, 0.0)
    for layer, sae in saes.items():
        at_layer = {name: gradient[layer].to(exact.dtype) for name, gradient in found.items()}
        apart = _apart(exact, energies, tokens, sae, forward.residuals[layer].detach(), at_layer)
        worst = {name: max(worst[name], apart[name]) for name in worst}
    listed = ", ".join(map(str, saes))
    for name in energies:
        yield judged(
            f"gradient of {name}", f"after block {listed}: differences of the energy along {DIRECTIONS} directions",
            worst[name], TOLERANCES[exact.dtype],
            f"The gradient of {name} is not the derivative of that energy: leave it out (--energies) and report it.",
        )  # fmt: skip


@torch.no_grad()
def _apart(
    model: LanguageModel,
    energies: Mapping[str, Energy],
    tokens: Tensor,
    sae: SparseAutoencoder,
    x: Tensor,
    gradients: Mapping[str, Tensor],
) -> dict[str, float]:
    """How far gradients [1, position, d_model] at x are from derivatives of the energies, at the worst."""
    directions = torch.randn(DIRECTIONS, *x.shape[1:], generator=torch.Generator().manual_seed(sae.layer)).to(x.dtype)
    directions *= x.norm(dim=-1, keepdim=True) / directions.norm(dim=-1, keepdim=True)
    weights = torch.tensor(list(STENCIL.values()), dtype=torch.float64)
    least = {name: torch.full((DIRECTIONS,), torch.inf, dtype=torch.float64) for name in energies}
    # An energy whose gradient is that of a token's own E is read where one token moves, another for each direction.
    moved = 1 + torch.arange(DIRECTIONS) * (x.shape[1] - 2) // DIRECTIONS
    of_one = torch.zeros(DIRECTIONS, x.shape[1], 1, dtype=x.dtype)
    of_one[torch.arange(DIRECTIONS), moved] = 1
    for step in STEPS:
        for own in sorted({energy.of_own_token for energy in energies.values()}):
            along = directions * of_one if own else directions
            displaced = torch.cat([x + at * step * along for at in STENCIL])  # [place · direction, position, d_model]
            read = {name: energy for name, energy in energies.items() if energy.of_own_token == own}
            for name, values in _energies(model, read, tokens, sae, displaced).items():
                values = values.unflatten(0, (len(STENCIL), DIRECTIONS))
                values = values[:, torch.arange(DIRECTIONS), moved] if own else values.sum(-1)
                gradient = gradients[name] * of_one if own else gradients[name]
                sizes = gradient.norm(dim=-1) * x.norm(dim=-1)
                size = sizes.square().sum(-1).div(model.d_model).sqrt().clamp_min(1e-12)
                apart = (weights @ values / step - (gradient * along).sum((1, 2))).abs() / size
                least[name] = torch.minimum(least[name], apart.nan_to_num(torch.inf))
        if all(float(apart.max()) <= TOLERANCES[model.dtype] for apart in least.values()):
            break
    return {name: float(apart.max()) for name, apart in least.items()}


def _energies(
    model: LanguageModel, energies: Mapping[str, Energy], tokens: Tensor, sae: SparseAutoencoder, x: Tensor
) -> dict[str, Tensor]:
    """E [n, position], for residuals x [n, position, d_model] in place of those of the SAE's layer."""
    layer, tokens = sae.layer, tokens.expand(len(x), -1)
    lengths = torch.full((len(x),), tokens.shape[1])
    included = _included(x.norm(dim=-1))
    activations = sae.encode(x.float().flatten(0, 1), included.flatten())
    hidden = model.hidden_above(tokens, layer, x)
    with torch.enable_grad():
        # Providers go back along a graph; their gradients are not wanted here, so that a graph of nothing will do.
        x = x.clone().requires_grad_(True)
        hidden = hidden + 0 * x.sum()
    forward = ForwardPass(
        model, tokens, lengths, {layer: x}, {layer: x.detach()}, hidden, {layer: included}, {layer: activations},
        {layer: sae}, {layer: None},
    )  # fmt: skip
    return {name: next(iter(energy.read(forward).values.values())).double() for name, energy in energies.items()}


def _included(norms: Tensor) -> Tensor:
    """All tokens but the first and the last, for norms [context, position]."""
    included = torch.ones(norms.shape, dtype=torch.bool)
    included[:, [0, -1]] = False
    return included


def _random_sae(layer: int, d_model: int) -> SparseAutoencoder:
    """An SAE that has no jumps, so that its energy has a derivative wherever one looks."""
    rows = torch.randn(FEATURES, d_model, generator=torch.Generator().manual_seed(layer)) / d_model**0.5
    zeros = torch.zeros(FEATURES)
    return SparseAutoencoder(
        layer=layer, k=None, W_enc=rows.T.contiguous(), b_enc=zeros, W_dec=rows, b_dec=torch.zeros(d_model),
        architecture="standard", norm_median=1.0,
    )  # fmt: skip


def _in_float64(model: LanguageModel, tokens: Tensor) -> LanguageModel:
    """A copy of the model in float64; the model itself where that is too large, or where its code does not know it."""
    if model.facts()["n_parameters"] > FLOAT64_PARAMETERS:
        return model
    try:
        exact = find_parts(model.name, copy.deepcopy(model.module).double(), model.tokenizer, model.sha256)
        with torch.no_grad():
            exact.hidden(tokens)
    except (ElwError, RuntimeError, TypeError, ValueError):
        return model
    exact.bos = model.bos
    return exact
