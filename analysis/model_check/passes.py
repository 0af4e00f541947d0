"""A model and token ids in, whether its passes are what the rest of the package takes them for out.

Each check takes two ways to one result: the package's parts and the model's own code, or a pass from the middle on and
a whole one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from energy_lens.analysis.model_check.finding import TOLERANCES, Finding, compared, inapplicable
from energy_lens.ingest.energies.attention import attention_scores
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.model.unembedding import next_token_nll

#: Size of an edit relative to ‖x‖: that of ablations.
EDIT = 0.1


@torch.no_grad()
def logits(model: LanguageModel, tokens: Tensor) -> Finding:
    """The unembedding of the final norm of the last block's output, scaled and capped."""
    last = model.n_layers - 1
    with residual_stream(model, [last]) as residuals:
        hidden = model.hidden(tokens)
    own = model.module(input_ids=tokens, use_cache=False).logits
    return compared(
        "logits", "unembedding of the final norm of the last block's output: the model's own logits",
        [(model.logits(hidden), own), (model.logits(model.final_norm(residuals[last])), own)], TOLERANCES[model.dtype],
        "The model does more than norm, unembed, scale and cap after its last block: its energies would be wrong, and "
        "every command refuses it.",
    )  # fmt: skip


@torch.no_grad()
def causality(model: LanguageModel, tokens: Tensor) -> Finding:
    """What is said before a token does not change with it."""
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.vocabulary_size
    before, after = (model.module(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (tokens, changed))
    return compared(
        "causality", "logits before a token that is changed: unchanged", [(after, before)], TOLERANCES[model.dtype],
        "A token changes what is said before it: a next-token loss means nothing, and every command refuses the model.",
    )  # fmt: skip


def losses(model: LanguageModel, tokens: Tensor) -> Finding:
    """−log p of each next token and its gradient by the final norm's output, against torch on the model's logits."""
    targets = tokens[:, 1:].flatten()
    with torch.no_grad():
        hidden = model.hidden(tokens)[:, :-1].flatten(0, 1)
        own = model.module(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    found, found_gradient = next_token_nll(model, hidden, targets)
    expected = nn.functional.cross_entropy(own.float(), targets, reduction="none")
    with torch.enable_grad():
        h = hidden.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(model.logits(h).float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, h)
    return compared(
        "losses", "next-token losses and their gradients: torch's cross entropy of the model's own logits",
        [(found.float(), expected), (found_gradient, gradient)], TOLERANCES[model.dtype],
        "Losses are not the cross entropy of the model's own logits: its energies would be wrong.",
    )  # fmt: skip


@torch.no_grad()
def residuals(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> Finding:
    """What is hooked after a block is what the next one, or the final norm, gets."""
    reached: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]) -> None:
            given = [*inputs, more.get("hidden_states")]
            reached[layer] = next(one for one in given if isinstance(one, Tensor) and one.is_floating_point())

        return hook

    after = [model.final_norm if layer == model.n_layers - 1 else model.blocks[layer + 1] for layer in layers]
    handles = [
        module.register_forward_pre_hook(keep(layer), with_kwargs=True)
        for layer, module in zip(layers, after, strict=True)
    ]
    try:
        with residual_stream(model, layers) as hooked:
            model.hidden(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return compared(
        "residual stream", f"x after block {_listed(layers)}: what the next block gets",
        [(hooked[layer], reached[layer].view_as(hooked[layer])) for layer in layers], 0,
        "The next block gets something else than the output of the one before: what is read is no residual stream.",
    )  # fmt: skip


@torch.no_grad()
def padding(model: LanguageModel, tokens: Tensor) -> Finding:
    """Contexts of several lengths in a batch, padded on the right without a mask."""
    short = max(2, tokens.shape[1] // 2)
    batch = tokens.clone()
    batch[0, short:] = 0
    together = model.hidden(batch)
    alone = [model.hidden(tokens[:1, :short])[0], model.hidden(tokens[1:2])[0]]
    return compared(
        "padded batch", "contexts of two lengths side by side: as each alone",
        [(together[0, :short], alone[0]), (together[1], alone[1])], TOLERANCES[model.dtype],
        "A context's numbers depend on what is beside it: every command that reads batches would be wrong "
        "(--batch-size 1 keeps contexts apart, but not from their padding).",
    )  # fmt: skip


@torch.no_grad()
def patching(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> Finding:
    """An edit by a hook in a whole pass, and a pass that begins above the edited block."""
    pairs = []
    for layer in layers:
        with residual_stream(model, [layer]) as read:
            whole = model.hidden(tokens)
        x = read[layer]
        edit = torch.randn(x.shape, generator=torch.Generator().manual_seed(layer)).to(x.dtype)
        edit *= EDIT * x.norm(dim=-1, keepdim=True) / edit.norm(dim=-1, keepdim=True)

        def add(_module: nn.Module, _inputs: Any, output: Any, edit: Tensor = edit) -> Any:
            return (output[0] + edit, *output[1:]) if isinstance(output, tuple) else output + edit

        handle = model.blocks[layer].register_forward_hook(add)
        try:
            hooked = model.hidden(tokens)
        finally:
            handle.remove()
        model.hidden(tokens.flip(1))  # or what blocks keep from one pass to the next would pass for what they are given
        pairs += [(model.hidden_above(tokens, layer, x), whole), (model.hidden_above(tokens, layer, x + edit), hooked)]
    return compared(
        "patched = hooked", f"passes from block {_listed(layers)} on, with an edit and without: whole passes",
        pairs, TOLERANCES[model.dtype],
        "Blocks hand on more than the residual stream, so that a pass cannot begin in the middle: elw intervene, and "
        "elw sae evaluate without --no-ce, would be wrong.",
    )  # fmt: skip


@torch.no_grad()
def attention_patterns(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> Finding:
    """The softmax of the scores that the attention energy is made of, against the patterns that the model gives out."""
    check = "attention patterns"
    below = [layer for layer in layers if layer < model.n_layers - 1]
    if not below:
        return inapplicable(check, "There is no block after these layers (--layers).")
    with residual_stream(model, below) as read:
        model.hidden(tokens)
    x = dict(read)
    scores = {layer: attention_scores(model.attention_inputs(tokens, layer, x[layer])) for layer in below}
    try:
        output = model.module.base_model(input_ids=tokens, use_cache=False, output_attentions=True)  # type: ignore[operator]
        patterns = output.attentions or ()
    except (TypeError, ValueError, AttributeError):  # as code that knows no such option answers
        patterns = ()
    if len(patterns) != model.n_layers or any(patterns[layer + 1] is None for layer in below):
        return inapplicable(check, f"{model.name} does not give out its attention patterns.")
    pairs = [(scores[layer].softmax(-1), patterns[layer + 1].to(scores[layer].dtype)) for layer in below]
    return compared(
        check, f"softmax of the attention energy's scores after block {_listed(below)}: the model's own patterns",
        pairs, TOLERANCES[model.dtype],
        "The model adds something to its attention scores that the attention energy does not know: leave that energy "
        "out (--energies).",
    )  # fmt: skip


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
