"""Situations in which no activation goes with any gradient: shuffled pairings of real contexts.

A pairing gives the activations of one context the gradients of another, position by position, and puts the pairs into
rows like the plan's: up to LANES pairs, no document twice on either side.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from association import Contexts
from numpy.typing import NDArray

from energy_lens.warehouse.plan import LANES

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Where each context of a run comes from: arrays [context]."""

    documents: Ids
    categories: NDArray[np.str_]
    places: Ids  #: of the context within its document, from 0
    rows: Ids  #: of the plan

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True)
class Pairing:
    """Whose activations meet whose gradients: arrays [pair]."""

    activations: Ids  #: context
    gradients: Ids  #: context
    rows: Ids


# ------------------------------------------------------------------------------------------------ shuffles


def true_pairing(corpus: Corpus) -> Pairing:
    """Every context with its own gradients, in the plan's rows."""
    contexts = np.arange(len(corpus))
    return Pairing(contexts, contexts, corpus.rows)


def shuffle_documents(corpus: Corpus, generator: np.random.Generator) -> Pairing:
    """Each document with another of its category: i-th context with i-th context, what has no counterpart left out."""
    where = {(int(d), int(i)): c for c, (d, i) in enumerate(zip(corpus.documents, corpus.places, strict=True))}
    partner = {}
    for category in np.unique(corpus.categories):
        documents = generator.permutation(np.unique(corpus.documents[corpus.categories == category]))
        partner |= dict(zip(documents.tolist(), np.roll(documents, 1).tolist(), strict=True))  # one cycle: none its own
    pairs = [
        (context, other)
        for (document, place), context in where.items()
        if partner[document] != document and (other := where.get((partner[document], place))) is not None
    ]
    return _in_rows(corpus, np.array(pairs), generator)


def shuffle_contexts(corpus: Corpus, generator: np.random.Generator) -> Pairing:
    """Each context with one of another document of its category, no context twice on either side."""
    pairs = []
    for category in np.unique(corpus.categories):
        contexts = np.flatnonzero(corpus.categories == category)
        other = generator.permutation(contexts)
        clashes = np.flatnonzero(corpus.documents[contexts] == corpus.documents[other])
        for _ in range(1_000):  # swap what met its own document with anybody, until nothing does
            if not len(clashes):
                break
            for i, j in zip(clashes, generator.integers(len(contexts), size=len(clashes)), strict=True):
                other[i], other[j] = other[j], other[i]
            clashes = np.flatnonzero(corpus.documents[contexts] == corpus.documents[other])
        kept = corpus.documents[contexts] != corpus.documents[other]  # all, unless one document is half of its category
        pairs += list(zip(contexts[kept], other[kept], strict=True))
    return _in_rows(corpus, np.array(pairs), generator)


def _in_rows(corpus: Corpus, pairs: Ids, generator: np.random.Generator) -> Pairing:
    """Pairs [n, 2] in rows of one category; the longest documents go first, so that few rows stay short."""
    waiting: dict[str, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for context, other in generator.permutation(pairs):
        waiting[str(corpus.categories[context])][int(corpus.documents[context])].append((int(context), int(other)))
    placed: list[tuple[int, int, int]] = []
    row = 0
    for queues in waiting.values():
        while any(queues.values()):
            taken: set[int] = set()
            filled = 0
            for document in sorted(queues, key=lambda document: -len(queues[document])):
                fitting = [pair for pair in queues[document] if int(corpus.documents[pair[1]]) not in taken]
                if fitting and filled < LANES:
                    queues[document].remove(fitting[-1])
                    taken.add(int(corpus.documents[fitting[-1][1]]))
                    placed.append((*fitting[-1], row))
                    filled += 1
            row += 1
    activations, gradients, rows = np.array(placed).T
    return Pairing(activations, gradients, rows)


def unit_effect(a: Singles, centred_g: Singles, contexts: Contexts) -> tuple[Singles, Singles]:
    """What to add to g and to g̃ for an effect inside contexts whose score_within is 1; multiples are linear.

    The effect is κ·ã, with ã = a centred in its context and κ = √(Σg̃²/Σã²) by feature; all arrays [context, position,
    feature]. In g̃ the mates' effects are subtracted, as everything else of theirs is.
    """
    effect = contexts.centred(a)
    power = [np.einsum("ctf,ctf->f", x, x).astype(np.float64) for x in (centred_g, effect)]
    effect *= np.sqrt(power[0] / np.maximum(power[1], 1e-30)).astype(np.float32)
    return effect, contexts.tested(effect)
