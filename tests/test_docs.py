"""What the documentation shows works: its SQL runs, its Python runs, its commands exist with those options."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_lens import Warehouse
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.residuals import harvest_residuals
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.warehouse.parameters import with_defaults

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block in a language."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        found += [(page.relative_to(ROOT).as_posix(), text) for text in texts]
    return found


@pytest.mark.parametrize(("page", "query"), blocks("sql"))
def test_sql_runs(page: str, query: str, tiny_warehouse: Path) -> None:
    """Every SQL block of the docs runs on a warehouse."""
    with Warehouse(tiny_warehouse) as warehouse:
        assert warehouse.sql(query, **with_defaults(query, {})).columns


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_runs(page: str, code: str, tiny_warehouse: Path, tmp_path: Path) -> None:
    """Every Python block of the docs runs beside a warehouse."""
    (tmp_path / "elw.duckdb").write_bytes(tiny_warehouse.read_bytes())
    outcome = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def commands() -> list[str]:
    """Every `elw …` line of the docs' shell blocks, without its comment."""
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    return sorted({line.split("  #")[0].strip() for line in lines if line.startswith("elw ")})


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line: str) -> None:
    """Every command of the docs exists and has the options that are shown."""
    import typer.main

    from energy_lens.cli.app import app

    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        if words[0].startswith("-") and command.invoke_without_command:
            break  # the group is a command too
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    options = (option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))
    known = {"--help", *options}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in known, f"{word} in {line}"


def test_the_worked_energy_is_stored_and_its_gradient_is_one(
    tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class of add-an-energy.md, ingested as the page says: entropies, and a gradient of central differences."""
    ((_, code),) = [found for found in blocks("python") if found[0].endswith("add-an-energy.md")]
    (tmp_path / "my_energies.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = tiny("llama")
    db = tmp_path / "entropy.duckdb"
    ingest(
        [small_corpus],
        IngestOptions(
            db=db, model=str(own.folder), saes=(own.saes,), dtype="float32", context_length=32, store_gradients=True,
            energies=("nll", "my_energies:LensEntropy", "hopfield"), max_tokens=1,
        ),
    )  # fmt: skip
    with Warehouse(db) as warehouse:
        low, high = warehouse.sql(
            "SELECT min(value), max(value) FROM energies WHERE energy = 'lens_entropy'"
        ).fetchall()[0]
        token, layer, vector = warehouse.sql(
            "SELECT token_id, layer, vector FROM gradients WHERE energy = 'lens_entropy' ORDER BY ALL LIMIT 1"
        ).fetchall()[0]
        scored = warehouse.sql("SELECT count(score) FROM efas WHERE energy = 'lens_entropy'").value()
        ids = warehouse.sql(
            "SELECT vocabulary_id FROM tokens WHERE token_id // 32 = $context ORDER BY token_id", context=token // 32
        ).pl()["vocabulary_id"]
    assert 0 < low < high < math.log(512)
    assert scored > 50
    model = load_model(str(own.folder), torch.float64)
    x = harvest_residuals(model, torch.tensor([ids.to_list()]), [layer])[layer][0, token % 32]

    def entropy(at: torch.Tensor) -> float:
        log_p = model.unembedding(model.final_norm(at[None])).log_softmax(-1)
        return float(-(log_p.exp() * log_p).sum())

    gradient = torch.tensor(vector, dtype=torch.float64)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        along = (entropy(x + step) - entropy(x - step)) / (2 * step.norm())
    assert float(along) == pytest.approx(float(gradient.norm()), rel=1e-3)


def test_links_lead_somewhere() -> None:
    """Relative links of the docs point at files that exist."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_data_dictionary_is_current() -> None:
    """docs/data-dictionary.md is what the SQL comments say, and no column goes without a comment."""
    from energy_lens.warehouse.dictionary import data_dictionary

    text = data_dictionary()
    assert (ROOT / "docs" / "data-dictionary.md").read_text(encoding="utf-8") == text
    assert "|  |\n" not in text


def test_command_line_reference_is_current() -> None:
    """docs/reference/cli.md is what the program's help says."""
    from energy_lens.cli.reference import reference

    assert (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8") == reference()


def test_every_command_and_option_stands_in_the_docs() -> None:
    """Each command is shown at work by the README or a how-to; each option is on the page of its command, and says what
    it is for and, unless it is a switch, what it takes."""
    from energy_lens.cli.reference import commands

    shown = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name not in ("cli.md",))
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = {section.split("\n", 1)[0]: section for section in page.split("\n## ")[1:]}
    known = dict(commands())
    assert set(sections) == set(known)
    for name, command in known.items():
        assert command.help, name
        if not hasattr(command, "commands") or command.invoke_without_command:
            assert re.search(rf"\b{name}\b", shown), f"no page but the reference shows {name}"
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name} has no help"
            for word in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"`{word}`" in sections[name], f"{word} of {name}"


def test_no_file_of_commands_is_forgotten() -> None:
    """Each file in cli/ that has commands is imported by main, or its commands would not exist."""
    from energy_lens.cli.main import COMMANDS

    with_commands = {
        path.stem
        for path in (ROOT / "cli").glob("*.py")
        if re.search(r"^@\w+\.(command|callback)\(", path.read_text(), re.M)
    }
    assert {module.__name__.rpartition(".")[2] for module in COMMANDS} == with_commands - {"app"}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_map_names_files_that_exist(page: str) -> None:
    """Every path in the pages for newcomers is there; where NAME stands for one of one's own, its folder is."""
    paths = re.findall(r"`([\w.-]+/[\w./-]*|\w+\.(?:py|toml))`", (ROOT / page).read_text(encoding="utf-8"))
    assert len(paths) > 10
    for path in paths:
        there = ROOT / path if "NAME" not in path else (ROOT / path).parent
        assert there.exists(), path
