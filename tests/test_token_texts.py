"""What a token reads as: its space, its bytes, its own; and which tokens are no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens import Warehouse
from energy_lens.ingest.contexts import special_tokens
from energy_lens.ingest.model.loading import load_model, load_tokenizer, locate
from energy_lens.ingest.model.token_texts import TokenTexts
from energy_lens.ingest.token_classes import token_classes
from energy_lens.tests.conftest import CORPUS

TEXT = "The file is plain text.  Zwölf Boxkämpfer\n\tfür 日本語のテキスト, 😀 naïve"


def sentencepiece() -> Any:
    """A tokenizer of Llama 2's and Gemma's kind: spaces are part of tokens, other characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "<|start_header_id|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    texts = [path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("natural/*.txt"))[:8]]
    tokenizer.train_from_iterator([text for text in texts if text.isascii()] or texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "the default model"])
def tokenizer(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    if request.param == "sentencepiece":
        return sentencepiece()
    name = "smollm2-135m" if request.param == "the default model" else str(tiny().folder)
    return load_tokenizer(name, locate(name)[0])


@pytest.fixture(scope="module")
def joined(empty_warehouse: Path) -> Iterator[Callable[[str], str]]:
    """joined("texts of tokens"): as the warehouse joins them."""
    with Warehouse(empty_warehouse) as warehouse:
        yield lambda texts: warehouse.sql("SELECT joined_text($texts)", texts=texts).value()


def test_tokens_joined_are_the_text(tokenizer: Any, joined: Callable[[str], str]) -> None:
    """Spaces and all; a character that was split between tokens is put together again."""
    texts = TokenTexts(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert joined("".join(texts[id_] for id_ in ids)).lstrip(" ") == TEXT


def test_parts_of_characters_stay_distinct(tokenizer: Any) -> None:
    """No token reads as a replacement character, but one that is it, and hardly two read the same."""
    texts = TokenTexts(tokenizer)
    ids = tokenizer("日本語のテキスト 😀", add_special_tokens=False)["input_ids"]
    by_text = Counter(texts[id_] for id_ in set(ids))
    assert max(by_text.values()) == 1
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in by_text)
    assert any("<0x" in text for text in by_text)


def test_of_the_whole_default_vocabulary_no_two_read_the_same() -> None:
    tokenizer = load_tokenizer("smollm2-135m", locate("smollm2-135m")[0])
    texts = TokenTexts(tokenizer)
    assert len({texts[id_] for id_ in range(len(tokenizer))}) == len(tokenizer)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_joining_changes_no_text_of_its_own(text: str, joined: Callable[[str], str]) -> None:
    """What has no byte codes comes back as it is, brackets and all."""
    if "<0x" not in text and "\0" not in text:
        assert joined(text) == text


def test_what_the_tokenizer_marks_is_special(tiny: Callable[..., Any]) -> None:
    """Also an added token that no role names, such as <|start_header_id|>; and no text of a document is one."""
    from transformers import AutoTokenizer

    model = load_model(str(tiny().folder))
    tokenizer = AutoTokenizer.from_pretrained(tiny().folder)
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<|start_header_id|>", special=True), AddedToken("<plain>", special=False)])
    model.tokenizer = tokenizer
    header, plain, end = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<plain>", "<|endoftext|>"])
    special = special_tokens(model).ids.tolist()
    assert header in special
    assert end in special
    assert plain not in special
    model.vocabulary_size = len(tokenizer)
    ids = model.tokenize("a <|start_header_id|> b <|endoftext|> c")
    assert not {header, end} & set(ids)
    assert tokenizer.decode(ids) == "a <|start_header_id|> b <|endoftext|> c"


def test_parts_of_characters_have_a_class_of_their_own() -> None:
    assert token_classes([" <0xE6>", "<0x97><0xA5>", "x"])[:2] == ["other", "other"]
