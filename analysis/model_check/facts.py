"""A model in, what one should know of it before it is used out: its parts, its limits, its tokenizer, its speed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from energy_lens.analysis.model_check.finding import TOLERANCES, Finding, Outcome, compared, fact
from energy_lens.errors import ElwError
from energy_lens.ingest.contexts import special_tokens
from energy_lens.ingest.model.bos import adds_bos
from energy_lens.ingest.model.flash import use_flash
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.model.resolving import first_line
from energy_lens.ingest.model.token_texts import TokenTexts
from energy_lens.ingest.model.unembedding import next_token_losses, next_token_nll
from energy_lens.ingest.model.window import DEFAULT_CONTEXT

#: English, code and what tokenizers stumble over, to read with a model of which nothing is known.
TEXTS = (
    "The river rises in the hills above the town, runs past two mills and an old bridge, and reaches the sea after a "
    "day's walk. In spring the water is high, and the fields on both sides of it are under water for a week.",
    "def mean(values):\n    if not values:\n        raise ValueError('none')\n    return sum(values) / len(values)\n",
    "In 1915 Einstein wrote down the field equations; four years later an eclipse was used to test what they predict. "
    "The measured shift, 1.75 seconds of arc, was close to the predicted one — naïve optics gives half of it.",
)

#: Bytes that are no character by themselves, as token texts have them.
CODES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")

#: Passes that are timed, after a first one.
TIMED_PASSES = 3


def parts(model: LanguageModel) -> Finding:
    """What was found to be blocks, final norm and unembedding."""
    names = {id(module): name for name, module in model.module.named_modules()}
    blocks, norm = names.get(id(model.blocks), "?"), names.get(id(model.final_norm), "?")
    head = names.get(id(model.unembedding), "?")
    tied = model.module.get_input_embeddings().weight is model.unembedding.weight  # type: ignore[operator]
    details = ["tied to the embedding"] * tied
    details += ["with a bias"] * (model.unembedding.bias is not None)
    details += [f"times {model.logit_scale:g}"] * (model.logit_scale != 1)
    details += [] if model.logit_cap is None else [f"capped at {model.logit_cap:g}"]
    kinds = sorted({type(block).__name__ for block in model.blocks})
    return fact(
        "parts",
        f"{model.n_layers} blocks of {model.d_model} numbers in {blocks} ({', '.join(kinds)}); final norm {norm}; "
        f"unembedding {head} of {model.vocabulary_size:,} tokens{''.join(f', {detail}' for detail in details)}",
    )


def positions(model: LanguageModel) -> Finding:
    """How many tokens it reads, and how far its attention looks."""
    window = model.window
    read = "as many tokens as one likes, to go by its configuration" if window is None else f"at most {window:,} tokens"
    note = f"It reads {read}"
    if window is not None and window < DEFAULT_CONTEXT:
        note += f"; contexts are of {window} tokens unless --context says less"
    sliding = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None) or []
    if isinstance(sliding, int) and (not kinds or "sliding_attention" in kinds):
        among = f" in {kinds.count('sliding_attention')} of {len(kinds)} blocks" if kinds else ""
        note += f"; a token attends to the last {sliding:,}{among}"
    return fact("positions", f"{note}.")


@torch.no_grad()
def bos(model: LanguageModel) -> Finding:
    """Whether contexts begin with BOS unless one says otherwise, and what the loss is with it and without."""
    token = model.tokenizer.bos_token_id
    if token is None:
        return fact("BOS", f"Its tokenizer has none; {_mean_loss(model, None):.3f} nats a token.")
    name = model.tokenizer.convert_ids_to_tokens(token)
    with_it, without = _mean_loss(model, int(token)), _mean_loss(model, None)
    default = "with" if adds_bos(model.tokenizer) else "without"
    note = f"{with_it:.3f} nats a token with {name} before a text, {without:.3f} without; --bos auto reads {default}"
    return fact("BOS", f"{note}, unless SAEs say otherwise.")


def tokenizer(model: LanguageModel) -> Finding:
    """Whether tokens fit the vocabulary, and whether their texts put together are the text again."""
    texts = TokenTexts(model.tokenizer)
    for text in TEXTS:
        ids = model.tokenize(text)  # which raises for a tokenizer of another model
        again = CODES.sub(_decoded, "".join(texts[id_] for id_ in ids))
        if again != text:
            first = next((i for i, (a, b) in enumerate(zip(again, text, strict=False)) if a != b), 0)
            return fact(
                "token texts",
                f"Its tokenizer does not keep a text as it is: {text[first : first + 12]!r} comes back as "
                f"{again[first : first + 12]!r}. Spans of text in the warehouse are those of its tokens.",
            )
    special = special_tokens(model).ids.tolist()
    shown = ", ".join(str(model.tokenizer.convert_ids_to_tokens(id_)) for id_ in special[:3])
    more = f" and {len(special) - 3} more" if len(special) > 3 else ""
    marked = f"{shown}{more} are excluded from statistics" if special else "no token is marked as special"
    return Finding("token texts", Outcome.PASSED, f"tokens of three texts, put together: the texts; {marked}")


@torch.no_grad()
def fused_attention(model: LanguageModel, tokens: Tensor) -> Finding:
    """Whether ingest reads with torch's fused attention, which leaves the model as it was here."""
    before = model.config._attn_implementation
    plain = model.hidden(tokens)
    if not use_flash(model):
        return fact("fused attention", "is not used: it is not for this precision, or not this model's own attention.")
    try:
        return compared(
            "fused attention", "is used by ingest; the final norm's output: as with plain attention",
            [(model.hidden(tokens), plain)], TOLERANCES[model.dtype],
            "Fused attention changes the numbers of this text: report the model.",
        )  # fmt: skip
    finally:
        model.module.set_attn_implementation(before)  # type: ignore[operator]


def speed(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> Finding:
    """Tokens a second of a pass forward and back to the lowest layer."""
    seconds = []
    for _ in range(TIMED_PASSES + 1):
        begun = time.perf_counter()
        with torch.enable_grad(), residual_stream(model, layers, graph=True) as residuals:
            hidden = model.hidden(tokens)
        _, at_hidden = next_token_nll(model, hidden[:, :-1].flatten(0, 1).detach(), tokens[:, 1:].flatten())
        torch.autograd.grad(hidden[:, :-1].flatten(0, 1), [residuals[layer] for layer in layers], at_hidden)
        seconds.append(time.perf_counter() - begun)
    rate = tokens.numel() / min(seconds[1:])
    return fact("speed", f"{rate:,.0f} tokens a second, forward and back, {len(tokens)} contexts of {tokens.shape[1]}.")


@torch.no_grad()
def bfloat16(exact: LanguageModel, tokens: Tensor, load: Callable[[], LanguageModel]) -> Finding:
    """How far losses are off in bfloat16. load: gives the model in that precision."""
    try:
        coarse = load()
    except ElwError as error:
        return fact(
            "bfloat16", f"It cannot run in bfloat16 ({first_line(error.__cause__ or error)}): it runs in float32."
        )
    apart = (_losses(coarse, tokens) - _losses(exact, tokens)).abs()
    return fact(
        "bfloat16",
        f"It runs; single losses are off by {float(apart.mean()):.3f} nats in the mean, by {float(apart.max()):.3f} at "
        "most.",
    )


def _decoded(codes: re.Match[str]) -> str:
    return bytes.fromhex(re.sub("<0x|>", "", codes[0])).decode("utf-8", "replace")


def _losses(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Losses of all tokens that have a next one [n]."""
    hidden = model.hidden(tokens)[:, :-1].flatten(0, 1)
    return next_token_losses(model, hidden, tokens[:, 1:].flatten()).float()


def _mean_loss(model: LanguageModel, bos: int | None) -> float:
    """Of the texts' tokens but the first, each text behind that token or by itself."""
    reader = replace(model, bos=bos)
    losses = []
    for text in TEXTS:
        ids = reader.as_context(np.array(model.tokenize(text), dtype=np.int32))[: model.window]
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        losses.append(_losses(model, tokens)[1 if bos is not None else 0 :])
    return float(torch.cat(losses).mean())
