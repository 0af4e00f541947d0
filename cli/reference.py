"""The program's own help in, docs/reference/cli.md out: `python -m energy_lens.cli.reference`.

What `--help` says of every command, as Markdown; a test holds the page to it. The layout is ours and not the help
formatter's, so that the page is the same whichever version of it is installed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from enum import EnumMeta
from typing import Any

import typer

from energy_lens.cli import app

_HEAD = """# The command line

Generated from the program's help by `python -m energy_lens.cli.reference`; do not edit. The
[how-to pages](../README.md) show the commands at work. Every command takes `--help`, and `--debug` to show where an
error came from.
"""


def reference() -> str:
    """The page, in Markdown: a section a command, groups before their commands."""
    return _HEAD + "".join(_section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """(words that call it, command) of the program and of every command, in the order of `elw --help`."""
    yield from _within("elw", typer.main.get_command(app))


def _within(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner_name, inner in getattr(command, "commands", {}).items():
        yield from _within(f"{name} {inner_name}", inner)


def _section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = [name, "[OPTIONS]" if options else "", "COMMAND" if hasattr(command, "commands") else ""]
    usage += [_metavar(argument) for argument in arguments]
    rows = [(f"`{_metavar(argument)}`", argument.help or "", "") for argument in arguments]
    for option in options:
        spelled = ", ".join(f"`{word}`" for word in (*option.secondary_opts, *option.opts))
        metavar = "" if option.is_flag else f" `{_metavar(option)}`"
        rows.append((spelled + metavar, option.help or "", _default(option)))
    for inner_name, inner in getattr(command, "commands", {}).items():
        rows.append((f"`{inner_name}`", _first_sentence(inner.help), ""))
    text = f"\n## {name}\n\n`{' '.join(word for word in usage if word)}`\n\n{inspect.cleandoc(command.help or '')}\n"
    if rows:
        text += "\n| | | default |\n|---|---|---|\n"
        text += "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in rows)
    if lines := example_lines(command):
        text += "\n```sh\n" + "\n".join(lines) + "\n```\n"
    return text


def example_lines(command: Any) -> list[str]:
    """The lines that a command's help shows as examples (`options.examples`)."""
    return [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]


def _metavar(parameter: Any) -> str:
    """What stands for the value: as declared, else the choices."""
    return parameter.metavar or "|".join(_choices(parameter)) or str(parameter.name)


def _choices(parameter: Any) -> list[str]:
    """The words that an option takes; newer versions of typer keep the enumeration itself, older ones its words."""
    kind = getattr(parameter, "type", None) or getattr(parameter.type_descriptor, "annotation", None)
    words = getattr(kind, "choices", kind if isinstance(kind, EnumMeta) else ())
    return [str(getattr(word, "value", word)) for word in words]


def _default(option: Any) -> str:
    value = option.default
    if value is None or value is False or callable(value) or type(value).__name__ == "Sentinel":
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _first_sentence(text: str | None) -> str:
    return inspect.cleandoc(text or "").split("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    """A table's cell: a bar outside of code, and inside of it as GitHub wants it, is escaped."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
