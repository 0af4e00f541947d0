"""A model, SAEs and contexts in; out what SAEBench's core evaluation takes of each SAE.

Three passes a batch: the model as it is; with x̂ for x at the tokens that count; with 0 for x at every token. The first
is shared by all SAEs, the others go on from the place of the SAE, and the last is mostly that of one context.

Which tokens count. SAEBench leaves out BOS, EOS and padding: their residuals are not replaced by x̂ and no figure is
taken over them. Here tokens of massive norm and the first of a context are left out too, as the run left them out: in
contexts without BOS the first token is the attention sink that BOS is else, and no SAE of elw is trained on either.
Unlike in a run, the last token of a context counts, but in losses. As in SAEBench the zeros are put in everywhere, and
a token's loss counts if the token itself does, whatever the next one is.

KL(p‖q) has the model as it is for p. Tokens without a next one have no loss, and a divergence like all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.saebench.tokens import TokenFigures, quotient
from energy_lens.console import bar
from energy_lens.ingest.contexts import Padded, padded, special_tokens
from energy_lens.ingest.inclusion import INCLUDED, LAST, REASONS, SpecialTokens, exclusion_reasons
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import Site, hidden_from, replaced, resumes, tensors_at, with_below
from energy_lens.ingest.model.unembedding import divergence, next_token_losses, next_token_nll
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: Contexts of a batch: SAEBench's own number, on which `TokenFigures` depends.
BATCH_CONTEXTS = 16

#: What residuals are replaced by, as SAEBench's names say it.
ARMS = ("with_sae", "with_ablation")


@dataclass
class Measurement:
    """One SAE's sums."""

    tokens: TokenFigures
    left_out: dict[str, int] = field(default_factory=dict)  #: tokens by why they do not count
    n_losses: int = 0  #: tokens that count and have a next one
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("without_sae", *ARMS), 0.0))
    divergences: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ARMS, 0.0))

    def performance(self) -> dict[str, float]:
        """Cross-entropies, nats a token, and the share of what ablation costs that the SAE saves."""
        clean, sae, ablated = (quotient(total, self.n_losses) for total in self.losses.values())
        return {
            "ce_loss_score": quotient(ablated - sae, ablated - clean),
            "ce_loss_with_ablation": ablated,
            "ce_loss_with_sae": sae,
            "ce_loss_without_sae": clean,
        }

    def behavior(self) -> dict[str, float]:
        """KL divergences from the model as it is, nats a token, and the share that the SAE saves."""
        sae, ablated = (quotient(total, self.tokens.n_tokens) for total in self.divergences.values())
        return {
            "kl_div_score": quotient(ablated - sae, ablated),
            "kl_div_with_ablation": ablated,
            "kl_div_with_sae": sae,
        }


@torch.no_grad()
def measure(
    model: LanguageModel, saes: Sequence[SparseAutoencoder], contexts: Sequence[NDArray[np.int32]]
) -> list[Measurement]:
    """What is taken of each SAE over the token ids of contexts, in the order given. Every SAE needs a norm median."""
    batches = [contexts[start : start + BATCH_CONTEXTS] for start in range(0, len(contexts), BATCH_CONTEXTS)]
    found = [Measurement(TokenFigures(sae.d_model, sae.d_sae)) for sae in saes]
    tokens, _ = padded(batches[0][:1])
    goes_on = resumes(model, tokens, {sae.site_out for sae in saes})
    for batch in _progress(batches):
        measured = _Batch.read(model, saes, batch, goes_on)
        for sae, measurement in zip(saes, found, strict=True):
            measured.add(sae, measurement)
    return found


def _progress(batches: Sequence[Sequence[NDArray[np.int32]]]) -> Iterator[Sequence[NDArray[np.int32]]]:
    """The batches, with a bar on stderr."""
    with bar("Measure", sum(len(ids) for batch in batches for ids in batch), "token") as progress:
        for batch in batches:
            yield batch
            progress.update(sum(len(ids) for ids in batch))


@dataclass(frozen=True)
class _Batch(Padded):
    """Contexts side by side, and the model as it is on them."""

    model: LanguageModel
    tokens: Tensor  #: [context, position]
    lengths: Tensor  #: [context]
    found: dict[Site, Tensor]  #: what is where SAEs read and write, [context, position, width]
    hidden: Tensor  #: the final norm's output [context, position, d_model]
    losses: Tensor  #: [context, position] float32, nats; of a made-up next token where there is none
    gradients: Tensor  #: of the losses by the final norm's output
    special: SpecialTokens
    goes_on: bool  #: whether a pass may begin at the place of an SAE

    @classmethod
    def read(
        cls,
        model: LanguageModel,
        saes: Sequence[SparseAutoencoder],
        contexts: Sequence[NDArray[np.int32]],
        goes_on: bool,
    ) -> _Batch:
        tokens, lengths = padded(contexts)
        sites = with_below(sae.site_out for sae in saes) | {sae.site: sae.site for sae in saes}
        with tensors_at(model, sites) as found:
            hidden = model.hidden(tokens)
        losses, gradients = next_token_nll(model, hidden.flatten(0, 1), _next(tokens).flatten())
        return cls(
            model, tokens, lengths, found, hidden, losses.view(tokens.shape), gradients.view(hidden.shape),
            special_tokens(model), goes_on,
        )  # fmt: skip

    def add(self, sae: SparseAutoencoder, measurement: Measurement) -> None:
        """Add the batch to an SAE's sums."""
        x, y = self.found[sae.site].float(), self.found[sae.site_out]
        counted = self._counted(sae, x, measurement)
        if not counted.any():
            return
        activations = sae.encode(x[counted])
        reconstruction = sae.decode(activations, x[counted])
        written = y[counted].float()
        # A mean that is handed through is neither to be made up nor made up.
        wanted = sae.to_be_made_up(written)
        measurement.tokens.add(wanted, reconstruction - (written - wanted), activations, counted.nonzero()[:, 0])
        with_sae = y.clone()
        with_sae[counted] = reconstruction.to(y.dtype)
        hidden = (self._hidden_with(sae.site_out, with_sae), self._hidden_without(sae.site_out, y))
        for arm, of_arm in zip(ARMS, hidden, strict=True):
            self._add_outputs(measurement, arm, counted, of_arm)
        measurement.n_losses += int((counted & self.has_next).sum())
        measurement.losses["without_sae"] += float(self.losses[counted & self.has_next].double().sum())

    def _counted(self, sae: SparseAutoencoder, x: Tensor, measurement: Measurement) -> Tensor:
        """[context, position] mask of the tokens that count; the others are noted with the reason."""
        assert sae.norm_median is not None
        norms, place = x.norm(dim=-1), f"layer {sae.layer}"
        codes = exclusion_reasons(norms, sae.norm_median, self.lengths, self.tokens, self.special, place)
        reasons = torch.from_numpy(codes)
        counted = self.places & ((reasons == INCLUDED) | (reasons == LAST))
        for code in reasons[self.places & ~counted].tolist():
            measurement.left_out[REASONS[code]] = measurement.left_out.get(REASONS[code], 0) + 1
        return counted

    def _hidden_with(self, site: Site, x: Tensor) -> Tensor:
        """The final norm's output with x at a place."""
        below = self.found.get(site.before_block)
        if self.goes_on:
            return hidden_from(self.model, self.tokens, site, x, below)
        with replaced(self.model, site, lambda _: x, below):
            return self.model.hidden(self.tokens)

    def _hidden_without(self, site: Site, y: Tensor) -> Tensor:
        """The final norm's output with 0 for y [context, position, d_model] at a place.

        Where the whole stream is 0, what comes of it is the same in every context, unless a model looks at its tokens
        again further up: two contexts of unlike tokens tell, and then one stands for all.
        """
        if self.goes_on and site.output_of is not None and len(self.tokens) > 2:
            tokens = torch.cat([self.tokens[:1], self.model.any_tokens(1, self.tokens.shape[1])])
            one, other = hidden_from(self.model, tokens, site, torch.zeros_like(y[:2]))
            if torch.allclose(one, other, rtol=1e-4, atol=1e-5):
                alike: Tensor = one.expand_as(self.hidden)
                return alike
        return self._hidden_with(site, torch.zeros_like(y))

    def _add_outputs(self, measurement: Measurement, arm: str, counted: Tensor, hidden: Tensor) -> None:
        """Add losses and divergences of a pass with something replaced, at the tokens that count."""
        q = hidden[counted]
        losses = next_token_losses(self.model, q, _next(self.tokens)[counted])
        p = (self.losses[counted], self.hidden[counted], self.gradients[counted])
        measurement.losses[arm] += float(losses[self.has_next[counted]].double().sum())
        measurement.divergences[arm] += float(divergence(self.model, (losses, q), p).double().sum())


def _next(tokens: Tensor) -> Tensor:
    """Next tokens of [context, position]; a context's last one gets some token, which a divergence does not notice."""
    return tokens.roll(-1, dims=1)
