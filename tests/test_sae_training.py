"""SAE training: planted features are found, the constraints hold, and excluded tokens stay out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from energy_lens.ingest import sae_training
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.models import LanguageModel, harvest_residuals
from energy_lens.ingest.sae import SparseAutoencoder, load_sae, save_sae
from energy_lens.ingest.sae_training import (
    Progress,
    TrainingConfig,
    _add_quartiles,
    _batches,
    _first_look,
    _geometric_median,
    _schedule,
    _Trainer,
    cut_contexts,
    split_documents,
    train_saes,
)
from energy_lens.warehouse.errors import UsageError

#: Planted data: 48 unit directions in 32 dimensions, 3 of them active in a token, in residual units of about 60.
WIDTH, DIRECTIONS, ACTIVE, UNIT = 32, 48, 3, 30.0
CONFIG = TrainingConfig(d_sae=64, k=ACTIVE, tokens=204_800, batch_size=256, learning_rate=3e-3, dead_after=2_560)
OFFSET = torch.linspace(-20, 20, WIDTH)


class Planted:
    """Residuals x = offset + Σ of 3 directions with coefficients of 1 to 2 units + noise."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(DIRECTIONS, WIDTH, generator=torch.Generator().manual_seed(99))
        self.directions = directions / directions.norm(dim=1, keepdim=True)

    def draw(self, n: int) -> Tensor:
        """[n, WIDTH]"""
        active = torch.rand(n, DIRECTIONS, generator=self._generator).topk(ACTIVE).indices
        sizes = 1 + torch.rand(n, ACTIVE, generator=self._generator)
        coefficients = torch.zeros(n, DIRECTIONS).scatter_(1, active, sizes)
        noise = 0.02 * torch.randn(n, WIDTH, generator=self._generator)
        return OFFSET + UNIT * (coefficients @ self.directions + noise)


def trained(n_steps: int, config: TrainingConfig = CONFIG, spoil: Callable[[_Trainer], None] | None = None) -> _Trainer:
    """A trainer after so many steps on planted data."""
    data = Planted()
    trainer = _Trainer(layer=1, sample=data.draw(2_000), norm_median=60.0, config=config)
    if spoil:
        spoil(trainer)
    for step in range(n_steps):
        trainer.step(data.draw(config.batch_size), config.learning_rate * _schedule(step / n_steps, config))
    return trainer


@pytest.fixture(scope="module")
def trainer() -> _Trainer:
    """A trainer at the end of its training."""
    return trained(800)


def fvu(sae: SparseAutoencoder, x: Tensor) -> float:
    """Σ‖x − x̂‖² / Σ‖x − x̄‖²"""
    error = (x - sae.decode(sae.encode(x))).double().square().sum()
    return float(error / (x - x.mean(0)).double().square().sum())


# ------------------------------------------------------------------------------------------------ what is learnt


def test_planted_directions_are_found(trainer: _Trainer) -> None:
    """Every direction that made the data is a decoder row, and little of fresh data stays unexplained."""
    sae = trainer.finished("planted")
    cosines = (Planted().directions @ sae.W_dec.T).max(dim=1).values
    assert float(cosines.mean()) > 0.98
    assert float((cosines > 0.9).float().mean()) > 0.95
    fresh = Planted(seed=1).draw(4_000)
    assert fvu(sae, fresh) < 0.05
    assert trainer.fvu == pytest.approx(fvu(sae, fresh), rel=0.2), "the figure shown while training is the FVU"


def test_a_planted_feature_reads_its_own_size(trainer: _Trainer) -> None:
    """a_j of a token made of one direction is that direction's coefficient, in residual units."""
    sae = trainer.finished("planted")
    directions = Planted().directions
    x = OFFSET + 1.5 * UNIT * directions
    activations = sae.encode(x)
    sizes, slots = activations.values.max(dim=1)
    features = activations.indices.gather(1, slots[:, None])[:, 0]
    assert (features == (directions @ sae.W_dec.T).argmax(dim=1)).float().mean() > 0.9
    assert float(sizes.median()) == pytest.approx(1.5 * UNIT, rel=0.25)


def test_decoder_rows_keep_unit_norm_at_every_step() -> None:
    """So that activations of different features can be compared."""
    data = Planted()
    trainer = _Trainer(0, data.draw(500), 60.0, CONFIG)
    for _ in range(5):
        trainer.step(data.draw(256), 0.05)
        torch.testing.assert_close(trainer.W_dec.data.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(trainer.finished("x").W_dec.norm(dim=1), torch.ones(64))


def test_the_gradient_along_the_rows_is_removed() -> None:
    """What is left of each row's gradient is orthogonal to it: the step turns rows, and does not stretch them."""
    data = Planted()
    trainer = _Trainer(0, data.draw(500), 60.0, CONFIG)
    for _ in range(3):
        rows = trainer.W_dec.detach().clone()
        trainer.step(data.draw(256), 1e-3)
        gradient = trainer.W_dec.grad
        assert gradient is not None
        sizes = gradient.norm(dim=1)
        assert float(sizes.max()) > 1e-3
        along = (gradient * rows).sum(dim=1).abs()
        assert float((along / sizes.clamp_min(1e-9))[sizes > 1e-6].max()) < 1e-3


def test_the_scale_is_folded_back(trainer: _Trainer) -> None:
    """On raw residuals the finished SAE does what the trained one does on scaled ones, and reads residual units."""
    x = Planted(seed=2).draw(500)
    assert float((Planted().draw(2_000) * trainer.scale).norm(dim=1).mean()) == pytest.approx(math.sqrt(WIDTH))
    scaled = x * trainer.scale
    with torch.no_grad():
        h = (scaled - trainer.b_dec) @ trainer.W_enc + trainer.b_enc
        values, indices = h.topk(ACTIVE, dim=1)
        dense = torch.zeros_like(h).scatter_(1, indices, values.relu())
        reconstruction = (dense @ trainer.W_dec + trainer.b_dec) / trainer.scale
    sae = trainer.finished("planted")
    activations = sae.encode(x)
    found = torch.zeros_like(h).scatter_(1, activations.indices, activations.values)
    torch.testing.assert_close(found, dense / trainer.scale, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sae.decode(activations), reconstruction, atol=1e-3, rtol=1e-3)


def test_a_finished_sae_does_not_change_with_further_training(trainer: _Trainer) -> None:
    """It is a copy."""
    own = trained(3)
    sae = own.finished("x")
    before = {name: getattr(sae, name).clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    own.step(Planted().draw(256), 0.05)
    assert all(torch.equal(getattr(sae, name), tensor) for name, tensor in before.items())
    assert not any(tensor.requires_grad for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))


@pytest.mark.parametrize(("auxiliary", "lowest", "highest"), [(0.0, 0.9, 1.0), (1 / 32, 0.0, 0.7)])
def test_dead_features_are_revived_by_the_auxiliary_loss(auxiliary: float, lowest: float, highest: float) -> None:
    """Half of the features start too weak ever to be chosen: only that loss brings back those that are needed."""

    def weaken(trainer: _Trainer) -> None:
        with torch.no_grad():
            trainer.W_enc[:, 32:] *= 1e-3
            trainer.b_enc[:32] += 0.5

    own = trained(300, dataclasses.replace(CONFIG, auxiliary=auxiliary), weaken)
    dead = float((own.idle_tokens[32:] > CONFIG.dead_after).float().mean())
    assert lowest <= dead <= highest
    assert own.dead_share == pytest.approx(float((own.idle_tokens > CONFIG.dead_after).float().mean()))
    assert (fvu(own.finished("x"), Planted(seed=1).draw(2_000)) > 0.15) == (auxiliary == 0)


def test_idle_tokens_count_since_a_feature_fired() -> None:
    """A feature that fires in a batch starts from 0, any other one is older by the batch."""
    data = Planted()
    own = _Trainer(0, data.draw(500), 60.0, CONFIG)
    with torch.no_grad():
        own.b_enc -= 1.5  # so that some slots stay empty
    expected = torch.zeros(64)
    for _ in range(4):
        x = data.draw(32)
        activations = own.finished("x").encode(x)
        assert (activations.values == 0).any()
        expected += 32
        expected[activations.indices[activations.values > 0]] = 0
        own.step(x, 1e-3)
        assert torch.equal(own.idle_tokens, expected)
    assert 0 < int((expected > 0).sum()) < 64


def test_same_seed_same_weights() -> None:
    """Two trainings with one seed agree to the last bit; seed and layer choose the start."""
    first, again = trained(20), trained(20)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, again.parameters, strict=True))
    other_seed = trained(0, dataclasses.replace(CONFIG, seed=1))
    other_layer = _Trainer(2, Planted().draw(2_000), 60.0, CONFIG)
    start = trained(0).W_dec
    assert not torch.allclose(start, other_seed.W_dec)
    assert not torch.allclose(start, other_layer.W_dec)


def test_geometric_median_has_the_smallest_summed_distance() -> None:
    """Unlike the mean it is not dragged away by outliers."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(400, 5, generator=generator)
    x[:40] += 100
    centre = _geometric_median(x)

    def cost(point: Tensor) -> float:
        return float((x - point).double().norm(dim=1).sum())

    assert float(centre.norm()) < 1.0 < float(x.mean(0).norm())
    for _ in range(50):
        step = torch.randn(5, generator=generator)
        assert cost(centre) < cost(centre + 0.05 * step / step.norm())


def test_the_learning_rate_rises_stays_and_falls() -> None:
    """2 % up, then flat, then a quarter down to nothing."""
    rates = np.array([_schedule(share, CONFIG) for share in np.linspace(0, 1, 1001)])
    assert rates[0] == rates[-1] == 0
    assert (rates[20:751] == 1).all()
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[750:]) < 0).all()
    assert _schedule(0.0, dataclasses.replace(CONFIG, warmup_share=0.0, decay_share=0.0)) == 1


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 65}, "k is 65"),
        ({"tokens": 255}, "255 tokens"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model_batch": 0}, "model_batch is 0"),
        ({"context_length": 1}, "context_length is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"buffer_tokens": 511}, "buffer_tokens is 511"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], found: str) -> None:
    """Each before any work, by name; a buffer of less than two batches would never give one."""
    with pytest.raises(UsageError, match=found):
        dataclasses.replace(CONFIG, **changes)


# ------------------------------------------------------------------------------------------------ documents


def document(content: str, path: str = "a.txt", category: str = "natural") -> Document:
    from hashlib import sha256

    return Document(path, category, sha256(content.encode()).hexdigest(), len(content), Path(path))


def test_documents_are_split_by_content() -> None:
    """About 85, 5 and 10 %; a document stays in its part whatever it is called and whatever others there are."""
    documents = [document(f"text {i}", f"{i}.txt") for i in range(4_000)]
    parts = split_documents(documents)
    names = {part: [d.path for d in own] for part, own in parts.items()}
    assert sorted([*names["train"], *names["select"], *names["test"]]) == sorted(d.path for d in documents)
    assert [len(names[part]) / 4_000 for part in ("train", "select", "test")] == pytest.approx(
        [0.85, 0.05, 0.10], abs=0.02
    )
    renamed = [document(f"text {i}", f"other/{i}.md", "code") for i in range(0, 4_000, 7)][::-1]
    for part, own in split_documents(renamed).items():
        assert {d.sha256 for d in own} <= {d.sha256 for d in parts[part]}


def test_a_corpus_of_held_out_documents_is_refused() -> None:
    """There is nothing to train on."""
    held_out = split_documents([document(f"text {i}") for i in range(100)])["test"]
    assert held_out
    with pytest.raises(UsageError, match="held-out"):
        split_documents(held_out)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any]) -> LanguageModel:
    """The tiny Llama."""
    loaded: LanguageModel = tiny("llama").load()
    return loaded


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """48 short documents, some of which fall into each part."""
    folder = tmp_path_factory.mktemp("texts")
    corpus = Path(__file__).parent.parent / "corpus"
    for path in sorted(corpus.glob("*/*.txt")):
        text = path.read_text(encoding="utf-8")
        for part in range(2):
            (folder / f"{path.stem}-{part}.txt").write_text(text[part * 900 : part * 900 + 900], encoding="utf-8")
    documents = discover([folder])
    assert all(split_documents(documents).values())
    return documents


def test_only_full_contexts_are_cut(model: LanguageModel, texts: Sequence[Document]) -> None:
    """Each row is a stretch of one document, in order; the rest of a document is left out."""
    contexts = cut_contexts(model, texts[:3], 32)
    expected = []
    for own in texts[:3]:
        ids = model.tokenize(own.text())
        expected += [ids[start : start + 32] for start in range(0, len(ids) - 31, 32)]
    assert contexts.tolist() == expected
    exact = SimpleNamespace(tokenize=lambda text: list(range(len(text))))
    sizes: list[Any] = [SimpleNamespace(text=("x" * n).__str__) for n in (64, 31, 65)]
    assert cut_contexts(exact, sizes, 32)[:, 0].tolist() == [0, 32, 0, 32]  # type: ignore[arg-type]
    assert cut_contexts(model, [], 32).shape == (0, 32)


# ------------------------------------------------------------------------------------------------ excluded tokens

TINY = TrainingConfig(
    d_sae=48, k=4, tokens=2_048, batch_size=128, buffer_tokens=1_024, context_length=32, model_batch=8,
    dead_after=1_000,
)  # fmt: skip
LAYERS = [1, 2]


def spoiled_harvest(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """x of layer 1 at every layer L, times L; every first token is all sevens, and in layer 2 token 5 is massive."""
    x = harvest_residuals(model, tokens, [1])[1]
    x[:, 0] = 7.0
    residuals = {layer: x * layer for layer in layers}
    if 2 in residuals:
        residuals[2][:, 5] *= 1e4
    return residuals


def test_excluded_tokens_never_enter(
    model: LanguageModel, texts: Sequence[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No first token and no massive one trains an SAE, sets its scale or its median, at any layer."""
    monkeypatch.setattr(sae_training, "harvest_residuals", spoiled_harvest)
    contexts = cut_contexts(model, texts, 32)
    medians, first = _first_look(model, contexts, LAYERS, TINY)
    clean = harvest_residuals(model, contexts[:16].long(), [1])[1]
    norms = clean.norm(dim=-1)
    assert medians[1] == pytest.approx(float(norms.median()), rel=0.05)
    assert medians[2] == pytest.approx(2 * medians[1], rel=0.1)
    assert first[1].shape == (16 * 31, 32)
    assert first[2].shape == (16 * 30, 32)

    batches = _batches(model, contexts, LAYERS, medians, TINY)
    for _ in range(20):
        batch = next(batches)
        for layer in LAYERS:
            x = batch[layer].float()
            assert x.shape == (128, 32)
            assert float(x.norm(dim=1).max()) < 10 * medians[layer]
            assert not (x == 7.0 * layer).all(dim=1).any()
        # All layers train on the same tokens, so the massive one of layer 2 is missing from layer 1 as well.
        torch.testing.assert_close(batch[2].float(), 2 * batch[1].float())


def test_a_buffer_hands_every_token_out_once(
    model: LanguageModel, texts: Sequence[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch of distinct tokens no batch repeats one, and they come shuffled over documents."""
    counter = iter(range(10**6))

    def numbered(_model: object, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        # Two bfloat16 numbers below 256 count exactly.
        ids = torch.tensor([next(counter) for _ in range(tokens.numel())]).view(tokens.shape)
        return {layer: torch.stack([ids // 256, ids % 256], dim=-1).float() + 1 for layer in layers}

    monkeypatch.setattr(sae_training, "harvest_residuals", numbered)
    contexts = cut_contexts(model, texts, 32)
    batches = _batches(model, contexts, [1], {1: 1e9}, TINY)
    drawn = torch.cat([next(batches)[1].float() for _ in range(40)]) - 1
    ids = (drawn[:, 0] * 256 + drawn[:, 1]).long()
    assert len(set(ids.tolist())) == len(ids)
    assert float((ids[1:] > ids[:-1]).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert not (ids % 32 == 0).any(), "first tokens"


# ------------------------------------------------------------------------------------------------ the whole training


@pytest.fixture(scope="module")
def saes(model: LanguageModel, texts: Sequence[Document]) -> tuple[list[SparseAutoencoder], list[Progress]]:
    """SAEs of two layers of the tiny Llama, and the progress that was told."""
    told: list[Progress] = []
    return train_saes(model, texts, LAYERS, TINY, told.append), told


def test_held_out_figures_are_those_of_the_test_documents(
    model: LanguageModel, texts: Sequence[Document], saes: tuple[list[SparseAutoencoder], list[Progress]]
) -> None:
    """FVU, L0, cosine and dead share, computed anew over the included tokens of the test documents."""
    test = split_documents(texts)["test"]
    contexts = cut_contexts(model, test, 32).long()
    for sae in saes[0]:
        assert sae.metadata["test_documents"] == sorted(d.path for d in test)
        x = harvest_residuals(model, contexts, [sae.layer])[sae.layer]
        norms = x.norm(dim=-1)
        kept = norms <= 10 * sae.norm_median
        kept[:, 0] = False
        x = x[kept].double()
        h = (x - sae.b_dec) @ sae.W_enc.double() + sae.b_enc
        values, indices = h.topk(sae.k, dim=1)
        dense = torch.zeros_like(h).scatter_(1, indices, values.relu())
        reconstruction = dense @ sae.W_dec.double() + sae.b_dec
        variance = (x - x.mean(0)).square().sum()
        expected = {
            "test_tokens": len(x),
            "fvu": float((x - reconstruction).square().sum() / variance),
            "l0": float((dense > 0).double().sum(1).mean()),
            "cosine": float(torch.cosine_similarity(x, reconstruction, dim=1).mean()),
            "dead_share": float(((dense > 0).sum(0) == 0).double().mean()),
        }
        assert {name: sae.metadata[name] for name in expected} == pytest.approx(expected, rel=1e-3)
        assert sae.metadata["fvu"] < 1


def test_test_documents_decide_nothing(
    model: LanguageModel, texts: Sequence[Document], saes: tuple[list[SparseAutoencoder], list[Progress]]
) -> None:
    """Without them, and with layers in another order, the same seed gives the same weights, medians and quartiles."""
    parts = split_documents(texts)
    kept = [d for d in texts if d not in parts["test"] and d not in parts["select"]]
    again = train_saes(model, kept, [2, 1, 2], TINY)
    for first, second in zip(saes[0], again[::-1], strict=True):
        assert first.layer == second.layer
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert first.norm_median == second.norm_median
        np.testing.assert_array_equal(first.quartiles, second.quartiles)
        assert "fvu" not in second.metadata


def test_training_says_how_far_it_is(saes: tuple[list[SparseAutoencoder], list[Progress]]) -> None:
    """Up to the last token, with figures of every layer."""
    told = saes[1]
    assert [progress.tokens for progress in told] == sorted(progress.tokens for progress in told)
    assert told[-1].tokens == saes[0][0].metadata["trained_tokens"] == 2_048
    assert set(told[-1].fvu) == set(told[-1].dead_share) == {1, 2}


def test_a_trained_sae_is_saved_with_all_it_knows(
    saes: tuple[list[SparseAutoencoder], list[Progress]], tmp_path: Path
) -> None:
    """It can be loaded and used without calibration."""
    for sae in saes[0]:
        save_sae(sae, tmp_path / str(sae.layer), torch.float16)
        loaded = load_sae(tmp_path / str(sae.layer))
        assert (loaded.layer, loaded.norm_median, loaded.metadata) == (sae.layer, sae.norm_median, sae.metadata)
        assert loaded.quartiles is not None
        assert torch.equal(loaded.quartiles.isnan(), sae.quartiles.isnan())


def test_quartiles_are_those_of_active_values() -> None:
    """Zeros do not count; below 40 active tokens a feature has none."""
    sae = trained(30).finished("x")
    sae.b_enc -= 15  # so that some slots stay empty
    data = Planted(seed=5)
    drawn = [data.draw(250) for _ in range(3)]
    batches: Iterator[dict[int, Tensor]] = iter({1: x} for x in drawn)
    _add_quartiles([sae], batches, dataclasses.replace(CONFIG, batch_size=33_333, buffer_tokens=66_666))
    activations = sae.encode(torch.cat(drawn))
    assert (activations.values == 0).any()
    assert sae.quartiles is not None
    n_with = 0
    for feature in range(64):
        own = activations.values[(activations.indices == feature) & (activations.values > 0)].numpy()
        if len(own) < 40:
            assert sae.quartiles[feature].isnan().all()
        else:
            n_with += 1
            np.testing.assert_allclose(sae.quartiles[feature], np.quantile(own, [0.25, 0.5, 0.75]), rtol=1e-4)
    assert 0 < n_with < 64


@pytest.mark.parametrize(
    ("layers", "config", "found"),
    [
        ([1, 4], TINY, "no layer 4"),
        ([], TINY, "No layer"),
        ([1], dataclasses.replace(TINY, buffer_tokens=65_536), "65536"),
    ],
)
def test_impossible_trainings_are_refused(
    model: LanguageModel, texts: Sequence[Document], layers: list[int], config: TrainingConfig, found: str
) -> None:
    """A layer that the model lacks, and text for less than two buffers."""
    with pytest.raises(UsageError, match=found):
        train_saes(model, texts, layers, config)
