"""A model's blocks in, the same blocks fused by torch.compile out, where that pays and a C++ compiler is at hand.

A block's many small steps (norms, rotations, gates) read and write its residuals a dozen times; fused they do so once
or twice, and the numbers agree to rounding. Compiling takes half a minute, or some seconds when the result is on disk
from before, so that a short run is better off without; a mark in the cache tells which of the two it will be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from energy_lens.ingest.model.language_model import LanguageModel, forwards_of, give_back
from energy_lens.ingest.model.loading import cache_folder
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.model.resolving import first_line

#: What --compile can be.
CHOICES = ("auto", "on", "off")

#: Tokens from which on compiling saves more time than it takes, and from which on where it was done before.
WORTH_TOKENS, WORTH_TOKENS_AGAIN = 50_000, 10_000


def cpp_compiler() -> str | None:
    """The C++ compiler that torch would call, if there is one."""
    named = os.environ.get("CXX")
    return next((found for name in ([named] if named else ["g++", "clang++"]) if (found := shutil.which(name))), None)


def pays(model: LanguageModel, shape: tuple[int, int], lowest_layer: int, n_tokens: int) -> bool:
    """Whether compiling saves more time than it takes, for so many tokens in batches of that shape."""
    was_done = n_tokens >= WORTH_TOKENS_AGAIN and _mark(model, shape, lowest_layer).exists()
    return was_done or n_tokens >= WORTH_TOKENS


def compile_blocks(model: LanguageModel, shape: tuple[int, int], lowest_layer: int) -> str | None:
    """Have the blocks fused for batches of that shape (contexts, tokens of each); others are read as before.

    lowest_layer: above which gradients go back. Returns why nothing was changed, or None when the blocks are fused.
    """
    compiler = cpp_compiler()
    if compiler is None:
        return "there is no C++ compiler (g++ or clang++)"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    functorch.donated_buffer = False  # a graph is gone back through more than once: for each energy and each probe
    inductor.cpp.cxx = (None, compiler)
    # One for blocks with a graph and one for those without, of every kind of block that a model alternates.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * model.n_layers)
    before = forwards_of(model.blocks)
    for block in model.blocks:
        vars(block)["forward"] = _fused_for(shape, block.forward, model)
    try:
        _try_out(model, shape, lowest_layer)
    except Exception as error:  # whatever a compiler, a cache or a model's code may come up with
        give_back(model.blocks, before)
        return f"torch.compile failed ({first_line(error)})"
    with contextlib.suppress(OSError):
        mark = _mark(model, shape, lowest_layer)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return None


def _mark(model: LanguageModel, shape: tuple[int, int], lowest_layer: int) -> Path:
    """A file that is there when these very blocks were compiled before."""
    facts = [
        torch.__version__, torch.backends.cpu.get_cpu_capability(), cpp_compiler(), model.sha256, str(model.dtype),
        model.config._attn_implementation,
        *shape, lowest_layer,
    ]  # fmt: skip
    return cache_folder() / "compiled" / "marks" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _fused_for(shape: tuple[int, int], eager: Callable[..., Any], model: LanguageModel) -> Callable[..., Any]:
    fused = torch.compile(eager, dynamic=False)
    config = model.config
    attention = config._attn_implementation

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Who reads inside a block's attention wants its own code to run.
        is_own = config._attn_implementation == attention
        return (fused if is_own and tuple(x.shape[:2]) == shape else eager)(x, *args, **kwargs)

    return forward


def _try_out(model: LanguageModel, shape: tuple[int, int], lowest_layer: int) -> None:
    """Run a batch forward and back, which compiles. Raises what compiling raises."""
    with torch.enable_grad(), residual_stream(model, [lowest_layer], graph=True) as residuals:
        hidden = model.hidden(model.any_tokens(*shape))
    if hidden.requires_grad:
        torch.autograd.grad(hidden, residuals[lowest_layer], torch.ones_like(hidden))
