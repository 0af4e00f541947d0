"""`elw intervene --dose`: patches at several doses against patches made by hand, and the exponents of what they do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from energy_lens import Warehouse
from energy_lens.analysis.interventions import planning, work
from energy_lens.analysis.interventions.dose_response import FLOOR, MEASURES, Sizes, dose_tables, slopes
from energy_lens.analysis.interventions.edits import Edit, Patches
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.run import intervene
from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.tests.test_interventions import features_of, load

DOSES = (0.25, 0.5, 1.0, 2.0)
OPTIONS = InterventionOptions(layers=(1,), features=("top:6", "random:4"), contexts=24, probes=0, doses=DOSES)
RAW = "SELECT * FROM intervention_doses ORDER BY intervention_id, feature, direction, context_id, dose"
PATCHES = "SELECT feature, direction, context_id, delta_edited, delta_later, kl_edited FROM interventions ORDER BY ALL"


def table(db: Path, query: str, **parameters: Any) -> pl.DataFrame:
    with Warehouse(db) as warehouse:
        return warehouse.sql(query, **parameters).pl()


@pytest.fixture(scope="module")
def dosed(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("dosed") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    intervene(db, OPTIONS)
    return db


# ------------------------------------------------------------------------------------------------ measured


@pytest.mark.parametrize("edit", [Edit("ablate"), Edit("clamp", 4.0, where="all")], ids=lambda edit: edit.kind)
def test_a_dose_is_the_patch_with_its_change_multiplied(tiny: Callable[..., Any], edit: Edit) -> None:
    """A patch whose change is multiplied by hand; and dose 1 is the patch itself, to the last bit."""
    baseline = load(tiny("llama"), n_probes=0)
    parts = [baseline.patches(edit, feature) for feature in features_of(baseline, 3)]
    patches = Patches.joined(parts)
    for dose in (0.125, 3.0):
        by_hand = Patches(patches.context, patches.direction, dose * patches.change, patches.edited)
        expected, measured = baseline.measure(by_hand), baseline.measure_dose(patches, dose)
        torch.testing.assert_close(measured.delta, expected.delta, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(measured.divergence, expected.divergence, atol=1e-6, rtol=1e-3)
        assert torch.equal(measured.looked_at, expected.looked_at)
    assert torch.equal(baseline.measure_dose(patches, 1.0).delta, baseline.measure(patches).delta)


def test_rows_are_those_of_the_patches_at_every_dose(dosed: Path) -> None:
    rows = table(dosed, RAW)
    patches = table(dosed, PATCHES)
    keys = ["feature", "direction", "context_id"]
    for dose in (0.25, 0.5, 2.0):
        assert_frame_equal(rows.filter(dose=dose).select(keys), patches.select(keys))
    assert set(rows["dose"]) == {0.0, 0.25, 0.5, 2.0}
    own = patches.filter(direction=0).select(keys)
    assert_frame_equal(rows.filter(dose=0.0).select(keys), own)
    (doses,) = table(dosed, "SELECT doses FROM intervention_settings")["doses"].to_list()
    assert doses == [0.25, 0.5, 2.0]


def test_rounding_is_small_and_there(dosed: Path) -> None:
    """Patches without an edit move the loss by some units in the last place; a millionth of it is far above."""
    sizes = table(dosed, "SELECT dose, avg(delta_total_size) AS size FROM dose_effects GROUP BY dose ORDER BY dose")
    size = dict(sizes.iter_rows())
    assert 0 < size[0.0] < 1e-4
    assert size[0.0] < size[0.25] < size[0.5] < size[1.0] < size[2.0]


def test_doses_change_nothing_else(dosed: Path, tiny_warehouse: Path, tmp_path: Path) -> None:
    """The same patches without doses; and their identity is the one that interventions of before have."""
    db = tmp_path / "plain.duckdb"
    shutil.copy(tiny_warehouse, db)
    plain = InterventionOptions(layers=(1,), features=("top:6", "random:4"), contexts=24, probes=0)
    intervene(db, plain)
    assert_frame_equal(table(db, PATCHES), table(dosed, PATCHES))
    assert table(db, "SELECT doses FROM intervention_settings")["doses"].to_list() == [None]
    for name in ("intervention_doses", "dose_statistics", "dose_summaries"):
        assert table(db, f"SELECT * FROM {name}").is_empty()
    assert intervene(db, OPTIONS)[0].intervention_id == 2


def test_the_identity_of_an_intervention_without_doses_is_what_it_was() -> None:
    """Spelled out, so that interventions of older warehouses are found again."""
    options = InterventionOptions(layers=(1,), features=("top:3",))
    identity = planning._settings_hash(options, ["top:3"], 1)
    assert identity == "065995795d219d3c7a0f9092f028a96d339bf8abf780e2507927e56d6c259bac"
    doses = [(0.5, 2.0), (2.0, 1.0, 0.5), (0.5, 2.0, 3.0)]
    first, same, other = (
        planning._settings_hash(InterventionOptions(layers=(1,), features=("top:3",), doses=each), ["top:3"], 1)
        for each in doses
    )
    assert first == same
    assert len({identity, first, other}) == 3


def test_an_interrupted_intervention_goes_on_to_the_same_doses(
    dosed: Path, tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "interrupted.duckdb"
    shutil.copy(tiny_warehouse, db)
    measure_batch, calls = work.measure_batch, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure_batch(*arguments)

    monkeypatch.setattr(work, "measure_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        intervene(db, OPTIONS)
    begun = table(db, "SELECT count(*) AS n FROM intervention_doses")["n"].item()
    assert 0 < begun < len(table(dosed, RAW))
    monkeypatch.undo()
    intervene(db, OPTIONS)
    for query in (RAW, "SELECT * FROM dose_statistics ORDER BY ALL", "SELECT * FROM dose_summaries ORDER BY ALL"):
        assert_frame_equal(table(db, query), table(dosed, query))


def test_kl_is_quadratic_in_a_small_dose(tiny: Callable[..., Any]) -> None:
    """Its first order is 0 whatever the direction: in float64 the exponent is 2 to three digits, and that of |ΔE| is 1.

    A positive control of the passes and of the exponent both.
    """
    baseline = load(tiny("llama"), torch.float64, n_probes=0)
    generator = torch.Generator().manual_seed(0)
    doses = np.array([2.0**-k for k in (10, 9, 8, 7)])
    for feature in features_of(baseline, 2):
        row = torch.randn(baseline.sae.d_model, generator=generator, dtype=torch.float64)
        for direction in (None, row / row.norm() * baseline.sae.W_dec[feature].norm()):
            patches = baseline.patches(Edit("ablate"), feature, direction)
            outcomes = [baseline.measure_dose(patches, dose).sums(patches) for dose in doses]
            kl = np.array([(each["kl_edited"] + each["kl_later"]).sum() for each in outcomes])
            delta = np.array([np.abs(each["delta_edited"] + each["delta_later"]).sum() for each in outcomes])
            everything = np.ones(len(doses), dtype=bool)
            assert slopes(doses, kl, everything) == pytest.approx(2, abs=0.01)
            assert slopes(doses, delta, everything) == pytest.approx(1, abs=0.05)
