"""A folder of Llama Scope in, its settings and tensors in the terms of SAELens out (He et al. 2024, arXiv 2410.20526).

  Llama3_1-8B-Base-L15R-8x/hyperparams.json
  Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors      encoder.weight, encoder.bias, decoder.weight, decoder.bias

The numbers are those of the authors' own reader (OpenMOSS/Language-Model-SAEs, `SparseAutoEncoder.from_config`):

  s = √d / mean ‖x‖ of the training data, where norm_activation is dataset-wise; else 1
  h = (x·W_enc + b_enc/s)·‖d‖, where sparsity_include_decoder_norm; else without ‖d‖
  a = h where h > θ     x̂ = a·d/‖d‖ + b_dec/s

so activations are in units of the residual stream. SAELens' reader has them s times as large, with decoder rows s times
as short, and leaves ‖d‖ out, which published files have trained with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from energy_lens.errors import UsageError

HYPERPARAMS = "hyperparams.json"

#: What the language model was, in a file of its own beside it.
MODEL_CONFIG = "lm_config.json"

#: Where the weights are, in the order in which the authors' reader looks.
WEIGHTS = (
    "sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors", "final.safetensors",
)  # fmt: skip

#: Activation functions as SAELens names the architecture.
ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}

#: Its normalisations as SAELens names them: dataset-wise is a constant, inference says that it is folded in.
NORMALISATIONS = {
    "none": "none", "inference": "none", "dataset-wise": "none", "token-wise": "constant_norm_rescale",
}  # fmt: skip

#: A folder as it was published, and the model that all of these are of.
RELEASE = re.compile(r"Llama3_1-8B-Base-L[0-9]{1,2}(?:R|A|M|TC)-[0-9]+x")
RELEASED_MODEL = "meta-llama/Llama-3.1-8B"


@dataclass(frozen=True)
class LlamaScope:
    """What a folder's files say about using its tensors."""

    weights: Path
    architecture: str
    normalisation: str
    hook_point: str
    d_model: int
    d_sae: int
    k: int
    threshold: float
    input_scale: float  #: s of what is read
    output_scale: float  #: s of what is made up again; the same, unless the files say otherwise
    unit_rows: bool  #: whether a feature's activation is counted in lengths of its decoder row
    decoder_bias: bool
    subtracts_bias: bool
    model_name: str
    bos: bool | None

    def as_saelens(self) -> dict[str, Any]:
        """A config of SAELens v6 for the tensors of `in_terms_of_saelens`."""
        return {
            "architecture": self.architecture, "d_in": self.d_model, "d_sae": self.d_sae, "k": self.k,
            "apply_b_dec_to_input": self.subtracts_bias, "normalize_activations": self.normalisation,
            "metadata": {"hook_name": self.hook_point, "model_name": self.model_name, "prepend_bos": self.bos},
        }  # fmt: skip

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that the file must hold."""
        wide: dict[str, tuple[int, ...]] = {
            "encoder.weight": (self.d_sae, self.d_model), "encoder.bias": (self.d_sae,),
            "decoder.weight": (self.d_model, self.d_sae),
        }  # fmt: skip
        return wide | ({"decoder.bias": (self.d_model,)} if self.decoder_bias else {})

    @property
    def identity(self) -> list[Any]:
        """The settings that change activations and that a config of SAELens has no words for."""
        return ["llama scope", self.threshold, self.input_scale, self.output_scale, self.unit_rows, self.subtracts_bias]

    def in_terms_of_saelens(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W_enc [d_model, d_sae], b_enc [d_sae], W_dec [d_sae, d_model], b_dec [d_model] and, for jumprelu, θ [d_sae].

        s, and the lengths of decoder rows where they count, are multiplied in.
        """
        W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
        b_enc = tensors["encoder.bias"] / self.input_scale
        W_dec = W_dec * (self.input_scale / self.output_scale)
        if self.unit_rows:
            lengths = W_dec.norm(dim=1)
            W_enc, b_enc = W_enc * lengths, b_enc * lengths
            W_dec = W_dec / lengths.where(lengths > 0, 1.0)[:, None]  # a row of zeros stays one
        b_dec = tensors["decoder.bias"] / self.output_scale if self.decoder_bias else W_dec.new_zeros(self.d_model)
        named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        jumps = self.architecture == "jumprelu"
        return named | ({"threshold": torch.full_like(b_enc, self.threshold)} if jumps else {})


def read_settings(folder: Path) -> LlamaScope:
    """What a folder's hyperparams.json says.

    Raises UsageError, naming what was expected and what was found, for settings that have no meaning here.
    """
    path = folder / HYPERPARAMS
    said = _object(path)
    _refuse_others(said, path)
    architecture = _chosen(said, "act_fn", ARCHITECTURES, path, default="relu")
    threshold = _number(said.get("jump_relu_threshold", 0.0), "jump_relu_threshold", path, least=0)
    if architecture == "topk" and threshold > 0:
        architecture = "jumprelu"  # as the authors use it: trained by its k, read by a threshold
    d_model = _count(said, "d_model", path)
    d_sae = _count(said, "d_sae", path) if said.get("d_sae") is not None else 0
    d_sae = d_sae or d_model * _count(said, "expansion_factor", path)
    scales = (1.0, 1.0)
    if said.get("norm_activation", "token-wise") == "dataset-wise":
        scales = _scales(said.get("dataset_average_activation_norm"), d_model, path)
    decoder_bias = _flag(said, "use_decoder_bias", True, path)
    subtracts_bias = decoder_bias and _flag(said, "apply_decoder_bias_to_pre_encoder", True, path)
    if subtracts_bias and not math.isclose(*scales):
        raise UsageError(
            f"{path}: apply_decoder_bias_to_pre_encoder is true, and dataset_average_activation_norm differs between "
            "in and out, so that the bias has two sizes; one is expected."
        )
    model_name, released = _model_name(folder)
    return LlamaScope(
        weights=next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[2]),
        architecture=architecture,
        normalisation=_chosen(said, "norm_activation", NORMALISATIONS, path, default="token-wise"),
        hook_point=said["hook_point_in"],
        d_model=d_model,
        d_sae=d_sae,
        k=_count(said, "top_k", path) if architecture == "topk" else 1,
        threshold=threshold,
        input_scale=scales[0],
        output_scale=scales[1],
        unit_rows=_flag(said, "sparsity_include_decoder_norm", True, path),
        decoder_bias=decoder_bias,
        subtracts_bias=subtracts_bias,
        model_name=model_name,
        bos=True if released else None,
    )


def _refuse_others(said: Mapping[str, Any], path: Path) -> None:
    """Raises UsageError for what is no SAE of one hook point."""
    read, made = said.get("hook_point_in"), said.get("hook_point_out")
    if not isinstance(read, str):
        raise UsageError(
            f"{path}: hook_point_in is {_shown(read)}; a hook point is expected: blocks.N.hook_resid_post."
        )
    if made not in (None, read):
        raise UsageError(
            f"{path} is of a transcoder: it reads {_shown(read)} and makes up {_shown(made)}; an SAE of one hook point "
            "is expected."
        )
    if _flag(said, "use_glu_encoder", False, path):
        raise UsageError(f"{path}: use_glu_encoder is true, an encoder with a gate of its own; false is expected.")


def _model_name(folder: Path) -> tuple[str, bool]:
    """The model that an SAE is of, "" where nothing tells, and whether the folder is one that was published."""
    released = any(RELEASE.fullmatch(part) for part in folder.resolve().parts[-1:])
    if (folder / MODEL_CONFIG).exists():
        name = _object(folder / MODEL_CONFIG).get("model_name")
        if isinstance(name, str) and name:
            return name, released
    return RELEASED_MODEL if released else "", released


def _scales(norms: Any, d_model: int, path: Path) -> tuple[float, float]:
    """√d over the mean norm of the training data, of what is read and of what is made up."""
    what = "dataset_average_activation_norm"
    if not isinstance(norms, dict):
        raise UsageError(
            f"{path}: norm_activation is 'dataset-wise', and {what} is {_shown(norms)}; in and out needed."
        )
    read = _number(norms.get("in"), f"{what}.in", path)
    made = _number(norms.get("out"), f"{what}.out", path)
    return math.sqrt(d_model) / read, math.sqrt(d_model) / made


def _object(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not readable JSON: an SAE of Llama Scope is expected; copy it again.") from error
    if not isinstance(said, dict):
        raise UsageError(f"{path}: the file is a {type(said).__name__}; an object, as in Llama Scope, is expected.")
    return said


def _chosen(said: Mapping[str, Any], key: str, meanings: Mapping[str, str], path: Path, default: str) -> str:
    word = said.get(key, default)
    if not isinstance(word, str) or word.lower() not in meanings:
        raise UsageError(f"{path}: {key} is {_shown(word)}; one of {', '.join(map(repr, meanings))} is expected.")
    return meanings[word.lower()]


def _flag(said: Mapping[str, Any], key: str, default: bool, path: Path) -> bool:
    value = said.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{path}: {key} is {_shown(value)}; true or false is expected.")
    return value


def _count(said: Mapping[str, Any], key: str, path: Path) -> int:
    value = said.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{path}: {key} is {_shown(value)}; a positive integer is expected.")
    return value


def _number(value: Any, what: str, path: Path, least: float | None = None) -> float:
    """A finite number above 0, or from `least` on."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    if not fits or (value <= 0 if least is None else value < least):
        kind = "positive number" if least is None else f"number of {least:g} or more"
        raise UsageError(f"{path}: {what} is {_shown(value)}; a {kind} is expected.")
    return float(value)


def _shown(value: Any) -> str:
    """A value as a sentence can show it."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
