"""A feature in, directions to make the same edit along out: what it does anyway is what any edit of that norm does.

  isotropic   drawn alike in every direction of the residual stream, along most of which text varies little: the weakest
              control.
  covariance  drawn with the covariance of x over included tokens at the edited layer, so that an edit lies where
              residuals of text differ from each other, and as much there. That of x and not that of the edits, which is
              made of decoder rows: those are the next control.
  decoder     the decoder row of another feature that fires about as often: another thing that the SAE reads in text.

All have the norm of the feature's decoder row and the same numbers in place of a' - a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.contexts import padded, special_tokens
from energy_lens.ingest.inclusion import INCLUDED, exclusion_reasons
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import harvest
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: Kinds of control directions, in the order of their numbers.
CONTROLS = ("isotropic", "covariance", "decoder")

#: Contexts whose residuals give the covariance: the first of the intervention, about 3,000 tokens.
COVARIANCE_CONTEXTS = 24


@dataclass(frozen=True)
class ControlDirections:
    """Control directions of an intervention's features, the same in every batch."""

    sae: SparseAutoencoder
    kinds: Sequence[str]  #: of CONTROLS, in that order
    n_directions: int  #: of each kind
    seed: int
    others: Mapping[int, Sequence[int]]  #: feature: those whose rows are its control `decoder`
    deviations: Tensor | None  #: x less its mean [token, d_model], for `covariance`

    def of(self, feature: int) -> list[tuple[int, str, Tensor]]:
        """(number from 1, kind, direction [d_model]); fewer of `decoder` where no more features fire as often."""
        found = []
        for i, kind in enumerate(self.kinds):
            for number in range(1, self.n_directions + 1):
                if kind == "decoder" and number > len(self.others[feature]):
                    break
                direction = self._drawn(kind, feature, number)
                length = float(self.sae.W_dec[feature].norm() / direction.norm())
                found.append((i * self.n_directions + number, kind, direction * length))
        return found

    def _drawn(self, kind: str, feature: int, number: int) -> Tensor:
        """A direction of any length."""
        if kind == "decoder":
            return self.sae.W_dec[self.others[feature][number - 1]]
        place = [self.seed, self.sae.layer, feature, number]
        if kind == "isotropic":
            return torch.from_numpy(np.random.default_rng(place).standard_normal(self.sae.d_model)).float()
        assert self.deviations is not None
        # A sum of deviations with independent normal weights has their covariance, which need not be formed.
        weights = np.random.default_rng([*place, CONTROLS.index(kind)]).standard_normal(len(self.deviations))
        return torch.from_numpy(weights).float() @ self.deviations


def residual_deviations(
    model: LanguageModel, sae: SparseAutoencoder, contexts: Sequence[NDArray[np.int32]], batch_size: int = 8
) -> Tensor:
    """x less its mean over the included tokens of contexts, [token, d_model] float32, at the SAE's layer."""
    assert sae.norm_median is not None
    excluded, kept = special_tokens(model), []
    for start in range(0, len(contexts), batch_size):
        tokens, lengths = padded(contexts[start : start + batch_size])
        found = harvest(model, tokens, {"read": sae.site, "written": sae.site_out})
        x = found["written"].float()
        reasons = exclusion_reasons(found["read"].float().norm(dim=-1), sae.norm_median, lengths, tokens, excluded)
        kept.append(x[torch.from_numpy(reasons == INCLUDED)])
    residuals = torch.cat(kept)
    return residuals - residuals.mean(0)
