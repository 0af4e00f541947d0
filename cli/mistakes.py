"""What typer found wrong with a command line in, the sentence about it with the nearest right word out."""

from __future__ import annotations

import re
from typing import Any

from energy_lens.errors import did_you_mean


def mistake(error: Any) -> str:
    """What a usage error of typer's says; of a word out of a closed list also which one may have been meant.

    Which suggestions there are already depends on the version of typer, so that only missing ones are added.
    """
    sentence = " ".join(str(error.format_message()).replace("Value error, ", "").split())
    if "Did you mean" in sentence or "Possible option" in sentence:
        return sentence
    if unknown := re.match(r"No such command '(.*)'", sentence):
        context = getattr(error, "ctx", None)
        commands = getattr(context.command, "commands", {}) if context else {}
        return sentence.rstrip(".") + did_you_mean(unknown[1], commands)
    if wrong := re.search(r": '(.*)' is not one of (.*)", sentence):
        return sentence.rstrip(".") + did_you_mean(wrong[1], re.findall(r"'([^']*)'", wrong[2]))
    return sentence
