"""The energy transformer that comes with the package: it is found by its name, as good as its card says, and whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from energy_lens import Warehouse
from energy_lens.cli.main import main
from energy_lens.ingest.sae.choosing import shipped_folder, shipped_layers
from energy_lens.ingest.shipped import FOLDER, MODEL, SAMPLE

NAME = "energy-transformer-small"
PLACE = FOLDER / NAME


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a newcomer would: layers and SAEs by default, some documents of each kind."""
    db = tmp_path_factory.mktemp("small") / "native.duckdb"
    texts = [path for folder in sorted(SAMPLE.iterdir()) for path in sorted(folder.glob("*.txt"))[:5]]
    words = ["--model", NAME, "--energies", "nll,native,hopfield", "--dtype", "float32", "--db", str(db)]
    assert main(["ingest", *map(str, texts), *words]) == 0
    return db


def test_its_losses_gradients_and_saes_are_those_of_a_trained_model(small: Path) -> None:
    """8.3 nats would be no model and 6.8 the frequencies of tokens; native energies lie far below 0, as on the card."""
    with Warehouse(small) as warehouse:
        assert warehouse.sql("SELECT DISTINCT layer FROM saes ORDER BY layer").fetchall() == [(i,) for i in range(1, 6)]
        loss, native = (
            warehouse.sql("SELECT avg(value) FROM energies WHERE energy = $energy", energy=energy).value()
            for energy in ("nll", "native")
        )
        control, chance = warehouse.sql(
            "SELECT median(cosine) FILTER (energy = 'hopfield'), avg((abs(z_null) > 1.96)::INTEGER) FROM efas "
            "WHERE gradient = 'decoder' AND category = 'all' AND z IS NOT NULL"
        ).fetchall()[0]
    assert 4 < loss < 5.5
    assert -1_000 < native < -600
    assert control > 0.3
    assert chance < 0.1
    assert main(["check", "--db", str(small)]) == 0


def test_its_attractors_are_those_of_a_landscape(small: Path) -> None:
    """Tokens settle below where the pass leaves them, with its weights and with untrained ones; edits are there."""
    words = ["--contexts", "1", "--features", "1", "--tokens", "2", "--db", str(small)]
    assert main(["attractors", "native", *words]) == 0
    with Warehouse(small) as warehouse:
        settings = warehouse.sql("SELECT weights, energy_start, energy FROM native_settings").fetchall()
        assert {row[0] for row in settings} == {"trained", "random"}
        assert all(after < before for _, before, after in settings)
        assert warehouse.sql("SELECT count(*) FROM native_patch_effects").value() == 5 * 2 * 3


def test_every_step_of_it_goes_down() -> None:
    """`elw model check` looks at its steps too."""
    assert main(["model", "check", NAME]) == 0


def test_what_is_shipped_is_whole_and_small() -> None:
    figures = json.loads((PLACE / MODEL / "figures.json").read_text(encoding="utf-8"))
    card = (PLACE / MODEL / "README.md").read_text(encoding="utf-8")
    beside = figures["beside"]
    for of in (figures, beside):
        assert f"{of['parameters']:,}" in card
    assert figures["training"]["tokens"] == beside["training"]["tokens"]
    assert figures["documents"]["test"] == beside["documents"]["test"]
    assert shipped_layers(NAME) == [1, 2, 3, 4, 5]
    for layer in shipped_layers(NAME):
        metadata = json.loads((shipped_folder(NAME, layer) / "cfg.json").read_text(encoding="utf-8"))["metadata"]
        assert (metadata["model_name"], metadata["hook_name"]) == (NAME, f"blocks.{layer}.hook_resid_pre")
    assert sum(path.stat().st_size for path in PLACE.rglob("*") if path.is_file()) < 12e6
