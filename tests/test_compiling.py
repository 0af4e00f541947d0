"""Fused blocks: the others' numbers, for batches of the run's shape; where they are not to be had, a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from energy_lens import Warehouse
from energy_lens.cli import main
from energy_lens.errors import UsageError
from energy_lens.ingest.model import compiling
from energy_lens.ingest.model.compiling import compile_blocks, cpp_compiler
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.pipeline import IngestOptions, ingest

needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of one's own: nothing that was compiled before is used."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELW_CACHE", str(folder))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
        yield folder


def pass_of(model: LanguageModel, shape: tuple[int, int]) -> list[torch.Tensor]:
    """The final norm's output for some tokens, and a gradient of it at layer 1."""
    tokens = (torch.arange(shape[0] * shape[1]) * 7 % 500).view(shape)
    towards = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad(), residual_stream(model, [1], graph=True) as residuals:
        hidden = model.hidden(tokens)
        (gradient,) = torch.autograd.grad((hidden @ towards).sum(), residuals[1])
    return [hidden.detach(), gradient]


#: That of a run, its last batch, contexts that are shorter.
SHAPES = [(4, 32), (3, 32), (4, 20)]


@needs_compiler
def test_fused_blocks_agree_to_rounding(cache: Path, tiny: Callable[..., Any]) -> None:
    """The Llama's, in the shape and from the layer of the run below, for which they are compiled too."""
    model = load_model(str(tiny().folder))
    before = [pass_of(model, shape) for shape in SHAPES]
    assert compile_blocks(model, SHAPES[0], lowest_layer=1) is None
    for shape, eager in zip(SHAPES, before, strict=True):
        for fused, expected in zip(pass_of(model, shape), eager, strict=True):
            torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@needs_compiler
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_blocks_of_any_kind_hand_on_what_they_are_given(
    architecture: str, tiny: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of the run's shape, and no other, goes through what torch.compile made, with all that it is given."""
    seen = []

    def compiled(forward: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        assert not dynamic

        def fused(x: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            seen.append(tuple(x.shape[:2]))
            return forward(x, *arguments, **keywords)

        return fused

    model = load_model(str(tiny(architecture).folder))
    before = [pass_of(model, shape) for shape in SHAPES]
    monkeypatch.setattr(torch, "compile", compiled)
    assert compile_blocks(model, SHAPES[0], lowest_layer=1) is None
    assert seen == [SHAPES[0]] * model.n_layers
    for shape, eager in zip(SHAPES, before, strict=True):
        for own, expected in zip(pass_of(model, shape), eager, strict=True):
            torch.testing.assert_close(own, expected, rtol=0, atol=0)
    assert seen == [SHAPES[0]] * 2 * model.n_layers


#: Whether a run says that it was compiled, and numbers of it.
Ingested = tuple[bool, dict[str, NDArray[np.float64]]]


def ingested(model: Any, corpus: Path, db: Path, compiled: str) -> Ingested:
    """A run with the attention energy, which reads inside the blocks, and probes, which go back through them again."""
    options = IngestOptions(
        db=db, model=str(model.folder), saes=(model.saes,), energies=("nll", "attention"), context_length=32,
        batch_size=4, dtype="float32", compile=compiled, max_tokens=1_000, probes=2,
    )  # fmt: skip
    ingest([corpus], options)
    queries = {
        "energies": "SELECT value FROM energies ORDER BY energy, layer, token_id",
        "Σg": "SELECT sum_g FROM feature_statistics ORDER BY energy, layer, gradient, category, half, feature",
        "Σa²h²": "SELECT sum_a2h2 FROM feature_statistics ORDER BY energy, layer, gradient, category, half, feature",
        "S": "SELECT sum_s FROM feature_statistics ORDER BY energy, layer, gradient, category, half, feature",
    }
    with Warehouse(db) as warehouse:
        [(said,)] = warehouse.sql("SELECT is_compiled FROM runs").fetchall()
        columns = {what: warehouse.sql(query).fetchall() for what, query in queries.items()}
    return said, {what: np.array(found, dtype=float)[:, 0] for what, found in columns.items()}


@pytest.fixture(scope="module")
def not_fused(tiny: Callable[..., Any], small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """By --compile auto: so few tokens are not worth it."""
    return ingested(tiny(), small_corpus, tmp_path_factory.mktemp("off") / "off.duckdb", "auto")


@needs_compiler
def test_a_compiled_run_is_the_other_to_rounding(
    cache: Path, tiny: Callable[..., Any], small_corpus: Path, not_fused: Ingested, tmp_path: Path
) -> None:
    fused = ingested(tiny(), small_corpus, tmp_path / "on.duckdb", "on")
    assert (not_fused[0], fused[0]) == (False, True)
    for what, numbers in not_fused[1].items():
        assert len(numbers) > 100
        np.testing.assert_allclose(fused[1][what], numbers, rtol=1e-3, atol=1e-3 * np.nanstd(numbers), err_msg=what)


@needs_compiler
def test_auto_weighs_what_compiling_takes(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From fewer tokens on where these blocks were compiled before, in batches of that shape and precision."""
    monkeypatch.setenv("ELW_CACHE", str(tmp_path))
    model, how = load_model(str(tiny().folder)), ((4, 32), 1)
    weighed = [compiling.WORTH_TOKENS_AGAIN - 1, compiling.WORTH_TOKENS_AGAIN, compiling.WORTH_TOKENS]
    assert [compiling.pays(model, *how, n) for n in weighed] == [False, False, True]
    monkeypatch.setattr(compiling, "_try_out", lambda *_: None)
    assert compile_blocks(model, *how) is None
    assert [compiling.pays(model, *how, n) for n in weighed] == [False, True, True]
    assert not compiling.pays(model, (4, 33), 1, weighed[1])


@pytest.mark.parametrize(
    ("compiler", "reason"), [("nothing-of-that-name", "there is no C++ compiler"), ("false", "torch.compile failed")]
)
def test_a_run_that_cannot_be_compiled_says_so_and_goes_on(
    compiler: str, reason: str, tiny: Callable[..., Any], small_corpus: Path, not_fused: Ingested, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import torch._dynamo

    torch._dynamo.reset()
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", compiler)
    tried = ingested(tiny(), small_corpus, tmp_path / "on.duckdb", "on")
    told = capsys.readouterr().err
    assert f"blocks are not compiled: {reason}" in told, told
    assert not tried[0]
    for what, numbers in not_fused[1].items():
        np.testing.assert_array_equal(tried[1][what], numbers)


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--compile"):
        IngestOptions(db=tmp_path / "x.duckdb", compile="yes")
    assert main(["ingest", "x", "--compile", "yes"]) == 2
