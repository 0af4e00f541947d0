"""An edit and a feature's activations in, patches of residuals out: what one unit more or less adds to x.

  x_t ← x_t + (a' − a)·s_t·d_j

a is the feature's activation in the unpatched pass, a' what the edit makes of it; the SAE's error term stays, since
only the difference is added. Excluded tokens are never edited.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.errors import did_you_mean, require

#: The energy that interventions are measured in and chosen by: the model's own loss.
LOSS = "nll"

#: Of an edit, in size: the largest number of a pass. Where one of that size overflows on its way, that is on record.
LARGEST_VALUE = torch.finfo(torch.float32).max

#: What can be done to an activation, and where (`Edit` says how each is meant).
KINDS = ("ablate", "scale", "clamp", "add")
PLACES = ("active", "all")


@dataclass(frozen=True)
class Edit:
    """What is done to a feature's activation, and where."""

    kind: str  #: ablate: a' = 0; scale: a' = value·a; clamp: a' = value; add: a' = a + value
    value: float | None = None
    where: str = "active"  #: included tokens at which the feature is active, or all included ones

    def __post_init__(self) -> None:
        """Raises UsageError for an edit that means nothing."""
        kind, value, where = self.kind, self.value, self.where
        needs = "takes no value" if kind == "ablate" else "needs a value"
        require(
            kind in KINDS,
            f"There is no intervention {kind!r}{did_you_mean(kind, KINDS)}: choose {', '.join(KINDS)} (--kind).",
        )
        require(where in PLACES, f"--where is {where!r}{did_you_mean(where, PLACES)}; choose {' or '.join(PLACES)}.")
        require((value is None) == (kind == "ablate"), f"{kind} {needs} (--value).")
        require(value is None or math.isfinite(value), f"--value is {value}; a finite number is needed.")
        require(
            value is None or abs(value) <= LARGEST_VALUE,
            f"--value is {value}; it must lie between {-LARGEST_VALUE:g} and {LARGEST_VALUE:g}, where float32 ends.",
        )
        require(
            where == "active" or kind in ("clamp", "add"),
            f"{kind} changes nothing where a feature is inactive: leave out --where all, or add or clamp.",
        )

    def apply(self, a: Tensor, included: Tensor) -> tuple[Tensor, Tensor]:
        """a' − a, 0 where nothing is edited, and the mask of edited tokens, for a and included of one shape."""
        edited = included & (a > 0) if self.where == "active" else included
        value = self.value if self.value is not None else 0.0
        target = {"ablate": torch.zeros_like(a), "scale": value * a, "add": a + value}.get(
            self.kind, torch.full_like(a, value)
        )
        return torch.where(edited, target - a, 0), edited


@dataclass(frozen=True)
class Patches:
    """Edits of a batch's contexts, n of them, along any directions."""

    context: Tensor  #: place in the batch [n] int64
    direction: Tensor  #: what one unit adds to x, [n, d_model]
    change: Tensor  #: δ [n, position]: units added, token scales included
    edited: Tensor  #: [n, position] bool

    def __len__(self) -> int:
        return len(self.context)

    @property
    def _columns(self) -> tuple[Tensor, ...]:
        return self.context, self.direction, self.change, self.edited

    @classmethod
    def joined(cls, parts: Sequence[Patches]) -> Patches:
        """Patches of the same batch, one after the other; at least one of `parts` is needed, be it empty."""
        return cls(*(torch.cat(columns) for columns in zip(*(part._columns for part in parts), strict=True)))

    def where(self, chosen: Tensor) -> Patches:
        """The chosen ones, for a mask [n] bool."""
        return Patches(*(column[chosen] for column in self._columns))

    def split(self, size: int) -> Iterator[Patches]:
        """Patches in order, at most `size` at a time."""
        for part in zip(*(column.split(size) for column in self._columns), strict=True):
            yield Patches(*part)

    @property
    def displacement(self) -> Tensor:
        """What is added to x, [n, position, d_model]."""
        return self.change[..., None] * self.direction[:, None]


@dataclass(frozen=True)
class Outcome:
    """What patches did, [n, position]; 0 where a token has no next one or comes before the first edited one."""

    delta: Tensor  #: ΔE, nats
    divergence: Tensor  #: KL(p‖p'), nats
    top_changed: Tensor  #: bool
    looked_at: Tensor  #: bool: tokens that have a next one, from the first edited one on
    residuals: Mapping[int, Tensor]  #: later layer: patched x [n, position, d_model]

    def sums(self, patches: Patches) -> dict[str, NDArray[Any]]:
        """ΔE and KL by column, [n]: over the edited tokens of its patches, and over the later ones."""
        columns: dict[str, NDArray[Any]] = {}
        for suffix, where in (("edited", patches.edited), ("later", self.looked_at & ~patches.edited)):
            columns[f"delta_{suffix}"] = (self.delta.double() * where).sum(1).numpy()
            columns[f"kl_{suffix}"] = (self.divergence.double() * where).sum(1).numpy()
            columns[f"top_changed_{suffix}"] = (self.top_changed & where).sum(1).numpy().astype(np.int32)
        return columns
