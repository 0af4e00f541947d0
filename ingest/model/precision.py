"""A model's name and a word of --dtype in, the model in that precision out; auto: in the one that is faster here.

Which one that is depends on the processor: with bfloat16 instructions it takes half the time, without them up to nine
times as long. So it is timed, on a few contexts, and the slower precision is given up as soon as it is known to be.
Some models cannot run in bfloat16 at all: they run in float32, and a sentence says so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from energy_lens.console import say
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DTYPES, load_model
from energy_lens.ingest.model.residuals import harvest_residuals
from energy_lens.ingest.model.resolving import CannotRunError, first_line
from energy_lens.warehouse.files import whole

#: What --dtype can be where a model runs.
CHOICES = ("auto", *DTYPES)

#: Contexts that are read to time a precision, how often, after a first time, and for how many seconds at least.
TIMED_CONTEXTS, TIMED_PASSES, TIMED_SECONDS = 2, 3, 0.5

#: How many times as long as in float32 a pass may take before it is left: by then it will not turn out faster.
HOPELESS = 2


def load_in(name: str, dtype: str, context_length: int = 128, layer: int | None = None) -> LanguageModel:
    """A model in the precision called `dtype`, one of CHOICES; says which one, where that is not what was asked for.

    context_length, layer: what auto times, a forward pass over contexts of that length up to a layer (None: the last).
    Raises what `load_model` raises.
    """
    if dtype == "float32":
        return load_model(name)
    try:
        coarse = load_model(name, torch.bfloat16)
    except CannotRunError as error:
        model = load_model(name)  # which raises the same where the precision is not to blame
        say(f"Precision: float32, since {name} cannot run in bfloat16 ({first_line(error.__cause__ or error)}).")
        return model
    return coarse if dtype == "bfloat16" else _faster(load_model(name), coarse, context_length, layer)


def load_as_begun(
    folder: Path, name: str, dtype: str, context_length: int = 128, layer: int | None = None
) -> LanguageModel:
    """The same for work that is resumed from a folder, which keeps what auto chose: it goes on as it began."""
    note = folder / "precision"
    if dtype == "auto" and note.exists():
        dtype = note.read_text(encoding="ascii")
    model = load_in(name, dtype if dtype in CHOICES else "auto", context_length, layer)
    with whole(note) as (scratch,):
        scratch.write_text(name_of(model), encoding="ascii")
    return model


def name_of(model: LanguageModel) -> str:
    """The word of --dtype for a model's precision."""
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype)


def _faster(exact: LanguageModel, coarse: LanguageModel, context_length: int, layer: int | None) -> LanguageModel:
    """The one of two precisions in which a model reads faster, and a sentence on it."""
    depth = exact.n_layers - 1 if layer is None else min(layer, exact.n_layers - 1)
    in_float32 = _seconds(exact, context_length, depth)
    assert in_float32 is not None
    in_bfloat16 = _seconds(coarse, context_length, depth, HOPELESS * in_float32)
    if in_bfloat16 is None:
        say(f"Precision: float32, more than {HOPELESS} times as fast here as the other choice of --dtype.")
        return exact
    chosen = exact if in_float32 <= in_bfloat16 else coarse
    ratio = max(in_float32, in_bfloat16) / min(in_float32, in_bfloat16)
    say(f"Precision: {name_of(chosen)}, {ratio:.1f} times as fast here as the other choice of --dtype.")
    return chosen


class _TooSlow(Exception):
    """Raised inside a hook to leave a pass that takes too long."""


def _seconds(model: LanguageModel, context_length: int, layer: int, most: float = float("inf")) -> float | None:
    """What a pass takes after a first one; None as soon as one takes longer than `most`."""
    tokens = model.any_tokens(TIMED_CONTEXTS, context_length)
    found: list[float] = []
    begun = time.perf_counter()
    try:
        # The first pass also sets up the library's kernels; of several the fastest counts, since any may be held up.
        while len(found) <= TIMED_PASSES or time.perf_counter() - begun < TIMED_SECONDS:
            with _left_after(model, most if found else 2 * most):
                started = time.perf_counter()
                harvest_residuals(model, tokens, [layer])
                found.append(time.perf_counter() - started)
    except _TooSlow:
        return None
    return min(found[1:])


@contextlib.contextmanager
def _left_after(model: LanguageModel, seconds: float) -> Iterator[None]:
    """Inside, a pass is left by _TooSlow once that time has gone."""
    end = time.perf_counter() + seconds

    def check(*_: object) -> None:
        if time.perf_counter() > end:
            raise _TooSlow

    with contextlib.ExitStack() as hooks:
        for block in model.blocks:
            hooks.callback(block.register_forward_hook(check).remove)
        yield
