"""The energy transformer: its steps are the gradient of its energy, lead down it, and are a model like any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.energies.base import Reading
from energy_lens.ingest.energies.forward import ForwardPass, run_forward
from energy_lens.ingest.energies.native import NativeEnergy
from energy_lens.ingest.model.energy_landscape import Rotation, highest_step
from energy_lens.ingest.model.energy_transformer import (
    EnergyTransformerConfig,
    EnergyTransformerForCausalLM,
    EnergyTransformerModel,
)
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.resolving import find_parts
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.tests.conftest import Tiny

VOCABULARY, WIDTH, LENGTH = 60, 24, 11


def config(**changes: object) -> EnergyTransformerConfig:
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3,
        "head_dim": 8, "intermediate_size": 40, "max_position_embeddings": 64, "eos_token_id": 0, "bos_token_id": 0,
    }  # fmt: skip
    return EnergyTransformerConfig(**(sizes | changes))


def uneven(model: EnergyTransformerForCausalLM) -> EnergyTransformerForCausalLM:
    """A model whose gains, temperatures, step sizes and P are none of those that training begins with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        landscape = model.model.landscape
        landscape.root += 0.3 * torch.randn(landscape.root.shape, generator=generator)
        landscape.log_beta += torch.randn(landscape.log_beta.shape, generator=generator)
        for step in model.model.steps:
            step.norm.weight.uniform_(0.2, 2.0, generator=generator)
            step.log_step += torch.randn((), generator=generator)
    return model


@pytest.fixture(scope="module")
def exact() -> EnergyTransformerForCausalLM:
    torch.manual_seed(0)
    return uneven(EnergyTransformerForCausalLM(config())).double().eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def inputs(model: EnergyTransformerModel, tokens: Tensor) -> list[tuple[Tensor, Rotation]]:
    """x [batch, position, n] that goes into each step, and the rotation."""
    with torch.no_grad():
        states = model(input_ids=tokens, output_hidden_states=True).hidden_states[:-1]
    positions = torch.arange(tokens.shape[1])[None]
    return [(x, Rotation.of(positions, model.config.n_rotated, model.config.rope_theta, x.dtype)) for x in states]


def test_a_step_is_the_gradient_of_the_energy(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    """x + η·P·(−r·∂E/∂x) by autograd, E_t at every token with its keys held fixed; and −∂E/∂g before the norm."""
    model, landscape = exact.model, exact.model.landscape
    for step, (state, rotation) in zip(model.steps, inputs(model, tokens), strict=True):
        x = state.clone().requires_grad_(True)
        (at_x,) = torch.autograd.grad(step.energy(x, landscape, rotation).sum(), x)
        r = (x.square().mean(-1, keepdim=True) + step.norm.eps).sqrt()
        P = landscape.root.T @ landscape.root
        expected = x - step.log_step.exp() * r * at_x @ P
        torch.testing.assert_close(step(x, landscape, rotation), expected, rtol=0, atol=1e-10)
        g = step.norm(x).detach().requires_grad_(True)
        keys = landscape.keys(g.detach(), rotation)
        (at_g,) = torch.autograd.grad(landscape.energy(g, keys, rotation).sum(), g)
        direction = step.direction(x, landscape, rotation)
        torch.testing.assert_close(direction.u, -step.norm.weight * at_g, rtol=0, atol=1e-10)


def test_the_energy_is_the_formula(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    """Written out by token and head: 1 and the keys before, no key of its own, turned by the difference of places."""
    landscape = exact.model.landscape
    (x, rotation), step = inputs(exact.model, tokens)[1], exact.model.steps[1]
    energies = step.energy(x, landscape, rotation)
    g = step.norm(x)
    n_heads, d_head, half = landscape.n_heads, landscape.d_head, exact.config.n_rotated // 2
    frequencies = exact.config.rope_theta ** (-torch.arange(half).double() / half)
    for t in range(LENGTH):
        expected = -(landscape.memories @ g[0, t]).relu().square().sum() / 2
        for head in range(n_heads):
            rows = slice(head * d_head, (head + 1) * d_head)
            beta = landscape.log_beta[head].exp()
            total = torch.ones((), dtype=torch.float64)
            for s in range(t):
                q, k = landscape.query[rows] @ g[0, t], landscape.key[rows] @ g[0, s]
                angle = (t - s) * frequencies
                turned = torch.cat(
                    [
                        q[:half] * angle.cos() - q[half : 2 * half] * angle.sin(),
                        q[half : 2 * half] * angle.cos() + q[:half] * angle.sin(),
                        q[2 * half :],
                    ]
                )
                total = total + (beta * turned @ k).exp()
            expected = expected - total.log() / beta
        torch.testing.assert_close(energies[0, t], expected, rtol=1e-6, atol=1e-6)  # angles are float32
    assert (energies <= 0).all()


@torch.no_grad()
def test_no_step_within_the_bound_raises_the_energy(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    """E_t(x + δ) ≤ E_t(x), keys fixed, for η up to the bound that is proved; and twenty times it can rise."""
    landscape, rises = exact.model.landscape, []
    for step, (x, rotation) in zip(exact.model.steps, inputs(exact.model, tokens), strict=True):
        keys = landscape.keys(step.norm(x), rotation)
        at = step.direction(x, landscape, rotation)
        Pd = landscape.preconditioned(at.d)
        highest = highest_step(x, at, Pd)
        before = landscape.energy(step.norm(x), keys, rotation)
        for share in (1e-4, 0.01, 0.1, 0.3, 0.7, 1.0):
            after = landscape.energy(step.norm(x + share * highest[..., None] * Pd), keys, rotation)
            assert (after <= before + 1e-12 * before.abs()).all(), share
        far = landscape.energy(step.norm(x + 20 * highest[..., None] * Pd), keys, rotation)
        rises.append(bool((far > before).any()))
    assert highest.isfinite().all()
    assert any(rises), "the bound is idle here: nothing would rise however far one went"


@torch.no_grad()
def test_the_bound_holds_for_any_weights(tokens: Tensor) -> None:
    """Sharp temperatures, uneven gains, a P of low rank, residuals short and long."""
    for seed in range(12):
        torch.manual_seed(seed)
        model = EnergyTransformerForCausalLM(config(num_hidden_layers=1)).double().model
        step, landscape = model.steps[0], model.landscape
        landscape.root.copy_(torch.randn(WIDTH, WIDTH) * (torch.rand(WIDTH, 1) < 0.4))
        landscape.log_beta.uniform_(-3, 3)
        step.norm.weight.copy_(torch.randn(WIDTH) * 3)
        x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64) * 10 ** (4 * torch.rand(2, LENGTH, 1) - 3)
        rotation = Rotation.of(torch.arange(LENGTH)[None], model.config.n_rotated, 1e4, x.dtype)
        keys = landscape.keys(step.norm(x), rotation)
        at = step.direction(x, landscape, rotation)
        Pd = landscape.preconditioned(at.d)
        before = landscape.energy(step.norm(x), keys, rotation)
        for share in (0.2, 1.0):
            after = landscape.energy(step.norm(x + share * highest_step(x, at, Pd)[..., None] * Pd), keys, rotation)
            assert (after <= before + 1e-12 * before.abs()).all()


@torch.no_grad()
def test_without_the_pull_back_a_step_may_lead_uphill() -> None:
    """Why d is taken through the norm: along P·u, as the papers go, a tiny step raises E for some P and γ."""
    uphill = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model = uneven(EnergyTransformerForCausalLM(config(num_hidden_layers=1)).double()).model
        step, landscape = model.steps[0], model.landscape
        landscape.root.copy_(torch.randn(2, WIDTH).T @ torch.randn(2, WIDTH) / WIDTH)  # P of rank 2
        x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
        rotation = Rotation.of(torch.arange(LENGTH)[None], model.config.n_rotated, 1e4, x.dtype)
        keys = landscape.keys(step.norm(x), rotation)
        at = step.direction(x, landscape, rotation)
        before = landscape.energy(step.norm(x), keys, rotation)
        along_u = landscape.energy(step.norm(x + 1e-5 * landscape.preconditioned(at.u)), keys, rotation)
        along_d = landscape.energy(step.norm(x + 1e-5 * landscape.preconditioned(at.d)), keys, rotation)
        assert (along_d <= before + 1e-12).all()
        uphill += bool((along_u > before + 1e-9).any())
    assert uphill


@torch.no_grad()
def test_it_is_causal_and_the_first_token_has_no_attention_energy(
    exact: EnergyTransformerForCausalLM, tokens: Tensor
) -> None:
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % VOCABULARY
    before, after = exact(tokens).logits, exact(changed).logits
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    (x, rotation), step = inputs(exact.model, tokens)[0], exact.model.steps[0]
    memories = -(step.norm(x) @ exact.model.landscape.memories.T).relu().square().sum(-1) / 2
    energies = step.energy(x, exact.model.landscape, rotation)
    torch.testing.assert_close(energies[:, 0], memories[:, 0], rtol=0, atol=1e-10)
    assert (energies[:, 1:] < memories[:, 1:]).all()


@torch.no_grad()
def test_fused_attention_and_padding_change_nothing(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    exact.set_attn_implementation("eager")
    plain = exact(tokens).logits
    left = torch.cat([torch.zeros(2, 3, dtype=torch.int64), tokens], dim=1)
    is_text = torch.ones_like(left)
    is_text[:, :3] = 0
    for attention in ("eager", "sdpa"):
        exact.set_attn_implementation(attention)
        torch.testing.assert_close(exact(tokens).logits, plain, rtol=0, atol=1e-10)
        padded = exact(left, attention_mask=is_text).logits  # positions are relative, to float32's rounding of angles
        torch.testing.assert_close(padded[:, 3:], plain, rtol=0, atol=1e-4)
    exact.set_attn_implementation("eager")


def test_attention_patterns_and_states_are_given_out(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    with torch.no_grad():
        output = exact(tokens, output_attentions=True, output_hidden_states=True)
        hidden = exact.model(input_ids=tokens).last_hidden_state
    assert len(output.attentions) == 3
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(output.hidden_states[-1], hidden)
    for pattern in output.attentions:
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        torch.testing.assert_close(pattern[:, :, 0, 0], torch.ones_like(pattern[:, :, 0, 0]))  # on nothing


def test_it_saves_loads_and_generates(tmp_path: Path) -> None:
    """Through transformers' Auto classes, without code from the folder; the same with use_cache and without."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from energy_lens.ingest.model.energy_transformer import register

    register()
    torch.manual_seed(3)
    model = uneven(EnergyTransformerForCausalLM(config())).eval()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 3
    loaded, about = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    prompt = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(prompt).logits, model(prompt).logits)
    said = [loaded.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*said)
    ids = prompt
    for _ in range(said[0].shape[1] - 3):
        ids = torch.cat([ids, loaded(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(said[0], ids)
    assert loaded(prompt, labels=prompt).loss.isfinite()


# ------------------------------------------------------------------------------------------------ as an energy


def as_language_model(module: EnergyTransformerForCausalLM) -> LanguageModel:
    return find_parts("tiny", module, None, "0" * 64)


def random_sae(layer: int, point: str) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(layer)
    rows = torch.randn(32, WIDTH, generator=generator) / WIDTH**0.5
    return SparseAutoencoder(
        layer=layer, k=4, W_enc=rows.T.contiguous(), b_enc=torch.zeros(32), W_dec=rows, b_dec=torch.zeros(WIDTH),
        architecture="topk", norm_median=1.0, point=point,
    )  # fmt: skip


def native(module: EnergyTransformerForCausalLM, tokens: Tensor, lengths: Tensor) -> tuple[ForwardPass, Reading]:
    """What the energy says after step 0, and before step 2."""
    saes = {0: random_sae(0, "resid_post"), 2: random_sae(2, "resid_pre")}
    forward = run_forward(
        as_language_model(module), saes, tokens, lengths, lambda _, norms: torch.ones_like(norms, dtype=torch.bool)
    )
    return forward, NativeEnergy().read(forward)


def test_native_is_what_the_next_step_descends(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    """Its gradient, through P, the step size and the norm's r, is the very step that the model takes."""
    forward, reading = native(exact, tokens, torch.tensor([LENGTH, LENGTH]))
    states = inputs(exact.model, tokens)
    for layer, step in ((0, 1), (2, 2)):
        (x, rotation), of_step = states[step], exact.model.steps[step]
        torch.testing.assert_close(forward.residuals[layer].detach(), x)
        r = (x.square().mean(-1, keepdim=True) + of_step.norm.eps).sqrt()
        taken = of_step(x, exact.model.landscape, rotation) - x
        gradient = reading.gradients[layer].double()
        expected = -of_step.log_step.exp() * exact.model.landscape.preconditioned(r * gradient)
        torch.testing.assert_close(taken, expected, rtol=1e-5, atol=1e-5)
        E = of_step.energy(x, exact.model.landscape, rotation)
        torch.testing.assert_close(reading.values[layer].double(), E, rtol=1e-6, atol=1e-6)


def test_native_has_the_derivative_of_a_tokens_own_energy(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    """Central differences of E_t as x_t alone moves; the energies of later tokens move too, and are none of it."""
    forward, reading = native(exact, tokens, torch.tensor([LENGTH, LENGTH]))
    x, t, h = forward.residuals[0].detach(), 4, 1e-5
    direction = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    moved = [x.clone(), x.clone()]
    moved[0][:, t] += h * direction
    moved[1][:, t] -= h * direction
    up, down = (exact.model.energy_and_gradient(1, at)[0] for at in moved)
    slopes = (up - down) / (2 * h)
    expected = reading.gradients[0][:, t].double() @ direction
    torch.testing.assert_close(slopes[:, t], expected, rtol=1e-5, atol=1e-6)
    assert not slopes[:, :t].any()
    assert slopes[:, t + 1 :].abs().max() > 1e-6


def test_native_leaves_padding_out_and_is_precise_in_half(exact: EnergyTransformerForCausalLM, tokens: Tensor) -> None:
    lengths = torch.tensor([LENGTH, 5])
    _, padded = native(exact, tokens, lengths)
    _, alone = native(exact, tokens[1:, :5], lengths[1:])
    for layer in (0, 2):
        torch.testing.assert_close(padded.values[layer][1, :5], alone.values[layer][0])
        torch.testing.assert_close(padded.gradients[layer][1, :5], alone.gradients[layer][0])
        assert not padded.values[layer][1, 5:].any()
        assert not padded.gradients[layer][1, 5:].any()
    coarse = copy.deepcopy(exact).bfloat16()
    forward, reading = native(coarse, tokens, lengths)
    x = forward.residuals[0].detach().float()
    E, gradient = copy.deepcopy(coarse).float().model.energy_and_gradient(1, x)  # the same weights, precise products
    torch.testing.assert_close(reading.values[0][0], E[0])
    torch.testing.assert_close(reading.gradients[0][0], gradient[0])


def test_native_is_refused_where_no_step_follows_and_for_other_models(
    exact: EnergyTransformerForCausalLM, tiny: Callable[[str], Tiny]
) -> None:
    energy, model = NativeEnergy(), as_language_model(exact)
    energy.check(model, [0, 1])
    with pytest.raises(UsageError, match="after step 2 is that of the next step, and tiny has none"):
        energy.check(model, [1, 2])
    with pytest.raises(UsageError, match="descends no energy of its own"):
        energy.check(load_model(str(tiny("llama").folder)), [1])
    with pytest.raises(UsageError, match=r"not defined at blocks\.0\.hook_resid_pre"):
        energy.check_sites([random_sae(0, "resid_pre")])
