"""A tuned lens' affine maps and their file: a path in, the map of each layer out, and the other way round.

x ↦ A·x + b brings the residual of a middle layer to where the model's last steps can read it (Belrose et al. 2023,
arXiv 2303.08112). `training.lenses` fits the maps, `lenses.TunedLens` reads with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.shipped import FOLDER
from energy_lens.warehouse.files import whole

#: What the file's header says that it is.
FORMAT = "elw tuned lens 1"


@dataclass(frozen=True)
class Translator:
    """x ↦ A·x + b of one layer."""

    weight: Tensor  #: Aᵀ [d_model, d_model] float32
    bias: Tensor  #: b [d_model] float32

    def __call__(self, x: Tensor) -> Tensor:
        """A·x + b of residuals x [n, d_model], in their precision; the product is float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.addmm(self.bias.to(wide), x.to(wide), self.weight.to(wide)).to(x.dtype)


@dataclass(frozen=True)
class Translators:
    """The maps of a model's layers."""

    by_layer: Mapping[int, Translator]
    model_name: str
    sha256: str = ""  #: of the file; empty for maps that were not saved
    source: str = ""  #: where they were loaded from
    metadata: Mapping[str, Any] = field(default_factory=dict)  #: how they were fitted, and held-out figures

    def of(self, layer: int) -> Translator:
        return self.by_layer[layer]

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:
        """Raises UsageError unless there is a map of the model's width for every layer."""
        for layer in layers:
            if layer not in self.by_layer:
                raise UsageError(
                    f"{self.source} has no map for layer {layer}, only for {sorted(self.by_layer)}: fit one with "
                    "elw lens train, or leave tuned_lens out (--energies)."
                )
            if len(self.of(layer).bias) != model.d_model:
                raise UsageError(
                    f"{self.source} maps residuals of width {len(self.of(layer).bias)}, and {model.name} has "
                    f"{model.d_model}: give one that was fitted for this model (--lens)."
                )


def shipped_lens(model_name: str) -> Path:
    """Where the package keeps its own tuned lens for a built-in model, if it has one."""
    return FOLDER / Path(model_name).name / "tuned_lens.safetensors"


def load_translators(path: Path) -> Translators:
    """Read the maps of a file that `save_translators` wrote. Raises UsageError when it is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"{path} does not exist: give a tuned lens made by elw lens train (--lens).")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UsageError(f"{path} is no tuned lens: give a file made by elw lens train (--lens).")
            about = json.loads(header["about"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
        by_layer = {
            layer: Translator(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in about["layers"]
        }
        data = path.read_bytes()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): copy it again.") from error
    for layer, translator in by_layer.items():
        weight, bias = translator.weight, translator.bias
        if weight.shape != (len(bias), len(bias)) or not weight.isfinite().all() or not bias.isfinite().all():
            raise UsageError(f"{path} is damaged (the map of layer {layer}): copy it again.")
    return Translators(by_layer, about["model_name"], hashlib.sha256(data).hexdigest(), str(path), about["metadata"])


def save_translators(translators: Translators, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the maps to a file, whole or not at all, in `dtype`."""
    from safetensors.torch import save

    layers = sorted(translators.by_layer)
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        translator = translators.of(layer)
        tensors[f"{layer}.weight"] = translator.weight.to(dtype).contiguous()
        tensors[f"{layer}.bias"] = translator.bias.to(dtype)
    about = {"model_name": translators.model_name, "layers": layers, "metadata": translators.metadata}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as (scratch,):
            scratch.write_bytes(save(tensors, {"format": FORMAT, "about": json.dumps(about)}))
    except OSError as error:
        raise ElwError(f"{path} cannot be written ({error.strerror}): choose another --output.") from error
