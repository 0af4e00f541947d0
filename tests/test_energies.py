"""Energies and their gradients, against the model's own loss, automatic differentiation and finite differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from energy_lens.errors import UsageError
from energy_lens.ingest.energies import registry as energies_module
from energy_lens.ingest.energies.attention import AttentionEnergy, attention_scores
from energy_lens.ingest.energies.base import Reading, discrete_gradient
from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.energies.hopfield import Hopfield
from energy_lens.ingest.energies.lenses import LogitLens, TunedLens
from energy_lens.ingest.energies.nll import NegativeLogLikelihood
from energy_lens.ingest.energies.translators import load_translators
from energy_lens.ingest.model import attention, unembedding
from energy_lens.ingest.model import loading as models
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import harvest_residuals
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.reading import Reader
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import sae_folders, shipped_folder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import Context

ARCHITECTURES = ("llama", "gpt2", "gpt_neox")
LAYERS = (1, 2)
LENGTHS = (24, 9, 2, 17, 3)  # ragged on purpose: a batch is padded to the longest


class TrueFloat64(TorchFunctionMode):
    """Inside, Hugging Face's own casts to float32 (norms, softmax) keep float64: no rounding to difference away."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        return func(*map(widened, args), **{name: widened(value) for name, value in (kwargs or {}).items()})


def ragged_batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids [batch, position] and lengths [batch]; what stands beyond a length is random as well."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 512, (len(lengths), max(lengths)), generator=generator)
    return tokens, torch.tensor(lengths)


def read(
    model: LanguageModel, saes: Mapping[int, SparseAutoencoder], tokens: Tensor, lengths: Tensor, energy: Any
) -> Reading:
    """What an energy says about a batch, with every token but a context's first and last included."""
    positions = torch.arange(tokens.shape[1])
    mask = (positions > 0) & (positions < lengths[:, None] - 1)
    return energy.read(run_forward(model, saes, tokens, lengths, lambda _layer, _norms: mask.clone()))


def total_nll(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Σ_s E_s of one unpadded context [position], from the model's own logits."""
    logits = model.module(input_ids=tokens[None], use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")


def nudged_nll(model: LanguageModel, tokens: Tensor, layer: int, token: int, nudge: Tensor) -> float:
    """The same after adding `nudge` [d_model] to the residual of one token, after block `layer`."""

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[0, token] += nudge
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.blocks[layer].register_forward_hook(add)
    try:
        with torch.no_grad():
            return float(total_nll(model, tokens))
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def load(tiny: Callable[..., Any]) -> Callable[..., tuple[LanguageModel, dict[int, SparseAutoencoder]]]:
    """load(architecture, dtype): a tiny model in that precision and its SAEs, loaded once."""
    loaded: dict[tuple[str, torch.dtype], tuple[LanguageModel, dict[int, SparseAutoencoder]]] = {}

    def get(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
        if (architecture, dtype) not in loaded:
            own = tiny(architecture)
            saes = {sae.layer: sae for sae in map(load_sae, sae_folders(own.saes))}
            loaded[architecture, dtype] = (own.load(dtype), saes)
        return loaded[architecture, dtype]

    return get


@pytest.fixture(scope="module")
def nll(load: Callable[..., Any]) -> Callable[[str], tuple[Tensor, Reading]]:
    """nll(architecture): the ragged batch's tokens, and its NLL read from a float64 copy of the model."""
    readings: dict[str, tuple[Tensor, Reading]] = {}

    def get(architecture: str) -> tuple[Tensor, Reading]:
        if architecture not in readings:
            tokens, lengths = ragged_batch()
            with TrueFloat64():
                readings[architecture] = tokens, read(*load(architecture), tokens, lengths, NegativeLogLikelihood())
        return readings[architecture]

    return get


# ------------------------------------------------------------------------------------------------ nll


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nll_gradient_is_the_slope_of_the_summed_energy(
    architecture: str, load: Callable[..., Any], nll: Callable[..., Any]
) -> None:
    """⟨∂E/∂x_t, v⟩ equals central differences of ΣE at random places, to 1e-5 of the RMS slope (1 % is asked)."""
    model, _ = load(architecture)
    tokens, reading = nll(architecture)
    generator = np.random.default_rng(1)
    step = 1e-4
    for layer in LAYERS:
        gradients = reading.gradients[layer]
        at_tokens = torch.cat([gradients[i, : n - 1] for i, n in enumerate(LENGTHS)])
        rms = float(at_tokens.double().square().mean().sqrt())  # of the slope along a random unit direction
        deviations = []
        for _ in range(12):
            i = int(generator.integers(len(LENGTHS)))
            token = int(generator.integers(LENGTHS[i]))
            direction = torch.from_numpy(generator.standard_normal(model.d_model))
            direction /= direction.norm()
            own = tokens[i, : LENGTHS[i]]
            with TrueFloat64():
                above = nudged_nll(model, own, layer, token, step * direction)
                below = nudged_nll(model, own, layer, token, -step * direction)
            expected = (above - below) / (2 * step)
            deviations.append(abs(float(gradients[i, token].double() @ direction) - expected) / rms)
        assert max(deviations) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nll_values_are_the_models_own_loss(
    architecture: str, load: Callable[..., Any], nll: Callable[..., Any]
) -> None:
    """Each E_t equals cross entropy on the model's logits, and their mean the loss that the model itself returns."""
    model, _ = load(architecture)
    tokens, reading = nll(architecture)
    values = reading.values[None]
    assert set(reading.values) == {None}
    for i, n in enumerate(LENGTHS):
        own = tokens[i, :n]
        with torch.no_grad(), TrueFloat64():
            output = model.module(input_ids=own[None], labels=own[None], use_cache=False)
        expected = nn.functional.cross_entropy(output.logits[0, :-1], own[1:], reduction="none")
        torch.testing.assert_close(values[i, : n - 1].double(), expected, rtol=1e-6, atol=1e-6)
        assert float(values[i, : n - 1].double().mean()) == pytest.approx(float(output.loss), rel=1e-6)
        assert not values[i, n - 1 :].any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nll_gradient_equals_plain_autograd(
    architecture: str, load: Callable[..., Any], nll: Callable[..., Any]
) -> None:
    """Cutting the graph and the closed form at the unembedding give what backward() on the whole graph gives."""
    model, _ = load(architecture)
    tokens, reading = nll(architecture)
    for i, n in enumerate(LENGTHS):
        kept: dict[int, Tensor] = {}

        def keep(layer: int, kept: dict[int, Tensor] = kept) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                kept[layer] = output[0] if isinstance(output, tuple) else output
                kept[layer].retain_grad()

            return hook

        handles = [model.blocks[layer].register_forward_hook(keep(layer)) for layer in LAYERS]
        embedded = model.module.get_input_embeddings()(tokens[i : i + 1, :n]).detach().requires_grad_(True)
        with TrueFloat64():
            logits = model.module(inputs_embeds=embedded, use_cache=False).logits[0]
            nn.functional.cross_entropy(logits[:-1], tokens[i, 1:n], reduction="sum").backward()
        for handle in handles:
            handle.remove()
        for layer in LAYERS:
            gradients = reading.gradients[layer][i].double()
            expected = kept[layer].grad[0]
            torch.testing.assert_close(gradients[:n], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
            assert not gradients[n - 1 :].any()  # nothing after the last prediction is reached


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_nothing(architecture: str, load: Callable[..., Any]) -> None:
    """A context read beside longer ones, whatever fills its tail, says what it says alone."""
    model, saes = load(architecture)
    tokens, lengths = ragged_batch()
    other = tokens.clone()
    for i, n in enumerate(LENGTHS):
        other[i, n:] = (tokens[i, n:] + 100) % 512
    for energy in (NegativeLogLikelihood(), LogitLens(), AttentionEnergy(), Hopfield()):
        together, again = (read(model, saes, batch, lengths, energy) for batch in (tokens, other))
        for i, n in enumerate(LENGTHS):
            alone = read(model, saes, tokens[i : i + 1, :n], lengths[i : i + 1], energy)
            for reading in (together, again):
                for layer, values in alone.values.items():
                    torch.testing.assert_close(reading.values[layer][i, :n], values[0], rtol=1e-5, atol=1e-6)
                    assert not reading.values[layer][i, n:].any()
                for layer, gradients in alone.gradients.items():
                    scale = float(gradients.abs().max())
                    torch.testing.assert_close(
                        reading.gradients[layer][i, :n], gradients[0], rtol=1e-5, atol=1e-5 * scale
                    )
                    assert not reading.gradients[layer][i, n:].any()


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("of", ["TILE_ROWS", "TILE_TOKENS"])
def test_tiles_change_nothing(
    of: str, size: int, load: Callable[..., Any], nll: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of the vocabulary, or however many tokens, are held at once: the same energies and gradients."""
    tokens, expected = nll("llama")
    monkeypatch.setattr(unembedding, of, size)
    with TrueFloat64():
        found = read(*load("llama"), tokens, torch.tensor(LENGTHS), NegativeLogLikelihood())
    torch.testing.assert_close(found.values[None], expected.values[None], rtol=2e-7, atol=0)
    for layer in LAYERS:
        torch.testing.assert_close(found.gradients[layer], expected.gradients[layer], rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tile", [5, 64, 1_000])
def test_reductions_of_the_vocabulary(
    architecture: str, tile: int, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, likeliest tokens and expected rows are those of a softmax over all logits, wherever the largest comes."""
    monkeypatch.setattr(unembedding, "TILE_ROWS", tile)
    model, _ = load(architecture, torch.float64)
    generator = torch.Generator().manual_seed(2)
    hidden = 30 * torch.randn(40, model.d_model, generator=generator, dtype=torch.float64)  # some of p is nearly 1
    targets = torch.randint(model.vocabulary_size, (40,), generator=generator)
    logits = model.unembedding(hidden)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    found, top = unembedding.next_token_outcomes(model, hidden, targets)
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(unembedding.next_token_losses(model, hidden, targets), losses)
    assert torch.equal(top, logits.argmax(-1))
    expected = logits.softmax(-1) @ model.unembedding.weight
    torch.testing.assert_close(unembedding.expected_rows(model, hidden), expected)
    again, gradients = unembedding.next_token_nll(model, hidden, targets)
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(gradients, expected - model.unembedding.weight[targets])


def test_drawn_labels_come_as_often_as_the_model_says(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frequencies of 50,000 draws, tile by tile, within five standard errors of p."""
    monkeypatch.setattr(unembedding, "TILE_ROWS", 37)
    model, _ = load("llama", torch.float64)
    hidden = torch.randn(2, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    drawn = unembedding.DrawnTokens(hidden, 50_000, np.random.default_rng(0))
    unembedding.reduced(model, hidden, [drawn])
    for tokens, p in zip(drawn.tokens.T, model.unembedding(hidden).softmax(-1), strict=True):
        share = torch.bincount(tokens, minlength=len(p)) / len(tokens)
        assert ((share - p).abs() <= 5 * (p * (1 - p) / len(tokens)).sqrt() + 1e-12).all()


def test_an_offset_of_all_logits_does_not_cost_bfloat16_its_precision(load: Callable[..., Any]) -> None:
    """A row that all of the unembedding has in common moves a token's logits alike, GPT-2's by 100: no loss notices."""
    exact, _ = load("gpt2", torch.float64)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(200, exact.d_model, generator=generator, dtype=torch.float64)
    offset = torch.ones(exact.d_model, dtype=torch.float64)
    targets = torch.randint(exact.vocabulary_size, (200,), generator=generator)
    hidden += (-100 / exact.d_model) * offset  # logits around −100, as GPT-2's are
    with torch.no_grad():
        weight = exact.unembedding.weight + offset
        coarse = SimpleNamespace(
            centred_unembedding=None, unembedding=SimpleNamespace(weight=weight.bfloat16(), bias=None),
            is_linear=True, logit_scale=1.0, logit_cap=None, bent=lambda products: products, slope=lambda _: 1.0,
        )  # fmt: skip
    for name in ("common_row", "centred_unembedding"):
        setattr(coarse, name, getattr(LanguageModel, name).func(coarse))
    found = unembedding.next_token_losses(coarse, hidden.bfloat16(), targets)  # type: ignore[arg-type]
    logits = hidden.bfloat16().double() @ weight.bfloat16().double().T
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    assert (found - losses).abs().mean() < 0.02


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_gradients_point_the_same_way(architecture: str, load: Callable[..., Any]) -> None:
    """Gradients and energies in bfloat16 agree with float32: cosine above 0.99 over a layer's tokens."""
    tokens, lengths = ragged_batch()
    single, half = (
        read(*load(architecture, dtype), tokens, lengths, NegativeLogLikelihood())
        for dtype in (torch.float32, torch.bfloat16)
    )
    for layer in LAYERS:
        a, b = single.gradients[layer].flatten(), half.gradients[layer].flatten()
        assert b.dtype == torch.float32
        assert float(nn.functional.cosine_similarity(a, b, dim=0)) > 0.99
    assert float((single.values[None] - half.values[None]).abs().max()) < 0.2


# ------------------------------------------------------------------------------------------------ logit lens


def lens_losses(model: LanguageModel, x: Tensor, following: Tensor) -> Tensor:
    """−log p(following) [n] when the model's own last steps read residuals x [n, d_model]."""
    return nn.functional.cross_entropy(model.unembedding(model.final_norm(x)), following, reduction="none")


def layer_reading(model: LanguageModel, saes: Any, energy: Any) -> tuple[Tensor, Tensor, dict[int, Tensor], Reading]:
    """The ragged batch's tokens and included mask, residuals by layer, and what an energy says, all in float64."""
    tokens, lengths = ragged_batch()
    positions = torch.arange(tokens.shape[1])
    mask = (positions > 0) & (positions < lengths[:, None] - 1)
    with TrueFloat64():
        forward = run_forward(model, saes, tokens, lengths, lambda _layer, _norms: mask.clone())
        reading = energy.read(forward)
    return tokens, mask, {layer: x.detach() for layer, x in forward.residuals.items()}, reading


def largest_slope_error(gradient: Tensor, total: Callable[[Tensor], Tensor], x: Tensor, places: Tensor) -> float:
    """How far ⟨gradient, v⟩ is from central differences of total(x) at places [n, dims], over the RMS slope."""
    rms = float(torch.stack([gradient[tuple(place)] for place in places]).double().square().mean().sqrt())
    generator = torch.Generator().manual_seed(3)
    step, worst = 1e-4, 0.0
    for index in torch.randint(len(places), (12,), generator=generator):
        place = tuple(places[index])
        direction = torch.randn(x.shape[-1], generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        above, below = x.clone(), x.clone()
        above[place] += step * direction
        below[place] -= step * direction
        with torch.no_grad(), TrueFloat64():
            slope = float((total(above) - total(below)) / (2 * step))
        worst = max(worst, abs(float(gradient[place].double() @ direction) - slope) / rms)
    return worst


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lens", ["logit_lens", "tuned_lens"])
def test_a_lens_is_the_models_last_steps_read_early(
    lens: str, architecture: str, load: Callable[..., Any], tiny: Callable[..., Any]
) -> None:
    """Energies equal cross entropy after the map, final norm and unembedding; gradients equal its central differences;
    the divergence from the output is the KL of two softmaxes over the vocabulary.
    """
    model, saes = load(architecture)
    translators = load_translators(tiny(architecture).lens)
    energy = LogitLens() if lens == "logit_lens" else TunedLens(translators)
    tokens, mask, residuals, reading = layer_reading(model, saes, energy)
    following = tokens.roll(-1, dims=1)
    with torch.no_grad(), TrueFloat64():
        log_p = model.unembedding(model.hidden(tokens)).log_softmax(-1)[mask]
    for layer in LAYERS:
        x = residuals[layer]

        def translated(x: Tensor, layer: int = layer) -> Tensor:
            own = translators.of(layer)
            return x if lens == "logit_lens" else x @ own.weight.double() + own.bias.double()

        with torch.no_grad(), TrueFloat64():
            expected = lens_losses(model, translated(x[mask]), following[mask])
            log_q = model.unembedding(model.final_norm(translated(x[mask]))).log_softmax(-1)
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        torch.testing.assert_close(reading.values[layer][mask].double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(reading.divergences[layer][mask].double(), kl, rtol=1e-5, atol=1e-5)
        assert kl.min() > 0.01
        for part in (reading.values[layer], reading.gradients[layer], reading.divergences[layer]):
            assert not part[~mask].any()

        def total(x: Tensor, translated: Callable[[Tensor], Tensor] = translated) -> Tensor:
            return lens_losses(model, translated(x[mask]), following[mask]).sum()

        assert largest_slope_error(reading.gradients[layer], total, x, mask.nonzero()) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logit_lens_at_the_last_block_is_nll(architecture: str, load: Callable[..., Any]) -> None:
    model, saes = load(architecture)
    last = {3: replace(saes[2], layer=3)}
    _, mask, _, lens = layer_reading(model, last, LogitLens())
    _, _, _, nll = layer_reading(model, last, NegativeLogLikelihood())
    torch.testing.assert_close(lens.values[3][mask], nll.values[None][mask], rtol=1e-6, atol=1e-6)
    assert lens.divergences[3].abs().max() < 1e-6
    # Nothing above the last block mixes tokens, so the gradients agree as well.
    scale = float(nll.gradients[3].abs().max())
    torch.testing.assert_close(lens.gradients[3][mask], nll.gradients[3][mask], rtol=1e-5, atol=1e-6 * scale)


# ------------------------------------------------------------------------------------------------ attention


def own_attention(model: LanguageModel, tokens: Tensor, layer: int) -> Tensor:
    """The model's own attention pattern [batch, head, t, s] in a block."""
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("eager")
    try:
        with torch.no_grad(), TrueFloat64():
            return model.module(input_ids=tokens, output_attentions=True, use_cache=False).attentions[layer]
    finally:
        model.module.set_attn_implementation(before)


def own_products(model: LanguageModel, tokens: Tensor, layer: int) -> Tensor:
    """q_t·k_t [batch, head, t] of a block's projections before any rotation, which keeps a token's own product."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.update({name: output}))
        for name, module in model.blocks[layer].named_modules()
        if name.rpartition(".")[2] in ("q_proj", "k_proj", "c_attn", "query_key_value")
    ]
    with torch.no_grad(), TrueFloat64():
        model.hidden(tokens)
    for handle in handles:
        handle.remove()
    found = {name.rpartition(".")[2]: output for name, output in outputs.items()}
    heads = model.module.config.num_attention_heads
    if "q_proj" in found:
        q, k = (found[name].unflatten(-1, (-1, model.d_model // heads)) for name in ("q_proj", "k_proj"))
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    elif "c_attn" in found:
        q, k, _ = found["c_attn"].unflatten(-1, (3, heads, -1)).unbind(2)
    else:
        q, k, _ = found["query_key_value"].unflatten(-1, (heads, 3, -1)).unbind(3)
    return (q * k).sum(-1).transpose(1, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_scores_are_the_models_own(architecture: str, load: Callable[..., Any]) -> None:
    """Their softmax is the next block's attention pattern, and a token's own score its unrotated product."""
    model, _ = load(architecture)
    tokens, _ = ragged_batch((24, 24, 24))
    for layer in LAYERS:
        with torch.no_grad(), TrueFloat64():
            residuals = harvest_residuals(model, tokens, [layer])
            inputs = model.attention_inputs(tokens, layer, residuals[layer])
            scores = attention_scores(inputs)
        pattern = own_attention(model, tokens, layer + 1)
        assert float(pattern.std()) > 0.05  # the pattern is no uniform one
        torch.testing.assert_close(scores.softmax(-1), pattern.to(scores.dtype), rtol=0, atol=1e-9)
        expected = own_products(model, tokens, layer + 1) * (model.d_model / scores.shape[1]) ** -0.5
        torch.testing.assert_close(scores.diagonal(dim1=2, dim2=3), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_energy_and_its_gradient(architecture: str, load: Callable[..., Any]) -> None:
    """E_t = −Σ_h log Σ_{s≤t} exp(score), at every token; its gradient holds queries and keys."""
    model, saes = load(architecture)
    tokens, _, residuals, reading = layer_reading(model, saes, AttentionEnergy())
    within = torch.arange(tokens.shape[1]) < torch.tensor(LENGTHS)[:, None]
    for layer in LAYERS:

        def energies(x: Tensor, layer: int = layer) -> Tensor:
            scores = attention_scores(model.attention_inputs(tokens, layer, x))
            return -scores.exp().sum(-1).log().sum(1)

        with torch.no_grad(), TrueFloat64():
            expected = energies(residuals[layer])
        values = reading.values[layer].double()
        torch.testing.assert_close(values[within], expected[within], rtol=1e-6, atol=1e-6)
        assert not values[~within].any()
        assert not reading.gradients[layer][~within].any()

        def total(x: Tensor, energies: Callable[[Tensor], Tensor] = energies) -> Tensor:
            return energies(x)[within].sum()

        assert largest_slope_error(reading.gradients[layer], total, residuals[layer], within.nonzero()) < 1e-5


@pytest.mark.real
def test_real_lens_and_attention_of_smollm2() -> None:
    """On a float64 SmolLM2: both gradients are slopes, the last block's lens is nll, scores give the own pattern."""
    model = models.load_model(models.DEFAULT_MODEL, torch.float64)
    saes = {layer: load_sae(shipped_folder(models.DEFAULT_MODEL, layer)) for layer in (10, 25)}
    tokens, mask, residuals, lens = layer_reading(model, saes, LogitLens())
    _, _, _, attention = layer_reading(model, saes, AttentionEnergy())
    following = tokens.roll(-1, dims=1)
    within = torch.arange(tokens.shape[1]) < torch.tensor(LENGTHS)[:, None]
    for layer, x in residuals.items():

        def lens_total(x: Tensor) -> Tensor:
            return lens_losses(model, x[mask], following[mask]).sum()

        def attention_total(x: Tensor, layer: int = layer) -> Tensor:
            return -attention_scores(model.attention_inputs(tokens, layer, x)).logsumexp(-1).sum(1)[within].sum()

        assert largest_slope_error(lens.gradients[layer], lens_total, x, mask.nonzero()) < 1e-3
        # The first token's norm is a hundred times the others', so it would set the scale.
        assert largest_slope_error(attention.gradients[layer], attention_total, x, mask.nonzero()) < 1e-3
        with torch.no_grad(), TrueFloat64():
            scores = attention_scores(model.attention_inputs(tokens, layer, x))
        pattern = own_attention(model, tokens, layer + 1)
        torch.testing.assert_close(scores.softmax(-1), pattern.to(scores.dtype), rtol=0, atol=1e-5)
    last = {29: replace(saes[25], layer=29)}
    _, _, _, lens = layer_reading(model, last, LogitLens())
    _, _, _, nll = layer_reading(model, last, NegativeLogLikelihood())
    torch.testing.assert_close(lens.values[29][mask], nll.values[None][mask], rtol=1e-6, atol=1e-6)


def test_attention_of_the_last_block_is_refused(load: Callable[..., Any]) -> None:
    """There is no next block to read, and the sentence says so."""
    model, _ = load("llama")
    AttentionEnergy().check(model, [1, 2])
    with pytest.raises(UsageError, match=r"attention energy of layer 3 .* next block"):
        AttentionEnergy().check(model, [1, 3])
    NegativeLogLikelihood().check(model, [3])


def test_a_window_of_attention_is_kept() -> None:
    """A token attends to `window` tokens, itself the last of them."""
    queries = keys = torch.ones(1, 2, 6, 4)
    scores = attention_scores(attention.AttentionInputs(queries, keys[:, :1], 0.5, 3))
    assert scores.isfinite().sum(-1)[0].tolist() == [[1, 2, 3, 3, 3, 3]] * 2
    assert scores[scores.isfinite()].unique().tolist() == [2.0]


def test_attention_that_is_more_than_queries_and_keys_is_refused(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap on scores, or attention that never reaches the interface, is named instead of left out."""
    model, _ = load("llama", torch.float32)
    tokens, _ = ragged_batch((5,))
    x = torch.zeros(1, 5, model.d_model)
    reach = attention._reach_attention
    monkeypatch.setattr(attention, "_reach_attention", lambda *parts, **more: reach(*parts, softcap=50.0, **more))
    with pytest.raises(UsageError, match="a cap on scores"):
        model.attention_inputs(tokens, 1, x)
    monkeypatch.setattr(attention, "_reach_attention", lambda module, query, *_, **__: (query.transpose(1, 2), None))
    with pytest.raises(UsageError, match="cannot be read"):
        model.attention_inputs(tokens, 1, x)
    monkeypatch.undo()
    assert model.hidden(tokens).shape == (1, 5, model.d_model)


# ------------------------------------------------------------------------------------------------ hopfield


def hopfield_energy(folder: Path, x: Tensor) -> Tensor:
    """−½ Σ_j a_j² of residuals x [n, d_model], straight from the definition of a SAELens TopK folder."""
    from safetensors.torch import load_file

    config = json.loads((folder / "cfg.json").read_text())
    weights = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    z = x - weights["b_dec"] if config["apply_b_dec_to_input"] else x
    h = torch.einsum("nd,dj->nj", z, weights["W_enc"]) + weights["b_enc"]
    if config["rescale_acts_by_decoder_norm"]:
        h = h * weights["W_dec"].norm(dim=1)
    threshold = h.sort(dim=1, descending=True).values[:, config["k"] - 1 : config["k"]]
    a = torch.where((h >= threshold) & (h > 0), h, torch.zeros_like(h))
    return -0.5 * a.square().sum(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True}])
def test_hopfield_equals_autograd_through_the_encoder(
    architecture: str, changes: dict[str, bool], tiny: Callable[..., Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    """Energy and gradient are those of an encoder written from the format's definition, at every included token."""
    model, _ = load(architecture)
    tokens, lengths = ragged_batch()
    folders = {}
    for layer in LAYERS:
        folders[layer] = tmp_path / f"layer_{layer}"
        sae = load_sae(tiny(architecture).saes / f"layer_{layer}")
        sae.W_dec = sae.W_dec * torch.linspace(0.5, 2, sae.d_sae)[:, None]  # decoder norms that matter
        save_sae(sae, folders[layer])
        config = json.loads((folders[layer] / "cfg.json").read_text()) | changes
        (folders[layer] / "cfg.json").write_text(json.dumps(config))
    saes = {layer: load_sae(folder) for layer, folder in folders.items()}
    positions = torch.arange(tokens.shape[1])
    included = (positions > 0) & (positions < lengths[:, None] - 1)
    forward = run_forward(model, saes, tokens, lengths, lambda _layer, _norms: included.clone())
    reading = Hopfield().read(forward)
    assert set(reading.values) == set(LAYERS)
    for layer in LAYERS:
        x = forward.residuals[layer].detach().double()[included].requires_grad_(True)
        energy = hopfield_energy(folders[layer], x)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        energy = energy.detach()
        assert float(energy.min()) < 0
        scale = float(energy.abs().max())
        torch.testing.assert_close(reading.values[layer][included].double(), energy, rtol=2e-5, atol=1e-6 * scale)
        scale = float(gradient.abs().max())
        torch.testing.assert_close(reading.gradients[layer][included].double(), gradient, rtol=1e-5, atol=2e-5 * scale)


def test_hopfield_reads_included_tokens_only(load: Callable[..., Any]) -> None:
    """An excluded token has no activation, no Hopfield energy and no gradient; NLL still reaches it."""
    model, saes = load("llama", torch.float32)
    tokens, lengths = ragged_batch((12, 12))
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 3:7] = True
    forward = run_forward(model, saes, tokens, lengths, lambda _layer, _norms: mask.clone())
    hopfield, nll = Hopfield().read(forward), NegativeLogLikelihood().read(forward)
    for layer in LAYERS:
        assert bool((forward.activations[layer].values.view(2, 12, -1).sum(-1) > 0).eq(mask).all())
        assert bool((hopfield.values[layer] < 0).eq(mask).all())
        assert bool(hopfield.gradients[layer].any(-1).eq(mask).all())
        assert bool(nll.gradients[layer][:, :11].any(-1).all())


# ------------------------------------------------------------------------------------------------ discrete


def slope_along_text(energy: list[float], defined: list[bool], t: int) -> float:
    """−dE/dt at position t by its neighbours in the same run: half their difference, one-sided at an end."""
    if not defined[t]:
        return np.nan
    left, right = t > 0 and defined[t - 1], t + 1 < len(defined) and defined[t + 1]
    if left and right:
        return -(energy[t + 1] - energy[t - 1]) / 2
    if right:
        return -(energy[t + 1] - energy[t])
    return -(energy[t] - energy[t - 1]) if left else np.nan


@given(data=st.data(), n=st.integers(0, 40))
def test_discrete_gradient_is_numpys_on_every_run(data: st.DataObject, n: int) -> None:
    """−numpy.gradient on each maximal run of at least two defined tokens; NaN for singletons and outside."""
    finite = st.floats(-1e6, 1e6, allow_nan=False)
    # What stands at undefined places must not matter, be it NaN.
    energy = data.draw(hnp.arrays(np.float64, n, elements=st.one_of(finite, st.just(np.nan))))
    defined = data.draw(hnp.arrays(np.bool_, n))
    energy = np.where(defined, np.nan_to_num(energy), energy)
    found = discrete_gradient(energy, defined)
    by_hand = [slope_along_text(energy.tolist(), defined.tolist(), t) for t in range(n)]
    np.testing.assert_allclose(found, by_hand, rtol=1e-12, atol=0, equal_nan=True)
    start = 0
    while start < n:
        stop = start + 1
        while stop < n and defined[stop] == defined[start]:
            stop += 1
        if defined[start] and stop - start >= 2:
            np.testing.assert_array_equal(found[start:stop], -np.gradient(energy[start:stop]))
        else:
            assert np.isnan(found[start:stop]).all()
        start = stop


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_discrete_gradients_of_a_context(architecture: str, load: Callable[..., Any]) -> None:
    """NLL's derivative runs over every token with a next one, a layer's energy over runs of tokens included there."""
    model, saes = load(architecture, torch.float32)
    tokens, _ = ragged_batch((20, 5))
    norms = {}
    for layer in LAYERS:
        saes[layer].norm_median = 1e9
    contexts = [(Context(i, i, 0, 0, n), tokens[i, :n].numpy().astype(np.int32)) for i, n in enumerate((20, 5))]
    probe = next(Reader(model, saes, [NegativeLogLikelihood()], 2).read(contexts))
    for layer in LAYERS:
        # A median that makes the largest norms of this very context massive: included tokens fall into several runs.
        norms[layer] = probe.layers[layer].norms
        saes[layer].norm_median = float(norms[layer].quantile(0.7)) / 10
    reading, short = Reader(model, saes, [NegativeLogLikelihood(), Hopfield()], 2).read(contexts)
    for layer in LAYERS:
        saes[layer].norm_median = None
        own = reading.layers[layer]
        energy = reading.energies["nll", None].astype(np.float64)
        assert np.array_equal(own.discrete["nll"][:19], -np.gradient(energy[:19]))
        assert np.isnan(own.discrete["nll"][19])
        inside = (norms[layer] <= norms[layer].quantile(0.7)).numpy()
        inside[[0, 19]] = False
        assert np.array_equal(own.included, inside)
        assert 2 <= inside.sum() < 18
        energy = reading.energies["hopfield", layer].astype(np.float64)
        expected = [slope_along_text(energy.tolist(), inside.tolist(), t) for t in range(20)]
        np.testing.assert_allclose(own.discrete["hopfield"], expected, rtol=1e-12, equal_nan=True)
        assert len(short.layers[layer].discrete["nll"]) == 5


# ------------------------------------------------------------------------------------------------ choice


def test_unknown_or_missing_energies_are_refused() -> None:
    """A name that does not exist, or none at all, is a sentence that lists the choices."""
    for names in (["nll", "entropy"], []):
        with pytest.raises(UsageError, match="nll, logit_lens, tuned_lens, attention, native, hopfield"):
            energies_module.make_energies(names)
    assert [energy.name for energy in energies_module.make_energies(["hopfield", "nll", "hopfield"])] == [
        "hopfield",
        "nll",
    ]


# ------------------------------------------------------------------------------------------------ from outside

OUTSIDE = '''
import torch
from energy_lens.ingest.energies import Energy, ForwardPass, Reading

class HalfSquaredNorm(Energy):
    """E_t = ½‖x_t‖²: its gradient is x itself."""

    name, units, version, at_layers = "half_squared_norm", "squared residual units", 1, True

    def read(self, forward: ForwardPass) -> Reading:
        x = {layer: residual.detach().float() for layer, residual in forward.residuals.items()}
        return Reading({layer: own.square().sum(-1) / 2 for layer, own in x.items()}, x)

class Unnamed(HalfSquaredNorm):
    name = "nll"

class NoUnits(Energy):
    name, version, at_layers = "no_units", 1, True

    def read(self, forward: ForwardPass) -> Reading:
        raise NotImplementedError

class NoEnergy:
    name = "none"
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `outside_energies` on the import path."""
    (tmp_path / "outside_energies.py").write_text(OUTSIDE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("outside")
def test_an_energy_from_outside_is_stored_like_the_packages_own(
    tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path
) -> None:
    """Values, gradients, statistics and units of a class that is named on the command line."""
    model = tiny("llama")
    options = IngestOptions(
        db=tmp_path / "a.duckdb", model=str(model.folder), saes=(model.saes,), dtype="float32", context_length=32,
        energies=("nll", "outside_energies:HalfSquaredNorm"), max_tokens=1,
    )  # fmt: skip
    ingest([small_corpus], options)
    with Warehouse(options.db) as warehouse:
        n, worst = warehouse.sql(
            """
            SELECT count(*), max(abs(e.value - l.norm * l.norm / 2) / e.value)
            FROM energies AS e JOIN token_layers AS l USING (run_id, token_id, layer)
            WHERE energy = 'half_squared_norm'
            """
        ).fetchone() or (0, 0)
        assert n > 100
        assert worst < 1e-5
        places = "SELECT token_id, layer, feature, g_half_squared_norm FROM activations LIMIT 50"
        assert all(g is not None for *_, g in warehouse.sql(places).fetchall())
        scored = "SELECT count(score) FROM efas WHERE energy = 'half_squared_norm' AND gradient = 'decoder'"
        assert warehouse.sql(scored).value() > 50
        assert warehouse.sql("SELECT units_of('half_squared_norm')").value() == "squared residual units"
        about = "SELECT comment FROM duckdb_columns() WHERE column_name = 'g_half_squared_norm'"
        assert "half_squared_norm" in warehouse.sql(about).value()
    assert ingest([small_corpus], options).new_groups == 0  # the same run


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("outside_energies:Missing", "cannot be made"),
        ("no_such_module:Energy", "PYTHONPATH"),
        ("outside_energies:Unnamed", "called 'nll'"),
        ("outside_energies:NoUnits", "has no units"),
        ("outside_energies:NoEnergy", "is no energy"),
        ("os:abort", "is no energy"),  # and is not called to find out
    ],
)
def test_what_is_no_energy_from_outside_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        energies_module.make_energies(["nll", name])
