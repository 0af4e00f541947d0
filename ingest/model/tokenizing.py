"""Texts in, token ids out: a long text in windows, whose joints do not change the ids of the whole.

A text that contains the name of a special token, as one on language models may, is text like any other: what such a
name means to a model stays with whoever writes prompts.

The tokenizers library takes about 0.2 GB for each MB of one text, so a long text is read in windows that overlap. Two
neighbours are joined where both read the same over some words on either side, ids, places and word boundaries alike:

- A pre-tokenizer goes from left to right and, at a word boundary, knows nothing of what was before: two readings that
  have one boundary in common agree from there on, until the end of one of them comes into sight. The words after the
  joint keep that end away from it; the words before it keep away a start in the middle of a word. That holds for
  normalizers too, which look no further than the characters beside them. A model sees single words.
- Where nothing splits a text into words, as with Llama 2 and Gemma, the model is BPE over the whole text. It merges the
  pair of the lowest rank first, so in which order the parts of two neighbouring tokens come together, and whether a
  pair across their boundary is ever merged before, depends on these two tokens alone: two tokens that are neighbours in
  one reading stay so in any text where what is left of them ends, and what is right of them begins, in the same way.

Where neighbours agree nowhere (a megabyte of spaces is one word), they become one window, twice as long each time. A
tokenizer with a part for which the above is not known reads the whole text at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_lens.errors import ElwError

#: Characters of a window beside its overlap with the next one, and of that overlap.
WINDOW, OVERLAP = 32_768, 2_048

#: Characters that go to the library at once, which spreads them over the cores and takes 0.2 kB for each.
BATCH = 524_288

#: Words, or tokens where there are no words, on which two readings must agree on either side of a joint.
AGREED = 8

#: Parts of the tokenizers library that fulfil what is said above, in version 0.23.
PRE_TOKENIZERS = {
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split",
    "Whitespace", "WhitespaceSplit",
}  # fmt: skip
NORMALIZERS = {
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
    "Replace", "Strip", "StripAccents",
}  # fmt: skip

#: What in a regular expression asks for the start or the end of the whole text, or of the last match.
ANCHORS = re.compile(r"\\[AzZG]")


@dataclass
class _Window:
    """A stretch of a text: the first of them starts at 0, the last one ends with it."""

    start: int
    text: str
    last: bool


class _Reading:
    """The tokens of a window."""

    def __init__(self, window: _Window, encoding: Any) -> None:
        self.window = window
        self.ids = np.array(encoding.ids, dtype=np.int32)
        self._encoding = encoding

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """[token, 4]: id, first character and the one after the last, in the whole text; whether a word begins."""
        tokens = np.empty((len(self.ids), 4), dtype=np.int64)
        tokens[:, 0] = self.ids
        places = np.fromiter(chain.from_iterable(self._encoding.offsets), np.int64, 2 * len(self.ids))
        tokens[:, 1:3] = places.reshape(-1, 2) + self.window.start
        words = np.array([-1 if word is None else word for word in self._encoding.word_ids], dtype=np.int64)
        tokens[:, 3] = np.diff(words, prepend=-2) != 0
        return tokens


class Tokenization:
    """A tokenizer's way from texts to ids, without added special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, texts: Iterable[Iterable[str]]) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(place of the text, some of its ids) for texts in pieces of any length; each text in order, at least once."""
        if not getattr(self._tokenizer, "is_fast", False):
            for place, pieces in enumerate(texts):
                ids = self._tokenizer(
                    "".join(pieces), add_special_tokens=False, verbose=False, split_special_tokens=True
                ).input_ids
                yield place, np.array(ids, dtype=np.int32)
            return
        # Through its own call, so that no truncation, padding or such is left on from elsewhere.
        self._tokenizer("", add_special_tokens=False, verbose=False)
        self._tokenizer.backend_tokenizer.encode_special_tokens = True
        joiner: _Joiner | None = None
        for batch in _batches(self._windows(pieces) for pieces in texts):
            encodings = self._encode([window for _, window in batch])
            for (place, window), encoding in zip(batch, encodings, strict=True):
                if window.start == 0:
                    joiner = _Joiner(self)
                assert joiner is not None  # a text's first window starts at 0
                yield place, joiner.add(_Reading(window, encoding))

    def _windows(self, pieces: Iterable[str]) -> Iterator[_Window]:
        text, start = "", 0
        for piece in pieces:
            text += piece
            if len(text) < WINDOW + OVERLAP or not self._can_be_joined:
                continue
            at = 0
            while len(text) - at > WINDOW + OVERLAP:
                yield _Window(start + at, text[at : at + WINDOW + OVERLAP], last=False)
                at += WINDOW
            text, start = text[at:], start + at
        yield _Window(start, text, last=True)

    def _encode(self, windows: list[_Window]) -> list[Any]:
        backend, texts = self._tokenizer.backend_tokenizer, [window.text for window in windows]
        # Without places, which only windows with neighbours need, it is a little faster.
        whole = all(window.last and window.start == 0 for window in windows)
        encode = backend.encode_batch_fast if whole else backend.encode_batch
        encodings: list[Any] = encode(texts, add_special_tokens=False)
        return encodings

    def encoded(self, window: _Window) -> _Reading:
        """A window read on its own."""
        return _Reading(window, self._encode([window])[0])

    # -- what is known of the tokenizer

    @cached_property
    def _can_be_joined(self) -> bool:
        backend = self._tokenizer.backend_tokenizer
        normalizers, pre_tokenizers = _parts(backend.normalizer), _parts(backend.pre_tokenizer)
        patterns = [part["pattern"].get("Regex", "") for part in pre_tokenizers + normalizers if "pattern" in part]
        return (
            not getattr(backend.model, "dropout", None)
            and all(part["type"] in PRE_TOKENIZERS for part in pre_tokenizers)
            and all(part["type"] in NORMALIZERS for part in normalizers)
            and not any(ANCHORS.search(pattern) for pattern in patterns)
            and (self.between_tokens or bool(pre_tokenizers))
        )

    @cached_property
    def between_tokens(self) -> bool:
        """Whether a joint may lie between any two tokens, not only between words."""
        backend = self._tokenizer.backend_tokenizer
        return all(map(_by_character, _parts(backend.pre_tokenizer))) and _is_plain_bpe(backend.model)


class _Joint(NamedTuple):
    """Where a reading takes over from the one before."""

    place_before: int  #: among the tokens of the reading before
    place: int  #: the same among its own
    around: NDArray[np.int64]  #: the tokens [token, 4] on which both agree, on either side
    within: int  #: place of the joint among these


class _Joiner:
    """Puts the windows of one text together."""

    def __init__(self, tokenization: Tokenization) -> None:
        self._tokenization = tokenization
        self._reading: _Reading | None = None  #: the latest
        self._joint: _Joint | None = None  #: from which on its tokens are wanted; None: all
        self._unread: list[str] = []  #: what its window is to be longer by

    def add(self, reading: _Reading) -> NDArray[np.int32]:
        """The ids that the text's next window settles; with the last one, all that are left."""
        before, settled = self._reading, reading.ids[:0]
        if before is None:
            self._reading = reading
        elif not self._unread and (joint := _find_joint(before, reading, self._tokenization.between_tokens)):
            settled = before.ids[self._first : joint.place_before]
            self._reading, self._joint = reading, joint
        else:
            self._lengthen(before.window, reading.window)
        if reading.window.last:
            assert self._reading is not None
            settled = np.concatenate([settled, self._reading.ids[self._first :]])
        return settled

    @property
    def _first(self) -> int:
        return self._joint.place if self._joint else 0

    def _lengthen(self, window: _Window, following: _Window) -> None:
        """Let the latest window go on to the end of the following one; read it when it is twice as long, or all."""
        end = window.start + len(window.text) + sum(map(len, self._unread))
        self._unread.append(following.text[end - following.start :])
        if not following.last and sum(map(len, self._unread)) < len(window.text):
            return
        text = "".join([window.text, *self._unread])
        self._reading, self._unread = self._tokenization.encoded(_Window(window.start, text, following.last)), []
        if self._joint:
            place = _find(self._reading.tokens, self._joint.around, self._joint.within)
            if place is None:
                raise ElwError("The tokenizer reads the same words in two ways: it cannot be used for a long text.")
            self._joint = self._joint._replace(place=place)


def _find_joint(before: _Reading, reading: _Reading, between_tokens: bool) -> _Joint | None:
    """The joint in the middle of what both readings cover, or as near to it as can be; None where they do not agree."""
    tokens = before.tokens
    if between_tokens:  # but not between two tokens that share a character
        begins = np.flatnonzero((tokens[1:, 1] >= tokens[:-1, 2]) & (tokens[1:, 2] > tokens[1:, 1])) + 1
    else:
        begins = np.flatnonzero(tokens[:, 3])
    begins = begins[tokens[begins, 1] >= reading.window.start]
    middle = len(begins) // 2
    for offset in range(middle - AGREED):
        for at in (middle - offset, middle + offset):
            if not AGREED <= at < len(begins) - AGREED:
                continue
            first, joint, end = begins[at - AGREED], begins[at], begins[at + AGREED]
            place = _find(reading.tokens, tokens[first:end], joint - first)
            if place is not None:
                return _Joint(int(joint), place, tokens[first:end], int(joint - first))
    return None


def _find(tokens: NDArray[np.int64], wanted: NDArray[np.int64], within: int) -> int | None:
    """Where wanted[within] is among tokens, as a part of the whole stretch that is wanted; None when it is not there.

    Both are [token, 4].
    """
    for place in np.flatnonzero(tokens[:, 1] == wanted[within, 1]):
        stretch = tokens[max(0, place - within) : place - within + len(wanted)]
        if len(stretch) == len(wanted) and (stretch == wanted).all():
            return int(place)
    return None


def _parts(component: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the library describes it, sequences taken apart; none: an empty list."""
    if component is None:
        return []
    waiting, parts = [json.loads(component.__getstate__())], []
    while waiting:
        part = waiting.pop(0)
        inner = part.get("pretokenizers", part.get("normalizers"))
        if inner is None:
            parts.append(part)
        else:
            waiting = [*inner, *waiting]
    return parts


def _by_character(part: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer splits before or after certain characters, wherever they stand."""
    if part["type"] == "Split":
        return len(part["pattern"].get("String", "")) == 1
    return part["type"] in ("Metaspace", "WhitespaceSplit", "CharDelimiterSplit")


def _is_plain_bpe(model: Any) -> bool:
    """Whether a model is BPE whose result does not depend on where a word begins and ends."""
    is_bpe = type(model).__name__ == "BPE" and not model.dropout and not model.ignore_merges
    return is_bpe and not model.continuing_subword_prefix and not model.end_of_word_suffix


def _batches(texts: Iterable[Iterator[_Window]]) -> Iterator[list[tuple[int, _Window]]]:
    """(place of the text, window), in order, about BATCH characters at once."""
    batch: list[tuple[int, _Window]] = []
    n_characters = 0
    for place, windows in enumerate(texts):
        for window in windows:
            batch.append((place, window))
            n_characters += len(window.text)
            if n_characters >= BATCH:
                yield batch
                batch, n_characters = [], 0
    if batch:
        yield batch
