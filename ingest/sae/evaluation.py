"""SAEs, a model and documents they never saw in; out an evaluation of each SAE: what it leaves out, at what cost.

1. Documents that any of the SAEs was trained on or chosen by are left out; a seeded sample of contexts is taken from
   the others, in turn from each category, cut as in a run.
2. An SAE that lacks its norm median gets it from a first pass over the sample, one that lacks its mean from a second.
3. One more pass: the residuals of all layers give reconstruction figures by streaming sums, and the blocks above each
   layer run again with included residuals replaced by x̂, by zero and by the mean.

Included tokens are a run's own (inclusion.exclusion_reasons): not the first of a context, no massive norm, no special
token, and with a next one. Only they are replaced and only they count in reconstruction figures; the loss is that of
tokens at and after a replaced one of the same context that have a next token.

FVU = Σ‖x − x̂‖² / Σ‖x − x̄‖² with x̄ the mean of the same tokens; CE loss recovered = (CE_abl − CE_sae) /
(CE_abl − CE_clean), with abl = zero (Rajamanoharan et al. 2024, arXiv 2404.16014) and abl = mean, mostly stricter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.console import bar
from energy_lens.errors import (
    LARGEST_COUNT,
    LONGEST_CONTEXT,
    ElwError,
    UsageError,
    require,
    require_at_most,
    require_batch,
    require_seed,
)
from energy_lens.ingest.contexts import Padded, padded, planned_alone, special_tokens
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.inclusion import INCLUDED, MASSIVE, MASSIVE_NORM_RATIO, SpecialTokens, exclusion_reasons
from energy_lens.ingest.model.configuration import check_window
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import norm_medians
from energy_lens.ingest.model.sites import Site, harvest, hidden_from, resumes, tensors_at, with_below
from energy_lens.ingest.model.unembedding import next_token_losses
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes
from energy_lens.ingest.sae.figures import DENSE_SHARE, Evaluation, Figures, Spread, Sums, macro_average
from energy_lens.warehouse.plan import Context, sample_contexts


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation's numbers depend on, apart from model, SAEs and documents; batch_size is for speed alone."""

    max_tokens: int | None = 50_000  #: stop sampling contexts at or after so many tokens; None: take all
    context_length: int = 128
    batch_size: int = 8  #: contexts in a forward pass
    seed: int = 0  #: of the sample
    ce: bool = True  #: measure losses too, which takes most of the time
    ce_tokens: int | None = None  #: measure losses on no more of the sample than about so many tokens

    def __post_init__(self) -> None:
        for option, limit in (("--max-tokens", self.max_tokens), ("--ce-tokens", self.ce_tokens)):
            require(limit is None or limit >= 1, f"{option} is {limit}; it must be positive.")
            require_at_most(option, limit or 0, LARGEST_COUNT)
        require(self.context_length >= 4, f"--context is {self.context_length}; at least 4 tokens are needed.")
        require_at_most("--context", self.context_length, LONGEST_CONTEXT)
        require_batch(self.batch_size, self.context_length)
        require_seed(self.seed)


def evaluate(
    model: LanguageModel,
    saes: Sequence[SparseAutoencoder],
    documents: Sequence[Document],
    options: EvaluationOptions | None = None,
) -> list[Evaluation]:
    """One evaluation per SAE, in order, all on the same tokens; several SAEs may read one layer.

    Raises UsageError for SAEs that do not fit the model, or documents that are too short or were all seen in training.
    """
    options = options or EvaluationOptions()
    check_saes(model, saes)
    check_window(model.name, model.window, options.context_length)
    unseen, seen_by_sae = _unseen(saes, documents)
    batches = _cut(model, unseen, options)
    meters = [_Meter(sae) for sae in saes]
    with torch.no_grad():
        _complete_norm_medians(model, meters, batches)
        if options.ce:
            _check_resumption(model, {sae.site_out for sae in saes}, batches[0])
            _complete_means(model, meters, batches)
        for batch in _progress(batches, "Evaluate"):
            _measure(model, meters, batch)
    measured_on = {
        "tokens": sum(int(batch.lengths.sum()) for batch in batches),
        "documents": len({document for batch in batches for document in batch.documents}),
        "context_length": options.context_length,
        "bos": model.bos is not None,
        "seed": options.seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_sha256": model.sha256,
        "documents_left_out": len(documents) - len(unseen),
        "massive_norm_ratio": MASSIVE_NORM_RATIO,
        "dense_above": DENSE_SHARE,
    }
    return [meter.evaluation(measured_on, seen, options.ce) for meter, seen in zip(meters, seen_by_sae, strict=True)]


# ------------------------------------------------------------------------------------------------ on what


@dataclass(frozen=True)
class _ContextBatch(Padded):
    """Contexts of one category."""

    category: str
    documents: list[int]  #: of each context
    tokens: Tensor  #: [context, position] int64, padded on the right
    lengths: Tensor  #: [context]
    special: SpecialTokens
    ce: bool  #: whether losses are measured on it

    def contexts(self) -> list[NDArray[np.int32]]:
        """The token ids of each context, without padding."""
        lengths = self.lengths.tolist()
        return [ids[:n].numpy().astype(np.int32) for ids, n in zip(self.tokens, lengths, strict=True)]

    def reasons(self, x: Tensor, norm_median: float) -> Tensor:
        """[context, position] codes of inclusion.REASONS, by residuals x [context, position, d_model]."""
        codes = exclusion_reasons(x.norm(dim=-1), norm_median, self.lengths, self.tokens, self.special)
        return torch.from_numpy(codes)


def documents_seen(sae: SparseAutoencoder) -> set[str] | None:
    """First 16 digits of the sha256 of the documents an SAE was trained on or chosen by; None when it does not say."""
    parts = sae.metadata.get("documents")
    if not isinstance(parts, dict) or "train" not in parts:
        return None
    seen = set()
    for name in ("train", "select"):
        hashes = parts.get(name, [])
        if not isinstance(hashes, list) or not all(isinstance(entry, str) and len(entry) >= 16 for entry in hashes):
            return None
        seen |= {entry[:16].lower() for entry in hashes}
    return seen


def _unseen(
    saes: Sequence[SparseAutoencoder], documents: Sequence[Document]
) -> tuple[list[Document], list[set[str] | None]]:
    """The documents that no SAE has seen, so that all are measured on the same, and what each has seen."""
    seen_by_sae = [documents_seen(sae) for sae in saes]
    seen_by_any = set[str]().union(*(seen for seen in seen_by_sae if seen))
    unseen = [document for document in documents if document.sha256[:16] not in seen_by_any]
    if documents and not unseen:
        layers = [str(sae.layer) for sae, seen in zip(saes, seen_by_sae, strict=True) if seen]
        raise UsageError(
            f"All {len(documents)} documents are among those that the SAEs of layer {', '.join(layers)} were trained "
            "on or chosen by: give text that they never saw."
        )
    return unseen, seen_by_sae


def _cut(model: LanguageModel, documents: Sequence[Document], options: EvaluationOptions) -> list[_ContextBatch]:
    """A sample of contexts, in batches of one category each; whatever order the documents come in.

    Losses are measured on what the sample would be if it had ce_tokens tokens.
    """
    documents = sorted(documents, key=lambda document: (document.category, document.sha256))
    source, planned = planned_alone(model, documents, options.context_length)
    n_tokens = math.inf if options.max_tokens is None else options.max_tokens
    sample = sample_contexts(planned, n_tokens, options.seed)
    if not sample:
        raise UsageError("The text is too short to evaluate on: no document has 3 tokens. Give more text.")
    ce_tokens = (options.ce_tokens or math.inf) if options.ce else 0
    n_with_losses = len(sample_contexts(planned, ce_tokens, options.seed))
    special = special_tokens(model)
    parts: dict[tuple[bool, str], list[Context]] = {}
    for i, context in enumerate(sample):
        parts.setdefault((i < n_with_losses, planned[context.document_id].category), []).append(context)
    batches: list[_ContextBatch] = []
    for (ce, category), contexts in sorted(parts.items()):
        # Contexts of like length side by side need little padding.
        contexts.sort(key=lambda context: (-context.n_tokens, context.document_id, context.first_token))
        for start in range(0, len(contexts), options.batch_size):
            chosen = contexts[start : start + options.batch_size]
            windows = [source.context(context, planned[context.document_id].sha256) for context in chosen]
            batches.append(_ContextBatch(category, [c.document_id for c in chosen], *padded(windows), special, ce))
    return batches


def _progress(batches: Sequence[_ContextBatch], what: str) -> Iterator[_ContextBatch]:
    """The batches, with a bar on stderr."""
    with bar(what, sum(int(batch.lengths.sum()) for batch in batches), "token") as progress:
        for batch in batches:
            yield batch
            progress.update(int(batch.lengths.sum()))


# ------------------------------------------------------------------------------------------------ one SAE


class _Meter:
    """One SAE while it is measured."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        self.norm_median = sae.norm_median
        self.mean = None if sae.mean is None else sae.mean.float()
        self.sums: dict[str, Sums] = {}

    @property
    def median(self) -> float:
        assert self.norm_median is not None
        return self.norm_median

    def part(self, category: str) -> Sums:
        if category not in self.sums:
            self.sums[category] = Sums.empty(self.sae.d_model, self.sae.d_sae)
        return self.sums[category]

    def evaluation(self, shared: dict[str, Any], seen: set[str] | None, ce: bool) -> Evaluation:
        """The figures of all that was added; shared: what all SAEs are measured on, seen: the documents of this one."""
        pooled = Sums.empty(self.sae.d_model, self.sae.d_sae)
        for _, sums in sorted(self.sums.items()):
            pooled.merge(sums)
        categories = {category: sums.figures() for category, sums in sorted(self.sums.items())}
        total = pooled.figures()
        measured_on = {
            **shared,
            "overlap_checked": seen is not None,
            "norm_median": self.median,
            "norm_median_from": "training" if self.sae.norm_median is not None else "evaluation",
        }
        if ce:
            measured_on["mean_from"] = "training" if self.sae.mean is not None else "evaluation"
        return Evaluation(
            layer=self.sae.layer,
            sae_sha256=self.sae.sha256,
            source=self.sae.source,
            all=total,
            macro=macro_average(total, list(categories.values())),
            categories=categories,
            measured_on=measured_on,
            notes=list(self._notes(measured_on, total)),
        )

    def _notes(self, measured_on: dict[str, Any], figures: Figures) -> Iterator[str]:
        """What a reader of the figures must know."""
        if left_out := measured_on["documents_left_out"]:
            verb = "was" if left_out == 1 else "were"
            yield f"{left_out} of the documents {verb} left out: the SAEs were trained on them or chosen by them."
        if not measured_on["overlap_checked"]:
            yield "the SAE does not say which documents it was trained on, so overlap with these could not be checked."
        if measured_on["norm_median_from"] == "evaluation":
            yield "the norm median is that of the evaluated tokens: the SAE has none of its own."
        if measured_on.get("mean_from") == "evaluation":
            yield "mean ablation puts in the mean of the evaluated tokens: the SAE has none of its training."
        if not figures.n_tokens:
            yield "no token is included, so there are no figures: its norm median does not fit the model."


# ------------------------------------------------------------------------------------------------ measuring


def _complete_norm_medians(model: LanguageModel, meters: Sequence[_Meter], batches: Sequence[_ContextBatch]) -> None:
    """Median ‖x‖ over all evaluated tokens, for SAEs that have none."""
    if lacking := [meter for meter in meters if meter.norm_median is None]:
        contexts = (ids for batch in _progress(batches, "Norm medians") for ids in batch.contexts())
        medians = norm_medians(model, contexts, {meter.sae.site: meter.sae.site for meter in lacking})
        for meter in lacking:
            meter.norm_median = medians[meter.sae.site]


def _complete_means(model: LanguageModel, meters: Sequence[_Meter], batches: Sequence[_ContextBatch]) -> None:
    """Mean x over the included evaluated tokens, for SAEs that have none."""
    lacking = [meter for meter in meters if meter.mean is None]
    if not lacking:
        return
    spreads = [Spread(0, np.zeros(meter.sae.d_model)) for meter in lacking]
    sites = {site: site for meter in lacking for site in (meter.sae.site, meter.sae.site_out)}
    for batch in _progress(batches, "Means"):
        found = harvest(model, batch.tokens, sites)
        for meter, spread in zip(lacking, spreads, strict=True):
            x, y = found[meter.sae.site].float(), found[meter.sae.site_out].float()
            if len(included := y[batch.reasons(x, meter.median) == INCLUDED]):
                spread.merge(Spread.of(included.double().numpy()))
    for meter, spread in zip(lacking, spreads, strict=True):
        meter.mean = torch.from_numpy(spread.mean).float()


def _check_resumption(model: LanguageModel, sites: Iterable[Site], batch: _ContextBatch) -> None:
    """Raises ElwError when going on from a place does not give what the whole model gives."""
    if not resumes(model, batch.tokens[:1], sites):
        raise ElwError(
            f"{model.name} hands more than the residual stream from block to block, so that losses cannot be "
            "measured: evaluate without them (--no-ce)."
        )


def _measure(model: LanguageModel, meters: Sequence[_Meter], batch: _ContextBatch) -> None:
    """Add a batch to every SAE's sums."""
    sites = with_below(meter.sae.site_out for meter in meters) | {meter.sae.site: meter.sae.site for meter in meters}
    if batch.ce:
        with tensors_at(model, sites) as found:
            clean = _losses(model, model.hidden(batch.tokens), batch)
    else:
        found = harvest(model, batch.tokens, sites)
    ablated: dict[tuple[Site, Site, float, bytes], Tensor] = {}  # SAEs of a place share what does not depend on them
    for meter in meters:
        x, y = found[meter.sae.site], found[meter.sae.site_out]
        below = found.get(meter.sae.site_out.before_block)
        reasons = batch.reasons(x.float(), meter.median)
        included = reasons == INCLUDED
        sums = meter.part(batch.category)
        reconstruction = _add_reconstruction(meter.sae, sums, batch, x.float(), y.float(), reasons)
        if not batch.ce or not len(reconstruction):
            continue
        counted = (included.cumsum(1) > 0) & batch.has_next
        assert meter.mean is not None
        losses = {"clean": clean, "sae": _replaced_losses(model, meter, batch, y, below, included, reconstruction)}
        for arm, row in (("zero", torch.zeros_like(meter.mean)), ("mean", meter.mean)):
            key = (meter.sae.site, meter.sae.site_out, meter.median, row.numpy().tobytes())
            if key not in ablated:
                ablated[key] = _replaced_losses(model, meter, batch, y, below, included, row)
            losses[arm] = ablated[key]
        sums.n_loss_tokens += int(counted.sum())
        for arm, values in losses.items():
            sums.losses[arm] = sums.losses.get(arm, 0.0) + float(values[counted].sum())


def _add_reconstruction(
    sae: SparseAutoencoder, sums: Sums, batch: _ContextBatch, read: Tensor, written: Tensor, reasons: Tensor
) -> Tensor:
    """Add a batch's reconstruction figures; returns x̂ [n, d_model] of its n included tokens.

    read, written: [context, position, width] float32, the same tensor but for a transcoder
    """
    included = reasons == INCLUDED
    n_included = included.sum(1)
    sums.n_excluded += int(batch.places.sum() - n_included.sum())
    sums.n_massive += int(((reasons == MASSIVE) & batch.places).sum())
    sums.documents |= {document for document, n in zip(batch.documents, n_included.tolist(), strict=True) if n}
    x, y = read[included], written[included]
    if not len(x):
        return y
    activations = sae.encode(x)
    reconstruction = sae.decode(activations, x)
    sums.fired += torch.bincount(activations.indices[activations.values != 0], minlength=sae.d_sae).numpy()
    # A mean that is handed through is no merit of the SAE's: it counts neither as variance nor as made up.
    wanted = sae.to_be_made_up(y)
    made_up = reconstruction - (y - wanted)
    sums.spread.merge(Spread.of(wanted.double().numpy()))
    sums.error += float((y.double() - reconstruction.double()).square().sum())
    sums.cosine += float(torch.cosine_similarity(wanted, made_up, dim=1).double().sum())
    return reconstruction


def _replaced_losses(
    model: LanguageModel,
    meter: _Meter,
    batch: _ContextBatch,
    y: Tensor,
    below: Tensor | None,
    included: Tensor,
    rows: Tensor,
) -> Tensor:
    """[context, position] losses with rows ([n, d_model], or one for all) for y at the n included tokens.

    y: what is where the SAE writes; below: what goes into that block.
    """
    replaced = y.clone()
    replaced[included] = rows.to(y.dtype)
    return _losses(model, hidden_from(model, batch.tokens, meter.sae.site_out, replaced, below), batch)


def _losses(model: LanguageModel, hidden: Tensor, batch: _ContextBatch) -> Tensor:
    """[context, position] float64 nats of the final norm's output; 0 where there is no next token."""
    targets = batch.tokens.roll(-1, dims=1)[batch.has_next]
    losses = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    losses[batch.has_next] = next_token_losses(model, hidden[batch.has_next], targets).double()
    return losses
