"""Intervals of a correlation: their coverage in simulations, and their widths on a run with stored vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from intervals import METHODS, MIN_EFFECTIVE, Documents, Sums, intervals, simulate
from measured import PAIRS, TOKENS, Measured
from tables import Table, with_totals

#: Repetitions of each simulated interval.
REPETITIONS = 1_000

#: Simulated documents.
N_DOCUMENTS = (10, 20, 40)
CORRELATIONS = (0.0, 0.1, 0.5, 0.95)
SLOPES = (0.0, 0.3)


def coverage_table(seed: int) -> Table:
    """Coverage and mean half-width of each method in simulations, REPETITIONS each."""
    rows = [["slopes", "sizes", "documents", "r", *(f"{method}: covers / ±" for method in METHODS)]]
    rows[0] += ["fisher: covers", "effective documents", f"below {MIN_EFFECTIVE}"]
    rows[0] += [f"effective, from {MIN_EFFECTIVE}: covers"]
    generator = np.random.default_rng([seed, 5])
    for slopes in SLOPES:
        for unequal in (False, True):
            for n_documents in N_DOCUMENTS:
                for r in CORRELATIONS:
                    sums = simulate(Documents(r, n_documents, unequal, slopes), REPETITIONS, generator)
                    simulated = intervals(sums)
                    covers = {name: np.abs(simulated.r - r) <= width for name, width in simulated.half_widths.items()}
                    by_fisher = np.abs(np.arctanh(simulated.r) - np.arctanh(r)) <= simulated.fisher
                    enough_documents = simulated.effective >= MIN_EFFECTIVE
                    rows.append(
                        [
                            f"{slopes:g}", "unequal" if unequal else "equal", str(n_documents), f"{r:g}",
                            *(f"{covers[name].mean():.1%} / {width.mean():.3f}"
                              for name, width in simulated.half_widths.items()),
                            f"{by_fisher.mean():.1%}", f"{np.median(simulated.effective):.1f}",
                            f"{(~enough_documents).mean():.0%}",
                            f"{covers['effective'][enough_documents].mean():.1%}" if enough_documents.any() else "–",
                        ]
                    )  # fmt: skip
    return "Intervals: coverage of 95 % in simulations", rows


def document_sums(measured: Measured) -> Sums:
    """Sums over the included tokens of each document, by tested feature [tested, document]."""
    labels = np.unique(measured.contexts.documents, return_inverse=True)[1]
    n_documents, tested = int(labels.max()) + 1, np.flatnonzero(measured.enough)
    of_token = labels.repeat(measured.contexts.included.shape[1])
    included = measured.contexts.included.reshape(-1)
    rows = -measured.decoder[tested].T
    flat = measured.gradients.reshape(-1, rows.shape[0])
    g, g2 = np.zeros((len(tested), n_documents)), np.zeros((len(tested), n_documents))
    for document in range(n_documents):
        tokens = np.flatnonzero((of_token == document) & included)
        for start in range(0, len(tokens), TOKENS):
            dense = flat[tokens[start : start + TOKENS]] @ rows
            g[:, document] += dense.sum(0, dtype=np.float64)
            g2[:, document] += np.einsum("tf,tf->f", dense, dense, dtype=np.float64)
    place = np.full(len(measured.decoder), -1)
    place[tested] = np.arange(len(tested))
    is_tested = place[measured.features] >= 0
    features, tokens = measured.features[is_tested], measured.tokens[is_tested]
    a = measured.activations[is_tested].astype(np.float64)
    along = np.empty(len(a))
    for start in range(0, len(a), PAIRS):
        part = slice(start, start + PAIRS)
        along[part] = -np.einsum("nd,nd->n", flat[tokens[part]], measured.decoder[features[part]])
    key = place[features] * n_documents + of_token[tokens]
    sum_a, sum_a2, sum_ag = (np.bincount(key, x, g.size).reshape(g.shape) for x in (a, a**2, a * along))
    n = np.bincount(of_token, included, n_documents)
    return Sums(n, sum_a, g, sum_a2, g2, sum_ag)


def stored_intervals(measured: Measured, generator: np.random.Generator) -> Any:
    """r, effective documents and half-widths of the tested features, over all documents of the run."""
    del generator
    return intervals(document_sums(measured))


def stored_intervals_table(results: Mapping[tuple[int, str], Any]) -> Table:
    """How wide intervals are on this run."""
    rows = [["energy", "layer", "features", "|r| median", "effective documents", f"below {MIN_EFFECTIVE}"]]
    rows[0] += ["covariance over effective: median / largest", "covariance over jackknife: largest"]
    rows[0] += [f"{method}: pass ±1 / leave 0 out" for method in METHODS]
    for first, several in with_totals(results):
        r, effective = (np.concatenate([getattr(x, name) for x in several]) for name in ("r", "effective"))
        widths = {name: np.concatenate([x.half_widths[name] for x in several]) for name in METHODS}
        ratio, to_jackknife = widths["covariance"] / widths["effective"], widths["covariance"] / widths["jackknife"]
        cells = [f"{len(r):,}", f"{np.median(np.abs(r)):.3f}", f"{np.median(effective):.1f}"]
        cells += [f"{(effective < MIN_EFFECTIVE).mean():.0%}", f"{np.median(ratio):.2f} / {ratio.max():.1f}"]
        cells.append(f"{to_jackknife.max():.1f}")
        for name in METHODS:
            passes, leaves = (np.abs(r) + widths[name] > 1).sum(), (np.abs(r) > widths[name]).mean()
            cells.append(f"{passes} / {leaves:.0%}")
        rows.append([*first, *cells])
    return "Intervals: on this run", rows
