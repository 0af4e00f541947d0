"""Patched residuals in, the attractor shift at later layers out, at edited tokens and at later ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energy_lens.analysis.attractors.landscape import Landscape, Shift, basin_shift
from energy_lens.analysis.attractors.network import Settled
from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.edits import Outcome, Patches


class ShiftReader:
    """Reads the shifts of patches of one batch of contexts; patches are numbered as they come."""

    def __init__(self, baseline: Baseline, later: Sequence[Landscape], n_later: int, seed: int) -> None:
        """n_later: tokens after the edited ones that are read of each patch, drawn by the seed."""
        self._baseline, self._later, self._n_later = baseline, later, n_later
        self._generator = np.random.default_rng(seed)
        self._next = 0
        self._before: dict[int, Settled] = {}
        for landscape in later:
            x = baseline.residuals[landscape.layer]
            settled = landscape.settle(x.flatten(0, 1))
            self._before[landscape.layer] = Settled(*(part.view(*x.shape[:2], *part.shape[1:]) for part in settled))

    def read(self, patches: Patches, outcome: Outcome) -> list[dict[str, Any]]:
        """Rows of attractor_shifts, with the patch's number in place of its keys."""
        later = outcome.looked_at & ~patches.edited & self._baseline.included[patches.context]
        chance = torch.from_numpy(self._generator.random(later.shape)).where(later, torch.tensor(2.0))
        kth = min(self._n_later, chance.shape[1]) - 1
        drawn = later & (chance <= chance.sort(1).values[:, kth : kth + 1])
        rows = []
        for landscape in self._later:
            for place, where in (("edited", patches.edited), ("later", drawn)):
                patch, position = where.nonzero(as_tuple=True)
                if not len(patch):
                    continue
                context = patches.context[patch]
                before = Settled(*(part[context, position] for part in self._before[landscape.layer]))
                x = outcome.residuals[landscape.layer][patch, position]
                finite = x.isfinite().all(1)
                shift = basin_shift(landscape, before, landscape.settle(torch.where(finite[:, None], x, 0)))
                rows += self._summed(landscape.layer, place, patch.numpy(), shift, finite.numpy(), len(patches))
        self._next += len(patches)
        return rows

    def _summed(
        self,
        layer: int,
        place: str,
        patch: NDArray[np.int64],
        shift: Shift,
        finite: NDArray[np.bool_],
        n: int,
    ) -> list[dict[str, Any]]:
        settled = shift.settled & finite

        def summed(values: NDArray[Any]) -> NDArray[Any]:
            return np.bincount(patch, weights=np.where(settled, values, 0), minlength=n)

        n_tokens = np.bincount(patch, minlength=n)
        columns = {
            "n_tokens": n_tokens, "n_settled": summed(settled), "n_changed": summed(shift.changed),
            "n_new": summed(shift.new),
        }  # fmt: skip
        sums = {"sum_distance": summed(shift.distance), "sum_hopfield": summed(shift.hopfield)}
        return [
            {
                "patch": self._next + i, "later_layer": layer, "place": place,
                **{name: int(values[i]) for name, values in columns.items()},
                **{name: float(values[i]) for name, values in sums.items()},
            }
            for i in np.flatnonzero(n_tokens).tolist()
        ]  # fmt: skip
