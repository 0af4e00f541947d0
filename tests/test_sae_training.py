"""SAE training: planted features are found, gradients are autograd's, constraints hold, excluded tokens stay out."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.contexts import Ids, of_equal_length, parts_of, side_by_side, special_tokens
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model import residuals
from energy_lens.ingest.model import sites as sites_of_models
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import harvest_residuals
from energy_lens.ingest.model.sites import Site
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.training import harvesting
from energy_lens.ingest.training.activation_store import ActivationStore
from energy_lens.ingest.training.documents import (
    cut_contexts,
    shuffled_contexts,
    split_documents,
    trainable_tokens,
)
from energy_lens.ingest.training.polish import held_out_fvu, polish
from energy_lens.ingest.training.saes import Progress, TrainingConfig, add_quartiles, schedule, train_saes
from energy_lens.ingest.training.trainer import StepConfig, Support, Trainer, batch_top_k, geometric_median, top_k
from energy_lens.warehouse.plan import cut

CORPUS = Path(__file__).parent.parent / "corpus"

#: Planted data: 48 unit directions in 32 dimensions, 3 of them active in a token, in residual units of about 60.
WIDTH, DIRECTIONS, ACTIVE, FEATURES, UNIT = 32, 48, 3, 64, 30.0
STEP = StepConfig(dead_after=2_560)
CONFIG = TrainingConfig(d_sae=FEATURES, ks=(ACTIVE,), learning_rate=3e-3)
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


def new(config: StepConfig = STEP, layer: int = 1, seed: int = 0) -> Trainer:
    """A trainer before its first step."""
    return Trainer(layer, ACTIVE, FEATURES, Planted().draw(2_000), config, seed)


def trained(n_steps: int, config: StepConfig = STEP, spoil: Callable[[Trainer], None] | None = None) -> Trainer:
    """A trainer after so many steps on planted data."""
    data, own = Planted(), new(config)
    data.draw(2_000)
    if spoil:
        spoil(own)
    for step in range(n_steps):
        own.step(data.draw(256), CONFIG.learning_rate * schedule((step + 0.5) / n_steps, CONFIG))
    return own


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """A trainer at the end of its training."""
    return trained(800)


def finished(own: Trainer) -> SparseAutoencoder:
    return own.finished(60.0, "planted")


def fvu(sae: SparseAutoencoder, x: Tensor) -> float:
    """Σ‖x − x̂‖² / Σ‖x − x̄‖²"""
    error = (x - sae.reconstruct(x)).double().square().sum()
    return float(error / (x - x.mean(0)).double().square().sum())


# ------------------------------------------------------------------------------------------------ what is learnt


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_planted_directions_are_found(architecture: str) -> None:
    """Every direction that made the data is a decoder row, and little of fresh data stays unexplained."""
    own = trained(800, dataclasses.replace(STEP, architecture=architecture))
    sae = finished(own)
    cosines = (Planted().directions @ sae.W_dec.T).max(dim=1).values
    assert float(cosines.mean()) > 0.98
    assert float((cosines > 0.9).float().mean()) > 0.95
    fresh = Planted(seed=1).draw(4_000)
    assert fvu(sae, fresh) < 0.05
    assert own.fvu == pytest.approx(fvu(sae, fresh), rel=0.3), "the figure shown while training is the FVU"
    l0 = float((sae.encode(fresh).values > 0).sum(1).float().mean())
    assert l0 == pytest.approx(ACTIVE, rel=0.15)


def test_a_batchtopk_sae_is_saved_as_jumprelu(tmp_path: Path) -> None:
    """With one threshold for all features, the mean of the smallest activations seen, as the field does."""
    own = trained(300, dataclasses.replace(STEP, architecture="batchtopk"))
    sae = finished(own)
    assert sae.architecture == "jumprelu"
    assert sae.threshold is not None
    assert len(set(sae.threshold.tolist())) == 1
    save_sae(sae, tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    x = Planted(seed=3).draw(300)
    torch.testing.assert_close(loaded.reconstruct(x), sae.reconstruct(x))
    h = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    dense = torch.where(h > sae.threshold, h, 0.0)
    torch.testing.assert_close(loaded.reconstruct(x), dense @ sae.W_dec + sae.b_dec, rtol=1e-3, atol=1e-3)


def test_a_planted_feature_reads_its_own_size(trainer: Trainer) -> None:
    """a_j of a token made of one direction is that direction's coefficient, in residual units."""
    sae = finished(trainer)
    directions = Planted().directions
    x = OFFSET + 1.5 * UNIT * directions
    activations = sae.encode(x)
    sizes, slots = activations.values.max(dim=1)
    features = activations.indices.gather(1, slots[:, None])[:, 0]
    assert (features == (directions @ sae.W_dec.T).argmax(dim=1)).float().mean() > 0.9
    assert float(sizes.median()) == pytest.approx(1.5 * UNIT, rel=0.25)


# ------------------------------------------------------------------------------------------------ steps


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_gradients_are_those_of_autograd(architecture: str) -> None:
    """Of the loss as the module states it, dense, in float32; b_dec is left out of the auxiliary term."""
    own = new(dataclasses.replace(STEP, architecture=architecture))
    own.b_enc += 0.1 * torch.randn(FEATURES, generator=torch.Generator().manual_seed(1))
    own.idle_tokens[10:30] = 10_000
    x = Planted(seed=1).draw(300) * own.scale
    parameters = [parameter.clone().requires_grad_() for parameter in own.parameters]
    encoder, b_enc, decoder, b_dec = parameters
    h = (x - b_dec) @ encoder.T + b_enc
    if architecture == "topk":
        chosen = torch.zeros_like(h).scatter_(1, h.topk(ACTIVE).indices, 1.0)
    else:
        chosen = torch.zeros(h.numel()).scatter_(0, h.flatten().topk(300 * ACTIVE).indices, 1.0).view_as(h)
    error = x - (h.relu() * chosen) @ decoder - b_dec
    variance = (x - own.mean).square().sum()
    dead = torch.arange(10, 30)
    of_dead = h[:, dead]
    some = torch.zeros_like(of_dead).scatter_(1, of_dead.topk(WIDTH // 2).indices, 1.0)
    left = error.detach() - (of_dead.relu() * some) @ decoder[dead]
    loss = error.square().sum() / variance
    auxiliary = STEP.auxiliary * left.square().sum() / error.detach().square().sum()
    expected = torch.autograd.grad(loss + auxiliary, parameters[:3], retain_graph=True)
    expected += torch.autograd.grad(loss, [b_dec])

    scores = own._scores(x)
    found_error, _ = own.differentiate(x, own._chosen(scores), variance)
    own._revive(x, scores, found_error, found_error.square().sum())
    torch.testing.assert_close(found_error, error.detach())
    for parameter, gradient in zip(own.parameters, expected, strict=True):
        assert float(gradient.abs().max()) > 1e-4
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_support_is_a_sparse_matrix() -> None:
    """Its products are the dense ones, for rows of unequal length too."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(50, 20, generator=generator)
    left, right = torch.randn(50, 7, generator=generator), torch.randn(20, 7, generator=generator)
    for support in (top_k(scores, 3), batch_top_k(scores, 3)):
        dense = torch.zeros(50, 20)
        tokens = torch.arange(50).repeat_interleave(support.rows.diff())
        values = torch.rand(150, generator=generator)
        dense[tokens, support.columns] = values
        assert int((dense > 0).sum()) == 150
        torch.testing.assert_close(support.matrix(values).to_dense(), dense)
        torch.testing.assert_close(support.transposed(values).to_dense(), dense.T)
        torch.testing.assert_close(support.products(left, right), (left @ right.T)[tokens, support.columns])
    assert top_k(scores, 3).rows.diff().tolist() == [3] * 50
    assert len(set(batch_top_k(scores, 3).rows.diff().tolist())) > 1
    whole = Support.joined([top_k(part, 3) for part in scores.split(17)])
    assert all(torch.equal(a, b) for a, b in zip(whole, top_k(scores, 3), strict=True))


def test_scores_in_bfloat16_choose_almost_the_same() -> None:
    """They decide which features are active, not how much: the values are float32 all the same."""
    own = trained(100)
    x = Planted(seed=4).draw(500) * own.scale
    exact = own.support(x)
    own.config = dataclasses.replace(STEP, scores=torch.bfloat16)
    rough = own.support(x)
    assert float((exact.matrix(torch.ones(1500)).to_dense() * rough.matrix(torch.ones(1500)).to_dense()).sum()) > 1450
    assert own.error(x).dtype == torch.float32
    error = float(own.error(x).square().sum())
    own.config = STEP
    assert error == pytest.approx(float(own.error(x).square().sum()), rel=0.02)


def test_decoder_rows_keep_unit_norm_at_every_step() -> None:
    """So that activations of different features can be compared."""
    data, trainer = Planted(), new()
    for _ in range(5):
        trainer.step(data.draw(256), 0.05)
        torch.testing.assert_close(trainer.decoder.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(finished(trainer).W_dec.norm(dim=1), torch.ones(64))


def test_the_gradient_along_the_rows_is_removed() -> None:
    """What is left of each row's gradient is orthogonal to it: the step turns rows, and does not stretch them."""
    data, trainer = Planted(), new()
    for _ in range(3):
        rows = trainer.decoder.clone()
        trainer.step(data.draw(256), 1e-3)
        gradient = trainer.decoder.grad
        assert gradient is not None
        sizes = gradient.norm(dim=1)
        assert float(sizes.max()) > 1e-3
        along = (gradient * rows).sum(dim=1).abs()
        assert float((along / sizes.clamp_min(1e-9))[sizes > 1e-6].max()) < 1e-3


def test_the_scale_is_folded_back(trainer: Trainer) -> None:
    """On raw residuals the finished SAE does what the trained one does on scaled ones, and reads residual units."""
    x = Planted(seed=2).draw(500)
    assert float((Planted().draw(2_000) * trainer.scale).norm(dim=1).mean()) == pytest.approx(math.sqrt(WIDTH))
    scaled = x * trainer.scale
    h = (scaled - trainer.b_dec) @ trainer.encoder.T + trainer.b_enc
    values, indices = h.topk(ACTIVE, dim=1)
    dense = torch.zeros_like(h).scatter_(1, indices, values.relu())
    reconstruction = (dense @ trainer.decoder + trainer.b_dec) / trainer.scale
    sae = finished(trainer)
    activations = sae.encode(x)
    found = torch.zeros_like(h).scatter_(1, activations.indices, activations.values)
    torch.testing.assert_close(found, dense / trainer.scale, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sae.mean, Planted().draw(2_000).mean(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sae.reconstruct(x), reconstruction, atol=1e-3, rtol=1e-3)


def test_a_finished_sae_does_not_change_with_further_training(trainer: Trainer) -> None:
    """It is a copy."""
    own = trained(3)
    sae = finished(own)
    before = {name: getattr(sae, name).clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    own.step(Planted().draw(256), 0.05)
    assert all(torch.equal(getattr(sae, name), tensor) for name, tensor in before.items())


@pytest.mark.parametrize(("auxiliary", "lowest", "highest"), [(0.0, 0.9, 1.0), (1 / 32, 0.0, 0.7)])
def test_dead_features_are_revived_by_the_auxiliary_loss(auxiliary: float, lowest: float, highest: float) -> None:
    """Half of the features start too weak ever to be chosen: only that loss brings back those that are needed."""

    def weaken(trainer: Trainer) -> None:
        trainer.encoder[32:] *= 1e-3
        trainer.b_enc[:32] += 0.5

    own = trained(300, dataclasses.replace(STEP, auxiliary=auxiliary), weaken)
    dead = float((own.idle_tokens[32:] > STEP.dead_after).float().mean())
    assert lowest <= dead <= highest
    assert own.dead_share == pytest.approx(float((own.idle_tokens > STEP.dead_after).float().mean()))
    assert (fvu(finished(own), Planted(seed=1).draw(2_000)) > 0.15) == (auxiliary == 0)


def test_idle_tokens_count_since_a_feature_fired() -> None:
    """A feature that fires in a batch starts from 0, any other one is older by the batch."""
    data, own = Planted(), new()
    own.b_enc -= 1.5  # so that some slots stay empty
    expected = torch.zeros(64)
    for _ in range(4):
        x = data.draw(32)
        activations = finished(own).encode(x)
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
    start = new().decoder
    assert not torch.allclose(start, new(seed=1).decoder)
    assert not torch.allclose(start, new(layer=2).decoder)


def test_a_restored_trainer_goes_on_as_if_nothing_had_been() -> None:
    """Its state holds whatever later steps depend on."""
    data = Planted()
    batches = [data.draw(256) for _ in range(8)]
    own = new()
    for x in batches[:4]:
        own.step(x, 1e-3)
    state = {name: tensor.clone() for name, tensor in own.state.items()}
    for x in batches[4:]:
        own.step(x, 1e-3)
    other = new(seed=5)
    other.step(batches[0], 1e-2)
    other.restore(state)
    for x in batches[4:]:
        other.step(x, 1e-3)
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in own.state.items())
    assert own.fvu == other.fvu


def testgeometric_median_has_the_smallest_summed_distance() -> None:
    """Unlike the mean it is not dragged away by outliers."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(400, 5, generator=generator)
    x[:40] += 100
    centre = geometric_median(x)

    def cost(point: Tensor) -> float:
        return float((x - point).double().norm(dim=1).sum())

    assert float(centre.norm()) < 1.0 < float(x.mean(0).norm())
    for _ in range(50):
        step = torch.randn(5, generator=generator)
        assert cost(centre) < cost(centre + 0.05 * step / step.norm())


def test_the_learning_rate_rises_stays_and_falls() -> None:
    """2 % up, then flat, then a quarter down to nothing."""
    rates = np.array([schedule(share, CONFIG) for share in np.linspace(0, 1, 1001)])
    assert rates[0] == rates[-1] == 0
    assert (rates[20:751] == 1).all()
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[750:]) < 0).all()
    assert schedule(0.0, dataclasses.replace(CONFIG, warmup_share=0.0, decay_share=0.0)) == 1


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"ks": ()}, "--k is missing"),
        ({"ks": (3, 0)}, "--k is 0"),
        ({"ks": (65,)}, "--k is 65"),
        ({"ks": (3, 4, 3)}, "twice"),
        ({"architecture": "relu"}, "topk or batchtopk"),
        ({"optimizer": "sgd"}, "adam or lbfgs"),
        ({"passes": 0}, "--passes is 0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
        ({"learning_rate": math.nan}, "--learning-rate is nan"),
        ({"tokens": 1023}, "--tokens is 1023"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"context_length": 2}, "--context is 2"),
        ({"seed": -1}, "--seed is -1"),
        ({"round_contexts": 16}, "--batch-size is 1,024; at most 1,008 .* round of 16 contexts"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], found: str) -> None:
    """Each before any work, by name; a round of less than two batches would be no shuffle."""
    with pytest.raises(UsageError, match=found):
        dataclasses.replace(CONFIG, **changes)


# ------------------------------------------------------------------------------------------------ documents


def document(content: str, path: str = "a.txt", category: str = "natural") -> Document:
    from hashlib import sha256

    return Document(path, category, sha256(content.encode()).hexdigest(), len(content), Path(path))


def test_documents_are_split_by_content() -> None:
    """About 85, 5 and 10 % of every category, whatever the documents are called and in whatever order they come."""
    documents = [document(f"text {i}", f"{i}.txt", ("code", "math", "natural")[i % 3]) for i in range(300)]
    parts = split_documents(documents)
    assert sorted(d.path for part in parts.values() for d in part) == sorted(d.path for d in documents)
    for part, size in {"train": 85, "select": 5, "test": 10}.items():
        for category in ("code", "math", "natural"):
            assert sum(d.category == category for d in parts[part]) == size
    renamed = [dataclasses.replace(d, path=f"other/{d.path}") for d in documents][::-1]
    for part, own in split_documents(renamed).items():
        assert {d.sha256 for d in own} == {d.sha256 for d in parts[part]}


@pytest.mark.parametrize(("n", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (10, (8, 1, 1))])
def test_small_categories_give_one_document_to_each_part_or_none(n: int, sizes: tuple[int, ...]) -> None:
    """There is always something to train on."""
    parts = split_documents([document(f"text {i}") for i in range(n)])
    assert tuple(len(parts[name]) for name in ("train", "select", "test")) == sizes


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any]) -> LanguageModel:
    """The tiny Llama."""
    loaded: LanguageModel = tiny("llama").load()
    return loaded


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """80 short documents of four categories."""
    folder = tmp_path_factory.mktemp("texts")
    corpus = Path(__file__).parent.parent / "corpus"
    for path in sorted(corpus.glob("*/*.txt")):
        text = path.read_text(encoding="utf-8")
        (folder / path.parent.name).mkdir(exist_ok=True)
        for part in range(2):
            copy = folder / path.parent.name / f"{path.stem}-{part}.txt"
            copy.write_text(text[part * 900 : part * 900 + 900], encoding="utf-8")
    documents = discover([folder])
    assert all(split_documents(documents).values())
    return documents


def test_contexts_are_those_of_an_ingest(model: LanguageModel, texts: Sequence[Document]) -> None:
    """Each is a stretch of one document, in order: tails of 16 tokens count, and a short document's only context."""
    contexts = cut_contexts(model, texts[:12], 32)
    expected = []
    for own in texts[:12]:
        ids = model.tokenize(own.text())
        expected += [ids[first : first + n] for first, n in cut(len(ids), 32)]
    assert [ids.tolist() for ids in contexts] == expected
    assert len({len(ids) for ids in contexts}) > 1
    assert cut_contexts(model, [], 32) == []


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    places=st.integers(1, 120),
)
def test_contexts_side_by_side_are_all_there(lengths: list[int], places: int) -> None:
    """Whatever the lengths: every context once, in batches that keep to their places, of equal ones without padding."""
    contexts = [np.full(n, i, dtype=np.int32) for i, n in enumerate(lengths)]
    found = []
    for tokens, lengths_of in side_by_side(contexts, places):
        assert tokens.numel() <= places or len(tokens) == 1
        assert tokens.shape[1] == int(lengths_of.max())
        found += [(int(ids[0]), n) for ids, n in zip(tokens, lengths_of.tolist(), strict=True)]
    assert sorted(found) == list(enumerate(lengths))
    equal = [row for batch in of_equal_length(contexts, places) for row in batch]
    assert sorted((int(ids[0]), len(ids)) for ids in equal) == list(enumerate(lengths))
    parts = parts_of(contexts, places)
    assert [int(ids[0]) for part in parts for ids in part] == list(range(len(lengths)))
    assert all(sum(map(len, part)) <= places or len(part) == 1 for part in parts)


def written(folder: Path, contents: Sequence[str]) -> list[Document]:
    folder.mkdir()
    for i, content in enumerate(contents):
        (folder / f"{i:03d}.txt").write_text(content, encoding="utf-8")
    return discover([folder])


def test_short_documents_are_trained_on(model: LanguageModel, tmp_path: Path) -> None:
    """300 documents of 120 characters, none of which fills a context, make a training; nothing of them is dropped."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("natural/*.txt")))
    documents = written(tmp_path / "short", [text[i * 120 : i * 120 + 120] for i in range(300)])
    train = split_documents(documents)["train"]
    own = sum(len(model.tokenize(document.text())) - 2 for document in train)
    config = dataclasses.replace(TINY, tokens=1_000_000, context_length=128)
    sae = train_saes(model, documents, [1], config, tmp_path / "training")[0]
    assert sae.metadata["training"]["tokens"] == own > 10_000
    assert sae.metadata["evaluation"]["all"]["n_tokens"] > 500


def test_what_is_left_out_is_said(model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends of fewer than 16 tokens and documents of fewer than 3, by their number of tokens, in one sentence."""
    text = (CORPUS / "natural" / "melville-moby-dick-ch60.txt").read_text(encoding="utf-8")
    ids = model.tokenize(text)
    whole = model.tokenizer.decode(ids[: 32 * 8 + 5])
    n_left = len(model.tokenize(whole)) - 32 * 8
    assert 0 < n_left < 16
    documents = written(tmp_path / "tails", [whole, "a"])
    chosen = shuffled_contexts(model, documents, 10_000, 32, 0)
    assert sorted(map(len, chosen)) == [32] * 8
    assert f"{n_left + 1} tokens of the training documents are left out" in capsys.readouterr().err
    shuffled_contexts(model, written(tmp_path / "whole", [model.tokenizer.decode(ids[:20])]), 10_000, 32, 0)
    assert capsys.readouterr().err == ""


def test_too_little_text_is_told_with_its_reason(model: LanguageModel, tmp_path: Path) -> None:
    """How many tokens there are, how many are needed, and what helps; or that --tokens is what is too little."""
    documents = written(tmp_path / "little", ["one two three four", "five six seven eight nine"])
    n_tokens = [len(model.tokenize(document.text())) for document in documents]
    found = rf"2 training documents of {sum(n_tokens)} tokens hold {sum(n_tokens) - 4} to train on, .* take 256: give"
    with pytest.raises(UsageError, match=found + r" more text, or a smaller --batch-size\.$"):
        train_saes(model, documents, [1], TINY, tmp_path / "training")
    many = written(tmp_path / "many", [(CORPUS / "natural" / "melville-moby-dick-ch60.txt").read_text("utf-8")])
    with pytest.raises(UsageError, match="--tokens is 200, and two steps take 256"):
        train_saes(model, many, [1], dataclasses.replace(TINY, tokens=200), tmp_path / "training")


def test_trained_tokens_are_the_included_ones_of_an_ingest(
    tiny: Callable[..., Any], model: LanguageModel, small_corpus: Path, tmp_path: Path
) -> None:
    """The same documents, among them short ones and ones with special tokens inside: token by token the same."""
    from energy_lens.ingest.pipeline import IngestOptions, ingest
    from energy_lens.warehouse.database import Warehouse

    contents = [path.read_text(encoding="utf-8") for path in sorted(small_corpus.glob("*/*.txt"))[::2]]
    contents += [f"{text[:60]} <|endoftext|> {text[60:100]}" for text in contents] + ["a", "ab c"]
    documents = written(tmp_path / "corpus", contents)
    db = tmp_path / "elw.duckdb"
    ingest(
        [tmp_path / "corpus"],
        IngestOptions(
            db=db, model=str(tiny("llama").folder), saes=(tiny("llama").saes,), energies=("nll",), context_length=32,
            dtype="float32",
        ),
    )  # fmt: skip
    with Warehouse(db) as warehouse:
        rows = warehouse.sql("""
            SELECT layer, norm FROM token_layers
            WHERE token_id IN (SELECT token_id FROM token_layers GROUP BY token_id HAVING bool_and(included))
        """).fetchall()
        # What only looks like one is text, there as here.
        assert warehouse.sql("SELECT count(*) FROM token_layers WHERE reason = 'special token'").value() == 0
    contexts = shuffled_contexts(model, documents, 1_000_000, 32, 0)
    store = ActivationStore(tmp_path / "store", model, contexts, LAYERS, round_contexts=16)
    for layer in LAYERS:
        own = torch.cat([store.round(index)[layer] for index in range(len(store))]).float().norm(dim=1)
        stored = torch.tensor([norm for of_layer, norm in rows if of_layer == layer])
        assert len(own) == len(stored)
        torch.testing.assert_close(own.sort().values, stored.sort().values, rtol=1e-2, atol=0)
    special = special_tokens(model)
    assert sum(trainable_tokens(ids, special) for ids in contexts) == len(own), "no norm is massive here"


# ------------------------------------------------------------------------------------------------ the store

TINY = TrainingConfig(
    d_sae=48, ks=(4,), tokens=4_096, passes=2, batch_size=128, round_contexts=32, context_length=32, dead_after=1_000,
)  # fmt: skip
LAYERS = [1, 2]


def full_contexts(model: LanguageModel, texts: Sequence[Document]) -> list[Ids]:
    return [ids for ids in cut_contexts(model, texts, 32) if len(ids) == 32]


def spoiled_harvest(model: LanguageModel, tokens: Tensor, sites: Mapping[int, Site]) -> dict[int, Tensor]:
    """x of layer 1 at every layer L, times L; every first token is all sevens, and in layer 2 token 5 is massive."""
    x = sites_of_models.harvest(model, tokens, {1: Site(1)})[1]
    x[:, 0] = 7.0
    residuals = {layer: x * layer for layer in sites}
    if 2 in residuals:
        residuals[2][:, 5] *= 1e4
    return residuals


def test_excluded_tokens_never_enter(
    model: LanguageModel, texts: Sequence[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No first or last token and no massive one is kept, at any layer, nor sets a median."""
    for module in (harvesting, residuals):  # residuals are kept by the one, and medians taken by the other
        monkeypatch.setattr(module, "harvest", spoiled_harvest)
    contexts = full_contexts(model, texts)
    store = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=32)
    assert {len(ids) for ids in contexts[:32]} == {32}, "so that a round holds 32 of them, in their order"
    tokens = torch.from_numpy(np.stack(contexts[:96])).long()
    clean = sites_of_models.harvest(model, tokens, {1: Site(1)})[1]
    medians = store.norm_medians
    assert medians[1] == pytest.approx(float(clean.norm(dim=-1).median()), rel=0.05)
    assert medians[2] == pytest.approx(2 * medians[1], rel=0.1)
    assert len(store) == math.ceil(len(contexts) / 32)
    kept = clean[:32]
    kept = kept[:, [position for position in range(1, 31) if position != 5]].reshape(-1, 32)
    for layer in LAYERS:
        # All layers train on the same tokens, so the massive one of layer 2 is missing from layer 1 as well.
        torch.testing.assert_close(store.round(0)[layer], (layer * kept).bfloat16())
    assert len(store.round(len(store) - 1)[1]) == (len(contexts) % 32 or 32) * 29


def test_a_store_is_harvested_once(
    model: LanguageModel, texts: Sequence[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is read; what is half there, or was dropped, is made again."""
    contexts = full_contexts(model, texts)
    store = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=32)
    first = {layer: x.clone() for layer, x in store.round(0).items()}
    store.round(1)
    (tmp_path / "round_00001" / "round.json").unlink()  # as after a kill
    (tmp_path / "round_00001" / "layer_1.bf16").write_bytes(b"half")
    again = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=32)
    assert again.norm_medians == store.norm_medians
    assert len(again.round(1)[1]) == 32 * 30
    again.drop(1)
    assert [path.name for path in (tmp_path / "round_00001").iterdir()] == ["round.json"]
    assert again.n_tokens(1) == 32 * 30
    again.drop(1)
    monkeypatch.setattr(harvesting, "harvest", None)
    for layer, x in again.round(0).items():
        assert torch.equal(x, first[layer])
    with pytest.raises(TypeError):
        again.round(1)


def test_a_store_belongs_to_its_training(model: LanguageModel, texts: Sequence[Document], tmp_path: Path) -> None:
    """Residuals of other contexts, layers or another precision are never taken for this training's."""
    contexts = full_contexts(model, texts)
    store = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=32)
    for other in (
        {"contexts": contexts[::-1]},
        {"layers": [1]},
        {"round_contexts": 16},
        {"contexts": contexts[:-1]},
    ):
        arguments: dict[str, Any] = {"contexts": contexts, "layers": LAYERS, "round_contexts": 32} | other
        with pytest.raises(UsageError, match="another"):
            ActivationStore(tmp_path, model, **arguments)
    store.round(0)
    (tmp_path / "round_00000" / "layer_1.bf16").write_bytes(b"short")
    with pytest.raises(ElwError, match="damaged"):
        store.round(0)
    (tmp_path / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="damaged"):
        ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=32)


def test_a_full_disk_is_a_sentence(
    model: LanguageModel, texts: Sequence[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the round that was being written is not taken for whole."""
    import errno

    class Full:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...
        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    contexts = full_contexts(model, texts)
    store = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=32)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", Full)
        with pytest.raises(ElwError, match=r"No space left on device.*make room"):
            store.round(0)
    assert len(store.round(0)[1]) == 32 * 30


# ------------------------------------------------------------------------------------------------ the whole training


@pytest.fixture(scope="module")
def saes(
    model: LanguageModel, texts: Sequence[Document], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[SparseAutoencoder], list[Progress]]:
    """SAEs of two layers of the tiny Llama, and the progress that was told."""
    told: list[Progress] = []
    return train_saes(model, texts, LAYERS, TINY, tmp_path_factory.mktemp("training"), told.append), told


def same_weights(first: Sequence[SparseAutoencoder], second: Sequence[SparseAutoencoder]) -> None:
    """To the last bit."""
    for a, b in zip(first, second, strict=True):
        assert (a.layer, a.k, a.norm_median) == (b.layer, b.k, b.norm_median)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "mean"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        np.testing.assert_array_equal(a.quartiles, b.quartiles)


def test_held_out_figures_are_those_of_the_test_documents(
    model: LanguageModel, texts: Sequence[Document], saes: tuple[list[SparseAutoencoder], list[Progress]]
) -> None:
    """FVU of every included test token, computed anew."""
    test = split_documents(texts)["test"]
    for sae in saes[0]:
        assert sae.metadata["test_documents"] == [d.path for d in test]
        rows = []
        for own in test:
            ids = model.tokenize(own.text())
            for start in range(0, len(ids), 32):
                window = torch.tensor(ids[start : start + 32])
                if len(window) < 16 and start:
                    continue
                x = harvest_residuals(model, window[None], [sae.layer])[sae.layer][0]
                keep = x.norm(dim=-1) <= 10 * sae.norm_median
                keep[0] = keep[-1] = False
                rows.append(x[keep])
        x = torch.cat(rows)
        assert sae.metadata["fvu"] == pytest.approx(fvu(sae, x), rel=1e-3)
        assert sae.metadata["evaluation"]["all"]["n_tokens"] == len(x)
        assert sae.metadata["evaluation"]["all"]["ce_recovered_mean"] is not None
        assert sae.metadata["fvu"] < 1


def test_test_documents_decide_nothing(
    model: LanguageModel,
    texts: Sequence[Document],
    saes: tuple[list[SparseAutoencoder], list[Progress]],
    tmp_path: Path,
) -> None:
    """Without them, and with a layer named twice, the same seed gives the same weights, medians and quartiles."""
    kept = [d for d in texts if d in split_documents(texts)["train"]]
    parts = {"train": kept, "select": [], "test": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("energy_lens.ingest.training.saes.split_documents", lambda _: parts)
        again = train_saes(model, kept, [1, 2, 1], TINY, tmp_path / "training")
    same_weights(saes[0], again)
    assert all("fvu" not in sae.metadata for sae in again)


class Stop(Exception):
    """Raised to stop a training."""


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_stopped_training_goes_on_to_the_same_weights(
    model: LanguageModel, texts: Sequence[Document], tmp_path: Path, rounds: int
) -> None:
    """Stopped in a later round, after a checkpoint."""
    config = dataclasses.replace(TINY, ks=(4, 6))
    whole = train_saes(model, texts, LAYERS, config, tmp_path / "whole")
    assert [(sae.k, sae.layer) for sae in whole] == [(4, 1), (4, 2), (6, 1), (6, 2)]
    n_rounds = len(list((tmp_path / "whole").glob("round_*")))
    assert n_rounds > 2

    def stop(progress: Progress) -> None:
        if progress.share > (rounds + 0.3) / n_rounds:
            raise Stop

    with pytest.raises(Stop):
        train_saes(model, texts, LAYERS, config, tmp_path / "stopped", stop)
    told: list[Progress] = []
    same_weights(whole, train_saes(model, texts, LAYERS, config, tmp_path / "stopped", told.append))
    assert told[-1].tokens < 2 * config.tokens * (n_rounds - rounds + 0.5) / n_rounds, "what was done is not done again"


def test_a_checkpoint_of_another_training_is_refused(
    model: LanguageModel, texts: Sequence[Document], tmp_path: Path
) -> None:
    """Whatever differs; and a damaged one is named."""
    train_saes(model, texts, LAYERS, TINY, tmp_path)
    for changes in ({"learning_rate": 1e-3}, {"ks": (5,)}, {"d_sae": 64}, {"auxiliary": 0.0}):
        with pytest.raises(UsageError, match="other settings"):
            train_saes(model, texts, LAYERS, dataclasses.replace(TINY, **changes), tmp_path)  # type: ignore[arg-type]
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:10_000])
    with pytest.raises(UsageError, match="damaged"):
        train_saes(model, texts, LAYERS, TINY, tmp_path)


def test_a_killed_training_goes_on(tiny: Callable[..., Any], texts: Sequence[Document], tmp_path: Path) -> None:
    """kill -9 on the command itself, as soon as a round is being made; then the same command."""
    words = ["sae", "train", str(Path(texts[0].source).parent.parent), "--model", str(tiny("llama").folder)]
    words += ["--layers", "1,2", "--features", "48", "--k", "4", "--tokens", "200000", "--passes", "2"]
    words += ["--batch-size", "256", "--context", "32", "--dtype", "float32", "--output"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*words, str(whole)]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "energy_lens.cli", *words, str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list(killed.glob(".training/round_*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(killed.glob("layer_*"))
    assert main([*words, str(killed)]) == 0
    same_weights(*([load_sae(folder / f"layer_{layer}") for layer in LAYERS] for folder in (whole, killed)))
    assert not (killed / ".training").exists()
    assert json.loads((whole / "layer_1" / "cfg.json").read_text())["metadata"]["elw"]["training"]["passes"] == 2


def test_training_says_how_far_it_is(saes: tuple[list[SparseAutoencoder], list[Progress]]) -> None:
    """Up to the last token, with figures of every SAE."""
    told = saes[1]
    shares = [progress.share for progress in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert set(told[-1].fvu) == set(told[-1].dead_share) == {(1, 4), (2, 4)}
    assert any("harvesting round 2" in progress.note for progress in told)


def test_a_trained_sae_is_saved_with_all_it_knows(
    saes: tuple[list[SparseAutoencoder], list[Progress]], tmp_path: Path
) -> None:
    """It can be loaded and used without calibration."""
    for sae in saes[0]:
        save_sae(sae, tmp_path / str(sae.layer), torch.float16)
        loaded = load_sae(tmp_path / str(sae.layer))
        assert (loaded.layer, loaded.norm_median, loaded.metadata) == (sae.layer, sae.norm_median, sae.metadata)
        assert loaded.quartiles is not None
        assert loaded.mean is not None
        assert torch.equal(loaded.quartiles.isnan(), sae.quartiles.isnan())


def test_quartiles_are_those_of_active_values() -> None:
    """Zeros do not count; below 40 active tokens a feature has none."""
    sae = finished(trained(30))
    sae.b_enc -= 15  # so that some slots stay empty
    x = Planted(seed=5).draw(750)
    store: Any = type("Store", (), {"round": lambda _, index: {1: x.split(250)[index]}, "__len__": lambda _: 3})()
    add_quartiles([sae], store)
    activations = sae.encode(x)
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
        ([1], TrainingConfig(batch_size=65_536), "131,072"),
    ],
)
def test_impossible_trainings_are_refused(
    model: LanguageModel,
    texts: Sequence[Document],
    layers: list[int],
    config: TrainingConfig,
    found: str,
    tmp_path: Path,
) -> None:
    """A layer that the model lacks, and text for less than two steps."""
    with pytest.raises(UsageError, match=found):
        train_saes(model, texts, layers, config, tmp_path)


# ------------------------------------------------------------------------------------------------ L-BFGS


def test_polish_lowers_the_held_out_fvu() -> None:
    """On a trainer that Adam left early; rows stay unit vectors, and the figures fall round by round."""
    own = trained(150)
    x, held_out = Planted(seed=6).draw(4_000), Planted(seed=7).draw(2_000)
    before = fvu(finished(own), held_out)
    figures = polish(own, x, held_out)
    assert figures[0] == pytest.approx(before, rel=1e-3)
    assert len(figures) > 1
    assert figures == sorted(figures, reverse=True)
    assert figures[-1] < 0.9 * figures[0]
    assert held_out_fvu(own, held_out * own.scale) == pytest.approx(figures[-1])
    assert fvu(finished(own), held_out) == pytest.approx(figures[-1], rel=1e-3)
    torch.testing.assert_close(own.decoder.norm(dim=1), torch.ones(FEATURES))


def test_a_round_that_does_not_help_is_undone() -> None:
    """Select documents of another kind than the sample: what L-BFGS gains there it may not keep."""
    own = trained(400)
    before = [parameter.clone() for parameter in own.parameters]
    generator = torch.Generator().manual_seed(3)
    nonsense = 100 * torch.randn(200, WIDTH, generator=generator)
    figures = polish(own, nonsense, Planted(seed=7).draw(2_000))
    assert len(figures) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, own.parameters, strict=True))


def test_lbfgs_training_says_what_it_gained(model: LanguageModel, texts: Sequence[Document], tmp_path: Path) -> None:
    """FVU on select before, and after each kept round; the polished SAE is another than Adam's."""
    config = dataclasses.replace(TINY, optimizer="lbfgs")
    polished = train_saes(model, texts, [1], config, tmp_path / "lbfgs")[0]
    plain = train_saes(model, texts, [1], TINY, tmp_path / "adam")[0]
    figures = polished.metadata["lbfgs_select_fvu"]
    assert len(figures) > 1
    assert figures == sorted(figures, reverse=True)
    assert not torch.equal(polished.W_enc, plain.W_enc)
