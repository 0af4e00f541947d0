"""Fitting a tuned lens: a corpus and a model in, an affine map of each layer's residuals out.

The logit lens reads a middle layer as if it were the last one and is confidently wrong there. A tuned lens puts an
affine map of each layer before it, fitted once on training documents (Belrose et al. 2023, arXiv 2303.08112):

  q_t = softmax(W_U·norm_f(A·x_t + b))

1. Ridge regression of the last residual on x over included tokens; each token's last residual is brought to a root
   mean square of 1 first, since the final norm takes its length away anyway. Two moments a layer, and closed form.
2. From there, Adam on KL(p_t‖q_t), p_t the model's own next-token distribution: what the lens is used for. Gradients
   at the unembedding are closed form, W_Uᵀ(q − p), so no graph is built over the vocabulary.

The figures kept with the maps are measured on documents that neither step saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from energy_lens.errors import LARGEST_COUNT, LONGEST_CONTEXT, UsageError, require, require_at_most, require_seed
from energy_lens.ingest.contexts import Ids, of_equal_length, parts_of, side_by_side, special_tokens
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.energies.translators import Translator, Translators
from energy_lens.ingest.inclusion import included_everywhere
from energy_lens.ingest.model.configuration import check_window
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import harvest_residuals, norm_medians
from energy_lens.ingest.model.sites import Site
from energy_lens.ingest.model.unembedding import divergence, expected_rows, next_token_losses, next_token_nll
from energy_lens.ingest.training.activation_store import MEDIAN_TOKENS
from energy_lens.ingest.training.documents import cut_contexts, shuffled_contexts, split_documents


@dataclass(frozen=True)
class FitOptions:
    """How a tuned lens is fitted."""

    tokens: int = 131_072  #: training tokens, each seen once by the regression and once by the gradient steps
    test_tokens: int = 20_000  #: held-out tokens for the figures
    ridge: float = 1e-3  #: of the mean variance of x, added to its covariance
    learning_rate: float = 3e-3  #: of Adam at its highest; 0: stop after the regression
    batch_contexts: int = 8
    context_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.context_length >= 4, f"--context is {self.context_length}; at least 4 tokens are needed.")
        require_at_most("--context", self.context_length, LONGEST_CONTEXT)
        least = self.batch_contexts * self.context_length
        require(self.tokens >= least, f"--tokens is {self.tokens}; give at least {least:,}.")
        require(0 <= self.learning_rate <= 1, f"learning_rate is {self.learning_rate}; it must lie between 0 and 1.")
        require(0 < self.ridge < 1e6, f"ridge is {self.ridge}; it must be positive, and below a million.")
        require_at_most("--tokens", self.tokens, LARGEST_COUNT)
        require_seed(self.seed)


@dataclass(frozen=True)
class _TokenBatch:
    """Included tokens of some contexts that have a next one."""

    residuals: Mapping[int, Tensor]  #: layer: x [n, d_model], in the model's precision
    last: Tensor  #: the last block's output [n, d_model]
    hidden: Tensor  #: the final norm's output [n, d_model]
    next_tokens: Tensor  #: [n] int64


def fit_translators(
    model: LanguageModel,
    documents: Sequence[Document],
    layers: Sequence[int],
    options: FitOptions,
    on_progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Translators:
    """Fit a map for each layer on the training documents, and measure it on the test ones.

    Documents are split as for SAEs, by content. on_progress: what is done, and the share of it that is.
    Raises UsageError for layers that the model lacks, the last one among them, and for a corpus that is too short.
    """
    model.check_layers(layers)
    check_window(model.name, model.window, options.context_length)
    if model.n_layers - 1 in layers:
        raise UsageError(f"Layer {model.n_layers - 1} is the last one of {model.name}, which needs no lens (--layers).")
    layers = sorted(set(layers))
    parts = split_documents(documents)
    step_tokens = options.batch_contexts * options.context_length
    contexts = shuffled_contexts(
        model, parts["train"], options.tokens, options.context_length, options.seed,
        options.batch_contexts * (options.context_length - 2),
    )  # fmt: skip
    first = of_equal_length(parts_of(contexts, MEDIAN_TOKENS)[0], step_tokens)
    medians = norm_medians(model, first, {layer: Site(layer) for layer in [*layers, model.n_layers - 1]})

    def batches(contexts: Sequence[Ids], what: str) -> Iterator[_TokenBatch]:
        pieces = parts_of(contexts, step_tokens)
        for done, piece in enumerate(pieces, 1):
            batch = _read(model, piece, layers, medians, step_tokens)
            if len(batch.next_tokens):
                yield batch
            on_progress(what, done / len(pieces))

    translators, n_tokens = _regressed(model, layers, batches(contexts, "regression"), options.ridge)
    if options.learning_rate:
        n_steps = len(parts_of(contexts, step_tokens))
        translators = _descended(model, translators, batches(contexts, "gradient steps"), n_steps, options)
    metadata: dict[str, Any] = {
        "fit": asdict(options),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokens": n_tokens,
        "documents": {name: [document.sha256[:16] for document in part] for name, part in parts.items()},
    }
    test = cut_contexts(model, parts["test"], options.context_length)
    if test:
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(options.seed)).tolist()
        test = parts_of([test[i] for i in order], options.test_tokens)[0]
        if figures := _held_out_figures(model, translators, batches(test, "held-out figures")):
            metadata["held_out"] = figures
    return Translators(translators, model.name, metadata=metadata)


@torch.no_grad()
def _read(
    model: LanguageModel, contexts: Sequence[Ids], layers: Sequence[int], medians: Mapping[int, float], n_places: int
) -> _TokenBatch:
    """Residuals of contexts at the tokens that are included at every layer, each of which has a next one."""
    top, special = model.n_layers - 1, special_tokens(model)
    residuals: dict[int, list[Tensor]] = {layer: [] for layer in [*layers, top]}
    next_tokens = []
    for tokens, lengths in side_by_side(contexts, n_places):
        x = harvest_residuals(model, tokens, [*layers, top])
        mask = included_everywhere({layer: x[layer] for layer in layers}, medians, lengths, tokens, special)
        for layer, kept in residuals.items():
            kept.append(x[layer][mask])
        next_tokens.append(tokens.roll(-1, dims=1)[mask])
    included = {layer: torch.cat(kept) for layer, kept in residuals.items()}
    last = included[top]
    return _TokenBatch(
        {layer: included[layer] for layer in layers}, last, model.final_norm(last), torch.cat(next_tokens)
    )


@torch.no_grad()
def _regressed(
    model: LanguageModel, layers: Sequence[int], batches: Iterator[_TokenBatch], ridge: float
) -> tuple[dict[int, Translator], int]:
    """Ridge regression of the last residual, at a root mean square of 1, on each layer's residuals; and the tokens."""
    d, n = model.d_model, 0
    target_sum = torch.zeros(d, dtype=torch.float64)
    sums = {layer: torch.zeros(d, dtype=torch.float64) for layer in layers}
    squares = {layer: torch.zeros(d, d, dtype=torch.float64) for layer in layers}
    products = {layer: torch.zeros(d, d, dtype=torch.float64) for layer in layers}
    for batch in batches:
        last = batch.last.float()
        target = last * (d**0.5 / last.norm(dim=-1, keepdim=True))
        n += len(target)
        target_sum += target.double().sum(0)
        for layer in layers:
            x = batch.residuals[layer].float()
            sums[layer] += x.double().sum(0)
            squares[layer] += (x.T @ x).double()
            products[layer] += (x.T @ target).double()
    if n <= d:
        raise UsageError(f"{n} tokens are too few to fit a map of width {d}: give more text or --tokens.")
    target_mean = target_sum / n
    fitted = {}
    for layer in layers:
        mean = sums[layer] / n
        covariance = squares[layer] / n - mean.outer(mean)
        cross = products[layer] / n - mean.outer(target_mean)
        damping = ridge * covariance.diagonal().mean() * torch.eye(d, dtype=torch.float64)
        weight = torch.linalg.solve(covariance + damping, cross)
        fitted[layer] = Translator(weight.float(), (target_mean - mean @ weight).float())
    return fitted, n


def _descended(
    model: LanguageModel,
    translators: Mapping[int, Translator],
    batches: Iterator[_TokenBatch],
    n_steps: int,
    options: FitOptions,
) -> dict[int, Translator]:
    """Adam on the mean KL(p‖q) of each batch, from the given maps on; the learning rate falls linearly to 0.

    x is divided by the first batch's mean norm meanwhile, so that one learning rate serves every layer.
    """
    scales: dict[int, float] = {}
    fitted: dict[int, tuple[Tensor, Tensor]] = {}
    optimisers: dict[int, torch.optim.Optimizer] = {}
    for step, batch in enumerate(batches):
        expected = expected_rows(model, batch.hidden)
        for layer, before in translators.items():
            x = batch.residuals[layer].float()
            if step == 0:
                scales[layer] = float(x.norm(dim=-1).mean())
                weight, bias = before.weight * scales[layer], before.bias.clone()
                fitted[layer] = (weight.requires_grad_(True), bias.requires_grad_(True))
                optimisers[layer] = torch.optim.Adam(fitted[layer], betas=(0.9, 0.99))
            weight, bias = fitted[layer]
            for group in optimisers[layer].param_groups:
                group["lr"] = options.learning_rate * (1 - step / n_steps)
            hidden = model.final_norm(torch.addmm(bias, x / scales[layer], weight).to(model.dtype))
            optimisers[layer].zero_grad()
            hidden.backward((expected_rows(model, hidden.detach()) - expected) / len(x))
            optimisers[layer].step()
    return {
        layer: Translator((weight / scales[layer]).detach(), bias.detach()) for layer, (weight, bias) in fitted.items()
    }


@torch.no_grad()
def _held_out_figures(
    model: LanguageModel, translators: Mapping[int, Translator], batches: Iterator[_TokenBatch]
) -> dict[str, Any]:
    """Mean loss and KL(p‖q) in nats, by layer, of the logit lens and of the tuned lens; the model's own loss.

    Empty when no token is included.
    """
    n, output = 0, 0.0
    sums = {(layer, lens): [0.0, 0.0] for layer in translators for lens in ("logit_lens", "tuned_lens")}
    for batch in batches:
        losses, gradients = next_token_nll(model, batch.hidden, batch.next_tokens)
        n, output = n + len(losses), output + float(losses.double().sum())
        for layer, translator in translators.items():
            x = batch.residuals[layer]
            for lens, read in (("logit_lens", x), ("tuned_lens", translator(x))):
                hidden = model.final_norm(read)
                lens_losses = next_token_losses(model, hidden, batch.next_tokens)
                kl = divergence(model, (lens_losses, hidden), (losses, batch.hidden, gradients))
                sums[layer, lens][0] += float(lens_losses.double().sum())
                sums[layer, lens][1] += float(kl.double().sum())
    if not n:
        return {}
    layers = {
        str(layer): {
            f"{lens}_{what}": sums[layer, lens][i] / n
            for lens in ("logit_lens", "tuned_lens")
            for i, what in enumerate(("loss", "kl"))
        }
        for layer in translators
    }
    return {"tokens": n, "output_loss": output / n, "layers": layers}
