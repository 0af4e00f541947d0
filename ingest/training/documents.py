"""A corpus in, the contexts that training sees out: documents to train, select and test on, cut and shuffled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.model.language_model import LanguageModel

#: Share of each category's documents held out for choosing (select) and for reporting (test).
SELECT_SHARE, TEST_SHARE = 0.05, 0.10


def split_documents(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents by part (train, select, test), decided by content alone and in every category alike.

    A category of fewer than 3 documents goes to train as a whole; a larger one gives at least one to each part.
    """
    parts: dict[str, list[Document]] = {"train": [], "select": [], "test": []}
    for category in sorted({document.category for document in documents}):
        of_category = sorted((d for d in documents if d.category == category), key=lambda document: document.sha256)
        held_out = len(of_category) >= 3
        n_test = max(1, round(TEST_SHARE * len(of_category))) if held_out else 0
        n_select = max(1, round(SELECT_SHARE * len(of_category))) if held_out else 0
        parts["test"] += of_category[:n_test]
        parts["select"] += of_category[n_test : n_test + n_select]
        parts["train"] += of_category[n_test + n_select :]
    return {name: sorted(part, key=lambda document: document.path) for name, part in parts.items()}


def cut_contexts(model: LanguageModel, documents: Sequence[Document], length: int) -> Tensor:
    """[n, length] token ids: the full contexts of the documents, in document order."""
    source = TokenSource(lambda: model, {document.sha256: document for document in documents})
    source.add(documents)
    pieces = []
    for document in documents:
        ids = torch.from_numpy(source.document(document))
        pieces.append(ids[: len(ids) // length * length].view(-1, length))
    return torch.cat(pieces) if pieces else torch.empty(0, length, dtype=torch.int32)


def shuffled_contexts(
    model: LanguageModel, documents: Sequence[Document], n_tokens: int, length: int, seed: int, step_tokens: int = 0
) -> Tensor:
    """[n, length] token ids in seeded order, the fewest contexts that hold n_tokens, or all.

    step_tokens: tokens of a step of what is trained on them. Raises UsageError when there are fewer than two steps.
    """
    contexts = cut_contexts(model, documents, length)
    order = np.random.default_rng(seed).permutation(len(contexts))
    contexts = contexts[torch.from_numpy(order)][: math.ceil(n_tokens / length)]
    if contexts.numel() < 2 * step_tokens:
        raise UsageError(
            f"The training documents hold {contexts.numel()} tokens in full contexts, less than two steps of "
            f"{step_tokens}: give more text or a smaller batch."
        )
    return contexts
