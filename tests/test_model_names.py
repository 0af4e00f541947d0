"""Which names mean one model, and who is told when an SAE is of another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from energy_lens.cli.main import main
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.model_names import are_different, trained_on
from energy_lens.ingest.sae.saving import save_sae

SAME = [
    ("gpt2", "openai-community/gpt2"),
    ("gpt2", "gpt2-small"),
    ("gpt2", "openai-community/gpt2@607a30d"),
    ("gemma-2-2b", "google/gemma-2-2b"),
    ("Gemma_2_2B", "google/gemma-2-2b"),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
    ("meta-llama/Llama-3.1-8B", "/models/Llama-3.1-8B.Q4_K_M.gguf"),
    ("google/gemma-2-2b-it", "~/gguf/gemma-2-2b-it-BF16.gguf"),
    ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B-IQ4_XS.gguf"),
    ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"),
    ("EleutherAI/pythia-70m", "/cache/hub/models--EleutherAI--pythia-70m/snapshots/a39f36b"),
    ("google/gemma-2-2b", "./models/gemma-2-2b"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("smollm2-135m", "/models/SmolLM2-135M-Instruct.Q4_1.gguf"),
]

DIFFERENT = [
    ("gpt2", "gpt2-medium"),
    ("gpt2", "distilgpt2"),
    ("gemma-2-2b", "google/gemma-2-2b-it"),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3-8B"),
    ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    ("pythia-70m", "EleutherAI/pythia-70m-deduped"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
    ("google/gemma-2-2b", "./models/gemma-2-2b-it"),
    ("EleutherAI/pythia-70m", "/cache/hub/models--EleutherAI--pythia-160m/snapshots/a39f36b"),
]

UNKNOWN = ["", "/tmp/run/model", "./checkpoint-1000", "~/mine", "/data/finetuned/step_5", "models/a/b"]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_model_under_two_names(one: str, other: str) -> None:
    assert not are_different(one, other)
    assert not are_different(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_two_models(one: str, other: str) -> None:
    assert are_different(one, other)
    assert are_different(other, one)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_says_nothing(name: str) -> None:
    assert not are_different("gpt2", name)
    assert not are_different(name, "gpt2")


def test_a_folder_here_that_is_called_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the folder that would be loaded."""
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not are_different("gpt2", "google/gemma-2-2b")


def test_everybody_who_uses_it_is_told(
    tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ingest, import, evaluation of what was imported and interventions say so on stderr; its own SAE is quiet."""
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    made = tiny("llama")
    model = tmp_path / "tiny-1m"
    shutil.copytree(made.folder, model)
    sae = replace(load_sae(made.saes / "layer_1"), model_name="google/gemma-2-2b")
    save_sae(sae, tmp_path / "sae")
    note = f"was trained on google/gemma-2-2b, and the model is {model}"

    def told(*words: str) -> str:
        assert main(list(words)) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert err.count("Note: the SAE of layer 1") == 1, words
        assert note in err
        return out

    corpus, db = str(small_corpus), str(tmp_path / "w.duckdb")
    told("ingest", corpus, "--db", db, "--model", str(model), "--sae", str(tmp_path / "sae"), "--max-tokens", "500")
    told("intervene", "try", "one two three four", "--feature", "1:3", "--db", db)
    imported = told("sae", "import", str(tmp_path / "sae"), "--model", str(model)).strip()
    assert trained_on(load_sae(Path(imported))) == "google/gemma-2-2b"
    told("sae", "evaluate", corpus, "--model", str(model), "--sae", imported, "--no-ce")
    again = told("sae", "import", imported, "--model", str(model), "--output", str(tmp_path / "again")).strip()
    assert trained_on(load_sae(Path(again))) == "google/gemma-2-2b"

    save_sae(replace(sae, model_name="someone/Tiny_1M"), tmp_path / "own")
    assert main(["sae", "import", str(tmp_path / "own"), "--model", str(model)]) == 0
    assert "Note" not in capsys.readouterr().err
