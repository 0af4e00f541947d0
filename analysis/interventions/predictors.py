"""TODO"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: Points of the joint path along which `integrated` takes its mean gradient, and its backward passes.
JOINT_POINTS = 3


#: Of `blended`: the share of what all features add that is taken away for its second gradient.
BLENDED_SHARE = 1 / 3


#: How fast the curvature of `aligned` and `blended` grows with ‖δ‖/‖x‖, and the weight of the mean of all features.
ALIGNED_GROWTH, PRIOR_TOKENS = 1.0, 10.0


def alignment(share: NDArray[np.float64], n_edited: NDArray[np.float64]) -> NDArray[np.float64]:
    """ρ of features from their sums [..., feature]: shares over edited tokens, drawn towards that of all features."""
    mean = share.sum(-1, keepdims=True) / np.maximum(n_edited.sum(-1, keepdims=True), 1)
    drawn: NDArray[np.float64] = (share + PRIOR_TOKENS * mean) / (n_edited + PRIOR_TOKENS)
    return drawn


def midpoints(n: int) -> Iterator[float]:
    """The midpoints of n equal parts of [0, 1]."""
    return ((i + 0.5) / n for i in range(n))
