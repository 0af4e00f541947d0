"""A model's weights, or the norms of a batch's residuals, in; one sentence out where they are not finite.

A NaN in the weights, or a product that overflows, makes every number after it NaN without a word: energies, sums and
SAEs that were trained on it. So the first one stops the work, before anything is stored.
"""

from __future__ import annotations

from torch import Tensor, nn

from energy_lens.errors import ElwError


class NotFiniteError(ElwError):
    """A model whose numbers are not finite."""


def check_weights(name: str, module: nn.Module) -> None:
    """Raises NotFiniteError for a model with a weight that is NaN or infinite."""
    for parameter_name, parameter in module.named_parameters():
        # A sum is quicker than a look at each number, and finite where they all are and are no giants.
        if not parameter.sum().isfinite() and not parameter.isfinite().all():
            raise NotFiniteError(
                f"{name} has weights that are not finite ({parameter_name}): it is damaged; fetch it, or save it, anew."
            )


def check_residuals(norms: Tensor, place: str, is_read: Tensor | None = None) -> None:
    """Raises NotFiniteError where a residual is NaN or infinite.

    norms: ‖x‖ [context, position], or of any shape; place: what they are of, for the sentence; is_read: a mask of the
    same shape, of what is no padding; None: all.
    """
    finite = norms.isfinite()
    if is_read is not None:
        finite = finite | ~is_read
    if not bool(finite.all()):
        n_tokens = norms.numel() if is_read is None else int(is_read.sum())
        raise NotFiniteError(
            f"{int((~finite).sum()):,} of {n_tokens:,} tokens are not finite at {place}: the model's weights are "
            "damaged or overflow; see what elw model check says of it, and try --dtype float32 or a sound copy."
        )
