"""The Python quick start: results of the texts given, and one sentence for what it cannot take, as the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from energy_lens import EnergyLensAnalyzer, EnergyLensConfig, Warehouse
from energy_lens.analyzer import FIELDS, as_named_here, check_texts
from energy_lens.errors import UsageError
from energy_lens.tests.conftest import TINY_FEATURES, Tiny

TEXT = "Once upon a time there was a model that read a text. " * 12
OTHER = "The derivative of x squared is two x, as every pupil knows. " * 12


def config(model: Tiny, warehouse: str | Path, **changes: Any) -> EnergyLensConfig:
    return EnergyLensConfig(
        model_name=str(model.folder), sae_dict_size=TINY_FEATURES, sae_folders=[model.saes], warehouse=warehouse,
        sae_tokens=2_048, context_length=32, dtype="float32", **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a text"], "texts is of type list"),
        ("a text", "texts is of type str"),
        (7, "texts is of type int"),
        (None, "texts is of type NoneType"),
        ({}, "texts is empty"),
        ({"a": "  \n"}, "All texts are blank"),
        ({"a": 7}, "The text 'a' is of type int"),
        ({"a": b"bytes"}, "The text 'a' is of type bytes"),
        ({"a": None}, "The text 'a' is of type NoneType"),
        ({"a": "x\0y"}, "NUL character"),
        ({"a": "half \ud800 of a pair"}, "half a surrogate pair"),
        ({7: "text"}, "7 cannot name a text: use a string"),
        ({"": "text"}, "plain file name"),
        ({"a\0b": "text"}, "plain file name"),
        ({"a/b": "text"}, "plain file name"),
        ({"..": "text"}, "plain file name"),
        ({".hidden": "text"}, "plain file name"),
        ({"x" * 300: "text"}, "it has 300 bytes of 255"),
        ({"é" * 128: "text"}, "it has 256 bytes of 255"),
        ({"\udfff": "text"}, "half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_one_sentence_before_any_work(texts: Any, said: str, tmp_path: Path) -> None:
    analyzer = EnergyLensAnalyzer(EnergyLensConfig(warehouse=tmp_path / "x.duckdb"))
    with pytest.raises(UsageError, match=re.escape(said)) as raised:
        analyzer.run_comprehensive_analysis(texts)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200
    assert not list(tmp_path.iterdir())


def test_names_that_a_file_can_have_are_taken() -> None:
    check_texts(
        {"x" * 255: "text", "é" * 127: "text", "a b\nc": "text", "all": "text", "emoji 👩‍👩‍👧.txt": "text", "b": " "}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warehouse": 7}, "warehouse is 7"),
        ({"warehouse": None}, "warehouse is None"),
        ({"warehouse": ""}, "warehouse is ''"),
        ({"warehouse": "a\0b"}, "warehouse is 'a\\x00b', which can be no path"),
        ({"warehouse": "\ud800.duckdb"}, "which can be no path"),
        ({"model_name": 7}, "model_name is 7"),
        ({"model_name": ""}, "model_name is ''"),
        ({"model_name": "a\0b"}, "model_name is 'a\\x00b'"),
        ({"sae_dict_size": "2048"}, "sae_dict_size is '2048'; a whole number"),
        ({"sae_dict_size": 2048.5}, "sae_dict_size is 2048.5"),
        ({"sae_dict_size": True}, "sae_dict_size is True"),
        ({"seed": None}, "seed is None"),
        ({"sae_tokens": float("nan")}, "sae_tokens is nan"),
        ({"energy_layers": 15}, "energy_layers is 15; give a list of layers"),
        ({"energy_layers": "15"}, "energy_layers is '15'; give a list"),
        ({"energy_layers": [1.5]}, "energy_layers is 1.5"),
        ({"energy_layers": []}, "energy_layers is empty"),
        ({"sae_folders": "folder"}, "sae_folders is 'folder'; give a list of paths"),
        ({"sae_folders": [7]}, "sae_folders is 7"),
        ({"train_on": "folder"}, "train_on is 'folder'; give a list of paths"),
        ({"energies": "nll"}, "energies is 'nll'; give a list of names"),
        ({"energies": [1]}, "energies is [1]"),
        ({"dtype": 32}, "dtype is 32; a word"),
        ({"train_missing_saes": "no"}, "train_missing_saes is 'no'; True or False"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as raised:
        EnergyLensConfig(**changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9,223,372,036,854,775,808; at most"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10**8}, "batch_size is 100,000,000; at most"),
        ({"probes": -1}, "probes is -1"),
        ({"context_length": 2}, "context_length is 2"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"bos": "perhaps"}, "bos is 'perhaps'"),
        ({"sae_dict_size": 0}, "0 features"),
        ({"sae_tokens": 10}, "sae_tokens"),
        ({"energy_layers": [99]}, "energy_layers"),
        ({"energies": ["nonsense"]}, "nonsense"),
        ({"warehouse": "no/such/folder/x.duckdb"}, "warehouse"),
        ({"model_name": "/no/such/model"}, "/no/such/model does not exist"),
    ],
)
def test_a_setting_out_of_range_is_said_by_its_name_here(
    changes: dict[str, Any], said: str, tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    model = tiny("llama")
    settings = {"model_name": str(model.folder), "sae_folders": [model.saes], "sae_dict_size": TINY_FEATURES, **changes}
    with pytest.raises(Exception, match=re.escape(said)) as raised:
        EnergyLensAnalyzer(EnergyLensConfig(**settings)).run_comprehensive_analysis({"a": TEXT})
    assert hasattr(raised.value, "exit_code"), raised.value
    assert not re.search(r"--[a-z]", str(raised.value)), raised.value
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".duckdb"]


def test_whole_numbers_of_any_library_and_generators_are_taken() -> None:
    layers = EnergyLensConfig(seed=np.int64(3), energy_layers=(layer for layer in np.arange(2))).energy_layers
    assert layers == [0, 1]
    assert EnergyLensConfig(energy_layers=np.array([3, 4])).energy_layers == [3, 4]


@pytest.mark.parametrize("path", [7, "a\0b", "\ud800", object()])
def test_no_path_is_one_sentence_for_a_warehouse_too(path: Any) -> None:
    with pytest.raises(UsageError, match="path of a warehouse"):
        Warehouse(path)


def test_results_are_of_the_texts_given_and_earlier_ones_stay(
    tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other texts, more of them, fewer, and the first again; `~` is the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    analyzer = EnergyLensAnalyzer(config(tiny("llama"), "~/x.duckdb"))
    db = tmp_path / "x.duckdb"
    sets = [{"a": TEXT}, {"b": OTHER}, {"a": TEXT, "b": OTHER}, {"c": TEXT}]
    results = [analyzer.run_comprehensive_analysis(texts) for texts in sets]
    assert db.exists()
    assert not (tmp_path / "~").exists()
    assert [entry["run_id"] for entry in results] == [1, 2, 3, 4]
    with Warehouse(db) as warehouse:
        for entry, texts in zip(results, sets, strict=True):
            rows = warehouse.sql("SELECT path FROM documents WHERE run_id = $run", run=entry["run_id"]).fetchall()
            assert {path for (path,) in rows} == set(texts)
            assert entry["summary"]["documents"] == len(texts)
    assert len({entry["layer_energy"][0]["n_tokens"] for entry in results[:3]}) > 1
    again = analyzer.run_comprehensive_analysis(sets[0])
    assert again["run_id"] == 1
    assert again["summary"]["new_groups"] == 0
    for entry in results:
        stored = analyzer.stored_results(entry["run_id"])
        assert repr(stored) == repr({name: rows for name, rows in entry.items() if name != "summary"})  # NaN or not
    with pytest.raises(UsageError, match="no run 9"):
        analyzer.stored_results(9)
    report = analyzer.generate_research_report(results[1], "~/reports/second.md")
    assert report == tmp_path / "reports" / "second.md"
    assert {path.name for path in report.parent.iterdir()} <= {"second.md", "figures"}
    with Warehouse(db) as warehouse:
        assert warehouse.run("current_run/facts", run=None).fetchone()[0] == 2
    for wrong in ({}, 7, {"warehouse": str(db)}):
        with pytest.raises(UsageError, match="results are not those of"):
            analyzer.generate_research_report(wrong, tmp_path / "report.md")  # type: ignore[arg-type]
    for place in (tmp_path, tmp_path / "x.duckdb" / "below.md", "a\0b"):
        with pytest.raises(UsageError) as raised:
            analyzer.generate_research_report(results[0], place)
        assert "--" not in str(raised.value)
    said = capsys.readouterr().err
    assert not re.search(r"--(new-run|probes|exclude|db)", said), said


def test_hints_name_fields_that_there_are() -> None:
    fields = set(EnergyLensConfig.__dataclass_fields__) | {"path"}
    assert set(FIELDS.values()) <= fields
    sentence = "Name one with --sae, --energies, or train more (elw sae train TEXT --layers 1 --output DIR)."
    said = "Name one with sae_folders, energies, or train more (elw sae train TEXT --layers 1 --output DIR)."
    assert as_named_here(sentence) == said
    assert as_named_here("--sae-tokens is 3; --context is 2.") == "sae_tokens is 3; context_length is 2."
