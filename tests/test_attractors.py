"""Attractors: the dynamics against its definition and its theorems, and the command end to end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from energy_lens import Warehouse
from energy_lens.analysis.attractors import network as dynamics
from energy_lens.analysis.attractors.labels import label_basins
from energy_lens.analysis.attractors.landscape import stored_attractors
from energy_lens.analysis.attractors.network import (
    Memories,
    Settled,
    calibrated_beta,
    descent,
    kinds,
    merge,
    portray,
    sweep,
)
from energy_lens.analysis.attractors.run import AttractorOptions, find_attractors
from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.ingest.sae.formats import load_sae


def unit(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1).to(dtype)


def shipped_rows() -> torch.Tensor:
    return load_sae(shipped_folder("smollm2-135m", 15)).W_dec.double()


@pytest.mark.parametrize("beta", [0.5, 3.0, 9.0, 20.0, 200.0])
@pytest.mark.parametrize("rows", ["random", "shipped"])
def test_energy_never_rises_along_a_descent(rows: str, beta: float) -> None:
    memories = Memories.of(unit((60, 12), 0) if rows == "random" else shipped_rows()[:500], beta)
    energies = descent(memories, unit((50, memories.rows.shape[1]), 1), 40)
    assert (energies.diff(dim=0) <= 1e-14).all()
    assert (energies[-1] < energies[0]).any()


@given(beta=st.floats(0.1, 50), seed=st.integers(0, 1_000))
def test_a_step_is_the_definition(beta: float, seed: int) -> None:
    rows, z = unit((7, 4), seed).numpy(), unit((3, 4), seed + 1).numpy()
    weights = np.exp(beta * z @ rows.T)
    weights /= weights.sum(1, keepdims=True)
    expected = weights @ rows
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    memories = Memories(torch.from_numpy(rows), beta)
    np.testing.assert_allclose(memories.step(torch.from_numpy(z)), expected, atol=1e-12)
    energy = -np.log(np.exp(beta * z @ rows.T).sum(1)) / beta
    np.testing.assert_allclose(memories.energy(torch.from_numpy(z)), energy, atol=1e-12)
    perplexity = np.exp(-(weights * np.log(weights)).sum(1))
    np.testing.assert_allclose(memories.perplexity(torch.from_numpy(z)), perplexity, rtol=1e-9)


def test_planted_memories_are_retrieved() -> None:
    """Well apart and cold enough, each memory is the fixed point of its surroundings, and its own basin."""
    memories = Memories.of(torch.linalg.qr(unit((64, 20), 0)).Q.T, 60.0)
    noisy = memories.rows.repeat(10, 1) + 0.05 * unit((200, 64), 1) * math.sqrt(64) / 8
    start = torch.nn.functional.normalize(noisy, dim=1)
    portrait, settled, attractors = portray(memories, start)
    assert settled.converged.all()
    assert portrait.n_attractors == 20
    assert portrait.argmax_agreement == 1
    assert (settled.z * memories.rows.repeat(10, 1)).sum(1).min() > 0.999
    assert set(kinds(memories, attractors)) == {"single pattern"}
    assert portrait.entropy == pytest.approx(math.log(20))


def test_warm_memories_have_one_global_basin() -> None:
    memories = Memories.of(unit((40, 10), 0) + torch.eye(10, dtype=torch.float64)[0], 0.5)
    portrait, _, attractors = portray(memories, unit((100, 10), 1))
    assert portrait.n_attractors == 1
    assert kinds(memories, attractors) == ["global"]


@given(seed=st.integers(0, 100), chunk=st.integers(1, 40))
def test_batches_and_order_change_nothing(seed: int, chunk: int) -> None:
    memories = Memories.of(unit((30, 8), 3), 12.0)
    start = unit((40, 8), seed)
    _, settled, attractors = portray(memories, start)
    order = np.random.default_rng(seed).permutation(40)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dynamics, "CHUNK_NUMBERS", 30 * chunk)
        _, other, shuffled = portray(memories, start[torch.from_numpy(order)])
    torch.testing.assert_close(other.z, settled.z[torch.from_numpy(order)], atol=1e-9, rtol=0)
    assert sorted(attractors.sizes) == sorted(shuffled.sizes)
    same = attractors.basin[order][:, None] == attractors.basin[order][None]
    np.testing.assert_array_equal(same, shuffled.basin[:, None] == shuffled.basin[None])


def test_what_has_not_settled_has_no_basin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamics, "MAX_STEPS", 1)
    memories = Memories.of(unit((30, 8), 3), 5.0)
    portrait, settled, attractors = portray(memories, torch.cat([unit((9, 8), 4), memories.settle(unit((1, 8), 5)).z]))
    assert not settled.converged[:9].any()
    assert (attractors.basin[~settled.converged.numpy()] == -1).all()
    assert portrait.unconverged_share >= 0.9
    assert attractors.sizes.sum() == settled.converged.sum()


def test_merging_is_by_connected_components() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.05, 2.0], dtype=torch.float64)  # cos 0.1 = 0.995, cos 0.2 = 0.980
    z = torch.stack([angles.cos(), angles.sin()], 1)
    every = torch.ones(6, dtype=torch.bool)
    settled = Settled(z, torch.zeros(6, dtype=torch.int64), every, torch.ones(6))
    attractors = merge(settled)
    assert attractors.basin.tolist() == [0, 0, 0, 1, 1, 2]
    assert attractors.sizes.tolist() == [3, 2, 1]
    assert attractors.assign(z).tolist() == [0, 0, 0, 1, 1, 2]
    assert attractors.assign(-z).tolist() == [-1] * 6


def test_beta_reaches_its_target_where_it_can() -> None:
    memories = Memories.of(shipped_rows()[:400].float())
    start = unit((64, 576), 0, torch.float32) + memories.rows[:64]
    start = torch.nn.functional.normalize(start, dim=1)
    found = calibrated_beta(memories, start, 4.0)
    assert found.reached
    assert found.note is None
    assert float(memories.at(found.beta).settle(start).perplexity.median()) == pytest.approx(4.0, rel=0.06)
    swept = sweep(memories, start, [found.beta / 8, found.beta, found.beta * 8])
    assert swept[0].perplexity > swept[1].perplexity > swept[2].perplexity
    assert swept[0].n_attractors <= swept[1].n_attractors <= swept[2].n_attractors


def test_beta_that_cannot_reach_its_target_says_so() -> None:
    """Four memories can never be sixteen."""
    memories = Memories.of(torch.eye(4, dtype=torch.float64))
    found = calibrated_beta(memories, memories.rows[:1], 16.0)
    assert not found.reached
    assert "No β" in (found.note or "")


class Jumping(Memories):
    """Fixed points that are made of a hundred memories below β = 10, and of two above."""

    def at(self, beta: float) -> Jumping:
        return Jumping(self.rows, beta)

    def settle(self, start: torch.Tensor) -> Settled:
        perplexity = torch.full((len(start),), 100.0 if self.beta < 10 else 2.0)
        return Settled(start, torch.ones(len(start)), torch.ones(len(start)) > 0, perplexity)


def test_beta_whose_perplexity_jumps_over_the_target_says_so() -> None:
    found = calibrated_beta(Jumping(torch.eye(3), 1.0), torch.eye(3), 16.0)
    assert not found.reached
    assert "jumps from 100 to 2 at β = 10" in (found.note or "")


def test_labels_are_chosen_on_one_half_and_tested_on_the_other() -> None:
    generator = np.random.default_rng(0)
    basin = np.repeat([0, 1, 2], 100)
    halves = np.tile(["A", "B"], 150).astype(object)
    texts = generator.choice(list("uvwxyz"), 300).astype(object)
    texts[(basin == 0) & (generator.random(300) < 0.8)] = "("
    texts[(basin == 1) & (halves == "A")] = "!"  # says nothing about half B
    first, second, third = label_basins(basin, 3, texts, halves)
    assert first.text == "("
    assert (first.lift or 0) > 2
    assert (first.q or 1) < 1e-6
    assert second.text is None
    assert second.p == 1
    assert third.text is None
    basin[5:] = -1
    assert label_basins(basin, 3, texts, halves)[2] == label_basins(basin, 3, texts, halves)[1]  # too few: no test


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def found(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("attractors") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    assert find_attractors(db, AttractorOptions(tokens=300, target=3.0)) == [1, 2]
    return db


def test_tables_agree_with_each_other(found: Path) -> None:
    with Warehouse(found) as warehouse:
        attractors = warehouse.sql("SELECT * FROM attractors ORDER BY layer, attractor").pl()
        counted = warehouse.sql(
            "SELECT layer, attractor, count(*) AS n FROM basins WHERE attractor IS NOT NULL GROUP BY ALL ORDER BY ALL"
        ).pl()
        basins = warehouse.sql("SELECT * FROM basins").pl()
        settings = warehouse.sql("SELECT * FROM attractor_settings ORDER BY layer, dictionary").pl()
        sweeps = warehouse.sql("SELECT layer, dictionary, count(*) AS n FROM attractor_sweeps GROUP BY ALL").pl()
        included = warehouse.sql(
            "SELECT count(*) FROM basins JOIN token_layers USING (run_id, layer, token_id) WHERE included"
        ).value()
        beta, vectors = stored_attractors(warehouse, 1, 2) or (0.0, torch.empty(0))
    assert attractors["n_tokens"].to_list() == counted["n"].to_list()
    assert (basins["energy"] <= basins["energy_start"] + 1e-5).all()
    assert included == len(basins) == 600
    assert settings["dictionary"].to_list() == ["decoder", "random"] * 2
    assert (sweeps["n"] >= 12).all()
    assert beta == settings.filter((pl.col("layer") == 2) & (pl.col("dictionary") == "decoder"))["beta"].item()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_the_same_command_gives_the_same_tables(found: Path, tiny_warehouse: Path, tmp_path: Path) -> None:
    db = tmp_path / "again.duckdb"
    shutil.copy(tiny_warehouse, db)
    for _ in range(2):  # what was there is replaced
        find_attractors(db, AttractorOptions(tokens=300, target=3.0))
    rows = []
    for path in (found, db):
        with Warehouse(path) as warehouse:
            rows.append(warehouse.sql("SELECT * FROM basins ORDER BY layer, token_id").fetchall())
    assert rows[0] == rows[1]


def test_the_command_prints_attractors(
    tiny_warehouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = tmp_path / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    words = ["--layer", "2", "--tokens", "200", "--perplexity", "1000", "--format", "json"]
    assert main(["attractors", "--db", str(db), *words]) == 0
    out, err = capsys.readouterr()
    assert all(row["layer"] == 2 for row in json.loads(out))
    assert "random dictionary" in err
    assert "No β" in err  # 64 features cannot be a thousand


@pytest.mark.parametrize("options", [{"tokens": 3}, {"target": 0.5}, {"target": math.nan}, {"seed": -1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        AttractorOptions(**options)  # type: ignore[arg-type]


def test_a_layer_without_an_sae_is_refused(tiny_warehouse: Path) -> None:
    with pytest.raises(UsageError, match="no layer 3"):
        find_attractors(tiny_warehouse, AttractorOptions(layers=(3,)))
