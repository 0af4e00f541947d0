"""Documents in, contexts of token ids out: tokenised once, cut as a run cuts them, padded side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.warehouse.plan import Context, PlannedDocument, cut
from energy_lens.warehouse.runs import StoredRun


class TokenSource:
    """Token ids of documents, tokenised once each."""

    def __init__(self, load_model: Callable[[], LanguageModel], documents: Mapping[str, Document]) -> None:
        """load_model: called for a document's first use. documents: those of the corpus at hand, by sha256."""
        self._load_model = load_model
        self._documents = documents
        self._cache: dict[str, NDArray[np.int32]] = {}

    def document(self, document: Document) -> NDArray[np.int32]:
        """All token ids of a document."""
        if document.sha256 not in self._cache:
            self._cache[document.sha256] = np.array(self._load_model().tokenize(document.text()), dtype=np.int32)
        return self._cache[document.sha256]

    def context(self, context: Context, sha256: str, planned_from: Path | None = None) -> NDArray[np.int32]:
        """Token ids of a context of the document with that hash.

        planned_from: where the document was when it was planned, for one that the corpus at hand does not hold.
        Raises UsageError when its text is no longer there.
        """
        document = self._documents.get(sha256)
        if document is None:
            assert planned_from is not None
            document = planned_document(sha256, planned_from)
        return self.document(document)[context.first_token : context.first_token + context.n_tokens]

    def contexts_of(self, run: StoredRun, contexts: Iterable[Context]) -> dict[int, NDArray[np.int32]]:
        """Token ids by context_id, of contexts of a run. Raises UsageError when a text is no longer there."""
        by_id = {document.document_id: document for document in run.documents.values()}
        token_ids = {}
        for context in contexts:
            document = by_id[context.document_id]
            token_ids[context.context_id] = self.context(context, document.sha256, Path(document.source))
        return token_ids


def planned_document(sha256: str, source: Path) -> Document:
    """A document of the plan that the corpus at hand does not hold, from where it was then.

    Raises UsageError when its text is no longer there.
    """
    if not source.is_file():
        raise UsageError(f"The plan needs {source}, which is gone: restore it, or start with --new-run.")
    data = source.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UsageError(f"The plan needs {source}, which was edited since: restore it, or start with --new-run.")
    return Document(source.name, "", sha256, len(data), source)


def padded(token_ids: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Contexts side by side: token ids [context, position] int64, padded on the right, and lengths [context]."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    tokens = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.int64)
    for i, ids in enumerate(token_ids):
        tokens[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    return tokens, lengths


def planned_alone(
    model: LanguageModel, documents: Sequence[Document], length: int
) -> tuple[list[NDArray[np.int32]], list[PlannedDocument]]:
    """Token ids of documents, and the documents cut as a run cuts them, for a sample that belongs to no run.

    A context's document_id is the document's place in `documents`; context ids and halves mean nothing here.
    """
    token_ids = [np.array(model.tokenize(document.text()), dtype=np.int32) for document in documents]
    planned = []
    for i, (document, ids) in enumerate(zip(documents, token_ids, strict=True)):
        windows = enumerate(cut(len(ids), length))
        contexts = tuple(Context(0, i, place, first, n) for place, (first, n) in windows)
        planned.append(PlannedDocument(i, document.category, "", document.sha256, contexts))
    return token_ids, planned


def special_ids(model: LanguageModel) -> Tensor:
    """[n] int64: the ids of tokens that are no text."""
    return torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.int64)
