"""Curvature probes: their second moment is the Gauss–Newton curvature, and a context's are its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens import Warehouse
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import padded
from energy_lens.ingest.energies.curvature import probe_generator, read_probes
from energy_lens.ingest.energies.forward import ForwardPass, run_forward
from energy_lens.ingest.model.unembedding import sign_draws
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.formats import load_sae

LAYER = 1


def forward_pass(tiny: Any, contexts: list[NDArray[np.int32]], dtype: torch.dtype) -> ForwardPass:
    """Every token included."""
    model = tiny.load(dtype)
    saes = {LAYER: load_sae(tiny.saes / f"layer_{LAYER}")}
    tokens, lengths = padded(contexts)
    return run_forward(model, saes, tokens, lengths, lambda _layer, norms: torch.ones_like(norms, dtype=torch.bool))


def test_draws_have_the_curvature_of_the_loss(tiny: Callable[..., Any]) -> None:
    """Mean of (W_Uᵀu)(W_Uᵀu)ᵀ over many draws is W_Uᵀ(diag p − ppᵀ)W_U, within its standard error."""
    model = tiny("llama").load(torch.float64)
    hidden = torch.randn(1, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = sign_draws(model, hidden, 20_000, np.random.default_rng(0))[:, 0]
    W_U = model.unembedding.weight
    p = torch.softmax(model.unembedding(hidden)[0], -1)
    exact = W_U.T @ (torch.diag(p) - torch.outer(p, p)) @ W_U
    mean = draws.T @ draws / len(draws)
    variance = draws.square().T @ draws.square() / len(draws) - mean.square()  # of a product of two entries
    error = (mean - exact).abs() / (variance / len(draws)).sqrt()
    assert error.max() < 5
    assert (mean - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_squares_of_probes_are_the_gauss_newton_curvature(tiny: Callable[..., Any], architecture: str) -> None:
    """Mean of h² at a token is dᵀHd, H from the model's own Jacobian."""
    contexts = [np.arange(3, 9, dtype=np.int32)] * 40  # as many draws of one context in a pass
    forward = forward_pass(tiny(architecture), contexts, torch.float64)
    direction = forward.saes[LAYER].W_dec[0].double()
    probes = read_probes(forward, 100, [np.random.default_rng(i) for i in range(40)])[LAYER].flatten(0, 1)
    squares = (probes @ direction.float()).square().double()  # [draw, position]
    assert len(squares) == 4_000

    model, x = forward.model, forward.residuals[LAYER][:1].detach()

    def logits(along: Tensor, position: int) -> Tensor:
        moved = x + torch.nn.functional.one_hot(torch.tensor(position), x.shape[1])[None, :, None] * along * direction
        logits: Tensor = model.unembedding(model.hidden_above(forward.tokens[:1], LAYER, moved))[0, :-1]
        return logits

    for position in (1, 4):
        with torch.enable_grad():
            _, slopes = torch.autograd.functional.jvp(
                lambda along, position=position: logits(along, position),
                torch.zeros((), dtype=torch.float64),
                torch.ones((), dtype=torch.float64),
            )
        p = torch.softmax(logits(torch.zeros(()), position), -1)
        exact = ((p * slopes.square()).sum(-1) - (p * slopes).sum(-1).square()).sum()
        error = squares[:, position].std() / len(squares) ** 0.5
        assert abs(squares[:, position].mean() - exact) < 5 * error
        assert error < 0.1 * exact


def test_a_contexts_probes_are_its_own(tiny: Callable[..., Any], few_texts: Path, tmp_path: Path) -> None:
    """The same curvature whatever the batch size, for nll alone, and none without probes."""
    own = tiny("llama")
    columns = []
    for batch_size, probes in ((1, 2), (5, 2), (8, 0)):
        db = tmp_path / f"{batch_size}.duckdb"
        options = IngestOptions(
            db=db, model=str(own.folder), saes=(own.saes,), dtype="float32", context_length=32,
            batch_size=batch_size, probes=probes,
        )  # fmt: skip
        ingest([few_texts], options)
        with Warehouse(db) as warehouse:
            query = """
                SELECT energy, attribution, attribution_curvature FROM efas
                WHERE gradient = 'decoder' AND category = 'all' ORDER BY energy, layer, feature
            """
            columns.append(warehouse.sql(query).pl())
    one, other, without = columns
    nll = one.filter(one["energy"] == "nll")
    curved = nll["attribution_curvature"].to_numpy()
    assert (curved >= nll["attribution"].to_numpy()).all()
    assert (curved > nll["attribution"].to_numpy()).any()
    assert one.filter(one["energy"] != "nll")["attribution_curvature"].is_null().all()
    assert without["attribution_curvature"].is_null().all()
    again = other.filter(other["energy"] == "nll")["attribution_curvature"].to_numpy()
    np.testing.assert_allclose(curved, again, rtol=1e-4, atol=1e-6)


def test_signs_depend_on_seed_and_context() -> None:
    draws = {(s, c): probe_generator(s, c).integers(0, 1 << 62) for s in range(3) for c in range(3)}
    assert len(set(draws.values())) == 9
    assert probe_generator(1, 2).integers(0, 1 << 62) == draws[1, 2]


def test_probes_need_nll() -> None:
    with pytest.raises(UsageError, match="nll"):
        IngestOptions(energies=("hopfield",), probes=1)
