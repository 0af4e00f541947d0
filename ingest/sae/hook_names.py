"""A hook point's name in, the place that it means out: as TransformerLens and SAELens write it, or Hugging Face."""

from __future__ import annotations

import re

from energy_lens.ingest.model.sites import HOOKS, RESID_POST, Site

#: A block's name in Hugging Face models, which is what sparsify names a folder.
BLOCK = re.compile(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks)\.([0-9]{1,4})")

#: TransformerLens' names: those of `sites`, and what its newer bridge calls the same.
_LENS = {name: point for point, name in HOOKS.items()} | {"hook_out": "resid_post", "hook_in": "resid_pre"}

_LENS_NAME = re.compile(r"blocks\.([0-9]{1,4})\.((?:[a-z0-9]+\.)?hook_[a-z_]+)")

#: Hugging Face's names of modules inside a block, by what is meant of them, and the place.
_ATTENTION, _PROJECTION = r"(?:self_attn|self_attention|attn|attention)", r"(?:o_proj|c_proj|out_proj|dense)"
_MODULES = (
    (r"(?:\.output)?", RESID_POST),
    (r"\.input", "resid_pre"),
    (rf"\.{_ATTENTION}(?:\.{_PROJECTION})?(?:\.output)?", "attn_raw"),
    (rf"\.{_ATTENTION}\.{_PROJECTION}\.input", "z"),
    (r"\.mlp\.input|\.pre_feedforward_layernorm(?:\.output)?", "mlp_in"),
    (r"\.mlp(?:\.(?:down_proj|c_proj|dense_4h_to_h))?(?:\.output)?", "mlp_raw"),
    (r"\.post_feedforward_layernorm(?:\.output)?", "mlp_out"),
)


def site_of(name: str) -> Site | None:
    """The place that a hook point's name means; None for a name that is not known."""
    if match := _LENS_NAME.fullmatch(name):
        point = _LENS.get(match[2])
        return None if point is None else Site(int(match[1]), point)
    for ending, point in _MODULES:
        if match := re.fullmatch(f"{BLOCK.pattern}(?:{ending})", name):
            return Site(int(match[1]), point)
    return None


#: What to say is expected.
EXPECTED = (
    "blocks.N.hook_resid_post, .hook_resid_pre, .hook_resid_mid, .hook_attn_out, .hook_mlp_out or .attn.hook_z, or the "
    "module's name, such as model.layers.N or model.layers.N.mlp"
)
