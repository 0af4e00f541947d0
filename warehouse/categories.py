"""A category's name in, the name it is stored under out: the words that stand for totals are kept for totals.

Statistics of all documents stand in rows of category `all`, beside those of each category; an SAE's evaluation has
`macro` beside them, the mean over categories. A folder or a column may use these words too. Such a category is stored
with a slash behind its name, which no folder's name can have: `all/`. Queries for totals stay as they are,
`category = 'all'`, and no category can come in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Every document together, in statistics and evaluations.
ALL = "all"

#: The mean over categories, in evaluations.
MACRO = "macro"

_RESERVED = re.compile(f"({ALL}|{MACRO})/*")


def stored_category(name: str) -> str:
    """A category's name as it is stored. Different names stay different: `all` is `all/`, and `all/` is `all//`."""
    return f"{name}/" if _RESERVED.fullmatch(name) else name


def renamed_categories(names: Iterable[str]) -> str | None:
    """A sentence about those of the names that are stored under another one; None when there is none."""
    renamed = [
        f"{name} is stored as {stored_category(name)}" for name in sorted(set(names)) if _RESERVED.fullmatch(name)
    ]
    return f"The category {', '.join(renamed)}: {ALL} and {MACRO} stand for totals." if renamed else None
