"""A corpus in, the contexts that training sees out: documents to train, select and test on, cut and shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from energy_lens.console import say
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import Ids, planned_alone, special_tokens
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.inclusion import SpecialTokens
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.warehouse.plan import MIN_DOCUMENT, MIN_TAIL, Context

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


def cut_contexts(model: LanguageModel, documents: Sequence[Document], length: int) -> list[Ids]:
    """Token ids of the documents' contexts, cut as an ingest cuts them (`warehouse.plan.cut`), in document order."""
    contexts, read, _ = _cut(model, documents, length)
    return [read(context) for context in contexts]


def shuffled_contexts(
    model: LanguageModel,
    documents: Sequence[Document],
    n_tokens: int,
    length: int,
    seed: int,
    step_tokens: int = 0,
    remedy: str = "give more text",
) -> list[Ids]:
    """Contexts in seeded order, the fewest that hold n_tokens to train on, or all; says which text is left out.

    step_tokens: tokens of a step of what is trained on them. Raises UsageError when there are fewer than two steps;
    remedy: what helps then.
    """
    contexts, read, left_out = _cut(model, documents, length)
    special = special_tokens(model)
    trainable = np.array([trainable_tokens(read(context), special) for context in contexts], dtype=np.int64)
    if (available := int(trainable.sum())) < 2 * step_tokens:
        total = sum(context.n_tokens - (model.bos is not None) for context in contexts) + left_out
        raise UsageError(
            f"{len(documents):,} training documents of {total:,} tokens hold {available:,} to train on, without the "
            f"first and last of each context, special ones and short ends; two steps take {2 * step_tokens:,}: "
            f"{remedy}."
        )
    if n_tokens < 2 * step_tokens:
        raise UsageError(f"--tokens is {n_tokens:,}, and two steps take {2 * step_tokens:,}: train on more.")
    if left_out:
        say(
            f"{left_out:,} tokens of the training documents are left out: ends of fewer than {MIN_TAIL} tokens, and "
            f"documents of fewer than {MIN_DOCUMENT}."
        )
    order = np.random.default_rng(seed).permutation(len(contexts))
    needed = int(np.searchsorted(trainable[order].cumsum(), n_tokens)) + 1
    return [read(contexts[i]) for i in order[:needed]]


def trainable_tokens(ids: Ids, special: SpecialTokens) -> int:
    """Tokens of a context that can be trained on: all but the first (or its BOS), the last and special ones.

    A token of massive norm falls out too, which only the model can tell.
    """
    return int(np.isin(ids[1:-1], special.ids.numpy(), invert=True).sum())


def _cut(
    model: LanguageModel, documents: Sequence[Document], length: int
) -> tuple[list[Context], Callable[[Context], Ids], int]:
    """Contexts of documents in order, what reads one's token ids, and the number of tokens that are in none."""
    source, planned = planned_alone(model, documents, length)
    contexts = [context for document in planned for context in document.contexts]
    n_tokens = sum(source.n_tokens(document) for document in documents)

    def read(context: Context) -> Ids:
        return source.context(context, documents[context.document_id].sha256)

    n_read = sum(context.n_tokens - (model.bos is not None) for context in contexts)
    return contexts, read, n_tokens - n_read
