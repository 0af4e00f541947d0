"""A Hugging Face module in, a LanguageModel out: its parts found by structure and proved by a forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from energy_lens.errors import ElwError
from energy_lens.ingest.model.finite import check_weights
from energy_lens.ingest.model.language_model import LanguageModel, text_config
from energy_lens.ingest.model.residuals import residual_stream

#: What configurations call the number to which logits are bent.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class CannotRunError(ElwError):
    """A model whose forward pass fails."""


def resolve(name: str, module: nn.Module, tokenizer: Any, sha256: str) -> LanguageModel:
    """Find blocks, final norm and unembedding by structure, and prove them by a forward pass.

    Raises what `find_parts` raises; NotFiniteError for weights that are not finite; ElwError when logits are not the
    unembedding of the final norm of the last block's output, scaled and capped (a model that projects them in between
    would get wrong energies without a word), or depend on later tokens; CannotRunError when a forward pass fails, in
    this precision at least.
    """
    model = find_parts(name, module, tokenizer, sha256)
    check_weights(name, module)
    _prove(model)
    return model


def find_parts(name: str, module: nn.Module, tokenizer: Any, sha256: str) -> LanguageModel:
    """The same by structure alone, unproved.

    module: a Hugging Face causal language model. Its parameters are frozen and it is put in evaluation mode.
    Raises ElwError for one that lacks a part.
    """
    module.eval().requires_grad_(False)
    unembedding = module.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(unembedding, nn.Linear):
        raise ElwError(f"{name} has no linear unembedding: only decoders with a language-model head can be used.")
    vocabulary_size, d_model = unembedding.weight.shape
    parent, blocks = _find_blocks(name, module)
    norms = [child for child in parent.children() if _is_norm(child, d_model)]
    if not norms:
        raise ElwError(f"{name} has no final norm beside its blocks: its residual stream could not be resolved.")
    return LanguageModel(
        name, sha256, module, tokenizer, blocks, norms[-1], unembedding, int(d_model), int(vocabulary_size),
        *_head(module),
    )  # fmt: skip


def _head(module: nn.Module) -> tuple[float, float | None]:
    """By what a model's logits are multiplied, and to what they are capped, as its configuration calls it.

    Cohere has logit_scale, Falcon H1 lm_head_multiplier, Granite divides by logits_scaling; caps have three names, of
    Gemma 2, RecurrentGemma and xLSTM. What else there may be is found out by the proof.
    """
    config = text_config(module)
    factors = [float(getattr(config, name, None) or 1) for name in ("logit_scale", "lm_head_multiplier")]
    scale = factors[0] * factors[1] / float(getattr(config, "logits_scaling", None) or 1)
    caps = [getattr(config, name, None) for name in CAPS]
    return scale, next((float(cap) for cap in caps if cap is not None), None)


def _find_blocks(name: str, module: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    n_layers = getattr(text_config(module), "num_hidden_layers", None)
    candidates = [
        (parent, child)
        for parent in module.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_layers
    ]
    if len(candidates) != 1:
        raise ElwError(
            f"{name} has {len(candidates)} lists of {n_layers} blocks where one was expected: "
            "its residual stream could not be resolved."
        )
    return candidates[0]


def _is_norm(module: nn.Module, d_model: int) -> bool:
    """A module whose only parameters are vectors of d_model: LayerNorm, RMSNorm and their relatives."""
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    return bool(shapes) and all(shape == (d_model,) for shape in shapes)


@torch.no_grad()
def _prove(model: LanguageModel) -> None:
    """logits == those of norm_f(x after the last block), and no token reaches back, within the weights' precision."""
    tokens = torch.arange(1, min(9, model.vocabulary_size))[None]
    changed = tokens.clone()
    changed[:, -1] = 0
    try:
        with residual_stream(model, [model.n_layers - 1]) as residuals:
            logits = model.module(input_ids=tokens, use_cache=False).logits
        normed = model.final_norm(residuals[model.n_layers - 1])
        rebuilt_logits = [model.logits(normed), model.logits(model.hidden(tokens))]
        earlier = model.logits(model.hidden(changed))[:, :-1]
    except Exception as error:
        raise CannotRunError(f"{model.name} cannot be run as a causal language model ({first_line(error)}).") from error
    if not all(bool(numbers.isfinite().all()) for numbers in (residuals[model.n_layers - 1], logits)):
        raise CannotRunError(
            f"{model.name} gives numbers that are not finite in {str(model.dtype).removeprefix('torch.')}: its weights "
            "overflow; take a sound copy."
        )
    tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(logits.abs().max())
    if not all(torch.allclose(logits, rebuilt, atol=tolerance, rtol=0) for rebuilt in rebuilt_logits):
        raise ElwError(
            f"{model.name} does more than norm, unembed, scale and cap after its last block (a projection, perhaps): "
            "its energies would be wrong, so it is refused."
        )
    if not torch.allclose(logits[:, :-1], earlier, atol=tolerance, rtol=0):
        raise ElwError(f"{model.name} is not causal (a token changes what is said before it): it is refused.")


def first_line(error: BaseException) -> str:
    """An error's type and the first line of what it says, for a sentence of ours."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
