"""The words of --features in, features of the run's layers out: listed, top, random and matched, of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energy_lens.errors import UsageError

#: What features can be chosen by, strongest first: columns of sql/interventions/candidates.sql, by absolute value.
SCORES = ("attribution", "score", "z", "attribution_curvature", "mi_excess", "density")


#: Active tokens in the run that a feature must have to be chosen by rank or at random.
MIN_ACTIVE = 20


#: A random feature is one of this many that fire most nearly as often as the one it is matched to.
MATCHES = 5


@dataclass(frozen=True)
class Request:
    """--features taken apart."""

    top: int = 0
    random: int = 0
    listed: tuple[tuple[int, int], ...] = ()  #: (layer, feature)
    classes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> Request:
        """Raises UsageError for a word that is none of top:N, random:N, LAYER:FEATURE, class:NAME."""
        top, random, listed, classes = 0, 0, [], []
        for word in words:
            kind, _, rest = word.partition(":")
            if kind == "class" and rest:
                classes.append(rest)
            elif rest.isdecimal() and kind in ("top", "random"):
                top, random = (int(rest), random) if kind == "top" else (top, int(rest))
            elif kind.isdecimal() and rest.isdecimal():
                listed.append((int(kind), int(rest)))
            else:
                raise UsageError(
                    f"--features does not know {word!r}: say top:50, random:50, 15:656 (layer:feature) or class:regex, "
                    "separated by commas."
                )
        if not (top or random or listed or classes):
            raise UsageError("No feature was chosen: say top:50, random:50, 15:656 or class:regex (--features).")
        return cls(top, random, tuple(dict.fromkeys(listed)), tuple(classes))
