"""A language model whose parts are known, whatever its architecture calls them: token ids in, hidden states out.

Three parts: the blocks of the residual stream, the final norm and the unembedding. `resolving` finds them by structure
and proves them by a forward pass; nothing here knows a list of names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.model.attention import (
    ATTENTION_READER,
    AttentionInputs,
    AttentionReached,
    register_attention_reader,
)
from energy_lens.ingest.model.configuration import n_positions
from energy_lens.ingest.model.tokenizing import Tokenization

#: Precisions whose rounding of logits shows in a loss.
COARSE = (torch.bfloat16, torch.float16)


@dataclass
class LanguageModel:
    """A causal language model in evaluation mode, its parameters frozen."""

    name: str
    sha256: str  #: of the weights as they were distributed
    module: nn.Module  #: the Hugging Face model
    tokenizer: Any
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding: nn.Linear  #: W_U [vocabulary, d_model], with a bias in some architectures
    d_model: int
    vocabulary_size: int
    logit_scale: float = 1.0  #: c in logits = c·(W_U·h + b), then capped (`logits`)
    logit_cap: float | None = None  #: to which logits are bent by tanh; None: they are not
    bos: int | None = None  #: the id that every context begins with (`bos`); None: contexts are text alone

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.weight.dtype

    @property
    def is_linear(self) -> bool:
        """Whether logits are a linear function of the final norm's output."""
        return self.logit_cap is None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] for h [n, d_model]: W_U·h + b, scaled and capped as the model does it."""
        return self.bent(self.unembedding(hidden))

    def bent(self, products: Tensor) -> Tensor:
        """Logits from W_U·h + b, of any shape."""
        scaled = products * self.logit_scale if self.logit_scale != 1 else products
        return scaled if self.logit_cap is None else self.logit_cap * (scaled / self.logit_cap).tanh()

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of logits by W_U·h + b, from the logits themselves."""
        return self.logit_scale if self.logit_cap is None else (1 - (logits / self.logit_cap) ** 2) * self.logit_scale

    @cached_property
    def common_row(self) -> Tensor:
        """What `centred_unembedding` leaves out of every row of W_U [d_model]: zeros, where it leaves out nothing."""
        W_U = self.unembedding.weight.detach()
        is_left_out = W_U.dtype in COARSE and self.is_linear
        mean: Tensor = W_U.float().mean(0) if is_left_out else W_U.new_zeros(W_U.shape[1])
        return mean

    @cached_property
    def centred_unembedding(self) -> Tensor:
        """W_U [vocabulary, d_model] without its mean row where the precision is coarse: the same probabilities.

        A row that all have in common moves all logits of a token alike, which softmax does not notice; rounding does:
        bfloat16 keeps eight binary digits of a logit, offset and all.
        """
        W_U = self.unembedding.weight.detach()
        return (W_U.float() - self.common_row).to(W_U.dtype) if W_U.dtype in COARSE and self.is_linear else W_U

    @property
    def config(self) -> Any:
        """The configuration of the model that reads text, which may sit inside one that also sees."""
        return text_config(self.module)

    @property
    def window(self) -> int | None:
        """The most tokens that it reads at once; None where its configuration does not say."""
        return n_positions(self.module.config)

    def facts(self) -> dict[str, Any]:
        """Columns of the table `models`, without the sha256."""
        return {
            "name": self.name, "architecture": type(self.module).__name__, "n_layers": self.n_layers,
            "d_model": self.d_model, "vocabulary_size": self.vocabulary_size,
            "n_parameters": sum(parameter.numel() for parameter in self.module.parameters()),
        }  # fmt: skip

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises UsageError unless every layer is a block of this model."""
        check_layers(self.name, self.n_layers, layers)

    def any_tokens(self, n_contexts: int, length: int) -> Tensor:
        """Token ids [context, position] of no meaning, for a pass whose numbers do not matter."""
        return (torch.arange(n_contexts * length) % min(1_000, self.vocabulary_size)).view(n_contexts, length)

    def tokenize(self, text: str) -> list[int]:
        """Token ids without added special tokens."""
        return [id_ for _, ids in self.token_ids([[text]]) for id_ in ids.tolist()]

    def as_context(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Token ids of a text [n] as the model reads them: behind BOS, where contexts begin with it [n or n + 1]."""
        return ids if self.bos is None else np.concatenate([np.array([self.bos], dtype=np.int32), ids])

    def token_ids(self, texts: Iterable[Iterable[str]]) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(place of the text, some of its ids) for texts given in pieces: the ids of `tokenize`, part by part in order.

        Memory stays bounded however long a text is, and short texts share the cores.
        """
        for place, ids in self._tokenization.ids(texts):
            if len(ids) and ids.max() >= self.vocabulary_size:
                raise ElwError(
                    f"{self.name} has {self.vocabulary_size} vocabulary entries and its tokenizer gives id "
                    f"{ids.max()}: the tokenizer belongs to another model."
                )
            yield place, ids

    @cached_property
    def _tokenization(self) -> Tokenization:
        return Tokenization(self.tokenizer)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The final norm's output [batch, position, d_model] for token ids [batch, position].

        Padding goes on the right and needs no mask: attention is causal, so it cannot reach an earlier token.
        """
        return self.module.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return, operator]

    def hidden_above(self, tokens: Tensor, layer: int, x: Tensor) -> Tensor:
        """The final norm's output with x [batch, position, d_model] in place of the output of block `layer`.

        The blocks up to that one are not run; masks and positions for those above are the model's own doing. Exact
        where blocks hand on nothing but the residual stream.
        """
        with self.entered_above(layer, x):
            return self.hidden(tokens)

    def entered_above(self, layer: int, x: Tensor) -> contextlib.AbstractContextManager[None]:
        """Inside, a pass begins above block `layer`, with x as that block's output."""
        # What else a block returns is a cache or a pattern, which nobody asked for: so it is nothing here.
        further = self._further_outputs
        return _skipped(list(self.blocks)[: layer + 1], x if further is None else (x, *[None] * further))

    def attention_inputs(self, tokens: Tensor, layer: int, x: Tensor) -> AttentionInputs:
        """What the attention of block `layer` + 1 compares when x [batch, position, d_model] goes into that block.

        Its norm, projections and positions are the model's own doing: the pass is left inside its attention function.
        Raises UsageError for a model whose attention does not go through transformers' attention interface, or adds
        more to its scores than queries and keys.
        """
        register_attention_reader()
        entered_above = self.entered_above(layer, x)  # first of all, for it may run the model to look at its blocks
        config = self.config
        before = config._attn_implementation
        config._attn_implementation = ATTENTION_READER
        try:
            with entered_above:
                self.hidden(tokens)
        except AttentionReached as reached:
            if reached.more:
                raise UsageError(
                    f"The attention of {self.name} uses {reached.more}, which the attention energy does not know: "
                    "leave it out (--energies)."
                ) from None
            return reached.inputs
        except Exception as error:  # as code answers that does not know transformers' attention interface
            raise UsageError(self._unread) from error
        finally:
            config._attn_implementation = before
        raise UsageError(self._unread)

    @property
    def _unread(self) -> str:
        kind = type(self.module).__name__
        return (
            f"The queries and keys of {self.name} cannot be read ({kind}): leave out the attention energy (--energies)."
        )

    @cached_property
    def _further_outputs(self) -> int | None:
        """How much a block returns in a tuple behind the residual; None where it returns the residual itself."""
        outputs: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            with torch.no_grad():
                self.hidden(torch.zeros(1, 1, dtype=torch.int64))
        finally:
            handle.remove()
        return len(outputs[0]) - 1 if isinstance(outputs[0], tuple) else None


def check_layers(name: str, n_layers: int, layers: Sequence[int]) -> None:
    """Raises UsageError unless every layer is a block of a model that has n_layers."""
    if not layers:
        raise UsageError("No layer was given: name at least one with --layers.")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise UsageError(f"{name} has no layer {layer}: its layers are 0 to {n_layers - 1} (--layers).")


def text_config(module: nn.Module) -> Any:
    """The part of a Hugging Face module's configuration that is about its language model."""
    config: Any = module.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@contextlib.contextmanager
def _skipped(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside, calling any of the blocks gives `output`, whatever goes in."""
    forwards = forwards_of(blocks)
    try:
        for block in blocks:
            vars(block)["forward"] = lambda *_, **__: output
        yield
    finally:
        give_back(blocks, forwards)


def forwards_of(blocks: Iterable[nn.Module]) -> list[Any]:
    """What stands for the forward of each block instead of its class's own; None where nothing does."""
    return [vars(block).get("forward") for block in blocks]


def give_back(blocks: Iterable[nn.Module], forwards: Iterable[Any]) -> None:
    """Undo what was put in place of blocks' forwards since they were taken down."""
    for block, forward in zip(blocks, forwards, strict=True):
        if forward is None:
            vars(block).pop("forward", None)  # the class's own again
        else:
            vars(block)["forward"] = forward
