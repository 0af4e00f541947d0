"""Sparse autoencoders (SAEs): residuals in, sparse feature activations and decoder rows out.

Read and written in the SAELens v6 format: a folder with `cfg.json` and `sae_weights.safetensors`. What a warehouse
needs beyond that (norm median, activation quartiles, quality figures) lies beside it in `cfg.json` under
`metadata.elw` and in `elw_statistics.safetensors`, where other loaders ignore it.

No pickle is ever read. Anything else than what is described here is refused with what was expected and found.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from energy_lens.warehouse.errors import ElwError, UsageError

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
STATISTICS = "elw_statistics.safetensors"

#: hook_name of a block's output in TransformerLens and SAELens, the only hook point supported so far.
RESID_POST = re.compile(r"blocks\.([0-9]{1,4})\.hook_resid_post")


class SparseActivations(NamedTuple):
    """Activations of n tokens, K slots each; a slot whose value is 0 is empty."""

    values: Tensor  #: [n, K] float, >= 0
    indices: Tensor  #: [n, K] int64, the features


@dataclass
class SparseAutoencoder:
    """A TopK SAE: h = (x − b_dec)·W_enc + b_enc, a = relu(h) where h is among its k largest, x̂ = a·W_dec + b_dec."""

    layer: int
    k: int
    W_enc: Tensor  #: [d_model, d_sae]
    b_enc: Tensor  #: [d_sae]
    W_dec: Tensor  #: [d_sae, d_model]; row j is d_j, what one unit of feature j adds to x
    b_dec: Tensor  #: [d_model]
    norm_median: float | None = None  #: median ‖x‖ over training tokens; None: calibrate before use
    quartiles: Tensor | None = None  #: [d_sae, 3] of each feature's active values; NaN where it hardly fired
    mean: Tensor | None = None  #: [d_model] mean x over included training tokens: what mean-ablation puts in
    model_name: str = ""
    sha256: str = ""  #: of the weights file and of what the config says about using it
    source: str = ""  #: where it was loaded from
    metadata: dict[str, Any] = field(default_factory=dict)  #: further entries of metadata.elw

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"

    @cached_property
    def _encoder_bias(self) -> Tensor:
        """[d_sae] b_enc − b_dec·W_enc, so that x need not be centred first."""
        return self.b_enc - self.b_dec @ self.W_enc

    @cached_property
    def encoder_rows(self) -> Tensor:
        """[d_sae, d_model] W_enc transposed; row j is the direction that feature j reads."""
        return self.W_enc.T.contiguous()

    def encode(self, x: Tensor) -> SparseActivations:
        """Activations of residuals x [n, d_model]."""
        h = torch.addmm(self._encoder_bias, x, self.W_enc)
        values, indices = h.topk(self.k, dim=-1, sorted=False)
        return SparseActivations(values.relu_(), indices)

    def decode(self, activations: SparseActivations) -> Tensor:
        """x̂ [n, d_model]."""
        return weighted_rows(activations, self.W_dec) + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """x̂ [n, d_model] of residuals x [n, d_model]."""
        return self.decode(self.encode(x))

    def facts(self, norm_median: float) -> dict[str, Any]:
        """Columns of the table `saes`; norm_median is the one that the run uses."""
        figures = ("l0", "fvu", "cosine", "dead_share")
        return {
            "layer": self.layer, "sae_sha256": self.sha256, "source": self.source, "architecture": "topk",
            "d_sae": self.d_sae, "k": self.k, "norm_median": norm_median,
            **{name: self.metadata.get(name) for name in figures}, "metadata": json.dumps(self.metadata),
        }  # fmt: skip

    def to(self, dtype: torch.dtype) -> SparseAutoencoder:
        """A copy in another precision."""
        tensors = {name: getattr(self, name).to(dtype) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        kept = ("norm_median", "quartiles", "mean", "model_name", "sha256", "source", "metadata")
        return SparseAutoencoder(self.layer, self.k, **tensors, **{name: getattr(self, name) for name in kept})


def weighted_rows(activations: SparseActivations, rows: Tensor) -> Tensor:
    """Σ_j a_j·rows_j for each token: [n, d] from rows [d_sae, d]."""
    return torch.nn.functional.embedding_bag(
        activations.indices, rows, per_sample_weights=activations.values.to(rows.dtype), mode="sum"
    )


# ------------------------------------------------------------------------------------------------ files


def save_sae(sae: SparseAutoencoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write an SAE in SAELens v6 format, the weights in `dtype`; the folder is made, an SAE in it replaced.

    Raises ElwError when a number does not fit in `dtype`, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    weights = {name: getattr(sae, name).to(dtype).contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    statistics = {} if sae.quartiles is None else {"activation_quartiles": sae.quartiles.to(dtype).contiguous()}
    too_large = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    too_large += [name for name, tensor in statistics.items() if torch.isinf(tensor).any()]
    if too_large:
        raise ElwError(f"{folder}: {too_large[0]} holds numbers that {dtype} cannot: write the SAE in float32.")
    config = {
        "architecture": "topk",
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "dtype": str(dtype).removeprefix("torch."),
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "model_name": sae.model_name,
            "hook_name": sae.hook_name,
            "prepend_bos": False,
            "elw": {"norm_median": sae.norm_median, **sae.metadata},
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS)
        (folder / STATISTICS).unlink(missing_ok=True)  # quartiles of an SAE that was here before
        if statistics:
            save_file(statistics, folder / STATISTICS)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ElwError(f"{folder} cannot be written ({error}): choose another folder.") from error


def load_sae(folder: Path) -> SparseAutoencoder:
    """Read an SAE folder in SAELens v6 format into float32.

    Raises UsageError, naming what was expected and what was found, for anything that is not exactly that.
    """
    config = _read_config(folder)
    d_in, d_sae, k = (_positive_integer(config, key, folder) for key in ("d_in", "d_sae", "k"))
    rescale = _boolean(config, "rescale_acts_by_decoder_norm", False, folder)
    apply_b_dec_to_input = _boolean(config, "apply_b_dec_to_input", True, folder)
    metadata = config["metadata"]
    hook_name = str(metadata.get("hook_name"))
    match = RESID_POST.fullmatch(hook_name)
    if not match:
        raise UsageError(
            f"{folder / CONFIG}: hook_name is {hook_name!r}; a block's output, blocks.N.hook_resid_post, is expected."
        )
    own = dict(metadata["elw"])
    norm_median = _norm_median(own.pop("norm_median", None), folder)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    weights = _read_tensors(folder / WEIGHTS, shapes)
    if rescale:
        norm = weights["W_dec"].norm(dim=1)
        weights["W_enc"] *= norm
        weights["b_enc"] *= norm
        weights["W_dec"] /= norm.where(norm > 0, 1.0)[:, None]  # a row of zeros stays one
    if not apply_b_dec_to_input:
        weights["b_enc"] += weights["b_dec"] @ weights["W_enc"]
    quartiles = None
    if (folder / STATISTICS).exists():
        statistics = _read_tensors(folder / STATISTICS, {"activation_quartiles": (d_sae, 3)}, finite=False)
        quartiles = statistics["activation_quartiles"]
    # The same weights with another k are another SAE: their activations must not end up in one run.
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes())
    digest.update(json.dumps([min(k, d_sae), apply_b_dec_to_input, rescale]).encode())
    return SparseAutoencoder(
        layer=int(match[1]),
        k=min(k, d_sae),
        **weights,
        norm_median=norm_median,
        quartiles=quartiles,
        model_name=str(metadata.get("model_name") or ""),
        sha256=digest.hexdigest(),
        source=str(folder),
        metadata=own,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """The config, its `metadata` and `metadata.elw` being objects."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise UsageError(f"{folder} is not an SAE folder: one with {CONFIG} and {WEIGHTS} is expected.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no {CONFIG}: an SAE in SAELens v6 format is expected.") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not readable JSON ({error}): an SAE in SAELens v6 format is expected.") from error
    config = _object(config, "the file", path)
    expected = {"architecture": "topk", "normalize_activations": "none", "reshape_activations": "none"}
    for key, value in expected.items():
        found = config.get(key) or ("none" if key != "architecture" else None)
        if found != value:
            raise UsageError(f"{path}: {key} is {found!r}; {value!r} is expected.")
    config["metadata"] = _object(config.get("metadata") or {}, "metadata", path)
    config["metadata"]["elw"] = _object(config["metadata"].get("elw") or {}, "metadata.elw", path)
    if config["metadata"].get("prepend_bos"):
        raise UsageError(f"{path}: prepend_bos is true; false is expected: an SAE trained without a BOS token.")
    return config


def _object(value: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {what} is a {type(value).__name__}; an object, as in SAELens v6, is expected.")
    fields: dict[str, Any] = value
    return fields


def _boolean(config: dict[str, Any], key: str, default: bool, folder: Path) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{folder / CONFIG}: {key} is {value!r}; true or false is expected.")
    return value


def _norm_median(value: Any, folder: Path) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"{folder / CONFIG}: norm_median is {value!r}; a positive number or null is expected.")
    return float(value)


def _positive_integer(config: dict[str, Any], key: str, folder: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{folder / CONFIG}: {key} is {value!r}; a positive integer is expected.")
    return value


def _read_tensors(path: Path, shapes: dict[str, tuple[int, ...]], finite: bool = True) -> dict[str, Tensor]:
    """float32 tensors of exactly these names and shapes from a safetensors file."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist: an SAE folder is expected to hold {CONFIG} and {WEIGHTS}.") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): a whole safetensors file is expected; copy it again."
        ) from error
    for name, shape in shapes.items():
        if name not in tensors:
            held = ", ".join(sorted(tensors)) or "nothing"
            raise UsageError(f"{path} holds {held}; a tensor {name} is expected.")
        found = tuple(tensors[name].shape)
        if found != shape:
            raise UsageError(f"{path}: {name} has shape {found}; {shape} is expected.")
        tensors[name] = tensors[name].float()
        if finite and not torch.isfinite(tensors[name]).all():
            raise UsageError(f"{path}: {name} holds NaN or infinity; finite numbers are expected: copy it again.")
    return {name: tensors[name] for name in shapes}


# ------------------------------------------------------------------------------------------------ which SAEs


def shipped_folder(model_name: str, layer: int) -> Path:
    """Where the package keeps its own SAE for a layer of a built-in model."""
    return Path(__file__).parent / "shipped" / model_name / f"layer_{layer}"


def shipped_layers(model_name: str) -> list[int]:
    """Layers of a model that the package has an SAE for."""
    if Path(model_name).name != model_name:
        return []  # a path would lead out of the package
    folder = shipped_folder(model_name, 0).parent
    return sorted(int(path.name.removeprefix("layer_")) for path in folder.glob("layer_*"))


def sae_folders(given: Path) -> list[Path]:
    """The SAE folders that a path means: itself, or its subfolders that hold an SAE.

    Raises UsageError when there is none.
    """
    if (given / CONFIG).exists() or not given.is_dir():
        return [given]
    found = sorted(path.parent for path in given.glob(f"*/{CONFIG}"))
    if not found:
        raise UsageError(
            f"{given} holds no SAE: a folder with {CONFIG} and {WEIGHTS}, or one of such folders, is expected."
        )
    return found
