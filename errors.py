"""Errors that a user sees: one sentence that says what is wrong and what to do, and an exit code.

0 ok, 1 failed, 2 usage, 3 warehouse can't be opened, 130 interrupted.
"""

from __future__ import annotations


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
