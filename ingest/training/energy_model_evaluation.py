"""A language model and documents that it never saw in, its loss out: in nats per token and per byte, by category.

Each document is read in contexts from its beginning on, behind END_OF_TEXT, so that its every token is predicted once.
What a loss per token means depends on the tokenizer, and what one per byte means does not: the nats of a document over
the bytes of its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energy_lens.ingest.corpus import Document
from energy_lens.ingest.training.energy_model_loss import losses
from energy_lens.ingest.training.energy_model_text import Stream, bytes_of_tokens

#: Tokens of the test documents on which figures are taken, and of a pass.
TEST_TOKENS, PASS_TOKENS = 131_072, 4_096


@dataclass(frozen=True)
class Loss:
    """Of some text."""

    tokens: int
    bytes: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def nats_per_byte(self) -> float:
        return self.nats / self.bytes


@dataclass(frozen=True)
class HeldOut:
    """Losses on documents that took no part in training."""

    categories: dict[str, Loss]
    all: Loss


def held_out(
    module: Any,
    tokenizer: Any,
    documents: Sequence[Document],
    stream: Stream,
    length: int,
    n_tokens: int = TEST_TOKENS,
) -> HeldOut | None:
    """Losses of a model on contexts evenly spread over the stream of held-out documents; None where there are none.

    stream: of those documents, in that order; length: of a context; n_tokens: of those read, or all there are.
    """
    windows = list(_windows(stream, length))
    if not windows:
        return None
    kept = _spread(len(windows), n_tokens // length)
    n_bytes = bytes_of_tokens(tokenizer)
    found: dict[str, list[Loss]] = {}
    for some in _batches([windows[i] for i in kept], length):
        for (document, ids), nats in zip(some, _losses(module, [ids for _, ids in some]), strict=True):
            loss = Loss(len(ids) - 1, int(n_bytes[ids[1:]].sum()), float(nats.sum()))
            found.setdefault(documents[document].category, []).append(loss)
    categories = {category: _sum(parts) for category, parts in sorted(found.items())}
    return HeldOut(categories, _sum(list(categories.values())))


def mean_loss_of(module: Any, stream: Stream, length: int, n_tokens: int) -> float:
    """The mean loss, in nats a token, on contexts evenly spread over a stream."""
    windows = [ids for _, ids in _windows(stream, length)]
    kept = _spread(len(windows), n_tokens // length)
    total, count = 0.0, 0
    for some in _batches([(0, windows[i]) for i in kept], length):
        for nats in _losses(module, [ids for _, ids in some]):
            total, count = total + float(nats.sum()), count + len(nats)
    return total / count


def spread_contexts(stream: Stream, length: int, n: int) -> NDArray[np.int64] | None:
    """Ids [context, length] of n contexts, or all there are, evenly spread over a stream; None where it has none."""
    windows = [ids[:length] for _, ids in _windows(stream, length) if len(ids) >= length]
    return np.stack([windows[i] for i in _spread(len(windows), n)]) if windows else None


def _spread(n: int, wanted: int) -> list[int]:
    """At least one and at most `wanted` places of n, evenly spread."""
    places: list[int] = np.unique(np.linspace(0, n - 1, max(1, min(n, wanted))).round().astype(int)).tolist()
    return places


def _sum(parts: Sequence[Loss]) -> Loss:
    return Loss(sum(part.tokens for part in parts), sum(part.bytes for part in parts), sum(part.nats for part in parts))


def _windows(stream: Stream, length: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(document, ids [at most length + 1]) of which each but the first is predicted; every token of a document once."""
    ends = [*stream.starts[1:].tolist(), len(stream)]
    for document, (start, end) in enumerate(zip(stream.starts.tolist(), ends, strict=True)):
        for first in range(start, end - 1, length):
            yield document, stream.ids[first : min(first + length + 1, end)].astype(np.int64)


def _batches(
    windows: Sequence[tuple[int, NDArray[np.int64]]], length: int
) -> Iterator[Sequence[tuple[int, NDArray[np.int64]]]]:
    n = max(1, PASS_TOKENS // length)
    return (windows[i : i + n] for i in range(0, len(windows), n))


@torch.no_grad()
def _losses(module: Any, contexts: Sequence[NDArray[np.int64]]) -> list[torch.Tensor]:
    """Nats of each predicted token of each context."""
    longest = max(map(len, contexts))
    ids = torch.zeros(len(contexts), longest, dtype=torch.int64)  # padded on the right, where causality hides it
    for i, context in enumerate(contexts):
        ids[i, : len(context)] = torch.from_numpy(context)
    hidden = module.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.float()
    nats = losses(hidden.flatten(0, 1), module.get_output_embeddings().weight.float(), ids[:, 1:].flatten())
    return [row[: len(context) - 1] for row, context in zip(nats.view(len(contexts), -1), contexts, strict=True)]
