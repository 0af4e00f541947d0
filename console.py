"""What a person sees while a command works: sentences and bars, all on stderr."""

from __future__ import annotations

import sys


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
