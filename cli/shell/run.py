"""The shell's loop: a prompt, a line, what comes of it; nothing but .quit and Ctrl-D ends it.

prompt_toolkit gives the line: history, several lines, completion; colours are Pygments', which typer brings along.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy_lens.cli import streams
from energy_lens.cli.shell.session import WORDS, Session
from energy_lens.console import say, spelled
from energy_lens.errors import ElwError, WarehouseError
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse, warehouse_path
from energy_lens.warehouse.query import Query, announce_state
from energy_lens.warehouse.terminal import visible
from energy_lens.warehouse.typing_aid import is_whole

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

PROMPT, CONTINUED = "elw> ", "...> "


def run_shell(db: Path | None, query: Query) -> None:
    """Ask a warehouse line by line until the user leaves.

    query: format, rows, digits, parameters and whether to write; its script is not looked at.
    Raises WarehouseError when the file cannot be opened to begin with.
    """
    path = warehouse_path(db)
    if query.write and not os.path.exists(path):
        raise WarehouseError(f"There is no warehouse at {path}: make one with elw ingest, or name another with --db.")
    with spelled(_spelling), Warehouse(path, writable=query.write, restricted=True) as warehouse:
        announce_state(warehouse)
        access = "open to write" if query.write else "read-only"
        say(visible(f"elw {__version__} on {path}, {access}. End SQL with a semicolon; .help helps, Ctrl-D leaves."))
        session = Session(warehouse, query)
        warehouse.rest()
        prompt = _prompt(session)
        while not session.is_over:
            try:
                line = prompt.prompt()
            except KeyboardInterrupt:
                continue  # the line is dropped
            except EOFError:
                break
            _obey(session, line)
        session.end()


def _spelling(sentence: str) -> str:
    """A sentence with the shell's words in place of the command line's, where it has one of its own."""
    sentence = sentence.replace(", --output FILE keeps all", "")
    sentence = re.sub(r"--(format|rows|digits) (\w+)", r".\1 \2", sentence)
    sentence = re.sub(r"(?<!\S)-p (\w+=)", r".set \1", sentence).replace("elw tables", ".tables")
    return sentence.replace("add --write to change", "leave, and start it with --write, to change")


def _obey(session: Session, line: str) -> None:
    try:
        session.obey(line)
        streams.flush_output()
    except KeyboardInterrupt:
        say("interrupted.")
    except ElwError as error:
        with contextlib.suppress(OSError):
            streams.flush_output()
        say(f"elw: {visible(str(error))}")


def _prompt(session: Session) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition

    from energy_lens.cli.shell.completing import ShellCompleter

    @Condition
    def goes_on() -> bool:
        return not _is_done(get_app().current_buffer.text)

    return PromptSession(
        PROMPT,
        multiline=goes_on,
        prompt_continuation=CONTINUED,
        history=_history(),
        completer=ShellCompleter(session.names, {name: word.offers for name, word in WORDS.items()}),
        complete_while_typing=False,
        lexer=_lexer(),
        include_default_pygments_style=True,
    )


def _is_done(text: str) -> bool:
    """Whether Enter ends the input: a word of the shell, a saved query, nothing, or whole statements."""
    return not text.strip() or text.lstrip()[0] in ".@" or is_whole(text)


def _lexer() -> Any:
    """Colours for SQL; none where Pygments is not there."""
    try:
        from prompt_toolkit.lexers import PygmentsLexer
        from pygments.lexers.sql import SqlLexer
    except ImportError:
        return None
    return PygmentsLexer(SqlLexer)


# ------------------------------------------------------------------------------------------------ history


def history_file() -> Path | None:
    """Where lines are kept: sql_history in the user's state folder; None where there is no home."""
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "elw" / "sql_history"
    except RuntimeError:
        return None


def _history() -> History:
    """The lines of earlier sessions, to which new ones are added; only this one's where nothing can be kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk does not end the shell
                super().store_string(string)

    file = history_file()
    try:
        if file is None:
            return InMemoryHistory()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))  # queries are nobody else's business
    except OSError:
        return InMemoryHistory()
    return Kept(str(file))
