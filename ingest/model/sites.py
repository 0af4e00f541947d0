"""A model and places inside its blocks in, the tensors there out, and a pass that goes on from another one.

  resid_pre       what goes into a block; that of block N is resid_post of block N − 1
  z               what goes into attention's last projection, all heads side by side
  attn_raw        what attention gives, before a norm of its own (Gemma 2 and 3 have one)
  attn_out        what attention adds to the residual stream, that norm included
  resid_mid       the residual stream between attention and the feed-forward network, where they follow each other
  ln2_normalized  resid_mid centred (by a LayerNorm) and scaled, before the norm's gain: TransformerLens' ln2
  mlp_in          what goes into the feed-forward network
  mlp_raw         what it gives, before a norm of its own
  mlp_out         what it adds to the residual stream, that norm included
  resid_post      what comes out of the block

Where that is in a model, no list of names says: the modules are found by what they compute (`Anatomy`), for
resid_pre + attn_out + mlp_out = resid_post. A model that adds up otherwise has no such places, and a sentence says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel

#: Places in the order in which a pass comes by, and their names in TransformerLens.
HOOKS = {
    "resid_pre": "hook_resid_pre", "z": "attn.hook_z", "attn_raw": "attn.hook_out", "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid", "ln2_normalized": "ln2.hook_normalized", "mlp_in": "mlp.hook_in",
    "mlp_raw": "mlp.hook_out", "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post",
}  # fmt: skip

POINTS = tuple(HOOKS)

K = TypeVar("K")

RESID_PRE, RESID_MID, RESID_POST = "resid_pre", "resid_mid", "resid_post"

#: Places of the residual stream itself.
RESIDUAL = (RESID_PRE, RESID_MID, RESID_POST)

#: At which nothing can be put in place of what is there: what a transcoder reads.
READ_ONLY = ("ln2_normalized", "mlp_in")

#: Tokens of the pass that finds the modules of a block, and how far a sum may be off, relative to its largest number.
PROOF_TOKENS, TOLERANCE = 8, {torch.float32: 1e-5, torch.float64: 1e-9}
COARSE_TOLERANCE = 3e-2


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in a block."""

    layer: int
    point: str = RESID_POST

    @property
    def hook_name(self) -> str:
        """As TransformerLens and SAELens call it."""
        return f"blocks.{self.layer}.{HOOKS[self.point]}"

    @property
    def is_block_output(self) -> bool:
        return self.point == RESID_POST

    @property
    def before_block(self) -> Site:
        """What goes into the same block."""
        return Site(self.layer, RESID_PRE)

    @property
    def output_of(self) -> int | None:
        """The block whose output is here, which may be the input of the next one; None where it is none's."""
        before = self.layer - 1 if self.point == RESID_PRE and self.layer else None
        return self.layer if self.is_block_output else before

    def __lt__(self, other: Site) -> bool:
        """Whether a pass comes by here first."""
        return (self.layer, POINTS.index(self.point)) < (other.layer, POINTS.index(other.point))


@dataclass(frozen=True)
class _Call:
    """What a module inside a block met in a pass."""

    module: nn.Module
    read: Tensor | None  #: its first argument, where that is a tensor
    gave: Tensor | None  #: its output, or the first part of it


@dataclass(frozen=True)
class Anatomy:
    """Where a block computes what; None where it does not."""

    attention: nn.Module | None = None  #: gives attn_out
    projection: nn.Module | None = None  #: attention's last one, which reads z and gives attn_raw
    mid_norm: nn.Module | None = None  #: reads resid_mid
    feed_forward: nn.Module | None = None  #: gives mlp_out
    feed_forward_projection: nn.Module | None = None  #: its last one, which gives mlp_raw
    feed_forward_input: nn.Module | None = None  #: reads mlp_in
    feed_forward_norm: nn.Module | None = None  #: gives mlp_in

    def place(self, block: nn.Module, point: str) -> tuple[nn.Module | None, bool]:
        """The module at a point, and whether it is that module's input."""
        places: dict[str, tuple[nn.Module | None, bool]] = {
            RESID_PRE: (block, True), "z": (self.projection, True), "attn_raw": (self.projection, False),
            "attn_out": (self.attention, False), RESID_MID: (self.mid_norm, True),
            "ln2_normalized": (self.feed_forward_norm, True), "mlp_in": (self.feed_forward_input, True),
            "mlp_raw": (self.feed_forward_projection, False), "mlp_out": (self.feed_forward, False),
            RESID_POST: (block, False),
        }  # fmt: skip
        return places[point]


def anatomy(model: LanguageModel, layer: int) -> Anatomy:
    """Where block `layer` computes what; found once."""
    known: dict[int, Anatomy] = vars(model).setdefault("_anatomies", {})
    if layer not in known:
        known[layer] = _found(model, layer)
    return known[layer]


def check_sites(model: LanguageModel, sites: Iterable[Site]) -> None:
    """Raises UsageError for a place that a model does not have."""
    for site in sites:
        module, _ = _place(model, site)
        if module is None:
            raise UsageError(
                f"{model.name} has no {site.point} in block {site.layer} that could be found: its attention and its "
                "feed-forward network do not add up to the block's output one after the other. Choose an SAE of "
                "another hook point."
            )


def width(model: LanguageModel, site: Site) -> int:
    """Numbers a token at a place that the model has."""
    if site.point != "z":
        return model.d_model
    tokens = model.any_tokens(1, 2)
    return int(harvest(model, tokens, {0: site})[0].shape[-1])


# ------------------------------------------------------------------------------------------------ reading


class _Stop(Exception):
    """Raised inside a hook to leave the forward pass: nothing above the last hooked block is wanted."""


@contextlib.contextmanager
def tensors_at(
    model: LanguageModel, sites: Mapping[K, Site], graph_from: Site | None = None
) -> Iterator[dict[K, Tensor]]:
    """Inside, a forward pass fills the yielded dict with the tensor at each place, [batch, position, width].

    sites: places by any key. graph_from: where the graph begins: the tensor there becomes a leaf that requires a
        gradient. With the parameters frozen nothing is recorded below it, which saves a third of the backward pass's
        memory.
    Raises UsageError for a place that the model does not have.
    """
    keys: dict[Site, list[K]] = {}
    for key, site in sites.items():
        keys.setdefault(site, []).append(key)
    check_sites(model, keys)
    found: dict[K, Tensor] = {}

    def keeper(site: Site, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def keep(x: Tensor) -> Tensor:
            if site == graph_from:
                x = _leaf(x, site)
            kept = _normalised(module, x) if site.point == "ln2_normalized" else x
            found.update(dict.fromkeys(keys[site], kept))
            return x

        return keep

    with contextlib.ExitStack() as hooks:
        for site in sorted(keys):
            module, is_input = _place(model, site)
            assert module is not None
            hooks.callback(_hooked(module, is_input, keeper(site, module)).remove)
        yield found


def _leaf(x: Tensor, site: Site) -> Tensor:
    """The tensor at a place as the graph's beginning."""
    if site.point != RESID_MID:
        return x.detach().requires_grad_(True)
    # The stream also goes by the module at which it is read: it must stay the same tensor.
    assert not x.requires_grad
    return x.requires_grad_(True)


@torch.no_grad()
def harvest(model: LanguageModel, tokens: Tensor, sites: Mapping[K, Site]) -> dict[K, Tensor]:
    """The tensor at each place [batch, position, width] for token ids [batch, position].

    Blocks above the last one are not run.
    """
    with tensors_at(model, sites) as found, _left_after(model.blocks[max(site.layer for site in sites.values())]):
        model.hidden(tokens)
    return found


@contextlib.contextmanager
def _left_after(block: nn.Module) -> Iterator[None]:
    """Inside, a pass is left once it has been through a block."""

    def stop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        raise _Stop

    handle = block.register_forward_hook(stop)
    try:
        with contextlib.suppress(_Stop):
            yield
    finally:
        handle.remove()


# ------------------------------------------------------------------------------------------------ going on


def needs_below(site: Site) -> bool:
    """Whether `hidden_from` has to be told what goes into the block."""
    return site.point not in (RESID_PRE, RESID_POST)


def with_below(sites: Iterable[Site]) -> dict[Site, Site]:
    """The places with what goes into their blocks, where a pass that goes on from them needs it."""
    sites = set(sites)
    return {site: site for site in sites | {site.before_block for site in sites if needs_below(site)}}


@torch.no_grad()
def resumes(model: LanguageModel, tokens: Tensor, sites: Iterable[Site]) -> bool:
    """Whether going on from each of these places (`hidden_from`) gives what the whole model gives."""
    sites = set(sites)
    with tensors_at(model, with_below(sites)) as found:
        whole = model.hidden(tokens)
    tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(whole.abs().max())
    return all(
        torch.allclose(
            hidden_from(model, tokens, site, found[site], found.get(site.before_block)), whole, atol=tolerance, rtol=0
        )
        for site in sites
    )


def hidden_from(model: LanguageModel, tokens: Tensor, site: Site, x: Tensor, below: Tensor | None = None) -> Tensor:
    """The final norm's output [batch, position, d_model] with x [batch, position, width] at a place.

    tokens: of the contexts; below: resid_pre of the same block, where `needs_below` says so. Lower blocks are not run.
    """
    if site.is_block_output:
        return model.hidden_above(tokens, site.layer, x)
    with replaced(model, site, lambda _: x, below), _from_block(model, site.layer, below if needs_below(site) else x):
        return model.hidden(tokens)


@contextlib.contextmanager
def replaced(
    model: LanguageModel, site: Site, changed: Callable[[Tensor], Tensor], below: Tensor | None = None
) -> Iterator[None]:
    """Inside, a pass goes on with changed(x) in place of what it meets at a place, x [batch, position, width].

    below: resid_pre of the same block; needed for resid_mid alone, and read off where it is not given.
    """
    assert site.point not in READ_ONLY
    check_sites(model, [site])
    with contextlib.ExitStack() as hooks:
        if site.point == RESID_MID:
            # The stream goes by the module that reads it: what attention adds is what can be changed.
            pre: list[Tensor] = [] if below is None else [below]
            if below is None:

                def note(x: Tensor) -> Tensor:
                    pre[:] = [x]
                    return x

                hooks.callback(_hooked(model.blocks[site.layer], True, note).remove)
            module, is_input = _place(model, Site(site.layer, "attn_out"))

            def change(added: Tensor) -> Tensor:
                return changed(pre[0] + added) - pre[0]

            assert module is not None
            hooks.callback(_hooked(module, is_input, change).remove)
        else:
            module, is_input = _place(model, site)
            assert module is not None
            hooks.callback(_hooked(module, is_input, changed).remove)
        yield


@contextlib.contextmanager
def _from_block(model: LanguageModel, layer: int, x: Tensor | None) -> Iterator[None]:
    """Inside, a pass begins with x going into block `layer`."""
    assert x is not None
    with contextlib.ExitStack() as stack:
        if layer:
            stack.enter_context(model.entered_above(layer - 1, x))
        else:
            stack.callback(_hooked(model.blocks[0], True, lambda _: x).remove)
        yield


# ------------------------------------------------------------------------------------------------ hooks


def _place(model: LanguageModel, site: Site) -> tuple[nn.Module | None, bool]:
    """The module at a place, and whether it is that module's input; only places inside a block need looking for."""
    found = Anatomy() if site.point in (RESID_PRE, RESID_POST) else anatomy(model, site.layer)
    return found.place(model.blocks[site.layer], site.point)


def _hooked(module: nn.Module, is_input: bool, passed: Callable[[Tensor], Tensor]) -> Any:
    """Have the tensor that goes into a module, or comes out of it, pass through a function; returns the handle."""
    if not is_input:

        def after(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (passed(output[0]), *output[1:])
            return passed(output)

        return module.register_forward_hook(after)

    def before(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if arguments:
            return (passed(arguments[0]), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": passed(keywords["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """x as a norm has it before its gain."""
    epsilon = next((float(value) for key, value in vars(norm).items() if "eps" in key), 1e-6)
    if isinstance(norm, nn.LayerNorm) or getattr(norm, "bias", None) is not None:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=epsilon)
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


# ------------------------------------------------------------------------------------------------ finding


@torch.no_grad()
def _found(model: LanguageModel, layer: int) -> Anatomy:
    """Find a block's parts in a pass, by their sum."""
    calls = _calls(model, layer)
    whole = calls.pop()
    before, after = whole.read, whole.gave
    if before is None or after is None:
        return Anatomy()
    tolerance = TOLERANCE.get(model.dtype, COARSE_TOLERANCE) * float(after.abs().max())

    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return a is not None and b is not None and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance)

    given = [call for call in calls if call.gave is not None and call.gave.shape == before.shape]
    parts = _parts(before, after, given)
    if parts is None or not equal(before + parts[0].gave + parts[1].gave, after):  # type: ignore[operator]
        return Anatomy()
    attention, feed_forward = parts
    mid = before + attention.gave  # type: ignore[operator]
    mid_norm = next((call.module for call in calls if equal(call.read, mid)), None)
    network, projection = _behind_norm(calls, feed_forward, equal), _behind_norm(calls, attention, equal)
    into = None if network is None else _holder(given, network, equal)
    norm = next((call.module for call in given if into is not None and equal(call.gave, into.read)), None)
    return Anatomy(
        attention.module, None if projection is None else projection.module, mid_norm, feed_forward.module,
        None if network is None else network.module, None if into is None else into.module, norm,
    )  # fmt: skip


def _parts(before: Tensor, after: Tensor, given: Sequence[_Call]) -> tuple[_Call, _Call] | None:
    """The two calls whose outputs add up to what a block adds, as nearly as any; of equal ones the first to finish."""
    added = after - before
    outputs = [call.gave for call in given if call.gave is not None]
    errors = [
        (float((added - first - second).abs().max()), i, j)
        for i, first in enumerate(outputs)
        for j, second in enumerate(outputs[i + 1 :], i + 1)
    ]
    if not errors:
        return None
    _, i, j = min(errors)
    return given[i], given[j]


def _holder(given: Sequence[_Call], inner: _Call, equal: Callable[[Any, Any], bool]) -> _Call | None:
    """The outermost module that gives what one inside it gives, for the same width of input."""
    holders = [
        call for call in given
        if equal(call.gave, inner.gave) and call.read is not None and call.read.shape == inner.gave.shape  # type: ignore[union-attr]
        and any(part is inner.module for part in call.module.modules())
    ]  # fmt: skip
    return holders[-1] if holders else None


def _behind_norm(calls: Sequence[_Call], added: _Call, equal: Callable[[Any, Any], bool]) -> _Call | None:
    """The product with a weight matrix whose output is added, or normed and then added."""
    if _has_matrix(added.module):
        return added
    return next((call for call in calls if _has_matrix(call.module) and equal(call.gave, added.read)), None)


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() == 2 for parameter in module.parameters(recurse=False))


def _calls(model: LanguageModel, layer: int) -> list[_Call]:
    """What every module of a block meets in a pass, in the order in which they finish; the block comes last."""
    calls: list[_Call] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
        read = arguments[0] if arguments else keywords.get("hidden_states")
        gave = output[0] if isinstance(output, tuple) and output else output
        calls.append(_Call(module, *(x.clone() if isinstance(x, Tensor) else None for x in (read, gave))))

    block = model.blocks[layer]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocabulary_size, (1, PROOF_TOKENS), generator=generator)
    with contextlib.ExitStack() as hooks:
        for module in block.modules():
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        hooks.enter_context(_left_after(block))
        model.hidden(tokens)
    return calls
