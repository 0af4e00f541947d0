"""An SAE's folder in, the SAE in float32 out: the formats of SAELens and sparsify, read (`saving` writes them).

SAELens v6  `cfg.json` and `sae_weights.safetensors`: standard, topk, jumprelu, gated. What a warehouse needs beyond
            that (norm median, activation quartiles, mean, quality figures) lies beside it in `cfg.json` under
            `metadata.elw` and in `elw_statistics.safetensors`, where other loaders ignore it. Checkpoints of training
            are read as the inference SAE that SAELens makes of them: batchtopk and matryoshka_batchtopk are jumprelu.
before v6   the same files with a flat `cfg.json`; read only.
Gemma Scope `params.npz` (`gemma_scope`); read only.
Llama Scope `hyperparams.json` and `checkpoints/final.safetensors` (`llama_scope`); read only.
sparsify    `cfg.json` and `sae.safetensors`, in a folder named after the module that it reads; topk only.

Of SAELens and sparsify transcoders too, plain and with a skip connection.

Constant factors (a gate's magnitude, decoder norms, a scale of the input, a bias that is not subtracted) are folded
into the weights when a folder is read. No pickle is ever read. Anything else than what is described here is refused
with what was expected and found.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.model.sites import READ_ONLY, Site
from energy_lens.ingest.sae.autoencoder import ARCHITECTURES, CENTRED, NORMALISATIONS, SparseAutoencoder
from energy_lens.ingest.sae.gemma_scope import PARAMS, load_gemma_scope
from energy_lens.ingest.sae.hook_names import BLOCK, EXPECTED, site_of
from energy_lens.ingest.sae.llama_scope import HYPERPARAMS, read_settings

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SPARSIFY_WEIGHTS = "sae.safetensors"
STATISTICS = "elw_statistics.safetensors"

#: What SAELens calls the formats that are written; a config without it counts as older there, and loses its metadata.
SAELENS_VERSION = "6.0.0"

#: The input times a constant that the file does not hold.
SCALED_INPUT = "expected_average_only_in"

#: Where a checkpoint of SAELens' training has that number.
#: What a factor on an SAE's input can be: it makes norms of a model's residuals about √d_model.
SCALES = (1e-9, 1e9)

ACTIVATION_SCALER = "activation_scaler.json"

#: Architectures of checkpoints: trained on the k·n largest of a batch, used with one threshold for all features.
BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")

#: What SAELens has beside these, and why it cannot be read.
OTHER_ARCHITECTURES = {
    "abstopk": "whose activations may be below 0",
    "matching_pursuit": "which chooses one feature after another, each by what the ones before it left",
    "temporal": "which reads the tokens before a token too",
}

#: SAELens' architectures of transcoders, by the activation rule that each has.
TRANSCODERS = {
    "transcoder": "standard", "skip_transcoder": "standard", "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip

#: What TransformerLens may do to a model's weights when it loads them. Only the first changes the residual stream, and
#: what blocks add to it: each token's mean is taken out. The others change numbers inside of blocks, and the logits.
CENTRES_RESIDUALS = "center_writing_weights"
CHANGES_WEIGHTS = ("fold_ln", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices")

#: Hook points in the residual stream, or at what is added to it.
WRITING = re.compile(r"(?:blocks\.[0-9]+\.)?hook_(?:resid_pre|resid_mid|resid_post|attn_out|mlp_out)")

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class _Description:
    """What a config says of an SAE, in the terms of SAELens v6."""

    architecture: str
    d_in: int
    d_sae: int
    k: int | None
    normalisation: str
    site: Site
    point_out: str | None = None  #: where a transcoder writes
    has_skip: bool = False
    d_out: int = 0  #: of a transcoder
    apply_b_dec_to_input: bool = True
    rescale_acts_by_decoder_norm: bool = False
    finetuned: bool = False  #: whether activations are multiplied by a tensor scaling_factor before decoding
    one_threshold: bool = False  #: whether the file holds a threshold that all features share, under topk_threshold
    centred: bool = False  #: whether the model's residuals were made to lack their mean over dimensions
    bos: bool | None = None
    model_name: str = ""
    elw_metadata: Mapping[str, Any] | None = None  #: metadata.elw

    @property
    def scaled(self) -> bool:
        """Whether the input is to be multiplied by a number that the weights do not hold."""
        return self.normalisation == SCALED_INPUT

    @property
    def normalised_by(self) -> str:
        """What is done to each token's residual, once constant factors are folded in."""
        return CENTRED if self.centred else "none" if self.scaled else self.normalisation


# ------------------------------------------------------------------------------------------------ reading


def load_sae(
    folder: Path,
    activation_scale: float | None = None,
    layer: int | None = None,
    corrections: Mapping[str, Any] | None = None,
) -> SparseAutoencoder:
    """Read an SAE folder into float32, its constant factors folded into the weights.

    activation_scale: the factor on the input of an SAE with normalize_activations = expected_average_only_in.
    layer: the block that it reads, for a folder that does not say.
    corrections: entries that its config lacks or has wrong, as SAELens' registry lists them.
    Raises UsageError, naming what was expected and what was found, for anything that is not exactly one of the formats.
    """
    if activation_scale is not None and not SCALES[0] <= activation_scale <= SCALES[1]:
        raise UsageError(
            f"{folder}: the activation scale is {activation_scale:g}; a number between {SCALES[0]:g} and {SCALES[1]:g} "
            "is expected (--activation-scale)."
        )
    if (folder / PARAMS).exists() and not (folder / CONFIG).exists():
        if activation_scale is not None:
            raise UsageError(f"{folder} is of Gemma Scope, whose input is not scaled: leave the activation scale out.")
        return load_gemma_scope(folder, layer)
    if (folder / HYPERPARAMS).exists() and not (folder / CONFIG).exists():
        return _load_llama_scope(folder, activation_scale, layer)
    config = _corrected(_read_config(folder), corrections or {})
    path = folder / CONFIG
    sparsify = "d_sae" not in config and ("expansion_factor" in config or "num_latents" in config)
    described = _describe_sparsify(config, folder, layer) if sparsify else _describe_saelens(config, path, layer)
    if described.scaled and activation_scale is None:
        activation_scale = _recorded_scale(folder)
    if described.scaled != (activation_scale is not None):
        raise UsageError(_scale_sentence(path, described.normalisation, activation_scale))
    weights_path = folder / (SPARSIFY_WEIGHTS if sparsify else WEIGHTS)
    weights = _sparsify_weights(weights_path, described) if sparsify else _saelens_weights(weights_path, described)
    identity = _identity(weights_path, described, activation_scale)
    return _made(folder, described, weights, weights_path, identity, activation_scale)


def _load_llama_scope(folder: Path, activation_scale: float | None, layer: int | None) -> SparseAutoencoder:
    if activation_scale is not None:
        raise UsageError(f"{folder} is of Llama Scope, whose files hold their scale: leave the activation scale out.")
    settings = read_settings(folder)
    described = _describe_saelens(settings.as_saelens(), folder / HYPERPARAMS, layer)
    with torch.no_grad():
        weights = settings.in_terms_of_saelens(_read_tensors(settings.weights, settings.shapes))
    identity = _identity(settings.weights, described, None, settings.identity)
    return _made(folder, described, weights, settings.weights, identity)


def _made(
    folder: Path,
    described: _Description,
    weights: dict[str, Tensor],
    weights_path: Path,
    identity: str,
    activation_scale: float | None = None,
) -> SparseAutoencoder:
    """The SAE of a file's tensors in SAELens' names, its factors folded in, with what lies beside it."""
    with torch.no_grad():
        folded = _folded(weights, described, activation_scale)
    for name, tensor in folded.items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{weights_path}: {name} leaves the range of float32 once its factors are multiplied in.")
    metadata = dict(described.elw_metadata or {})
    statistics = _read_statistics(folder, described)
    return SparseAutoencoder(
        layer=described.site.layer,
        k=described.k,
        **folded,
        point=described.site.point,
        point_out=described.point_out,
        architecture=described.architecture,
        normalisation=described.normalised_by,
        norm_median=_norm_median(metadata.pop("norm_median", None), folder / CONFIG),
        quartiles=statistics.get("activation_quartiles"),
        mean=statistics.get("mean"),
        bos=described.bos,
        model_name=described.model_name,
        sha256=identity,
        source=str(folder),
        metadata=metadata,
    )


def _identity(
    weights: Path, described: _Description, activation_scale: float | None, others: Sequence[Any] = ()
) -> str:
    """sha256 of the weights and of every setting that changes activations: another k is another SAE.

    others: settings of a format that SAELens has no words for.
    """
    settings: list[Any] = [described.k, described.apply_b_dec_to_input, described.rescale_acts_by_decoder_norm]
    further = [described.architecture, described.normalisation, activation_scale, described.finetuned]
    if further != ["topk", "none", None, False]:
        settings += further
    if not described.site.is_block_output or described.point_out is not None:
        settings += [described.site.point, described.point_out, described.has_skip]
    settings += [*([CENTRED] if described.centred else []), *others]
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def _folded(weights: dict[str, Tensor], described: _Description, activation_scale: float | None) -> dict[str, Tensor]:
    """The tensors of a SparseAutoencoder from those of a file [d_in, d_sae], which are changed in place."""
    W_enc, W_dec, b_dec = weights["W_enc"], weights["W_dec"], weights["b_dec"]
    threshold = weights.get("threshold")
    if described.architecture == "gated":
        magnitude = weights["r_mag"].exp()
        W_enc *= magnitude
        b_enc = weights["b_mag"]
        threshold = b_enc - magnitude * weights["b_gate"]
    else:
        b_enc = weights["b_enc"]
    if described.finetuned and "scaling_factor" in weights:
        W_dec *= weights["scaling_factor"][:, None]
    if described.one_threshold:
        threshold = weights["topk_threshold"].expand_as(b_enc)
    if activation_scale is not None:
        W_enc *= activation_scale
        W_dec /= activation_scale
        b_dec /= activation_scale
        if threshold is not None and described.rescale_acts_by_decoder_norm:
            threshold = threshold / activation_scale  # it is compared with what is multiplied by these shorter rows
    if described.rescale_acts_by_decoder_norm:
        norm = W_dec.norm(dim=1)
        W_enc *= norm
        b_enc *= norm
        W_dec /= norm.where(norm > 0, 1.0)[:, None]  # a row of zeros stays one
    if not described.apply_b_dec_to_input and described.point_out is None:
        b_enc = b_enc + b_dec @ W_enc
    folded = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if described.has_skip:
        folded["W_skip"] = weights["W_skip"]
    return folded if threshold is None else folded | {"threshold": threshold.contiguous()}


def _recorded_scale(folder: Path) -> float | None:
    """The factor on the input that a checkpoint of SAELens' training keeps beside it; None where there is none."""
    path = folder / ACTIVATION_SCALER
    if not path.exists():
        return None
    try:
        value = _object(json.loads(path.read_text(encoding="utf-8")), "the file", path).get("scaling_factor")
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not readable JSON ({_line(error)}): copy it again.") from error
    return _positive_number(value, "scaling_factor", path)


def _scale_sentence(path: Path, normalisation: str, activation_scale: float | None) -> str:
    if activation_scale is not None:
        return (
            f"{path}: normalize_activations is {normalisation!r}, and an activation scale was given: it belongs to "
            f"{SCALED_INPUT!r} alone."
        )
    return (
        f"{path}: normalize_activations is {SCALED_INPUT!r}, whose scale is not in the files: register the SAE with "
        "elw sae import --activation-scale (√d_in over the mean norm of its training data, or 1 if it is folded in)."
    )


# ------------------------------------------------------------------------------------------------ configs


def _read_config(folder: Path) -> dict[str, Any]:
    """The entries of a folder's config."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise UsageError(f"{folder} is not an SAE folder: one with {CONFIG} and {WEIGHTS} is expected.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"{folder} has no {CONFIG}: an SAE in SAELens v6 format is expected{pickled(folder)}."
        raise UsageError(message) from error
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(
            f"{path} is not readable JSON ({_line(error)}): an SAE in SAELens v6 format is expected."
        ) from error
    return _object(config, "the file", path)


def _corrected(config: dict[str, Any], corrections: Mapping[str, Any]) -> dict[str, Any]:
    """A config with these entries, which stand at its top before SAELens v6 and some of them under metadata since."""
    metadata = config.get("metadata")
    if not isinstance(metadata, dict) or not corrections:
        return {**config, **corrections}
    return {**config, **corrections, "metadata": {**metadata, **corrections}}


def _describe_saelens(config: dict[str, Any], path: Path, layer: int | None) -> _Description:
    config = _from_flat(config) if "metadata" not in config and _is_flat(config) else config
    named = config.get("architecture")
    architecture = TRANSCODERS.get(named, named) if isinstance(named, str) else named
    if one_threshold := named in BATCH_TOPK:
        architecture = "jumprelu"
    if architecture not in ARCHITECTURES:
        kind = OTHER_ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
        raise UsageError(
            f"{path}: architecture is {_shown(architecture)}{f', {kind}' if kind else ''}; "
            f"{_choice((*ARCHITECTURES, *TRANSCODERS))} is expected."
        )
    is_transcoder = named in TRANSCODERS
    normalisation = config.get("normalize_activations") or "none"
    if normalisation not in (*NORMALISATIONS, SCALED_INPUT):
        raise UsageError(
            f"{path}: normalize_activations is {_shown(normalisation)}; "
            f"{_choice((*NORMALISATIONS, SCALED_INPUT))} is expected."
        )
    if is_transcoder and normalisation != "none":
        raise UsageError(
            f"{path}: normalize_activations is {_shown(normalisation)} and the architecture {named!r}; 'none' is "
            "expected of a transcoder."
        )
    activation = config.get("activation_fn") or "relu"
    if activation not in (("relu", "topk") if architecture == "topk" else ("relu",)):
        raise UsageError(f"{path}: the activation function is {_shown(activation)}; 'relu' or 'topk' is expected.")
    d_in, d_sae = (_positive_integer(config, key, path) for key in ("d_in", "d_sae"))
    if normalisation == "layer_norm" and d_in == 1:
        raise UsageError(f"{path}: d_in is 1 and normalize_activations 'layer_norm'; two dimensions are expected.")
    rescale = _boolean(config, "rescale_acts_by_decoder_norm", False, path)
    if rescale and not (architecture == "topk" or one_threshold):
        raise UsageError(
            f"{path}: rescale_acts_by_decoder_norm is true and the architecture {architecture!r}; only 'topk' has it."
        )
    metadata = _object(config.get("metadata") or {}, "metadata", path)
    centred = _is_centred(metadata, path) and normalisation != "layer_norm"  # which takes the mean out by itself
    if centred and (is_transcoder or normalisation == "constant_norm_rescale"):
        raise UsageError(
            f"{path}: architecture is {_shown(named)}, normalize_activations {normalisation!r}, and the model was "
            f"loaded with {CENTRES_RESIDUALS}; an SAE with 'none', 'layer_norm' or {SCALED_INPUT!r} is expected beside "
            "it."
        )
    site = _site_of_hook(metadata, path, layer)
    if (reshape := config.get("reshape_activations") or "none") not in ("none", f"hook_{site.point}"):
        raise UsageError(
            f"{path}: reshape_activations is {_shown(reshape)}; 'none' is expected, or 'hook_z' of an SAE at hook_z."
        )
    if site.point in READ_ONLY and not is_transcoder:
        raise UsageError(
            f"{path}: hook_name is {_shown(metadata.get('hook_name'))}, where a norm's output is read and nothing can "
            "be put in its place: a transcoder may read there, and an SAE is expected elsewhere."
        )
    return _Description(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=min(_positive_integer(config, "k", path), d_sae) if architecture == "topk" else None,
        normalisation=normalisation,
        site=site,
        point_out=_point_out(metadata, site, path) if is_transcoder else None,
        has_skip=is_transcoder and "skip" in str(named),
        d_out=_positive_integer(config, "d_out", path) if is_transcoder else 0,
        apply_b_dec_to_input=_boolean(config, "apply_b_dec_to_input", not is_transcoder, path),
        rescale_acts_by_decoder_norm=rescale,
        finetuned=_boolean(config, "finetuning_scaling_factor", False, path),
        one_threshold=one_threshold,
        centred=centred,
        bos=None if metadata.get("prepend_bos") is None else _boolean(metadata, "prepend_bos", False, path),
        model_name=str(metadata.get("model_name") or ""),
        elw_metadata=_object(metadata.get("elw") or {}, "metadata.elw", path),
    )


def _is_flat(config: Mapping[str, Any]) -> bool:
    """Whether it is a config from before SAELens v6."""
    return any(key in config for key in ("hook_name", "hook_point"))


def _from_flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config from before SAELens v6 in the terms of v6, with the defaults that it had then."""
    names = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    flat = {names.get(key, key): value for key, value in config.items()}
    v6 = {"architecture": "standard", **flat}
    arguments = flat.get("activation_fn_kwargs")
    if flat.get("activation_fn") == "topk":
        v6["architecture"] = "topk"
        v6["k"] = arguments.get("k") if isinstance(arguments, dict) else None
        if isinstance(arguments, dict) and arguments.get("postact_fn") is not None:
            v6["activation_fn"] = {"topk": arguments}  # another function than relu after it: refused as what it is
    if isinstance(flat.get("normalize_activations"), bool):
        v6["normalize_activations"] = SCALED_INPUT if flat["normalize_activations"] else "none"
    v6["finetuning_scaling_factor"] = flat.get("finetuning_scaling_factor") or False
    v6["metadata"] = {
        "model_name": flat.get("model_name"),
        "hook_name": flat.get("hook_name"),
        "prepend_bos": flat.get("prepend_bos", True),
        "hook_name_out": flat.get("hook_name_out"),
        "hf_hook_name": flat.get("hf_hook_name"),
        "model_from_pretrained_kwargs": flat.get("model_from_pretrained_kwargs"),
    }
    return v6


def _describe_sparsify(config: Mapping[str, Any], folder: Path, layer: int | None) -> _Description:
    path = folder / CONFIG
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise UsageError(f"{path}: activation is {_shown(activation)}; 'topk' is expected.")
    if _boolean(config, "signed", False, path):
        raise UsageError(f"{path}: signed is true; false is expected: an SAE with activations of 0 or more.")
    is_transcoder = _boolean(config, "transcode", False, path)
    has_skip = _boolean(config, "skip_connection", False, path)
    if has_skip and not is_transcoder:
        raise UsageError(f"{path}: skip_connection is true, and transcode is not; only a transcoder may skip.")
    d_in, k = (_positive_integer(config, key, path) for key in ("d_in", "k"))
    if config.get("num_latents", 0) in (0, None):
        d_sae = d_in * _positive_integer(config, "expansion_factor", path)
    else:
        d_sae = _positive_integer(config, "num_latents", path)
    metadata = _object(config.get("metadata") or {}, "metadata", path)
    if metadata.get("hook_name") is not None:
        site = _site_of_hook(metadata, path, layer)
    else:
        site = _site_of_folder(folder, layer)
    point_out = None
    if is_transcoder:
        if site.point != "mlp_raw":
            raise UsageError(
                f"{path}: transcode is true, and it is of {site.hook_name}; a feed-forward network is expected, whose "
                "input and output it takes, in a folder such as layers.15.mlp."
            )
        site, point_out = Site(site.layer, "mlp_in"), site.point
    return _Description(
        architecture="topk",
        d_in=d_in,
        d_sae=d_sae,
        k=min(k, d_sae),
        normalisation="none",
        site=site,
        point_out=point_out,
        has_skip=has_skip,
        d_out=d_in if is_transcoder else 0,
        model_name=str(metadata.get("model_name") or ""),
        elw_metadata=_object(metadata.get("elw") or {}, "metadata.elw", path),
    )


def _site_of_hook(metadata: Mapping[str, Any], path: Path, layer: int | None) -> Site:
    """The place that a config names."""
    hook_name = metadata.get("hook_name")
    if hook_name is None and layer is not None:
        return Site(layer)
    name = str(hook_name)
    # SAELens calls it so where it knows Hugging Face's name, which says more.
    site = site_of(str(metadata.get("hf_hook_name"))) if name.endswith("hook_mlp_in") else site_of(name)
    if site is None:
        raise UsageError(f"{path}: hook_name is {_shown(name)}; {EXPECTED} is expected.")
    if layer is not None and layer == site.output_of:  # as an SAE of a block's input is registered by older versions
        return Site(layer) if site.layer != layer else site
    if layer not in (None, site.layer):
        raise UsageError(f"{path}: hook_name is {_shown(name)}, of block {site.layer}; layer {layer} was given.")
    return site


def _point_out(metadata: Mapping[str, Any], site: Site, path: Path) -> str:
    """Where a transcoder writes."""
    name = str(metadata.get("hook_name_out"))
    out = site_of(name)
    if out is None or out.point in READ_ONLY:
        raise UsageError(f"{path}: hook_name_out is {_shown(name)}; a place such as blocks.N.hook_mlp_out is expected.")
    if out.layer != site.layer:
        raise UsageError(
            f"{path}: the transcoder reads block {site.layer} and writes to block {out.layer}; one block is expected."
        )
    return out.point


def _is_centred(metadata: Mapping[str, Any], path: Path) -> bool:
    """Whether an SAE's residuals lack their mean over dimensions, as TransformerLens made the model that it read.

    Raises UsageError for a hook point whose numbers TransformerLens changed in another way.
    """
    arguments = _object(metadata.get("model_from_pretrained_kwargs") or {}, "model_from_pretrained_kwargs", path)
    changed = [key for key in (CENTRES_RESIDUALS, *CHANGES_WEIGHTS) if arguments.get(key)]
    hook_name = metadata.get("hook_name")
    writes = hook_name is None or WRITING.fullmatch(str(hook_name)) or BLOCK.fullmatch(str(hook_name))
    if changed and not writes:
        raise UsageError(
            f"{path}: the SAE was trained on a model loaded with {changed[0]}, which may change what "
            f"{_shown(hook_name)} is; a model as it was published is expected for it."
        )
    return CENTRES_RESIDUALS in changed


def _site_of_folder(folder: Path, layer: int | None) -> Site:
    """The place that a sparsify folder's name means."""
    name = folder.resolve().name
    site = site_of(name)
    if site is None and layer is not None and not re.match(BLOCK.pattern + r"\.", name):
        return Site(layer)
    if site is None or layer not in (None, site.layer):
        conflict = "" if layer is None else f", and layer {layer} was given"
        raise UsageError(
            f"{folder}: a folder of sparsify is named after the module it reads, and this one is {_shown(name)}"
            f"{conflict}; a block or a part of it is expected, such as layers.15, h.5.mlp or gpt_neox.layers.5 (or "
            "else --layer)."
        )
    return site


def _object(value: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {what} is a {type(value).__name__}; an object, as in SAELens v6, is expected.")
    fields: dict[str, Any] = value
    return fields


def _boolean(config: Mapping[str, Any], key: str, default: bool, path: Path) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{path}: {key} is {_shown(value)}; true or false is expected.")
    return value


def _norm_median(value: Any, path: Path) -> float | None:
    if value is None:
        return None
    return _positive_number(value, "norm_median", path, " or null")


def _positive_number(value: Any, key: str, path: Path, otherwise: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"{path}: {key} is {_shown(value)}; a positive number{otherwise} is expected.")
    return float(value)


def _positive_integer(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{path}: {key} is {_shown(value)}; a positive integer is expected.")
    return value


def _shown(value: Any) -> str:
    """A value as a sentence can show it."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _choice(words: tuple[str, ...]) -> str:
    return ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# ------------------------------------------------------------------------------------------------ tensors


def _saelens_weights(path: Path, described: _Description) -> dict[str, Tensor]:
    """The tensors of an architecture; scaling_factor only where it is there and is not 1."""
    d_in, d_sae = described.d_in, described.d_sae
    threshold = "log_threshold" if _is_logarithmic(path) else "threshold"
    biases = {"jumprelu": ("b_enc", threshold), "gated": ("b_gate", "b_mag", "r_mag")}
    names = biases.get("" if described.one_threshold else described.architecture, ("b_enc",))
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= dict.fromkeys(names, (d_sae,)) | ({"topk_threshold": ()} if described.one_threshold else {})
    shapes |= _of_transcoder(described)
    weights = _read_tensors(path, shapes, optional={"scaling_factor": (d_sae,)})
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    scaling_factor = weights.pop("scaling_factor", None)
    # For some time SAELens wrote it for every SAE, all ones.
    if scaling_factor is not None and not torch.allclose(scaling_factor, torch.ones(())):
        if not described.finetuned:
            raise UsageError(
                f"{path}: there is a scaling_factor other than 1, and finetuning_scaling_factor is not true: whether "
                "it is to be used cannot be told."
            )
        weights["scaling_factor"] = scaling_factor
    return weights


def _is_logarithmic(path: Path) -> bool:
    """Whether a file has a JumpReLU's θ as ln θ, as older checkpoints of SAELens' training do."""
    try:
        with safe_open(path, framework="pt") as file:
            return "threshold" not in file.keys() and "log_threshold" in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # said where the tensors are read


def _sparsify_weights(path: Path, described: _Description) -> dict[str, Tensor]:
    d_in, d_sae = described.d_in, described.d_sae
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    weights = _read_tensors(path, shapes | _of_transcoder(described))
    W_enc, b_enc = weights.pop("encoder.weight").T, weights.pop("encoder.bias")
    return {"W_enc": W_enc, "b_enc": b_enc, **weights}


def _of_transcoder(described: _Description) -> dict[str, tuple[int, ...]]:
    """Shapes of a transcoder's tensors, where they are other than an SAE's."""
    if described.point_out is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {
        "W_dec": (described.d_sae, described.d_out), "b_dec": (described.d_out,),
    }  # fmt: skip
    return shapes | ({"W_skip": (described.d_out, described.d_in)} if described.has_skip else {})


def _read_statistics(folder: Path, described: _Description) -> dict[str, Tensor]:
    path = folder / STATISTICS
    if not path.exists():
        return {}
    shapes: dict[str, tuple[int, ...]] = {
        "activation_quartiles": (described.d_sae, 3),
        "mean": (described.d_out or described.d_in,),
    }
    return _read_tensors(path, {}, optional=shapes, may_be_nan="activation_quartiles")


def _read_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]] | None = None,
    may_be_nan: str = "",
) -> dict[str, Tensor]:
    """float32 tensors of exactly these names and shapes from a safetensors file, and the optional ones that it holds.

    The shapes in the file's header are compared before any tensor is read.
    """
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            held_names = set(file.keys())
            for name in shapes:
                if name not in held_names:
                    listing = ", ".join(sorted(held_names)) or "nothing"
                    raise UsageError(f"{path} holds {listing[:200]}; a tensor {name} is expected.")
            wanted = {**shapes, **{name: shape for name, shape in (optional or {}).items() if name in held_names}}
            for name, shape in wanted.items():
                held_shape = tuple(file.get_slice(name).get_shape())
                if held_shape != shape:
                    raise UsageError(f"{path}: {name} has shape {held_shape}; {shape} is expected.")
            for name in wanted:
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist: an SAE folder is expected to hold {CONFIG} and {path.name}{pickled(path.parent)}."
        ) from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"{path} is damaged ({_line(error)}): a whole safetensors file is expected; copy it again."
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {name} holds {tensor.dtype}; floating-point numbers are expected.")
        tensors[name] = tensor.float()
        if name != may_be_nan and not torch.isfinite(tensors[name]).all():
            raise UsageError(f"{path}: {name} holds NaN or infinity; finite numbers are expected: copy it again.")
    return tensors


def pickled(folder: Path) -> str:
    """What to add to a refusal where the weights seem to be pickled."""
    names = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    return f", and {names[0]} is a pickle, which is never read: convert it to safetensors" if names else ""
