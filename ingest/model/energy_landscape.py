"""Normed residuals in, the energy of every token and the way down out: what the energy transformer's steps descend.

For a token t with residual x [n], r = √(mean x² + ε) and g = γ·x/r, in a context whose keys are held fixed,

  E_t(g) = −Σ_h (1/β_h)·log(1 + Σ_{s<t} exp(β_h·q_t·k_s)) − ½·‖relu(W g)‖²,   q_t = R_t W_Q g,   k_s = R_s W_K g_s

of head h: an attention energy and one of memories (Hoover et al. 2023, arXiv 2302.07253; causal as in Dehmamy, Hoover
et al. 2025, NRGPT, arXiv 2512.16762). R is the rotation of RoPE on a head's first channels. Units are the model's own.

**s < t, and the 1.** A token's own key would move with the token: with it in the sum, "keys held fixed" were false of
the key that matters most. Without it E_t is one landscape for whatever x does while the tokens before it stay. At t = 0
the sum is empty and its logarithm −∞, so each head also has a key that is zero, of which the 1 is the exponential: then
E_t ≤ 0, attention may rest on nothing, and a first token has no attention energy. It costs nothing either: the keys,
moved up one place behind that zero, make a plain causal pattern. Nor does it seem to cost loss: 6.18 nats a token
against 6.20 with own keys in the sum (width 64, 3 steps, 0.4 M tokens, one seed).

**The way down.** With a = softmax over the zero key and s < t of β_h·(0, q_t·k_s),

  −∂E_t/∂g = Σ_h W_Qᵀ R_tᵀ Σ_s a_s k_s + Wᵀ relu(W g):

attention whose values are its keys and whose output projection is W_Qᵀ, and a tied feed-forward network. A step takes
it back through the norm, with u = −γ·∂E_t/∂g and ρ = r·√n (so that d = −r·∂E_t/∂x), and goes

  x ← x + η·P·d,   d = u − x·(x·u)/ρ²,   P = AᵀA, positive semi-definite.

The papers go along −P·∂E/∂g. Where γ and P are plain numbers the two differ by a multiple of x alone, which no norm
sees; where they are not, −P·∂E/∂g may lead uphill, and this never does at first order: ⟨∂E/∂x, P·∂E/∂x⟩ ≥ 0.

**How far down.** E_t is concave in g (minus a log-sum-exp, minus a convex square), so that, however far g' is,
E_t(g') ≤ E_t(g) + ∂E_t/∂g·(g' − g): all curvature that can lead up again is the norm's. With δ = ηPd, x' = x + δ and
its ρ',

  E_t(x') − E_t(x) ≤ −(√n/ρ')·(d·δ − (x·u/ρ)·κ),   0 ≤ κ = ρ' − ρ − x·δ/ρ ≤ ‖δ‖²/(2ρ − 2‖δ‖) for ‖δ‖ < ρ.

So E_t, as a function of x and with its keys fixed, does not rise by a step with

  η·(c·‖Pd‖²/(d·Pd) + 2·‖Pd‖) ≤ 2ρ,   c = max(0, x·u)/ρ        (`highest_step`; ‖Pd‖²/(d·Pd) ≤ ‖P‖),

at any η that small, in exact arithmetic and for any weights. Training chooses η freely, and all tokens step at once, so
that at the next step a token's keys are others: of E from one step to the next nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

#: With what begins small that is to be heard little, or to move little; P has the squares of A's entries.
QUIET = 0.1

#: What attends: (module, queries, keys, values, mask, scaling=) to (output [batch, position, head, d_head], pattern).
AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


class Rotation(NamedTuple):
    """RoPE for the positions of a pass, on the first channels of a head; [batch, position, 1, rotated / 2] each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: Tensor, n_rotated: int, theta: float, dtype: torch.dtype) -> Rotation:
        """positions: [batch, position]; n_rotated: channels of a head that turn, an even number; theta: RoPE's base."""
        places = torch.arange(0, n_rotated, 2, dtype=torch.float32, device=positions.device)
        angles = positions[..., None, None].float() * theta ** (-places / max(n_rotated, 1))
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def turned(self, x: Tensor, back: bool = False) -> Tensor:
        """R x, or Rᵀ x, for x [batch, position, head, d_head]."""
        half = self.cos.shape[-1]
        first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        sin = -self.sin if back else self.sin
        return torch.cat([first * self.cos - second * sin, second * self.cos + first * sin, rest], dim=-1)


class StepDirection(NamedTuple):
    """What a step knows of a token; each [batch, position, n] or [batch, position, 1]."""

    d: Tensor  #: −r·∂E/∂x
    u: Tensor  #: −γ·∂E/∂g
    rho: Tensor  #: √(‖x‖² + n·ε)


class EnergyLandscape(nn.Module):
    """The weights that all steps share: W_Q, W_K, W, β and A, and what is computed with them."""

    is_causal = True  #: as attention functions of transformers ask

    def __init__(self, d_model: int, n_heads: int, d_head: int, n_memories: int, n_still: int = 0) -> None:
        """n_still: channels, the first ones, that P hardly moves before training."""
        super().__init__()
        self.n_heads, self.d_head, self.n_still = n_heads, d_head, n_still
        self.query = nn.Parameter(torch.empty(n_heads * d_head, d_model))  #: W_Q, head after head
        self.key = nn.Parameter(torch.empty(n_heads * d_head, d_model))  #: W_K
        self.memories = nn.Parameter(torch.empty(n_memories, d_model))  #: W
        self.root = nn.Parameter(torch.empty(d_model, d_model))  #: A, of P = AᵀA
        self.log_beta = nn.Parameter(torch.empty(n_heads))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Weights to begin a training with: products of unit variance, β as in plain attention, P = 1 or nearly 0."""
        for weight in (self.query, self.key, self.memories):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.eye_(self.root)
        self.root[: self.n_still] *= QUIET
        nn.init.constant_(self.log_beta, -math.log(self.d_head) / 2)

    def preconditioned(self, d: Tensor) -> Tensor:
        """P d for d [..., n]."""
        return functional.linear(d, self.root.T @ self.root)  # P is symmetric

    def queries(self, g: Tensor, rotation: Rotation) -> Tensor:
        """q [batch, head, position, d_head], without β, for g [batch, position, n]."""
        q = functional.linear(g, self.query).unflatten(-1, (self.n_heads, self.d_head))
        return rotation.turned(q).transpose(1, 2)

    def keys(self, g: Tensor, rotation: Rotation) -> Tensor:
        """[batch, head, position, d_head]: zero at place 0, at place s + 1 the key of token s, but for the last."""
        k = functional.linear(g, self.key).unflatten(-1, (self.n_heads, self.d_head))
        return functional.pad(rotation.turned(k)[:, :-1], (0, 0, 0, 0, 1, 0)).transpose(1, 2)

    def energy(self, g: Tensor, keys: Tensor, rotation: Rotation, mask: Tensor | None = None) -> Tensor:
        """E_t [batch, position] for g [batch, position, n], with keys as `keys` gives them.

        mask: [batch, 1, position, place], true where a token may look; None: wherever causality lets it.
        """
        beta = self.log_beta.exp()[:, None, None]
        scores = beta * self.queries(g, rotation) @ keys.transpose(2, 3)
        attention = -(seen(scores, mask).logsumexp(-1) / beta[..., 0]).sum(1)
        return attention - functional.linear(g, self.memories).relu().square().sum(-1) / 2

    def way_down(
        self,
        g: Tensor,
        rotation: Rotation,
        attend: AttentionFunction,
        mask: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """−∂E/∂g [batch, position, n], and the attention pattern where the function gives one.

        keys: held fixed, as `keys` gives them; None: those of g itself.
        """
        queries = self.queries(g, rotation) * self.log_beta.exp()[:, None, None]
        keys = self.keys(g, rotation) if keys is None else keys
        attended, pattern = attend(self, queries, keys, keys, mask, scaling=1.0)
        recalled = functional.linear(functional.linear(g, self.memories).relu(), self.memories.T)
        return functional.linear(rotation.turned(attended, back=True).flatten(2), self.query.T) + recalled, pattern


def direction(x: Tensor, gain: Tensor, epsilon: float, way_down: Callable[[Tensor], Tensor]) -> StepDirection:
    """d, u and ρ at x [batch, position, n]. way_down: −∂E/∂g at g [batch, position, n]."""
    n = x.shape[-1]
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    unit = x * inverse
    u = gain * way_down(gain * unit)
    return StepDirection(u - unit * ((unit * u).sum(-1, keepdim=True) / n), u, n**0.5 / inverse)


def highest_step(x: Tensor, at: StepDirection, preconditioned: Tensor) -> Tensor:
    """η up to which a step is proved not to raise E_t, [batch, position]; infinite where every step is.

    x: [batch, position, n]; at: the direction there; preconditioned: P d.
    """
    squared, slope = preconditioned.square().sum(-1), (at.d * preconditioned).sum(-1)
    rho = at.rho.squeeze(-1)
    c = (x * at.u).sum(-1).clamp_min(0) / rho
    curvature = torch.where(slope > 0, c * squared / slope, 0)
    return 2 * rho / (curvature + 2 * squared.sqrt())


def seen(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores [batch, head, position, place] with −∞ where a token does not look (`energy`)."""
    return after_none(scores) if mask is None else scores.masked_fill(~mask, -torch.inf)


def after_none(scores: Tensor) -> Tensor:
    """Scores [..., position, place] with −∞ at places after a token's own, which hold its own key and later ones."""
    length = scores.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def attend_plainly(
    _module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention with its pattern [batch, head, position, place], by the interface of transformers.

    mask: [batch, 1, position, place], true where a token may look; None: wherever causality lets it.
    """
    scores = queries @ keys.transpose(2, 3) * scaling
    pattern = seen(scores, mask).softmax(-1)
    return (pattern @ values).transpose(1, 2), pattern
