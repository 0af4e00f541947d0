"""Every `--help` ends with a line to type: it is of that command, it parses, and it runs where that costs little."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import typer.main

import energy_lens
from energy_lens.cli import completion
from energy_lens.cli.app import app
from energy_lens.cli.main import main
from energy_lens.cli.reference import commands, example_lines, reference
from energy_lens.ingest.energies.registry import ENERGIES

PACKAGE_PARENT = Path(energy_lens.__file__).parent / ".types"
EVERY = dict(commands())
LINES = [(name, line) for name, command in EVERY.items() for line in example_lines(command)]

#: Commands whose examples only read a warehouse, the cache, or nothing.
CHEAP = (
    "elw sql",
    "elw tables",
    "elw describe",
    "elw runs",
    "elw check",
    "elw migrate",
    "elw sae list",
    "elw model list",
)


@pytest.mark.parametrize("name", EVERY)
def test_every_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands, on a line of its own that fits a terminal, so that it can be copied."""
    assert main([*name.split()[1:], "--help"]) == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    lines = example_lines(EVERY[name])
    assert lines
    for line in lines:
        assert line in shown
        assert len(line) <= 76
    assert any(line.startswith(name) for line in lines), "an example is of its own command"


@pytest.mark.parametrize(("name", "line"), LINES)
def test_every_example_parses(name: str, line: str) -> None:
    """Down to the last option: whatever typer would refuse is refused here."""
    if line == "elw ingest --help":
        return
    command: Any = typer.main.get_command(app)
    context = command.make_context("elw", shlex.split(line)[1:])
    while context.args or context._protected_args:
        words = [*context._protected_args, *context.args]
        if not hasattr(context.command, "commands"):
            break
        _, inner, rest = context.command.resolve_command(context, words)
        context = inner.make_context(inner.name, rest, parent=context)
    assert not context.args


@pytest.mark.parametrize(("name", "line"), [found for found in LINES if found[1].startswith(CHEAP)])
def test_cheap_examples_run(
    name: str, line: str, tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = shlex.split(line)[1:]
    if words == ["sql"]:
        return  # the shell, which is no work of a moment
    (tmp_path / "elw.duckdb").write_bytes(tiny_warehouse.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELW_WAREHOUSE", raising=False)
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    assert main(words) == 0, capsys.readouterr().err


def test_the_reference_shows_them() -> None:
    page = reference()
    for _, line in LINES:
        assert f"\n{line}\n" in page


# ------------------------------------------------------------------------------------------------ completion


def complete(words: list[str], db: Path | None, **environment: str) -> list[str]:
    """What bash is offered at the end of these words."""
    asked = {
        "_ELW_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(["elw", *words]), "COMP_CWORD": str(len(words)),
        "PYTHONPATH": f"{PACKAGE_PARENT}:{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    if db is not None:
        asked["ELW_WAREHOUSE"] = str(db)
    done = subprocess.run(
        [sys.executable, "-m", "energy_lens.cli"], env=os.environ | asked | environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_tab_offers_what_the_warehouse_holds(tiny_warehouse: Path) -> None:
    before = tiny_warehouse.stat().st_mtime_ns
    assert complete(["efas", "test", "--energy", "nll,ho"], tiny_warehouse) == ["nll,hopfield"]
    assert complete(["efas", "test", "--layer", ""], tiny_warehouse) == ["1", "2"]
    assert complete(["efas", "test", "--category", ""], tiny_warehouse) == ["all", "code", "natural"]
    assert complete(["runs", "--use", ""], tiny_warehouse) == ["1"]
    assert complete(["describe", "efas_h"], tiny_warehouse) == ["efas_halves"]
    assert tiny_warehouse.stat().st_mtime_ns == before


def test_tab_offers_commands_queries_and_parameters(tmp_path: Path) -> None:
    """bash counts the @ as a word of its own."""
    nowhere = tmp_path / "none.duckdb"
    assert complete(["sq"], nowhere) == ["sql"]
    assert complete(["sql", "@", "top"], nowhere) == ["@top_nll"]
    assert "@fires_on" in complete(["sql", "@"], nowhere)
    assert complete(["sql", "@", "top_nll", "-p", ""], nowhere) == ["layer=", "n="]
    assert complete(["efas", "test", "--layer", ""], nowhere) == []
    assert not nowhere.exists()


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef elw"), ("fish", "complete --command elw")]
)
def test_each_shell_is_served(
    shell: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(completion, "shell_in_use", lambda: shell)
    assert main(["--show-completion"]) == 0
    script = capsys.readouterr().out
    assert sign in script
    assert main(["--install-completion"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert shell in err
    held = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(script.strip() in text for text in held)


def test_energies_are_those_of_the_registry() -> None:
    assert tuple(ENERGIES) == completion.KNOWN_ENERGIES


def test_completions_have_types() -> None:
    """typer tells a completer's arguments by their types."""
    for name in ("layers", "energies", "categories", "run_ids", "relations", "parameters", "queries"):
        assert "incomplete" in typing.get_type_hints(getattr(completion, name))
