"""Tab in the user's shell: the words before the cursor in, what can stand there out.

typer knows commands and options; here is what depends on a warehouse or on files. A warehouse is only read, and not
waited for: where it is held, missing or broken, nothing is offered.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import typer

from energy_lens.errors import ElwError, UsageError

#: Where a shell says that it asks for completions, and how; typer's own name for the program elw.
ASKED = "_ELW_COMPLETE"

#: Shells that are served.
SHELLS = ("bash", "zsh", "fish")


def answered(command: Any) -> bool:
    """Whether a shell asks for completions; if so they are printed."""
    instruction = os.environ.get(ASKED)
    if not instruction:
        return False
    from typer._completion_classes import completion_init
    from typer.completion import shell_complete

    with contextlib.suppress(Exception):  # a word that cannot be completed is no reason for a line in the prompt
        completion_init()
        _join_in_bash()
        shell_complete(command, {}, "elw", ASKED, instruction)
    return True


def _join_in_bash() -> None:
    """Put `@` and what follows together again: bash counts them as two words, and completes them as one."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    if "@" in words[:at]:
        sign = words.index("@")
        words[sign : sign + 2] = ["".join(words[sign : sign + 2])]
        os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(at - 1)


# ------------------------------------------------------------------------------------------------ setting it up


def shell_in_use() -> str:
    """The shell that elw was started from. Raises UsageError where it is none that is served."""
    name = None
    with contextlib.suppress(Exception):  # it may be missing, and it looks at processes
        import shellingham

        name = shellingham.detect_shell()[0]
    name = name if name in SHELLS else Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise UsageError(f"Completion is there for {', '.join(SHELLS)}: run elw from one of them, or set SHELL.")
    return name


def script() -> str:
    """What the shell in use has to read, once in each session, to complete elw."""
    from typer._completion_shared import get_completion_script

    return str(get_completion_script(prog_name="elw", complete_var=ASKED, shell=shell_in_use()))


def install() -> tuple[str, Path]:
    """Have the shell in use read that at its start; returns its name and the file."""
    from typer._completion_shared import install as install_for

    shell, path = install_for(shell=shell_in_use(), prog_name="elw", complete_var=ASKED)
    return shell, Path(path)


# ------------------------------------------------------------------------------------------------ what can stand there


def layers(context: typer.Context, incomplete: str) -> list[str]:
    return _one_more(incomplete, _names(context, "layer"))


def energies(context: typer.Context, incomplete: str) -> list[str]:
    return _one_more(incomplete, _names(context, "energy"))


def known_energies(incomplete: str) -> list[str]:
    """As energy_lens.ingest.energies.registry has them, which would load torch."""
    return _one_more(incomplete, KNOWN_ENERGIES)


def categories(context: typer.Context, incomplete: str) -> list[str]:
    return [name for name in ["all", *_names(context, "category")] if name.startswith(incomplete)]


def run_ids(context: typer.Context, incomplete: str) -> list[str]:
    return [name for name in _names(context, "run") if name.startswith(incomplete)]


def relations(context: typer.Context, incomplete: str) -> list[str]:
    """Tables, views and macros."""
    return [name for _, name, _ in _rows(context, "queries/catalogue") if name.startswith(incomplete.lower())]


def queries(incomplete: str) -> list[tuple[str, str]]:
    """Saved queries, with what they answer."""
    from energy_lens.warehouse.saved_queries import saved_queries

    with contextlib.suppress(ElwError):
        return [
            (f"@{query.name}", query.answers) for query in saved_queries() if f"@{query.name}".startswith(incomplete)
        ]
    return []


def parameters(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Parameters of the saved query that the line names."""
    from energy_lens.warehouse.parameters import declared
    from energy_lens.warehouse.saved_queries import find

    name = str(context.params.get("query") or "")
    with contextlib.suppress(ElwError):
        known = declared(find(name).script).values() if name.startswith("@") else ()
        return [(f"{each.name}=", each.meaning) for each in known if each.name.startswith(incomplete)]
    return []


KNOWN_ENERGIES = ("nll", "logit_lens", "tuned_lens", "attention", "native", "hopfield")


def _names(context: typer.Context, kind: str) -> list[str]:
    """Names of a kind in the warehouse that the line means, numbers in their order."""
    found = [str(name) for of, name in _rows(context, "queries/completions") if of == kind]
    return sorted(found, key=lambda name: name.zfill(9) if name.isdecimal() else name)


def _rows(context: typer.Context, statement: str) -> list[Any]:
    """What a statement answers on the warehouse that the line means; nothing where that cannot be read now."""
    from energy_lens.warehouse.database import Warehouse

    try:
        with Warehouse(context.params.get("db"), wait_seconds=0) as warehouse:
            return list(warehouse.run(statement).fetchall())
    except ElwError:
        return []


def _one_more(incomplete: str, names: Any) -> list[str]:
    """The list that is typed so far, with each name that can come next."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in taken]
