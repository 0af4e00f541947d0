"""What a training of a small language model depends on in, an untrained model out: energy transformer, or plain.

The plain one is what transformers calls Llama: pre-norm blocks, RoPE, a gated feed-forward network, tied embeddings. It
has a block for each step of the energy transformer and as many parameters in all, which its width and the width of its
feed-forward networks are chosen for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from energy_lens.errors import (
    LARGEST_COUNT,
    LONGEST_CONTEXT,
    UsageError,
    require,
    require_at_most,
    require_batch,
    require_seed,
)
from energy_lens.ingest.training.energy_model_text import LEAST_VOCABULARY, MOST_VOCABULARY

#: Sizes beyond which nothing is trained on the machines that this is for.
MOST_WIDTH, MOST_STEPS, MOST_MEMORIES, MOST_PARAMETERS = 8_192, 256, 2**20, 10**9

#: Steps of Adam are as long as its learning rate; weights here are of the order of 0.1.
HIGHEST_LEARNING_RATE = 1.0

#: Channels of a plain transformer's head, and how much wider than the residual its feed-forward network is by habit.
PLAIN_HEAD, PLAIN_RATIO = 32, 8 / 3


@dataclass(frozen=True)
class EnergyModelOptions:
    """What a training depends on, apart from the documents."""

    plain: bool = False  #: a plain transformer of as many parameters instead
    width: int = 256  #: of the residual stream; that of the energy transformer, to which the plain one is fitted
    steps: int = 6  #: down the landscape; blocks of the plain one
    heads: int = 8
    memories: int = 1024  #: rows of W
    vocabulary: int = 4096  #: entries of the tokenizer, at most
    context_length: int = 256
    tokens: int = 10_000_000  #: to train on, repetitions counted
    batch_size: int = 8  #: contexts of a step of AdamW
    learning_rate: float = 3e-3  #: the highest
    warmup_share: float = 0.02  #: of the steps, linear from 0
    final_share: float = 0.05  #: of the highest learning rate, at the end of its cosine
    weight_decay: float = 0.1  #: of matrices
    dtype: str = "float32"  #: of products; weights and sums are float32
    seed: int = 0

    def __post_init__(self) -> None:
        for option, number, most in (
            ("--width", self.width, MOST_WIDTH),
            ("--steps", self.steps, MOST_STEPS),
            ("--heads", self.heads, self.width),
            ("--memories", self.memories, MOST_MEMORIES),
        ):
            require(number >= 1, f"{option} is {number}; it must be positive.")
            require_at_most(option, number, most)
        require(
            self.width % (2 * self.heads) == 0,
            f"--width is {self.width}; it must be a multiple of twice the number of heads, {2 * self.heads} (--heads).",
        )
        require(
            self.vocabulary >= LEAST_VOCABULARY,
            f"--vocabulary is {self.vocabulary}; at least {LEAST_VOCABULARY} are needed, for every byte and the end of "
            "a text.",
        )
        require_at_most("--vocabulary", self.vocabulary, MOST_VOCABULARY)
        require(self.context_length >= 4, f"--context is {self.context_length}; at least 4 tokens are needed.")
        require_at_most("--context", self.context_length, LONGEST_CONTEXT)
        require_batch(self.batch_size, self.context_length)
        n = self.width * (self.vocabulary + 3 * self.width + self.memories)
        require(
            n <= MOST_PARAMETERS,
            f"--width, --vocabulary and --memories make {n:,} parameters; at most {MOST_PARAMETERS:,} are possible.",
        )
        require(
            self.tokens >= 2 * self.step_tokens,
            f"--tokens is {self.tokens:,}, and two steps take {2 * self.step_tokens:,}: train on more.",
        )
        require_at_most("--tokens", self.tokens, LARGEST_COUNT)
        rate, decay = self.learning_rate, self.weight_decay
        require(0 < rate < math.inf, f"--learning-rate is {rate}; it must be positive and finite.")
        require_at_most("--learning-rate", rate, HIGHEST_LEARNING_RATE)
        require(0 <= decay <= 1, f"--weight-decay is {decay}; it must lie between 0 and 1.")
        require_seed(self.seed)

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.context_length

    @property
    def n_steps(self) -> int:
        """Steps of AdamW."""
        return self.tokens // self.step_tokens

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine."""
        warmup = max(1, round(self.warmup_share * self.n_steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.n_steps - warmup)
        return self.learning_rate * (self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * share)) / 2)


def untrained(options: EnergyModelOptions, n_entries: int, end_of_text: int) -> Any:
    """A model of transformers with weights drawn by the seed. n_entries: of its tokenizer; end_of_text: the id."""
    from transformers import AutoModelForCausalLM

    from energy_lens.ingest.model.energy_transformer import register

    register()
    torch.manual_seed(options.seed)
    config = _energy_config(options, n_entries, end_of_text)
    module = AutoModelForCausalLM.from_config(config)
    if options.plain:
        n_parameters = sum(parameter.numel() for parameter in module.parameters())
        torch.manual_seed(options.seed)
        module = AutoModelForCausalLM.from_config(_plain_config(options, n_parameters, n_entries, end_of_text))
    module.generation_config.eos_token_id = module.generation_config.bos_token_id = end_of_text
    return module


def _energy_config(options: EnergyModelOptions, n_entries: int, end_of_text: int) -> Any:
    from energy_lens.ingest.model.energy_transformer import EnergyTransformerConfig

    return EnergyTransformerConfig(
        vocab_size=n_entries, hidden_size=options.width, num_hidden_layers=options.steps,
        num_attention_heads=options.heads, head_dim=options.width // options.heads,
        intermediate_size=options.memories, max_position_embeddings=options.context_length,
        bos_token_id=end_of_text, eos_token_id=end_of_text, attn_implementation="sdpa",
    )  # fmt: skip


def _plain_config(options: EnergyModelOptions, n_parameters: int, n_entries: int, end_of_text: int) -> Any:
    from transformers import LlamaConfig

    width, inner = plain_widths(n_parameters, n_entries, options.steps)
    n_heads = max(1, width // PLAIN_HEAD)
    return LlamaConfig(
        vocab_size=n_entries, hidden_size=width, intermediate_size=inner, num_hidden_layers=options.steps,
        num_attention_heads=n_heads, num_key_value_heads=n_heads, max_position_embeddings=options.context_length,
        tie_word_embeddings=True, bos_token_id=end_of_text, eos_token_id=end_of_text, attn_implementation="sdpa",
    )  # fmt: skip


def plain_widths(n_parameters: int, n_entries: int, n_blocks: int) -> tuple[int, int]:
    """Widths of the residual stream and of the feed-forward networks of a plain transformer with so many parameters.

    The residual's is a multiple of a head's; the other makes up the number, and is as near as can be to PLAIN_RATIO
    times the first. Raises UsageError where there is no such transformer.
    """

    def inner(width: int) -> int:
        fixed = n_entries * width + n_blocks * (4 * width * width + 2 * width) + width
        return round((n_parameters - fixed) / (3 * width * n_blocks))

    unit = PLAIN_HEAD if n_parameters > n_entries * PLAIN_HEAD * 2 else 2
    possible = [width for width in range(unit, MOST_WIDTH + 1, unit) if inner(width) >= 1]
    if not possible:
        raise UsageError(
            f"No plain transformer has {n_parameters:,} parameters in {n_blocks} blocks: take fewer steps."
        )
    width = min(possible, key=lambda width: abs(math.log(inner(width) / width / PLAIN_RATIO)))
    return width, inner(width)
