"""A corpus' contexts in, their residuals out: harvested once for all layers and kept on disk in rounds.

A round is a fixed number of tokens, in contexts taken in seeded order from all documents, so that it is a sample of
the corpus and a batch drawn from it mixes hundreds of texts. Its residuals lie in one raw bfloat16 file a layer, which
is mapped into memory and not read as a whole: memory stays bounded whatever the width of the model. A round is complete
when its `round.json` is there, which is written last; whatever stops a harvest costs at most the round it was at. Which
process harvests a round is no matter to its files: `rounds_ahead` has workers do it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.contexts import Ids, of_equal_length, parts_of, side_by_side, special_tokens
from energy_lens.ingest.inclusion import MASSIVE_NORM_RATIO
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import norm_medians
from energy_lens.ingest.model.sites import RESID_POST, Site, check_sites, width
from energy_lens.ingest.training.harvesting import Batch, Harvester, bits
from energy_lens.warehouse.files import whole

#: Tokens from which each layer's norm median is taken.
MEDIAN_TOKENS = 32_768

PLAN, ROUND = "plan.json", "round.json"

#: Version of which tokens a round holds; raise it when a store that was begun before must not be gone on with.
STORE_VERSION = 2


class ActivationStore:
    """Included tokens' residuals of all layers, by round.

    A token is kept when it is included at every layer, so that all layers train on the same tokens.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        contexts: Sequence[Ids],
        layers: Sequence[int],
        round_contexts: int = 512,
        model_batch: int = 8,
        point: str = RESID_POST,
    ) -> None:
        """contexts: token ids of each, in the order in which they are taken.

        round_contexts, model_batch: contexts in a round and in a forward pass, when all are as long as the longest;
        of shorter ones there are more. point: where in each block, of sites.POINTS.

        Raises UsageError when the folder holds the residuals of other contexts, layers or another model.
        """
        self.folder, self.layers = folder, list(layers)
        special = special_tokens(model)
        sites = {layer: Site(layer, point) for layer in layers}
        check_sites(model, sites.values())
        self._width = width(model, sites[min(layers)])
        length = max(map(len, contexts))
        self._places = model_batch * length  # in a forward pass, padding with them
        self._rounds = parts_of(contexts, round_contexts * length)
        described = [
            STORE_VERSION, model.sha256, str(model.dtype), self.layers, round_contexts, MASSIVE_NORM_RATIO,
            special.ids.tolist(), list(map(len, contexts)), *(["bos"] if special.bos_leads else []),
            *([] if point == RESID_POST else [point]),
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(described).encode())
        for ids in contexts:
            digest.update(ids.astype(np.int32).tobytes())
        self._digest = digest.hexdigest()
        #: layer: median ‖x‖ over all tokens of the first contexts
        self.norm_medians = self._settle(model, sites, contexts)
        self.harvester = Harvester(model, sites, self.norm_medians)

    def __len__(self) -> int:
        """Rounds that the contexts fill, the last one perhaps not wholly."""
        return len(self._rounds)

    def _settle(self, model: LanguageModel, sites: Mapping[int, Site], contexts: Sequence[Ids]) -> dict[int, float]:
        try:
            plan = json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            plan = None
        except ValueError as error:
            raise UsageError(f"{self.folder / PLAN} is damaged: remove {self.folder} and start again.") from error
        if plan is not None:
            if plan.get("contexts") != self._digest:
                raise UsageError(
                    f"{self.folder} belongs to a training with another corpus, model, layers or seed, or of another "
                    "version: give the same again, or remove that folder."
                )
            return {layer: float(plan["norm_medians"][str(layer)]) for layer in self.layers}
        first = parts_of(contexts, MEDIAN_TOKENS)[0]
        medians = norm_medians(model, of_equal_length(first, self._places), sites)
        _write_json(self.folder, PLAN, {"contexts": self._digest, "norm_medians": medians})
        return medians

    def round(self, index: int) -> dict[int, Tensor]:
        """Residuals by layer, bfloat16 [token, width], mapped from disk; harvested when they are not there yet."""
        if self.lacks(index):
            self._harvest(index)
        shape = (self.n_tokens(index), self._width)
        residuals = {}
        for layer, path in self._files(index).items():
            if path.stat().st_size != 2 * shape[0] * shape[1]:
                raise ElwError(f"{path} is damaged: remove {path.parent}, it is made again.")
            if not shape[0]:  # nothing can be mapped then
                residuals[layer] = torch.empty(shape, dtype=torch.bfloat16)
                continue
            flat = torch.from_file(str(path), shared=False, size=shape[0] * shape[1], dtype=torch.bfloat16)
            residuals[layer] = flat.view(shape)
        return residuals

    def lacks(self, index: int) -> bool:
        """Whether a round has to be harvested before it can be read."""
        return not self.was_harvested(index) or not all(path.exists() for path in self._files(index).values())

    def was_harvested(self, index: int) -> bool:
        """Whether a round was harvested as a whole, be it dropped since."""
        return (self._folder(index) / ROUND).exists()

    def n_tokens(self, index: int) -> int:
        """Tokens of a round that was harvested, be it dropped since."""
        return int(json.loads((self._folder(index) / ROUND).read_text(encoding="utf-8"))["tokens"])

    def drop(self, index: int) -> None:
        """Give back the disk space of a round; its number of tokens stays known."""
        for path in self._folder(index).glob("*.bf16"):
            path.unlink(missing_ok=True)

    def _folder(self, index: int) -> Path:
        return self.folder / f"round_{index:05d}"

    def _files(self, index: int) -> dict[int, Path]:
        return {layer: self._folder(index) / f"layer_{layer}.bf16" for layer in self.layers}

    # -- harvesting

    def batches(self, index: int) -> list[Batch]:
        """What the model reads of a round, pass by pass."""
        contexts = side_by_side(self._rounds[index], self._places)
        return [Batch(index, place, tokens, lengths) for place, (tokens, lengths) in enumerate(contexts)]

    @contextmanager
    def filling(self, index: int) -> Iterator[Callable[[Mapping[int, NDArray[np.int16]]], None]]:
        """Inside, what is yielded writes what a batch of a round gave, bits by layer; left in peace it is whole."""
        folder = self._folder(index)
        n_kept = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROUND).unlink(missing_ok=True)  # of a round that was dropped
            with ExitStack() as stack:
                files = {layer: stack.enter_context(path.open("wb")) for layer, path in self._files(index).items()}

                def write(residuals: Mapping[int, NDArray[np.int16]]) -> None:
                    nonlocal n_kept
                    n_kept += len(residuals[self.layers[0]])
                    for layer, file in files.items():
                        file.write(residuals[layer].data)

                yield write
        except OSError as error:
            raise ElwError(
                f"{folder} cannot be written ({error.strerror}): make room, or have it elsewhere (--output, "
                "ELW_CACHE); the same command goes on from here."
            ) from error
        _write_json(folder, ROUND, {"tokens": n_kept})

    def _harvest(self, index: int) -> None:
        with self.filling(index) as write:
            for kept in self._batches(self._rounds[index]):
                write({layer: bits(x) for layer, x in kept.items()})

    def harvest(self, contexts: Sequence[Ids]) -> dict[int, Tensor]:
        """The residuals of other contexts, in memory."""
        batches = list(self._batches(contexts))
        return {layer: torch.cat([batch[layer] for batch in batches]) for layer in self.layers}

    def _batches(self, contexts: Sequence[Ids]) -> Iterator[dict[int, Tensor]]:
        for tokens, lengths in side_by_side(contexts, self._places):
            yield self.harvester.harvest(tokens, lengths)


def _write_json(folder: Path, name: str, value: object) -> None:
    """A file that is whole when it has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / name) as (scratch,):
            scratch.write_text(json.dumps(value), encoding="utf-8")
    except OSError as error:
        raise ElwError(
            f"{folder} cannot be written ({error.strerror}): have it elsewhere (--output, ELW_CACHE)."
        ) from error
