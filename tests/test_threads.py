"""Every command is polite about threads: while they wait for each other they sleep, whatever loads torch first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import energy_lens

PACKAGE_PARENT = Path(energy_lens.__file__).parent.parent

#: What the commands import that run a model, one a command.
ENTRIES = (
    "analysis.replay",
    "analysis.interventions.run",
    "analysis.interventions.example",
    "analysis.attractors.run",
    "analysis.attractors.doses",
    "analysis.permutation_check",
    "analysis.model_check.run",
    "ingest.pipeline",
    "ingest.sae.evaluation",
    "ingest.training.saes",
    "ingest.training.lenses",
)


def spins(code: str, **environment: str) -> int:
    """How often a waiting thread looks before it sleeps, as the process's own OpenMP library says when it is loaded."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    clean |= {"PYTHONPATH": str(PACKAGE_PARENT), "OMP_DISPLAY_ENV": "VERBOSE", **environment}
    outcome = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    lines = [line for line in outcome.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not lines:
        pytest.skip("this torch has an OpenMP library that does not show its settings")
    return int(lines[0].partition("=")[2].strip(" '"))


@pytest.mark.parametrize("entry", ENTRIES)
def test_waiting_threads_sleep_whatever_command_loads_torch(entry: str) -> None:
    assert spins(f"import energy_lens.{entry}, torch") == 0


def test_what_a_user_set_stands() -> None:
    assert spins("import energy_lens.analysis.replay, torch", OMP_WAIT_POLICY="ACTIVE") > 0
