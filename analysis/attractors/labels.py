"""Basins and the texts of their tokens in, a label for each out: chosen on half A, tested on half B."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from energy_lens.ingest.statistics.significance import benjamini_hochberg

#: Tokens of a basin in each half that a label needs.
MIN_LABEL_TOKENS = 5


@dataclass(frozen=True)
class Label:
    """The token that a basin is named after; None and NULL where nothing stood the test."""

    text: str | None = None
    lift: float | None = None
    p: float | None = None
    q: float | None = None


def label_basins(
    basin: NDArray[np.int64], n_basins: int, texts: NDArray[np.object_], halves: NDArray[np.object_]
) -> list[Label]:
    """A label for each basin: the token most enriched in half A, tested on half B, q < 0.05 over the basins.

    basin: [token] the basin of each token, −1 for none. Enrichment is by count less what is expected, so that a token
    that occurs once does not win; the test is hypergeometric: that many of the basin's tokens in half B, or more.
    """
    _, token = np.unique(texts.astype(str), return_inverse=True)
    words = np.unique(texts.astype(str))
    known = basin >= 0
    tried: list[tuple[int, str, float, float]] = []
    in_half = {half: known & (halves == half) for half in "AB"}
    totals = {half: np.bincount(token[in_half[half]], minlength=len(words)) for half in "AB"}
    for number in range(n_basins):
        here = {half: token[in_half[half] & (basin == number)] for half in "AB"}
        if min(len(here["A"]), len(here["B"])) < MIN_LABEL_TOKENS:
            continue
        counts = np.bincount(here["A"], minlength=len(words))
        excess = counts - len(here["A"]) * totals["A"] / totals["A"].sum()
        word = int(excess.argmax())
        hits, n = int((here["B"] == word).sum()), int(totals["B"].sum())
        expected = len(here["B"]) * totals["B"][word] / n
        p = float(hypergeom.sf(hits - 1, n, int(totals["B"][word]), len(here["B"])))
        tried.append((number, str(words[word]), hits / expected if expected else 0.0, p))
    labels = [Label() for _ in range(n_basins)]
    if tried:
        q_values = benjamini_hochberg(np.array([p for *_, p in tried]))
        for (number, word_text, lift, p), q in zip(tried, q_values.tolist(), strict=True):
            labels[number] = Label(word_text if q < 0.05 else None, lift, p, q)
    return labels
