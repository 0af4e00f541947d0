"""A causal energy transformer as a model of Hugging Face transformers: token ids in, logits out, in K steps downhill.

  x_0 = γ·√n·(embedding of the token),   x_{k+1} = x_k + η_k·P·d_k(x_k),   logits = W_E·norm(x_K),

where d_k leads down one landscape (`energy_landscape`) that all steps share; a step of its own has its norm's gain γ_k
and its size η_k alone. The steps are a list of modules as the blocks of a transformer are, whose outputs are the
residual stream: whatever reads, edits or resumes a model's blocks does so with steps. `register` makes transformers
know the class, so that its Auto classes load a saved folder without code from that folder.

**Two halves.** Untrained, the channels are of two kinds: one half is loud in x_0 and still afterwards (small in P and
in the last norm's gain), the other is silent in x_0, moves, and is what the unembedding reads. Training changes all
three as it likes; it hardly begins where all channels begin alike. For along the way down, M = 1 − ηP·∂²E/∂g² is then
symmetric and without negative eigenvalues (E is concave in g), and a tied unembedding reads e_b·M e_a for b after a: by
Cauchy and Schwarz no more than the larger of what it reads for a after a and for b after b. So in no cycle of tokens
could each follow the one before sooner than itself, but for what relu and norm change in M. With two halves, M between
them is any matrix. After 0.3 million tokens at width 256: 5.5 nats a token with halves, 6.35 at the best rate tried
without, 6.2 of a plain transformer.

A token's keys at every step depend on earlier tokens alone, so that a cache could hold them. None does: a context is
short and a step cheap, and `generate` reads the whole context for each new token, whatever use_cache says.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from energy_lens.errors import UsageError
from energy_lens.ingest.model.energy_landscape import (
    QUIET,
    AttentionFunction,
    EnergyLandscape,
    Rotation,
    StepDirection,
    attend_plainly,
    direction,
)
from energy_lens.ingest.model.language_model import LanguageModel

#: Gains that the still channels begin with in x_0; others there, and still ones in the last norm, begin with QUIET.
LOUD = 5.0


class EnergyTransformerConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of an energy transformer, by the names that transformers uses."""

    model_type = "energy_transformer"

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 256,  #: n
        num_hidden_layers: int = 6,  #: K, steps
        num_attention_heads: int = 8,
        head_dim: int = 32,
        intermediate_size: int = 1024,  #: memories, rows of W
        max_position_embeddings: int = 256,
        rope_theta: float = 10_000.0,
        rotary_share: float = 0.5,  #: of a head's channels; the others know no positions
        rms_norm_eps: float = 1e-6,
        initial_step: float = 0.2,  #: η before training
        still_share: float = 0.5,  #: of the channels, which begin loud in x_0 and still in P and the last norm
        initializer_range: float = 0.02,  #: of the embedding
        tie_word_embeddings: bool = True,
        use_cache: bool = False,
        **more: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.head_dim = num_attention_heads, head_dim
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta, self.rotary_share = rope_theta, rotary_share
        self.rms_norm_eps, self.initial_step, self.initializer_range = rms_norm_eps, initial_step, initializer_range
        self.still_share, self.use_cache = still_share, use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **more)

    @property
    def n_still(self) -> int:
        """Channels that begin still, the first ones."""
        return round(self.still_share * self.hidden_size)

    @property
    def n_rotated(self) -> int:
        """Channels of a head that RoPE turns, an even number."""
        return 2 * round(self.rotary_share * self.head_dim / 2)


class RootMeanSquareNorm(nn.Module):
    """γ·x/√(mean x² + ε)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class EnergyTransformerStep(nn.Module):
    """x + η·P·d: one step down the landscape that it is handed."""

    def __init__(self, config: EnergyTransformerConfig) -> None:
        super().__init__()
        self.norm = RootMeanSquareNorm(config.hidden_size, config.rms_norm_eps)
        self.log_step = nn.Parameter(torch.empty(()))
        self.initial_step = config.initial_step
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        nn.init.constant_(self.log_step, math.log(self.initial_step))

    def forward(
        self,
        x: Tensor,
        landscape: EnergyLandscape,
        rotation: Rotation,
        attend: AttentionFunction = attend_plainly,
        mask: Tensor | None = None,
        patterns: list[Tensor | None] | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """x [batch, position, n] after the step.

        patterns: takes the attention pattern, if it is given; keys: as `EnergyLandscape.keys` gives them, None: of x.
        """
        at = self.direction(x, landscape, rotation, attend, mask, patterns, keys)
        return x + self.log_step.exp() * landscape.preconditioned(at.d)

    def direction(
        self,
        x: Tensor,
        landscape: EnergyLandscape,
        rotation: Rotation,
        attend: AttentionFunction = attend_plainly,
        mask: Tensor | None = None,
        patterns: list[Tensor | None] | None = None,
        keys: Tensor | None = None,
    ) -> StepDirection:
        """Where the step leads from x, before P and η."""

        def way_down(g: Tensor) -> Tensor:
            down, pattern = landscape.way_down(g, rotation, attend, mask, keys)
            if patterns is not None:
                patterns.append(pattern)
            return down

        return direction(x, self.norm.weight, self.norm.eps, way_down)

    def energy(self, x: Tensor, landscape: EnergyLandscape, rotation: Rotation) -> Tensor:
        """E_t [batch, position] at the step's input x, its keys held fixed: their gradient stays out."""
        g = self.norm(x)
        return landscape.energy(g, landscape.keys(g.detach(), rotation).detach(), rotation)


class EnergyTransformerPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the two models have in common."""

    config_class = EnergyTransformerConfig
    base_model_prefix = "model"
    _no_split_modules = ("EnergyTransformerStep",)
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, EnergyLandscape | EnergyTransformerStep | EnergyTransformerModel):
            module.reset()  # of the model after its parts', whose last norm is one of them
        elif isinstance(module, RootMeanSquareNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)


class EnergyTransformerModel(EnergyTransformerPreTrainedModel):
    """Token ids in, norm(x_K) out."""

    def __init__(self, config: EnergyTransformerConfig) -> None:
        super().__init__(config)
        n = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, n)
        self.gain = nn.Parameter(torch.empty(n))  #: γ of x_0
        self.landscape = EnergyLandscape(
            n, config.num_attention_heads, config.head_dim, config.intermediate_size, config.n_still
        )
        self.steps = nn.ModuleList(EnergyTransformerStep(config) for _ in range(config.num_hidden_layers))
        self.norm = RootMeanSquareNorm(n, config.rms_norm_eps)
        self.post_init()

    @torch.no_grad()
    def reset(self) -> None:
        """Gains of x_0 and of the last norm to begin a training with: those of two halves."""
        still = torch.arange(self.config.hidden_size) < self.config.n_still
        self.gain.copy_(torch.where(still, LOUD, QUIET))
        self.norm.weight.copy_(torch.where(still, QUIET, 1.0))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """last_hidden_state [batch, position, n], and what else is asked for.

        attention_mask: [batch, position], 0 at padding; hidden_states: x_0 to x_{K−1} and last_hidden_state;
        attentions: of each step, place 0 being the key that is zero and place s + 1 token s.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * (self.config.hidden_size**0.5 * self.gain)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        rotation = self.rotation(position_ids, x.dtype)
        name = self.config._attn_implementation
        attend = attend_plainly if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]
        mask = None if attention_mask is None else _mask(attention_mask, x.shape[1])
        patterns: list[Tensor | None] | None = (
            [] if _asked(self.config, "output_attentions", output_attentions) else None
        )
        states = []
        for step in self.steps:
            states.append(x)
            x = step(x, self.landscape, rotation, attend, mask, patterns)
        hidden = self.norm(x)
        with_states = _asked(self.config, "output_hidden_states", output_hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=(*states, hidden) if with_states else None,
            attentions=None if patterns is None else tuple(patterns),
        )

    def rotation(self, position_ids: Tensor, dtype: torch.dtype) -> Rotation:
        """RoPE for positions [batch, position]."""
        return Rotation.of(position_ids, self.config.n_rotated, self.config.rope_theta, dtype)

    def energy_and_gradient(self, step: int, x: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """E_t [batch, position] and ∂E_t/∂x_t [batch, position, n], where x [batch, position, n] goes into a step.

        Keys are held fixed; closed form, without a graph.
        """
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        rotation = self.rotation(position_ids, x.dtype)
        of_step = self.steps[step]
        assert isinstance(of_step, EnergyTransformerStep)
        at = of_step.direction(x, self.landscape, rotation)
        return of_step.energy(x, self.landscape, rotation), at.d * (-(x.shape[-1] ** 0.5) / at.rho)


class EnergyTransformerForCausalLM(EnergyTransformerPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The same with logits: W_E·norm(x_K)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 — as transformers asks

    def __init__(self, config: EnergyTransformerConfig) -> None:
        super().__init__(config)
        self.model = EnergyTransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor | None]:
        """All ids so far: nothing of earlier passes is kept."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> CausalLMOutput:
        """logits [batch, position, vocabulary]; with labels [batch, position] also the mean loss, in nats."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


def energy_transformer_in(model: LanguageModel, remedy: str) -> EnergyTransformerModel:
    """The energy transformer that a language model is. Raises UsageError, with a remedy, for one of another kind."""
    module = model.module.base_model
    if not isinstance(module, EnergyTransformerModel):
        raise UsageError(
            f"{model.name} descends no energy of its own ({type(model.module).__name__}), as models of elw "
            f"energy-model train do: {remedy}"
        )
    return module


@cache
def register() -> None:
    """Make the classes known to transformers' Auto classes."""
    AutoConfig.register(EnergyTransformerConfig.model_type, EnergyTransformerConfig, exist_ok=True)
    AutoModel.register(EnergyTransformerConfig, EnergyTransformerModel, exist_ok=True)
    AutoModelForCausalLM.register(EnergyTransformerConfig, EnergyTransformerForCausalLM, exist_ok=True)


def _asked(config: EnergyTransformerConfig, name: str, given: bool | None) -> bool:
    return bool(getattr(config, name, False) if given is None else given)


def _mask(is_text: Tensor, length: int) -> Tensor | None:
    """[batch, 1, position, place] where a token may look, from [batch, position] of what is no padding; None: all."""
    if bool(is_text.all()):
        return None
    # Place 0 is the key that is zero, and place s + 1 token s.
    places = torch.cat([torch.ones_like(is_text[:, :1]), is_text[:, :-1]], dim=1).bool()
    earlier = torch.ones(length, length, dtype=torch.bool, device=is_text.device).tril()
    return earlier & places[:, None, None]
