"""Folders of templates in, an environment that renders them out: what is missing is an error, and HTML is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from energy_lens.reports import formatting

if TYPE_CHECKING:
    import jinja2


def environment_of(folders: Iterable[Path], filters: Iterable[str]) -> jinja2.Environment:
    """Templates of the first of the folders that has them; everything of .html.j2 is escaped.

    filters: names of functions of `formatting` that templates call.
    """
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(list(folders)),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in filters:
        made.filters[name] = getattr(formatting, name)
    return made
