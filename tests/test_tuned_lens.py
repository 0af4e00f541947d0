"""The tuned lens: fitting, files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from energy_lens.errors import UsageError
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.energies.lenses import TunedLens
from energy_lens.ingest.energies.registry import choose_translators
from energy_lens.ingest.energies.translators import (
    Translator,
    Translators,
    load_translators,
    save_translators,
    shipped_lens,
)
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, load_model
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.training.lenses import FitOptions, fit_translators
from energy_lens.warehouse.database import Warehouse

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def fitted(tiny: Callable[..., Any], small_corpus: Path) -> dict[float, Translators]:
    """Lenses of the tiny Llama by learning rate: 0 is the regression alone."""
    model = tiny("llama").load()
    documents = discover([small_corpus])
    return {
        rate: fit_translators(model, documents, LAYERS, FitOptions(tokens=8_192, learning_rate=rate))
        for rate in (0.0, 3e-3)
    }


def test_fitting_brings_held_out_text_nearer_to_the_output(fitted: dict[float, Translators]) -> None:
    """On documents it was not fitted on, regression beats the logit lens, and gradient steps beat the regression."""
    regression, descended = (fitted[rate].metadata["held_out"] for rate in (0.0, 3e-3))
    assert regression["tokens"] == descended["tokens"] > 500
    for layer in map(str, LAYERS):
        before, after = regression["layers"][layer], descended["layers"][layer]
        assert before["logit_lens_kl"] == pytest.approx(after["logit_lens_kl"])
        assert 0 < after["tuned_lens_kl"] < before["tuned_lens_kl"] < before["logit_lens_kl"]


def test_held_out_documents_are_not_fitted_on(fitted: dict[float, Translators]) -> None:
    documents = fitted[0.0].metadata["documents"]
    assert documents["test"]
    assert not set(documents["train"]) & set(documents["test"])


def test_two_fits_are_equal(fitted: dict[float, Translators], tiny: Callable[..., Any], small_corpus: Path) -> None:
    model = tiny("llama").load()
    options = FitOptions(tokens=8_192, learning_rate=3e-3)
    again = fit_translators(model, discover([small_corpus]), LAYERS, options)
    for layer in LAYERS:
        torch.testing.assert_close(again.of(layer).weight, fitted[3e-3].of(layer).weight, rtol=1e-5, atol=1e-6)


def test_a_file_gives_back_what_was_saved(fitted: dict[float, Translators], tmp_path: Path) -> None:
    path = tmp_path / "new" / "lens.safetensors"
    save_translators(fitted[3e-3], path)
    loaded = load_translators(path)
    assert loaded.metadata == json.loads(json.dumps(fitted[3e-3].metadata))
    for layer in LAYERS:
        assert torch.equal(loaded.of(layer).weight, fitted[3e-3].of(layer).weight)
        assert torch.equal(loaded.of(layer).bias, fitted[3e-3].of(layer).bias)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_no_tuned_lens_is_refused(tmp_path: Path) -> None:
    """Missing, another file, cut short, and numbers that are none."""
    path = tmp_path / "lens.safetensors"
    with pytest.raises(UsageError, match="does not exist"):
        load_translators(path)
    save_file({"1.weight": torch.eye(4)}, path)
    with pytest.raises(UsageError, match="is no tuned lens"):
        load_translators(path)
    save_translators(Translators({1: Translator(torch.eye(4), torch.zeros(4))}, "m"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(UsageError, match="damaged"):
        load_translators(path)
    save_translators(Translators({1: Translator(torch.eye(4) * torch.nan, torch.zeros(4))}, "m"), path)
    with pytest.raises(UsageError, match="damaged"):
        load_translators(path)


def test_a_lens_must_fit_the_model_and_layers(tiny: Callable[..., Any]) -> None:
    model = tiny("llama").load()
    narrow = Translators({1: Translator(torch.eye(4), torch.zeros(4))}, "other", source="lens")
    with pytest.raises(UsageError, match="width 4"):
        TunedLens(narrow).check(model, [1])
    with pytest.raises(UsageError, match="no map for layer 2"):
        TunedLens(narrow).check(model, [2, 1])
    with pytest.raises(UsageError, match="last one"):
        fit_translators(model, [], [3], FitOptions())


def test_a_model_without_a_shipped_lens_needs_one(tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path) -> None:
    options = IngestOptions(
        db=tmp_path / "a.duckdb", model=str(tiny("llama").folder), saes=(tiny("llama").saes,), energies=("tuned_lens",)
    )
    with pytest.raises(UsageError, match="elw lens train"):
        ingest([small_corpus], options)
    assert not options.db.exists()


def test_another_lens_is_another_run(
    fitted: dict[float, Translators], tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path
) -> None:
    """A run's identity holds the maps, so their energies never mix."""
    model = tiny("llama")
    save_translators(fitted[0.0], tmp_path / "lens.safetensors")
    runs = [
        ingest(
            [small_corpus],
            IngestOptions(
                db=tmp_path / "a.duckdb", model=str(model.folder), saes=(model.saes,), energies=("tuned_lens",),
                lens=lens, context_length=32, dtype="float32", max_tokens=1,
            ),
        ).run_id
        for lens in (model.lens, tmp_path / "lens.safetensors", model.lens)
    ]  # fmt: skip
    assert runs == [1, 2, 1]
    with Warehouse(tmp_path / "a.duckdb") as warehouse:
        query = "SELECT count(*), count(kl_to_output), count(DISTINCT layer), min(kl_to_output) FROM energies"
        n, n_kl, n_layers, smallest = warehouse.sql(query).fetchone()
        assert n == n_kl > 0
        assert n_layers == 2
        assert smallest > -1e-3


@pytest.mark.real
def test_the_shipped_lens_reads_every_default_layer_better() -> None:
    """Every layer's held-out loss falls below a uniform guess, most of the way to the model's own."""
    translators = choose_translators(DEFAULT_MODEL)
    model = load_model(DEFAULT_MODEL)
    TunedLens(translators).check(model, DEFAULT_LAYERS)
    assert translators.source == str(shipped_lens(DEFAULT_MODEL))
    held_out = translators.metadata["held_out"]
    assert held_out["tokens"] > 10_000
    for layer in map(str, DEFAULT_LAYERS):
        own = held_out["layers"][layer]
        assert held_out["output_loss"] < own["tuned_lens_loss"] < 6 < own["logit_lens_loss"]
        assert own["tuned_lens_kl"] < own["logit_lens_kl"] / 3
