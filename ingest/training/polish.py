"""A trained SAE and residuals in, the SAE polished: L-BFGS after Adam, on the same loss, its support held for a round.

Between two changes of the support the loss is smooth, so that a quasi-Newton method can use its curvature. Variables
are W_enc, b_enc, b_dec and v, where d = v/‖v‖ is the decoder row: without the division its scale would be free. The
support is found again for each round, and a round is kept only if FVU on select documents falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from energy_lens.ingest.training.trainer import Support, Trainer

#: Rounds at most, and iterations of L-BFGS in each: with 20 it fits the sample and loses on other documents.
ROUNDS, ITERATIONS = 8, 5

#: Tokens whose scores [token, d_sae] are held at once.
CHUNK = 4_096


@torch.no_grad()
def polish(trainer: Trainer, sample: Tensor, select: Tensor, rounds: int = ROUNDS) -> list[float]:
    """Polish a trainer's SAE on residuals sample [n, d_model]; returns FVU on select [n, d_model] as it fell.

    The first figure is that before; the trainer is left at the last one.
    """
    x, held_out = sample.float() * trainer.scale, select.float() * trainer.scale
    figures = [held_out_fvu(trainer, held_out)]
    for _ in range(rounds):
        before = [parameter.clone() for parameter in trainer.parameters]
        _round(trainer, x)
        fvu = held_out_fvu(trainer, held_out)
        if not fvu < figures[-1]:
            for parameter, old in zip(trainer.parameters, before, strict=True):
                parameter.copy_(old)
            break
        figures.append(fvu)
    return figures


def _round(trainer: Trainer, x: Tensor) -> None:
    """Up to ITERATIONS steps on x [n, d_model], in the trainer's units, with the support held still."""
    support = Support.joined([trainer.support(chunk) for chunk in x.split(CHUNK)])
    variance = (x - x.mean(0)).square().sum()
    v = trainer.decoder.clone()
    variables = [trainer.encoder, trainer.b_enc, v, trainer.b_dec]
    optimizer = torch.optim.LBFGS(variables, max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        norms = v.norm(dim=1, keepdim=True)
        trainer.decoder.copy_(v / norms)
        error, _ = trainer.differentiate(x, support, variance)
        rows = trainer.decoder.grad
        assert rows is not None
        parallel = (rows * trainer.decoder).sum(1, keepdim=True)
        v.grad = (rows - parallel * trainer.decoder) / norms
        return error.square().sum() / variance

    optimizer.step(closure)
    trainer.decoder.copy_(v / v.norm(dim=1, keepdim=True))


def held_out_fvu(trainer: Trainer, x: Tensor) -> float:
    """Σ‖x − x̂‖² / Σ‖x − x̄‖² over x [n, d_model], in the trainer's units."""
    error = sum(float(trainer.error(chunk).double().square().sum()) for chunk in x.split(CHUNK))
    return error / float((x - x.mean(0)).double().square().sum())
