"""Where tokens settle on an energy transformer's own landscape, and what a feature does to that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from energy_lens.analysis.native.settling import Landscapes, behind_last_step, settle_contexts
from energy_lens.ingest.model.energy_landscape import Rotation
from energy_lens.ingest.model.energy_transformer import EnergyTransformerForCausalLM, EnergyTransformerModel
from energy_lens.tests.test_energy_transformer import LENGTH, VOCABULARY, config, uneven


@pytest.fixture(scope="module")
def model() -> EnergyTransformerModel:
    torch.manual_seed(0)
    return uneven(EnergyTransformerForCausalLM(config(still_share=0.0))).double().eval().model


@pytest.fixture(scope="module")
def x(model: EnergyTransformerModel) -> Tensor:
    return behind_last_step(model, torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2)))


@pytest.fixture(scope="module")
def tokens_and_landscapes(model: EnergyTransformerModel, x: Tensor) -> tuple[Tensor, Landscapes]:
    """Three tokens behind the last step, and their landscapes."""
    context, position = torch.tensor([0, 1, 1]), torch.tensor([3, 7, LENGTH - 1])
    return x[context, position], settle_contexts(model, x).landscapes(context, position)


@torch.no_grad()
def test_tokens_settle_where_no_step_moves_them(model: EnergyTransformerModel, x: Tensor) -> None:
    """At a settled token d is nothing beside u: of the model's steps none goes anywhere, whatever P and η."""
    contexts = settle_contexts(model, x)
    assert contexts.converged.double().mean() > 0.9
    rotation = Rotation.of(torch.arange(LENGTH)[None], model.config.n_rotated, model.config.rope_theta, x.dtype)
    at = model.steps[-1].direction(contexts.x, model.landscape, rotation)
    assert (at.d.norm(dim=-1) < 1e-3 * at.u.norm(dim=-1))[contexts.converged].all()
    torch.testing.assert_close(contexts.x.norm(dim=-1), x.norm(dim=-1))


@torch.no_grad()
def test_no_update_raises_the_energy_while_keys_stay(tokens_and_landscapes: tuple[Tensor, Landscapes]) -> None:
    x, landscapes = tokens_and_landscapes
    length, E = x.norm(dim=1, keepdim=True), landscapes.energy(x)
    for _ in range(30):
        x = landscapes.updated(x)
        after = landscapes.energy(x)
        assert (after <= E + 1e-9 * E.abs()).all()
        torch.testing.assert_close(x.norm(dim=1, keepdim=True), length)
        E = after


@torch.no_grad()
def test_a_later_token_does_not_move_an_earlier_one(model: EnergyTransformerModel, x: Tensor) -> None:
    alone = settle_contexts(model, x[:, :5])
    within = settle_contexts(model, x)
    torch.testing.assert_close(alone.x, within.x[:, :5], rtol=0, atol=1e-2)


@torch.no_grad()
def test_single_tokens_fall_on_the_landscape_of_their_context(model: EnergyTransformerModel, x: Tensor) -> None:
    """Energies, steps and fixed points of rows are those of whole contexts; a settled token stays where it is."""
    contexts = settle_contexts(model, x)
    context, position = torch.tensor([0, 1, 1]), torch.tensor([3, 7, LENGTH - 1])
    landscapes = contexts.landscapes(context, position)
    settled = contexts.x[context, position]
    E, _ = model.energy_and_gradient(-1, contexts.x)
    torch.testing.assert_close(landscapes.energy(settled), E[context, position])
    rotation = Rotation.of(torch.arange(LENGTH)[None], model.config.n_rotated, model.config.rope_theta, x.dtype)
    stepped = model.steps[-1](contexts.x, model.landscape, rotation)
    torch.testing.assert_close(landscapes.stepped(settled), stepped[context, position])
    again = landscapes.settle(settled)
    cosine = (again.z * torch.nn.functional.normalize(settled, dim=1)).sum(1)
    assert (1 - cosine < 1e-6).all()
