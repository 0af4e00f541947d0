"""A model of forty vocabulary entries, as of bytes, chess or DNA: every command runs on it, with default options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from energy_lens.cli.main import main

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,\n"
WIDTH = 32


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of single letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("letters")
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=" ").save_pretrained(folder)
    torch.manual_seed(3)
    settings = LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return folder


def test_every_command_runs_with_default_options(
    letters: Path, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("energy_lens.ingest.model.precision.TIMED_SECONDS", 0.0)
    for path in small_corpus.glob("*/*.txt"):  # a letter is a token
        (tmp_path / "texts" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / path.parent.name / path.name).write_bytes(path.read_bytes()[:400])
    corpus, model, saes, db = str(tmp_path / "texts"), str(letters), str(tmp_path / "saes"), str(tmp_path / "x.duckdb")
    few = ("--features", "64", "--batch-size", "256", "--tokens", "4096")
    commands: tuple[tuple[str, ...], ...] = (
        ("model", "check", model),
        ("sae", "train", corpus, "--model", model, "--layers", "0,1", *few, "--output", saes),
        ("lens", "train", corpus, "--model", model, "--layers", "0,1", "--tokens", "4096", "-o", "lens.safetensors"),
        ("sae", "evaluate", corpus, "--model", model, "--sae", saes, "--dtype", "auto", "--max-tokens", "4096"),
        ("efas", "replay-draft", "--model", model, "--sae", saes, "--repetitions", "2"),
        (
            "ingest", corpus, "--model", model, "--sae", saes, "--db", db, "--lens", "lens.safetensors",
            "--energies", "nll,logit_lens,tuned_lens,attention,hopfield", "--probes", "1", "--store-gradients",
        ),
        ("attractors", "--db", db, "--tokens", "256"),
        ("intervene", "--db", db, "--features", "top:2,random:2", "--contexts", "4", "--dtype", "auto"),
        ("efas", "test", "--db", db, "--permutations", "99"),
        ("report", "--db", db),
    )  # fmt: skip
    for words in commands:
        assert main(words) == 0, words


@pytest.mark.parametrize("size", [1, 2, 39, 999, 1_000, 50_000])
def test_tokens_of_no_meaning_are_of_the_vocabulary(
    size: int, tiny: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama").load()  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "vocabulary_size", size)
    tokens = model.any_tokens(3, 700)
    assert tokens.shape == (3, 700)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < size
