"""A GGUF file and the configuration that transformers read from it in, a sentence where they say different things out.

transformers carries over what it knows. What it does not know it leaves at a default, without a word: a model whose
rotations or logits are others than those of the file would be read, and every number about it would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from energy_lens.errors import ElwError

#: Keys of a file, after its architecture, and what configurations call the same number. Whoever adds one raises
#: `converted.CONVERSION`, so that copies that were made without looking at it are made anew.
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "rope.freq_base": ("rope_theta", "rotary_emb_base"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "rope.scaling.factor": ("factor",),
}

#: Values of a key with which it changes nothing.
NEUTRAL = {"rope.scaling.factor": (0.0, 1.0), "embedding_scale": (1.0,), "residual_scale": (1.0,)}

#: A tensor that holds a factor for every rotation, and the kinds of rotation that come with one.
ROTATIONS, WITH_ROTATIONS = "rope_freqs.weight", ("llama3", "longrope", "yarn")


def check_metadata(path: Path, config: Any) -> None:
    """Raises ElwError, naming the key, where the configuration [a transformers one] is not what the file says."""
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = str(_value(reader, "general.architecture") or "")
    entries = dict(_entries(config.to_dict()))
    for key, names in NUMBERS.items():
        said = _value(reader, f"{architecture}.{key}")
        if not isinstance(said, int | float) or said in NEUTRAL.get(key, ()):
            continue
        read = [value for name in names for value in entries.get(name, ())]
        if not any(math.isclose(value, said, rel_tol=1e-4) for value in read):
            found = f"as {read[0]:g}" if read else "not at all"
            raise ElwError(
                f"{path} says {architecture}.{key} = {said:g}, which transformers reads {found}: the model would be "
                "another one. Give it as a folder of safetensors."
            )
    if scale := _value(reader, f"{architecture}.logit_scale"):
        read = [*entries.get("logit_scale", ()), *(1 / value for value in entries.get("logits_scaling", ()) if value)]
        read += list(entries.get("logits_scaling", ()))  # llama.cpp keeps Granite's divisor under that name
        if not any(math.isclose(value, scale, rel_tol=1e-4) for value in read):
            raise ElwError(
                f"{path} says {architecture}.logit_scale = {scale:g}, which transformers does not read: the model "
                "would be another one. Give it as a folder of safetensors."
            )
    kinds = [value for name, value in _words(config.to_dict()) if name in ("rope_type", "type")]
    for tensor in reader.tensors:
        if tensor.name == ROTATIONS and (tensor.data != 1).any() and not set(kinds) & set(WITH_ROTATIONS):
            raise ElwError(
                f"{path} holds {ROTATIONS}, which transformers does not read: the model would be another one. Give it "
                "as a folder of safetensors."
            )


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """(name, all numbers of that name) of a configuration and what is nested in it."""
    numbers: dict[str, list[float]] = {}
    waiting: list[Mapping[str, Any]] = [config]
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, Mapping):
                waiting.append(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, []).append(float(value))
    yield from ((name, tuple(values)) for name, values in numbers.items())


def _words(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _words(value)
        elif isinstance(value, str):
            yield name, value
