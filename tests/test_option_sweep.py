"""Every option and argument of every command, given what nobody should give: an answer or a sentence, nothing else.

Commands and parameters are read from the program, so that a new one is swept by itself. Commands run in this process,
on a warehouse without runs, one short text and a model that is not there: what is left is to say what is wrong.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from energy_lens.cli.app import app
from energy_lens.cli.main import main
from energy_lens.warehouse.database import Warehouse

#: What a parameter of this name is given while another one is swept, where it is required or stands in ALWAYS.
USUAL = {
    "paths": "texts", "model": "no/such/model", "name": "no/such/name", "query": "SELECT 1", "folder": "texts",
    "output": "made", "layers": "1", "feature": "1:1", "context_id": "0", "text": "A text.",
    "address": "hf:owner/repository/path",
}  # fmt: skip

#: Commands that would do their work on an empty warehouse, and take long over it, are given one that is not there.
ABSENT = {("report",): {"db": "no/such.duckdb"}}

#: Parameters that are always given, or a command would take its default model, or read stdin.
ALWAYS = ("model", "name", "query", "layers")

#: What nobody should give, by what it is.
HOSTILE = {
    "empty": "", "blank": " ", "tabs and line ends": "a\tb\r\nc", "not a number": "nan", "infinite": "inf",
    "negatively infinite": "-inf", "negative": "-1", "zero": "0", "negative fraction": "-0.5", "fraction": "0.5",
    "too large for a double": "1e999", "large for a float": "1e39", "31 bits": str(2**31), "63 bits": str(2**63),
    "64 bits": str(-(2**64)), "30 digits": "9" * 30, "5,000 digits": "9" * 5000, "unicode": "ünï 語 👍🏽",
    "right to left": "\u202eabc", "escape": "\x1b[31mred", "not UTF-8": "a\udce9b", "comma": ",", "commas": "1,,1",
    "colons": "1:2:3", "equals": "=", "quotes": "'; DROP TABLE runs; --\"", "hyphen": "-", "option": "--nonsense",
    "glob": "[*?]", "home of nobody": "~nobody-of-this-name/x", "a folder": "texts", "a file": "texts/text.txt",
    "below a file": "texts/text.txt/x", "not there": "no/such/place", "a binary file": "binary",
    "a device": "/dev/null", "memory": ":memory:", "here": ".", "long": "x" * 5000, "long path": "x/" * 3000,
}  # fmt: skip

#: What stands before a value that is to be swept too, where a parameter has a form of its own.
PREFIXES = {"parameter": ("n=",), "features": ("top:", "class:"), "feature": ("1:",), "address": ("hf:", "hf:a/b/")}

#: What is given twice.
TWICE = (("1", "1"), ("texts", "texts"), ("1", "x"), ("", " "))


class Swept(NamedTuple):
    """A parameter of a command, as it is found in the program."""

    command: tuple[str, ...]
    parameter: Any

    def words(self, *values: str) -> list[str]:
        """A command line in which the parameter has these values and the others have what is usual."""
        options, arguments = [], []
        for parameter in parameters_of(self.command):
            absent = ABSENT.get(self.command, {})
            usual = parameter.required or parameter.name in ALWAYS or parameter.name in absent
            value = (absent | USUAL)[parameter.name] if usual else None
            given = values if parameter.name == self.parameter.name else () if value is None else (value,)
            if parameter.param_type_name == "argument":
                arguments += given
            elif getattr(parameter, "is_flag", False):
                options += [parameter.opts[0]] * len(given)
            else:
                options += [f"{parameter.opts[0]}={value}" for value in given]
        return [*self.command, *options, *arguments]


def command_at(path: tuple[str, ...]) -> Any:
    command: Any = COMMAND
    for word in path:
        command = command.commands[word]
    return command


def parameters_of(path: tuple[str, ...]) -> list[Any]:
    return [parameter for parameter in command_at(path).params if parameter.name not in ("help", "debug")]


def every_command(path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name in getattr(command_at(path), "commands", {}):
        yield from every_command((*path, name))


#: Made once: it takes longer than a command that fails.
COMMAND = typer.main.get_command(app)
COMMANDS = list(every_command())


def lines_to_try(path: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """(what is tried, command line) of every hostile value of every parameter."""
    for parameter in parameters_of(path):
        swept = Swept(path, parameter)
        name = parameter.opts[0]
        if getattr(parameter, "is_flag", False):
            yield f"{name} given", swept.words("")
            yield f"{name} twice", swept.words("", "")
            continue
        for what, value in HOSTILE.items():
            yield f"{name} {what}", swept.words(value)
            for prefix in PREFIXES.get(parameter.name, ()):
                yield f"{name} {prefix}… {what}", swept.words(prefix + value)
        for values in TWICE:
            yield f"{name} twice: {values}", swept.words(*values)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a text, a binary file, a warehouse without runs, and a home and cache of its own."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "text.txt").write_text("A text of a few words.\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    Warehouse(tmp_path / "elw.duckdb", writable=True).close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ELW_WAREHOUSE", raising=False)
    monkeypatch.setenv("ELW_MODEL_FILE", str(tmp_path / "no-model.gguf"))  # not even by mistake is one fetched
    monkeypatch.setattr(typer.main, "get_command", lambda _: COMMAND)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    return tmp_path


def outcome(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command line."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("surrogateescape", "backslashreplace")]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main(words)
    for stream in streams:
        stream.flush()
    return code, streams[1].buffer.getvalue().decode()  # type: ignore[attr-defined]


def fault(words: list[str]) -> str | None:
    """What is wrong with how a command line was answered; None when nothing is."""
    try:
        code, err = outcome(words)
    except BaseException as error:
        return f"raises {type(error).__name__}: {error}"
    last = (err.rstrip("\n").splitlines() or [""])[-1]
    if "Unexpected" in err or "Traceback" in err:
        return last
    if code not in (0, 1, 2, 3):
        return f"exit code {code}"
    if code and not (last.startswith("elw: ") or err.startswith("Usage: ")):
        return f"exit code {code} and no sentence of one line: {err[-300:]!r}"
    if "\x1b" in err or "\u202e" in err:
        return "sends the terminal what it acts on"
    return None


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_whatever_is_given_is_answered_by_a_sentence(path: tuple[str, ...], house: Path) -> None:
    faults = {what: wrong for what, words in lines_to_try(path) if (wrong := fault(words)) is not None}
    assert not faults, "\n".join(f"{what}: {wrong[:300]}" for what, wrong in faults.items())
    left = [path for path in house.rglob(".*") if path.suffix == ".tmp"]
    assert not left, "scratch files are left over"


def test_every_parameter_is_swept() -> None:
    """Of options and arguments none is passed over, and all that a command requires is known here."""
    tried = {path: [what for what, _ in lines_to_try(path)] for path in COMMANDS}
    for path in COMMANDS:
        for parameter in parameters_of(path):
            assert any(what.startswith(parameter.opts[0]) for what in tried[path])
    required = {p.name for path in COMMANDS for p in parameters_of(path) if p.required}
    assert required <= USUAL.keys()
