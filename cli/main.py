"""The entry of `elw`: words in, a command run, an exit code out; every failure is a sentence on stderr.

stdout carries data, stderr everything else. Exit codes: 0 ok, 1 failed, 2 usage, 3 the warehouse can't be opened,
130 interrupted, 128 + n ended by signal n. Heavy imports wait inside the commands, so that `elw sql` and `elw --help`
start at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from energy_lens.cli import completion, streams
from energy_lens.cli.app import app
from energy_lens.cli.mistakes import mistake
from energy_lens.cli.signals import EndedError, endings_noticed
from energy_lens.console import messages, say
from energy_lens.errors import ElwError

# Importing a file registers its commands; this is their order in `elw --help`.
# isort: off
from energy_lens.cli import (
    ingest,
    merge,
    queries,
    check,
    doctor,
    compaction,
    report,
    export,
    features,
    interventions,
    attractors,
    efas,
    saes,
    lenses,
    models,
    energy_models,
)

# isort: on

#: The files of commands, by which the tests and the reference know that none was forgotten.
COMMANDS = (
    ingest, merge, queries, check, doctor, compaction, report, export, features, interventions, attractors, efas, saes,
    lenses, models, energy_models,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; every failure is a sentence on stderr.

    arguments: of a call within a program, whose streams are left as they are; None: this process is `elw`.
    """
    if arguments is not None:
        return _run(list(arguments), alone=False)
    streams.prepare()
    if completion.answered(typer.main.get_command(app)):
        return 0
    try:
        return _run(sys.argv[1:], alone=True)
    finally:
        streams.settle()


def _run(words: list[str], alone: bool) -> int:
    """alone: the process is here for this command, and may end with it."""
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options  # before the command or behind it
    words = [word for word in options if word != "--debug"] + words[len(options) :]
    code = 0
    try:
        try:
            command = typer.main.get_command(app)
            with endings_noticed(), command.make_context("elw", words) as context:
                command.invoke(context)
        except typer.Exit as leaving:
            code = int(leaving.exit_code)
        streams.flush_output()
        return code
    except (KeyboardInterrupt, typer.Abort):
        code = _failed("interrupted.", 130, debug)
        if alone:
            streams.settle()
            os._exit(code)  # files are closed by now; threads that are still at work shall not be waited for
        return code
    except EndedError as ended:
        code = _failed(f"ended by {ended.name}.", ended.exit_code, debug)
        if alone:
            streams.settle()
            os._exit(code)
        return code
    except ElwError as error:
        return _failed(str(error), error.exit_code, debug)
    except Exception as error:
        if isinstance(error, BrokenPipeError | ConnectionResetError) and streams.reader_has_left():
            return code  # it has seen enough
        if hasattr(error, "format_message"):  # the command line itself is wrong
            failed = getattr(error, "ctx", None)
            page = f"{failed.command_path if failed else 'elw'} --help"
            return _failed(f"{mistake(error).rstrip('.')}: see {page}.", 2, debug)
        if isinstance(error, OSError) and error.strerror:
            from energy_lens.warehouse.interrupts import is_full_disk

            what = error.filename or "the output"
            remedy = ": make room and run the command again" if is_full_disk(error) else ""
            return _failed(f"{what} cannot be used ({error.strerror}){remedy}.", 1, debug)
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__ + (f" ({reason})" if reason else "")
        return _failed(f"Unexpected {kind}; run again with --debug to see where it came from.", 1, debug)


def _failed(sentence: str, exit_code: int, debug: bool) -> int:
    """Say what went wrong; with --debug also where. Returns the exit code."""
    if debug:
        traceback.print_exc(file=messages)
    with contextlib.suppress(OSError):
        streams.flush_output()  # what was written before stands before it
    from energy_lens.warehouse.terminal import visible

    say(f"elw: {visible(sentence)}")  # a name in it may hold line ends, or what a terminal acts on
    return exit_code
