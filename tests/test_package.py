"""The package as it is installed: what the wheel holds, and that it works without the source beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_COPIED = (".git", ".venv", ".types", ".*_cache", ".hypothesis", "__pycache__", "*.duckdb*", "dist", "report")

#: Folders of the package, and what belongs into the wheel of each.
PACKAGE = {"analysis": "*.py", "cli": "*.py", "ingest": "*.py", "reports": "*.py", "sql": "*.sql", "warehouse": "*.py"}


def has(distribution: str, major: int = 0) -> bool:
    """Whether a distribution of at least that version is installed here."""
    try:
        return int(metadata.version(distribution).split(".")[0]) >= major
    except metadata.PackageNotFoundError:
        return False


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without this process's PYTHONPATH; it must succeed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built through an sdist from a copy of the tree that also holds a stale build/ folder."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    stale = source / "build" / "lib" / "energy_lens" / "stale.py"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_text("raise SystemExit('stale')\n")
    recent = has("setuptools", 77)
    if has("build"):
        isolation: list[str | Path] = ["--no-isolation"] if recent else []
        run([sys.executable, "-m", "build", *isolation, "--outdir", folder, source], folder)
    elif recent:
        hook = "import setuptools.build_meta as backend; backend.build_{}({!r})"
        run([sys.executable, "-c", hook.format("sdist", str(folder))], source)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder / "sdist", filter="data")
        run([sys.executable, "-c", hook.format("wheel", str(folder))], next((folder / "sdist").iterdir()))
    else:
        pytest.skip("neither build nor setuptools 77 is installed")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's bin folder: the wheel installed, its dependencies borrowed from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    # After the installation, or pip would find this environment's own energy-lens and install nothing.
    borrowed = {str(Path(spec.origin).parent.parent) for spec in map(util.find_spec, ("numpy", "torch", "duckdb")) if
                spec and spec.origin}  # fmt: skip
    site_packages = next(folder.glob("lib/python*/site-packages"))
    (site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return folder / "bin"


def pattern(line: str) -> re.Pattern[str]:
    """A line of wheel_contents.txt as a regular expression."""
    parts = {r"\*\*/": "(?:.*/)?", r"\*": "[^/]*"}
    return re.compile(re.sub(r"\\\*\\\*/|\\\*", lambda found: parts[found[0]], re.escape(line)))


def test_the_wheel_holds_what_it_should(wheel: Path) -> None:
    """Every file is expected, and everything expected is there: no tests, benchmarks or stale builds."""
    files = zipfile.ZipFile(wheel).namelist()
    lines = (ROOT / "tests" / "wheel_contents.txt").read_text().splitlines()
    patterns = [pattern(line) for line in lines if line and not line.startswith("#")]
    assert [file for file in files if not any(p.fullmatch(file) for p in patterns)] == []
    assert [p.pattern for p in patterns if not any(p.fullmatch(file) for file in files)] == []
    assert len(files) == len(set(files))
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 40e6


def test_the_wheel_lacks_nothing_of_the_source(wheel: Path) -> None:
    """Each module, query and template of the source is in it, byte for byte."""
    archive = zipfile.ZipFile(wheel)
    files = [path for folder, kind in PACKAGE.items() for path in (ROOT / folder).rglob(kind)]
    files += [*ROOT.glob("*.py"), ROOT / "py.typed", *(ROOT / "reports" / "templates").iterdir()]
    files += [path for name in ("templates", "static") for path in (ROOT / "reports" / "site" / name).iterdir()]
    files += [path for path in (ROOT / "ingest" / "shipped").rglob("*") if path.suffix in (".json", ".safetensors")]
    assert len(files) > 60
    for path in files:
        assert archive.read(f"energy_lens/{path.relative_to(ROOT).as_posix()}") == path.read_bytes(), path


def test_the_installed_command_starts(installed: Path, tmp_path: Path) -> None:
    """`elw --help` lists the commands, from any folder, out of the wheel."""
    help_text = run([installed / "elw", "--help"], tmp_path).stdout
    for command in ("ingest", "sql", "tables", "describe", "runs", "report"):
        assert command in help_text
    where = run([installed / "python", "-c", "import energy_lens.cli as c; print(c.__file__)"], tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_installed_package_reads_and_makes_warehouses(
    installed: Path, tiny_warehouse: Path, tmp_path: Path
) -> None:
    """`elw sql` answers from a warehouse as the library does, and the schema of a new file comes out of the wheel."""
    from energy_lens import Warehouse

    query = "SELECT layer, energy, count(*) AS n FROM efas GROUP BY ALL ORDER BY ALL"
    output = run([installed / "elw", "sql", "--db", tiny_warehouse, "--format", "json", query], tmp_path).stdout
    with Warehouse(tiny_warehouse) as warehouse:
        expected = warehouse.sql(query).fetchall()
    assert expected
    assert [tuple(row.values()) for row in json.loads(output)] == expected
    script = """
from energy_lens import Warehouse
with Warehouse("new.duckdb", writable=True) as warehouse:
    print(warehouse.sql("SELECT count(*) FROM efas").value())
"""
    assert run([installed / "python", "-c", script], tmp_path).stdout.strip() == "0"


def test_the_installed_package_renders_a_report(installed: Path, tiny_warehouse: Path, tmp_path: Path) -> None:
    """Templates and report queries are found."""
    run([installed / "elw", "report", "--db", tiny_warehouse, "--output", "out"], tmp_path)
    for name in ("research_report.md", "research_report.html", "raw_results.json"):
        assert (tmp_path / "out" / name).stat().st_size > 1_000


def test_the_installed_package_loads_its_saes(installed: Path, tmp_path: Path) -> None:
    """Every shipped SAE is read from the wheel: the default layers of the default model, 2048 features, k = 8."""
    script = """
import json, torch
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL
from energy_lens.ingest.sae.choosing import shipped_folder, shipped_layers
from energy_lens.ingest.sae.formats import load_sae
facts = []
for layer in shipped_layers(DEFAULT_MODEL):
    sae = load_sae(shipped_folder(DEFAULT_MODEL, layer))
    norms = sae.W_dec.norm(dim=1)
    complete = sae.norm_median is not None and sae.quartiles is not None
    slots = sae.encode(torch.zeros(1, 576)).values.shape[1]
    facts.append([sae.layer, sae.d_model, sae.d_sae, sae.k, bool((norms - 1).abs().max() < 1e-2), complete, slots])
print(json.dumps([list(DEFAULT_LAYERS), facts]))
"""
    if not list((ROOT / "ingest" / "shipped").glob("*/layer_*")):
        pytest.skip("no SAEs are shipped yet")
    layers, facts = json.loads(run([installed / "python", "-c", script], tmp_path).stdout)
    assert facts == [[layer, 576, 2048, 8, True, True, 8] for layer in layers]
