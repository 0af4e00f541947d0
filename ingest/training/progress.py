"""A training's state in, a bar on stderr out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from energy_lens.console import bar, say

if TYPE_CHECKING:
    from tqdm import tqdm

    from energy_lens.ingest.training import energy_models
    from energy_lens.ingest.training.saes import Progress


class TrainingBar:
    """A progress bar with each SAE's fraction of variance unexplained (FVU) and share of dead features."""

    def __init__(self) -> None:
        self._bar = bar("Train", 1.0, form="{desc} {percentage:.1f}% [{elapsed}<{remaining}]{postfix}")

    def update(self, progress: Progress) -> None:
        begun = {place: fvu for place, fvu in progress.fvu.items() if not math.isnan(fvu)}
        figures = [f"{layer}/{k}: {fvu:.3f} {progress.dead_share[layer, k]:.0%}" for (layer, k), fvu in begun.items()]
        shown = [progress.note] * bool(progress.note) + ["layer/k: FVU dead"] * bool(figures) + figures
        self._bar.set_postfix_str(" · ".join(shown), refresh=False)
        self._bar.update(progress.share - self._bar.n)

    def __enter__(self) -> TrainingBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class LossBar:
    """Sentences on what goes before and after, and a bar with the losses on train and select documents."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None  # not before it is the only one

    def update(self, progress: energy_models.Progress) -> None:
        if progress.note:
            self._close()
            say(f"{progress.note} …")
            return
        if self._bar is None:
            self._bar = bar("Train", 1.0, form="{desc} {percentage:.1f}% [{elapsed}<{remaining}]{postfix}")
        losses = [("loss", progress.train_loss), ("select", progress.select_loss)]
        shown = [f"{name} {loss:.3f}" for name, loss in losses if loss is not None]
        self._bar.set_postfix_str(" · ".join(shown), refresh=False)
        self._bar.update(progress.share - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> LossBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
