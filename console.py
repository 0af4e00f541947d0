"""What a person sees while a command works: sentences and progress bars, all on stderr.

stdout carries data only, so that a pipe never meets a word of these. Nobody has to read them: where stderr is closed,
full, or a pipe whose reader has left, they are lost and the work goes on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds between two drawings of a bar: on a terminal, and in a log, where every drawing is a line that stays.
ON_TERMINAL, IN_LOG = 0.5, 30.0

#: Characters of the names in a sentence, so that it stays a line.
ROOM_FOR_NAMES = 60


class Messages:
    """A stream for a person's eyes: what it cannot hand on is lost, and nothing is raised.

    stream: where to; None is stderr, whatever that is by then. Of a stream that is none nothing is written.
    """

    _given: Any = None

    def __init__(self, stream: Any = None) -> None:
        self._given = stream

    @property
    def _stream(self) -> Any:
        return sys.stderr if self._given is None else self._given

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # ValueError: it is closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


#: stderr as messages are written to it.
messages = Messages()


#: What sentences pass through before they are said (`spelled`).
_spellings: list[Callable[[str], str]] = []


def say(sentence: str) -> None:
    """A line for the user."""
    for spelling in _spellings:
        sentence = spelling(sentence)
    messages.write(f"{sentence}\n")
    messages.flush()


def some_of(names: Sequence[str]) -> str:
    """The first two of these names, more as long as a sentence with them stays a line, and how many more there are."""
    shown = list(names[:2])
    while len(shown) < len(names) and len(", ".join([*shown, names[len(shown)]])) <= ROOM_FOR_NAMES:
        shown.append(names[len(shown)])
    n_more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {n_more:,} more" if n_more else "")


@contextlib.contextmanager
def spelled(spelling: Callable[[str], str]) -> Iterator[None]:
    """Inside, every sentence is said as `spelling` puts it: in Python options have other names than in a terminal."""
    _spellings.append(spelling)
    try:
        yield
    finally:
        _spellings.remove(spelling)


def bar(what: str, total: float, unit: str = "", *, form: str | None = None, hidden: bool = False) -> tqdm[Any]:
    """A progress bar, to be used as a context manager: `.update(n)` with what was done since the last call.

    what: stands before it. unit: of total, as in token; counts of tokens, rows and bytes are shown in thousands.
    form: of the line, as tqdm's bar_format, where a count would say nothing.
    hidden: for work that is done before a bar could be read.
    """
    from tqdm import tqdm

    scaled, on_terminal = unit in ("token", "row", "B"), messages.isatty()
    return tqdm(
        desc=what, total=total, unit=unit or "it", unit_scale=scaled, bar_format=form, file=messages,
        dynamic_ncols=on_terminal, disable=hidden, mininterval=ON_TERMINAL if on_terminal else IN_LOG,
    )  # fmt: skip
