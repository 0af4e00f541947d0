"""--dtype: the word that was asked for, the faster one, or float32 where a model knows nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_lens import Warehouse
from energy_lens.cli import main
from energy_lens.errors import ElwError
from energy_lens.ingest.model import precision
from energy_lens.ingest.model.loading import DTYPES
from energy_lens.ingest.model.precision import load_as_begun, load_in, name_of
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.tests.conftest import TINY_WIDTH, _tokenizer

MISMATCH = "cannot run in bfloat16 (RuntimeError"


@pytest.fixture(scope="module")
def only_float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Mamba-shaped model, in whose state float32 meets its weights' precision."""
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path_factory.mktemp("mamba") / "model"
    torch.manual_seed(3)
    config = MambaConfig(vocab_size=512, hidden_size=TINY_WIDTH, state_size=4, num_hidden_layers=3)
    MambaForCausalLM(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_precision_that_was_asked_for(asked: str, tiny: Callable[..., Any], capsys: Any) -> None:
    folder = str(tiny().folder)
    capsys.readouterr()
    assert name_of(load_in(folder, asked)) == asked
    assert capsys.readouterr().err == ""


def test_auto_says_what_it_took(tiny: Callable[..., Any], capsys: Any) -> None:
    model = load_in(str(tiny().folder), "auto", 32)
    assert f"Precision: {name_of(model)}, " in capsys.readouterr().err


def test_auto_takes_the_faster_one(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Whichever it is; and it leaves a pass that cannot win any more."""
    for slower in DTYPES.values():
        other = next(dtype for dtype in DTYPES.values() if dtype != slower)
        taken = {slower: 3.0, other: 2.0}
        monkeypatch.setattr(precision, "_seconds", lambda model, *_, taken=taken: taken[model.dtype])
        assert load_in(str(tiny().folder), "auto").dtype == other
        assert "1.5 times" in capsys.readouterr().err
    monkeypatch.undo()
    assert precision._seconds(load_in(str(tiny().folder), "float32"), 32, 2, most=0.0) is None


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_a_model_that_cannot_run_in_it_runs_in_float32_and_says_so(asked: str, only_float32: Path, capsys: Any) -> None:
    assert name_of(load_in(str(only_float32), asked)) == "float32"
    assert MISMATCH in capsys.readouterr().err


def test_a_model_that_cannot_run_at_all_is_refused_as_before(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(LlamaForCausalLM, "forward", broken)
    with pytest.raises(ElwError, match=r"cannot be run as a causal language model .*no such kernel"):
        load_in(str(tiny().folder), "auto")


def test_resumed_work_goes_on_in_its_precision(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny().folder)
    begun = name_of(load_as_begun(tmp_path, folder, "auto"))
    other = next(name for name in DTYPES if name != begun)
    monkeypatch.setattr(precision, "_faster", lambda exact, coarse, *_: exact if other == "float32" else coarse)
    assert name_of(load_as_begun(tmp_path, folder, "auto")) == begun
    assert name_of(load_as_begun(tmp_path / "..", folder, "auto")) == other


def test_every_command_that_runs_a_model_takes_auto(
    only_float32: Path, small_corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    """Ingest (asked for bfloat16, and again), intervene, training and evaluation, on a model of float32 alone."""
    rows = torch.nn.functional.normalize(torch.randn(64, TINY_WIDTH), dim=1)
    sae = SparseAutoencoder(1, 4, rows.T.contiguous(), torch.zeros(64), rows, torch.zeros(TINY_WIDTH))
    save_sae(sae, tmp_path / "sae")
    db = tmp_path / "x.duckdb"
    options = IngestOptions(db=db, model=str(only_float32), saes=(tmp_path / "sae",), context_length=32)
    for dtype in ("bfloat16", "auto", "float32"):
        ingest([small_corpus], IngestOptions(**{**vars(options), "dtype": dtype}))
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT run_id, dtype FROM runs").fetchall() == [(1, "float32")]
    with_model = f"--model {only_float32} --dtype auto"
    commands = [
        f"intervene --db {db} --features top:1 --contexts 8 --directions 0 --dtype auto",
        f"sae evaluate {small_corpus} --sae {tmp_path / 'sae'} --context 32 {with_model}",
        f"sae train {small_corpus} -o {tmp_path / 'trained'} --layers 1 --tokens 512 --features 32 --k 2 "
        f"--batch-size 128 --context 32 {with_model}",
        f"lens train {small_corpus} -o {tmp_path / 'lens.safetensors'} --layers 1 --tokens 4096 {with_model}",
    ]
    for command in commands:
        capsys.readouterr()
        assert main(command.split()) == 0, command
        assert MISMATCH in capsys.readouterr().err, command
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT DISTINCT dtype FROM intervention_settings").fetchall() == [("float32",)]
