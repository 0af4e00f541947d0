"""Models that scale or cap their logits: losses, gradients, divergences and draws are those of their own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from energy_lens.ingest.model import unembedding
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model
from energy_lens.tests.conftest import TINY_WIDTH, _tokenizer

SHAPE = {
    "vocab_size": 512, "hidden_size": TINY_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip

HEADS = {
    "gemma2": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0, "initializer_range": 0.5}),
    "granite": ("Granite", {"logits_scaling": 4.0, "initializer_range": 0.5}),
    "cohere": ("Cohere", {"logit_scale": 0.25, "initializer_range": 0.5}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 16, "initializer_range": 0.5}),
}


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    import transformers

    family, settings = HEADS[request.param]
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    config = getattr(transformers, f"{family}{suffix}")(**SHAPE, **settings)
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def hidden(model: LanguageModel) -> Tensor:
    """The final norm's output at some tokens [n, d_model]."""
    with torch.no_grad():
        return model.hidden(torch.arange(90).view(3, 30) * 5 % 500).flatten(0, 1)


def logits_of(model: LanguageModel, hidden: Tensor) -> Tensor:
    """By the model's own code: the end of its forward pass on these hidden states."""
    tokens = torch.zeros(1, len(hidden), dtype=torch.int64)
    handle = model.module.base_model.register_forward_hook(
        lambda _module, _inputs, output: output.__class__(last_hidden_state=hidden[None])
    )
    try:
        return model.module(input_ids=tokens, use_cache=False).logits[0]
    finally:
        handle.remove()


def test_logits_are_the_models_own(model: LanguageModel, hidden: Tensor) -> None:
    torch.testing.assert_close(model.logits(hidden), logits_of(model, hidden), rtol=1e-5, atol=1e-5)


def test_losses_and_their_gradients(model: LanguageModel, hidden: Tensor) -> None:
    targets = torch.arange(len(hidden)) * 3 % 500
    h = hidden.clone().requires_grad_(True)
    losses = torch.nn.functional.cross_entropy(logits_of(model, h), targets, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), h)
    found, found_gradient = unembedding.next_token_nll(model, hidden, targets)
    torch.testing.assert_close(found, losses.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(unembedding.next_token_losses(model, hidden, targets), found)
    outcome, top = unembedding.next_token_outcomes(model, hidden, targets)
    torch.testing.assert_close(outcome, found)
    assert torch.equal(top, logits_of(model, hidden).argmax(-1))


def test_the_gradient_of_the_normaliser(model: LanguageModel, hidden: Tensor) -> None:
    h = hidden.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(logits_of(model, h).logsumexp(-1).sum(), h)
    torch.testing.assert_close(unembedding.expected_rows(model, hidden), gradient, rtol=1e-3, atol=1e-5)


def divergences(model: LanguageModel, p_hidden: Tensor, q_hidden: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p‖q) as it is found, and by the model's own logits in float64."""
    targets = torch.arange(len(p_hidden)) * 3 % 500
    losses, gradients = unembedding.next_token_nll(model, p_hidden, targets)
    q_losses = unembedding.next_token_losses(model, q_hidden, targets)
    found = unembedding.divergence(model, (q_losses, q_hidden), (losses, p_hidden, gradients))
    p, q = (logits_of(model, h).double().log_softmax(-1) for h in (p_hidden, q_hidden))
    return found.double(), (p.exp() * (p - q)).sum(-1).detach()


@pytest.mark.parametrize("size", [0.0, 0.01, 1.0])
def test_divergence(size: float, model: LanguageModel, hidden: Tensor) -> None:
    other = hidden + size * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    found, expected = divergences(model, hidden, other)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_divergences_in_bfloat16_are_not_below_0(tiny: Callable[..., Any]) -> None:
    """What rounding does to the losses it does to both distributions alike."""
    model = load_model(str(tiny().folder), torch.bfloat16)
    exact = load_model(str(tiny().folder))
    with torch.no_grad():
        hidden = model.hidden(torch.arange(120).view(4, 30) * 4 % 500).flatten(0, 1)
    other = hidden + (0.05 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))).bfloat16()
    found, _ = divergences(model, hidden, other)
    assert float(found.min()) >= -1e-6
    _, expected = divergences(exact, hidden.float(), other.float())
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.05)


@pytest.mark.parametrize("draw", [unembedding.sign_draws, unembedding.label_draws])
def test_draws_have_the_curvature_of_the_loss(
    draw: Callable[..., Tensor], model: LanguageModel, hidden: Tensor
) -> None:
    """E[v vᵀ] = Jᵀ(diag p − ppᵀ)J with J = ∂l/∂h, along some directions."""
    h = hidden[5:6]
    drawn = draw(model, h.expand(2_000, -1), 2, np.random.default_rng(0)).flatten(0, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: logits_of(model, x[None])[0], h[0])
    p = logits_of(model, h)[0].softmax(-1).detach()
    curvature = jacobian.T @ (torch.diag(p) - p.outer(p)) @ jacobian
    directions = torch.randn(6, len(curvature), generator=torch.Generator().manual_seed(2))
    expected = ((directions @ curvature) * directions).sum(-1)
    found = (drawn @ directions.T).square().mean(0)
    torch.testing.assert_close(found, expected, rtol=0.25, atol=1e-4)


@pytest.mark.usefixtures("capped_llama")
def test_an_unknown_end_is_refused(tiny: Callable[..., Any]) -> None:
    """A cap that the configuration calls by another name."""
    from energy_lens.errors import ElwError

    with pytest.raises(ElwError, match="does more than norm, unembed, scale and cap"):
        load_model(str(tiny().folder))


def test_a_text_model_that_sits_inside_one_that_sees(tmp_path: Path) -> None:
    """As Gemma 3's larger checkpoints are: blocks, window and attention are those of the part that reads."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    text = {**SHAPE, "head_dim": 8, "sliding_window": 16, "initializer_range": 0.5}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert (model.n_layers, model.d_model, model.window) == (2, TINY_WIDTH, 128)
    hidden = model.hidden(torch.arange(20)[None])
    inputs = model.attention_inputs(torch.arange(20)[None], 0, hidden)
    assert inputs.queries.shape == (1, 4, 20, 8)
