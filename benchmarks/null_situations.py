"""Situations in which no activation goes with any gradient: shuffled pairings of real contexts, and synthetic data.

A pairing gives the activations of one context the gradients of another, position by position, and puts the pairs into
rows like the plan's: up to LANES pairs, no document twice on either side.

Synthetic data is noise, labelled so wherever it is shown: Gaussian AR(1) along positions, with a level of its own for
each document and a drift with position, in activations and in gradients. Activations are its positive part. Contexts
may be of unequal length, and firing may go with length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from association import Contexts, compare
from numpy.typing import NDArray

from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics.significance import two_sided_p
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics
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


# ------------------------------------------------------------------------------------------------ synthetic data


@dataclass(frozen=True)
class Noise:
    """What the synthetic data has beside its autocorrelation; in standard deviations of the noise."""

    levels: float = 0.5  #: of a document's level, by feature
    shared_levels: bool = False  #: a and g have the same levels: an association across documents, none inside
    drift: float = 0.0  #: spread over features of the change from the middle of a context to its end
    correlation: float = 0.6  #: AR(1) of neighbouring tokens
    threshold: float = 1.0  #: a feature is active where its noise exceeds this
    lengths: str = (
        "equal"  #: of contexts: equal, or drawn by contexts, by documents, or tails: for a third of the contexts
    )
    shortest: int = 16  #: tokens of the shortest context; the longest has n_positions
    firing: float = 0.0  #: spread over features of the change of a from a context of mean length to a longer one
    n_documents: int = 24
    n_contexts: int = 24  #: of each document
    n_positions: int = 64
    n_features: int = 64


def synthetic(noise: Noise, seed: int) -> tuple[Singles, Singles, Contexts]:
    """a and g [context, position, feature], and the contexts, whose rows are LANES documents side by side."""
    generator = np.random.default_rng(seed)
    n_contexts = noise.n_documents * noise.n_contexts
    # Row by row: the i-th contexts of LANES documents, for all i, then of the next LANES documents.
    lanes = np.arange(noise.n_documents).reshape(-1, LANES).repeat(noise.n_contexts, 0)
    documents = lanes.reshape(-1)
    sides, levels = [], None
    for _ in range(2):
        if levels is None or not noise.shared_levels:
            levels = noise.levels * generator.standard_normal((noise.n_documents, 1, noise.n_features))
        slopes = noise.drift * generator.standard_normal(noise.n_features)
        drift = np.linspace(-1, 1, noise.n_positions)[:, None] * slopes
        wave = generator.standard_normal((n_contexts, noise.n_positions, noise.n_features))
        for t in range(1, noise.n_positions):
            wave[:, t] = noise.correlation * wave[:, t - 1] + np.sqrt(1 - noise.correlation**2) * wave[:, t]
        sides.append(wave + levels[documents] + drift)
    lengths = _lengths(noise, documents, generator)
    included = np.arange(noise.n_positions) < lengths[:, None]
    if noise.firing:
        relative = (lengths - lengths.mean()) / max(lengths.std(), 1e-9)
        sides[0] += relative[:, None, None] * noise.firing * generator.standard_normal(noise.n_features)
    a, g = np.maximum(sides[0] - noise.threshold, 0) * included[..., None], sides[1]
    contexts = Contexts(included, documents, documents, np.arange(len(lanes)).repeat(LANES))
    return a.astype(np.float32), g.astype(np.float32), contexts


def _lengths(noise: Noise, documents: Ids, generator: np.random.Generator) -> Ids:
    """Tokens of each context [context]."""
    lengths = np.full(len(documents), noise.n_positions)
    bounds = noise.shortest, noise.n_positions + 1
    if noise.lengths == "contexts":
        lengths = generator.integers(*bounds, size=len(documents))
    elif noise.lengths == "documents":
        lengths = generator.integers(*bounds, size=noise.n_documents)[documents]
    elif noise.lengths == "tails":
        is_tail = generator.random(len(documents)) < 1 / 3
        lengths[is_tail] = generator.integers(*bounds, size=is_tail.sum())
    return lengths


def tested(a: Singles, g: Singles, contexts: Contexts) -> dict[str, Floats]:
    """p of every test by feature; of the within-context test as the package's own stream has it."""
    p = compare(a, g, np.zeros_like(g), contexts.counted(), contexts.documents)
    return {**p, "within": two_sided_p(stream(a, g, contexts.included)[0])}


def tested_with_effects(noise: Noise, seed: int, sizes: Sequence[float]) -> dict[float, dict[str, Floats]]:
    """`tested` by size of an effect that is planted into every feature of synthetic data."""
    a, g, contexts = synthetic(noise, seed)
    effect, _ = unit_effect(a, contexts.tested(g), contexts)
    return {size: tested(a, g + np.float32(size) * effect, contexts) for size in sizes}


def stream(a: Singles, g: Singles, included: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """z by feature from `LayerStatistics`, and the tokens that it counts [context, position]."""
    columns, counted = streamed(a, g, included)
    return np.asarray(columns["sum_s"] / np.sqrt(columns["sum_s2"])), counted


def streamed(a: Singles, g: Singles, included: NDArray[np.bool_]) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
    """Columns of `LayerStatistics` by feature, fed LANES contexts at a time, and the tokens that it counts.

    The decoder is the identity, so that minus g is the gradient. a must be 0 where not included.
    """
    n_features = a.shape[-1]
    identity, nothing = torch.eye(n_features), torch.zeros(n_features)
    collected = LayerStatistics(SparseAutoencoder(0, n_features, identity, nothing, identity, nothing), ["noise"])
    slots = torch.arange(n_features)
    counted = []
    for first in range(0, len(a), LANES):
        row = slice(first, first + LANES)
        values = torch.from_numpy(a[row])
        activations = SparseActivations(values, slots.expand(values.shape))
        gradients = {"noise": -torch.from_numpy(g[row])}
        counted.append(collected.add(LayerRow(torch.from_numpy(included[row]), activations, gradients)).counted.numpy())
    columns = {name: values.astype(np.float64) for name, values in collected.columns("noise").items()}
    return columns, np.concatenate(counted)
