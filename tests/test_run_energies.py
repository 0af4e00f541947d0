"""Energies from outside the package are full citizens: in the views, in `elw efas test` and in the report."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from energy_lens import Warehouse
from energy_lens.cli import main
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.reports.render import render

MODULE = '''
from energy_lens.ingest.energies import Energy, ForwardPass, Hopfield, LogitLens, Reading


class HalfSquaredNorm(Energy):
    """E_t = ½‖x_t‖²: its gradient is x itself."""

    name, units, version, at_layers = "half_squared_norm", "squared residual units", 1, True

    def read(self, forward: ForwardPass) -> Reading:
        x = {layer: residual.detach().float() for layer, residual in forward.residuals.items()}
        return Reading({layer: residual.square().sum(-1) / 2 for layer, residual in x.items()}, x)


class Memories(Hopfield):
    """The package's control under another name: whatever is said of one must be said of the other."""

    name = "memories"


class Lens(LogitLens):
    """The same of a loss."""

    name = "lens"
'''

#: energy: what makes it
SOURCES = {
    "nll": "nll",
    "hopfield": "hopfield",
    "half_squared_norm": "energies_from_outside:HalfSquaredNorm",
    "memories": "energies_from_outside:Memories",
    "lens": "energies_from_outside:Lens",
    "logit_lens": "logit_lens",
}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a module on the import path."""
    file = tmp_path_factory.mktemp("outside") / "energies_from_outside.py"
    file.write_text(MODULE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        yield file
    sys.modules.pop("energies_from_outside", None)


@pytest.fixture(scope="module")
def db(module: Path, tiny: Callable[..., Any], small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with energies of the package and from outside, without stored gradients; only read it."""
    model = tiny("llama")
    path = tmp_path_factory.mktemp("outside") / "outside.duckdb"
    options = IngestOptions(
        db=path, model=str(model.folder), saes=(model.saes,), energies=tuple(SOURCES.values()), context_length=32,
        dtype="float32",
    )  # fmt: skip
    ingest([small_corpus], options)
    return path


@pytest.fixture
def copied(db: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(db, tmp_path / "copy.duckdb"))


def rows_of(db: Path, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with Warehouse(db) as warehouse:
        return warehouse.sql(query, **parameters).fetchall()


def alike(one: Any, other: Any) -> bool:
    """Equal, floats to nine digits: threads add up in any order."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


# ------------------------------------------------------------------------------------------------ tables and views


def test_a_run_says_of_each_energy_what_its_class_says(db: Path) -> None:
    """Place, units, where it is read, what it is and what makes it."""
    found = rows_of(db, "SELECT * EXCLUDE (run_id) FROM run_energies ORDER BY position")
    activation, residual = "squared activation units", "squared residual units"
    assert found == [
        ("nll", 0, "nats", False, True, False, "1", "nll"),
        ("hopfield", 1, activation, True, False, True, "1", "hopfield"),
        ("half_squared_norm", 2, residual, True, False, False, "1", SOURCES["half_squared_norm"]),
        ("memories", 3, activation, True, False, True, "1", SOURCES["memories"]),
        ("lens", 4, "nats", True, True, False, "1", SOURCES["lens"]),
        ("logit_lens", 5, "nats", True, True, False, "1", "logit_lens"),
    ]


def test_an_older_run_gets_its_energies(db: Path, copied: Path) -> None:
    """What a migration knows: the package's own by name, of others where they are read; twice is as once."""
    with Warehouse(copied, writable=True) as warehouse:
        warehouse.sql("DROP TABLE run_energies")
        warehouse.sql("DELETE FROM schema_migrations WHERE number >= 9")
    for _ in range(2):
        with Warehouse(copied, writable=True) as warehouse:
            migrated = warehouse.sql("SELECT * EXCLUDE (run_id) FROM run_energies ORDER BY position").fetchall()
            warehouse.sql("DELETE FROM schema_migrations WHERE number >= 9")
        stored = rows_of(db, "SELECT * EXCLUDE (run_id) FROM run_energies ORDER BY position")
        for now, before in zip(migrated, stored, strict=True):
            if before[0] in ("nll", "hopfield", "logit_lens"):
                assert now == before
            else:
                assert now == (*before[:4], False, False, before[6], None)


@pytest.mark.parametrize(("outside", "own"), [("memories", "hopfield"), ("lens", "logit_lens")])
def test_efas_says_the_same_of_the_same_energy(db: Path, outside: str, own: str) -> None:
    query = "SELECT * EXCLUDE (energy) FROM efas WHERE energy = $energy ORDER BY layer, feature, gradient, category"
    rows = rows_of(db, query, energy=outside)
    assert len(rows) > 128
    assert alike(rows, rows_of(db, query, energy=own))


def test_top_examples_show_the_gradient_of_every_energy(db: Path) -> None:
    """A column for each energy, with what `activations` holds at that token."""
    densest = "SELECT layer, feature FROM features ORDER BY n_active DESC, layer, feature LIMIT 1"
    ((layer, feature),) = rows_of(db, densest)
    with Warehouse(db) as warehouse:
        result = warehouse.sql("SELECT * FROM top_examples($layer, $feature, 5)", layer=layer, feature=feature)
        columns = result.columns
        examples = [dict(zip(columns, row, strict=True)) for row in result.fetchall()]
    assert len(examples) == 5
    assert columns[:7] == ["activation", "before", "token", "after", "path", "category", "document_position"]
    for energy in SOURCES:
        query = f"SELECT token_id, g_{energy} FROM activations WHERE layer = $layer AND feature = $feature"
        stored = dict(rows_of(db, query, layer=layer, feature=feature))
        for example in examples:
            assert example[f"g_{energy}"] == stored[example["token_id"]] is not None


def test_a_loss_is_held_against_the_uniform_guess(db: Path) -> None:
    """ln V for every energy that is a loss, and nothing for the others; `uncalibrated` follows."""
    guesses = rows_of(db, "SELECT DISTINCT energy, uniform_guess FROM layer_energy ORDER BY energy")
    assert dict(guesses) == {
        energy: pytest.approx(math.log(512)) if energy in ("nll", "lens", "logit_lens") else None for energy in SOURCES
    }
    query = "SELECT layer, category, uncalibrated FROM layer_energy WHERE energy = $energy ORDER BY ALL"
    assert alike(rows_of(db, query, energy="lens"), rows_of(db, query, energy="logit_lens"))
    assert {row[2] for row in rows_of(db, query, energy="half_squared_norm")} == {None}


# ------------------------------------------------------------------------------------------------ efas test


def test_efas_is_tested_with_gradients_taken_anew(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The class is made again by the name that the run stored: figures are those of the package's own."""
    words = ["efas", "test", "--db", str(db), "--energy", "memories,hopfield,half_squared_norm", "--layer", "2"]
    assert main([*words, "--permutations", "49", "--contexts", "60", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_energy = {
        energy: sorted(tuple(row.values())[2:] for row in rows if row["energy"] == energy)
        for energy in ("memories", "hopfield", "half_squared_norm")
    }
    assert len(by_energy["half_squared_norm"]) > 20
    assert alike(by_energy["memories"], by_energy["hopfield"])
    assert by_energy["half_squared_norm"] != by_energy["hopfield"]


def refusal(db: Path, energy: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["efas", "test", "--db", str(db), "--energy", energy, "--permutations", "19"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_an_energy_that_cannot_be_made_again_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its module is gone, its version is another, or an older run does not say where it came from."""
    edits = {
        "UPDATE run_energies SET source = 'no_such_module:Energy' WHERE energy = 'memories'": "is its module on PYTHON",
        "UPDATE run_energies SET source = 'energies_from_outside:HalfSquaredNorm' WHERE energy = 'memories'": (
            "energies_from_outside:HalfSquaredNorm computes memories in another way than run 1 did"
        ),
        "UPDATE run_energies SET source = NULL": "does not say what class made the energy memories",
    }
    for edit, sentence in edits.items():
        with Warehouse(copied, writable=True) as warehouse:
            warehouse.sql(edit)
        assert sentence in refusal(copied, "memories", capsys)


def test_an_energy_of_another_version_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Warehouse(copied, writable=True) as warehouse:
        warehouse.sql("""UPDATE runs SET settings = replace(settings, '"memories": 1', '"memories": 2')""")
    assert "energies_from_outside:Memories computes memories in another way" in refusal(copied, "memories", capsys)


# ------------------------------------------------------------------------------------------------ the report


@pytest.fixture(scope="module")
def report(db: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    render(db, folder)
    return folder


def answers_of(report: Path) -> dict[str, list[dict[str, Any]]]:
    queries = json.loads((report / "raw_results.json").read_text(encoding="utf-8"))["queries"]
    return {
        query["name"]: [dict(zip(query["columns"], row, strict=True)) for row in query["rows"]] for query in queries
    }


@pytest.mark.parametrize(("outside", "own"), [("memories", "hopfield"), ("lens", "logit_lens")])
def test_the_report_says_the_same_of_the_same_energy(report: Path, outside: str, own: str) -> None:
    """Every query that speaks of energies gives both the same rows, as control or as signal, with the same units."""
    n_compared = 0
    for rows in answers_of(report).values():
        if rows and "energy" in rows[0]:
            one, other = (
                [list({**row, "energy": None}.values()) for row in rows if row["energy"] == name]
                for name in (outside, own)
            )
            assert alike(one, other)
            n_compared += bool(one)
    assert n_compared >= 7


def test_controls_are_shown_apart(report: Path) -> None:
    """Both controls have their sentence and their table and enter no headline; figures mark them."""
    text = (report / "research_report.md").read_text(encoding="utf-8")
    for energy in ("hopfield", "memories"):
        assert f"The positive control `{energy}`, aligned by construction," in text
        assert f"The positive control `{energy}`, for comparison:" in text
        assert f"{energy} (positive control)" in (report / "figures" / "efas_by_layer.svg").read_text(encoding="utf-8")
        assert f"with the `{energy}` gradient" not in text
    headlines = text[: text.index("How to read these numbers")]
    for energy in ("nll", "half_squared_norm"):
        assert f"the `{energy}` gradient" in headlines or f"against `{energy}`" in headlines
    assert "`lens` at layer 1," in headlines  # uncalibrated, as the package's own lens of this model is
    assert "half\\_squared\\_norm (squared residual units)" in text
    drawn = (report / "figures" / "attribution_and_density.svg").read_text(encoding="utf-8")
    assert "half_squared_norm" in drawn
    assert f"--energies {','.join(SOURCES.values())} " in text, "the command to do it again names what makes them"
    assert "memories" not in drawn
