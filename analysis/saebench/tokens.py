"""An SAE's inputs, outputs and activations in, batch by batch; SAEBench's figures over tokens and features out.

The formulas are those of SAEBench 0.6.0, `evals/core/main.py`, so that a figure can be put beside published ones. Two
of them are not what their names say. SAELens, where they come from, has mended both since; what they are meant to be is
given beside them, as `conventional`:

  explained_variance   1 − E‖x − x̂‖² / (E‖x‖² − (E‖x‖²/d)²): the square of the mean square of a dimension stands where
                       ‖E x‖² belongs (SAELens pull request 665). It is above 1 where ‖x‖² exceeds d².
  mse                  E‖x − x̂‖² / n, n the tokens of a batch: the larger the batch, the smaller (pull request 711).

E is the mean over a batch's tokens, then over batches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.sae.autoencoder import SparseActivations
from energy_lens.ingest.sae.figures import Spread

#: A shorter input counts as 1 long in the ratio of norms.
SHORTEST = 1e-4

#: Figures that are a mean over all tokens.
OVER_TOKENS = ("l2_norm_in", "l2_norm_out", "l2_ratio", "l0", "l1", "explained_variance_legacy", "mse", "cossim")

#: Parts of figures that are a mean over batches.
OVER_BATCHES = ("relative_reconstruction_bias", "square", "square_of_dimension", "error")


class TokenFigures:
    """What is taken over the tokens that count of one SAE."""

    def __init__(self, d_model: int, d_sae: int) -> None:
        self.n_tokens = 0
        self.n_batches = 0
        self._sums = dict.fromkeys(OVER_TOKENS, 0.0)
        self._means = dict.fromkeys(OVER_BATCHES, 0.0)
        self._spread = Spread(0, np.zeros(d_model))
        self._error = 0.0
        self.fired: NDArray[np.int64] = np.zeros(d_sae, dtype=np.int64)  #: tokens on which a feature is active
        self.prompts: NDArray[np.int64] = np.zeros(d_sae, dtype=np.int64)  #: contexts in which it is

    def add(self, x: Tensor, reconstruction: Tensor, activations: SparseActivations, contexts: Tensor) -> None:
        """Add a batch: x and x̂ [n, d_model], activations [n, K], and which context each token is of [n]."""
        n = len(x)
        if not n:
            return
        x, made_up = x.double(), reconstruction.double()
        values = activations.values.double()
        errors = (x - made_up).square().sum(-1)
        length, made_up_length = x.norm(dim=-1), made_up.norm(dim=-1)
        of_tokens = {
            "l2_norm_in": length,
            "l2_norm_out": made_up_length,
            "l2_ratio": made_up_length / torch.where(length < SHORTEST, 1.0, length),
            "l0": (values != 0).sum(-1).double(),
            "l1": values.sum(-1),
            "explained_variance_legacy": 1 - errors / (x - x.mean(0)).square().sum(-1),
            "mse": errors / n,
            "cossim": (x * made_up).sum(-1) / (length * made_up_length),
        }
        of_batch = {
            "relative_reconstruction_bias": made_up_length.square().mean() / (x * made_up).sum(-1).mean(),
            "square": length.square().mean(),
            "square_of_dimension": x.square().mean(),
            "error": errors.mean(),
        }
        for name, each in of_tokens.items():
            self._sums[name] += float(each.sum())
        for name, mean in of_batch.items():
            self._means[name] += float(mean)
        self._spread.merge(Spread.of(x.numpy()))
        self._error += float(errors.sum())
        self._count_features(activations, contexts)
        self.n_tokens += n
        self.n_batches += 1

    def _count_features(self, activations: SparseActivations, contexts: Tensor) -> None:
        active = activations.values > 0
        features, d_sae = activations.indices[active], len(self.fired)
        self.fired += torch.bincount(features, minlength=d_sae).numpy()
        pairs = torch.unique(contexts[:, None].expand_as(active)[active] * d_sae + features)
        self.prompts += torch.bincount(pairs % d_sae, minlength=d_sae).numpy()

    def figures(self) -> dict[str, float]:
        """SAEBench's by name; NaN where no token counts."""
        of_tokens = {name: quotient(total, self.n_tokens) for name, total in self._sums.items()}
        of_batches = {name: quotient(total, self.n_batches) for name, total in self._means.items()}
        variance = of_batches["square"] - of_batches["square_of_dimension"] ** 2
        return {
            **of_tokens,
            "relative_reconstruction_bias": of_batches["relative_reconstruction_bias"],
            "explained_variance": 1 - quotient(of_batches["error"], variance),
        }

    def conventional(self) -> dict[str, float]:
        """What the two that are not what they say are meant to be, over all tokens at once."""
        return {
            "explained_variance": 1 - quotient(self._error, self._spread.squares),
            "mse": quotient(self._error, self.n_tokens),
        }

    def densities(self) -> NDArray[np.float64]:
        """[d_sae] shares of the tokens on which each feature is active; NaN where no token counts."""
        with np.errstate(invalid="ignore"):
            return self.fired / np.float64(self.n_tokens)

    def tokens_per_prompt(self) -> NDArray[np.float64]:
        """[d_sae] active tokens of each feature per context in which it is active; NaN where it never is."""
        with np.errstate(invalid="ignore"):
            return self.fired / self.prompts.astype(np.float64)


def quotient(above: float, below: float) -> float:
    """above / below; NaN where there is none."""
    return above / below if below else math.nan
