"""A run's tokens in; sums over contexts and over mates of numbers that stand at tokens out.

Numbers by token are flat arrays over all committed tokens, ordered by token_id; where something is not defined at a
token a mask says so. A context's tokens lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.significance import MIN_MATES
from energy_lens.ingest.statistics.strata import RunLayout, summed
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Tokens:
    """All committed tokens of a run."""

    ids: Integers  #: [token] ascending
    context: Integers  #: [token] place among the run's contexts, ascending
    slot: Integers  #: [token] its row of the plan and position: mates at one position share it
    following: Integers  #: [token] the token at the same position of the row's next context; −1 where there is none
    vocabulary_ids: NDArray[np.int32]  #: [token]
    class_code: NDArray[np.int8]  #: [token] place in CLASSES; −1 where a token has no class
    _place: NDArray[np.int32]  #: [token_id] place of a token in these arrays; −1 where there is none

    @classmethod
    def read(cls, warehouse: Warehouse, run: RunLayout) -> Tokens:
        stored = warehouse.run("finish/tokens", run=run.run_id).numpy()
        ids = np.asarray(stored["token_id"], dtype=np.int64)
        context = np.searchsorted(run.contexts.ids, ids // run.context_length)
        position = ids % run.context_length
        place = np.full(int(ids[-1]) + 1 if len(ids) else 0, -1, dtype=np.int32)
        place[ids] = np.arange(len(ids), dtype=np.int32)
        next_context = run.contexts.following[context]
        next_id = run.contexts.ids[next_context] * run.context_length + position
        within = (next_context >= 0) & (next_id < len(place))
        following = np.where(within, place[np.where(within, next_id, 0)], -1) if len(ids) else ids
        slot = run.contexts.row[context] * run.context_length + position
        code = np.ma.filled(np.ma.asarray(stored["class_code"]), -1).astype(np.int8)
        vocabulary_ids = np.asarray(stored["vocabulary_id"], dtype=np.int32)
        return cls(ids, context, slot, following.astype(np.int64), vocabulary_ids, code, place)

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, token_ids: NDArray[np.integer]) -> NDArray[np.int32]:
        """Places of tokens that are among these."""
        result: NDArray[np.int32] = self._place[token_ids]
        return result

    def of_context(self, values: NDArray[np.number] | Mask) -> Floats:
        """[context] sums over each context's tokens of values [token]."""
        n = int(self.context[-1]) + 1 if len(self) else 0
        return summed(values, self.context, n)

    def centred(self, values: Floats, chosen: Mask) -> Floats:
        """Minus their mean over the context's chosen tokens; 0 at others [token]."""
        n = np.maximum(self.of_context(chosen), 1)
        result: Floats = np.where(chosen, values - (self.of_context(values * chosen) / n)[self.context], 0)
        return result

    def beside(self, values: NDArray[np.number] | Mask) -> Floats:
        """Σ over a row's contexts at the token's position, itself included [token]."""
        n = int(self.slot.max()) + 1 if len(self) else 0
        result: Floats = summed(values, self.slot, n)[self.slot]
        return result

    def shifted(self, values: NDArray) -> NDArray:  # type: ignore[type-arg]
        """Values at the same position of the row's next context; 0 (False, −1 for labels) where there is none."""
        nothing = np.full_like(values[:1], -1 if values.dtype == np.int8 else 0)
        return np.concatenate([values, nothing])[self.following]


@dataclass(frozen=True)
class Centred:
    """Numbers at tokens as the within-context test wants them [token]; 0 where a mask says that there is none.

    As in the stream of the decoder gradient: g minus its mean over the context, minus the mates' mean at the same
    position, where at least MIN_MATES have one, minus the mean over the context of what is left (`tested`); and that
    of the row's next context without the mates' that the control may not see (`control`).
    """

    g: Floats
    defined: Mask
    tested: Floats
    counted: Mask
    control: Floats

    @classmethod
    def of(cls, tokens: Tokens, g: Floats, defined: Mask) -> Centred:
        """g: 0 where it is not defined."""
        centred = tokens.centred(g, defined)
        n_mates, total = tokens.beside(defined) - 1, tokens.beside(centred)
        counted = defined & (n_mates >= MIN_MATES)
        tested = centred - (total - centred) / np.maximum(n_mates, 1)
        following = tokens.shifted(centred)
        usable = counted & tokens.shifted(defined)
        control = following - (total - centred - following) / np.maximum(n_mates - 1, 1)
        return cls(g, defined, tokens.centred(tested, counted), counted, tokens.centred(control, usable))
