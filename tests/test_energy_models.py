"""`elw energy-model`: what is trained, resumed, held out, refused and written, on models of a few thousand weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model import loading
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.sae import choosing
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.training import energy_models
from energy_lens.ingest.training.documents import split_documents
from energy_lens.ingest.training.energy_model_evaluation import held_out
from energy_lens.ingest.training.energy_model_loss import losses, mean_loss
from energy_lens.ingest.training.energy_model_sizes import EnergyModelOptions, plain_widths, untrained
from energy_lens.ingest.training.energy_model_text import Stream, bytes_of_tokens, learn_tokenizer, write_stream

#: A training of a second.
SMALL = EnergyModelOptions(
    width=16, steps=2, heads=2, memories=24, vocabulary=300, context_length=16, tokens=3_200, batch_size=4
)
WORDS = (
    "--width", "16", "--steps", "2", "--heads", "2", "--memories", "24", "--vocabulary", "300", "--context", "16",
    "--tokens", "3200", "--batch-size", "4",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(small_corpus: Path) -> Sequence[Document]:
    return discover([small_corpus])


@pytest.fixture(scope="module")
def tokenizer(texts: Sequence[Document]) -> Any:
    return learn_tokenizer(split_documents(texts)["train"], 300)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


@pytest.mark.parametrize("plain", [False, True], ids=["energy", "plain"])
def test_a_training_that_was_stopped_ends_with_the_same_numbers(
    plain: bool, texts: Sequence[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two checkpoints, and once more later: every weight, and every row of the curve, bit by bit."""
    monkeypatch.setattr(energy_models, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(energy_models, "ROWS", 10)
    options = replace(SMALL, plain=plain)
    whole = energy_models.train_energy_model(texts, options, folder(tmp_path / "whole"))
    steps, original = 0, energy_models._Training._step

    class StoppedError(Exception):
        pass

    def stopping(self: Any, step: int) -> float:
        nonlocal steps
        steps += 1
        if steps in (13, 30):
            raise StoppedError
        return original(self, step)

    monkeypatch.setattr(energy_models._Training, "_step", stopping)
    again = folder(tmp_path / "again")
    for _ in range(2):
        with pytest.raises(StoppedError):
            energy_models.train_energy_model(texts, options, again)
    resumed = energy_models.train_energy_model(texts, options, again)
    assert steps < 2 * options.n_steps, "it began from the start each time"
    assert resumed.curve == whole.curve
    assert resumed.held_out == whole.held_out
    for name, tensor in weights(whole.module).items():
        assert torch.equal(tensor, weights(resumed.module)[name]), name
    first, last = whole.curve[0]["train_nats_per_token"], whole.curve[-1]["train_nats_per_token"]
    assert last < first


def test_a_killed_command_goes_on(small_corpus: Path, tmp_path: Path) -> None:
    """kill -9 as soon as a checkpoint is there; then the same command, and the same weights as without."""
    code = (
        "import sys; from energy_lens.ingest.training import energy_models; energy_models.CHECKPOINT_SECONDS = 0.0;"
        "from energy_lens.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code, "energy-model", "train", str(small_corpus), *WORDS]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*words, "--output", str(killed)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint, deadline = killed / ".training" / energy_models.CHECKPOINT, time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for output in (killed, whole):
        if not (output / "config.json").exists():
            assert main(["energy-model", "train", str(small_corpus), *WORDS, "--output", str(output)]) == 0
    one, other = (load_model(str(output)) for output in (killed, whole))
    for name, tensor in weights(one.module).items():
        assert torch.equal(tensor, weights(other.module)[name]), name
    assert not (killed / ".training").exists()


def test_a_trained_folder_is_a_model_with_a_card(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded as any other, its figures those that were printed, the plain one's beside; then trained further."""
    energy, plain, further = (str(tmp_path / name) for name in ("energy", "plain", "further"))
    assert main(["energy-model", "train", str(small_corpus), *WORDS, "-o", energy, "--half", "--format", "csv"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == energy
    assert main(["energy-model", "train", str(small_corpus), *WORDS, "-o", plain, "--plain"]) == 0
    files = {file.name for file in Path(energy).iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "README.md", "figures.json", "loss.jsonl"}
    assert not [name for name in files if name.startswith(".")]
    figures = json.loads((tmp_path / "energy" / "figures.json").read_text())
    assert printed[-1] == "all,{tokens},{bytes},{nats_per_token},{nats_per_byte}".format(**figures["held_out"]["all"])
    assert all(0 <= row["proved"] <= row["falls"] <= 1 for row in figures["descent"])
    other = json.loads((tmp_path / "plain" / "figures.json").read_text())
    assert abs(other["parameters"] / figures["parameters"] - 1) < 0.02
    assert main(["energy-model", "card", energy, "--beside", plain]) == 0
    card = (tmp_path / "energy" / "README.md").read_text()
    for model in (figures, other):
        assert f"{model['held_out']['all']['nats_per_byte']:.4f}" in card
    assert json.loads((tmp_path / "energy" / "figures.json").read_text())["beside"]["held_out"] == other["held_out"]
    model = load_model(energy)
    assert model.n_layers == 2
    assert (
        sum(loss["bytes"] for name, loss in figures["held_out"].items() if name != "all")
        == (figures["held_out"]["all"]["bytes"])
    )
    more = ["--context", "16", "--tokens", "640", "--batch-size", "4"]
    assert main(["energy-model", "train", str(small_corpus), "-o", further, "--init", energy, *more]) == 0
    assert json.loads((tmp_path / "further" / "figures.json").read_text())["training"]["began_from"] == model.sha256
    assert load_model(further).tokenizer.get_vocab() == model.tokenizer.get_vocab()
    capsys.readouterr()
    assert main(["energy-model", "train", str(small_corpus), "-o", energy, *WORDS]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert (
        main(["energy-model", "train", str(small_corpus), "-o", str(tmp_path / "x"), "--init", energy, "--steps", "3"])
        == 2
    )
    assert "--steps cannot be given with --init" in capsys.readouterr().err
    assert main(["energy-model", "card", str(small_corpus)]) == 2
    assert not (tmp_path / "x").exists()


def test_the_loss_is_cross_entropy() -> None:
    """Value and both gradients, over more than one chunk of tokens."""
    torch.manual_seed(0)
    hidden = torch.randn(1_100, 8, dtype=torch.float64, requires_grad=True)
    unembedding = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (1_100,))
    expected = functional.cross_entropy(hidden @ unembedding.T, targets)
    found = mean_loss(hidden, unembedding, targets)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, unembedding)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    single = functional.cross_entropy(hidden @ unembedding.T, targets, reduction="none")
    torch.testing.assert_close(losses(hidden, unembedding, targets), single)


def test_losses_per_byte_are_of_every_byte_of_held_out_text(
    texts: Sequence[Document], tokenizer: Any, tmp_path: Path
) -> None:
    """Of all test documents: their bytes, and the nats of transformers' own logits, context by context."""
    test = split_documents(texts)["test"]
    stream = write_stream(test, tokenizer, tmp_path / "test.ids", "test")
    module = untrained(SMALL, len(tokenizer), tokenizer.eos_token_id).eval()
    figures = held_out(module, tokenizer, test, stream, SMALL.context_length, n_tokens=10**9)
    assert figures is not None
    assert figures.all.bytes == sum(document.n_bytes for document in test)
    assert figures.all.tokens == sum(len(tokenizer(document.text())["input_ids"]) for document in test)
    nats = 0.0
    for document in test:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(document.text())["input_ids"]])
        for first in range(0, len(ids) - 1, SMALL.context_length):
            window = ids[first : first + SMALL.context_length + 1]
            with torch.no_grad():
                logits = module(window[None, :-1]).logits[0]
            nats += float(functional.cross_entropy(logits, window[1:], reduction="sum"))
    assert figures.all.nats == pytest.approx(nats, rel=1e-5)
    assert set(figures.categories) == {"code", "natural"}


def test_a_tokenizer_knows_every_byte(tokenizer: Any) -> None:
    text = "naïve 語 \x00\x7f 👍🏽\n\tdef f():"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert int(bytes_of_tokens(tokenizer)[ids].sum()) == len(text.encode())
    assert len(tokenizer) == 300


def test_a_pass_reads_every_window_once() -> None:
    """Windows of a pass do not overlap; the next one cuts elsewhere; a batch follows from seed and step alone."""
    stream = Stream(np.arange(1_003, dtype=np.uint16), np.array([0]))
    n = stream.n_windows(10)
    assert n == 99
    first = np.concatenate([stream.batch(step, 9, 10, seed=1) for step in range(11)])
    assert (np.diff(first, axis=1) == 1).all()
    inputs = first[:, :-1].flatten()
    assert len(np.unique(inputs)) == len(inputs) == 990
    again = Stream(stream.ids, stream.starts)
    assert (again.batch(7, 9, 10, seed=1) == first[63:72]).all()
    second = stream.batch(11, 9, 10, seed=1)
    assert (again.batch(0, 9, 10, seed=2) != first[:9]).any()
    assert not set(map(int, second[:, 0])) <= set(map(int, first[:, 0]))


@pytest.mark.parametrize(("n", "blocks"), [(1_509_134, 6), (40_000, 2), (9_000_000, 8)])
def test_a_plain_transformer_has_as_many_parameters(n: int, blocks: int) -> None:
    width, inner = plain_widths(n, 4096 if n > 10**6 else 300, blocks)
    vocabulary = 4096 if n > 10**6 else 300
    found = vocabulary * width + blocks * (4 * width**2 + 2 * width + 3 * width * inner) + width
    assert abs(found / n - 1) < 0.02
    assert 0.8 < inner / width < 6


def test_too_little_text_and_other_settings_are_refused(
    texts: Sequence[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str], small_corpus: Path
) -> None:
    """One sentence with the remedy, which then works; nothing is left where nothing was begun."""
    few = ["energy-model", "train", str(small_corpus), "-o", str(tmp_path / "few"), *WORDS, "--batch-size", "4000"]
    assert main([*few, "--tokens", "1000000"]) == 2
    assert "smaller --batch-size" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
    place = folder(tmp_path / "training")
    energy_models.train_energy_model(texts, SMALL, place)
    with pytest.raises(UsageError, match="other settings"):
        energy_models.train_energy_model(texts, replace(SMALL, seed=1), place)
    with pytest.raises(UsageError, match="other documents"):
        energy_models.train_energy_model(texts[1:], SMALL, place)
    (place / energy_models.CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="is damaged"):
        energy_models.train_energy_model(texts, SMALL, place)


def test_a_model_that_comes_with_the_package_is_known_by_its_name(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded without network or cache, listed, suggested; a folder of that name where one works does not hide it."""
    place = tmp_path / "shipped" / "small-one" / "model"
    module = untrained(SMALL, len(tokenizer), tokenizer.eos_token_id)
    module.half().save_pretrained(place)
    tokenizer.save_pretrained(place)
    monkeypatch.setattr(loading, "FOLDER", tmp_path / "shipped")
    (tmp_path / "small-one").mkdir()
    monkeypatch.chdir(tmp_path)
    model = load_model("small-one")
    assert model.name == loading.resolved("small-one") == "small-one"
    assert loading.is_folder("small-one")
    assert model.dtype == torch.float32
    assert loading.locate("small-one") == (place, loading.locate(str(place))[1])
    assert main(["model", "list", "--format", "csv"]) == 0
    assert any(line.startswith("small-one,shipped,true,") for line in capsys.readouterr().out.splitlines())
    with pytest.raises(UsageError, match="did you mean small-one"):
        load_model("smal-one!")


def test_a_shipped_models_own_saes_are_taken_where_no_layers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, whichever their layers are; those of the default model are its default layers."""
    rows = torch.eye(4)
    for layer in (1, 3):
        sae = SparseAutoencoder(
            layer=layer, k=2, W_enc=rows.clone(), b_enc=torch.zeros(4), W_dec=rows.clone(), b_dec=torch.zeros(4)
        )
        save_sae(sae, tmp_path / "small-one" / f"layer_{layer}")
    assert tuple(choose_saes(loading.DEFAULT_MODEL)) == loading.DEFAULT_LAYERS
    monkeypatch.setattr(choosing, "FOLDER", tmp_path)
    assert list(choose_saes("small-one")) == [1, 3]
    assert list(choose_saes("small-one", (3,))) == [3]


def folder(path: Path) -> Path:
    path.mkdir()
    return path
