"""Fused attention in an ingest's reader: taken where it gives a model's own numbers, refused where it would not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from energy_lens.ingest.model.flash import use_flash
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.residuals import residual_stream


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_fused_attention_agrees_to_rounding(architecture: str, tiny: Callable[..., Any]) -> None:
    """The final norm's output and gradients, for padded batches too: attention is causal, padding on the right."""
    model = load_model(str(tiny(architecture).folder))
    tokens, towards = torch.arange(96).view(3, 32) * 5 % 500, torch.randn(model.d_model)

    def read() -> list[torch.Tensor]:
        with torch.enable_grad(), residual_stream(model, [0, 1], graph=True) as residuals:
            hidden = model.hidden(tokens)
            return [hidden.detach(), *torch.autograd.grad((hidden @ towards).sum(), [residuals[0], residuals[1]])]

    plain = read()
    assert use_flash(model)
    assert model.module.config._attn_implementation == "sdpa"
    assert use_flash(model)  # once is enough
    for fused, expected in zip(read(), plain, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_bfloat16_stays_as_it_is(tiny: Callable[..., Any]) -> None:
    assert not use_flash(load_model(str(tiny().folder), torch.bfloat16))


@pytest.mark.parametrize("fault", ["caps scores", "fails"])
def test_a_model_that_would_change_keeps_its_own_attention(
    fault: str, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused function that leaves out what the model does to its scores, or that does not know what it is given."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = load_model(str(tiny().folder))
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def other(module: Any, query: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if fault == "fails":
            raise ValueError("no softcap here")
        return sdpa(module, 0.98 * query, *arguments, **keywords)

    before = model.hidden(torch.arange(32)[None])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", other)
    assert not use_flash(model)
    assert torch.equal(model.hidden(torch.arange(32)[None]), before)
