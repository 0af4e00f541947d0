"""A corpus' contexts in, their residuals out: harvested once for all layers and kept on disk in rounds.

A round is a fixed number of contexts, taken in seeded order from all documents, so that it is a sample of the corpus
and a batch drawn from it mixes hundreds of texts. Its residuals lie in one raw bfloat16 file a layer, which is mapped
into memory and not read as a whole: memory stays bounded whatever the width of the model. A round is complete when
its `round.json` is there, which is written last; whatever stops a harvest costs at most the round it was at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.inclusion import MASSIVE_NORM_RATIO, included_tokens
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import harvest_residuals, norm_medians
from energy_lens.warehouse.files import whole

#: Tokens from which each layer's norm median is taken.
MEDIAN_TOKENS = 32_768

PLAN, ROUND = "plan.json", "round.json"


class ActivationStore:
    """Included tokens' residuals of all layers, by round.

    A token is kept when it is included at every layer, so that all layers train on the same tokens.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        contexts: Tensor,
        layers: Sequence[int],
        round_contexts: int = 512,
        model_batch: int = 8,
    ) -> None:
        """contexts: [n, length] token ids, in the order in which they are taken.

        Raises UsageError when the folder holds the residuals of other contexts, layers or another model.
        """
        self.folder, self.layers = folder, list(layers)
        self._model, self._model_batch = model, model_batch
        self._rounds = contexts.split(round_contexts)
        described = [model.sha256, str(model.dtype), self.layers, round_contexts, MASSIVE_NORM_RATIO, *contexts.shape]
        digest = hashlib.sha256(json.dumps(described).encode())
        digest.update(contexts.numpy().tobytes())
        self._digest = digest.hexdigest()
        self.norm_medians = self._settle(contexts)  #: layer: median ‖x‖ over all tokens of the first contexts

    def __len__(self) -> int:
        """Rounds that the contexts fill, the last one perhaps not wholly."""
        return len(self._rounds)

    def _settle(self, contexts: Tensor) -> dict[int, float]:
        try:
            plan = json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            plan = None
        except ValueError as error:
            raise UsageError(f"{self.folder / PLAN} is damaged: remove {self.folder} and start again.") from error
        if plan is not None:
            if plan.get("contexts") != self._digest:
                raise UsageError(
                    f"{self.folder} belongs to a training with another corpus, model, layers or seed: "
                    "give the same again, or remove that folder."
                )
            return {layer: float(plan["norm_medians"][str(layer)]) for layer in self.layers}
        first = contexts[: max(1, MEDIAN_TOKENS // contexts.shape[1])].split(self._model_batch)
        medians = norm_medians(self._model, (tokens.numpy() for tokens in first), self.layers)
        _write_json(self.folder, PLAN, {"contexts": self._digest, "norm_medians": medians})
        return medians

    def round(self, index: int) -> dict[int, Tensor]:
        """Residuals by layer, bfloat16 [token, d_model], mapped from disk; harvested when they are not there yet."""
        folder = self._folder(index)
        if not (folder / ROUND).exists():
            self._harvest(index)
        n_tokens = int(json.loads((folder / ROUND).read_text(encoding="utf-8"))["tokens"])
        shape = (n_tokens, self._model.d_model)
        residuals = {}
        for layer in self.layers:
            path = folder / f"layer_{layer}.bf16"
            if path.stat().st_size != 2 * shape[0] * shape[1]:
                raise ElwError(f"{path} is damaged: remove {folder}, it is made again.")
            flat = torch.from_file(str(path), shared=False, size=shape[0] * shape[1], dtype=torch.bfloat16)
            residuals[layer] = flat.view(shape)
        return residuals

    def drop(self, index: int) -> None:
        """Give back the disk space of a round."""
        shutil.rmtree(self._folder(index), ignore_errors=True)

    def _folder(self, index: int) -> Path:
        return self.folder / f"round_{index:05d}"

    def _harvest(self, index: int) -> None:
        folder = self._folder(index)
        n_kept = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                files = {
                    layer: stack.enter_context((folder / f"layer_{layer}.bf16").open("wb")) for layer in self.layers
                }
                for kept in self._batches(self._rounds[index]):
                    n_kept += len(kept[self.layers[0]])
                    for layer, file in files.items():
                        file.write(kept[layer].contiguous().view(torch.int16).numpy().tobytes())
        except OSError as error:
            raise ElwError(
                f"{folder} cannot be written ({error.strerror}): make room, or choose another --output; "
                "the same command goes on from here."
            ) from error
        _write_json(folder, ROUND, {"tokens": n_kept})

    def harvest(self, contexts: Tensor) -> dict[int, Tensor]:
        """The same of other contexts [n, length], in memory."""
        batches = list(self._batches(contexts))
        return {layer: torch.cat([batch[layer] for batch in batches]) for layer in self.layers}

    def _batches(self, contexts: Tensor) -> Iterator[dict[int, Tensor]]:
        for tokens in contexts.split(self._model_batch):
            residuals = harvest_residuals(self._model, tokens.long(), self.layers)
            masks = [included_tokens(x.float().norm(dim=-1), self.norm_medians[n]) for n, x in residuals.items()]
            included = torch.stack(masks).all(0)
            yield {layer: x[included].bfloat16() for layer, x in residuals.items()}


def _write_json(folder: Path, name: str, value: object) -> None:
    """A file that is whole when it has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / name) as (scratch,):
            scratch.write_text(json.dumps(value), encoding="utf-8")
    except OSError as error:
        raise ElwError(f"{folder} cannot be written ({error.strerror}): choose another --output.") from error
