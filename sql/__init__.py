"""SQL by name: `statement("finish/moments")` is the text of sql/finish/moments.sql."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def statement(name: str) -> str:
    """The text of sql/<name>.sql."""
    return (FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def identifier(name: str) -> str:
    """A name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string quoted for SQL."""
    return "'" + text.replace("'", "''") + "'"


def gradient_column(energy: str) -> str:
    """Quoted name of the column of activations that holds an energy's decoder gradient."""
    return identifier(f"g_{energy}")
