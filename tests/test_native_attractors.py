"""Where tokens settle on an energy transformer's own landscape, and what a feature does to that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import polars.testing
import pytest
import torch
from torch import Tensor

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.model_check.finding import Outcome
from energy_lens.analysis.model_check.run import check_by_name
from energy_lens.analysis.native.settling import Landscapes, settle_contexts
from energy_lens.cli import main
from energy_lens.ingest.model.energy_landscape import Rotation
from energy_lens.ingest.model.energy_transformer import EnergyTransformerForCausalLM, EnergyTransformerModel
from energy_lens.tests.conftest import Tiny
from energy_lens.tests.test_energy_transformer import LENGTH, VOCABULARY, config, uneven
from energy_lens.warehouse.database import Warehouse


@pytest.fixture(scope="module")
def model() -> EnergyTransformerModel:
    torch.manual_seed(0)
    return uneven(EnergyTransformerForCausalLM(config(still_share=0.0))).double().eval().model


@pytest.fixture(scope="module")
def x(model: EnergyTransformerModel) -> Tensor:
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    step, found = model.steps[-1], []
    with step.register_forward_hook(lambda _module, _inputs, output: found.append(output)), torch.no_grad():
        model(input_ids=tokens)
    return found[0]


@pytest.fixture(scope="module")
def tokens_and_landscapes(model: EnergyTransformerModel, x: Tensor) -> tuple[Tensor, Landscapes]:
    """Three tokens behind the last step, and their landscapes."""
    context, position = torch.tensor([0, 1, 1]), torch.tensor([3, 7, LENGTH - 1])
    return x[context, position], settle_contexts(model, x).landscapes(context, position)


@torch.no_grad()
def test_tokens_settle_where_no_step_moves_them(model: EnergyTransformerModel, x: Tensor) -> None:
    """At a settled token d is nothing beside u: of the model's steps none goes anywhere, whatever P and η."""
    contexts = settle_contexts(model, x)
    assert contexts.converged.double().mean() > 0.9
    rotation = Rotation.of(torch.arange(LENGTH)[None], model.config.n_rotated, model.config.rope_theta, x.dtype)
    at = model.steps[-1].direction(contexts.x, model.landscape, rotation)
    assert (at.d.norm(dim=-1) < 1e-3 * at.u.norm(dim=-1))[contexts.converged].all()
    torch.testing.assert_close(contexts.x.norm(dim=-1), x.norm(dim=-1))


@torch.no_grad()
def test_no_update_raises_the_energy_while_keys_stay(tokens_and_landscapes: tuple[Tensor, Landscapes]) -> None:
    x, landscapes = tokens_and_landscapes
    length, E = x.norm(dim=1, keepdim=True), landscapes.energy(x)
    for _ in range(30):
        x = landscapes.updated(x)
        after = landscapes.energy(x)
        assert (after <= E + 1e-9 * E.abs()).all()
        torch.testing.assert_close(x.norm(dim=1, keepdim=True), length)
        E = after


@torch.no_grad()
def test_a_later_token_does_not_move_an_earlier_one(model: EnergyTransformerModel, x: Tensor) -> None:
    alone = settle_contexts(model, x[:, :5])
    within = settle_contexts(model, x)
    torch.testing.assert_close(alone.x, within.x[:, :5], rtol=0, atol=1e-2)


@torch.no_grad()
def test_single_tokens_fall_on_the_landscape_of_their_context(model: EnergyTransformerModel, x: Tensor) -> None:
    """Energies, steps and fixed points of rows are those of whole contexts; a settled token stays where it is."""
    contexts = settle_contexts(model, x)
    context, position = torch.tensor([0, 1, 1]), torch.tensor([3, 7, LENGTH - 1])
    landscapes = contexts.landscapes(context, position)
    settled = contexts.x[context, position]
    E, _ = model.energy_and_gradient(-1, contexts.x)
    torch.testing.assert_close(landscapes.energy(settled), E[context, position])
    rotation = Rotation.of(torch.arange(LENGTH)[None], model.config.n_rotated, model.config.rope_theta, x.dtype)
    stepped = model.steps[-1](contexts.x, model.landscape, rotation)
    torch.testing.assert_close(landscapes.stepped(settled), stepped[context, position])
    again = landscapes.settle(settled)
    cosine = (again.z * torch.nn.functional.normalize(settled, dim=1)).sum(1)
    assert (1 - cosine < 1e-6).all()


# ------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def run_of_energy_model(
    tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished warehouse of a tiny energy transformer, its own attractors among the rest."""
    model, db = tiny("energy_transformer"), tmp_path_factory.mktemp("native") / "native.duckdb"
    words = ("--model", str(model.folder), "--sae", str(model.saes), "--context", "32", "--dtype", "float32")
    energies = ("--energies", "nll,logit_lens,native,attention,hopfield")
    assert main(["ingest", str(small_corpus), *words, *energies, "--db", str(db)]) == 0
    few = ("--contexts", "6", "--features", "3", "--tokens", "2")
    assert main(["attractors", "native", *few, "--db", str(db)]) == 0
    return db


def test_an_energy_transformer_is_a_model_like_any_other(
    run_of_energy_model: Path, tiny: Callable[[str], Tiny], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that a run is asked for, and no promise of its tables broken."""
    db = str(shutil.copy(run_of_energy_model, tmp_path / "native.duckdb"))
    few = ("--features", "top:2,random:2", "--contexts", "4", "--probes", "1")
    assert main(["attractors", "--tokens", "100", "--perplexity", "3", "--db", db]) == 0
    assert main(["intervene", "--layer", "1", *few, "--db", db]) == 0
    assert main(["efas", "test", "--contexts", "8", "--permutations", "20", "--db", db]) == 0
    assert main(["report", "--db", db, "--output", str(tmp_path / "report")]) == 0
    assert main(["export", str(tmp_path / "site"), "--db", db]) == 0
    assert main(["check", "--db", db]) == 0
    (page,) = (tmp_path / "report").glob("*.html")
    assert "Energy <code>native</code>" in page.read_text(encoding="utf-8")
    with Warehouse(Path(db)) as warehouse:
        kinds = warehouse.sql("SELECT DISTINCT energy FROM efas WHERE gradient = 'decoder'").fetchall()
        agreement = warehouse.sql("SELECT partition, adjusted_rand FROM native_agreement").fetchall()
    assert {kind for (kind,) in kinds} == {"nll", "logit_lens", "native", "attention", "hopfield"}
    assert {partition for partition, _ in agreement} == {"decoder", "token", "category"}
    findings = {finding.check: finding for finding in check_by_name(str(tiny("energy_transformer").folder))}
    assert findings["gradient of native"].outcome is Outcome.PASSED, findings["gradient of native"]
    assert not [f.check for f in findings.values() if f.outcome is Outcome.FAILED]
    capsys.readouterr()


def test_what_is_stored_of_native_attractors(run_of_energy_model: Path, tmp_path: Path) -> None:
    """Basins of both weights, patches beside directions of their length; a second call replaces, the same numbers."""
    db = Path(shutil.copy(run_of_energy_model, tmp_path / "native.duckdb"))
    queries = {
        table: f"SELECT * EXCLUDE (run_id) FROM {table} ORDER BY ALL"
        for table in ("native_attractors", "native_basins", "native_patches")
    }

    def read() -> dict[str, pl.DataFrame]:
        with Warehouse(db) as warehouse:
            return {table: warehouse.sql(query).pl() for table, query in queries.items()}

    before = read()
    assert set(before["native_basins"]["weights"]) == {"trained", "random"}
    patches = before["native_patches"]
    assert set(patches["direction"]) == {"feature", "decoder", "isotropic"}
    assert set(patches["kind"]) == {"ablate", "double"}
    counts = patches.group_by("layer", "feature", "kind", "direction").len()["len"]
    assert counts.unique().to_list() == [2]
    assert (patches["fall"] >= 0).mean() > 0.9  # a step lowers E_t where it is small enough
    with Warehouse(db) as warehouse:
        settings = warehouse.sql("SELECT weights, n_tokens, energy_start, energy FROM native_settings").fetchall()
        sizes = dict(warehouse.sql("SELECT weights, sum(n_tokens) FROM native_attractors GROUP BY ALL").fetchall())
    for weights, n_tokens, start, end in settings:
        settled = before["native_basins"].filter(weights=weights)["attractor"].drop_nulls()
        assert len(before["native_basins"].filter(weights=weights)) == n_tokens
        assert sizes[weights] == len(settled)
        assert end < start
    assert main(["attractors", "native", "--contexts", "6", "--features", "3", "--tokens", "2", "--db", str(db)]) == 0
    for table, frame in read().items():
        polars.testing.assert_frame_equal(frame, before[table], abs_tol=1e-6)


def test_a_patch_is_what_it_says(run_of_energy_model: Path, tiny: Callable[[str], Tiny]) -> None:
    """delta_energy and fall of a stored patch, by hand: E_t of the step's input with the feature's part taken away."""
    current = CurrentRun(run_of_energy_model)
    with Warehouse(run_of_energy_model) as warehouse:
        layer, feature, token, activation, delta, fall, fall_patched = warehouse.sql(
            "SELECT layer, feature, token_id, activation, delta_energy, fall, fall_patched FROM native_patches "
            "WHERE kind = 'ablate' AND direction = 'feature' ORDER BY abs(delta_energy) DESC LIMIT 1"
        ).fetchall()[0]
    length = current.facts.context_length
    ((_, ids),) = current.contexts([token // length])
    model, sae, t = current.load_model("float32"), current.sae(layer), token % length
    module = model.module.base_model
    assert isinstance(module, EnergyTransformerModel)
    with torch.no_grad():
        x = module(input_ids=torch.from_numpy(ids.astype("int64"))[None], output_hidden_states=True)
        x = x.hidden_states[layer + 1]
        edited = x.clone()
        edited[0, t] -= activation * sae.W_dec[feature]
        (E, _), (E_edited, _) = (module.energy_and_gradient(layer + 1, at) for at in (x, edited))
        rotation = module.rotation(torch.arange(x.shape[1])[None], x.dtype)
        step, landscape = module.steps[layer + 1], module.landscape
        keys = landscape.keys(step.norm(x), rotation)
        falls = []
        for at in (x, edited):
            moved = step(at, landscape, rotation)
            energies = [landscape.energy(step.norm(y), keys, rotation)[0, t] for y in (at, moved)]
            falls.append(float(energies[0] - energies[1]))
    scale = float(E.abs().max())
    assert abs(float(E_edited[0, t] - E[0, t]) - delta) < 1e-4 * scale
    assert abs(falls[0] - fall) < 1e-4 * scale
    assert abs(falls[1] - fall_patched) < 1e-4 * scale


def test_other_models_and_numbers_out_of_range_are_refused(
    tiny_warehouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = str(shutil.copy(tiny_warehouse, tmp_path / "llama.duckdb"))
    assert main(["attractors", "native", "--db", db]) == 2
    assert "descends no energy of its own" in capsys.readouterr().err
    assert main(["attractors", "native", "--contexts", "0", "--db", db]) == 2
    assert "--contexts is 0; at least 1 is needed" in capsys.readouterr().err
