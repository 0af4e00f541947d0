"""The tools that exports are for read them back, in environments of their own, and find the warehouse's numbers.

Each environment is named by its Python in a variable, or is this one where the package is installed here:

    ELW_SAE_DASHBOARD_PYTHON    where sae-dashboard is
    ELW_DELPHI_PYTHON           where eai-delphi is
    ELW_NEURONPEDIA             a checkout of the Neuronpedia repository, with orjson, dotenv and typer in the first
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "exports_read_back.py"


def python_with(package: str, variable: str) -> str:
    """The Python that has the package; skips where there is none."""
    if named := os.environ.get(variable):
        return named
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here, and {variable} names no Python that has it")
    return sys.executable


def run(python: str, *words: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or python == sys.executable}
    command = [python, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def exported(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every export of the tiny warehouse, beside what SQL says of its activations."""
    folder = tmp_path_factory.mktemp("exported")
    run(sys.executable, "write", folder, tiny_warehouse, "top:12")
    return folder


def test_sae_dashboard_reads_its_batches(request: pytest.FixtureRequest) -> None:
    python = python_with("sae_dashboard", "ELW_SAE_DASHBOARD_PYTHON")
    folder = request.getfixturevalue("exported")
    assert "12 features and" in run(python, "check", folder, "saedashboard")


def test_delphi_reads_its_latents(request: pytest.FixtureRequest) -> None:
    python = python_with("delphi", "ELW_DELPHI_PYTHON")
    folder = request.getfixturevalue("exported")
    assert "equal to the warehouse's" in run(python, "check", folder, "delphi")


def test_neuronpedia_reads_its_bundle_and_makes_the_same(request: pytest.FixtureRequest) -> None:
    if (checkout := os.environ.get("ELW_NEURONPEDIA")) is None:
        pytest.skip("ELW_NEURONPEDIA names no checkout of Neuronpedia, whose classes and converter are asked")
    python = python_with("sae_dashboard", "ELW_SAE_DASHBOARD_PYTHON")
    folder = request.getfixturevalue("exported")
    assert "converter makes the same" in run(python, "check", folder, f"neuronpedia={checkout}")
