"""A model in, the same model with torch's fused attention out, where that is faster and proved to be the same.

The fused function never writes scores and weights of all pairs of tokens down. It saves some percent of a float32 pass
at 128 tokens; in bfloat16 the plain one is faster (measured). It knows no cap on scores and no sinks, which a model
would lose without a word: so a pass decides. Its backward pass cannot be differentiated again, which no reading needs.
"""

from __future__ import annotations

import torch

from energy_lens.ingest.model.language_model import LanguageModel

#: Tokens of the pass that decides, and how far its output may be off, relative to its largest number.
PROOF_TOKENS, TOLERANCE = 64, 1e-4


@torch.no_grad()
def use_flash(model: LanguageModel) -> bool:
    """Have a float32 model attend by torch's fused function from now on; returns whether it does."""
    module = model.module
    if model.dtype != torch.float32 or not getattr(module, "_supports_sdpa", False):
        return False
    before = model.config._attn_implementation
    if before == "sdpa":
        return True
    generator = torch.Generator().manual_seed(0)
    length = min(PROOF_TOKENS, model.window or PROOF_TOKENS)
    tokens = torch.randint(model.vocabulary_size, (2, length), generator=generator)
    plain = model.hidden(tokens)
    try:
        module.set_attn_implementation("sdpa")  # type: ignore[operator]
        fused = model.hidden(tokens)
    except Exception:  # a model's own code may refuse in any way
        fused = torch.full_like(plain, torch.nan)
    if torch.allclose(fused, plain, rtol=0, atol=TOLERANCE * float(plain.abs().max())):
        return True
    module.set_attn_implementation(before)  # type: ignore[operator]
    return False
