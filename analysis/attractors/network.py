"""Decoder rows as the memories of a modern Hopfield network: residuals in, the fixed points they fall to out.

  z0 = (x − b)/‖x − b‖          b the SAE's b_dec; a normalising SAE normalises x first
  z  ← Wᵀ softmax(β W z), scaled to length 1, until ‖Δz‖ < TOLERANCE      W: unit decoder rows
  E_H(z) = −β⁻¹ log Σ_j exp(β w_j·z)     no step raises it on the unit sphere

The step maximises the tangent plane of the convex −E_H on the sphere, hence the last line. β sets how far memories
merge: from cells around single rows to one basin for all. A step costs O(tokens · features · d_model), and tokens that
have converged cost nothing any more.

Sources: Ramsauer et al. 2020 (arXiv 2008.02217), eq. 3 and theorem 3; Hoover et al. 2023 (arXiv 2302.07253), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

#: A point has settled when a step moves it by less, and is given up after so many steps.
TOLERANCE, MAX_STEPS = 1e-4, 1_000

#: Fixed points whose cosine exceeds this are one attractor.
MERGED = 0.99

#: A fixed point whose softmax has a lower perplexity is a single pattern.
SINGLE_PATTERN = 1.5

#: Numbers of tokens x features held at once: 128 MB of float32.
CHUNK_NUMBERS = 32_000_000

#: Bounds of the search for β, and how near to the target (as a ratio) it must come.
BETAS, NEAR = (1.0, 10_000.0), 1.05


class Still(NamedTuple):
    """Where points came to rest."""

    z: Tensor  #: [n, d]; the last point where not converged
    steps: Tensor  #: [n] int64
    converged: Tensor  #: [n] bool


class Settled(NamedTuple):
    """Where points went."""

    z: Tensor  #: fixed points [n, d], unit length; the last point where not converged
    steps: Tensor  #: [n] int64
    converged: Tensor  #: [n] bool
    perplexity: Tensor  #: of softmax(βWz) at z [n]


def come_to_rest(start: Tensor, update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], max_steps: int) -> Still:
    """Update points [n, d] until each moves by less than TOLERANCE; those that rest cost nothing any more.

    update: (points [m, d], their places among the n [m]) to (where they go, how far that is [m]).
    """
    z = start.clone()
    steps = torch.zeros(len(z), dtype=torch.int64)
    moving = torch.arange(len(z))
    for _ in range(max_steps):
        if not len(moving):
            break
        z[moving], went = update(z[moving], moving)
        steps[moving] += 1
        moving = moving[went >= TOLERANCE]
    converged = torch.ones(len(z), dtype=torch.bool)
    converged[moving] = False
    return Still(z, steps, converged)


@dataclass(frozen=True)
class Memories:
    """Unit rows and an inverse temperature."""

    rows: Tensor  #: W [m, d], unit length
    beta: float

    @classmethod
    def of(cls, directions: Tensor, beta: float = 1.0) -> Memories:
        """From directions [m, d] of any length but 0."""
        return cls(torch.nn.functional.normalize(directions, dim=1), beta)

    def at(self, beta: float) -> Memories:
        """The same memories at another β."""
        return Memories(self.rows, beta)

    def settle(self, start: Tensor) -> Settled:
        """Iterate from unit vectors [n, d]; at most CHUNK_NUMBERS products are held."""
        size = max(1, CHUNK_NUMBERS // len(self.rows))
        parts = [self._settle(part) for part in start.split(size)] or [self._settle(start)]
        return Settled(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _settle(self, start: Tensor) -> Settled:
        def update(z: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            after = self.step(z)
            return after, (after - z).norm(dim=1)

        still = come_to_rest(start, update, MAX_STEPS)
        return Settled(*still, self.perplexity(still.z))

    def step(self, z: Tensor) -> Tensor:
        """One update of unit vectors [n, d]."""
        return torch.nn.functional.normalize(self.weights(z) @ self.rows, dim=1)

    def weights(self, z: Tensor) -> Tensor:
        """softmax(βWz) [n, m]."""
        return (self.beta * (z @ self.rows.T)).softmax(dim=1)

    def perplexity(self, z: Tensor) -> Tensor:
        """exp of the entropy of softmax(βWz) [n]: how many memories a point is made of."""
        size = max(1, CHUNK_NUMBERS // len(self.rows))
        parts = []
        for part in z.split(size):
            log_p = (self.beta * (part @ self.rows.T)).log_softmax(dim=1)
            parts.append(-(log_p.exp() * log_p).sum(1))
        return torch.cat(parts).exp() if parts else z.new_empty(0)

    def energy(self, z: Tensor) -> Tensor:
        """E_H [n]."""
        size = max(1, CHUNK_NUMBERS // len(self.rows))
        parts = [-(self.beta * (part @ self.rows.T)).logsumexp(dim=1) / self.beta for part in z.split(size)]
        return torch.cat(parts) if parts else z.new_empty(0)

    def nearest(self, z: Tensor) -> Tensor:
        """argmax_j w_j·z [n]."""
        size = max(1, CHUNK_NUMBERS // len(self.rows))
        parts = [(part @ self.rows.T).argmax(1) for part in z.split(size)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Attractors:
    """Merged fixed points, the largest basin first."""

    vectors: Tensor  #: [k, d], unit length
    sizes: NDArray[np.int64]  #: points of each [k]
    basin: NDArray[np.int64]  #: attractor of each point [n], −1 where it has not converged

    def assign(self, z: Tensor) -> NDArray[np.int64]:
        """The attractor that each settled point [n, d] joins, −1 where it comes near none of them."""
        if not len(self.vectors) or not len(z):
            return np.full(len(z), -1)
        cosines, nearest = (z @ self.vectors.T).max(1)
        return torch.where(cosines > MERGED, nearest, -1).numpy()

    @property
    def entropy(self) -> float:
        """Of the basins' sizes, in nats."""
        shares = self.sizes / max(1, self.sizes.sum())
        return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def merge(settled: Settled | Still) -> Attractors:
    """Attractors of settled points: connected components at cosine > MERGED, so that no order matters.

    Ties in size go to the one whose first point comes first.
    """
    kept = settled.converged.nonzero()[:, 0]
    z = settled.z[kept]
    basin = np.full(len(settled.z), -1, dtype=np.int64)
    if not len(z):
        return Attractors(z, np.zeros(0, dtype=np.int64), basin)
    pairs = []
    size = max(1, CHUNK_NUMBERS // len(z))
    for start in range(0, len(z), size):
        near = (z[start : start + size] @ z.T > MERGED).nonzero()
        pairs.append(near + torch.tensor([start, 0]))
    row, column = torch.cat(pairs).T.numpy()
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(len(z), len(z)))
    n, labels = connected_components(graph, directed=False)
    sizes = np.bincount(labels, minlength=n)
    first = np.full(n, len(z))
    np.minimum.at(first, labels, np.arange(len(z)))
    order = np.lexsort((first, -sizes))
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    basin[kept.numpy()] = rank[labels]
    total = torch.zeros(n, z.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(rank[labels]), z.double())
    return Attractors(torch.nn.functional.normalize(total, dim=1).to(z.dtype), sizes[order].astype(np.int64), basin)


# ------------------------------------------------------------------------------------------------ β


class Calibration(NamedTuple):
    """The outcome of the search for β."""

    beta: float
    perplexity: float  #: median at the fixed points there
    reached: bool  #: within a factor NEAR of the target
    note: str | None  #: why not, in a sentence


def calibrated_beta(memories: Memories, start: Tensor, target: float) -> Calibration:
    """Bisect β, in its logarithm, to a median perplexity at the fixed points of `target`.

    start: unit vectors [n, d]. The median falls as β rises, and may jump over the target: the nearest β is given then.
    """
    tried: list[tuple[float, float]] = []

    def median(beta: float) -> float:
        value = float(memories.at(beta).settle(start).perplexity.median())
        tried.append((beta, value))
        return value

    low, high = map(math.log, BETAS)
    ends = median(BETAS[0]), median(BETAS[1])
    note = None
    if not ends[1] <= target <= ends[0]:
        note = (
            f"No β from {BETAS[0]:g} to {BETAS[1]:g} gives a median perplexity of {target:g}: it runs from "
            f"{ends[0]:.3g} to {ends[1]:.3g}."
        )
    else:
        for _ in range(40):
            middle = (low + high) / 2
            value = median(math.exp(middle))
            if 1 / NEAR < value / target < NEAR or high - low < 1e-5:
                break
            low, high = (middle, high) if value > target else (low, middle)
    beta, value = min(tried, key=lambda pair: abs(math.log(pair[1] / target)))
    reached = 1 / NEAR < value / target < NEAR
    if not reached and note is None:
        below = min((pair for pair in tried if pair[1] < target), key=lambda pair: pair[0])
        above = max((pair for pair in tried if pair[1] >= target), key=lambda pair: pair[0])
        note = (
            f"The median perplexity jumps from {above[1]:.3g} to {below[1]:.3g} at β = {below[0]:.4g}, over the "
            f"target of {target:g}."
        )
    return Calibration(beta, value, reached, note)


class Portrait(NamedTuple):
    """Basins of a set of points at one β."""

    beta: float
    n_attractors: int
    entropy: float  #: of basin sizes, nats
    largest_share: float  #: of the converged points
    perplexity_start: float  #: median at z0
    perplexity: float  #: median at the fixed points
    unconverged_share: float
    argmax_agreement: float  #: share of points whose fixed point is nearest to the row that z0 is nearest to


def portray(memories: Memories, start: Tensor) -> tuple[Portrait, Settled, Attractors]:
    """Settle points [n, d] and describe their basins."""
    settled = memories.settle(start)
    attractors = merge(settled)
    kept = settled.converged
    agreement = (memories.nearest(start) == memories.nearest(settled.z))[kept].double().mean()
    portrait = Portrait(
        memories.beta, len(attractors.sizes), attractors.entropy,
        float(attractors.sizes[0] / attractors.sizes.sum()) if len(attractors.sizes) else math.nan,
        float(memories.perplexity(start).median()), float(settled.perplexity.median()),
        float((~kept).double().mean()), float(agreement),
    )  # fmt: skip
    return portrait, settled, attractors


def sweep(memories: Memories, start: Tensor, betas: Sequence[float]) -> list[Portrait]:
    """Basins of the same points at several β."""
    return [portray(memories.at(beta), start)[0] for beta in betas]


def kinds(memories: Memories, attractors: Attractors) -> list[str]:
    """single pattern, metastable or global, of each attractor.

    Global is the fixed point that the mean of all rows falls to, whatever its perplexity.
    """
    middle = memories.settle(torch.nn.functional.normalize(memories.rows.mean(0, keepdim=True), dim=1)).z[0]
    cosines = attractors.vectors @ middle
    perplexities = memories.perplexity(attractors.vectors)
    return [
        "global" if cosine > MERGED else "single pattern" if perplexity < SINGLE_PATTERN else "metastable"
        for cosine, perplexity in zip(cosines.tolist(), perplexities.tolist(), strict=True)
    ]


def descent(memories: Memories, start: Tensor, steps: int) -> Tensor:
    """E_H along the way of points [n, d]: [steps + 1, n]."""
    z = start
    energies = [memories.energy(z)]
    for _ in range(steps):
        z = memories.step(z)
        energies.append(memories.energy(z))
    return torch.stack(energies)


def random_rows(rows: Tensor, seed: int) -> Tensor:
    """Gaussian directions of unit length, as many and as wide as rows [m, d]."""
    generator = np.random.default_rng(seed)
    return torch.nn.functional.normalize(torch.from_numpy(generator.standard_normal(rows.shape)).to(rows.dtype), dim=1)
