"""What a person sees while a command works: sentences and progress bars, all on stderr.

stdout carries data only, so that a pipe never meets a word of these.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds between two drawings of a bar: on a terminal, and in a log, where every drawing is a line that stays.
ON_TERMINAL, IN_LOG = 0.5, 30.0


def say(sentence: str) -> None:
    """A line for the user."""
    print(sentence, file=sys.stderr, flush=True)


def bar(what: str, total: float, unit: str = "", *, form: str | None = None, hidden: bool = False) -> tqdm[Any]:
    """A progress bar, to be used as a context manager: `.update(n)` with what was done since the last call.

    what: stands before it. unit: of total, as in token; counts of tokens, rows and bytes are shown in thousands.
    form: of the line, as tqdm's bar_format, where a count would say nothing.
    hidden: for work that is done before a bar could be read.
    """
    from tqdm import tqdm

    scaled = unit in ("token", "row", "B")
    return tqdm(
        desc=what, total=total, unit=unit or "it", unit_scale=scaled, bar_format=form, file=sys.stderr,
        disable=hidden, mininterval=ON_TERMINAL if sys.stderr.isatty() else IN_LOG,
    )  # fmt: skip
