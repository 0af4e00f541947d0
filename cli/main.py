"""The entry of `elw`: words in, a command run, an exit code out; every failure is a sentence on stderr.

stdout carries data, stderr everything else. Exit codes: 0 ok, 1 failed, 2 usage, 3 the warehouse can't be opened,
130 interrupted. Heavy imports wait inside the commands, so that `elw sql` and `elw --help` start at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from energy_lens.cli.app import app
from energy_lens.console import say
from energy_lens.errors import ElwError

# Importing a file registers its commands; this is their order in `elw --help`.
# isort: off
from energy_lens.cli import (
    ingest,
    queries,
    check,
    compaction,
    report,
    interventions,
    attractors,
    efas,
    saes,
    lenses,
    models,
)

# isort: on

#: The files of commands, by which the tests and the reference know that none was forgotten.
COMMANDS = (ingest, queries, check, compaction, report, interventions, attractors, efas, saes, lenses, models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; every failure is a sentence on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options  # before the command or behind it
    try:
        with contextlib.suppress(ValueError):
            while debug:
                words.remove("--debug")
        command = typer.main.get_command(app)
        with command.make_context("elw", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        return int(leaving.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _failed("interrupted.", 130, debug)
        if arguments is None:
            os._exit(code)  # files are closed by now; threads that are still at work shall not be waited for
        return code
    except BrokenPipeError:
        _discard_stdout()  # the reader has seen enough
        return 0
    except ElwError as error:
        return _failed(str(error), error.exit_code, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            failed = getattr(error, "ctx", None)
            page = f"{failed.command_path if failed else 'elw'} --help"
            return _failed(f"{error.format_message().rstrip('.')}: see {page}.", 2, debug)
        if isinstance(error, OSError) and error.strerror:
            _discard_stdout()
            what = error.filename or "the output"
            return _failed(f"{what} cannot be used ({error.strerror}).", 1, debug)
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__ + (f" ({reason})" if reason else "")
        return _failed(f"Unexpected {kind}; run again with --debug to see where it came from.", 1, debug)
    return 0


def _failed(sentence: str, exit_code: int, debug: bool) -> int:
    """Say what went wrong; with --debug also where. Returns the exit code."""
    if debug:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # what was written before stands before it
    say(f"elw: {sentence}")
    return exit_code


def _discard_stdout() -> None:
    """Send what is still in stdout's buffer nowhere, or Python would fail on it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
