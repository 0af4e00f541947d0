"""The templates with what they call: numbers and foreign text in, how a page of the site shows them out.

Everything that a template of .html.j2 writes is escaped. `environment().get_template(name).render(context)` is a page,
with a context of `pages` or `documents`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from energy_lens.reports import formatting
from energy_lens.reports.site import pages
from energy_lens.reports.templating import environment_of

_HERE = Path(__file__).parent

#: Templates: the site's own, and the sentences that it shares with the report.
TEMPLATES = (_HERE / "templates", _HERE.parent / "templates")

#: Texts of tokens that are kept as they are shown: most pages show the same ones.
TEXTS_KEPT = 1 << 16

#: Characters of a token that stands beside others, as in a list.
BRIEF = 16


@cache
def environment() -> jinja2.Environment:
    """The templates with what they call; everything of .html.j2 is escaped."""
    made = environment_of(
        TEMPLATES,
        ("count", "plural", "fixed", "percent", "code", "listing", "prose_as_html", "significant", "probability",
         "interval", "visible", "visible_token"),
    )  # fmt: skip
    made.filters["cell"] = formatting.html_cell
    made.filters["short"] = _short
    made.filters["shorts"] = _shorts
    made.filters["brief"] = _brief
    made.filters["tick"] = _tick
    made.filters["distinct"] = _distinct
    made.filters["shown"] = _shown
    made.filters["shown_lines"] = _shown_lines
    made.filters["as_data"] = as_data
    made.tests["told_from_zero"] = pages.is_told_from_zero
    made.tests["beyond_controls"] = pages.is_beyond_controls
    return made


def _short(value: float | None) -> str:
    """A number for a script to read; none is empty."""
    return "" if value is None else f"{value:.3g}"


def _shorts(values: Sequence[float | None]) -> str:
    """Numbers for a script to read, between blanks."""
    return " ".join(map(_short, values))


def _tick(value: float) -> str:
    """A power of ten, or 0, at an axis."""
    return f"{value:g}".replace("-", "−")


def _distinct(texts: Sequence[str], most: int) -> list[str]:
    """The first different ones."""
    return list(dict.fromkeys(texts))[:most]


@lru_cache(TEXTS_KEPT)
def _brief(text: str) -> Markup:
    """A token among others: blanks seen, and not many of them."""
    return escape(formatting.visible(text.replace(" ", "␣"), BRIEF))


@lru_cache(TEXTS_KEPT)
def _shown(text: str) -> Markup:
    """A token in running text, on one line."""
    return escape(formatting.visible(text, formatting.MAX_TOKEN))


def _shown_lines(text: str) -> Markup:
    """A token in running text that keeps its lines."""
    return _shown(text).replace("↵", "↵\n")


def as_data(value: Any) -> Markup:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
