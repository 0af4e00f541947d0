"""`elw intervene`: what it stores, that it goes on where it stood, and what it says of things that go wrong."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy import stats

from energy_lens import Warehouse
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions import planning, validation, work
from energy_lens.analysis.interventions.controls import CONTROLS, ControlDirections
from energy_lens.analysis.interventions.edits import Edit
from energy_lens.analysis.interventions.effects import effect_sentences
from energy_lens.analysis.interventions.example import try_on_text
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.predictors import PREDICTORS
from energy_lens.analysis.interventions.run import intervene
from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.sql import statement
from energy_lens.warehouse.database import ingest_lock
from energy_lens.warehouse.features import FeatureName

OPTIONS = InterventionOptions(layers=(1,), features=("top:8", "random:8", "1:3"), contexts=40, probes=2)


@pytest.fixture(scope="module")
def intervened(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("intervened") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    assert intervene(db, OPTIONS)[0].n_new_patches > 0
    return db


def table(db: Path, query: str, **parameters: Any) -> pl.DataFrame:
    with Warehouse(db) as warehouse:
        return warehouse.sql(query, **parameters).pl()


def stored(db: Path) -> dict[str, pl.DataFrame]:
    """All that an intervention writes, without the times."""
    orders = {
        "intervention_settings": "intervention_id", "intervention_features": "feature",
        "intervention_contexts": "context_id", "interventions": "feature, direction, context_id",
        "effect_statistics": "feature, direction, category",
        "intervention_readings": "feature, context_id", "predictor_statistics": "validation, target, predictor",
        "intervention_doses": "feature, direction, context_id, dose", "dose_statistics": "feature, control, measure",
        "dose_summaries": "control, measure",
    }  # fmt: skip
    found = {name: table(db, f"SELECT * FROM {name} ORDER BY {order}") for name, order in orders.items()}
    return {name: frame.drop([c for c in frame.columns if c.endswith("_at")]) for name, frame in found.items()}


def test_edited_tokens_are_the_active_ones_of_the_run(intervened: Path) -> None:
    """The run was float32 too, so that activations stored by ingest are those of the intervention."""
    query = """
        SELECT i.n_edited, i.sum_change, i.sum_change2, count(*) AS n, sum(a.activation) AS a, sum(a.activation^2) AS a2
        FROM interventions AS i
        JOIN activations AS a ON a.run_id = i.run_id AND a.layer = 1 AND a.feature = i.feature
            AND a.token_id // 32 = i.context_id
        WHERE direction = 0
        GROUP BY ALL
    """
    found = table(intervened, query)
    assert (found["n_edited"] == found["n"]).all()
    np.testing.assert_allclose(found["sum_change"], -found["a"], rtol=1e-5)
    np.testing.assert_allclose(found["sum_change2"], found["a2"], rtol=1e-5)
    missing = """
        SELECT count(*) AS n FROM activations AS a
        JOIN intervention_contexts AS c ON c.context_id = a.token_id // 32
        JOIN intervention_features AS f USING (feature)
        WHERE a.layer = 1 AND NOT EXISTS (
            SELECT 1 FROM interventions AS i WHERE i.feature = a.feature AND i.context_id = c.context_id
        )
    """
    assert table(intervened, missing)["n"].item() == 0


def test_effects_are_sums_with_controls_of_the_same_edits(intervened: Path) -> None:
    effects = table(intervened, "SELECT * FROM intervention_effects ORDER BY feature, direction, category")
    patches = table(intervened, "SELECT * FROM interventions")
    assert set(effects["category"]) == {"all", "code", "natural"}
    whole = effects.filter(pl.col("category") == "all")
    summed = (
        patches.group_by("feature", "direction")
        .agg(pl.sum("delta_edited"), pl.sum("delta_later"), pl.sum("n_edited"), pl.sum("kl_edited"), pl.sum("kl_later"))
        .sort("feature", "direction")
    )
    np.testing.assert_allclose(whole["delta"], summed["delta_edited"] + summed["delta_later"])
    np.testing.assert_allclose(whole["delta_per_token"] * summed["n_edited"], whole["delta"])
    np.testing.assert_allclose(whole["kl"], summed["kl_edited"] + summed["kl_later"])
    assert (whole["kl"] >= 0).all()
    categories = effects.filter(pl.col("category") != "all").group_by("feature", "direction").agg(pl.sum("delta"))
    np.testing.assert_allclose(categories.sort("feature", "direction")["delta"], whole["delta"], atol=1e-9)
    own = whole.filter(pl.col("direction") == 0)
    assert own["control"].is_null().all()
    for direction, kind in enumerate(CONTROLS, 1):
        control = whole.filter(pl.col("direction") == direction)
        assert (control["control"] == kind).all()
        assert own["feature"].equals(control["feature"])
        assert own["n_edited"].equals(control["n_edited"])
        assert not np.allclose(own["delta"], control["delta"])
    inside = whole.drop_nulls("delta_low")
    assert (
        (inside["delta_low"] <= inside["delta_per_token"]) & (inside["delta_per_token"] <= inside["delta_high"])
    ).all()


def test_validation_agrees_with_scipy(intervened: Path) -> None:
    sums = table(
        intervened,
        """
        SELECT feature, sum(delta_edited + delta_later) AS measured, sum(first_order) AS first_order,
            sum(n_edited)::DOUBLE AS n_edited, sum(sum_change2) AS sum_change2
        FROM interventions WHERE direction = 0 GROUP BY feature ORDER BY feature
        """,
    )
    row = table(
        intervened,
        "SELECT * FROM predictor_validation WHERE validation = 'same' AND predictor = 'first_order' ORDER BY target",
    )
    partial, per_token, total = row.iter_rows(named=True)
    measured, first = sums["measured"].to_numpy(), sums["first_order"].to_numpy()
    n = sums["n_edited"].to_numpy()
    assert total["spearman"] == pytest.approx(stats.spearmanr(first, measured).statistic)
    assert total["pearson"] == pytest.approx(stats.pearsonr(first, measured).statistic)
    assert per_token["spearman"] == pytest.approx(stats.spearmanr(first / n, measured / n).statistic)
    ranks = np.stack([np.ones(len(n)), stats.rankdata(n), stats.rankdata(sums["sum_change2"])], 1)
    left = [stats.rankdata(v) - ranks @ np.linalg.lstsq(ranks, stats.rankdata(v))[0] for v in (first, measured)]
    assert partial["spearman"] == pytest.approx(stats.pearsonr(*left).statistic)
    assert total["n_features"] == len(sums)
    assert total["spearman_low"] <= total["spearman"] <= total["spearman_high"]


def test_scores_are_those_of_the_contexts_that_are_edited(tiny_warehouse: Path, tmp_path: Path) -> None:
    """On all contexts of a run they are the run's own: sums, EFAS, density and the active cells of the histograms."""
    db = tmp_path / "all.duckdb"
    shutil.copy(tiny_warehouse, db)
    options = InterventionOptions(layers=(1,), features=("top:5",), contexts=100_000, probes=0, directions=0)
    intervene(db, options)
    query = """
        SELECT r.feature, sum(r.n_tokens) AS n_tokens, sum(r.n_active) AS n_active,
            any_value(e.n_tokens) AS of_run, any_value(e.n_active) AS active_of_run, any_value(e.score) AS score,
            any_value(e.score_active) AS score_active, any_value(e.attribution) AS attribution, sum(r.sum_ag) AS sum_ag,
            (SELECT sum(first_order) FROM interventions AS i WHERE i.feature = r.feature) AS first_order
        FROM intervention_readings AS r
        JOIN efas AS e ON e.feature = r.feature AND e.layer = 1 AND e.energy = 'nll' AND e.gradient = 'decoder'
            AND e.category = 'all'
        GROUP BY r.feature ORDER BY r.feature
    """
    found = table(db, query)
    assert len(found) == 5
    assert (found["n_tokens"] == found["of_run"]).all()
    assert (found["n_active"] == found["active_of_run"]).all()
    np.testing.assert_allclose(found["sum_ag"], found["attribution"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["sum_ag"], found["first_order"], rtol=1e-4, atol=1e-5)  # an ablation's first order
    readings = table(db, "SELECT *, 0 AS document_id FROM intervention_readings")
    side = validation.Side(pl.DataFrame(), readings, found["feature"].to_list(), np.array([0]))
    scores = validation.feature_scores(side)
    np.testing.assert_allclose(scores["efas"][0], found["score"], atol=1e-5)
    np.testing.assert_allclose(scores["efas_active"][0], found["score_active"], atol=1e-5)
    cells = """
        SELECT r.feature, list_sum(flatten(list(r.cells[9:]))) AS n, any_value(list_sum(h.active)) AS of_run
        FROM intervention_readings AS r
        JOIN histogram_cells AS h ON h.feature = r.feature AND h.layer = 1 AND h.energy = 'nll' AND h.category = 'all'
        GROUP BY r.feature
    """
    counted = table(db, cells)
    assert len(counted)
    assert (counted["n"] == counted["of_run"]).all()


def test_mutual_information_is_that_of_the_warehouse(tiny_warehouse: Path) -> None:
    cells = np.random.default_rng(0).poisson(3, size=(4, 40))
    query = """
        SELECT information_bits(joint, activation_marginal(joint), gradient_marginal(joint), n) AS bits
        FROM (SELECT list_transform($cells::INTEGER[], lambda k: k / list_sum($cells::INTEGER[])) AS joint,
            list_sum($cells::INTEGER[]) AS n)
    """
    for row, bits in zip(cells, validation.information_bits(cells.astype(float)), strict=True):
        assert table(tiny_warehouse, query, cells=row.tolist())["bits"].item() == pytest.approx(bits)


def test_halves_of_few_documents_have_a_figure_without_an_interval(intervened: Path) -> None:
    found = table(intervened, "SELECT * FROM predictor_validation WHERE validation = 'transfer' AND target = 'sum'")
    assert found["spearman"].is_not_null().any()
    for name in ("spearman_low", "pearson_high", "spearman_disattenuated", "pearson_disattenuated_low"):
        assert found[name].is_null().all()


def test_older_statistics_are_computed_anew(intervened: Path, tmp_path: Path) -> None:
    """Whatever is asked for next, without a model pass for them."""
    db = tmp_path / "older.duckdb"
    shutil.copy(intervened, db)
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("UPDATE intervention_settings SET statistics_version = 1")
        warehouse.sql("UPDATE effect_statistics SET delta_low = 0, delta_high = 0")
        warehouse.sql("UPDATE predictor_statistics SET spearman = 0")
    assert intervene(db, OPTIONS)[0].n_new_patches == 0
    before, after = stored(intervened), stored(db)
    for name, frame in before.items():
        assert_frame_equal(frame, after[name])


def test_effects_show_the_predictions_that_were_validated(intervened: Path) -> None:
    effects = table(
        intervened, "SELECT * FROM intervention_effects WHERE category = 'all' AND direction = 0 ORDER BY feature"
    )
    for name in ("first_order", "norm_curvature", "aligned", "blended"):
        query = """
            SELECT spearman, pearson FROM predictor_validation
            WHERE predictor = $name AND validation = 'same' AND target = 'sum'
        """
        ((ranks, linear),) = table(intervened, query, name=name).rows()
        assert ranks == pytest.approx(stats.spearmanr(effects[name], effects["delta"]).statistic)
        assert linear == pytest.approx(stats.pearsonr(effects[name], effects["delta"]).statistic)


def test_every_predictor_is_validated_both_ways(intervened: Path) -> None:
    found = table(intervened, "SELECT DISTINCT validation, predictor, backward_passes FROM predictor_validation")
    passes = {(v, p): n for v, p, n in found.iter_rows()}
    cheap = {name for name in PREDICTORS if name not in ("hessian", "own_path")}
    scores = {"efas", "abs_efas", "efas_active", "attribution", "mi", "density", "random", "sum_change2", "n_edited"}
    for name in ("same", "transfer"):
        assert {p for v, p in passes if v == name} >= cheap | scores | {"aligned", "blended"}
    assert ("transfer", "measured") in passes
    assert ("same", "measured") not in passes
    assert passes["same", "first_order"] == 1
    assert passes["same", "curvature"] == passes["same", "blended"] == 3


def test_controls_have_the_norm_of_the_row_and_the_covariance_of_residuals(tiny: Callable[..., Any]) -> None:
    """2,000 directions of one feature, in units of the row: their second moments are those of the residuals."""
    sae = load_sae(tiny("llama").saes / "layer_1")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, sae.d_model, generator=generator) * torch.linspace(0.1, 3, sae.d_model)
    controls = ControlDirections(sae, CONTROLS, 2_000, 0, {3: [5, 9]}, x - x.mean(0))
    by_kind: dict[str, list[torch.Tensor]] = {kind: [] for kind in CONTROLS}
    numbers = []
    for number, kind, direction in controls.of(3):
        numbers.append(number)
        by_kind[kind].append(direction / sae.W_dec[3].norm())
    assert len(set(numbers)) == len(numbers)
    directions = {kind: torch.stack(rows) for kind, rows in by_kind.items()}
    for rows in directions.values():
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    moments = {kind: (rows.T @ rows / len(rows)).flatten() for kind, rows in directions.items()}
    covariance = (controls.deviations.T @ controls.deviations).flatten()
    assert torch.corrcoef(torch.stack([moments["covariance"], covariance]))[0, 1] > 0.95
    off_identity = moments["isotropic"].view(sae.d_model, -1) * sae.d_model - torch.eye(sae.d_model)
    assert off_identity.abs().mean() < 0.05
    rows = sae.W_dec[[5, 9]]
    torch.testing.assert_close(directions["decoder"], rows / rows.norm(dim=1, keepdim=True))


def test_other_features_that_are_controls_fire_as_often(intervened: Path) -> None:
    query = """
        SELECT f.feature, f.n_active, o.feature AS other, e.n_active AS other_active
        FROM (SELECT *, unnest(control_features) AS chosen FROM intervention_features) AS f
        JOIN efas AS e ON e.layer = 1 AND e.feature = f.chosen AND e.energy = 'nll' AND e.gradient = 'decoder'
            AND e.category = 'all'
        JOIN (SELECT DISTINCT feature FROM efas) AS o ON o.feature = f.chosen
    """
    found = table(intervened, query)
    assert len(found) == 17
    assert (found["feature"] != found["other"]).all()
    ratios = (found["n_active"] / found["other_active"]).log()
    assert float(ratios.abs().median() or 1) < 0.5  # type: ignore[arg-type]


def test_one_kind_of_control_is_the_intervention_of_before_there_were_three(
    intervened: Path, tiny_warehouse: Path, tmp_path: Path
) -> None:
    """Its identity has no word for controls, and its isotropic directions are the same ones."""
    db = tmp_path / "isotropic.duckdb"
    shutil.copy(tiny_warehouse, db)
    intervene(db, dataclasses.replace(OPTIONS, controls=("isotropic",)))
    query = "SELECT feature, direction, context_id, delta_edited FROM interventions WHERE direction <= 1 ORDER BY ALL"
    assert_frame_equal(table(db, query), table(intervened, query), abs_tol=1e-6, rel_tol=1e-6)
    assert table(db, "SELECT DISTINCT control FROM interventions ORDER BY ALL")["control"].to_list() == [
        "isotropic",
        None,
    ]


def test_roles_are_confirmed_by_what_was_measured(intervened: Path) -> None:
    """Of features whose attribution has a sign: that of the measurement, and its interval, beside a plain count."""
    query = statement("reports/confirmed_roles")
    shown = table(intervened, query)
    effects = """
        SELECT e.role, i.delta_per_token, i.delta_low, i.delta_high
        FROM efas AS e
        JOIN intervention_effects AS i USING (layer, feature, category)
        WHERE e.energy = 'nll' AND e.gradient = 'decoder' AND category = 'all' AND i.direction = 0 AND role IS NOT NULL
    """
    rows = table(intervened, effects).with_columns(
        side=pl.when(pl.col("role").is_in(["supports", "attractor"])).then(1).otherwise(-1)
    )
    assert len(rows)
    for word, side in (("supports", 1), ("opposes", -1)):
        own = rows.filter(pl.col("side") == side)
        (total,) = shown.filter(pl.col("layer").is_null() & (pl.col("role") == word)).iter_rows(named=True) or ({},)
        assert total["n_ablated"] == len(own)
        assert total["n_same_sign"] == (own["delta_per_token"] * side > 0).sum()
        near = own["delta_low"] if side > 0 else -own["delta_high"]
        far = own["delta_high"] if side > 0 else -own["delta_low"]
        assert total["n_confirmed"] == (near > 0).sum()
        assert total["n_contradicted"] == (far < 0).sum()


@pytest.mark.parametrize(
    ("word", "same"), [("supports", "supports"), ("attractor", "supports"), ("opposes", "opposes")]
)
def test_older_and_newer_words_of_roles_say_the_same(intervened: Path, word: str, same: str) -> None:
    """The query over features that all have one role."""
    query = statement("reports/confirmed_roles").replace(
        "FROM efas", f"FROM (SELECT * REPLACE ('{word}' AS role) FROM efas)"
    )
    found = table(intervened, query)
    assert set(found["role"]) == {same}
    assert found["n_ablated"].max() == 17


def test_random_features_fire_as_often(intervened: Path) -> None:
    chosen = table(intervened, "SELECT * FROM intervention_features ORDER BY feature")
    counts = {why: np.log(own["n_active"].to_numpy()) for (why,), own in chosen.group_by("chosen_by")}
    assert {why: len(own) for why, own in counts.items()} == {"top": 8, "random": 8, "listed": 1}
    assert abs(np.median(counts["random"]) - np.median(counts["top"])) < 0.5


def test_stopped_halfway_it_goes_on_to_the_same_tables(
    intervened: Path, tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "stopped.duckdb"
    shutil.copy(tiny_warehouse, db)
    measure_batch = work.measure_batch
    calls = []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(work, "measure_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            intervene(db, OPTIONS)
    half = table(db, "SELECT count(DISTINCT context_id) AS n FROM interventions")["n"].item()
    assert 0 < half <= planning.BATCH_CONTEXTS
    assert table(db, "SELECT * FROM predictor_validation").is_empty()
    intervene(db, OPTIONS)
    whole = stored(intervened)
    for name, frame in stored(db).items():
        assert_frame_equal(frame, whole[name], abs_tol=1e-6, rel_tol=1e-6)
    assert intervene(db, OPTIONS)[0].n_new_patches == 0  # and then there is nothing to do


def test_another_edit_is_another_intervention(tiny_warehouse: Path, tmp_path: Path) -> None:
    db = tmp_path / "two.duckdb"
    shutil.copy(tiny_warehouse, db)
    first = intervene(db, InterventionOptions(layers=(1,), features=("top:2",), contexts=8, probes=0, directions=0))
    edit = Edit("add", 1.0, where="all")
    second = intervene(
        db,
        InterventionOptions(edit, (1,), ("top:2",), contexts=8, probes=1, directions=0, hessian=True, path_points=4),
    )
    assert [own.intervention_id for own in (*first, *second)] == [1, 2]
    found = table(db, "SELECT * FROM interventions WHERE intervention_id = 2")
    assert found["integrated"].is_null().all()
    assert found["blended_gradient"].is_null().all()
    measured = (found["delta_edited"] + found["delta_later"]).to_numpy()
    assert stats.pearsonr(found["own_path"], measured).statistic > 0.99
    assert found["hessian"].is_not_null().all()
    assert table(db, "SELECT curvature FROM interventions WHERE intervention_id = 1")["curvature"].is_null().all()


def test_numbers_that_are_not_finite_are_recorded_as_a_failure(tiny_warehouse: Path, tmp_path: Path) -> None:
    db = tmp_path / "nan.duckdb"
    shutil.copy(tiny_warehouse, db)
    options = InterventionOptions(Edit("add", 3e38), (1,), ("top:2",), contexts=8, probes=1, directions=0)
    (own,) = intervene(db, options)
    found = table(db, "SELECT * FROM interventions")
    assert found["failure"].str.contains("not finite").all()
    assert found["delta_edited"].is_null().all()
    assert found["curvature"].is_null().all()
    assert table(db, "SELECT * FROM intervention_effects").is_empty()
    with Warehouse(db) as warehouse:
        assert any("not finite" in sentence for sentence in effect_sentences(warehouse, [own]))


def test_a_feature_that_never_fires_is_noted(tiny_warehouse: Path, tmp_path: Path) -> None:
    db = tmp_path / "dead.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("DELETE FROM feature_statistics WHERE layer = 1 AND feature = 7")
    (alone,) = intervene(db, InterventionOptions(features=("1:7",), contexts=4))
    assert alone.n_new_patches == 0
    (own,) = intervene(db, InterventionOptions(layers=(1,), features=("1:7", "top:1"), contexts=4, probes=0))
    notes = table(db, "SELECT feature, note FROM intervention_features").rows_by_key("feature")
    assert "never fires" in notes[7][0][0]
    with Warehouse(db) as warehouse:
        assert any("never fires" in sentence for sentence in effect_sentences(warehouse, [own]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"features": ("best:3",)}, "top:50"),
        ({"features": ("top:0",)}, "No feature was chosen"),
        ({"features": ("9:3",)}, "no layer 9"),
        ({"features": ("1:64",)}, "features are 0 to 63"),
        ({"features": ("class:nonsense",), "layers": (1,)}, "of class nonsense"),
        ({"layers": (3,)}, "no layer 3"),
        ({"by": "attribution_curvature", "layers": (1,), "features": ("top:3",)}, "--probes 3"),
        ({"by": "beauty"}, "--by is 'beauty'"),
        ({"contexts": 0}, "--contexts is 0"),
        ({"controls": ("isotropic", "likely")}, "--controls does not know likely"),
        ({"controls": ()}, "--directions 0"),
    ],
)
def test_bad_requests_get_a_sentence(tiny_warehouse: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        intervene(tiny_warehouse, InterventionOptions(**options))


def test_a_locked_warehouse_is_left_alone(tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ingest_lock(tiny_warehouse):
        assert main(["intervene", "--db", str(tiny_warehouse), "--layer", "1"]) == 3
    assert "is being written by elw ingest" in capsys.readouterr().err


def test_the_command_prints_effects_and_says_what_predicted_them(
    intervened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--layer", "1", "--features", "top:8,random:8,1:3", "--contexts", "40", "--probes", "2"]
    assert main(["intervene", "--db", str(intervened), *words, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    rows = pl.read_json(out.encode())
    assert len(rows) == table(intervened, "SELECT DISTINCT feature FROM interventions").height
    assert rows["delta"].abs().is_sorted(descending=True)
    assert "Spearman of sums" in err
    assert "random directions" in err


def test_on_smollm2_the_paths_integral_is_the_measured_ablation(real_warehouse: Path, tmp_path: Path) -> None:
    """Over patches; and the patched pass is that of the whole model, edited by a hook."""
    db = tmp_path / "real.duckdb"
    shutil.copy(real_warehouse, db)
    options = InterventionOptions(
        layers=(20,), features=("top:3", "random:3"), contexts=6, probes=0, directions=0, path_points=4
    )
    intervene(db, options)
    found = table(db, "SELECT own_path, delta_edited + delta_later AS delta, feature, context_id FROM interventions")
    assert len(found) >= 20
    assert stats.pearsonr(found["own_path"], found["delta"]).statistic > 0.99
    assert stats.spearmanr(found["own_path"], found["delta"]).statistic > 0.98
    current = CurrentRun(db)
    model, sae = current.load_model(), current.sae(20)
    for row in found.sort("delta")[[0, -1]].iter_rows(named=True):
        ((_, ids),) = current.contexts([row["context_id"]])
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        active = table(
            db,
            "SELECT token_id, activation FROM activations WHERE layer = 20 AND feature = $f AND token_id // 128 = $c",
            f=row["feature"], c=row["context_id"],
        )  # fmt: skip
        added = torch.zeros(len(ids), sae.d_model)
        a = torch.tensor(active["activation"].to_list())
        added[(active["token_id"] % 128).to_numpy().copy()] = -a[:, None] * sae.W_dec[row["feature"]]
        losses = []
        for edit in (torch.zeros_like(added), added):
            handle = model.blocks[20].register_forward_hook(lambda _m, _i, output, edit=edit: output + edit)
            with torch.no_grad():
                logits = model.module(input_ids=tokens, use_cache=False).logits[0, :-1]
            handle.remove()
            losses.append(torch.nn.functional.cross_entropy(logits.double(), tokens[0, 1:], reduction="sum"))
        assert row["delta"] == pytest.approx(float(losses[1] - losses[0]), abs=1e-3)  # a sum over 127 tokens


# ------------------------------------------------------------------------------------------------ one text


def test_on_a_text_the_edit_is_that_of_the_hook(tiny_warehouse: Path, tiny: Callable[..., Any]) -> None:
    text = "The quick brown fox jumps over the lazy dog"
    plain = try_on_text(tiny_warehouse, text, FeatureName(1, 0), Edit("scale", 1.0), 5, "float32")
    assert plain.changes == []
    assert plain.before == plain.after
    feature = plain.strongest[0][0]
    example = try_on_text(tiny_warehouse, text, FeatureName(1, feature), Edit("clamp", 30.0, where="all"), 5, "float32")
    assert example.changes
    assert example.n_edited == example.n_tokens - 1
    assert example.largest == pytest.approx(plain.strongest[0][1])
    sizes = [abs(after - before) for _, before, after in example.changes]
    assert sizes == sorted(sizes, reverse=True)
    assert any("after" in sentence for sentence in example.sentences())


@pytest.mark.parametrize("words", ["top:3", "1:2,1:3", "1", "1:", ":1", "1:-1", "1:2:3", "١:٢", ""])
def test_a_feature_is_layer_and_number(words: str) -> None:
    with pytest.raises(UsageError, match="say layer and feature, as in 15:656"):
        FeatureName.parse(words, "--feature")


@pytest.mark.parametrize("feature", [FeatureName(1, 64), FeatureName(3, 1)])
def test_a_text_takes_a_feature_that_exists(tiny_warehouse: Path, feature: FeatureName) -> None:
    def attempt() -> None:
        try_on_text(tiny_warehouse, "one two three", feature, Edit("ablate"), 2, "float32")

    with pytest.raises(UsageError):
        attempt()


@pytest.mark.parametrize("text", ["", "a", "word " * 300])
def test_texts_of_impossible_length_are_refused(tiny_warehouse: Path, text: str) -> None:
    with pytest.raises(UsageError, match="tokens"):
        try_on_text(tiny_warehouse, text, FeatureName(1, 2), Edit("ablate"), 2, "float32")


FOX = "The quick brown fox jumps over the lazy dog"


def test_the_command_tries_a_feature_and_so_does_its_older_spelling(
    tiny_warehouse: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELW_WAREHOUSE", str(tiny_warehouse))
    shared = ["--feature", "1:5", "--kind", "clamp", "--value", "9", "--where", "all", "--tokens", "6", "--rows", "4"]
    assert main(["intervene", "try", FOX, *shared, "--format", "json"]) == 0
    newer = capsys.readouterr()
    assert len(pl.read_json(newer.out.encode())) == 4
    assert "spelled" not in newer.err
    assert main(["intervene", "--text", FOX, *shared, "--format", "json"]) == 0
    older = capsys.readouterr()
    assert older.out == newer.out
    notes = [line for line in older.err.splitlines() if "elw intervene try" in line]
    assert len(notes) == 1
    assert [line for line in older.err.splitlines() if line not in notes] == newer.err.splitlines()


def test_a_feature_that_is_inactive_in_the_text_may_still_change_what_follows(
    tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = try_on_text(tiny_warehouse, FOX, FeatureName(1, 0), Edit("ablate"), 0, "float32")
    active = {feature for feature, _ in example.strongest}
    silent = (
        try_on_text(tiny_warehouse, FOX, FeatureName(1, feature), Edit("scale", 50.0), 8, "float32")
        for feature in range(64)
        if feature not in active
    )
    inactive = next(each for each in silent if not each.largest)
    assert inactive.n_edited == 0
    assert inactive.changes == []
    assert "continuation is edited as it grows" in next(inactive.sentences())


TEN = [
    ["--layer", "1"], ["--by", "z"], ["--contexts", "3"], ["--probes", "1"], ["--directions", "2"], ["--hessian"],
    ["--controls", "decoder"],
    ["--path", "2"], ["--shift", "2"], ["--dose", "0.5,2"], ["--batch-size", "2"], ["--seed", "1"],
]  # fmt: skip


@pytest.mark.parametrize("option", TEN, ids=lambda option: option[0])
def test_a_text_ignores_nothing_in_silence(
    tiny_warehouse: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--db", str(tiny_warehouse), "--text", FOX, "--feature", "1:5"]
    assert main(["intervene", *words, *option, "--tokens", "1"]) == 0
    assert f"{option[0]} is left aside: try has no such option." in capsys.readouterr().err
    assert main(["intervene", "try", FOX, "--feature", "1:5", *option]) == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["try", FOX, "--feature", "1:5", "--tokens", "-1"], "--tokens is -1"),
        (["--text", FOX, "--feature", "1:5", "--tokens", "-1"], "--tokens is -1"),
        (["try", FOX, "--feature", "top:3"], "--feature is 'top:3'"),
        (["try", FOX, "--feature", "1:2,1:3"], "--feature is '1:2,1:3'"),
        (["try", FOX], "--feature"),
        (["try", "--feature", "1:5"], "TEXT"),
        (["--text", FOX], "--feature 15:656"),
        (["--layer", "1", "--seed", "2", "try", FOX], "--layer, --seed have no meaning before try"),
    ],
)
def test_a_try_that_cannot_be_gets_a_sentence(
    tiny_warehouse: Path,
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ELW_WAREHOUSE", str(tiny_warehouse))
    assert main(["intervene", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err.splitlines()[-1]
