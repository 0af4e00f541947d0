"""Attractor shift and critical dose: against passes of the whole model with the same edit, read from scratch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from energy_lens import Warehouse
from energy_lens.analysis.attractors.doses import DoseOptions, critical_doses
from energy_lens.analysis.attractors.landscape import Landscape, basin_shift
from energy_lens.analysis.attractors.network import Settled
from energy_lens.analysis.attractors.run import AttractorOptions, find_attractors
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions.edits import Edit
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.run import intervene
from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import residual_stream

LENGTH = 32


@pytest.fixture(scope="module")
def db(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shift") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, path)
    find_attractors(path, AttractorOptions(tokens=400, target=3.0))
    return path


def table(db: Path, query: str, **parameters: Any) -> pl.DataFrame:
    with Warehouse(db) as warehouse:
        return warehouse.sql(query, **parameters).pl()


def later_residuals(model: LanguageModel, tokens: Tensor, added: Tensor) -> Tensor:
    """x after block 2 [position, d_model] of the whole model, with `added` on top of block 1's output."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    handle = model.blocks[1].register_forward_hook(hook)
    try:
        with torch.no_grad(), residual_stream(model, [2]) as residuals:
            model.module(input_ids=tokens[None], use_cache=False)
    finally:
        handle.remove()
    return residuals[2][0]


def test_shifts_are_those_of_the_edited_model(db: Path) -> None:
    options = InterventionOptions(
        Edit("scale", 4.0), (1,), ("top:3",), contexts=12, probes=0, directions=1, controls=("isotropic",), shift=1_000
    )  # fmt: skip
    (own,) = intervene(db, options)
    rows = table(db, "SELECT * FROM attractor_shifts WHERE intervention_id = $id", id=own.intervention_id)
    assert set(rows["direction"]) == {0, 1}
    assert rows["n_changed"].sum() > 0
    current = CurrentRun(db)
    model, sae, landscape = current.load_model(), current.sae(1), Landscape.load(current, 2)
    for row in rows.filter(pl.col("direction") == 0).iter_rows(named=True):
        ((_, ids),) = current.contexts([row["context_id"]])
        active = table(
            db,
            "SELECT token_id, activation FROM activations WHERE layer = 1 AND feature = $f AND token_id // 32 = $c",
            f=row["feature"], c=row["context_id"],
        )  # fmt: skip
        tokens = torch.tensor(ids, dtype=torch.int64)
        added = torch.zeros(len(ids), sae.d_model)
        positions = (active["token_id"] % LENGTH).to_numpy().copy()
        added[positions] = 3 * torch.tensor(active["activation"].to_list())[:, None] * sae.W_dec[row["feature"]]
        before = landscape.settle(later_residuals(model, tokens, torch.zeros_like(added)))
        after = landscape.settle(later_residuals(model, tokens, added))
        shift = basin_shift(landscape, before, after)
        included = table(
            db, "SELECT token_id FROM token_layers WHERE layer = 1 AND included AND token_id // 32 = $c",
            c=row["context_id"],
        )  # fmt: skip
        others = np.setdiff1d((included["token_id"] % LENGTH).to_numpy(), positions)
        where = positions if row["place"] == "edited" else others[others > positions.min()]
        assert row["n_tokens"] == len(where)
        assert row["n_settled"] == shift.settled[where].sum()
        assert row["n_changed"] == pytest.approx(shift.changed[where].sum(), abs=1)  # one may lie on an edge
        settled = shift.settled[where]
        assert row["sum_distance"] == pytest.approx(shift.distance[where][settled].sum(), abs=0.02)
        assert row["sum_hopfield"] == pytest.approx(shift.hopfield[where][settled].sum(), abs=0.02)
    effects = table(db, "SELECT * FROM attractor_shift_effects")
    assert effects["p_changed"].is_between(0, 1).all()
    assert set(effects["place"]) == {"edited", "later"}


def test_an_edit_that_changes_nothing_shifts_nothing(db: Path) -> None:
    options = InterventionOptions(Edit("scale", 1.0), (1,), ("top:2",), contexts=6, probes=0, directions=0, shift=4)
    (own,) = intervene(db, options)
    rows = table(db, "SELECT * FROM attractor_shifts WHERE intervention_id = $id", id=own.intervention_id)
    assert rows["n_changed"].sum() == 0
    assert rows["sum_distance"].abs().max() < 1e-4
    later = rows.filter(pl.col("place") == "later")
    assert later["n_tokens"].max() == 4  # a sample of the later tokens


def test_basins_are_compared_by_attractor_or_by_cosine(db: Path) -> None:
    landscape = Landscape.load(CurrentRun(db), 2)
    known = landscape.attractors.vectors[:2]
    far = -landscape.attractors.vectors.mean(0, keepdim=True)
    far = far / far.norm()
    every = torch.ones(4, dtype=torch.bool)
    before = Settled(torch.cat([known[:1], known[:1], far, far]), every, every, every)
    after = Settled(torch.cat([known[:1], known[1:], far, known[:1]]), every, every, every)
    shift = basin_shift(landscape, before, after)
    assert shift.changed.tolist() == [False, True, False, True]
    assert not shift.new.any()
    assert basin_shift(landscape, after, before).new.tolist() == [False, False, False, True]


def test_a_critical_dose_is_where_the_basin_changes(db: Path) -> None:
    feature = table(
        db, "SELECT feature FROM activations WHERE layer = 1 GROUP BY ALL ORDER BY count(*) DESC, 1 LIMIT 1"
    )
    number = feature["feature"].item()
    assert critical_doses(db, DoseOptions(1, number, tokens=24)) == 2
    rows = table(db, "SELECT * FROM critical_doses ORDER BY token_id")
    assert len(rows) == 24
    assert rows["scale_up"].count() > 0
    current = CurrentRun(db)
    model, sae, landscape = current.load_model(), current.sae(1), Landscape.load(current, 2)

    def basin(token: int, activation: float, factor: float) -> Settled:
        ((_, ids),) = current.contexts([token // LENGTH])
        added = torch.zeros(len(ids), sae.d_model)
        added[token % LENGTH] = (factor - 1) * activation * sae.W_dec[number]
        x = later_residuals(model, torch.tensor(ids, dtype=torch.int64), added)
        return landscape.settle(x[token % LENGTH][None])

    checked = 0
    for row in rows.iter_rows(named=True):
        before = basin(row["token_id"], row["activation"], 1.0)
        for name, inwards in (("scale_down", 0.01), ("scale_up", -0.05)):
            if row[name] is None:
                continue
            checked += 1
            assert (row[name] < 1) == (name == "scale_down")
            at = basin(row["token_id"], row["activation"], row[name])
            inside = basin(row["token_id"], row["activation"], row[name] + inwards)
            assert basin_shift(landscape, before, at).changed.all()
            if (row[name] + inwards - 1) * (row[name] - 1) > 0:
                assert not basin_shift(landscape, before, inside).changed.any()
    assert checked > 5


def test_the_command_lists_doses(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attractors", "dose", "1:3", "--db", str(db), "--tokens", "4", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert len(rows) == 4
    assert {row["later_layer"] for row in rows} == {2}
    assert "spelled" not in err
    assert main(["attractors", "dose", "1:3", "--db", str(db), "--tokens", "4", "--rows", "2"]) == 0
    assert capsys.readouterr().out.count("\n") == 6  # two rows in a frame with a head
    assert main(["attractors", "dose", "three", "--db", str(db)]) == 2
    assert "LAYER:FEATURE is 'three'; say layer and feature" in capsys.readouterr().err


def test_the_older_spelling_of_dose_does_the_same(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--db", str(db), "--tokens", "5", "--seed", "2", "--format", "json"]
    assert main(["attractors", "dose", "1:3", *shared]) == 0
    newer = capsys.readouterr()
    assert main(["attractors", "--patch", "1:3", *shared]) == 0
    older = capsys.readouterr()
    assert older.out == newer.out
    notes = [line for line in older.err.splitlines() if "elw attractors dose 1:3" in line]
    assert len(notes) == 1
    assert [line for line in older.err.splitlines() if line not in notes] == newer.err.splitlines()
    assert main(["attractors", "--db", str(db), "--patch", "three"]) == 2
    assert "--patch is 'three'" in capsys.readouterr().err


def test_as_many_tokens_are_dosed_as_were_asked_for(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frequent = """
        SELECT feature, count(*) AS n FROM activations WHERE layer = 1
        GROUP BY ALL HAVING n > 40 ORDER BY n, feature LIMIT 1
    """
    ((feature, n_active),) = table(db, frequent).rows()
    newer, older = ["dose", f"1:{feature}"], ["--patch", f"1:{feature}"]
    for words, asked, expected in (
        (newer, [], 32), (older, [], 32), (older, ["--tokens", "40"], 40), (newer, ["--tokens", "100000"], n_active),
    ):  # fmt: skip
        assert main(["attractors", *words, "--db", str(db), *asked, "--format", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == expected
    for words in (newer, older):
        for tokens in ("0", "-5"):
            assert main(["attractors", *words, "--db", str(db), "--tokens", tokens]) == 2
            assert f"--tokens is {tokens}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tokens", "9", "dose", "1:3"], "--tokens has no meaning before dose"),
        (["dose", "1:3", "--seed", "-1"], "--seed is -1"),
        (["dose"], "LAYER:FEATURE"),
        (["doses", "1:3"], "No such command 'doses'"),
    ],
)
def test_options_of_the_other_command_are_refused(
    db: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELW_WAREHOUSE", str(db))
    assert main(["attractors", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_the_older_spelling_of_a_dose_says_what_it_leaves_aside(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--db", str(db), "--tokens", "1", "--layer", "1", "--perplexity", "3", "--format", "json"]
    assert main(["attractors", "--patch", "1:3", *words]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1
    assert "is now spelled elw attractors dose 1:3" in err
    assert "--layer, --perplexity are left aside: dose has no such option." in err


@pytest.mark.parametrize(
    ("layer", "feature", "says"), [(2, 3, "last hooked"), (1, 64, "0 to 63"), (7, 1, "no layer 7")]
)
def test_doses_that_cannot_be_are_refused(db: Path, layer: int, feature: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        critical_doses(db, DoseOptions(layer, feature))


def test_shifts_need_attractors(tiny_warehouse: Path, tmp_path: Path) -> None:
    db = tmp_path / "none.duckdb"
    shutil.copy(tiny_warehouse, db)
    with pytest.raises(UsageError, match="elw attractors first"):
        intervene(db, InterventionOptions(layers=(1,), features=("top:1",), shift=2))
    with pytest.raises(UsageError, match="elw attractors first"):
        critical_doses(db, DoseOptions(1, 3))


def test_the_older_name_of_the_network_energy_stays(db: Path) -> None:
    found = table(db, "SELECT delta_network_energy, delta_hopfield FROM attractor_shift_effects")
    assert len(found)
    assert found["delta_network_energy"].equals(found["delta_hopfield"])
