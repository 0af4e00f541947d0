"""A feature's numbers in, the words for what can be told from noise out; the words that stand in the same line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from energy_lens.reports.formatting import fixed, interval

Row = Mapping[str, Any]

#: The false discovery rate below which something counts as told from noise, as everywhere in the package.
SIGNIFICANT = 0.05


class Verdict(Enum):
    """What the tests of a score say: a word for a listing, and words for a line of their own."""

    HOLDS = ("holds", "in other documents too")
    HERE = ("here only", "in these documents")
    UNDIRECTED = ("undirected", "not along its row")
    NOISE = ("noise", "not told from noise")
    UNTESTED = ("untested", "too few tokens")
    CONTROL = ("control", "control, by definition")

    @property
    def word(self) -> str:
        return self.value[0]

    @property
    def words(self) -> str:
        return self.value[1]


#: What grows with the dose of an edit, in symbols.
GROWS = {"kl": "KL", "delta_total": "|ΔE|"}

#: What the words of a listing mean, in a sentence: those of scores, of attributions and of measured effects.
EXPLAINED = (
    "test: holds (goes with its own direction, in other documents too), here only (not shown for others), undirected "
    "(not along its direction), noise (not told from it), untested (too few tokens)."
)
ROLES_EXPLAINED = (
    "sum a·g: predicted change of the energy when ablated; role: supports (above 0), opposes (below), noise (not told "
    "from 0)."
)
EFFECTS_EXPLAINED = (
    "effect: measured change of the loss when ablated, nats a token; noise: not told from 0; untested: fewer than 15 "
    "documents."
)


def of_score(row: Row) -> Verdict:
    """What the tests say of a score of the decoder gradient: a row with q_specific, q_value and q_documents."""
    if row.get("is_control"):
        return Verdict.CONTROL
    if row["q_specific"] is None and row["q_value"] is None:
        return Verdict.UNTESTED
    if is_below(row["q_specific"]):
        return Verdict.HOLDS if is_below(row["q_documents"]) else Verdict.HERE
    return Verdict.UNDIRECTED if is_below(row["q_value"]) else Verdict.NOISE


def role_word(row: Row) -> str:
    """What attribution's test says, in a word for a listing."""
    return str(row["role"] or ("untested" if row["q_attribution"] is None else "noise"))


def effect_word(row: Row) -> str:
    """Whether a measured effect can be told from 0, in a word for a listing."""
    if row["effect"] is None:
        return "–"
    return of_interval(row["effect_low"], row["effect_high"], "told", "untested").replace("not told from 0", "noise")


def of_halves(a: Row | None, b: Row | None) -> str:
    """Whether each half of the documents alone shows the feature's own direction, and the same sign."""
    shows_a, shows_b = (row is not None and is_below(row["q_specific"]) for row in (a, b))
    if shows_a and shows_b and a is not None and b is not None:
        return "both halves agree" if (a["score"] or 0) * (b["score"] or 0) > 0 else "the halves disagree"
    if shows_a or shows_b:
        return f"only {'A' if shows_a else 'B'} told from noise"
    if all(row is None or row["q_specific"] is None for row in (a, b)):
        return "too few tokens"
    return "not told from noise"


def of_attribution(row: Row) -> str:
    """What ablating is predicted to do to the energy, where that can be told from nothing."""
    if row["q_attribution"] is None:
        return "too few documents"
    words = {"supports": "raises it: supports", "opposes": "lowers it: opposes"}
    return words.get(row["role"] or "", "not told from 0")


def of_interval(low: float | None, high: float | None, otherwise: str = "", unknown: str = "no interval") -> str:
    """Whether a 95 % interval leaves 0 out."""
    if low is None or high is None:
        return unknown
    return "not told from 0" if low <= 0 <= high else otherwise


def of_doses(rows: Iterable[Row]) -> str:
    """By which power of the dose an edit of a feature grows, in a line; empty where doses were not measured.

    rows: of dose_response, of the feature's own direction and of controls.
    """
    own = [row for row in rows if row["control"] is None and row["measure"] in GROWS]
    if not own:
        return ""
    told = (
        f"{GROWS[row['measure']]} {'too near rounding' if row['p'] is None else fixed(row['p'], 2)}"
        + (f" {interval(row['p_low'], row['p_high'], 2)}" if row["p_low"] is not None else "")
        for row in own
    )
    few = (
        " (too few documents)"
        if all(row["p_low"] is None for row in own) and any(row["p"] is not None for row in own)
        else ""
    )
    return f"grows with the dose to the power p: {', '.join(told)}{few}"


def is_below(q: float | None) -> bool:
    return q is not None and q < SIGNIFICANT
