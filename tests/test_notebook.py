"""The notebook: it runs on a warehouse and ends with the warehouse's numbers, and what is stored with it is clean."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from energy_lens import Warehouse

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "energy_lens_demo.ipynb"

#: What a path of somebody's machine looks like.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt|var|mnt)/|site-packages|[A-Z]:\\\\")


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The notebook as it lies in the repository."""
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cells: list[Any]) -> list[str]:
    """Media types of all outputs."""
    return [kind for cell in cells for output in cell["outputs"] for kind in output.get("data", ())]


def text_of(output: Any, kind: str) -> str:
    return "".join(output["data"][kind])


def test_what_is_stored_is_whole_small_and_of_no_machine(stored: dict[str, Any]) -> None:
    cells = code_cells(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] in ("error", "stream")]
    assert kinds(cells).count("image/png") >= 4
    assert NOTEBOOK.stat().st_size < 500_000
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    assert not any(cell["metadata"] for cell in stored["cells"])
    for cell in stored["cells"]:
        for output in cell.get("outputs", ()):
            output = {**output, "data": {k: v for k, v in output.get("data", {}).items() if k != "image/png"}}
            assert not MACHINE_PATH.search(json.dumps(output))
        assert not MACHINE_PATH.search("".join(cell["source"]))


def test_it_asks_for_the_demo_where_there_is_none(
    stored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("IPython", reason="comes with the extra `notebook`")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.delenv("ELW_WAREHOUSE", raising=False)
    first = "".join(code_cells(stored)[0]["source"])
    with pytest.raises(FileNotFoundError, match="run `make demo` first"):
        exec(compile(first, "first cell", "exec"), {})


def test_it_runs_and_ends_with_what_was_measured(
    tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a warehouse without an ablation it measures one; its conclusion has the numbers that were stored."""
    nbformat = pytest.importorskip("nbformat", reason="comes with the extra `notebook`")
    nbclient = pytest.importorskip("nbclient", reason="comes with the extra `notebook`")
    pytest.importorskip("ipykernel", reason="comes with the extra `notebook`")
    db = tmp_path / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    monkeypatch.setenv("ELW_WAREHOUSE", str(db))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell["outputs"] = []
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()

    cells = code_cells(notebook)
    assert kinds(cells).count("image/png") >= 4
    conclusion = text_of(cells[-1]["outputs"][-1], "text/markdown")
    with Warehouse(db) as warehouse:
        layer, feature, n_edited, delta, low = warehouse.sql(
            "SELECT layer, feature, n_edited, delta, delta_low FROM intervention_effects "
            "WHERE direction = 0 AND category = 'all'"
        ).fetchone()
        score, q_specific = warehouse.sql(
            "SELECT score, q_specific FROM efas WHERE energy = 'nll' AND gradient = 'decoder' AND category = 'all' "
            "AND layer = $layer AND feature = $feature", layer=layer, feature=feature,
        ).fetchone()  # fmt: skip
    assert f"Its score is {score:.3f}." in conclusion
    assert f"Ablated at {n_edited:,} tokens" in conclusion
    assert f"In all it was {delta:+.2f} nats" in conclusion
    assert ("cannot be told from noise" in conclusion) == (low is None or q_specific is None or q_specific >= 0.05)
    assert "Not concluded" in conclusion
