"""A model is more than its weights: its configuration is part of a run's identity, its window a limit of contexts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from energy_lens import EnergyLensAnalyzer, EnergyLensConfig, Warehouse
from energy_lens.cli import main
from energy_lens.errors import UsageError
from energy_lens.ingest.energies.translators import load_translators
from energy_lens.ingest.model.configuration import configuration_sha256
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.formats import load_sae


@pytest.fixture
def folder(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A copy of the tiny Llama."""
    return Path(shutil.copytree(tiny().folder, tmp_path / "model"))


def edit(path: Path, **entries: Any) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **entries}), encoding="utf-8")


@pytest.fixture
def options(folder: Path, tiny: Callable[..., Any], tmp_path: Path) -> IngestOptions:
    return IngestOptions(
        db=tmp_path / "x.duckdb", model=str(folder), saes=(tiny().saes,), context_length=32, dtype="float32",
        max_tokens=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"rms_norm_eps": 0.5}),
        ("config.json", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("tokenizer_config.json", {"add_prefix_space": True}),
    ],
)
def test_what_changes_numbers_changes_the_hash(file: str, entries: dict[str, Any], folder: Path) -> None:
    before = configuration_sha256(folder)
    edit(folder / file, **entries)
    assert configuration_sha256(folder) != before


def test_what_changes_none_does_not(folder: Path) -> None:
    """Who wrote it, where it lay, in which order its entries stand."""
    before = configuration_sha256(folder)
    edit(
        folder / "config.json", transformers_version="9.9", _name_or_path="elsewhere", dtype="float16", use_cache=False
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7), encoding="utf-8")
    assert configuration_sha256(folder) == before


def test_a_damaged_configuration_is_one_sentence(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"tokenizer_config.json is damaged .*: copy the model again"):
        configuration_sha256(folder)


def test_an_edited_configuration_is_another_run(options: IngestOptions, folder: Path, few_texts: Path) -> None:
    """Not "Nothing to do"; and what belongs to the run says that its model is another now."""
    assert ingest([few_texts], options).run_id == 1
    assert ingest([few_texts], options).new_groups == 0
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert main(["intervene", "--db", str(options.db), "--features", "top:1", "--contexts", "8"]) == 2
    assert ingest([few_texts], options).run_id == 2
    edit(folder / "config.json", rms_norm_eps=1e-6)
    assert ingest([few_texts], options).run_id == 1


def test_a_run_of_an_older_version_goes_on(options: IngestOptions, few_texts: Path) -> None:
    """One whose settings say nothing of the configuration."""
    ingest([few_texts], options)
    with Warehouse(options.db, writable=True) as warehouse:
        settings = json.loads(warehouse.sql("SELECT settings FROM runs").value())
        assert settings.pop("configuration_sha256")
        import hashlib

        text = json.dumps(settings, sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()
        warehouse.sql("UPDATE runs SET settings = $text, identity = $identity", text=text, identity=identity)
    again = ingest([few_texts], replace(options, max_tokens=None))
    assert again.run_id == 1
    assert again.new_groups > 0


def test_paths_hold_from_everywhere(
    tiny: Callable[..., Any], few_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model and SAEs that were named from the folder of the ingest are found from another."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    os.symlink(tiny().folder, "model")
    os.symlink(tiny().saes, "saes")
    db = tmp_path / "x.duckdb"
    command = f"ingest {few_texts} --db {db} --model model --sae saes --context 32 --dtype float32"
    assert main(command.split()) == 0
    assert main(command.replace("--model model", "--model ./model").split()) == 0
    monkeypatch.chdir(there)
    assert main(f"intervene --db {db} --features top:1 --contexts 8 --directions 0".split()) == 0
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_contexts_beyond_the_window_are_refused_before_the_work(
    architecture: str,
    dtype: str,
    tiny: Callable[..., Any],
    small_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By ingest, training, lens and evaluation alike, in every precision; nothing is left behind."""
    model = tiny(architecture)
    common = f"--model {model.folder} --dtype {dtype} --context 300"
    commands = [
        f"ingest {small_corpus} --db {tmp_path / 'x.duckdb'} --sae {model.saes} {common}",
        f"sae evaluate {small_corpus} --sae {model.saes} {common}",
        f"sae train {small_corpus} -o {tmp_path / 'out'} --layers 1 --tokens 2000 --features 32 --k 2 --batch-size 64 "
        f"{common}",
        f"lens train {small_corpus} -o {tmp_path / 'lens.safetensors'} --layers 1 --tokens 4000 {common}",
    ]
    for command in commands:
        capsys.readouterr()
        assert main(command.split()) == 2, command
        assert "reads at most 256 tokens at once: give --context 256 or less" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ a short window


@pytest.fixture
def short(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """The tiny GPT-2 with 64 positions, beyond which it fails."""
    folder = Path(shutil.copytree(tiny("gpt2").folder, tmp_path / "short"))
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:64].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", n_positions=64)
    return folder


SHORTENED = "Contexts are of 64 tokens, not of 128: {} reads no more at once."


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_an_ingest_of_a_model_with_few_positions(
    dtype: str, short: Path, tiny: Callable[..., Any], few_texts: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Contexts are as long as it can read, which is said and stored; the same command is the same run."""
    db = tmp_path / "x.duckdb"
    command = f"ingest {few_texts} --db {db} --model {short} --sae {tiny('gpt2').saes} --dtype {dtype}"
    assert main(command.split()) == 0
    assert SHORTENED.format(short) in capsys.readouterr().err
    assert main(command.split()) == 0
    assert "Nothing to do" in capsys.readouterr().err
    assert main([*command.split(), "--context", "64"]) == 0
    said = capsys.readouterr().err
    assert "Nothing to do" in said
    assert "Contexts are of" not in said, "who asks for 64 gets 64"
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT context_length FROM runs").fetchall() == [(64,)]
        assert warehouse.sql("SELECT max(n_tokens) FROM contexts").value() == 64
        settings = json.loads(warehouse.sql("SELECT settings FROM runs").value())
    assert settings["context_length"] == 64
    assert main(f"intervene --db {db} --features top:1 --contexts 8 --directions 0".split()) == 0
    assert main(f"attractors --db {db} --layer 1".split()) == 0


def test_training_and_evaluation_of_a_model_with_few_positions(
    short: Path, tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saes, own = tiny("gpt2").saes, tmp_path / "own"
    calibrated = tmp_path / "calibrated"
    commands = [
        f"sae evaluate {small_corpus} --model {short} --sae {saes} --max-tokens 400",
        f"sae train {small_corpus} --model {short} -o {own} --layers 1 --tokens 2000 --features 32 --k 2 "
        "--batch-size 64",
        f"lens train {small_corpus} --model {short} -o {tmp_path / 'lens.safetensors'} --layers 1 --tokens 2000",
        f"sae import {saes / 'layer_1'} --model {short} --calibrate {small_corpus} -o {calibrated}",
    ]
    for command in commands:
        assert main(command.split()) == 0, command
        assert SHORTENED.format(short) in capsys.readouterr().err
    assert load_sae(own / "layer_1").metadata["training"]["context_length"] == 64
    assert load_translators(tmp_path / "lens.safetensors").metadata["fit"]["context_length"] == 64


def test_the_quick_start_with_a_model_with_few_positions(
    short: Path, tiny: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EnergyLensConfig(
        str(short), sae_dict_size=64, sae_folders=[tiny("gpt2").saes], warehouse=tmp_path / "x.duckdb"
    )
    EnergyLensAnalyzer(config).run_comprehensive_analysis({"a": "Once upon a time. " * 40})
    assert SHORTENED.format(short) in capsys.readouterr().err


def test_a_model_that_reads_enough_is_asked_for_the_default(options: IngestOptions, few_texts: Path) -> None:
    """And nothing about its length is said: the identity is that of a run with --context 128."""
    first = ingest([few_texts], replace(options, context_length=None))
    again = ingest([few_texts], replace(options, context_length=128))
    assert (first.run_id, again.run_id, again.new_groups) == (1, 1, 0)


def test_what_is_too_short_for_any_context(options: IngestOptions, folder: Path, small_corpus: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=3)
    with pytest.raises(UsageError, match=r"reads at most 3 tokens at once, and contexts have at least 4"):
        ingest([small_corpus], replace(options, context_length=None))
