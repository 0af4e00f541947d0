"""Documents in, what a language model is trained and measured on out: a tokenizer, streams of ids, windows of them.

The tokenizer is byte-level BPE, learnt on the training documents alone, so that no text is beyond it and every token is
some bytes: losses per byte are comparable whatever the vocabulary. A stream is its documents' ids one after the other,
each behind one end-of-text token. Training reads windows of it that follow from seed and step alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from energy_lens.console import bar
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import SHOWN_FROM
from energy_lens.ingest.corpus import Document, texts
from energy_lens.ingest.model.tokenizing import Tokenization
from energy_lens.warehouse.files import whole

Ids: TypeAlias = NDArray[np.uint16]

#: What stands before every document, and ends what is generated.
END_OF_TEXT = "<|endoftext|>"

#: Bytes are the first entries of every vocabulary, with END_OF_TEXT; ids are kept in two bytes.
LEAST_VOCABULARY, MOST_VOCABULARY = 257, 2**16


def learn_tokenizer(documents: Sequence[Document], n_entries: int) -> Any:
    """A byte-level BPE tokenizer of transformers, learnt on documents, with at most n_entries entries.

    The same documents in the same order give the same one. Raises what `ingest.corpus.texts` raises.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_entries,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for _, pieces in texts(documents) for piece in pieces), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def bytes_of_tokens(tokenizer: Any) -> NDArray[np.int64]:
    """Bytes that each id stands for [vocabulary]; 0 for special tokens. The tokenizer is byte-level."""
    n_bytes = np.zeros(len(tokenizer), dtype=np.int64)
    for token, id_ in tokenizer.get_vocab().items():
        if id_ not in tokenizer.all_special_ids:
            n_bytes[id_] = len(token)  # byte-level tokens are written with a character for each byte
    return n_bytes


@dataclass(frozen=True)
class Stream:
    """Ids of documents one after the other, each behind END_OF_TEXT."""

    ids: Ids  #: [n], in memory or on disk
    starts: NDArray[np.int64]  #: [document] where each one's END_OF_TEXT is

    def __len__(self) -> int:
        return len(self.ids)

    def n_windows(self, length: int) -> int:
        """Windows of one pass."""
        return max(0, (len(self.ids) - 1) // length - 1)

    def batch(self, step: int, n_windows: int, length: int, seed: int) -> NDArray[np.int64]:
        """The ids that a step reads and predicts, [n_windows, length + 1].

        A pass cuts the stream into windows from an offset of its own and goes through them in an order of its own.
        """
        in_pass = self.n_windows(length)
        rows = np.empty((n_windows, length + 1), dtype=np.int64)
        for i in range(n_windows):
            n_pass, place = divmod(step * n_windows + i, in_pass)
            offset, order = self._pass(n_pass, length, seed)
            first = offset + int(order[place]) * length
            rows[i] = self.ids[first : first + length + 1]
        return rows

    def _pass(self, n_pass: int, length: int, seed: int) -> tuple[int, NDArray[np.int64]]:
        known: dict[tuple[int, int, int], tuple[int, NDArray[np.int64]]] = vars(self).setdefault("_passes", {})
        key = (n_pass, length, seed)
        if key not in known:
            generator = np.random.default_rng([seed, n_pass])
            known[key] = (int(generator.integers(length)), generator.permutation(self.n_windows(length)))
        return known[key]


def write_stream(documents: Sequence[Document], tokenizer: Any, file: Path, what: str) -> Stream:
    """The stream of documents, kept in a file, whole or not at all, which a later call takes instead of its work.

    what: stands before the bar. Raises UsageError when a text is no longer what was catalogued.
    """
    index = file.with_suffix(".starts.npy")
    if not (file.exists() and index.exists()):
        order, counts = [], []
        with whole(file, index) as (ids_file, starts_file):
            n_bytes = sum(document.n_bytes for document in documents)
            with ids_file.open("wb") as sink, bar(what, n_bytes, "B", hidden=n_bytes < SHOWN_FROM) as shown:

                def pieces() -> Iterator[Iterator[str]]:
                    for document, of_text in texts(documents):
                        order.append(document.n_bytes)
                        yield of_text

                last = -1
                for place, ids in Tokenization(tokenizer).ids(pieces()):
                    if place != last:
                        np.array([tokenizer.eos_token_id], dtype=np.uint16).tofile(sink)
                        counts.append(1)
                        shown.update(order[place])
                        last = place
                    ids.astype(np.uint16).tofile(sink)
                    counts[-1] += len(ids)
            with starts_file.open("wb") as sink:
                np.save(sink, np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64))
    try:
        return Stream(np.fromfile(file, dtype=np.uint16), np.load(index))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}): remove its folder to start again.") from error
