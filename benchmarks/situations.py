"""The synthetic situations of benchmarks/significance.py, and what all tests and the interval say in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streamed import correlation, interval_of, p_values, streamed, totals
from synthetic import Noise, planted, synthetic

Floats = NDArray[np.float64]

#: p by test and feature.
Ps = dict[str, Floats]

#: Planted effects, as the score_within that each alone would have.
SIZES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06)

#: Situations and seeds into which effects are planted.
PLANTED = ("levels", "lengths by context", "skewed", "atypical: one direction")
PLANTED_SEEDS = 3

#: Structures whose interval is held against the correlation over all their draws but the one it comes from.
STRUCTURES, DRAWS = 2, 11

SYNTHETIC: Mapping[str, Noise] = {
    "levels": Noise(),
    "levels and drift": Noise(drift=0.3),
    "shared levels and drift": Noise(drift=0.3, shared_levels=True),
    "lengths by context": Noise(drift=0.5, lengths="contexts", firing=0.5),
    "lengths by document": Noise(drift=0.5, lengths="documents", firing=0.5),
    "short tails": Noise(drift=0.5, lengths="tails", firing=0.5),
    "skewed": Noise(skewed=True),
    "large gradients": Noise(levels=1.0, atypical="large"),
    "atypical: one direction": Noise(atypical="common"),
    "atypical: own directions": Noise(atypical="own"),
    "atypical: rows in clusters": Noise(atypical="common", clusters=True),
    "document slopes": Noise(slopes=0.1),
}


def null_and_planted(situation: str, n_seeds: int) -> tuple[list[Ps], list[dict[float, Ps]]]:
    """p of every test by seed, and by planted size of the first PLANTED_SEEDS of the situations PLANTED."""
    data = SYNTHETIC[situation]
    null, by_size = [], []
    for seed in range(n_seeds):
        sample = synthetic(data, seed)
        null.append(p_values(sample, seed))
        if situation in PLANTED and seed < PLANTED_SEEDS:
            by_size.append({size: p_values(planted(sample, size), seed) for size in SIZES})
    return null, by_size


def coverages(data: Noise) -> dict[str, Any]:
    """How often the interval of a sample holds the correlation over many other documents of the same structure."""
    covers, largest, effective = [], 0.0, []
    for structure in range(STRUCTURES):
        samples = [synthetic(data, structure, draw) for draw in range(DRAWS)]
        sums = [totals(sample) for sample in samples]
        for sample, own in zip(samples, sums, strict=True):
            interval = interval_of(sample, streamed(sample))
            rho = correlation(np.sum(sums, axis=0) - own)
            covers.append(interval.covers(rho)[np.isfinite(interval.error)])
            largest = max(largest, float(np.abs(rho).max()))
            effective.append(interval.effective)
    return {
        "n": int(sum(map(len, covers))), "covers": float(np.concatenate(covers).mean()), "largest_r": largest,
        "effective": float(np.nanmedian(np.concatenate(effective))),
    }  # fmt: skip
