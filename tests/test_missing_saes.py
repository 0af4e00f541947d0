"""SAEs that a run lacks: trained once, kept, gone on with after a kill, measured on text they never saw."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from energy_lens import EnergyLensAnalyzer, EnergyLensConfig, Warehouse
from energy_lens.cli import main
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model import window
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, default_layers
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import choose_saes, registered_folder, shipped_folder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.shipped import SAMPLE
from energy_lens.ingest.training import activation_store, missing
from energy_lens.ingest.training.missing import MissingSaes, complete_saes
from energy_lens.ingest.training.saes import _Training
from energy_lens.tests.conftest import Tiny

#: Small enough for a tiny model, in two rounds.
QUICK = MissingSaes(d_sae=64, tokens=8_192, k=4)
TOKENS = "2048"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and rounds of half of QUICK's tokens."""
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(missing, "ROUND_TOKENS", 4_096)
    return tmp_path / "cache"


def complete(model: Tiny, corpus: Path, layers: tuple[int, ...] | None = (1,), **more: Any) -> list[SparseAutoencoder]:
    """The SAEs of a run on the corpus."""
    folders = complete_saes(
        str(model.folder), layers, more.pop("folders", ()), lambda: discover([corpus]),
        **{"how": QUICK, "dtype": "float32"} | more,
    ).folders  # fmt: skip
    return [load_sae(folder) for folder in folders]


def trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on neither a training nor a load of a model is let through."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("something is trained or loaded")

    for name in ("missing.train_saes", "missing.load_as_begun"):
        monkeypatch.setattr(f"energy_lens.ingest.training.{name}", fail)
    monkeypatch.setattr("energy_lens.ingest.model.loading._from_pretrained", fail)


def trained_on(sae: SparseAutoencoder, part: str = "train") -> set[str]:
    return set(sae.metadata["documents"][part])


def hashes(documents: list[Document]) -> set[str]:
    return {document.sha256[:16] for document in documents}


# ------------------------------------------------------------------------------------------------ on the command line


@pytest.mark.parametrize("place", ["before", "behind"])
def test_an_ingest_trains_what_it_lacks_once(
    place: str,
    tiny: Callable[[str], Tiny],
    few_texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says how good they are; the same command again loads no model and has nothing to do."""
    path = str(few_texts)
    words = ["--train-saes", path] if place == "before" else [path, "--train-saes"]
    words = [
        "ingest",
        *words,
        "--db",
        str(tmp_path / "t.duckdb"),
        "--model",
        str(tiny("llama").folder),
        "--layers",
        "1",
    ]
    words += ["--sae-tokens", TOKENS, "--context", "32", "--dtype", "float32", "--energies", "nll"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "were trained on" in line]
    assert "% of the variance of held-out text, with 8 of 2,048 features active a token" in line
    assert "--layers 1 --output DIR" in line
    assert json.loads(out)["notes"][0] == line
    with Warehouse(tmp_path / "t.duckdb") as warehouse:
        stored = warehouse.sql("SELECT layer, d_sae, k, fvu, source FROM saes").fetchall()
    (row,) = stored
    assert row[:3] == (1, 2048, 8)
    assert f"{100 * (1 - row[3]):.0f} % of the variance" in line
    assert Path(row[4]).is_relative_to(tmp_path / "cache")

    trains_nothing(monkeypatch)
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "Nothing to do" in err
    assert "were trained on" in err


def test_without_the_option_the_sentence_names_it(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ingest", str(small_corpus), "--db", str(tmp_path / "t.duckdb")]
    for model in (["--model", str(tiny("llama").folder)], ["--layers", "3"]):
        assert main([*words, *model]) == 2
        assert "--train-saes" in capsys.readouterr().err
    assert main([*words, "--sae-tokens", "4096"]) == 2
    assert "add --train-saes" in capsys.readouterr().err
    assert main([*words, "--train-saes", "--model", str(tiny("llama").folder), "--sae-tokens", "100"]) == 2
    assert "at least 2,048" in capsys.readouterr().err


def test_where_every_layer_has_one_nothing_is_trained(
    tiny: Callable[[str], Tiny], few_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("llama")
    words = ["ingest", str(few_texts), "--db", str(tmp_path / "t.duckdb"), "--model", str(model.folder)]
    words += ["--sae", str(model.saes), "--train-saes", "--max-tokens", "500", "--energies", "nll"]
    assert main(words) == 0
    assert "none is trained" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "saes").exists()


# ------------------------------------------------------------------------------------------------ on what


def test_held_out_text_is_no_training_text(tiny: Callable[[str], Tiny], small_corpus: Path) -> None:
    (sae,) = complete(tiny("llama"), small_corpus)
    parts = [trained_on(sae, part) for part in ("train", "select", "test")]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert set.union(*parts) == hashes(discover([small_corpus])) | hashes(discover([SAMPLE]))
    measured = sae.metadata["evaluation"]["measured_on"]
    assert measured["documents_left_out"] == 0
    assert measured["documents"] <= len(parts[2])
    assert 0 < sae.metadata["training"]["tokens"] <= 1.02 * QUICK.tokens


def test_text_that_is_given_is_all_that_is_trained_on(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path
) -> None:
    text = discover([small_corpus / "code"])
    (sae,) = complete(tiny("llama"), SAMPLE, text=text, how=replace(QUICK, tokens=1_024))
    assert set.union(*(trained_on(sae, part) for part in ("train", "select", "test"))) == hashes(text)


def test_a_corpus_that_grows_keeps_its_saes(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the run goes on; given as text to train on, the larger corpus is trained on."""
    corpus = tmp_path / "corpus"
    shutil.copytree(small_corpus, corpus)
    (first,) = complete(tiny("llama"), corpus)
    (corpus / "code" / "new.txt").write_text("def added() -> None: ...\n" * 20)
    with monkeypatch.context() as patch:
        trains_nothing(patch)
        (second,) = complete(tiny("llama"), corpus)
    assert second.sha256 == first.sha256
    (third,) = complete(tiny("llama"), corpus, text=discover([corpus]))
    assert third.sha256 != first.sha256
    # A corpus that is no larger one but another gets its own.
    (next((corpus / "natural").iterdir())).unlink()
    (fourth,) = complete(tiny("llama"), corpus)
    assert fourth.sha256 != first.sha256


def test_a_few_texts_are_not_trained_on(
    tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every other few texts would cost the minutes again."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(f"A short text, number {name}.")
    (first,) = complete(tiny("llama"), tmp_path / "one")
    assert trained_on(first) < hashes(discover([SAMPLE]))
    trains_nothing(monkeypatch)
    (second,) = complete(tiny("llama"), tmp_path / "two")
    assert second.sha256 == first.sha256


def test_no_more_of_a_large_corpus_is_read_than_can_be_trained_on() -> None:
    documents = [
        Document(f"{category}/{i}", category, f"{i:02d}{category}", 1_000, None)  # type: ignore[arg-type]
        for category in ("a", "b", "c")
        for i in range(100)
    ]
    chosen = missing._enough(documents, 2_000)
    assert sum(document.n_bytes for document in chosen) == 16_000
    categories = [document.category for document in chosen]
    assert [categories.count(name) for name in "abc"] == [6, 5, 5]
    assert missing._enough(documents[::-1], 2_000) == chosen
    assert len(missing._enough(documents, 1_000_000)) == 300


# ------------------------------------------------------------------------------------------------ for which layers


def test_only_layers_without_an_sae_are_trained(
    tiny: Callable[[str], Tiny], small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is given counts, and one that is registered; the others follow the BOS that these were trained with."""
    model = tiny("llama")
    given, registered = model.saes / "layer_1", model.saes / "layer_2"
    folder = registered_folder(str(model.folder)) / "layer_2-x"
    save_sae(load_sae(registered), folder)
    saes = complete(model, small_corpus, (1, 2, 3), folders=(given,))
    assert [sae.layer for sae in saes] == [1, 2, 3]
    assert [sae.sha256 for sae in saes[:2]] == [load_sae(given).sha256, load_sae(folder).sha256]
    assert saes[2].d_sae == QUICK.d_sae
    assert "layer 3 of" in capsys.readouterr().err

    save_sae(replace(load_sae(registered), b_enc=torch.zeros(64)), folder.with_name("layer_2-y"))
    with pytest.raises(UsageError, match=r"both registered for layer 2 .* --sae"):
        complete(model, small_corpus, (2, 3))


def test_a_layer_that_is_asked_for_later_is_trained_alone(tiny: Callable[[str], Tiny], small_corpus: Path) -> None:
    model = tiny("llama")
    (first,) = complete(model, small_corpus, (1,))
    both = complete(model, small_corpus, (1, 2))
    assert [sae.layer for sae in both] == [1, 2]
    assert both[0].sha256 == first.sha256


def test_bos_and_settings_make_other_saes(tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path) -> None:
    """Those with BOS say so, and a run reads as they do."""
    from transformers import AutoTokenizer

    model = tiny("llama")
    folder = tmp_path / "with_bos"
    shutil.copytree(model.folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    tokenizer.save_pretrained(folder)
    with_bos = replace(model, folder=folder)
    found = {
        (bos, d_sae): complete(with_bos, small_corpus, bos=bos, how=replace(QUICK, d_sae=d_sae))[0]
        for bos in ("yes", "no")
        for d_sae in (64, 96)
    }
    assert {key: (sae.bos, sae.d_sae) for key, sae in found.items()} == {
        (bos, d_sae): (bos == "yes", d_sae) for bos in ("yes", "no") for d_sae in (64, 96)
    }
    assert len({sae.sha256 for sae in found.values()}) == 4
    # A given SAE that was trained with BOS decides for those that are trained beside it.
    given = tmp_path / "given" / "layer_2"
    save_sae(replace(load_sae(model.saes / "layer_2"), bos=True), given)
    beside = complete(with_bos, small_corpus, (1, 2), folders=(given,))
    assert beside[1].sha256 == found["yes", 64].sha256


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_default_layers_lie_at_the_depths_of_the_default_model_s(
    architecture: str, tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    assert default_layers("x", tiny(architecture).folder) == (1, 2, 3)
    for n_layers, expected in ((30, DEFAULT_LAYERS), (24, (8, 10, 12, 16, 20)), (12, (4, 5, 6, 8, 10)), (1, (0,))):
        GPT2Config(n_layer=n_layers).save_pretrained(tmp_path)
        assert default_layers("x", tmp_path) == expected
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="--layers 6,8"):
        default_layers("x", tmp_path)


def test_a_shipped_sae_beside_others_keeps_its_lasting_name() -> None:
    """Its run finds it wherever the package is installed next."""
    (sae,) = choose_saes(DEFAULT_MODEL, (10,), (shipped_folder(DEFAULT_MODEL, 10),)).values()
    (same,) = choose_saes(DEFAULT_MODEL, (10,)).values()
    assert sae.source == same.source == f"shipped/{DEFAULT_MODEL}/layer_10"


# ------------------------------------------------------------------------------------------------ stopped, refused


def test_killed_it_goes_on_from_its_last_round(
    tiny: Callable[[str], Tiny],
    small_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And ends with the weights of a training that nothing stopped."""
    model = tiny("llama")
    (whole,) = complete(model, small_corpus)
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "other"))
    code = f"""
import os, signal
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.training import missing
from energy_lens.ingest.training.saes import _Training
missing.ROUND_TOKENS = {missing.ROUND_TOKENS}
save = _Training._save
def save_and_die(training, n_rounds):
    save(training, n_rounds)
    os.kill(os.getpid(), signal.SIGKILL)
_Training._save = save_and_die
missing.complete_saes({str(model.folder)!r}, (1,), (), lambda: discover([{str(small_corpus)!r}]),
                      how=missing.MissingSaes({QUICK.d_sae}, {QUICK.tokens}, {QUICK.k}), dtype="float32")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    trained_rounds: list[int] = []
    train = _Training._train
    monkeypatch.setattr(
        _Training, "_train", lambda self, x, index, n: (trained_rounds.append(index), train(self, x, index, n))[1]
    )
    capsys.readouterr()
    (again,) = complete(model, small_corpus, dtype="auto")  # in whatever precision it was begun
    assert "from where it was stopped" in capsys.readouterr().err
    assert trained_rounds
    assert 0 not in trained_rounds
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert not list((tmp_path / "other").rglob(".training*"))


def test_interrupted_it_says_what_is_left(
    tiny: Callable[[str], Tiny],
    few_texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Training, "_train", stop)
    words = ["ingest", str(few_texts), "--db", str(tmp_path / "t.duckdb"), "--model", str(tiny("llama").folder)]
    assert main([*words, "--train-saes", "--layers", "1", "--sae-tokens", TOKENS, "--dtype", "float32"]) == 130
    assert "the same command goes on from its last round" in capsys.readouterr().err
    assert not (tmp_path / "t.duckdb").exists()


def test_a_second_process_waits_for_the_first(
    tiny: Callable[[str], Tiny],
    small_corpus: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And finds what that one has trained."""
    from energy_lens.warehouse.locks import lock

    model = tiny("llama")
    (first,) = complete(model, small_corpus)
    place = Path(first.source)
    place.rename(tmp_path / "aside")
    waits, holders, found = threading.Event(), [], []

    def wait(holder: str) -> None:
        holders.append(holder)
        waits.set()

    monkeypatch.setattr(missing, "_wait", wait)
    second = threading.Thread(target=lambda: found.extend(complete(model, small_corpus)))
    with lock(place.parent / ".lock", "elw ingest --train-saes"):
        trains_nothing(monkeypatch)
        second.start()
        assert waits.wait(60)
        (tmp_path / "aside").rename(place)
    second.join(60)
    assert holders == [f"elw ingest --train-saes (process {os.getpid()})"]
    assert [sae.sha256 for sae in found] == [first.sha256]


def test_what_cannot_be_trained_is_one_sentence(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    (tmp_path / "short.txt").write_text("Too short to train on.")
    with pytest.raises(UsageError, match=r"two steps take 1,024: give more text with --train-on"):
        complete(model, small_corpus, text=discover([tmp_path / "short.txt"]))
    with pytest.raises(UsageError, match="SAEs of 10,000 features take at least 10,000"):
        complete(model, small_corpus, how=replace(QUICK, d_sae=10_000))
    with pytest.raises(UsageError, match="layer 9"):
        complete(model, small_corpus, (9,))
    with pytest.raises(UsageError, match="nothing does not exist: give a model folder"):
        complete(replace(model, folder=tmp_path / "nothing"), small_corpus, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no text"):
        complete(model, tmp_path / "empty")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(activation_store.ActivationStore, "_batches", full)
        with pytest.raises(ElwError, match=r"No space left on device\): make room"):
            complete(model, small_corpus)
    with monkeypatch.context() as patch:
        patch.setattr(missing, "lock", full)
        with pytest.raises(ElwError, match=r"No space left on device\): make room, or set ELW_CACHE"):
            complete(model, small_corpus)
    (tmp_path / "file").touch()
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "file"))
    with pytest.raises(ElwError, match="set ELW_CACHE"):
        complete(model, small_corpus)


def test_where_nothing_is_held_out_the_line_says_so(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "one.txt"
    text.write_text("".join(path.read_text() for path in sorted(small_corpus.glob("*/*.txt"))))
    complete(tiny("llama"), small_corpus, text=discover([text]))
    assert "how good they are is not known" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ in Python


@pytest.fixture(scope="session")
def of_gpt2_medium_s_shape(tiny: Callable[[str], Tiny], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 24 blocks, as wide as the tiny one."""
    folder = tmp_path_factory.mktemp("medium")
    shutil.copytree(tiny("gpt2").folder, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(7)
    config = GPT2Config.from_pretrained(tiny("gpt2").folder, n_layer=24)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_the_quick_start_of_the_draft_runs(
    of_gpt2_medium_s_shape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the draft's own configuration; other texts find the same SAEs."""
    config = EnergyLensConfig(
        model_name=str(of_gpt2_medium_s_shape), sae_dict_size=2048, energy_layers=[8, 10, 12, 16, 20],
        sae_tokens=2_048, warehouse=tmp_path / "quick.duckdb",
    )  # fmt: skip
    texts = {"regex": r"The pattern \d+ matches digits.", "prose": "Once upon a time there was a small model."}
    results = EnergyLensAnalyzer(config).run_comprehensive_analysis(texts)
    assert "SAEs of layer 8, 10, 12, 16, 20 of" in results["summary"]["notes"][0]
    with Warehouse(config.warehouse) as warehouse:
        assert warehouse.sql("SELECT layer, d_sae FROM saes ORDER BY layer").fetchall() == [
            (layer, 2048) for layer in (8, 10, 12, 16, 20)
        ]
    assert EnergyLensAnalyzer(config).generate_research_report(results, tmp_path / "report.md").exists()

    with monkeypatch.context() as patch:
        patch.setattr(missing, "train_saes", lambda *_, **__: pytest.fail("trained again"))
        of_one = replace(config, energy_layers=[8])
        EnergyLensAnalyzer(of_one).run_comprehensive_analysis({"other": "Quite another text, of some more words."})


def test_the_quick_start_trains_nothing_where_that_is_not_wanted(
    of_gpt2_medium_s_shape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EnergyLensConfig(
        model_name=str(of_gpt2_medium_s_shape), train_missing_saes=False, warehouse=tmp_path / "quick.duckdb"
    )
    with pytest.raises(UsageError, match="No SAEs are shipped"):
        EnergyLensAnalyzer(config).run_comprehensive_analysis({"one": "Some words of text."})
    # Found out before a model is looked for: the cache is empty.
    for module in (missing, window):
        monkeypatch.setattr(module, "locate", lambda name: pytest.fail(f"{name} is looked for"))
    wrong = EnergyLensConfig(sae_dict_size=4096, warehouse=tmp_path / "quick.duckdb")
    with pytest.raises(UsageError, match="has 2048 features and sae_dict_size is 4096"):
        EnergyLensAnalyzer(wrong).run_comprehensive_analysis({"one": "Some words of text."})
