"""Train TopK SAEs for several layers at once, in one pass over a corpus.

1. Documents are split by content hash into train, select and test; test documents decide nothing.
2. Contexts of the training documents, in seeded order, run through the model; the residuals of all layers fill one
   shuffled buffer. Excluded tokens (first of a context, massive norms) are left out.
3. Each layer's SAE takes Adam steps on x·s, where s makes the mean norm √d_model; unit decoder rows, with the
   gradient along them removed; an auxiliary loss lets features that stopped firing model the error.
4. s is folded back: activations are in residual units, decoder rows keep unit norm.
5. Quartiles of each feature's active values and held-out figures are measured and stored with the weights.

Sources: TopK and the auxiliary loss from Gao et al. 2024 (arXiv 2406.04093), sections 2.3 and A.2; unit decoder rows
with the parallel gradient removed from Bricken et al. 2023 (Towards Monosemanticity, appendix).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energy_lens.ingest.corpus import Document
from energy_lens.ingest.inclusion import MASSIVE_NORM_RATIO, included_tokens
from energy_lens.ingest.models import LanguageModel, harvest_residuals
from energy_lens.ingest.sae import SparseActivations, SparseAutoencoder, weighted_rows
from energy_lens.warehouse.errors import UsageError

#: Share of the training documents held out for choosing (select) and for reporting (test).
SELECT_SHARE, TEST_SHARE = 0.05, 0.10

#: Contexts of the test documents on which the stored figures are measured.
TEST_CONTEXTS = 256


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run depends on, apart from model and documents."""

    d_sae: int = 2048  #: features
    k: int = 8  #: active features per token
    tokens: int = 2_000_000  #: tokens to train on
    batch_size: int = 1024  #: tokens per step
    learning_rate: float = 2e-3  #: of Adam at its highest
    warmup_share: float = 0.02  #: of the steps, linear from 0
    decay_share: float = 0.25  #: of the steps, linear to 0
    auxiliary: float = 1 / 32  #: weight of the dead features' loss
    dead_after: int = 50_000  #: a feature that has not fired for so many tokens counts as dead
    buffer_tokens: int = 65_536  #: residuals that are shuffled together
    context_length: int = 128
    model_batch: int = 32  #: contexts per forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.d_sae:
            raise UsageError(f"k is {self.k}; it must lie between 1 and the number of features, {self.d_sae}.")
        least_buffer = 2 * max(self.batch_size, self.context_length)
        checks = [
            (self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be positive"),
            (self.model_batch >= 1, f"model_batch is {self.model_batch}; it must be positive"),
            (self.context_length >= 2, f"context_length is {self.context_length}; it must be at least 2"),
            (self.seed >= 0, f"seed is {self.seed}; it must not be negative"),
            (
                self.buffer_tokens >= least_buffer,
                f"buffer_tokens is {self.buffer_tokens}; it must be at least {least_buffer}, two batches or contexts",
            ),
        ]
        for ok, message in checks:
            if not ok:
                raise UsageError(message + ".")
        if self.tokens < self.batch_size:
            raise UsageError(f"{self.tokens} tokens are less than one step of {self.batch_size}: train on more.")


@dataclass
class Progress:
    """State of a training run after a step."""

    tokens: int
    seconds: float
    fvu: dict[int, float]  #: by layer, on the latest batches
    dead_share: dict[int, float]


def split_documents(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents by part (train, select, test), decided by content alone."""
    parts: dict[str, list[Document]] = {"train": [], "select": [], "test": []}
    for document in documents:
        u = int(document.sha256[:8], 16) / 2**32
        name = "test" if u < TEST_SHARE else "select" if u < TEST_SHARE + SELECT_SHARE else "train"
        parts[name].append(document)
    if not parts["train"]:
        raise UsageError("All documents fell into the held-out parts: train on more documents.")
    return parts


def cut_contexts(model: LanguageModel, documents: Sequence[Document], length: int) -> Tensor:
    """[n, length] token ids: the full contexts of the documents, in document order."""
    pieces = []
    for document in documents:
        ids = torch.tensor(model.tokenize(document.text()), dtype=torch.int32)
        pieces.append(ids[: len(ids) // length * length].view(-1, length))
    return torch.cat(pieces) if pieces else torch.empty(0, length, dtype=torch.int32)


class _Trainer:
    """One layer's SAE while it is trained, in units where the mean norm of a residual is √d_model."""

    def __init__(self, layer: int, sample: Tensor, norm_median: float, config: TrainingConfig) -> None:
        """sample: [n, d_model] residuals of included tokens, for the scale and the first b_dec."""
        d_model = sample.shape[1]
        generator = torch.Generator().manual_seed(config.seed * 1_000 + layer)
        self.layer = layer
        self.config = config
        self.norm_median = norm_median
        self.scale = math.sqrt(d_model) / float(sample.norm(dim=1).mean())
        rows = torch.randn(config.d_sae, d_model, generator=generator)
        self.W_dec = torch.nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        self.W_enc = torch.nn.Parameter(self.W_dec.detach().T.clone())
        self.b_enc = torch.nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = torch.nn.Parameter(_geometric_median(sample * self.scale))
        self.parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.999))
        self.idle_tokens = torch.zeros(config.d_sae)
        self.mean = (sample * self.scale).mean(0)
        self.error, self.variance = 0.0, 0.0

    def step(self, x: Tensor, learning_rate: float) -> None:
        """One Adam step on residuals x [batch, d_model]."""
        config = self.config
        x = x * self.scale
        h = (x - self.b_dec) @ self.W_enc + self.b_enc
        values, indices = h.topk(config.k, dim=-1, sorted=False)
        reconstruction = weighted_rows(SparseActivations(values.relu(), indices), self.W_dec) + self.b_dec
        error = x - reconstruction
        variance = (x - self.mean).square().sum()
        loss = error.square().sum() / variance

        dead = self.idle_tokens > config.dead_after
        n_dead = int(dead.sum())
        if n_dead and config.auxiliary:
            n_used = min(n_dead, x.shape[1] // 2)
            dead_rows = dead.nonzero()[:, 0]
            dead_values, slots = h[:, dead_rows].topk(n_used, dim=-1, sorted=False)
            guess = weighted_rows(SparseActivations(dead_values.relu(), dead_rows[slots]), self.W_dec)
            target = error.detach()
            loss = loss + config.auxiliary * (target - guess).square().sum() / target.square().sum()

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient = self.W_dec.grad
        assert gradient is not None
        gradient -= (gradient * self.W_dec.data).sum(1, keepdim=True) * self.W_dec.data
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.W_dec.data /= self.W_dec.data.norm(dim=1, keepdim=True)

        fired = torch.zeros(config.d_sae, dtype=torch.bool)
        fired[indices[values > 0]] = True
        self.idle_tokens += len(x)
        self.idle_tokens[fired] = 0
        self.error = 0.98 * self.error + 0.02 * float(error.detach().square().sum())
        self.variance = 0.98 * self.variance + 0.02 * float(variance)

    @property
    def fvu(self) -> float:
        return self.error / self.variance if self.variance else math.nan

    @property
    def dead_share(self) -> float:
        return float((self.idle_tokens > self.config.dead_after).float().mean())

    def finished(self, model_name: str) -> SparseAutoencoder:
        """The SAE in residual units: with a scaled by 1/s the rows stay unit vectors and only biases change."""
        return SparseAutoencoder(
            layer=self.layer,
            k=self.config.k,
            W_enc=self.W_enc.detach().clone(),
            b_enc=self.b_enc.detach() / self.scale,
            W_dec=self.W_dec.detach().clone(),
            b_dec=self.b_dec.detach() / self.scale,
            norm_median=self.norm_median,
            model_name=model_name,
        )


def train_saes(
    model: LanguageModel,
    documents: Sequence[Document],
    layers: Sequence[int],
    config: TrainingConfig,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[SparseAutoencoder]:
    """Train one SAE per layer, in the order given; each carries its held-out figures in `metadata`.

    Raises UsageError for layers that the model lacks or a corpus that is shorter than one buffer.
    """
    model.check_layers(layers)
    layers = list(dict.fromkeys(layers))
    parts = split_documents(documents)
    contexts = cut_contexts(model, parts["train"], config.context_length)
    order = np.random.default_rng(config.seed).permutation(len(contexts))
    contexts = contexts[torch.from_numpy(order)]
    if contexts.numel() < 2 * config.buffer_tokens:
        raise UsageError(
            f"The training documents hold {contexts.numel()} tokens in full contexts, less than two buffers of "
            f"{config.buffer_tokens}: give more text or a smaller buffer."
        )
    started = time.monotonic()
    norm_medians, first = _first_look(model, contexts, layers, config)
    trainers = [_Trainer(layer, first[layer].float(), norm_medians[layer], config) for layer in layers]
    n_steps = config.tokens // config.batch_size
    batches = _batches(model, contexts, layers, norm_medians, config)
    for step in range(n_steps):
        batch = next(batches)
        rate = config.learning_rate * _schedule(step / n_steps, config)
        for trainer in trainers:
            trainer.step(batch[trainer.layer].float(), rate)
        if step % 20 == 19 or step == n_steps - 1:
            fvu = {trainer.layer: trainer.fvu for trainer in trainers}
            dead = {trainer.layer: trainer.dead_share for trainer in trainers}
            done = (step + 1) * config.batch_size
            on_progress(Progress(done, time.monotonic() - started, fvu, dead))

    saes = [trainer.finished(model.name) for trainer in trainers]
    _add_quartiles(saes, batches, config)
    test = cut_contexts(model, parts["test"], config.context_length)
    if len(test) > TEST_CONTEXTS:
        test = test[np.random.default_rng(config.seed).permutation(len(test))[:TEST_CONTEXTS]]
    for sae in saes:
        sae.metadata = {
            "trained_tokens": n_steps * config.batch_size,
            "seed": config.seed,
            "test_documents": sorted(document.path for document in parts["test"]),
            **(_held_out(model, test, sae, config) if len(test) else {}),
        }
    return saes


def _first_look(
    model: LanguageModel, contexts: Tensor, layers: Sequence[int], config: TrainingConfig
) -> tuple[dict[int, float], dict[int, Tensor]]:
    """Norm medians over the first half buffer of tokens, and its included residuals; both by layer."""
    n_contexts = config.buffer_tokens // 2 // config.context_length
    pieces: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for tokens in contexts[:n_contexts].split(config.model_batch):
        for layer, x in harvest_residuals(model, tokens.long(), layers).items():
            pieces[layer].append(x.bfloat16())
    medians, residuals = {}, {}
    for layer in layers:
        x = torch.cat(pieces[layer])
        norms = x.float().norm(dim=-1)
        medians[layer] = float(norms.median())
        residuals[layer] = x[included_tokens(norms, medians[layer])]
    return medians, residuals


def _batches(
    model: LanguageModel,
    contexts: Tensor,
    layers: Sequence[int],
    norm_medians: dict[int, float],
    config: TrainingConfig,
) -> Iterator[dict[int, Tensor]]:
    """Endless batches by layer, [batch_size, d_model], from a buffer that is refilled when half of it is used.

    A token is taken when it is included at every layer, so that all layers train on the same tokens.
    """
    generator = torch.Generator().manual_seed(config.seed)
    kept: dict[int, Tensor] = {}
    chunks = _endless(contexts, config.model_batch)
    while True:
        pieces: dict[int, list[Tensor]] = {layer: [kept[layer]] if kept else [] for layer in layers}
        n_tokens = len(kept[layers[0]]) if kept else 0
        while n_tokens < config.buffer_tokens:
            residuals = harvest_residuals(model, next(chunks).long(), layers)
            included = torch.stack(
                [included_tokens(residuals[layer].float().norm(dim=-1), norm_medians[layer]) for layer in layers]
            ).all(0)
            n_tokens += int(included.sum())
            for layer in layers:
                pieces[layer].append(residuals[layer][included].bfloat16())
        order = torch.randperm(n_tokens, generator=generator)
        half = n_tokens // 2 // config.batch_size * config.batch_size
        shuffled = {layer: torch.cat(pieces.pop(layer))[order] for layer in layers}
        for start in range(0, half, config.batch_size):
            yield {layer: x[start : start + config.batch_size] for layer, x in shuffled.items()}
        kept = {layer: x[half:] for layer, x in shuffled.items()}


def _endless(contexts: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        yield from contexts.split(size)


def _schedule(share: float, config: TrainingConfig) -> float:
    """Warm-up and decay: the learning rate's factor after `share` of the steps."""
    up = share / config.warmup_share if config.warmup_share else 1.0
    down = (1 - share) / config.decay_share if config.decay_share else 1.0
    return min(1.0, up, down)


def _geometric_median(x: Tensor, iterations: int = 50) -> Tensor:
    """Weiszfeld's algorithm on x [n, d]: the point with the smallest summed distance, [d]."""
    centre = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - centre).norm(dim=1).clamp_min(1e-6)
        centre = (x * weights[:, None]).sum(0) / weights.sum()
    return centre


def _add_quartiles(
    saes: Sequence[SparseAutoencoder], batches: Iterator[dict[int, Tensor]], config: TrainingConfig
) -> None:
    """Quartiles of each feature's active values over about 100 k training tokens; NaN below 40 active tokens."""
    active: dict[int, list[tuple[Tensor, Tensor]]] = {sae.layer: [] for sae in saes}
    for _ in range(max(1, 100_000 // config.batch_size)):
        batch = next(batches)
        for sae in saes:
            values, indices = sae.encode(batch[sae.layer].float())
            active[sae.layer].append((values[values > 0], indices[values > 0]))
    for sae in saes:
        values, indices = (torch.cat(part) for part in zip(*active[sae.layer], strict=True))
        sae.quartiles = torch.full((sae.d_sae, 3), math.nan)
        order = indices.argsort()
        counts = torch.bincount(indices, minlength=sae.d_sae).tolist()
        for feature, own in enumerate(values[order].split(counts)):
            if len(own) >= 40:
                sae.quartiles[feature] = own.quantile(torch.tensor([0.25, 0.5, 0.75]))


@torch.no_grad()
def _held_out(model: LanguageModel, contexts: Tensor, sae: SparseAutoencoder, config: TrainingConfig) -> dict[str, Any]:
    """FVU, L0, cosine and dead share over the included tokens of held-out contexts [n, length].

    FVU = Σ‖x − x̂‖² / Σ‖x − x̄‖², with x̄ the mean over the same tokens.
    """
    assert sae.norm_median is not None
    pieces = []
    for tokens in contexts.split(config.model_batch):
        x = harvest_residuals(model, tokens.long(), [sae.layer])[sae.layer].float()
        pieces.append(x[included_tokens(x.norm(dim=-1), sae.norm_median)])
    x = torch.cat(pieces)
    activations = sae.encode(x)
    reconstruction = sae.decode(activations)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    fired[activations.indices[activations.values > 0]] = True
    error = (x - reconstruction).double().square().sum()
    variance = (x - x.mean(0)).double().square().sum()
    return {
        "test_tokens": len(x),
        "fvu": float(error / variance),
        "l0": float((activations.values > 0).double().sum(1).mean()),
        "cosine": float(torch.cosine_similarity(x, reconstruction, dim=1).mean()),
        "dead_share": float(1 - fired.double().mean()),
        "massive_norm_ratio": MASSIVE_NORM_RATIO,
    }
