"""A long text read in windows: the ids are those of the whole text, for every kind of tokenizer and for nasty texts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from energy_lens.ingest.model import tokenizing
from energy_lens.ingest.model.tokenizing import Tokenization

CORPUS = Path(__file__).parent.parent / "corpus"

#: As Llama 3 and Qwen split: newlines go with what is before them, digits by threes.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

#: As o200k splits: words by the case of their letters.
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

EXTRA = "e\u0301 😀 ▁ <0x0A> é ß 中文 \t\n\r  0123456789 <|end|> <a>b"


def _byte_level(*before: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not before)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _gpt2() -> Tokenizer:
    return _byte_level()


def _smollm() -> Tokenizer:
    return _byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=True))


def _llama3() -> Tokenizer:
    return _byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"))


def _o200k() -> Tokenizer:
    return _byte_level(pre_tokenizers.Split(Regex(O200K), "isolated"))


def _llama2() -> Tokenizer:
    """No pre-tokenizer: the whole text is one word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def _gemma() -> Tokenizer:
    """A pre-tokenizer that finds nothing to split at."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def _unigram() -> Tokenizer:
    """As T5 and XLM-R."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    make.__name__.removeprefix("_"): make
    for make in (_gpt2, _smollm, _llama3, _o200k, _llama2, _gemma, _metaspace, _unigram, _bert)
}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of that kind, trained on a part of the sample corpus, with added tokens of every sort."""
    tokenizer = KINDS[kind]()
    pieces = [path.read_text(encoding="utf-8")[:3000] for path in sorted(CORPUS.glob("*/*.txt"))[::8]]
    if kind in ("llama2", "gemma"):  # merges of whole texts would take long to train: of words, and two across them
        pre_tokenizer, tokenizer.pre_tokenizer = tokenizer.pre_tokenizer, pre_tokenizers.Split("▁", "merged_with_next")
    trainer_of = {"unigram": trainers.UnigramTrainer, "bert": trainers.WordPieceTrainer}.get(kind, trainers.BpeTrainer)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if kind in ("llama2", "gemma") else ["<unk>"]
    options: dict[str, Any] = {"vocab_size": 900, "special_tokens": special, "show_progress": False}
    if kind == "unigram":
        options["unk_token"] = "<unk>"
    if "ByteLevel" in str(tokenizer.pre_tokenizer):
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([*pieces, EXTRA], trainer_of(**options))
    if kind in ("llama2", "gemma"):
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    tokenizer.add_tokens(
        [AddedToken("<a>", lstrip=True, rstrip=True), AddedToken("a>b"), AddedToken("ing", single_word=True)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def whole(tokenizer: Any, text: str) -> list[int]:
    """The library's own ids of a text in which nothing is a special token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=True).input_ids
    return ids


def parts(tokenizer: Any, *texts: str, piece: int = 50) -> list[list[np.ndarray]]:
    """The ids of each text, part by part as windows settle them; the texts are handed over in pieces."""
    ids: list[list[np.ndarray]] = [[] for _ in texts]
    pieces = ((text[i : i + piece] for i in range(0, len(text), piece)) for text in texts)
    for place, some in Tokenization(tokenizer).ids(pieces):
        ids[place].append(some)
    return ids


def joined(ids: list[np.ndarray]) -> list[int]:
    return [int(i) for some in ids for i in some]


@pytest.fixture(scope="module")
def small_windows() -> Iterator[None]:
    """Windows as short as can be, so that a text of a page has many joints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "WINDOW", 150)
        patch.setattr(tokenizing, "OVERLAP", 180)
        patch.setattr(tokenizing, "BATCH", 900)
        yield


PROSE = (CORPUS / "natural").glob("*.txt")
WORDS = " ".join(path.read_text(encoding="utf-8")[100:700] for path in sorted(PROSE)[:3])

#: What joints stumble over: runs, characters of several code points, added tokens whole and in part.
NASTY = st.sampled_from(
    [
        " ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "a", "A", "1", "12", "é", "e\u0301", "\u0301", "😀", "👩‍👩‍👧",
        "ﬁ", "中", "ß", "<|end|>", "<|en", "d|>", "<a>", "<a>b", "a>b", " <a> ", "ing", "ring", "'s", "'", ".", "...",
        "\n\n", " \n ", "▁", "-", "_", "HTTPServer", "don't", "\u200d", "\ufeff", "<0x0A>", "x" * 7, "0" * 7,
    ]
)  # fmt: skip
RUNS = st.tuples(NASTY, st.integers(1, 90)).map(lambda run: run[0] * run[1])
PROSES = st.tuples(st.integers(0, 1200), st.integers(0, 300)).map(lambda cut: WORDS[cut[0] : sum(cut)])
TEXTS = st.lists(st.one_of(RUNS, PROSES, st.text(max_size=20)), min_size=1, max_size=14).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(text=TEXTS)
@example(text="x" + " " * 400 + "\n" + " " * 400 + "\ny" + WORDS)
@example(text="a>b<a>b" * 200)
@example(text="e" + "\u0301" * 600 + WORDS)
def test_ids_are_those_of_the_whole_text(kind: str, text: str, small_windows: None) -> None:
    """Whatever the text holds, and wherever its windows begin and end."""
    tokenizer = tokenizer_of(kind)
    (ids,) = parts(tokenizer, text)
    assert joined(ids) == whole(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_is_joined(kind: str, small_windows: None) -> None:
    """The windows of prose are joined one by one, so that none of them grows; each kind of tokenizer allows it."""
    tokenizer = tokenizer_of(kind)
    (ids,) = parts(tokenizer, WORDS)
    assert joined(ids) == whole(tokenizer, WORDS)
    settled = [len(some) for some in ids if len(some)]
    assert len(settled) > 6
    assert max(settled) < len(joined(ids)) / 3


def test_texts_keep_their_places(small_windows: None) -> None:
    """Short, long and empty texts go through batches together, and each gets its own ids, an empty one none."""
    tokenizer = tokenizer_of("gpt2")
    texts = ["", "one", WORDS, "", WORDS[:500], "x" * 2000, "end"]
    assert [joined(ids) for ids in parts(tokenizer, *texts)] == [whole(tokenizer, text) for text in texts]


def test_what_is_not_known_is_read_whole(small_windows: None) -> None:
    """A pre-tokenizer that looks at the whole text, or remembers, allows no joints; its ids are right all the same."""
    for pre_tokenizer in (
        pre_tokenizers.UnicodeScripts(),
        pre_tokenizers.Split(Regex(r"\A\w+|\s+"), "isolated"),
    ):
        tokenizer = Tokenizer.from_str(tokenizer_of("metaspace").backend_tokenizer.to_str())
        tokenizer.pre_tokenizer = pre_tokenizer
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        (ids,) = parts(wrapped, WORDS)
        assert len(ids) == 1
        assert joined(ids) == whole(wrapped, WORDS)


def test_truncation_and_padding_of_the_tokenizer_are_left_aside(small_windows: None) -> None:
    """Files of tokenizers carry them; a document is not cut at 64 tokens for that."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_of("gpt2").backend_tokenizer.to_str())
    )
    expected = whole(wrapped, WORDS)
    wrapped.backend_tokenizer.enable_truncation(64)
    wrapped.backend_tokenizer.enable_padding(length=5000)
    (ids,) = parts(wrapped, WORDS)
    assert joined(ids) == expected


def test_a_model_tokenizes_as_its_tokenizer_does(tiny: Callable[[str], Any], small_windows: None) -> None:
    """`tokenize` and `token_ids` are one thing."""
    model = tiny("llama").load()
    assert model.tokenize(WORDS) == whole(model.tokenizer, WORDS)
    assert model.tokenize("") == []


def test_memory_does_not_grow_with_the_text(tiny: Callable[[str], Any]) -> None:
    """12 MB of one text take no more than a few windows' worth, where they took 2.4 GB."""
    script = textwrap.dedent(
        """
        import resource, sys
        from transformers import AutoTokenizer
        from energy_lens.ingest.model.tokenizing import Tokenization

        tokenization = Tokenization(AutoTokenizer.from_pretrained(sys.argv[1]))
        text = open(sys.argv[2], encoding="utf-8").read()[:50_000] * 10

        def peak(n):
            for _, ids in tokenization.ids([(text for _ in range(n))]):
                pass
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        first = peak(3)
        print((peak(24) - first) / 1024)
        """
    )
    text = max(CORPUS.glob("*/*.txt"), key=lambda path: path.stat().st_size)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tiny("llama").folder), str(text)],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    assert float(run.stdout) < 100, "MB"


@pytest.mark.real
@settings(max_examples=60)
@given(text=TEXTS)
def test_the_default_models_own_tokenizer(text: str, small_windows: None) -> None:
    """The same for the tokenizer that ships with SmolLM2."""
    tokenizer = default_tokenizer()
    (ids,) = parts(tokenizer, text)
    assert joined(ids) == whole(tokenizer, text)


@cache
def default_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from energy_lens.ingest.model.loading import DEFAULT_MODEL, locate

    return AutoTokenizer.from_pretrained(locate(DEFAULT_MODEL)[0])
