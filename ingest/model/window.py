"""A model's name and the contexts that were asked for in, their length out: no longer than the model can read.

Settled by the model's configuration, before its weights are loaded and before any other work.
"""

from __future__ import annotations

from energy_lens.console import say
from energy_lens.errors import require
from energy_lens.ingest.model.configuration import check_window, n_positions
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_configuration, locate

#: Tokens of a context where none are asked for.
DEFAULT_CONTEXT = 128

#: Tokens that every command that cuts contexts asks for.
LEAST_CONTEXT = 4


def settle_context_length(name: str, wanted: int | None) -> int:
    """Tokens of a context for a model by name: those wanted, else DEFAULT_CONTEXT or the fewer that it can read.

    Says so where it is fewer. Raises UsageError for more than the model reads at once, and what `locate` raises.
    """
    window = n_positions(load_configuration(locate(name)[0]))
    if wanted is not None:
        check_window(name, window, wanted)
        return wanted
    return _default(name, window)


def default_context_length(model: LanguageModel) -> int:
    """The same for a model at hand, where nothing is asked for."""
    return _default(model.name, model.window)


def _default(name: str, window: int | None) -> int:
    if window is None or window >= DEFAULT_CONTEXT:
        return DEFAULT_CONTEXT
    least = f"{name} reads at most {window} tokens at once, and contexts have at least {LEAST_CONTEXT}: take another."
    require(window >= LEAST_CONTEXT, least)
    say(f"Contexts are of {window} tokens, not of {DEFAULT_CONTEXT}: {name} reads no more at once.")
    return window
