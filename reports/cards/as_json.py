"""What is read for a card, a context or a token in, one JSON object out.

Characters that a terminal would act on or hide are escaped as JSON does it; NaN and infinity are null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from math import isfinite
from typing import Any

from energy_lens.reports.cards.reading import Card
from energy_lens.warehouse.terminal import visible


def card_object(card: Card) -> dict[str, Any]:
    """A card as one object: its parts stand beside its facts, each a list of objects."""
    head = {"name": card.name, "layer": card.layer, "feature": card.feature, "energy": card.energy}
    return {**head, "facts": card.facts, **card.parts, "examples": card.examples}


def as_json(value: Any) -> str:
    """One line of JSON of mappings, sequences and dataclasses."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return re.sub(r"[^\x20-\x7e]", _escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if visible(character) == character else json.dumps(character)[1:-1]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(content) for content in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
