"""Weights that are NaN, infinite or overflow: one sentence from every command, before anything is stored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from energy_lens.cli.main import main
from energy_lens.ingest.inclusion import SpecialTokens, exclusion_reasons
from energy_lens.ingest.model.finite import NotFiniteError, check_residuals
from energy_lens.tests.conftest import Tiny
from energy_lens.warehouse.database import Warehouse


def damaged(model: Tiny, folder: Path, name: str, value: float, row: int | None = None, factor: bool = False) -> Path:
    """A copy of a model with a value, or a factor, in one of its weights: in a row, or everywhere."""
    shutil.copytree(model.folder, folder)
    weights = load_file(folder / "model.safetensors")
    (full_name,) = [key for key in weights if key.endswith(name)]
    rows = slice(None) if row is None else slice(row, row + 1)
    weights[full_name][rows] = weights[full_name][rows] * value if factor else value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


FAULTS = {
    "a NaN in one embedding": ("embed_tokens.weight", float("nan"), 300, False),
    "an infinite gain": ("layers.0.input_layernorm.weight", float("inf"), 3, False),
    "weights that overflow": ("layers.1.mlp.down_proj.weight", 1e38, None, True),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_every_command_says_so_in_a_sentence_and_stores_nothing(
    fault: str, tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("llama")
    bad = str(damaged(model, tmp_path / "model", *FAULTS[fault]))
    corpus, saes, output = str(small_corpus), str(model.saes), tmp_path / "output"
    db = tmp_path / "x.duckdb"
    commands = (
        ("ingest", corpus, "--model", bad, "--sae", saes, "--context", "32", "--db", str(db)),
        ("sae", "train", corpus, "--model", bad, "--layers", "1", "--batch-size", "64", "-o", str(output)),
        ("sae", "evaluate", corpus, "--model", bad, "--sae", saes),
        ("lens", "train", corpus, "--model", bad, "--layers", "1", "-o", str(tmp_path / "lens.safetensors")),
        ("efas", "replay-draft", "--model", bad, "--sae", saes),
    )
    for words in commands:
        assert main(words) == 1, words
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "not finite" in said, (words, said)
        assert "Unexpected" not in said, (words, said)
    assert not [path for path in tmp_path.rglob("*.safetensors") if path.parent.name != "model"]
    assert not output.exists(), "a training that had nothing to go on with"
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 0
        assert warehouse.sql("SELECT count(*) FROM plan_groups").value() == 0


def test_a_text_on_which_a_model_overflows_stops_an_ingest_before_its_run(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights are finite, and so is what the proof reads: only tokens of the corpus go wrong."""
    model = tiny("llama")
    folder = damaged(model, tmp_path / "model", "embed_tokens.weight", 1.0, 0, factor=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][20:] *= 1e25
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    db = tmp_path / "x.duckdb"
    words = ("ingest", str(small_corpus), "--model", str(folder), "--sae", str(model.saes), "--db", str(db))
    assert main([*words, "--context", "32", "--dtype", "float32"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "not finite at" in said
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_may_be_whatever_it_is(value: float) -> None:
    norms = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, value]])
    tokens, special = torch.zeros(2, 3, dtype=torch.int64), SpecialTokens(torch.tensor([7]))
    exclusion_reasons(norms, 1.0, torch.tensor([3, 2]), tokens, special)
    with pytest.raises(NotFiniteError, match=r"^1 of 6 tokens are not finite at layer 4"):
        exclusion_reasons(norms, 1.0, torch.tensor([3, 3]), tokens, special, "layer 4")
    with pytest.raises(NotFiniteError, match=r"^1 of 6"):
        check_residuals(norms, "layer 4")
