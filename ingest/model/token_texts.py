"""Vocabulary ids in, the text that each stands for out: with its space, and told apart from every other token.

Decoded alone, a token of SentencePiece loses the space before it ("The file" becomes "Thefile"), and a token that is a
part of a character becomes the same sign as every other part. So a token is decoded behind another one, and bytes that
are no character are written as the library writes them, <0xE6>: what stands together can be put together again
(`joined_text` in SQL).
"""

from __future__ import annotations

import codecs
from functools import cached_property
from typing import Any

#: What a decoder writes for bytes that are no character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _as_codes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("elw_byte_codes", _as_codes)


class TokenTexts:
    """The text of each id of one tokenizer, looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __getitem__(self, vocabulary_id: int) -> str:
        text = self._known.get(vocabulary_id)
        if text is None:
            text = self._known[vocabulary_id] = self._text(vocabulary_id)
        return text

    def _text(self, vocabulary_id: int) -> str:
        before, text = self._behind_which
        together = self._decoded([*before, vocabulary_id])
        # A tokenizer that decodes by words may join the two otherwise.
        alone = together[len(text) :] if together.startswith(text) else self._decoded([vocabulary_id])
        if REPLACEMENT not in alone:
            return alone
        piece = self._tokenizer.convert_ids_to_tokens(vocabulary_id)
        if not isinstance(piece, str):
            return alone
        if all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece).decode("utf-8", "elw_byte_codes")
        return piece  # a byte of SentencePiece is called <0xE6> by itself

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _behind_which(self) -> tuple[list[int], str]:
        """Ids to decode others behind, and their text; none where a letter is nothing in this vocabulary."""
        ids = self._tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        text = self._decoded(ids) if ids else ""
        return (ids, text) if text else ([], "")


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2's encoder)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _byte_characters()
