"""A text and an edit in, next-token probabilities before and after it and a greedy continuation of each out.

The edit acts at every included token of the text at which the feature is active (or at all of them), and while the
text goes on, at the tokens that come: as a researcher would steer. So a feature that is inactive in the text may still
change what follows. Nothing is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from energy_lens.analysis.current_run import CurrentRun, check_feature
from energy_lens.analysis.interventions.edits import Edit
from energy_lens.errors import LONGEST_CONTEXT, require, require_at_most
from energy_lens.ingest.contexts import special_tokens
from energy_lens.ingest.inclusion import INCLUDED, exclusion_reasons
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import replaced, tensors_at
from energy_lens.ingest.model.token_texts import TokenTexts
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.warehouse.features import FeatureName
from energy_lens.warehouse.output import Rows


@dataclass(frozen=True)
class Example:
    """What an edit did to a text."""

    feature: FeatureName
    n_edited: int  #: tokens of the text
    n_tokens: int
    largest: float  #: activation in the text
    changes: list[tuple[str, float, float]]  #: next token, probability before and after, most changed first
    strongest: list[tuple[int, float]]  #: the layer's features that are most active in the text, with their largest a
    before: str  #: greedy continuation
    after: str

    def rows(self, n: int) -> Rows:
        """The n most changed next tokens, 0 for all that are kept."""
        columns = [("next_token", "varchar"), ("before", "double"), ("after", "double"), ("change", "double")]
        shown = self.changes[:n] if n else self.changes
        figures = [(token, *(float(f"{v:.4f}") for v in (p, q, q - p))) for token, p, q in shown]
        return Rows.of(columns, figures)

    def sentences(self) -> Iterator[str]:
        """What the edit met in the text, and both continuations."""
        if not self.largest:
            yield (
                f"feature {self.feature} is not active in this text (of {self.n_tokens} tokens); {self.n_edited} were "
                "edited. The continuation is edited as it grows, so it may still change."
            )
        else:
            yield (
                f"feature {self.feature} was edited at {self.n_edited} of {self.n_tokens} tokens; its largest "
                f"activation is {self.largest:.2f}."
            )
        active = ", ".join(f"{self.feature.layer}:{feature} ({a:.1f})" for feature, a in self.strongest)
        yield f"Most active here: {active or 'nothing'}."
        if not self.changes:
            yield "No next-token probability changed."
        yield f"before: {self.before!r}"
        yield f"after:  {self.after!r}"


#: Next tokens that are kept, most changed first; and the least change of a probability that counts as one.
MOST_CHANGED, LEAST_CHANGE = 1_000, 5e-5

#: Features of the layer that are named as most active.
NAMED = 5


def try_on_text(path: Path | None, text: str, feature: FeatureName, edit: Edit, n_tokens: int, dtype: str) -> Example:
    """Edit one feature of the current run's SAEs on a text, and on the n_tokens that follow it.

    Raises UsageError for a layer or feature that is not there, a negative n_tokens, and a text without two tokens or
    longer than the model's window.
    """
    require(n_tokens >= 0, f"--tokens is {n_tokens}; it must not be negative.")
    require_at_most("--tokens", n_tokens, LONGEST_CONTEXT)
    current = CurrentRun(path)
    sae = current.sae(feature.layer)
    check_feature(sae, feature.feature)
    model = current.load_model(dtype)
    ids = model.as_context(np.array(model.tokenize(text), dtype=np.int32)).tolist()
    require(
        len(ids) >= 2, f"The text has {len(ids)} tokens; at least 2 are needed, since the first one is never edited."
    )
    require(
        model.window is None or len(ids) + n_tokens <= model.window,
        f"The text has {len(ids)} tokens, and {model.name} reads {model.window} with the continuation.",
    )
    tokens = torch.tensor([ids])
    with torch.no_grad():
        plain = _next_probabilities(model, tokens)
        with edited(model, sae, feature.feature, edit) as seen:
            changed = _next_probabilities(model, tokens)
            in_text = seen[-1]
            after = _continuation(model, tokens, n_tokens)
        before = _continuation(model, tokens, n_tokens)
    return Example(
        feature, int(in_text.where.sum()), len(ids), float(in_text.a.max()), _changes(model, plain, changed),
        _strongest(in_text.activations, sae.d_sae), before, after,
    )  # fmt: skip


def _changes(model: LanguageModel, plain: Tensor, changed: Tensor) -> list[tuple[str, float, float]]:
    """Next tokens whose probability changed, with p before and after, each [vocabulary]; most changed first."""
    order = (changed - plain).abs().topk(min(MOST_CHANGED, len(plain))).indices.tolist()
    known = TokenTexts(model.tokenizer)
    texts = [known[token] for token in order]
    pairs = [(float(plain[token]), float(changed[token])) for token in order]
    return [(word, p, q) for word, (p, q) in zip(texts, pairs, strict=True) if abs(q - p) >= LEAST_CHANGE]


def _strongest(activations: SparseActivations, d_sae: int) -> list[tuple[int, float]]:
    """The features that are most active at any token, with their largest a."""
    largest = torch.zeros(d_sae).scatter_reduce(
        0, activations.indices.flatten(), activations.values.flatten(), reduce="amax"
    )
    return [(i, float(largest[i])) for i in largest.topk(min(NAMED, d_sae)).indices.tolist() if largest[i] > 0]


class Edited(NamedTuple):
    """What an edited pass met and did."""

    activations: SparseActivations  #: of the unedited residuals [batch·position, K]
    a: Tensor  #: the feature's [batch, position]
    where: Tensor  #: edited tokens [batch, position] bool


@contextlib.contextmanager
def edited(model: LanguageModel, sae: SparseAutoencoder, feature: int, edit: Edit) -> Iterator[list[Edited]]:
    """Inside, every pass of the model is edited; yields what each pass met and did.

    All tokens of a pass must be text: there is no padding.
    """
    seen: list[Edited] = []
    excluded = special_tokens(model)
    tokens: list[Tensor] = []

    def remember(_module: nn.Module, arguments: Any, keywords: Any) -> None:
        tokens[:] = [keywords["input_ids"] if "input_ids" in keywords else arguments[0]]

    def moved(y: Tensor) -> Tensor:
        x = read["x"] if sae.is_transcoder else y
        flat = x.float().flatten(0, 1)
        n = x.shape[1]
        # One more position than there is: the last token of a text has a next one, the one that is asked for.
        norms = torch.nn.functional.pad(x.float().norm(dim=-1), (0, 1))
        ids = torch.nn.functional.pad(tokens[0], (0, 1))
        assert sae.norm_median is not None
        reasons = exclusion_reasons(norms, sae.norm_median, torch.full((len(x),), n + 1), ids, excluded)
        included = torch.from_numpy(reasons[:, :n] == INCLUDED)
        activations = sae.encode(flat, included.flatten())
        a = (activations.values * (activations.indices == feature)).sum(-1).view(x.shape[:2])
        change, where = edit.apply(a, included)
        scales = sae.token_scales(flat)
        if scales is not None:
            change = change * scales.view(change.shape)
        seen.append(Edited(activations, a, where))
        return y + (change[..., None] * sae.W_dec[feature]).to(y.dtype)

    handle = model.module.base_model.register_forward_pre_hook(remember, with_kwargs=True)  # type: ignore[union-attr]
    with contextlib.ExitStack() as hooks:
        hooks.callback(handle.remove)
        read = hooks.enter_context(tensors_at(model, {"x": sae.site} if sae.is_transcoder else {}))
        hooks.enter_context(replaced(model, sae.site_out, moved))
        yield seen


def _next_probabilities(model: LanguageModel, tokens: Tensor) -> Tensor:
    """p(next token) [vocabulary] after tokens [1, position]."""
    return model.logits(model.hidden(tokens)[0, -1]).float().softmax(-1)


def _continuation(model: LanguageModel, tokens: Tensor, n_tokens: int) -> str:
    """The likeliest next token, n_tokens times; the whole text is read anew each time, so that edits are too."""
    start = tokens.shape[1]
    for _ in range(n_tokens):
        likeliest = model.logits(model.hidden(tokens)[:, -1:]).argmax(-1)
        tokens = torch.cat([tokens, likeliest], dim=1)
    text: str = model.tokenizer.decode(tokens[0, start:], clean_up_tokenization_spaces=False)
    return text
