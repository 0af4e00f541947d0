"""Documents in, contexts of token ids out: tokenised once, cut as a run cuts them, padded side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.console import bar
from energy_lens.errors import UsageError
from energy_lens.ingest.corpus import ChangedError, Document, texts
from energy_lens.ingest.inclusion import SpecialTokens
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.sources import GoneError, source_at
from energy_lens.ingest.token_file import TokenFile
from energy_lens.warehouse.plan import Context, PlannedDocument, cut
from energy_lens.warehouse.runs import StoredDocument

Ids: TypeAlias = NDArray[np.int32]  #: token ids of a context, [position]

#: Bytes of text from which on a bar shows how far their tokenising is.
SHOWN_FROM = 10_000_000


class Padded:
    """Contexts side by side; what is built of `tokens` and `lengths` of a batch."""

    tokens: Tensor  #: [context, position] int64, padded on the right
    lengths: Tensor  #: [context]

    @property
    def places(self) -> Tensor:
        """[context, position] mask of what is no padding."""
        return torch.arange(self.tokens.shape[1])[None] < self.lengths[:, None]

    @property
    def has_next(self) -> Tensor:
        """[context, position] mask of the tokens that have a next one in their context."""
        return torch.arange(self.tokens.shape[1])[None] < self.lengths[:, None] - 1


class TokenSource:
    """Token ids of documents, tokenised once each and kept on disk."""

    def __init__(
        self, load_model: Callable[[], LanguageModel], documents: Mapping[str, Document], folder: Path | None = None
    ) -> None:
        """load_model: called for the first use. documents: those of the corpus at hand, by sha256.

        folder: where there is room for the ids; None: the system's folder for temporary files.
        """
        self._load_model = load_model
        self._documents = documents
        self._folder = folder
        self._ids: TokenFile | None = None

    def add(self, documents: Iterable[Document]) -> None:
        """Tokenise documents of the corpus at hand, those that are not there yet.

        Raises UsageError when a text is no longer what was catalogued, ElwError when the disk is full.
        """
        ids = self._file()
        new = list({document.sha256: document for document in documents if document.sha256 not in ids}.values())
        try:
            self._add(new, ids)
        except BaseException:
            self._ids = None  # the last document may be there in part
            raise

    def _add(self, new: Sequence[Document], ids: TokenFile) -> None:
        model = self._load_model()
        n_bytes = sum(document.n_bytes for document in new)
        order: list[str] = []
        with bar("Tokenise", n_bytes, "B", hidden=n_bytes < SHOWN_FROM) as progress:

            def pieces() -> Iterator[Iterator[str]]:
                for document, of_text in texts(new):
                    order.append(document.sha256)
                    yield of_text
                    progress.update(document.n_bytes)

            for place, some in model.token_ids(pieces()):
                ids.append(order[place], some)

    def document(self, document: Document) -> NDArray[np.int32]:
        """All token ids of a document."""
        if document.sha256 not in self._file():
            self.add([document])
        return self._file().read(document.sha256)

    def n_tokens(self, document: Document) -> int:
        """Tokens of a document."""
        if document.sha256 not in self._file():
            self.add([document])
        return self._file().n_tokens(document.sha256)

    def context(self, context: Context, sha256: str) -> NDArray[np.int32]:
        """Token ids of a context of the document with that hash, which is at hand or was added."""
        if sha256 not in self._file():
            self.add([self._documents[sha256]])
        model = self._load_model()
        n_text = context.n_tokens - (model.bos is not None)
        return model.as_context(self._file().read(sha256, context.first_token, n_text))

    def add_planned(self, documents: Mapping[int, StoredDocument], contexts: Iterable[Context]) -> None:
        """Tokenise the documents of contexts of a run. Raises UsageError when a text is no longer there.

        documents: those of the run, by document_id.
        """
        stored = [documents[document_id] for document_id in sorted({context.document_id for context in contexts})]
        self.add(self._documents[document.sha256] for document in stored if document.sha256 in self._documents)
        with _in_words_of_the_plan():
            self.add(_planned(document) for document in stored if document.sha256 not in self._documents)

    def contexts_of(
        self, documents: Mapping[int, StoredDocument], contexts: Iterable[Context]
    ) -> dict[int, NDArray[np.int32]]:
        """Token ids by context_id, of contexts of a run. Raises UsageError when a text is no longer there.

        documents: those of the run, by document_id.
        """
        contexts = list(contexts)
        self.add_planned(documents, contexts)
        return {
            context.context_id: self.context(context, documents[context.document_id].sha256) for context in contexts
        }

    def _file(self) -> TokenFile:
        if self._ids is None:
            self._ids = TokenFile(self._load_model().vocabulary_size, self._folder)
        return self._ids


def check_planned(stored: Iterable[StoredDocument]) -> None:
    """Raises UsageError when one of a plan's documents is no longer where it was then, or is another."""
    with _in_words_of_the_plan():
        for _, pieces in texts(map(_planned, stored)):
            for _ in pieces:
                pass


def _planned(stored: StoredDocument) -> Document:
    """A document of the plan that the corpus at hand does not hold, from where it was then."""
    return Document(stored.path, stored.category, stored.sha256, 0, source_at(stored.source))


@contextmanager
def _in_words_of_the_plan() -> Iterator[None]:
    """What is gone or changed is told as what a plan needs."""
    remedy = "restore it, or start with --new-run"
    try:
        yield
    except GoneError as error:
        raise UsageError(f"The plan needs {error.source}, which is gone: {remedy}.") from error
    except ChangedError as error:
        raise UsageError(f"The plan needs {error.source}, which was edited since: {remedy}.") from error


def planned_alone(
    model: LanguageModel, documents: Sequence[Document], length: int
) -> tuple[TokenSource, list[PlannedDocument]]:
    """Where token ids of documents are had, and the documents cut as a run cuts them, for a sample of no run.

    A context's document_id is the document's place in `documents`; context ids and halves mean nothing here.
    """
    source = TokenSource(lambda: model, {document.sha256: document for document in documents})
    source.add(documents)
    planned = []
    for i, document in enumerate(documents):
        windows = enumerate(cut(source.n_tokens(document), length, bos=model.bos is not None))
        contexts = tuple(Context(0, i, place, first, n) for place, (first, n) in windows)
        planned.append(PlannedDocument(i, document.category, "", document.sha256, contexts))
    return source, planned


def special_tokens(model: LanguageModel) -> SpecialTokens:
    """The tokens that a model's tokenizer marks as no text, and whether one of them begins every context."""
    added = getattr(model.tokenizer, "added_tokens_decoder", {})
    marked = {id_ for id_, token in added.items() if getattr(token, "special", False)}
    ids = torch.tensor(sorted(marked | set(model.tokenizer.all_special_ids)), dtype=torch.int64)
    return SpecialTokens(ids, bos_leads=model.bos is not None)


# ------------------------------------------------------------------------------------------------ contexts together


def padded(token_ids: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Contexts side by side: token ids [context, position] int64, padded on the right, and lengths [context]."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    tokens = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.int64)
    for i, ids in enumerate(token_ids):
        tokens[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    return tokens, lengths


def parts_of(contexts: Sequence[Ids], n_tokens: int) -> list[list[Ids]]:
    """Contexts in their order, in parts of at most n_tokens tokens each, or of one context that has more."""
    parts: list[list[Ids]] = []
    left = 0
    for ids in contexts:
        if not parts or len(ids) > left:
            parts.append([])
            left = n_tokens
        parts[-1].append(ids)
        left -= len(ids)
    return parts


def side_by_side(contexts: Sequence[Ids], n_places: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for the model: token ids [context, position] int64, padded on the right, and lengths [context].

    Contexts of like length stand together, the longest first, else in their order, with at most n_places places a
    batch (or one context), so that a batch of short contexts holds as many tokens as one of long ones.
    """
    batch: list[Ids] = []
    for ids in sorted(contexts, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > n_places:
            yield padded(batch)
            batch = []
        batch.append(ids)
    if batch:
        yield padded(batch)


def of_equal_length(contexts: Sequence[Ids], n_places: int) -> Iterator[Ids]:
    """The same without padding: token ids [context, position] of contexts of one length."""
    for length, same in groupby(sorted(contexts, key=len, reverse=True), key=len):
        for batch in parts_of(list(same), max(n_places, length)):
            yield np.stack(batch)
