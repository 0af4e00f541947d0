"""Sparse autoencoders (SAEs): residuals in, sparse feature activations and decoder rows out.

  z   = norm(x) − b_dec           norm is one of NORMALISATIONS or CENTRED, taken per token
  h   = z·W_enc + b_enc
  a   = relu(h) where h is among its k largest   (topk)
        relu(h)                                  (standard)
        relu(h) where h > θ                      (jumprelu, gated)
  x̂   = a·W_dec + b_dec, and the normalisation undone

A transcoder reads at one place and writes at another one of the same block: z = x there, and the output y is made up,
ŷ = a·W_dec + b_dec (+ W_skip·x). All that is done with features is done to y.

A gated SAE has two thresholds on one projection: with W = W_gate·exp(r_mag), it is a JumpReLU SAE whose threshold is
b_mag − exp(r_mag)·b_gate (Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2). Files are read by `formats`, which
folds every constant factor into the weights, and written by `saving`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energy_lens.ingest.model.sites import RESID_POST, Site
from energy_lens.warehouse.quality import STORED_FIGURES

#: Activation rules; topk has k, jumprelu and gated have a threshold.
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")

#: Of a token's residual before encoding, undone after decoding, as SAELens names them.
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")

#: The residual without its mean over dimensions. TransformerLens' center_writing_weights makes a model whose residuals
#: are so; where every norm takes the mean out anyway (LayerNorm), that model says the same as the published one.
CENTRED = "centred"

#: SAELens' layer_norm divides by σ + this, and multiplies by σ alone afterwards.
LAYER_NORM_EPSILON = 1e-5

#: Pre-activations held at once, in numbers: 16 M float32 are 64 MB, whatever d_sae is.
CHUNK_NUMBERS = 16_000_000


class SparseActivations(NamedTuple):
    """Activations of n tokens, K slots each; a slot whose value is 0 is empty."""

    values: Tensor  #: [n, K] float, >= 0
    indices: Tensor  #: [n, K] int64, the features


@dataclass
class SparseAutoencoder:
    """An SAE of a place in a block, or a transcoder, its formula as above; W_enc is kept once, feature by feature."""

    layer: int
    k: int | None  #: active features a token at most; None unless topk
    W_enc: Tensor  #: [d_in, d_sae]; d_in is d_model but for a transcoder
    b_enc: Tensor  #: [d_sae]
    W_dec: Tensor  #: [d_sae, d_model]; row j is d_j: one unit of feature j adds s_t·d_j to x (`token_scales`)
    b_dec: Tensor  #: [d_model]
    architecture: str = "topk"
    normalisation: str = "none"
    threshold: Tensor | None = None  #: θ [d_sae], for jumprelu and gated
    norm_median: float | None = None  #: median ‖x‖ over training tokens; None: calibrate before use
    quartiles: Tensor | None = None  #: [d_sae, 3] of each feature's active values; NaN where it hardly fired
    mean: Tensor | None = None  #: [d_model] mean x over included training tokens: what mean-ablation puts in
    point: str = RESID_POST  #: where in the block it reads, one of sites.POINTS
    point_out: str | None = None  #: where a transcoder writes; None: it is an SAE
    W_skip: Tensor | None = None  #: [d_model, d_in], of a transcoder that has one
    bos: bool | None = None  #: whether it was trained with BOS before each context; None: it does not say
    model_name: str = ""
    sha256: str = ""  #: of the weights file and of what the config says about using it
    source: str = ""  #: where it was loaded from
    metadata: dict[str, Any] = field(default_factory=dict)  #: further entries of metadata.elw

    def __post_init__(self) -> None:
        """Raises ValueError for parts that do not go together."""
        if self.architecture not in ARCHITECTURES or self.normalisation not in (*NORMALISATIONS, CENTRED):
            raise ValueError(f"There is no SAE of architecture {self.architecture}, normalised by {self.normalisation}")
        if (self.k is None) == (self.architecture == "topk"):
            raise ValueError(f"k is {self.k} and the architecture {self.architecture}: k belongs to topk")
        if (self.threshold is None) == (self.architecture in ("jumprelu", "gated")):
            raise ValueError("A threshold belongs to jumprelu and gated SAEs, and only to them")
        if not self.is_transcoder and self.W_skip is not None:
            raise ValueError("A skip connection belongs to transcoders, and only to them")
        if self.is_transcoder and self.normalisation != "none":
            raise ValueError("A transcoder's input is not normalised")
        # Stored feature by feature: both the product x·W_enc and the rows that a gradient gathers are then fast.
        self.W_enc = self.W_enc.T.contiguous().T

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def is_transcoder(self) -> bool:
        return self.point_out is not None

    @property
    def site(self) -> Site:
        """What it reads."""
        return Site(self.layer, self.point)

    @property
    def site_out(self) -> Site:
        """What it makes up: where its features act, and where their gradient is taken."""
        return Site(self.layer, self.point_out or self.point)

    @property
    def hook_name(self) -> str:
        return self.site.hook_name

    @property
    def encoder_rows(self) -> Tensor:
        """[d_sae, d_in] W_enc transposed, a view; row j is the direction that feature j reads."""
        return self.W_enc.T

    @cached_property
    def _encoder_bias(self) -> Tensor:
        """[d_sae] b_enc − b_dec·W_enc, so that x need not be centred first; a transcoder's x is not."""
        if self.is_transcoder:
            return self.b_enc
        # The copy is for the moment: a product summed in another order would change stored runs in their last digits.
        return self.b_enc - self.b_dec @ self.W_enc.contiguous()

    @cached_property
    def _floor(self) -> Tensor:
        """What h must exceed for a feature to be active, unless topk: [d_sae] max(θ, 0), or 0."""
        return torch.zeros(()) if self.threshold is None else self.threshold.clamp_min(0)

    # -- encoding

    def encode(self, x: Tensor, included: Tensor | None = None) -> SparseActivations:
        """Activations of what it reads, x [n, d_in]: K = k for topk, else the most active features of any token (>= 1).

        included: mask [n] of the tokens to encode; the others get none. At most CHUNK_NUMBERS pre-activations are held.
        """
        size = max(1, CHUNK_NUMBERS // self.d_sae)
        masks = [None] * math.ceil(max(len(x), 1) / size) if included is None else included.split(size)
        return _joined([self._encode(part, mask) for part, mask in zip(x.split(size), masks, strict=True)])

    def _encode(self, x: Tensor, included: Tensor | None) -> SparseActivations:
        h = torch.addmm(self._encoder_bias, self._normalised(x), self.W_enc)
        if self.k is None:
            return _padded(h, h > self._floor if included is None else (h > self._floor) & included[:, None])
        values, indices = h.topk(self.k, dim=-1, sorted=False)
        values.relu_()
        if included is not None:
            values *= included[:, None]
        return SparseActivations(values, indices)

    def encoder_gradient(self, x: Tensor, activations: SparseActivations) -> Tensor:
        """½ ∂(Σ_j a_j²)/∂x = Jᵀ Σ_j a_j·∂a_j/∂z [n, d_model], for the activations of x and norm's Jacobian J.

        The set of active features is locally constant and their slope in h is 1, so ∂a_j/∂z is W_enc[:, j].
        """
        return self.pull_back(x, weighted_rows(activations, self.encoder_rows))

    # -- decoding

    def decode(self, activations: SparseActivations, x: Tensor | None = None) -> Tensor:
        """x̂ [n, d_model]; ŷ of a transcoder.

        x: what was encoded [n, d_in]; a normalised SAE needs it to undo the normalisation, a skip connection to skip.
        """
        reconstruction = weighted_rows(activations, self.W_dec) + self.b_dec
        if self.normalisation == "none" and self.W_skip is None:
            return reconstruction
        if x is None:
            raise ValueError("An SAE that is normalised, or skips, decodes beside what it encoded: give x")
        if self.W_skip is not None:
            return reconstruction + x.to(self.W_skip.dtype) @ self.W_skip.T
        scales = self.token_scales(x)
        if scales is not None:
            reconstruction = reconstruction * scales[:, None]
        if self.normalisation in ("layer_norm", CENTRED):
            reconstruction = reconstruction + x.mean(-1, keepdim=True)
        return reconstruction

    def reconstruct(self, x: Tensor) -> Tensor:
        """x̂ [n, d_model] of residuals x [n, d_model]."""
        return self.decode(self.encode(x), x)

    # -- normalisation

    def _normalised(self, x: Tensor) -> Tensor:
        """norm(x) [n, d_model]."""
        if self.normalisation == "constant_norm_rescale":
            return x * (math.sqrt(self.d_model) / _lengths(x))
        if self.normalisation == "layer_norm":
            centred = x - x.mean(-1, keepdim=True)
            return centred / (_deviations(centred) + LAYER_NORM_EPSILON)
        return self.to_be_made_up(x)

    def to_be_made_up(self, x: Tensor) -> Tensor:
        """What of residuals x [n, d_model] the SAE was trained to make up: x, or x without its mean where CENTRED."""
        return x - x.mean(-1, keepdim=True) if self.normalisation == CENTRED else x

    def unskipped(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., d_model] at `site_out` without what a skip connection adds, for x [..., d_in] that is read there."""
        return y if self.W_skip is None else y - x.to(self.W_skip.dtype) @ self.W_skip.T

    def centred(self, y: Tensor) -> Tensor:
        """norm(y) − b_dec [n, d_model] for y [n, d_model] as `unskipped` gives it: what features are to make up."""
        return self._normalised(y) - self.b_dec

    def token_scales(self, x: Tensor) -> Tensor | None:
        """s_t [n] for residuals x [n, d_model], or None where all are 1: one unit of feature j adds s_t·d_j to x_t.

        s_t is held constant, as the normalisation is when a reconstruction is edited: ‖x‖/√d, or σ for layer_norm.
        """
        if self.normalisation == "constant_norm_rescale":
            lengths: Tensor = torch.linalg.vector_norm(x, dim=-1)
            return lengths / math.sqrt(self.d_model)
        if self.normalisation == "layer_norm":
            return _deviations(x - x.mean(-1, keepdim=True))[:, 0]
        return None

    def part_of(self, feature: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """A feature's activation a [n] at x [n, d_in], and what it adds there, a·s·d [n, d_model].

        feature: one for all, or one each [n]. Of an SAE that reads where it writes, as a normalised one does.
        """
        values, indices = self.encode(x)
        wanted = torch.as_tensor(feature).expand(len(x))
        a = (values * (indices == wanted[:, None])).sum(1)
        scale = self.token_scales(x)
        return a, self.W_dec[wanted] * (a if scale is None else a * scale)[:, None]

    def pull_back(self, x: Tensor, v: Tensor) -> Tensor:
        """Jᵀv [n, d_model], where J is norm's Jacobian at x [n, d_model]: a gradient by norm(x) becomes one by x."""
        if self.normalisation == "constant_norm_rescale":
            length = _lengths(x)
            unit = x / length
            return (v - unit * (unit * v).sum(-1, keepdim=True)) * (math.sqrt(self.d_model) / length)
        if self.normalisation == "layer_norm":
            centred = x - x.mean(-1, keepdim=True)
            sigma = _deviations(centred)
            divisor = sigma + LAYER_NORM_EPSILON
            # ∂σ/∂x is the centred x over σ·(d − 1); where σ is 0 the centred x is too.
            slope = centred / (sigma * (self.d_model - 1)).clamp_min(torch.finfo(x.dtype).tiny)
            along = (centred * v).sum(-1, keepdim=True) / divisor.square()
            return (v - v.mean(-1, keepdim=True)) / divisor - slope * along
        return self.to_be_made_up(v)  # which is its own Jacobian

    # -- facts and copies

    def facts(self, norm_median: float) -> dict[str, Any]:
        """Columns of the table `saes`; norm_median is the one that the run uses."""
        notes: dict[str, Any] = {}
        if self.normalisation == CENTRED:
            notes = {"center_writing_weights": True}
        elif self.normalisation != "none":
            notes = {"normalize_activations": self.normalisation}
        return {
            "layer": self.layer, "sae_sha256": self.sha256, "source": self.source, "architecture": self.architecture,
            "d_sae": self.d_sae, "k": self.k, "norm_median": norm_median, "hook_name": self.hook_name,
            "hook_name_out": self.site_out.hook_name if self.is_transcoder else None,
            **{name: self.metadata.get(name) for name in STORED_FIGURES},
            "metadata": json.dumps({**self.metadata, **notes}),
        }  # fmt: skip

    def to(self, dtype: torch.dtype) -> SparseAutoencoder:
        """A copy in another precision."""
        tensors = {name: getattr(self, name).to(dtype) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        threshold = None if self.threshold is None else self.threshold.to(dtype)
        skip = None if self.W_skip is None else self.W_skip.to(dtype)
        return replace(self, **tensors, threshold=threshold, W_skip=skip)


def _lengths(x: Tensor) -> Tensor:
    """‖x‖ [n, 1], never 0: a residual of zeros stays one."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return lengths.clamp_min(torch.finfo(x.dtype).eps)


def _deviations(centred: Tensor) -> Tensor:
    """σ [n, 1], with d − 1 in its divisor, of tokens whose mean was subtracted [n, d]."""
    lengths: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return lengths / math.sqrt(centred.shape[-1] - 1)


def _padded(h: Tensor, active: Tensor) -> SparseActivations:
    """The active ones of pre-activations h [n, d_sae], in the first slots of each token."""
    token, feature = active.nonzero(as_tuple=True)
    counts = torch.bincount(token, minlength=len(h))
    slot = torch.arange(len(token)) - (counts.cumsum(0) - counts)[token]
    n_slots = max(1, int(counts.max())) if len(h) else 1
    values, indices = h.new_zeros(len(h), n_slots), feature.new_zeros(len(h), n_slots)
    values[token, slot] = h[token, feature]
    indices[token, slot] = feature
    return SparseActivations(values, indices)


def _joined(chunks: list[SparseActivations]) -> SparseActivations:
    """Chunks of tokens one after the other, with as many slots as the widest of them."""
    if len(chunks) == 1:
        return chunks[0]
    n_slots = max(chunk.values.shape[-1] for chunk in chunks)
    return SparseActivations(*(torch.cat(parts) for parts in zip(*(widened(c, n_slots) for c in chunks), strict=True)))


def widened(activations: SparseActivations, n_slots: int) -> SparseActivations:
    """The same activations with n_slots slots a token, the new ones empty."""
    missing = n_slots - activations.values.shape[-1]
    return SparseActivations(*(torch.nn.functional.pad(part, (0, missing)) for part in activations))


def weighted_rows(activations: SparseActivations, rows: Tensor) -> Tensor:
    """Σ_j a_j·rows_j for each token: [n, d] from rows [d_sae, d]."""
    return torch.nn.functional.embedding_bag(
        activations.indices, rows, per_sample_weights=activations.values.to(rows.dtype), mode="sum"
    )
