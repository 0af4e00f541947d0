"""A name that there is none of is answered with the nearest that there is, wherever there is a closed list."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_lens.cli.main import main
from energy_lens.errors import UsageError, did_you_mean, nearest
from energy_lens.ingest.energies.registry import ENERGIES, make_energies
from energy_lens.warehouse.database import Warehouse

KNOWN = ("nll", "logit_lens", "tuned_lens", "attention", "native", "hopfield")


# ------------------------------------------------------------------------------------------------ the one place


@given(st.sampled_from(KNOWN), st.data())
def test_a_name_with_one_character_wrong_is_found(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + "§" + name[place + 1 :]
    assert name in nearest(wrong, KNOWN)


@given(st.text(max_size=200))
def test_whatever_is_typed_only_known_names_are_said(typed: str) -> None:
    close = nearest(typed, KNOWN)
    assert set(close) <= set(KNOWN)
    assert len(close) <= 2
    assert (did_you_mean(typed, KNOWN) == "") == (close == [])


def test_case_and_beginnings_are_seen_through() -> None:
    assert nearest("NLL", KNOWN) == ["nll"]
    assert nearest("hop", KNOWN) == ["hopfield"]
    assert nearest("zzz", KNOWN) == []
    assert nearest("x" * 1_000_000, KNOWN) == []


@given(st.integers(-100, 100), st.lists(st.integers(-100, 100), min_size=1))
def test_of_numbers_the_nearest_is_named(typed: int, known: list[int]) -> None:
    (found,) = nearest(typed, known)
    assert abs(int(found) - typed) == min(abs(number - typed) for number in known)


# ------------------------------------------------------------------------------------------------ where it is said


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nearest") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sq"], "sql"),
        (["efas", "tst"], "test"),
        (["sql", "--frmat", "csv", "SELECT 1"], "--format"),
        (["sql", "--format", "jsom", "SELECT 1"], "did you mean json"),
        (["report", "--format", "htm"], "did you mean html?"),
        (["describe", "efass"], "efas"),
        (["sql", "SELECT * FROM efass"], '"efas"'),
        (["sql", "SELECT scor FROM efas"], '"score"'),
        (["sql", "SELECT e.scor FROM efas AS e"], "Did you mean score"),
        (["sql", "SELCT 1"], "Did you mean SELECT?"),
        (["sql", "FROM top_exampl(1, 2, 3)"], "top_examples"),
        (["sql", "@top_nl"], "@top_nll"),
        (["sql", "@top_nll", "-p", "lyer=1"], "did you mean layer?"),
        (["doctor", "--checks", "quik"], "did you mean quick?"),
        (["model", "check", "SmolLM2-135"], "smollm2-135m"),
    ],
)
def test_the_nearest_is_named(
    words: list[str], named: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELW_WAREHOUSE", str(empty))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(words) != 0
    sentence = capsys.readouterr().err
    assert named in sentence
    assert len(sentence.strip().splitlines()) == 1


def test_a_typo_in_a_transaction_does_not_hide_the_error(empty: Path, tmp_path: Path) -> None:
    """The nearest column cannot be asked for where the error has ended the transaction."""
    path = Path(shutil.copy(empty, tmp_path / "copy.duckdb"))
    assert main(["sql", "--db", str(path), "--write", "BEGIN; SELECT e.scor FROM efas AS e"]) == 2


def test_an_energy_is_named() -> None:
    with pytest.raises(UsageError, match=r"no energy 'hopfeld' \(did you mean hopfield\?\): choose among"):
        make_energies(["hopfeld"])
    assert tuple(ENERGIES) == KNOWN
