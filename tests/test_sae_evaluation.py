"""Evaluation of SAEs: the figures are those of a plain computation, only included tokens are touched, nothing seen
in training counts, and the figures reach the SAE's folder and the warehouse."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae import evaluation as sae_evaluation
from energy_lens.ingest.sae import figures as sae_figures
from energy_lens.ingest.sae import saving
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.ingest.sae.evaluation import EvaluationOptions, documents_seen, evaluate
from energy_lens.ingest.sae.figures import Evaluation, Figures
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.warehouse import migrations, quality
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import cut

CORPUS = Path(__file__).parent.parent / "corpus"

ARCHITECTURES = ("llama", "gpt2", "gpt_neox")
TINY_WIDTH = 32  #: of the tiny models' residual stream
Tiny = Any  #: a tiny model's folders

LENGTH = 32
OPTIONS = EvaluationOptions(max_tokens=None, context_length=LENGTH, batch_size=5)
NAMES = [entry.name for entry in dataclasses.fields(Figures)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Tiny]) -> LanguageModel:
    return tiny(request.param).load()


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Tiny]) -> LanguageModel:
    return tiny("llama").load()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three categories of unlike size; one document with special tokens, one of four tokens, one of a whole context."""
    folder = tmp_path_factory.mktemp("texts")
    for category, files in (("code", 3), ("natural", 2)):
        (folder / category).mkdir()
        for path in sorted((CORPUS / category).glob("*.txt"))[:files]:
            (folder / category / path.name).write_text(path.read_text(encoding="utf-8")[:700], encoding="utf-8")
    (folder / "odd").mkdir()
    (folder / "odd" / "special.txt").write_text("one two<|endoftext|>three four<|endoftext|> five six seven\n" * 4)
    (folder / "odd" / "short.txt").write_text("a b c")
    return folder


@pytest.fixture(scope="module")
def documents(texts: Path) -> list[Document]:
    return discover([texts])


def random_sae(layer: int = 1, k: int = 4, d_sae: int = 64, seed: int = 0, **more: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_sae, TINY_WIDTH, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    biases = (0.3 * torch.randn(size, generator=generator) for size in (d_sae, TINY_WIDTH))
    return SparseAutoencoder(layer, k, rows.T.contiguous(), next(biases), rows, next(biases), **more)


def exact_sae(layer: int = 1, **more: Any) -> SparseAutoencoder:
    """x̂ = relu(x) − relu(−x) = x."""
    rows = torch.cat([torch.eye(TINY_WIDTH), -torch.eye(TINY_WIDTH)])
    zeros = torch.zeros(2 * TINY_WIDTH), torch.zeros(TINY_WIDTH)
    return SparseAutoencoder(layer, 2 * TINY_WIDTH, rows.T.contiguous(), zeros[0], rows, zeros[1], **more)


def constant_sae(value: Tensor, layer: int = 1, **more: Any) -> SparseAutoencoder:
    """x̂ = value, whatever x is."""
    sae = exact_sae(layer, **more)
    return dataclasses.replace(sae, W_dec=torch.zeros_like(sae.W_dec), b_dec=value)


# ------------------------------------------------------------------------------------------------ a plain computation


@dataclasses.dataclass
class Passage:
    """A context as the plain computation sees it: by itself, in float64 where it can."""

    category: str
    document: str
    ids: Tensor  #: [1, n]
    x: np.ndarray[Any, Any]  #: [n, d_model]


def block_output(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def passages(model: LanguageModel, documents: Sequence[Document], layer: int, length: int = LENGTH) -> list[Passage]:
    """Every context of the documents, run through the Hugging Face model one by one."""
    found = []
    for document in documents:
        ids = torch.tensor(model.tokenize(document.text()))
        for first, n in cut(len(ids), length):
            kept: list[Tensor] = []
            handle = model.blocks[layer].register_forward_hook(lambda *a, kept=kept: kept.append(block_output(a[2])))
            own = ids[None, first : first + n]
            model.module(input_ids=own)
            handle.remove()
            found.append(Passage(document.category, document.sha256, own, kept[0][0].double().numpy()))
    return found


def median_norm(found: Sequence[Passage]) -> float:
    """As torch takes it: the lower of the middle two."""
    return float(torch.from_numpy(np.concatenate([np.linalg.norm(p.x, axis=1) for p in found])).float().median())


def included(passage: Passage, median: float, special: set[int]) -> np.ndarray[Any, Any]:
    n = len(passage.x)
    mask = [
        0 < t < n - 1 and int(passage.ids[0, t]) not in special and float(np.linalg.norm(passage.x[t])) <= 10 * median
        for t in range(n)
    ]
    return np.array(mask)


def dense_activations(sae: SparseAutoencoder, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    W_enc, b_enc, b_dec = (t.double().numpy() for t in (sae.W_enc, sae.b_enc, sae.b_dec))
    h = (x - b_dec) @ W_enc + b_enc
    result = np.zeros_like(h)
    for row, own in zip(result, h, strict=True):
        best = np.argsort(-own)[: sae.k]
        row[best] = np.maximum(own[best], 0)
    return result


@torch.no_grad()
def patched_losses(model: LanguageModel, layer: int, passage: Passage, at: np.ndarray[Any, Any], rows: Any) -> Any:
    """[n − 1] loss of each token that has a next one, with rows in place of the block's output at the mask `at`."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        x = block_output(output).clone()
        x[0, torch.from_numpy(at)] = torch.as_tensor(rows, dtype=x.dtype)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.blocks[layer].register_forward_hook(hook)
    logits = model.module(input_ids=passage.ids).logits[0].double()
    handle.remove()
    return torch.nn.functional.cross_entropy(logits[:-1], passage.ids[0, 1:], reduction="none").numpy()


def plain_figures(
    model: LanguageModel, sae: SparseAutoencoder, found: Sequence[Passage], median: float, mean: np.ndarray[Any, Any]
) -> dict[str, float]:
    """All figures over some contexts, with nothing streamed or shared."""
    special = set(model.tokenizer.all_special_ids)
    masks = [included(passage, median, special) for passage in found]
    x = np.concatenate([p.x[mask] for p, mask in zip(found, masks, strict=True)])
    a = dense_activations(sae, x)
    W_dec, b_dec = sae.W_dec.double().numpy(), sae.b_dec.double().numpy()
    x_hat = a @ W_dec + b_dec
    losses: dict[str, list[Any]] = {arm: [] for arm in ("clean", "sae", "zero", "mean")}
    for passage, mask in zip(found, masks, strict=True):
        if not mask.any():
            continue
        first = int(np.flatnonzero(mask)[0])
        own = dense_activations(sae, passage.x[mask]) @ W_dec + b_dec
        for arm, rows in (("clean", passage.x[mask]), ("sae", own), ("zero", 0 * own), ("mean", 0 * own + mean)):
            losses[arm].append(patched_losses(model, sae.layer, passage, mask, rows)[first:])
    ce = {arm: float(np.concatenate(parts).mean()) for arm, parts in losses.items()}
    norms = np.concatenate([np.linalg.norm(p.x[1:], axis=1) for p in found])
    return {
        "n_documents": len({p.document for p, mask in zip(found, masks, strict=True) if mask.any()}),
        "n_tokens": len(x),
        "n_excluded": sum(len(p.x) for p in found) - len(x),
        "n_massive": int((norms > 10 * median).sum()),
        "l0": float((a > 0).sum(1).mean()),
        "fvu": float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()),
        "cosine": float(np.mean((x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1))),
        "dead_share": float(((a > 0).sum(0) == 0).mean()),
        "dense_share": float(((a > 0).mean(0) > 0.1).mean()),
        "n_loss_tokens": sum(map(len, losses["clean"])),
        **{f"ce_{arm}": value for arm, value in ce.items()},
        "delta_ce": ce["sae"] - ce["clean"],
        "ce_recovered_zero": (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]),
        "ce_recovered_mean": (ce["mean"] - ce["sae"]) / (ce["mean"] - ce["clean"]),
    }


def close(figures: Figures, expected: dict[str, float]) -> None:
    assert set(expected) == set(NAMES)
    for name, value in expected.items():
        # A quotient of small differences of losses carries their rounding errors.
        tolerance = 2e-2 if name.startswith("ce_recovered") else 2e-4
        assert getattr(figures, name) == pytest.approx(value, rel=tolerance, abs=2e-5), name


def test_figures_are_those_of_a_plain_computation(model: LanguageModel, documents: list[Document]) -> None:
    """For every architecture, by category and pooled, with massive and special tokens and contexts of many lengths."""
    found = passages(model, documents, 1)
    # So small a median that some tokens count as massive.
    median = float(np.quantile(np.concatenate([np.linalg.norm(p.x, axis=1) for p in found]), 0.9)) / 10
    mean = np.linspace(-1, 1, TINY_WIDTH)
    sae = random_sae(norm_median=median, mean=torch.from_numpy(mean).float())
    (evaluation,) = evaluate(model, [sae], documents, OPTIONS)
    assert evaluation.all.n_massive > 10
    assert list(evaluation.categories) == ["code", "natural", "odd"]
    close(evaluation.all, plain_figures(model, sae, found, median, mean))
    for category, figures in evaluation.categories.items():
        own = [passage for passage in found if passage.category == category]
        close(figures, plain_figures(model, sae, own, median, mean))
    assert evaluation.measured_on["norm_median_from"] == evaluation.measured_on["mean_from"] == "training"
    assert evaluation.measured_on["tokens"] == sum(len(p.x) for p in found)
    assert evaluation.measured_on["documents"] == len(documents)


def test_what_an_sae_lacks_is_measured_and_said(llama: LanguageModel, documents: list[Document]) -> None:
    """Without a median or a mean of its own: those of the evaluated tokens, all of them and the included ones."""
    found = passages(llama, documents, 2)
    median = median_norm(found)
    special = set(llama.tokenizer.all_special_ids)
    mean = np.concatenate([p.x[included(p, median, special)] for p in found]).mean(0)
    (evaluation,) = evaluate(llama, [random_sae(layer=2)], documents, OPTIONS)
    assert evaluation.measured_on["norm_median"] == pytest.approx(median, rel=1e-5)
    assert evaluation.measured_on["norm_median_from"] == evaluation.measured_on["mean_from"] == "evaluation"
    assert sum("of the evaluated tokens" in note for note in evaluation.notes) == 2
    close(evaluation.all, plain_figures(llama, random_sae(layer=2), found, median, mean))


def test_macro_is_the_mean_of_categories(llama: LanguageModel, documents: list[Document]) -> None:
    (evaluation,) = evaluate(llama, [random_sae()], documents, OPTIONS)
    for name in NAMES:
        values = [getattr(own, name) for own in evaluation.categories.values()]
        expected = getattr(evaluation.all, name) if name.startswith("n_") else math.fsum(values) / len(values)
        assert getattr(evaluation.macro, name) == pytest.approx(expected)
    assert evaluation.macro.fvu != pytest.approx(evaluation.all.fvu, rel=1e-3)


def test_a_category_without_a_figure_is_no_part_of_macro() -> None:
    (with_figure, without) = (dataclasses.replace(Figures(*[1] * len(NAMES)), fvu=value) for value in (0.5, None))
    assert sae_figures.macro_average(with_figure, [with_figure, without]).fvu == 0.5
    assert sae_figures.macro_average(with_figure, [without]).fvu is None


# ------------------------------------------------------------------------------------------------ identities


def test_an_exact_sae_leaves_nothing_out(model: LanguageModel, documents: list[Document]) -> None:
    (evaluation,) = evaluate(model, [exact_sae()], documents, OPTIONS)
    for own in (evaluation.all, *evaluation.categories.values()):
        assert own.fvu == pytest.approx(0, abs=1e-12)
        assert own.cosine == pytest.approx(1, abs=1e-6)
        assert own.l0 == pytest.approx(TINY_WIDTH)
        assert own.delta_ce == pytest.approx(0, abs=1e-6)
        assert own.ce_recovered_zero == pytest.approx(1, abs=1e-3)
        assert own.ce_recovered_mean == pytest.approx(1, abs=1e-3)


def test_an_sae_that_decodes_to_zero_recovers_nothing(model: LanguageModel, documents: list[Document]) -> None:
    (evaluation,) = evaluate(model, [constant_sae(torch.zeros(TINY_WIDTH))], documents, OPTIONS)
    assert evaluation.all.ce_sae == evaluation.all.ce_zero
    assert evaluation.all.ce_recovered_zero == evaluation.macro.ce_recovered_zero == 0
    assert evaluation.all.fvu is not None
    assert evaluation.all.fvu >= 1


def test_an_sae_that_decodes_to_its_mean_recovers_nothing(model: LanguageModel, documents: list[Document]) -> None:
    mean = torch.linspace(-0.5, 0.5, TINY_WIDTH)
    (evaluation,) = evaluate(model, [constant_sae(mean, mean=mean)], documents, OPTIONS)
    assert evaluation.all.ce_sae == evaluation.all.ce_mean
    assert evaluation.all.ce_recovered_mean == 0


def test_the_mean_of_the_evaluated_tokens_has_an_fvu_of_one(llama: LanguageModel, documents: list[Document]) -> None:
    """Also far from the origin, where Σx² − nx̄² would have no digit left."""
    found = passages(llama, documents, 1)
    kept = [p.x[included(p, median_norm(found), set(llama.tokenizer.all_special_ids))] for p in found]
    mean = torch.from_numpy(np.concatenate(kept).mean(0)).float()
    (evaluation,) = evaluate(llama, [constant_sae(mean)], documents, OPTIONS)
    assert evaluation.all.fvu == pytest.approx(1, abs=1e-6)
    assert evaluation.all.ce_recovered_mean == pytest.approx(0, abs=1e-3)


def test_spread_does_not_cancel() -> None:
    x = 1e9 + np.random.default_rng(0).normal(size=(1_000, 3))
    spread = sae_figures.Spread(0, np.zeros(3))
    for part in np.split(x, [1, 10, 400]):
        spread.merge(sae_figures.Spread.of(part))
    assert spread.n == 1_000
    assert spread.squares == pytest.approx(float(np.square(x - x.mean(0)).sum()), rel=1e-6)


def test_features_that_never_fire_are_dead(llama: LanguageModel, documents: list[Document]) -> None:
    sae = random_sae(k=64)
    silent = dataclasses.replace(sae, b_enc=torch.where(torch.arange(64) < 16, -1e6, 1e6))
    (evaluation,) = evaluate(llama, [silent], documents, dataclasses.replace(OPTIONS, ce=False))
    assert (evaluation.all.dead_share, evaluation.all.dense_share, evaluation.all.l0) == (0.25, 0.75, 48)


def test_an_ablation_without_effect_gives_no_share(llama: LanguageModel, documents: list[Document]) -> None:
    """CE_abl = CE_clean: None, not a division by zero."""
    sums = sae_figures.Sums.empty(4, 8)
    sums.n_loss_tokens, sums.losses = 10, {"clean": 30.0, "sae": 31.0, "zero": 30.0, "mean": 35.0}
    figures = sums.figures()
    assert (figures.ce_recovered_zero, figures.ce_recovered_mean) == (None, pytest.approx(0.8))
    assert figures.delta_ce == pytest.approx(0.1)
    assert (figures.fvu, figures.l0, figures.dead_share) == (None, None, None)


# ------------------------------------------------------------------------------------------------ what is replaced


def test_excluded_tokens_are_never_replaced(
    model: LanguageModel, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every arm: what goes on at excluded tokens is the model's own residual, bit for bit, at included ones not."""
    special = set(model.tokenizer.all_special_ids)
    found = {tuple(p.ids[0].tolist()): p for p in passages(model, documents, 1)}
    median = float(np.quantile([np.linalg.norm(row) for p in found.values() for row in p.x], 0.9)) / 10
    clean: dict[tuple[int, ...], Tensor] = {}
    n_replaced: list[int] = []
    hidden_above = LanguageModel.hidden_above

    def spy(self: LanguageModel, tokens: Tensor, layer: int, x: Tensor) -> Tensor:
        key = tuple(tokens[0].tolist())
        if key not in clean:
            with residual_stream(self, [layer]) as residuals:
                self.hidden(tokens)
            clean[key] = residuals[layer]
        if (x != clean[key]).any():  # not the check that going on from here works
            expected = torch.from_numpy(included(found[key], median, special))
            assert torch.equal((x != clean[key]).any(-1)[0], expected)
            n_replaced.append(int(expected.sum()))
        return hidden_above(self, tokens, layer, x)

    monkeypatch.setattr(LanguageModel, "hidden_above", spy)
    one = dataclasses.replace(OPTIONS, batch_size=1)
    (evaluation,) = evaluate(model, [random_sae(norm_median=median)], documents, one)
    assert sum(n_replaced) == 3 * evaluation.all.n_tokens
    assert evaluation.all.n_massive > 10


def test_going_on_from_a_block_is_the_whole_model(model: LanguageModel) -> None:
    """With padding; and nothing is left behind in the blocks, not even after a failure."""
    tokens = torch.arange(24).view(2, 12) + 5
    with torch.no_grad(), residual_stream(model, range(model.n_layers)) as residuals:
        whole = model.hidden(tokens)
    with torch.no_grad():
        for layer, x in residuals.items():
            torch.testing.assert_close(model.hidden_above(tokens, layer, x), whole, rtol=0, atol=1e-6)
            assert (model.hidden_above(tokens, layer, torch.zeros_like(x)) - whole).abs().max() > 1e-3
        with pytest.raises(IndexError):
            model.hidden_above(tokens + 10**6, 1, residuals[1])
        assert torch.equal(model.hidden(tokens), whole)
    assert all("forward" not in vars(block) for block in model.blocks)


def test_a_model_that_hands_on_more_than_residuals_is_refused(
    llama: LanguageModel, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks share something else, losses could not be trusted; the other figures can."""
    monkeypatch.setattr(LanguageModel, "hidden_above", lambda self, tokens, layer, x: self.hidden(tokens) + 1)
    with pytest.raises(ElwError, match="--no-ce"):
        evaluate(llama, [random_sae()], documents, OPTIONS)
    (evaluation,) = evaluate(llama, [random_sae()], documents, dataclasses.replace(OPTIONS, ce=False))
    assert evaluation.all.fvu is not None
    assert (evaluation.all.ce_clean, evaluation.all.delta_ce, evaluation.all.n_loss_tokens) == (None, None, 0)
    assert "mean_from" not in evaluation.measured_on


# ------------------------------------------------------------------------------------------------ independence


def same(left: Evaluation, right: Evaluation, relative: float = 1e-4) -> None:
    medians = [evaluation.measured_on["norm_median"] for evaluation in (left, right)]
    assert medians[0] == pytest.approx(medians[1], rel=1e-5)
    assert {**left.measured_on, "norm_median": 0} == {**right.measured_on, "norm_median": 0}
    assert list(left.categories) == list(right.categories)
    for one, other in zip(
        (left.all, left.macro, *left.categories.values()),
        (right.all, right.macro, *right.categories.values()),
        strict=True,
    ):
        for name in NAMES:
            tolerance = 100 * relative if name.startswith("ce_recovered") else relative
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=tolerance, abs=1e-5), name


def test_batches_and_order_do_not_matter(model: LanguageModel, documents: list[Document]) -> None:
    options = dataclasses.replace(OPTIONS, max_tokens=300)
    (expected,) = evaluate(model, [random_sae()], documents, options)
    for batch_size, order in ((1, documents[::-1]), (3, documents), (64, documents[1:] + documents[:1])):
        (found,) = evaluate(model, [random_sae()], order, dataclasses.replace(options, batch_size=batch_size))
        same(found, expected)


def test_saes_do_not_influence_each_other(llama: LanguageModel, documents: list[Document]) -> None:
    """Several of one layer, with other k, medians and means, and of other layers, in any order."""
    mean = torch.ones(TINY_WIDTH)
    saes = [
        random_sae(layer=2, k=4),
        random_sae(layer=1, k=8, seed=1),
        random_sae(layer=1, k=2, seed=2, norm_median=1.0),
        random_sae(layer=1, k=2, seed=2, mean=mean),
        random_sae(layer=1, k=2, seed=2, mean=-mean),
    ]
    together = evaluate(llama, saes, documents, OPTIONS)
    assert [evaluation.layer for evaluation in together] == [2, 1, 1, 1, 1]
    for sae, evaluation in zip(saes, together, strict=True):
        same(evaluate(llama, [sae], documents, OPTIONS)[0], evaluation, 1e-9)
    assert together[3].all.ce_mean != together[4].all.ce_mean


def test_a_sample_is_balanced_and_seeded(llama: LanguageModel, documents: list[Document]) -> None:
    def sampled(seed: int) -> Evaluation:
        options = dataclasses.replace(OPTIONS, max_tokens=6 * LENGTH, seed=seed, ce=False)
        return evaluate(llama, [random_sae()], documents, options)[0]

    first = sampled(0)
    assert 6 * LENGTH <= first.measured_on["tokens"] < 9 * LENGTH
    assert list(first.categories) == ["code", "natural", "odd"]
    assert sampled(0) == first
    assert sampled(1).all.fvu != first.all.fvu


def test_losses_of_a_part_of_the_sample(llama: LanguageModel, documents: list[Document]) -> None:
    """They are those of a smaller sample, beside the other figures of the whole one."""
    sae = random_sae(norm_median=5.0, mean=torch.ones(TINY_WIDTH))
    both, whole, part = (
        evaluate(llama, [sae], documents, dataclasses.replace(OPTIONS, **more))[0]
        for more in ({"ce_tokens": 300}, {"ce": False}, {"max_tokens": 300})
    )
    for name in NAMES:
        expected = part if "ce_" in name or name in ("delta_ce", "n_loss_tokens") else whole
        assert getattr(both.all, name) == pytest.approx(getattr(expected.all, name)), name
    assert both.all.n_loss_tokens < both.all.n_tokens


def test_bfloat16_is_close(tiny: Callable[[str], Tiny], documents: list[Document]) -> None:
    exact, rough = (
        evaluate(tiny("llama").load(dtype), [random_sae(norm_median=5.0)], documents, OPTIONS)[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (exact.measured_on["dtype"], rough.measured_on["dtype"]) == ("float32", "bfloat16")
    for name in ("fvu", "l0", "cosine", "ce_clean", "ce_sae", "ce_zero"):
        assert getattr(rough.all, name) == pytest.approx(getattr(exact.all, name), rel=0.05), name


# ------------------------------------------------------------------------------------------------ documents seen


def trained_on(documents: Sequence[Document], part: str = "train") -> dict[str, Any]:
    parts: dict[str, list[str]] = {"train": [], "select": [], "test": []}
    return {"documents": parts | {part: [document.sha256[:16] for document in documents]}}


@pytest.mark.parametrize("part", ["train", "select"])
def test_documents_seen_in_training_are_left_out(llama: LanguageModel, documents: list[Document], part: str) -> None:
    seen, unseen = documents[:3], documents[3:]
    (evaluation,) = evaluate(llama, [random_sae(metadata=trained_on(seen, part))], documents, OPTIONS)
    (expected,) = evaluate(llama, [random_sae()], unseen, OPTIONS)
    assert evaluation.all == expected.all
    assert evaluation.measured_on["documents_left_out"] == 3
    assert evaluation.measured_on["overlap_checked"] is True
    assert any(note.startswith("3 of the documents were left out") for note in evaluation.notes)


def test_test_documents_are_not_left_out(llama: LanguageModel, documents: list[Document]) -> None:
    (evaluation,) = evaluate(llama, [random_sae(metadata=trained_on(documents, "test"))], documents, OPTIONS)
    assert evaluation.measured_on["documents_left_out"] == 0
    assert evaluation.measured_on["overlap_checked"] is True
    assert not any("overlap" in note for note in evaluation.notes)


def test_all_saes_are_measured_on_what_none_has_seen(llama: LanguageModel, documents: list[Document]) -> None:
    saes = [
        random_sae(metadata=trained_on(documents[:2])),
        random_sae(metadata=trained_on(documents[2:3])),
        exact_sae(),
    ]
    evaluations = evaluate(llama, saes, documents, OPTIONS)
    assert {evaluation.measured_on["documents_left_out"] for evaluation in evaluations} == {3}
    assert [evaluation.measured_on["overlap_checked"] for evaluation in evaluations] == [True, True, False]
    assert "overlap" in " ".join(evaluations[2].notes)


def test_nothing_unseen_is_a_sentence(llama: LanguageModel, documents: list[Document]) -> None:
    with pytest.raises(UsageError, match=r"All 7 documents .* layer 1 .*give text that they never saw"):
        evaluate(llama, [random_sae(metadata=trained_on(documents))], documents, OPTIONS)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"documents": None},
        {"documents": []},
        {"documents": {}},
        {"documents": {"select": []}},
        {"documents": {"train": "0123456789abcdef"}},
        {"documents": {"train": [1, 2]}},
        {"documents": {"train": [""]}},
        {"documents": {"train": ["0123456789abcdef"], "select": {"a": 1}}},
    ],
)
def test_hostile_document_lists_count_as_none(
    llama: LanguageModel, documents: list[Document], metadata: dict[str, Any]
) -> None:
    """In particular "" is no prefix of everything."""
    assert documents_seen(random_sae(metadata=metadata)) is None


def test_text_that_is_too_short_is_a_sentence(llama: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match=r"too short .* Give more text"):
        evaluate(llama, [random_sae()], discover([tmp_path]), OPTIONS)


def test_a_median_that_does_not_fit_leaves_no_figures(llama: LanguageModel, documents: list[Document]) -> None:
    """Every token is massive then: nothing is measured, nothing fails, and it is said."""
    (evaluation,) = evaluate(llama, [random_sae(norm_median=1e-9)], documents, OPTIONS)
    assert evaluation.all.n_tokens == 0
    assert (evaluation.all.fvu, evaluation.all.ce_clean, evaluation.macro.dead_share) == (None, None, None)
    assert "no token is included" in " ".join(evaluation.notes)


def test_numbers_that_overflow_are_none(llama: LanguageModel, documents: list[Document]) -> None:
    """JSON has no infinity."""
    (evaluation,) = evaluate(llama, [constant_sae(torch.full((TINY_WIDTH,), 3e38))], documents, OPTIONS)
    json.dumps(evaluation.as_dict(), allow_nan=False)


@pytest.mark.parametrize("sae", [random_sae(layer=9), dataclasses.replace(random_sae(), W_dec=torch.zeros(64, 5))])
def test_an_sae_of_another_model_is_refused(
    llama: LanguageModel, documents: list[Document], sae: SparseAutoencoder
) -> None:
    with pytest.raises(UsageError):
        evaluate(llama, [sae], documents, OPTIONS)


@pytest.mark.parametrize(
    ("wrong", "typed"),
    [
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"ce_tokens": 0}, "--ce-tokens is 0"),
        ({"context_length": 3}, "--context is 3"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_wrong_options_are_a_sentence(wrong: dict[str, int], typed: str) -> None:
    """Named as the user typed them."""
    with pytest.raises(UsageError, match=typed):
        EvaluationOptions(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ kept with the SAE


def test_an_evaluation_is_json(llama: LanguageModel, documents: list[Document]) -> None:
    (evaluation,) = evaluate(llama, [random_sae()], documents, OPTIONS)
    text = json.dumps(evaluation.as_dict(), allow_nan=False)
    assert json.loads(text) == evaluation.as_dict()
    assert set(evaluation.as_dict()) == {"all", "macro", "categories", "measured_on"}
    assert set(json.loads(text)["categories"]["code"]) == set(NAMES)


@pytest.fixture
def saes(tiny: Callable[[str], Tiny], tmp_path: Path) -> Path:
    """The tiny Llama's SAE folders, to be changed."""
    return Path(shutil.copytree(tiny("llama").saes, tmp_path / "saes"))


def elw_evaluate(tiny: Callable[[str], Tiny], *words: str | Path) -> int:
    options = ["--model", str(tiny("llama").folder), "--context", str(LENGTH), "--max-tokens", "400"]
    return main(["sae", "evaluate", *map(str, words), *options])


def test_saving_changes_the_figures_alone(
    tiny: Callable[[str], Tiny], saes: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In cfg.json, and no other file; the SAE stays the same one."""
    folder = saes / "layer_1"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(before["cfg.json"])
    identity = load_sae(folder).sha256
    assert elw_evaluate(tiny, texts, "--sae", folder, "--save", "--json") == 0
    out, err = capsys.readouterr()
    (printed,) = json.loads(out)
    assert f"Saved with the SAE in {folder / 'cfg.json'}." in err
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (
        {name for name in before if before[name] != after[name]} == {"cfg.json"} == {*after} - {*before} | {"cfg.json"}
    )
    saved = json.loads(after["cfg.json"])
    own = saved["metadata"]["elw"]
    assert own.pop("evaluation") == {name: printed[name] for name in ("all", "macro", "categories", "measured_on")}
    assert {name: own.pop(name) for name in ("l0", "fvu", "cosine", "dead_share")} == {
        name: printed["all"][name] for name in ("l0", "fvu", "cosine", "dead_share")
    }
    assert saved == config
    loaded = load_sae(folder)
    assert (loaded.sha256, loaded.metadata["fvu"]) == (identity, printed["all"]["fvu"])
    assert "/" not in json.dumps(saved["metadata"]["elw"]), "no path of this machine"


def test_saving_keeps_what_was_there_when_it_fails(
    llama: LanguageModel, saes: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    (evaluation,) = evaluate(llama, [load_sae(saes / "layer_1")], documents, OPTIONS)
    before = sorted((path.name, path.read_bytes()) for path in (saes / "layer_1").iterdir())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ElwError, match="No space left"):
        saving.save_evaluation(evaluation)
    assert sorted((path.name, path.read_bytes()) for path in (saes / "layer_1").iterdir()) == before


@pytest.mark.parametrize("config", ["{}", "[]", '{"metadata": 3}'])
def test_saving_into_another_format_is_refused(
    llama: LanguageModel, saes: Path, documents: list[Document], config: str
) -> None:
    (evaluation,) = evaluate(llama, [load_sae(saes / "layer_1")], documents, dataclasses.replace(OPTIONS, ce=False))
    (saes / "layer_1" / "cfg.json").write_text(config)
    with pytest.raises(UsageError, match="use --json or --db"):
        saving.save_evaluation(evaluation)


# ------------------------------------------------------------------------------------------------ the command


def test_the_table_has_a_row_for_each_sae_and_category(
    tiny: Callable[[str], Tiny], saes: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert elw_evaluate(tiny, texts, "--sae", saes, "--format", "json") == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [(row["layer"], row["category"]) for row in rows] == [
        (layer, category) for layer in (1, 2) for category in ("code", "natural", "odd", "macro", "all")
    ]
    assert all(row["fvu"] > 0 and row["ce_clean"] > 0 and row["folder"] for row in rows)
    assert err.count("could not be checked") == 1, "one sentence for both layers"
    assert "Layer 1, 2: the SAE does not say which documents it was trained on" in err


def test_folders_called_like_totals_have_rows_of_their_own(
    tiny: Callable[[str], Tiny], saes: Path, small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the table and in JSON, with the figures of the same texts under other names."""
    figures = []
    for first, second in (("all", "macro"), ("alm", "macrp")):
        root = tmp_path / first
        shutil.copytree(small_corpus / "code", root / first)
        shutil.copytree(small_corpus / "natural", root / second)
        shared = (tiny, root, "--sae", saes / "layer_1", "--no-ce")
        assert elw_evaluate(*shared, "--json") == 0
        (printed,) = json.loads(capsys.readouterr().out)
        assert elw_evaluate(*shared, "--format", "json") == 0
        rows = [row["category"] for row in json.loads(capsys.readouterr().out)]
        categories = ["all/", "macro/"] if first == "all" else ["alm", "macrp"]
        assert rows == [*categories, "macro", "all"]
        assert list(printed["categories"]) == categories
        figures.append([*printed["categories"].values(), printed["macro"], printed["all"]])
    assert figures[0] == figures[1]


def test_layers_choose_and_no_ce_leaves_out(
    tiny: Callable[[str], Tiny], saes: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert elw_evaluate(tiny, texts, "--sae", saes, "--layers", "2", "--no-ce", "--json", "--exclude", "s*.txt") == 0
    (evaluation,) = json.loads(capsys.readouterr().out)
    assert evaluation["layer"] == 2
    assert evaluation["all"]["ce_clean"] is None
    assert "odd" not in evaluation["categories"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--save"], "--save changes the folders given with --sae"),
        ([], "No SAEs are shipped for"),
        (["--sae", "{saes}", "--layers", "7"], "No SAE was given for layer 7"),
        (["--sae", "{saes}/nowhere"], "is not an SAE folder"),
        (["--sae", "{saes}", "--db", "{saes}/none.duckdb"], "none.duckdb"),
        (["--sae", "{saes}", "--batch-size", "0"], "--batch-size is 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tiny: Callable[[str], Tiny],
    saes: Path,
    texts: Path,
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert elw_evaluate(tiny, texts, *(word.format(saes=saes) for word in words)) in (2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert not (saes / "none.duckdb").exists()


# ------------------------------------------------------------------------------------------------ in the warehouse


def rows_of(db: Path, query: str) -> list[dict[str, Any]]:
    with Warehouse(db) as warehouse:
        result = warehouse.sql(query)
        return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def stored(db: Path, layer: int = 1) -> dict[str, dict[str, Any]]:
    """Rows of sae_quality by category."""
    return {row["category"]: row for row in rows_of(db, f"SELECT * FROM sae_quality WHERE layer = {layer}")}


def test_figures_are_stored_with_every_run_that_uses_the_sae(
    tiny: Callable[[str], Tiny],
    tiny_warehouse: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place of those that were there before; other layers are left alone."""
    db = Path(shutil.copy(tiny_warehouse, tmp_path / "elw.duckdb"))
    sae = tiny("llama").saes / "layer_1"
    for _ in range(2):
        assert elw_evaluate(tiny, texts, "--sae", sae, "--db", db, "--json") == 0
    out, err = capsys.readouterr()
    evaluation = json.loads(out[out.rindex("\n[\n") :])[0]
    assert f"The figures of {sae} are stored with run 1 of {db}." in err
    found = stored(db)
    assert set(found) == {"all", "macro", "code", "natural", "odd"}
    assert {name: found["all"][name] for name in NAMES} == evaluation["all"]
    assert {name: found["macro"][name] for name in NAMES} == evaluation["macro"]
    assert {name: found["odd"][name] for name in NAMES} == evaluation["categories"]["odd"]
    assert stored(db, 2) == {}
    first, second = rows_of(db, "SELECT * FROM saes ORDER BY layer")
    pooled = ("l0", "fvu", "cosine", "dead_share", "dense_share", "ce_clean", "delta_ce", "ce_recovered_zero")
    assert {name: first[name] for name in pooled} == {name: evaluation["all"][name] for name in pooled}
    assert first["ce_recovered_mean"] == evaluation["all"]["ce_recovered_mean"]
    assert first["fvu_macro"] == evaluation["macro"]["fvu"]
    assert first["evaluated_tokens"] == evaluation["all"]["n_tokens"]
    assert json.loads(first["evaluated_on"]) == evaluation["measured_on"]
    assert second["evaluated_on"] is None
    assert second["fvu_macro"] is None


def test_a_warehouse_that_uses_none_of_the_saes_is_refused_before_the_work(
    tiny: Callable[[str], Tiny],
    tiny_warehouse: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_sae(random_sae(), tmp_path / "other")
    monkeypatch.setattr(sae_evaluation, "evaluate", lambda *_: pytest.fail("worked"))
    assert elw_evaluate(tiny, texts, "--sae", tmp_path / "other", "--db", tiny_warehouse) == 2
    assert "uses any of these SAEs" in capsys.readouterr().err


def test_an_ingest_stores_the_figures_that_an_sae_carries(
    tiny: Callable[[str], Tiny], saes: Path, texts: Path, tmp_path: Path
) -> None:
    """And the report shows them."""
    from energy_lens.reports.queries import gather

    assert elw_evaluate(tiny, texts, "--sae", saes / "layer_1", "--save") == 0
    evaluation = load_sae(saes / "layer_1").metadata["evaluation"]
    db = tmp_path / "elw.duckdb"
    ingest(
        [texts],
        IngestOptions(db=db, model=str(tiny("llama").folder), saes=(saes,), context_length=LENGTH, dtype="float32"),
    )
    assert {name: stored(db)["all"][name] for name in NAMES} == evaluation["all"]
    first, second = rows_of(db, "SELECT * FROM saes ORDER BY layer")
    assert (first["fvu"], first["fvu_macro"]) == (evaluation["all"]["fvu"], evaluation["macro"]["fvu"])
    assert (second["fvu"], second["fvu_macro"], stored(db, 2)) == (None, None, {})
    shown = gather(db).answers["saes"].rows
    assert [row["ce_recovered_mean"] for row in shown] == [evaluation["all"]["ce_recovered_mean"], None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["all", "macro", "categories", "measured_on", "fvu", "n_tokens", "evaluation", "x"]), inner
        )
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def empty_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("empty") / "elw.duckdb"
    Warehouse(db, writable=True).close()
    return db


@settings(max_examples=60)
@given(JSON, JSON, JSON)
def test_hostile_figures_become_null(empty_warehouse: Path, pooled: Any, categories: Any, fvu: Any) -> None:
    """An imported SAE's metadata may say anything: the run is stored, and what is no number is NULL."""
    metadata = {"evaluation": {"all": pooled, "macro": pooled, "categories": categories, "measured_on": fvu}}
    sae = {
        "layer": 1, "sae_sha256": "a", "source": "s", "architecture": "topk", "d_sae": 8, "k": None, "norm_median": 1.0,
        "l0": pooled, "fvu": fvu, "cosine": None, "dead_share": True, "metadata": json.dumps(metadata),
    }  # fmt: skip
    with Warehouse(empty_warehouse, writable=True) as warehouse:
        warehouse.sql("DELETE FROM saes")
        warehouse.sql("DELETE FROM sae_quality")
        with warehouse.transaction():
            quality.insert_saes(warehouse, 1, [sae, {**sae, "layer": 2, "metadata": "[1]"}])
        assert warehouse.sql("SELECT count(*) FROM saes").value() == 2
        assert warehouse.sql("SELECT count(*) FROM (SELECT DISTINCT layer, category FROM sae_quality)").value() == (
            warehouse.sql("SELECT count(*) FROM sae_quality").value()
        )
        assert warehouse.sql("SELECT count(*) FROM saes WHERE isnan(fvu) OR isinf(fvu)").value() == 0


def test_a_category_named_all_is_not_taken_for_all() -> None:
    figures = dict.fromkeys(NAMES, 1)
    evaluation = {"all": figures, "macro": figures, "categories": {"all": figures, "macro": figures, "b": figures}}
    assert [row["category"] for row in quality.quality_rows(1, 1, evaluation)] == [
        "all",
        "macro",
        "all/",
        "b",
        "macro/",
    ]


def test_categories_of_a_foreign_evaluation_stay_apart() -> None:
    """Ours have all/ where a folder is called all; another may have both."""
    figures = dict.fromkeys(NAMES, 1)
    evaluation = {"all": figures, "categories": {"all": figures, "all/": figures, "all//": figures}}
    assert [row["category"] for row in quality.quality_rows(1, 1, evaluation)] == ["all", "all/", "all//", "all///"]


def test_half_a_character_in_a_category_is_spelt_out(empty_warehouse: Path) -> None:
    """As JSON may have it."""
    metadata = '{"evaluation": {"all": {"fvu": 0.5}, "categories": {"a\\ud800": {"fvu": 0.25}}}}'
    sae = {
        "layer": 1, "sae_sha256": "a", "source": "s", "architecture": "topk", "d_sae": 8, "k": 2, "norm_median": 1.0,
        "metadata": metadata,
    }  # fmt: skip
    with Warehouse(empty_warehouse, writable=True) as warehouse:
        warehouse.sql("DELETE FROM sae_quality")
        quality.insert_saes(warehouse, 7, [sae])
        found = warehouse.sql("SELECT category, fvu FROM sae_quality ORDER BY category").fetchall()
    assert found == [("a\\ud800", 0.25), ("all", 0.5)]


def test_an_older_warehouse_gets_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of schema 1 keeps its rows; until then its reader is told what to do."""
    db = tmp_path / "old.duckdb"
    files = migrations.migration_files()
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "migration_files", lambda: files[:1])
        patch.setattr(migrations, "view_files", list)  # today's views need later tables
        with Warehouse(db, writable=True) as warehouse:
            warehouse.sql("INSERT INTO saes VALUES (1, 15, 'a', 's', 'topk', 8, 2, 1.0, 2.0, 0.3, 0.9, 0.1, '{}')")
    with Warehouse(db) as warehouse:
        assert warehouse.behind
    with Warehouse(db, writable=True) as warehouse:
        assert warehouse.sql("SELECT (layer, fvu, fvu_macro) FROM saes").value() == (15, 0.3, None)
        assert warehouse.sql("SELECT count(*) FROM sae_quality").value() == 0
    with duckdb.connect(db, read_only=True) as connection:
        uncommented = "SELECT column_name FROM duckdb_columns() WHERE table_name LIKE 'sae%' AND comment IS NULL"
        assert connection.execute(uncommented).fetchall() == []


# ------------------------------------------------------------------------------------------------ the real one


@pytest.mark.real
def test_a_shipped_sae_on_the_default_model() -> None:
    """Layer 15 on a small sample of the corpus: what is known of it."""
    sae = load_sae(shipped_folder("smollm2-135m", 15))
    options = EvaluationOptions(max_tokens=2_000)
    (evaluation,) = evaluate(load_model(), [sae], discover([CORPUS]), options)
    own = evaluation.all
    assert 1_900 < own.n_tokens < 2_600
    assert own.l0 == pytest.approx(sae.k)
    assert None not in (own.fvu, own.ce_clean, own.delta_ce, own.ce_recovered_zero, own.ce_recovered_mean)
    assert 0.2 < own.fvu < 0.45  # type: ignore[operator]
    assert 2.0 < own.ce_clean < 3.8  # type: ignore[operator]
    assert 0 < own.delta_ce < 2  # type: ignore[operator]
    assert 0.5 < own.ce_recovered_mean < 1  # type: ignore[operator]
    assert 0.5 < own.ce_recovered_zero < 1  # type: ignore[operator]
    assert own.ce_mean > own.ce_sae > own.ce_clean  # type: ignore[operator]
