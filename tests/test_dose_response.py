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
from energy_lens.analysis.interventions.dose_response import MEASURES, MIN_PATCHES, Sizes, dose_tables, slopes
from energy_lens.analysis.interventions.edits import Edit, Patches
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.run import intervene
from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.tests.test_interventions import features_of, load

DOSES = (0.25, 0.5, 1.0, 2.0)
OPTIONS = InterventionOptions(layers=(1,), features=("top:4", "random:2"), contexts=16, probes=0, doses=DOSES)
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
    """The same patches without doses, and no rows of any."""
    db = tmp_path / "plain.duckdb"
    shutil.copy(tiny_warehouse, db)
    plain = InterventionOptions(layers=(1,), features=("top:4", "random:2"), contexts=16, probes=0)
    intervene(db, plain)
    assert_frame_equal(table(db, PATCHES), table(dosed, PATCHES))
    assert table(db, "SELECT doses FROM intervention_settings")["doses"].to_list() == [None]
    for name in ("intervention_doses", "dose_statistics", "dose_summaries"):
        assert table(db, f"SELECT * FROM {name}").is_empty()


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
    """Its first order is 0 whatever the direction, and that of the loss is not: exponents of 2 and of 1.

    A positive control of the passes and of the exponent both.
    """
    baseline = load(tiny("llama"), torch.float64, n_probes=0)
    generator = torch.Generator().manual_seed(0)
    doses = np.array([2.0**-k for k in (6, 5, 4)])
    for feature in features_of(baseline, 2):
        row = torch.randn(baseline.sae.d_model, generator=generator, dtype=torch.float64)
        for direction in (None, row / row.norm() * baseline.sae.W_dec[feature].norm()):
            patches = baseline.patches(Edit("ablate"), feature, direction)
            outcomes = [baseline.measure_dose(patches, dose).sums(patches) for dose in doses]
            kl = np.array([(each["kl_edited"] + each["kl_later"]).sum() for each in outcomes])
            delta = np.array([np.abs(each["delta_edited"] + each["delta_later"]).sum() for each in outcomes])
            everything = np.ones(len(doses), dtype=bool)
            assert slopes(doses, kl, everything) == pytest.approx(2, abs=0.05)
            assert slopes(doses, delta, everything) == pytest.approx(1, abs=0.15)


# ------------------------------------------------------------------------------------------------ exponents


def power_laws(p: np.ndarray, scale: float = 1.0, n_documents: int = 20) -> Sizes:
    """A patch of each series in each document, whose size is exactly scale·dose^p."""
    doses = np.array([0.125, 0.25, 0.5, 1.0, 2.0])
    sums = np.broadcast_to(scale * doses ** p[:, None, None], (len(p), n_documents, len(doses)))
    return Sizes(doses, sums.copy(), np.ones((len(p), n_documents)), rounding=np.zeros(len(p)))


def test_the_exponent_of_a_power_law_is_its_own() -> None:
    p = np.array([0.5, 1.0, 2.0, 3.3])
    sizes = power_laws(p)
    exponents = sizes.exponents(sizes.counting())
    np.testing.assert_allclose(exponents.whole, p)
    np.testing.assert_allclose(exponents.without, np.repeat(p[:, None], 20, axis=1))
    for own, (value, low, high) in zip(p, exponents.intervals(), strict=True):
        assert (value, low, high) == pytest.approx((own, own, own))


def test_doses_that_rounding_reaches_are_left_out_as_a_whole() -> None:
    """With noise of rounding's size on every point the exponents stay; with all points they would be drawn to 0."""
    generator = np.random.default_rng(0)
    p = np.full(200, 2.0)
    clean = power_laws(p, scale=37.0)
    noise = generator.standard_normal(clean.sums.shape)
    of_noise = np.full(len(p), 0.8)  # the mean of |noise|
    noisy = Sizes(clean.doses, np.abs(clean.sums + noise), clean.n_patches, of_noise)
    counting = noisy.counting()
    assert counting.sum(1).tolist() == [3] * 200  # 37·0.25² is 2.3 and 37·0.5² is 9.3: 8 lies between
    np.testing.assert_allclose(noisy.exponents(counting).whole, 2, atol=0.1)
    every = noisy.exponents(np.ones_like(counting)).whole
    assert every.mean() < 1.9


def test_a_dose_below_one_that_does_not_count_counts_no_more() -> None:
    sizes = power_laws(np.array([1.0]))
    sizes.sums[0, :, 2] = 0
    assert sizes.counting().tolist() == [[False, False, False, True, True]]
    assert np.isnan(sizes.exponents(sizes.counting()).whole).all()


@pytest.mark.parametrize("of_documents", [0.0, 0.4])
def test_intervals_hold_the_truth_as_often_as_they_say(of_documents: float) -> None:
    """Exponents that differ by feature, by document and by patch, on sizes that differ by orders of magnitude."""
    doses, truth, n_features, n_documents = np.array([0.25, 0.5, 1.0, 2.0, 4.0]), 1.5, 20, 24
    generator = np.random.default_rng(3)
    means, singles = [], []
    for _ in range(150):
        shared = of_documents * generator.standard_normal((1, n_documents))
        of_patches = 0.3 * generator.standard_normal((n_features, n_documents))
        has = generator.random((n_features, n_documents)) < 0.8
        scale = np.exp(generator.standard_normal(has.shape)) * has
        for found, of_features in ((means, 0.3), (singles, 0.0)):
            p = truth + of_features * generator.standard_normal((n_features, 1)) + shared + of_patches
            sizes = Sizes(doses, scale[..., None] * doses ** p[..., None], has.astype(float), np.zeros(len(has)))
            exponents = sizes.exponents(sizes.counting())
            found += [exponents.mean()[2]] if of_features else exponents.intervals()[:3]
    for found in (means, singles):
        bounds = np.array([(one.low, one.high) for one in found])
        bounds = bounds[np.isfinite(bounds).all(1)]
        assert len(bounds) > 100
        assert 0.92 <= ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean() <= 0.995


def points(p: dict[str | None, float], floor: float = 0.0) -> pl.DataFrame:
    """What sql/interventions/doses.sql gives, of 8 features on 20 documents; size 3·dose^p by control, and rounding."""
    rows = [
        {
            "feature": feature, "control": control, "direction": i, "context_id": document, "document_id": document,
            "dose": dose, **dict.fromkeys(MEASURES, 3 * dose**power if dose else floor),
        }
        for feature in range(8) for i, (control, power) in enumerate(p.items()) for document in range(20)
        for dose in (0.0, 0.25, 0.5, 1.0, 2.0) if dose or control is None
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"control": pl.String}, infer_schema_length=None)


def test_features_and_controls_are_compared_over_the_same_doses() -> None:
    """Without a floor the difference is that of the exponents; where one side lacks a dose it is of the others."""
    tables = dose_tables(points({None: 2.5, "isotropic": 2.0}))
    for row in tables["dose_summaries"].iter_rows(named=True):
        assert row["p"] == pytest.approx(2.5 if row["control"] is None else 2.0)
        assert (row["n_features"], row["n_documents"]) == (8, 20)
        assert row["difference"] == (None if row["control"] is None else pytest.approx(0.5))
    statistics = tables["dose_statistics"]
    assert set(statistics["n_doses"]) == {4}
    assert set(statistics["above_floor"]) == {1.0}
    # 3·0.25^2.5 is 0.094 and 3·0.25² is 0.19: at ten times 0.015 the smallest dose counts for the control alone.
    tables = dose_tables(points({None: 2.5, "isotropic": 2.0}, floor=0.015))
    by_control = dict(tables["dose_statistics"].group_by("control").agg(pl.col("n_doses").unique()).iter_rows())
    assert by_control == {None: [3], "isotropic": [4]}
    assert tables["dose_summaries"].filter(control="isotropic")["difference"].to_list() == pytest.approx([0.5] * 3)
    assert tables["dose_statistics"].filter(pl.col("control").is_null())["above_floor"].to_list() == [0.75] * 24


def test_features_of_few_patches_enter_no_mean() -> None:
    """A feature of four patches, with another exponent: it has its own row, and no part in the mean."""
    rows = points({None: 2.0, "isotropic": 1.0})
    few = pl.col("feature") == 3
    fewer = rows.filter(~few | (pl.col("document_id") < 4)).with_columns(
        **{name: pl.when(few & (pl.col("dose") > 0)).then(pl.col("dose") ** 5).otherwise(name) for name in MEASURES}
    )
    tables = dose_tables(fewer)
    assert tables["dose_statistics"].filter(feature=3)["p"].to_list() == pytest.approx([5] * 6)
    for row in tables["dose_summaries"].iter_rows(named=True):
        assert (row["n_features"], row["p"]) == (7, pytest.approx(2.0 if row["control"] is None else 1.0))
        assert row["n_pairs"] == (None if row["control"] is None else 7)


def test_the_rounding_of_a_feature_counts_for_it_alone() -> None:
    """One feature at which rounding does more than in the mean keeps fewer doses; of an unknown one none counts."""
    rows = points({None: 2.0, "isotropic": 2.0}, floor=1e-6)
    own = pl.when(pl.col("feature") == 2, pl.col("dose") == 0).then(0.04)  # 3·0.25² is 0.19, 3·0.5² is 0.75
    tables = dose_tables(rows.with_columns(**{name: own.otherwise(name) for name in MEASURES}))
    n_doses = tables["dose_statistics"].group_by("feature").agg(pl.col("n_doses").unique()).sort("feature")["n_doses"]
    assert n_doses.to_list() == [[4]] * 2 + [[3]] + [[4]] * 5
    unknown = dose_tables(rows.filter(pl.col("dose") > 0))["dose_statistics"]
    assert unknown["p"].null_count() == len(unknown)


def test_without_a_patch_there_are_no_exponents() -> None:
    assert dose_tables(points({None: 1.0}).clear()) == {}


# ------------------------------------------------------------------------------------------------ shown


def test_the_views_are_the_slopes_of_what_was_measured(dosed: Path) -> None:
    """numpy's fit of logarithms over the doses that count, for every series and measure."""
    effects = table(dosed, "SELECT *, coalesce(control, 'feature') AS along FROM dose_effects ORDER BY dose")
    shown = table(dosed, "SELECT *, coalesce(control, 'feature') AS along FROM dose_response")
    columns = {"delta_edited": "delta_edited_size", "delta_total": "delta_total_size", "kl": "kl"}
    assert set(shown["n_doses_measured"]) == {4}
    n_checked = 0
    for row in shown.iter_rows(named=True):
        own = effects.filter(pl.col("dose") > 0, feature=row["feature"], along=row["along"])
        assert set(own["n_patches"]) == {row["n_patches"]}
        if row["p"] is not None:
            own = own.filter(pl.col("dose") >= row["smallest_dose"])
            assert len(own) == row["n_doses"]
            slope = np.polyfit(own["dose"].log(), own[columns[row["measure"]]].log(), 1)[0]
            assert row["p"] == pytest.approx(slope, rel=1e-4, abs=1e-4)
            n_checked += 1
    assert n_checked > 40
    summary = table(dosed, "SELECT * FROM dose_summary")
    assert len(summary) == 3 * 4
    for row in summary.iter_rows(named=True):
        own = shown.filter(measure=row["measure"], along=row["control"] or "feature").drop_nulls("p")
        own = own.filter(pl.col("n_patches") >= MIN_PATCHES)
        assert (row["n_features"], row["p"]) == (len(own), pytest.approx(own["p"].mean()))
    kl = summary.filter(measure="kl")["p"]
    assert kl.min() > 1.5  # type: ignore[operator]


def test_the_command_says_the_powers(dosed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--layer", "1", "--features", "top:4,random:2", "--contexts", "16", "--probes", "0"]
    assert main(["intervene", "--db", str(dosed), *words, "--dose", "2,0.5,0.25", "--format", "json"]) == 0
    said = capsys.readouterr().err
    assert "powers of the dose by which KL grows" in said
    assert "along isotropic random directions" in said


@pytest.mark.parametrize(
    ("doses", "says"),
    [
        ((0.5,), "1 beside 1"), ((1.0, 0.5, 0.5), "1 beside 1"), ((0.0, 0.5, 2.0), "--dose has 0"),
        ((-1.0, 0.5, 2.0), "--dose has -1"), ((float("nan"), 0.5, 2.0), "--dose has nan"),
        (tuple(np.linspace(2, 3, 33)), "33 beside 1"),
    ],
)  # fmt: skip
def test_doses_that_cannot_be_get_a_sentence(doses: tuple[float, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        InterventionOptions(doses=doses)
