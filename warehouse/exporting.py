"""What every export gives back; each is a function (warehouse file, folder, words of --features) of a module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    files: Sequence[Path]  #: the main ones, for a person to open or to hand on
    notes: list[str] = field(default_factory=list)  #: sentences on what was left out, and why
