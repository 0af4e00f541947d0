"""Values of a query's $names: what a user types, or a query's own comment says, in; what DuckDB binds out.

A comment at the head of a query may declare them, one a line:

    -- $layer: only of this layer (INTEGER, default NULL)
    -- $text: part of a token (VARCHAR)

A value that is not given is the default, and without one the query asks for it. Of a VARCHAR the text is taken as it
is, so that 42 is a string too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import UsageError

#: Characters of the longest integer that a HUGEINT can be, with its sign.
LONGEST_NUMBER = 39

_DECLARATION = re.compile(r"\$(\w+):\s*(.*?)\s*\((\w+)(?:,\s*default\s+(.+?))?\)", re.ASCII | re.IGNORECASE)

#: Kinds whose values are looked at, and what a value has to be.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "INTEGER": ((int,), "an integer"),
    "DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
}


@dataclass(frozen=True)
class Parameter:
    """A $name as a query's comment declares it."""

    name: str
    meaning: str
    kind: str  #: INTEGER, DOUBLE, BOOLEAN or VARCHAR; others are not looked at
    is_required: bool  #: no default is declared
    default: Any = None

    def described(self) -> str:
        """As a list of queries shows it."""
        shown = "" if self.is_required else f" = {'NULL' if self.default is None else self.default}"
        return f"${self.name}{shown}: {self.meaning}"


def head_comment(script: str) -> list[str]:
    """The lines of the comment that a script begins with, without their dashes."""
    lines = []
    for line in script.strip().splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return lines


def declared(script: str) -> dict[str, Parameter]:
    """The parameters that a script's head declares, by name, in its order."""
    found = {}
    for line in head_comment(script):
        if match := _DECLARATION.fullmatch(line):
            name, meaning, kind, default = match.groups()
            kind = kind.upper()
            value = None if default is None else value_of(default, kind == "VARCHAR")
            found[name] = Parameter(name, meaning, kind, default is None, value)
    return found


def parse_parameters(assignments: Sequence[str], known: Mapping[str, Parameter] | None = None) -> dict[str, Any]:
    """`name=value` each: an integer, a number, true, false or null where the value reads as one, else a string.

    Single quotes make a string of anything: `n='42'`; a quote inside them is doubled.
    known: as the query declares them. Raises UsageError for what is no assignment, or no value of a declared kind.
    """
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        try:
            name, equals, text = _utf8(assignment).partition("=")
        except UnicodeError as error:
            raise UsageError("A value of -p is not UTF-8 text: convert it.") from error
        name = name.strip().removeprefix("$")
        if not equals or not re.fullmatch(r"\w+", name):
            raise UsageError(f"-p {assignment} is not name=value: write -p layer=15 for $layer.")
        if name in parameters:
            raise UsageError(f"-p gives ${name} twice: leave one out.")
        parameter = (known or {}).get(name)
        is_text = parameter is not None and parameter.kind == "VARCHAR"
        if not is_text and len(text) > LONGEST_NUMBER and text.lstrip("+-").isdecimal():
            raise UsageError(f"-p {name} is an integer of more than 38 digits: write a string, \"{name}='…'\".")
        parameters[name] = value_of(text, is_text)
        if parameter is not None:
            _check(parameter, parameters[name], text)
    return parameters


def with_defaults(script: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values given and the declared defaults of the others. Raises UsageError for one that is asked for."""
    parameters = declared(script)
    for parameter in parameters.values():
        if parameter.is_required and parameter.name not in given:
            raise UsageError(
                f"The query needs a value of ${parameter.name}, {parameter.meaning}: give it with "
                f"-p {parameter.name}=…."
            )
    return {name: parameter.default for name, parameter in parameters.items() if not parameter.is_required} | dict(
        given
    )


def value_of(text: str, is_text: bool = False) -> Any:
    """What a text reads as: null, true, false, a number, a string in quotes, else itself."""
    words = {"true": True, "false": False, "null": None}
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if text.lower() == "null":
        return None
    if is_text:
        return text
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
        return float(text)
    return text


def _check(parameter: Parameter, value: Any, text: str) -> None:
    kinds, needed = _KINDS.get(parameter.kind, ((object,), ""))
    fits = value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool) or not needed))
    if not fits:
        raise UsageError(f"-p {parameter.name} is {text[:80]!r}; {needed} is needed: {parameter.meaning}.")


def _utf8(argument: str) -> str:
    """A command-line argument read as UTF-8, whatever the locale took its bytes for."""
    return os.fsencode(argument).decode("utf-8")
