"""LAYER:FEATURE, as people write a feature, in; its layer and its number out."""

from __future__ import annotations

import re
from typing import NamedTuple

from energy_lens.errors import UsageError


class FeatureName(NamedTuple):
    """A feature of a run: the hooked layer and the number of the feature in that layer's SAE."""

    layer: int
    feature: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.feature}"

    @classmethod
    def parse(cls, text: str, option: str) -> FeatureName:
        """Read 15:656. Raises UsageError for anything else; option: where it was typed, as in --features."""
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text.strip(), re.ASCII)
        if match is None:
            raise UsageError(f"{option} is {text!r}; say layer and feature, as in 15:656.")
        return cls(int(match[1]), int(match[2]))
