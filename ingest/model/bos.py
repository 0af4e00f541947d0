"""Whether a BOS token stands before every context: a word of --bos, SAEs and a tokenizer in, a model that reads so out.

Models that were trained with it are broken without: it is the token on which attention comes to rest. Gemma 3 270M
takes 5.7 nats a token without and 3.6 with it. SAEs know how they were trained, and the tokenizer how the model was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel


class Trained(Protocol):
    """What an SAE says of how it was trained."""

    layer: int
    source: str
    bos: bool | None  #: with BOS before each context, without, or not said


#: What --bos can be.
CHOICES = ("auto", "yes", "no")


def wants_bos(word: str, saes: Iterable[Trained], by_default: Callable[[], bool]) -> bool:
    """Whether contexts begin with BOS, by a word of CHOICES; auto: as the SAEs say that they were trained.

    by_default: what the model's tokenizer does, asked where no SAE says. Raises UsageError for SAEs that disagree.
    """
    if word != "auto":
        return word == "yes"
    said = {sae.bos: sae for sae in saes if sae.bos is not None}
    if len(said) > 1:
        raise UsageError(
            f"The SAE of layer {said[True].layer} ({said[True].source}) was trained with a BOS token before each "
            f"context and that of layer {said[False].layer} ({said[False].source}) without: choose with --bos yes or "
            "no, or give SAEs that agree."
        )
    return next(iter(said)) if said else by_default()


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts BOS before a text by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]


def set_bos(model: LanguageModel, has_bos: bool) -> None:
    """Have every context of a model begin with BOS, or none. Raises UsageError for a tokenizer that knows none."""
    bos = model.tokenizer.bos_token_id
    if has_bos and bos is None:
        raise UsageError(f"The tokenizer of {model.name} has no BOS token: leave it out with --bos no.")
    model.bos = int(bos) if has_bos else None


def settle_bos(model: LanguageModel, word: str, saes: Iterable[Trained] = ()) -> None:
    """The same by a word of --bos, for work that belongs to no run."""
    set_bos(model, wants_bos(word, saes, lambda: adds_bos(model.tokenizer)))


def bos_note(model: LanguageModel) -> str | None:
    """A sentence on a model that reads without the BOS that it was trained with."""
    if model.bos is None and adds_bos(model.tokenizer):
        return (
            f"{model.name} was trained with a BOS token before each text, to go by its tokenizer, and reads without: "
            "its losses are those of a broken model. --bos yes puts it there."
        )
    return None
