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

from energy_lens import Warehouse
from energy_lens.cli import main
from energy_lens.errors import UsageError
from energy_lens.ingest.model.configuration import configuration_sha256
from energy_lens.ingest.pipeline import IngestOptions, ingest


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


def test_an_edited_configuration_is_another_run(options: IngestOptions, folder: Path, small_corpus: Path) -> None:
    """Not "Nothing to do"; and what belongs to the run says that its model is another now."""
    assert ingest([small_corpus], options).run_id == 1
    assert ingest([small_corpus], options).new_groups == 0
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert main(["intervene", "--db", str(options.db), "--features", "top:1", "--contexts", "8"]) == 2
    assert ingest([small_corpus], options).run_id == 2
    edit(folder / "config.json", rms_norm_eps=1e-6)
    assert ingest([small_corpus], options).run_id == 1


def test_a_run_of_an_older_version_goes_on(options: IngestOptions, small_corpus: Path) -> None:
    """One whose settings say nothing of the configuration."""
    ingest([small_corpus], options)
    with Warehouse(options.db, writable=True) as warehouse:
        settings = json.loads(warehouse.sql("SELECT settings FROM runs").value())
        assert settings.pop("configuration_sha256")
        import hashlib

        text = json.dumps(settings, sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()
        warehouse.sql("UPDATE runs SET settings = $text, identity = $identity", text=text, identity=identity)
    assert ingest([small_corpus], replace(options, max_tokens=2_000)).run_id == 1


def test_paths_hold_from_everywhere(
    tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model and SAEs that were named from the folder of the ingest are found from another."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    os.symlink(tiny().folder, "model")
    os.symlink(tiny().saes, "saes")
    db = tmp_path / "x.duckdb"
    command = f"ingest {small_corpus} --db {db} --model model --sae saes --context 32 --dtype float32 --max-tokens 2000"
    assert main(command.split()) == 0
    assert main(command.replace("--model model", "--model ./model").split()) == 0
    monkeypatch.chdir(there)
    assert main(f"intervene --db {db} --features top:1 --contexts 8 --directions 0".split()) == 0
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_contexts_beyond_the_window_are_refused_before_the_work(
    architecture: str, tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By ingest, training, lens and evaluation alike; nothing is left behind."""
    model = tiny(architecture)
    common = f"--model {model.folder} --dtype float32 --context 300"
    commands = [
        f"ingest {small_corpus} --db {tmp_path / 'x.duckdb'} --sae {model.saes} {common}",
        f"sae evaluate {small_corpus} --sae {model.saes} {common}",
        f"sae train {small_corpus} -o {tmp_path / 'out'} --layers 1 --tokens 2000 --features 32 --k 2 --batch-size 64 "
        f"{common}",
    ]
    for command in commands:
        capsys.readouterr()
        assert main(command.split()) == 2, command
        assert "reads at most 256 tokens at once: give --context 256 or less" in capsys.readouterr().err
