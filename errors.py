"""Errors that a user sees: one sentence that says what is wrong and what to do, and an exit code.

0 ok, 1 failed, 2 usage, 3 warehouse can't be opened, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: The largest seed: every generator in use takes it, whatever is multiplied into it.
LARGEST_SEED = 2**32 - 1

#: The largest count of tokens, contexts or the like: beyond any corpus, and within what a library counts with.
LARGEST_COUNT = 10**12

#: Tokens of a forward pass, at most: some 20 GB of a small model's own numbers.
LARGEST_PASS = 2**20

#: Tokens of a context, at most: positions are stored in two bytes.
LONGEST_CONTEXT = 32_767

#: Characters of a mistyped name by which its nearest are looked for: no name of ours is longer.
LONGEST_GUESS = 80


class ElwError(Exception):
    """The work failed; the message is a sentence with the remedy."""

    exit_code = 1


class UsageError(ElwError):
    """The request itself cannot be carried out: a wrong option, path, layer or query."""

    exit_code = 2


class WarehouseError(ElwError):
    """The warehouse file cannot be opened: missing, locked, corrupt, or written by a newer version."""

    exit_code = 3


def require(condition: bool, sentence: str) -> None:
    """Raises UsageError unless the condition holds; the sentence names the option as the user typed it."""
    if not condition:
        raise UsageError(sentence)


def nearest(name: object, known: Iterable[object], n: int = 2) -> list[str]:
    """Those of the known names that a mistyped one may have meant, the likeliest first, whatever their case.

    Of numbers it is the nearest one. Empty where none comes close.
    """
    every = list(known)
    if isinstance(name, int):
        numbers = [other for other in every if isinstance(other, int)]
        return [str(min(numbers, key=lambda other: (abs(other - name), other)))] if numbers else []
    spelled: dict[str, str] = {}
    for other in every:
        spelled.setdefault(str(other).lower(), str(other))
    wanted = str(name)[:LONGEST_GUESS].lower()
    close = difflib.get_close_matches(wanted, spelled, n, cutoff=0.6)
    if not close and len(wanted) >= 2:  # a beginning, however short it is beside the whole
        close = [other for other in spelled if other.startswith(wanted)][:n]
    if wanted in close:
        close = [wanted]  # only its case is another
    return [spelled[other] for other in close]


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """` (did you mean nll?)`, to stand behind a name that there is none of; empty where none comes close."""
    close = nearest(name, known)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def require_at_most(option: str, number: float, most: float) -> None:
    """Raises UsageError for a number beyond what can be worked with."""
    require(number <= most, f"{option} is {number:,}; at most {most:,} is possible.")


def require_seed(seed: int) -> None:
    """Raises UsageError for a seed that not every generator takes."""
    require(seed >= 0, f"--seed is {seed}; it must not be negative.")
    require_at_most("--seed", seed, LARGEST_SEED)


def require_batch(batch_size: int, context_length: int, what: str = "context") -> None:
    """Raises UsageError unless that many contexts, or what else there are, make a forward pass that fits in memory."""
    require(batch_size >= 1, f"--batch-size is {batch_size}; at least 1 {what} is needed.")
    most = max(1, LARGEST_PASS // max(1, context_length))
    require(
        batch_size <= most,
        f"--batch-size is {batch_size:,}; at most {most:,} {what}{'es' if what.endswith('ch') else 's'} of "
        f"{context_length:,} tokens are possible, since a pass has no more than {LARGEST_PASS:,} tokens.",
    )
