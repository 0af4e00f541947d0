"""Features and single tokens in, what an edit of one token does to its descent and to where it settles out.

A token at which a feature is active is edited before a step of the energy transformer: the feature's part is taken away
(ablate) or added once more (double), along its decoder row, or as far along that of another feature or along a random
direction. Three things are read, at that token alone:

  delta_energy   E_t before the step, with the edit less without
  fall           by how much the step lowers E_t, with the edit and without; keys are those of the pass, held fixed
  distance       1 − cosine of where the token settles after the rest of the pass, with the edit and without, on the
                 landscape of its settled context both times: the tokens before it know nothing of the edit
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.attractors.network import MERGED
from energy_lens.analysis.native.settling import REMEDY, Landscapes, SettledContexts
from energy_lens.ingest.model.energy_transformer import (
    EnergyTransformerModel,
    EnergyTransformerStep,
    energy_transformer_in,
)
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import RESID_PRE, Site, harvest, hidden_from, tensors_at
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: What is done to a feature's activation, as a factor on what it adds.
KINDS: Mapping[str, float] = {"ablate": -1.0, "double": 1.0}

DIRECTIONS = ("feature", "decoder", "isotropic")

#: Tokens that are edited in one pass.
BATCH = 32


class Places(NamedTuple):
    """Tokens of a sample of contexts and a feature that is active at each, [n] each."""

    feature: NDArray[np.int64]
    token_id: NDArray[np.int64]
    row: Tensor  #: of the token's context in the sample
    position: Tensor

    def part(self, first: int, end: int) -> Places:
        return Places(self.feature[first:end], self.token_id[first:end], self.row[first:end], self.position[first:end])


def step_of(sae: SparseAutoencoder, n_steps: int) -> int | None:
    """The step into which goes what an SAE reads and writes; None where it is no step's input."""
    output_of = sae.site_out.output_of
    step = 0 if sae.site_out == Site(0, RESID_PRE) else None if output_of is None else output_of + 1
    return step if step is not None and step < n_steps and not sae.is_transcoder else None


def choose_places(
    features: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    contexts: Sequence[int],
    length: int,
    wanted: tuple[int, int],
    generator: np.random.Generator,
) -> Places:
    """A sample of features that are active at enough tokens, and of these tokens.

    features, token_ids: of active values in the contexts [n], ascending by feature; wanted: features, tokens of each.
    """
    known, first, counts = np.unique(features, return_index=True, return_counts=True)
    enough = np.flatnonzero(counts >= wanted[1])
    chosen = np.sort(generator.permutation(enough)[: wanted[0]])
    rows = [np.sort(first[i] + generator.permutation(counts[i])[: wanted[1]]) for i in chosen]
    at = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    row = np.searchsorted(np.asarray(contexts), token_ids[at] // length)
    return Places(
        np.repeat(known[chosen], wanted[1]).astype(np.int64), token_ids[at].astype(np.int64), torch.from_numpy(row),
        torch.from_numpy(token_ids[at] % length),
    )  # fmt: skip


@dataclass(frozen=True)
class Patching:
    """Edits before one step."""

    language_model: LanguageModel  #: in float32
    sae: SparseAutoencoder
    step: int
    tokens: Tensor  #: ids of the sample's contexts [context, position]
    settled: SettledContexts  #: of the same contexts
    seed: int

    @property
    def model(self) -> EnergyTransformerModel:
        return energy_transformer_in(self.language_model, REMEDY)

    @torch.no_grad()
    def frames(self, places: Places) -> Iterator[pl.DataFrame]:
        """Rows of native_patches, without run and layer, some tokens at a time."""
        others = np.random.default_rng([self.seed, self.sae.layer]).permutation(self.sae.d_sae)
        for first in range(0, len(places.feature), BATCH):
            yield self._frame(places.part(first, first + BATCH), others)

    def _frame(self, places: Places, others: NDArray[np.int64]) -> pl.DataFrame:
        n = torch.arange(len(places.feature))
        tokens = self.tokens[places.row]
        x = harvest(self.language_model, tokens, {0: self.sae.site_out})[0]
        at = x[n, places.position]
        feature = torch.from_numpy(places.feature)
        activation, unit = self.sae.part_of(feature, at)
        step = self.model.steps[self.step]
        positions = torch.arange(tokens.shape[1])[None]
        assert isinstance(step, EnergyTransformerStep)
        keys = self.model.landscape.keys(step.norm(x), self.model.rotation(positions, x.dtype))
        before_step = Landscapes(self.model, keys, places.position)
        on_settled = self.settled.landscapes(places.row, places.position)
        E, fall = self._descent(before_step, at)
        stays = on_settled.settle(self._behind(tokens, x, places.position))
        unit_rms = self.model.config.hidden_size**0.5  # E_t sees no lengths, but for the norm's ε
        E_stays = on_settled.energy(stays.z * unit_rms)
        frames = []
        for direction, along in zip(DIRECTIONS, self._directions(unit, feature, others, places), strict=True):
            for kind, factor in KINDS.items():
                moved = x.clone()
                moved[n, places.position] += factor * along
                E_moved, fall_moved = self._descent(before_step, moved[n, places.position])
                goes = on_settled.settle(self._behind(tokens, moved, places.position))
                cosine = (stays.z * goes.z).sum(1).double()
                columns = {
                    "feature": feature.int(), "token_id": torch.from_numpy(places.token_id),
                    "activation": activation.double(), "delta_energy": (E_moved - E).double(), "fall": fall.double(),
                    "fall_patched": fall_moved.double(), "is_settled": stays.converged & goes.converged,
                    "is_changed": cosine <= MERGED, "distance": 1 - cosine,
                    "delta_settled": (on_settled.energy(goes.z * unit_rms) - E_stays).double(),
                }  # fmt: skip
                frame = pl.DataFrame({name: column.numpy() for name, column in columns.items()})
                frames.append(frame.with_columns(kind=pl.lit(kind), direction=pl.lit(direction)))
        return pl.concat(frames)

    def _descent(self, landscapes: Landscapes, x: Tensor) -> tuple[Tensor, Tensor]:
        """E_t before the step [n], and by how much the step lowers it."""
        E = landscapes.energy(x, self.step)
        return E, E - landscapes.energy(landscapes.stepped(x, self.step), self.step)

    def _behind(self, tokens: Tensor, x: Tensor, position: Tensor) -> Tensor:
        """x behind the last step [n, d_model] at a position each, with x [n, position, d_model] before the step."""
        last = Site(self.language_model.n_layers - 1)
        with tensors_at(self.language_model, {0: last}) as found:
            hidden_from(self.language_model, tokens, self.sae.site_out, x)
        return found[0][torch.arange(len(x)), position]

    def _directions(self, unit: Tensor, feature: Tensor, others: NDArray[np.int64], places: Places) -> Iterator[Tensor]:
        """[n, d_model] what is added, all of one length a token: in the order of DIRECTIONS."""
        length = unit.norm(dim=1, keepdim=True)
        yield unit
        other = torch.from_numpy(others)[feature]
        other = torch.where(other == feature, (feature + 1) % self.sae.d_sae, other)
        yield torch.nn.functional.normalize(self.sae.W_dec[other], dim=1) * length
        drawn = [
            np.random.default_rng([self.seed, self.sae.layer, int(f), int(t)]).standard_normal(unit.shape[1])
            for f, t in zip(places.feature, places.token_id, strict=True)
        ]
        yield torch.nn.functional.normalize(torch.from_numpy(np.array(drawn)).to(unit.dtype), dim=1) * length
