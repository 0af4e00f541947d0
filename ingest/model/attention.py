"""What a block's attention compares: a pass in, left inside its attention function, queries and keys out."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

#: The name under which transformers finds the function that reads queries and keys.
ATTENTION_READER = "elw_attention_reader"


class AttentionInputs(NamedTuple):
    """What a block's attention compares; positions are in them."""

    queries: Tensor  #: [batch, head, position, d_head]
    keys: Tensor  #: [batch, key head, position, d_head]; several heads may share one
    scale: float  #: of their products: 1/√d_head
    window: int | None  #: tokens that a token attends to, itself the last; None: all up to it


class AttentionReached(Exception):
    """Raised where a block would attend: carries what it would compare."""

    def __init__(self, inputs: AttentionInputs, more: str | None) -> None:
        super().__init__()
        self.inputs = inputs
        self.more = more  #: the name of something else that enters its scores


def _reach_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> None:
    """An attention function by transformers' interface, which leaves the pass."""
    more = "a cap on scores" if softcap is not None else "attention sinks" if s_aux is not None else None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    raise AttentionReached(AttentionInputs(query, key, scale, sliding_window), more)


def register_attention_reader() -> None:
    """Make the function known to transformers, under ATTENTION_READER."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_READER, _reach_attention)
