"""Gemma 3 270M as people have it, a GGUF file that ELW_TEST_GGUF names: with BOS it is the model that it should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from energy_lens.ingest.contexts import padded, planned_alone
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.model.bos import adds_bos, settle_bos
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.unembedding import next_token_losses

GGUF = os.environ.get("ELW_TEST_GGUF")
CORPUS = Path(__file__).parent.parent / "corpus" / "natural"

pytestmark = pytest.mark.skipif(not GGUF, reason="ELW_TEST_GGUF names no file (benchmarks/gemma.py fetches one)")


def test_its_loss_is_that_of_the_model_behind_bos() -> None:
    model = load_model(str(GGUF))
    assert adds_bos(model.tokenizer)
    found = {}
    for word in ("auto", "no"):
        settle_bos(model, word)
        source, planned = planned_alone(model, discover([CORPUS]), 128)
        contexts = [(document, document.contexts[0]) for document in planned if document.contexts][:24]
        total, n = 0.0, 0
        for document, context in contexts:
            tokens, _ = padded([source.context(context, document.sha256)])
            with torch.no_grad():
                hidden = model.hidden(tokens)[0, :-1]
            losses = next_token_losses(model, hidden, tokens[0, 1:])
            total, n = total + float(losses.sum()), n + len(losses)
        found[word] = total / n
    assert 3.3 < found["auto"] < 4.0
    assert found["no"] > found["auto"] + 1.5
