"""Energies by name: the words of --energies in, providers out; package.module:Class names one from outside."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from energy_lens.errors import UsageError, did_you_mean
from energy_lens.ingest.energies.attention import AttentionEnergy
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.energies.hopfield import Hopfield
from energy_lens.ingest.energies.lenses import LogitLens, TunedLens
from energy_lens.ingest.energies.native import NativeEnergy
from energy_lens.ingest.energies.nll import NegativeLogLikelihood
from energy_lens.ingest.energies.translators import Translators, load_translators, shipped_lens

#: The energies that the package brings, in the order in which they are listed.
ENERGIES: dict[str, type[Energy]] = {
    energy.name: energy
    for energy in (NegativeLogLikelihood, LogitLens, TunedLens, AttentionEnergy, NativeEnergy, Hopfield)
}

#: Those that are defined for other models than energy transformers too.
OF_ANY_MODEL = tuple(name for name in ENERGIES if name != NativeEnergy.name)

#: Of an energy: it becomes a part of a column's name.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


def make_energies(names: Sequence[str], translators: Callable[[], Translators] | None = None) -> list[Energy]:
    """Providers by name, without repetition; `package.module:Class` is one from outside the package.

    translators: gives the tuned lens' maps; called when that energy is among them.
    Raises UsageError for an unknown energy, and for one from outside that cannot be imported or is none.
    """
    if not names:
        raise UsageError(f"No energy was given: choose among {', '.join(ENERGIES)} (--energies).")
    energies: dict[str, Energy] = {}
    for name in dict.fromkeys(names):
        if ":" in name:
            energy = _imported(name)
        elif name not in ENERGIES:
            raise UsageError(
                f"There is no energy {name!r}{did_you_mean(name, ENERGIES)}: choose among {', '.join(ENERGIES)}, or "
                "name a class of your own as package.module:Class (--energies)."
            )
        elif name == TunedLens.name:
            if translators is None:
                raise UsageError("tuned_lens needs fitted maps: leave it out (--energies).")
            energy = TunedLens(translators())
        else:
            energy = ENERGIES[name]()
        if energy.name in energies:
            raise UsageError(f"Two energies are called {energy.name}: leave one out (--energies).")
        energy.source = name
        energies[energy.name] = energy
    return list(energies.values())


def _imported(name: str) -> Energy:
    """An energy from outside the package, by `package.module:Class`."""
    module_name, _, class_name = name.partition(":")
    try:
        maker = getattr(importlib.import_module(module_name), class_name)
        if not (isinstance(maker, type) and issubclass(maker, Energy)):  # before anything of it is called
            raise UsageError(f"{name} is no energy: derive it from energy_lens.ingest.energies.Energy.")
        energy = maker()
    except UsageError:
        raise
    except Exception as error:  # whatever the other code raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"The energy {name} cannot be made ({reason}): is its module on PYTHONPATH?") from error
    if lacking := [part for part in ("name", "units", "version", "at_layers") if not hasattr(energy, part)]:
        raise UsageError(f"The energy {name} has no {lacking[0]}: say it in the class.")
    if energy.name in ENERGIES or not _NAME.fullmatch(str(energy.name)):
        raise UsageError(
            f"The energy {name} is called {energy.name!r}: give it a name of its own, of at most 31 small letters, "
            "digits and _."
        )
    return energy


def choose_translators(model_name: str, lens: Path | None = None) -> Translators:
    """The tuned lens that is meant: the given file, else the one shipped for the model.

    Raises UsageError for a file that is none, and for a model that none is shipped for.
    """
    if lens is not None:
        return load_translators(lens)
    shipped = shipped_lens(model_name)
    if not shipped.is_file():
        raise UsageError(
            f"No tuned lens is shipped for {model_name}: fit one with elw lens train and name it with --lens, "
            "or leave tuned_lens out (--energies)."
        )
    return load_translators(shipped)
