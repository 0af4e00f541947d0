"""Batches of residuals in, an SAE out: steps of Adam whose gradients are taken at active features only.

With k of m features active a token, the gradients of both weight matrices are products of a sparse matrix [m, batch]
with a dense one [batch, d_model], m/k times cheaper than autograd's dense ones. What stays dense is the encoder's
product that finds the k largest. The loss is

    L = Σ‖x − x̂‖² / Σ‖x − x̄‖² + auxiliary · Σ‖e − ê‖² / Σ‖e‖²,   e = x − x̂,

where ê is what the features that stopped firing make of e: without it they would never come back.

Sources: TopK and the auxiliary loss from Gao et al. 2024 (arXiv 2406.04093), sections 2.3 and A.2; BatchTopK from
Bussmann et al. 2024 (arXiv 2412.06410); unit decoder rows with the parallel gradient removed from Bricken et al. 2023
(Towards Monosemanticity, appendix).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: A step's part in the running figures: FVU, and BatchTopK's threshold.
MOMENTUM = 0.02


@dataclass(frozen=True)
class StepConfig:
    """What a step depends on."""

    architecture: str = "topk"  #: or "batchtopk": the k·batch largest of a batch, whatever token they are at
    auxiliary: float = 1 / 32  #: weight of the dead features' loss
    dead_after: int = 50_000  #: a feature that has not fired for so many tokens counts as dead
    scores: torch.dtype = torch.float32  #: precision in which the k largest are found; their values are float32


class Support(NamedTuple):
    """Which features are active where: a sparse matrix [token, feature] without its values."""

    rows: Tensor  #: [token + 1] where each token's entries begin
    columns: Tensor  #: [entry] features
    by_feature: Tensor  #: [entry] the order of the entries by feature
    features: Tensor  #: [feature + 1] where each feature's entries begin in that order
    tokens: Tensor  #: [entry] tokens, in that order

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows) - 1, len(self.features) - 1

    def matrix(self, values: Tensor) -> Tensor:
        """[token, feature] CSR."""
        return _csr(self.rows, self.columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """[feature, token] CSR."""
        return _csr(self.features, self.tokens, values[self.by_feature], self.shape[::-1])

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """⟨left[t], right[j]⟩ at each entry (t, j), from left [token, d] and right [feature, d]: [entry]."""
        pattern = self.matrix(left.new_ones(len(self.columns)))
        values: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
        return values

    @classmethod
    def joined(cls, parts: Sequence[Support]) -> Support:
        """The tokens of several supports, one after the other."""
        counts = torch.cat([part.rows.diff() for part in parts])
        tokens = torch.arange(len(counts)).repeat_interleave(counts)
        return cls.of(tokens, torch.cat([part.columns for part in parts]), len(counts), parts[0].shape[1])

    @classmethod
    def of(cls, tokens: Tensor, columns: Tensor, n_tokens: int, n_features: int) -> Support:
        """From the entries' tokens, in ascending order, and features."""
        order = columns.argsort(stable=True)
        return cls(_starts(tokens, n_tokens), columns, order, _starts(columns, n_features), tokens[order])


def top_k(scores: Tensor, k: int) -> Support:
    """The k largest of each row of scores [token, feature]."""
    columns = scores.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    tokens = torch.arange(len(scores)).repeat_interleave(k)
    return Support.of(tokens, columns.flatten(), *scores.shape)


def batch_top_k(scores: Tensor, k: int) -> Support:
    """The k·token largest of all scores [token, feature]."""
    entries = scores.flatten().topk(k * len(scores), sorted=False).indices.sort().values
    return Support.of(entries // scores.shape[1], entries % scores.shape[1], *scores.shape)


class Trainer:
    """One SAE while it is trained, in units where the mean norm of a residual is √d_model.

    `state` holds every tensor that a later step depends on: what a checkpoint keeps.
    """

    def __init__(self, layer: int, k: int, d_sae: int, sample: Tensor, config: StepConfig, seed: int) -> None:
        """sample: [n, d_model] residuals of included tokens, for the scale, the mean and the first b_dec."""
        d_model = sample.shape[1]
        generator = torch.Generator().manual_seed(seed * 1_000 + layer)
        self.layer, self.k, self.config = layer, k, config
        self.scale = math.sqrt(d_model) / float(sample.norm(dim=1).mean())
        directions = torch.randn(d_sae, d_model, generator=generator)
        self.decoder = directions / directions.norm(dim=1, keepdim=True)
        self.encoder = self.decoder.clone()  # rows, as the decoder's
        self.b_enc = torch.zeros(d_sae)
        self.b_dec = geometric_median(sample * self.scale)
        self.mean = (sample * self.scale).mean(0)
        self.idle_tokens = torch.zeros(d_sae)
        self.running = torch.zeros(3, dtype=torch.float64)  # squared error, variance, smallest activation
        self.parameters = [self.encoder, self.b_enc, self.decoder, self.b_dec]
        self._optimizer = torch.optim.Adam(self.parameters, lr=0.0, fused=True)
        for parameter in self.parameters:  # made now, so that a checkpoint can be read into them
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {"step": torch.zeros(()), **moments}

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, not copies, by name."""
        names = ("encoder", "b_enc", "decoder", "b_dec", "mean", "idle_tokens", "running")
        moments = {
            f"{name}.{key}": tensor
            for name, parameter in zip(names[:4], self.parameters, strict=True)
            for key, tensor in self._optimizer.state[parameter].items()
        }
        return {name: getattr(self, name) for name in names} | moments

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a state of the same trainer."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def step(self, x: Tensor, learning_rate: float) -> None:
        """One step on residuals x [batch, d_model]."""
        x = x.float() * self.scale
        scores = self._scores(x)
        support = self._chosen(scores)
        variance = (x - self.mean).square().sum()
        error, h = self.differentiate(x, support, variance)
        squared_error = error.square().sum()
        self._revive(x, scores, error, squared_error)

        slope = self.decoder.grad
        assert slope is not None
        slope.addcmul_((slope * self.decoder).sum(1, keepdim=True), self.decoder, value=-1)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)

        self.idle_tokens += len(x)
        self.idle_tokens[support.columns[h > 0]] = 0
        smallest = h[h > 0].min() if (h > 0).any() else h.new_zeros(())
        seen = torch.stack([squared_error, variance, smallest]).double()
        self.running.lerp_(seen, MOMENTUM if self.running[1] > 0 else 1.0)

    def differentiate(self, x: Tensor, support: Support, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Set the gradients of Σ‖x − x̂‖² / variance, for x [token, d_model] in the trainer's units.

        Returns e = x − x̂ [token, d_model] and h at the support, before relu [entry].
        """
        z = x - self.b_dec
        h = support.products(z, self.encoder) + self.b_enc[support.columns]
        a = h.relu()
        error = z - support.matrix(a) @ self.decoder
        slope = error * (-2 / variance)  # ∂L/∂x̂
        at_h = support.products(slope, self.decoder) * (h > 0)
        self.decoder.grad = support.transposed(a) @ slope
        self.encoder.grad = support.transposed(at_h) @ z
        self.b_enc.grad = torch.zeros_like(self.b_enc).index_add_(0, support.columns, at_h)
        self.b_dec.grad = slope.sum(0) - self.b_enc.grad @ self.encoder  # the encoder subtracts b_dec
        return error, h

    def support(self, x: Tensor) -> Support:
        """Active features of x [token, d_model], in the trainer's units."""
        return self._chosen(self._scores(x))

    def error(self, x: Tensor) -> Tensor:
        """x − x̂ of x [token, d_model], in the trainer's units."""
        support = self.support(x)
        z = x - self.b_dec
        a = (support.products(z, self.encoder) + self.b_enc[support.columns]).relu()
        error: Tensor = z - support.matrix(a) @ self.decoder
        return error

    def _scores(self, x: Tensor) -> Tensor:
        """h of every feature [token, d_sae], good enough to find the largest."""
        dtype = self.config.scores
        return torch.addmm(self.b_enc.to(dtype), (x - self.b_dec).to(dtype), self.encoder.to(dtype).T)

    def _chosen(self, scores: Tensor) -> Support:
        return (batch_top_k if self.config.architecture == "batchtopk" else top_k)(scores, self.k)

    def _revive(self, x: Tensor, scores: Tensor, error: Tensor, squared_error: Tensor) -> None:
        """Add the auxiliary loss's gradients at the features that stopped firing."""
        dead = (self.idle_tokens > self.config.dead_after).nonzero()[:, 0]
        if not len(dead) or not self.config.auxiliary:
            return
        support = top_k(scores[:, dead], min(len(dead), x.shape[1] // 2))
        z = x - self.b_dec
        encoder, decoder = self.encoder[dead], self.decoder[dead]
        h = support.products(z, encoder) + self.b_enc[dead][support.columns]
        a = h.relu()
        left = error - support.matrix(a) @ decoder
        slope = left * (-2 * self.config.auxiliary / squared_error)
        at_h = support.products(slope, decoder) * (h > 0)
        for parameter, gradient in (
            (self.decoder, support.transposed(a) @ slope),
            (self.encoder, support.transposed(at_h) @ z),
            (self.b_enc, torch.zeros(len(dead)).index_add_(0, support.columns, at_h)),
        ):
            assert parameter.grad is not None
            parameter.grad[dead] += gradient

    @property
    def fvu(self) -> float:
        """On the latest batches."""
        error, variance, _ = self.running.tolist()
        return error / variance if variance else math.nan

    @property
    def dead_share(self) -> float:
        return float((self.idle_tokens > self.config.dead_after).float().mean())

    def finished(self, norm_median: float, model_name: str) -> SparseAutoencoder:
        """The SAE in residual units: with a scaled by 1/s the rows stay unit vectors and only biases change.

        BatchTopK leaves one threshold for all features, the mean of the smallest activation of a batch: a JumpReLU SAE,
        which reads each token by itself.
        """
        by_token = self.config.architecture == "topk"
        smallest = float(self.running[2]) / self.scale
        return SparseAutoencoder(
            layer=self.layer,
            k=self.k if by_token else None,
            W_enc=self.encoder.T.clone(),
            b_enc=self.b_enc / self.scale,
            W_dec=self.decoder.clone(),
            b_dec=self.b_dec / self.scale,
            architecture="topk" if by_token else "jumprelu",
            threshold=None if by_token else torch.full_like(self.b_enc, smallest),
            norm_median=norm_median,
            mean=self.mean / self.scale,
            model_name=model_name,
        )


def geometric_median(x: Tensor, iterations: int = 50) -> Tensor:
    """Weiszfeld's algorithm on x [n, d]: the point with the smallest summed distance, [d]."""
    centre = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - centre).norm(dim=1).clamp_min(1e-6)
        centre = (x * weights[:, None]).sum(0) / weights.sum()
    return centre


def _starts(sorted_or_not: Tensor, n: int) -> Tensor:
    """[n + 1] cumulated counts of the numbers 0 … n − 1."""
    counts = torch.bincount(sorted_or_not, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)", UserWarning)
        return torch.sparse_csr_tensor(rows, columns, values, shape)
