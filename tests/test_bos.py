"""BOS before every context: chosen as SAEs and tokenizer say, stored, attended to, excluded by its own name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from energy_lens import Warehouse
from energy_lens.cli import main
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import special_tokens
from energy_lens.ingest.inclusion import REASONS, exclusion_reasons
from energy_lens.ingest.model.bos import adds_bos, set_bos, wants_bos
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.tests.conftest import Tiny
from energy_lens.warehouse.plan import cut
from energy_lens.warehouse.runs import RunSettings


def with_tokenizer(model: Tiny, folder: Path, bos: str | None, adds: bool) -> Path:
    """A copy of a tiny model whose tokenizer has that BOS token, and puts it before a text or not."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    shutil.copytree(model.folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
    if adds:
        template = [(bos, tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", None, template)
    tokenizer.save_pretrained(folder)
    return folder


def ingested(db: Path, folder: Path, saes: Path, corpus: Path, **more: Any) -> Path:
    options = IngestOptions(db=db, model=str(folder), saes=(saes,), context_length=32, dtype="float32", **more)
    ingest([corpus], options)
    return db


def answer(db: Path, query: str) -> list[Any]:
    with Warehouse(db) as warehouse:
        return warehouse.sql(query).fetchall()


def saes_with(bos: bool | None, model: Tiny, folder: Path) -> Path:
    for inner in model.saes.iterdir():
        save_sae(replace(load_sae(inner), bos=bos), folder / inner.name)
    return folder


# ------------------------------------------------------------------------------------------------ the choice


def test_auto_follows_saes_then_the_tokenizer(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    model = tiny()
    sae = load_sae(next(model.saes.iterdir()))
    with_it, without, silent = (replace(sae, bos=bos) for bos in (True, False, None))
    for tokenizer in (True, False):
        assert wants_bos("auto", [with_it, silent], lambda tokenizer=tokenizer: tokenizer)
        assert not wants_bos("auto", [silent, without], lambda tokenizer=tokenizer: tokenizer)
        assert wants_bos("auto", [silent], lambda tokenizer=tokenizer: tokenizer) == tokenizer
        assert wants_bos("yes", [without], lambda tokenizer=tokenizer: tokenizer)
        assert not wants_bos("no", [with_it], lambda tokenizer=tokenizer: tokenizer)
    with pytest.raises(UsageError, match=r"layer 1 .* with a BOS token .* without: choose with --bos"):
        wants_bos("auto", [with_it, without], lambda: False)


@pytest.mark.parametrize("bos", [True, False, None])
def test_an_sae_says_how_it_was_trained(bos: bool | None, tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    folder = saes_with(bos, tiny(), tmp_path / "saes")
    assert [load_sae(inner).bos for inner in folder.iterdir()] == [bos] * 2


def test_what_a_tokenizer_does_by_itself(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    """A BOS of its own, the one that is EOS too, none at all; of id 0, as <|endoftext|> here is."""
    model = tiny()
    plain = load_model(str(model.folder))
    assert plain.tokenizer.bos_token_id is None
    assert not adds_bos(plain.tokenizer)
    with pytest.raises(UsageError, match="has no BOS token: leave it out with --bos no"):
        set_bos(plain, True)
    for name, adds in (("own", True), ("silent", False)):
        loaded = load_model(str(with_tokenizer(model, tmp_path / name, "<|endoftext|>", adds)))
        assert loaded.tokenizer.bos_token_id == loaded.tokenizer.eos_token_id == 0
        assert adds_bos(loaded.tokenizer) == adds
        set_bos(loaded, True)
        assert loaded.as_context(np.array([5, 6], dtype=np.int32)).tolist() == [0, 5, 6]
        assert loaded.tokenize("a b") == plain.tokenize("a b")  # a text stays what it is


# ------------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("length", [4, 32, 128])
def test_a_context_is_bos_and_one_token_of_text_less(length: int) -> None:
    """Every token of the text is in one context, in order, but for a tail that is too short."""
    for n in (*range(300), 5_000):
        windows = cut(n, length, bos=True)
        assert all(2 <= n_tokens <= length for _, n_tokens in windows)
        starts = [first for first, _ in windows]
        assert starts == [i * (length - 1) for i in range(len(windows))]
        assert [w - 1 for _, w in windows] == [w for _, w in cut(n, length - 1)]


def test_bos_is_excluded_and_the_first_token_counts(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    model = load_model(str(with_tokenizer(tiny(), tmp_path / "model", "<|endoftext|>", adds=False)))
    tokens, lengths, norms = torch.tensor([[0, 5, 6, 0, 7, 8]]), torch.tensor([6]), torch.ones(1, 6)
    for has_bos, first in ((True, "BOS"), (False, "first token")):
        set_bos(model, has_bos)
        reasons = exclusion_reasons(norms, 1.0, lengths, tokens, special_tokens(model))
        assert [REASONS[code] for code in reasons[0]] == [
            first, "included", "included", "special token", "included", "no next token",
        ]  # fmt: skip


def test_runs_without_keep_their_identity() -> None:
    """As written by a version that knew no BOS: the same text of settings."""
    settings = RunSettings("m", "t", 128, {1: "s"}, {"nll": 1}, "float32", 0, False)
    assert "bos" not in settings.as_json()
    assert replace(settings, bos=True).identity != settings.identity


# ------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def with_bos(
    tiny: Callable[..., Tiny], small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(warehouse, model folder) of a run with BOS, which SAEs and tokenizer agree on."""
    folder = tmp_path_factory.mktemp("bos")
    model = with_tokenizer(tiny(), folder / "model", "<|endoftext|>", adds=True)
    saes = saes_with(True, tiny(), folder / "saes")
    db = ingested(folder / "bos.duckdb", model, saes, small_corpus, store_gradients=True, probes=1)
    return db, model


def test_it_stands_before_every_context(with_bos: tuple[Path, Path]) -> None:
    db, _ = with_bos
    assert answer(db, "SELECT has_bos FROM runs") == [(True,)]
    assert answer(db, "SELECT DISTINCT vocabulary_id, text FROM tokens WHERE position = 0") == [(0, "<|endoftext|>")]
    assert answer(db, "SELECT DISTINCT reason FROM token_layers WHERE token_id % 32 = 0") == [("BOS",)]
    assert not answer(db, "SELECT * FROM token_layers WHERE reason = 'first token'")
    [(n_first,)] = answer(db, "SELECT count(*) FROM token_layers WHERE token_id % 32 = 1 AND included")
    assert n_first > 0
    [(most,)] = answer(db, "SELECT max(n_tokens) FROM contexts")
    assert most == 32


def test_every_token_of_a_text_is_there_once(with_bos: tuple[Path, Path], small_corpus: Path) -> None:
    db, folder = with_bos
    model = load_model(str(folder))
    for path in sorted(small_corpus.glob("*/*.txt"))[:4]:
        ids = model.tokenize(path.read_text(encoding="utf-8"))
        stored = answer(
            db,
            f"SELECT document_position, vocabulary_id FROM token_places WHERE path LIKE '%{path.name}' "
            "AND document_position IS NOT NULL ORDER BY 1",
        )
        assert stored == list(enumerate(ids[: len(stored)]))
        assert len(ids) - len(stored) < 16


def test_its_energies_are_those_of_the_model_behind_bos(with_bos: tuple[Path, Path]) -> None:
    """−log p of each next token, the first of the text included, by the model's own logits."""
    db, folder = with_bos
    model = load_model(str(folder))
    for context in range(3):
        ids = [
            i
            for (i,) in answer(
                db, f"SELECT vocabulary_id FROM tokens WHERE token_id // 32 = {context} ORDER BY token_id"
            )
        ]
        stored = answer(
            db, f"SELECT value FROM energies WHERE energy = 'nll' AND token_id // 32 = {context} ORDER BY token_id"
        )
        tokens = torch.tensor([ids])
        with torch.no_grad():
            log_p = model.module(input_ids=tokens).logits[0].log_softmax(-1)
        expected = -log_p[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        np.testing.assert_allclose([v for (v,) in stored], expected, rtol=1e-4)


def test_all_that_follows_works_on_it(with_bos: tuple[Path, Path], tmp_path: Path) -> None:
    """Interventions, attractors, the permutation test, a text of one's own, the promises, the report."""
    db, _ = with_bos
    copy = tmp_path / "copy.duckdb"
    shutil.copy(db, copy)
    for command in (
        f"intervene --db {copy} --features top:2 --contexts 8 --directions 0",
        f"attractors --db {copy} --layer 1 --tokens 300",
        f"efas test --db {copy} --permutations 20",
        f"check --db {copy}",
        f"report --db {copy} --output {tmp_path / 'report'}",
    ):
        assert main(command.split()) == 0, command
    assert main(["intervene", "try", "one two three four", "--feature", "1:3", "--db", str(copy)]) == 0
    page = (tmp_path / "report" / "research_report.html").read_text(encoding="utf-8")
    assert "the first of them BOS" in page


def test_training_and_evaluation_follow(with_bos: tuple[Path, Path], small_corpus: Path, tmp_path: Path) -> None:
    _, model = with_bos
    common = f"--layers 1 --tokens 4096 --model {model} --dtype float32"
    train = (
        f"sae train {small_corpus} -o {tmp_path / 'saes'} --features 32 --k 2 --batch-size 256 --context 32 {common}"
    )
    assert main(train.split()) == 0
    assert load_sae(tmp_path / "saes" / "layer_1").bos is True
    assert main(f"sae evaluate {small_corpus} --sae {tmp_path / 'saes'} --model {model} --context 32".split()) == 0
    assert main(f"lens train {small_corpus} -o {tmp_path / 'lens.safetensors'} {common}".split()) == 0


def test_a_model_without_the_bos_it_knows_gets_a_note(
    with_bos: tuple[Path, Path], tiny: Callable[..., Tiny], few_texts: Path, tmp_path: Path
) -> None:
    _, model = with_bos
    options = IngestOptions(
        db=tmp_path / "no.duckdb", model=str(model), saes=(tiny().saes,), context_length=32, dtype="float32", bos="no",
        max_tokens=500,
    )  # fmt: skip
    assert any("was trained with a BOS token" in note for note in ingest([few_texts], options).notes)
    assert ingest([few_texts], replace(options, bos="yes")).run_id == 2
    assert answer(tmp_path / "no.duckdb", "SELECT has_bos FROM runs ORDER BY run_id") == [(False,), (True,)]
