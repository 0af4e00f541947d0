"""A model's name in, every check of it out, one after the other: what holds, what does not, what one should know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from energy_lens.analysis.model_check import facts, passes
from energy_lens.analysis.model_check.finding import Finding, Outcome, carried_out
from energy_lens.analysis.model_check.gradients import gradients
from energy_lens.errors import LONGEST_CONTEXT, require, require_at_most
from energy_lens.ingest.model.bos import settle_bos
from energy_lens.ingest.model.converted import fault
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import is_folder, load_model, locate, resolved
from energy_lens.warehouse.output import Rows

#: Tokens of each of the two contexts that are read where no number is given.
TOKENS = 32


def check_by_name(
    name: str, layers: Sequence[int] | None = None, dtype: torch.dtype = torch.float32, n_tokens: int = TOKENS
) -> Iterator[Finding]:
    """The findings on a model, each as soon as it is made.

    layers: blocks after which it is looked at; None: the first, the middle one and the last but one. n_tokens: of each
    of two contexts. Raises what `load_model` raises for a model that cannot be loaded, and UsageError for layers that
    it lacks. A model that other commands would refuse is looked at all the same, to see what of it does not hold.
    """
    check_n_tokens(n_tokens)
    name = resolved(name)
    model = load_model(name, dtype, proved=False)
    yield from copy_in_cache(name)
    yield from check_model(model, layers, n_tokens, partial(load_model, name, torch.bfloat16))


def check_n_tokens(n_tokens: int) -> None:
    """Raises UsageError for contexts that are too short to look at, or longer than any."""
    require(n_tokens >= 8, f"--tokens is {n_tokens}; at least 8 are needed.")
    require_at_most("--tokens", n_tokens, LONGEST_CONTEXT)


def check_model(
    model: LanguageModel,
    layers: Sequence[int] | None = None,
    n_tokens: int = TOKENS,
    in_bfloat16: Callable[[], LanguageModel] | None = None,
) -> Iterator[Finding]:
    """The same for a model at hand, proved or not. in_bfloat16: gives it in that precision, to be looked at too."""
    check_n_tokens(n_tokens)
    chosen = default_layers(model.n_layers) if layers is None else list(dict.fromkeys(layers))
    model.check_layers(chosen)
    settle_bos(model, "auto")
    yield facts.parts(model)
    yield facts.positions(model)
    yield from carried_out("token texts", partial(facts.tokenizer, model))
    yield from carried_out("BOS", partial(facts.bos, model))
    tokens = sample(model, n_tokens)
    yield from carried_out("logits", partial(passes.logits, model, tokens))
    yield from carried_out("causality", partial(passes.causality, model, tokens))
    yield from carried_out("losses", partial(passes.losses, model, tokens))
    yield from carried_out("residual stream", partial(passes.residuals, model, tokens, chosen))
    yield from carried_out("padded batch", partial(passes.padding, model, tokens))
    yield from carried_out("patched = hooked", partial(passes.patching, model, tokens, chosen))
    yield from carried_out("attention patterns", partial(passes.attention_patterns, model, tokens, chosen))
    yield from carried_out("gradients", partial(gradients, model, tokens, chosen))
    yield from carried_out("fused attention", partial(facts.fused_attention, model, tokens))
    yield from carried_out("speed", partial(facts.speed, model, tokens, chosen))
    if in_bfloat16 is not None and model.dtype != torch.bfloat16:
        yield from carried_out("bfloat16", partial(facts.bfloat16, model, tokens, in_bfloat16))


def copy_in_cache(name: str) -> Iterator[Finding]:
    """Whether a converted model's files in the cache hold what was written, by their contents."""
    if is_folder(name):
        return
    folder, sha256 = locate(name)
    if reason := fault(folder, sha256, contents=True):
        yield Finding("copy in the cache", Outcome.FAILED, f"{folder} {reason}: remove it, and it is made anew.")
    else:
        yield Finding("copy in the cache", Outcome.PASSED, f"{folder}: its files are those that were written")


def default_layers(n_layers: int) -> list[int]:
    """The first, the middle one and the last but one, as far as there are any."""
    return sorted({0, n_layers // 2, max(n_layers - 2, 0)} & set(range(n_layers)))


def sample(model: LanguageModel, n_tokens: int) -> Tensor:
    """Two contexts of text [2, position] as the model reads them, no longer than it can; else any ids."""
    length = min(n_tokens, model.window or n_tokens)
    try:
        ids = np.concatenate([np.array(model.tokenize(text), dtype=np.int32) for text in facts.TEXTS * 8])
    except Exception:  # said by the check of the tokenizer
        return model.any_tokens(2, length)
    n_text = length - (model.bos is not None)
    n_text = min(n_text, len(ids) // 2)
    contexts = [model.as_context(ids[start : start + n_text]) for start in (0, n_text)]
    return torch.from_numpy(np.stack(contexts).astype(np.int64))


def finding_rows(findings: Sequence[Finding]) -> Rows:
    """A row for each finding."""
    columns = [("check", "varchar"), ("outcome", "varchar"), ("difference", "double"), ("tolerance", "double")]
    rows = [(f.check, str(f.outcome), _shown(f.difference), f.tolerance, f.note) for f in findings]
    return Rows.of([*columns, ("note", "varchar")], rows)


def _shown(difference: float | None) -> float | None:
    return None if difference is None else float(f"{difference:.2g}")
