"""An SAE in, its folder out: SAELens v6 or sparsify, written whole or not at all; figures kept in its config."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.sae.autoencoder import CENTRED, SparseAutoencoder
from energy_lens.ingest.sae.figures import Evaluation
from energy_lens.ingest.sae.formats import (
    CENTRES_RESIDUALS,
    CONFIG,
    SAELENS_VERSION,
    SPARSIFY_WEIGHTS,
    STATISTICS,
    TRANSCODERS,
    WEIGHTS,
)
from energy_lens.ingest.sae.hook_names import BLOCK
from energy_lens.warehouse.files import check_replaceable, whole


def save_sae(sae: SparseAutoencoder, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write an SAE in SAELens v6 format, the weights in `dtype`; the folder is made, an SAE in it replaced.

    Raises ElwError when a number does not fit in `dtype`, or the folder cannot be written.
    """
    weights = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.architecture == "gated":
        assert sae.threshold is not None
        weights |= {"b_gate": sae.b_enc - sae.threshold, "b_mag": sae.b_enc, "r_mag": torch.zeros_like(sae.b_enc)}
    else:
        weights["b_enc"] = sae.b_enc
        if sae.threshold is not None:
            weights["threshold"] = sae.threshold
    if sae.W_skip is not None:
        weights["W_skip"] = sae.W_skip
    _write(folder, WEIGHTS, weights, sae, saelens_config(sae, dtype), dtype)


def saelens_config(sae: SparseAutoencoder, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What SAELens v6 says of an SAE in cfg.json. Raises UsageError for a transcoder that it has no word for."""
    topk = {"k": sae.k, "rescale_acts_by_decoder_norm": False} if sae.architecture == "topk" else {}
    return {
        "architecture": _architecture(sae),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **topk,
        **({"d_out": sae.d_model} if sae.is_transcoder else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "apply_b_dec_to_input": not sae.is_transcoder,
        "normalize_activations": "none" if sae.normalisation == CENTRED else sae.normalisation,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            **({} if sae.bos is None else {"prepend_bos": sae.bos}),
            **({"model_from_pretrained_kwargs": {CENTRES_RESIDUALS: True}} if sae.normalisation == CENTRED else {}),
            **_metadata(sae),
        },
    }


def save_sparsify(sae: SparseAutoencoder, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write an SAE in sparsify's format; returns its folder, `folder` or, unless so named, layers.N below it.

    Raises UsageError for an SAE that the format has no words for, else as `save_sae`.
    """
    if not sae.site.is_block_output:
        raise UsageError(
            f"{sae.source or 'The SAE'} reads {sae.hook_name}: elw writes SAEs of a block's output alone in sparsify's "
            "format; write it as saelens."
        )
    if sae.architecture != "topk" or sae.normalisation != "none":
        raise UsageError(
            f"{sae.source or 'The SAE'} is {sae.architecture} with normalisation {sae.normalisation!r}: sparsify's "
            "format holds topk without normalisation alone; write it as saelens."
        )
    match = BLOCK.fullmatch(folder.resolve().name)
    if not match or int(match[1]) != sae.layer:
        folder = folder / f"layers.{sae.layer}"
    weights = {
        "encoder.weight": sae.encoder_rows, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec,
    }  # fmt: skip
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_model),
        "normalize_decoder": False,  # nothing is to be done to the rows
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_model,
        "metadata": _metadata(sae),
    }
    _write(folder, SPARSIFY_WEIGHTS, weights, sae, config, dtype)
    return folder


def _architecture(sae: SparseAutoencoder) -> str:
    """SAELens' word for it. Raises UsageError for a transcoder that it has none for."""
    if not sae.is_transcoder:
        return sae.architecture
    skip = sae.W_skip is not None
    for name, architecture in TRANSCODERS.items():
        if architecture == sae.architecture and ("skip" in name) == skip:
            return name
    raise UsageError(
        f"{sae.source or 'The transcoder'} is {sae.architecture}, and SAELens has transcoders of architecture standard "
        "and jumprelu alone: ingest takes it by its path as it is."
    )


def _metadata(sae: SparseAutoencoder) -> dict[str, Any]:
    elw_metadata = {"norm_median": sae.norm_median, **sae.metadata}
    out = {"hook_name_out": sae.site_out.hook_name} if sae.is_transcoder else {}
    return {"model_name": sae.model_name, "hook_name": sae.hook_name, **out, "elw": elw_metadata}


def _write(
    folder: Path,
    weights_name: str,
    weights: Mapping[str, Tensor],
    sae: SparseAutoencoder,
    config: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Write a folder's files under other names and rename them, the config last.

    The old config goes first, so that a crash on the way leaves the old SAE, the new one, or a folder that is none.
    """
    from safetensors.torch import save_file

    files = {weights_name: {name: tensor.detach().to(dtype) for name, tensor in weights.items()}}
    statistics = {}
    if sae.quartiles is not None:
        statistics["activation_quartiles"] = sae.quartiles.to(dtype)
    if sae.mean is not None:
        statistics["mean"] = sae.mean.float()
    if statistics:
        files[STATISTICS] = statistics
    for name, tensor in (*files[weights_name].items(), *statistics.items()):
        spoiled = torch.isinf(tensor) if name == "activation_quartiles" else ~torch.isfinite(tensor)
        if spoiled.any():
            raise ElwError(f"{folder}: {name} holds numbers that {dtype} cannot: write the SAE in float32.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(*(folder / name for name in (*files, CONFIG))) as scratches:
            for scratch, tensors in zip(scratches, files.values(), strict=False):
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, scratch)
            scratches[-1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (folder / CONFIG).unlink(missing_ok=True)
            for name in {WEIGHTS, SPARSIFY_WEIGHTS, STATISTICS} - set(files):  # of an SAE that was here before
                (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise ElwError(f"{folder} cannot be written ({error}): choose another folder.") from error


def save_evaluation(evaluation: Evaluation) -> Path:
    """Keep an evaluation with its SAE: in cfg.json, under metadata.elw, and nothing else is changed; returns the file.

    The file is replaced whole or not at all.
    Raises UsageError when it is not in SAELens v6 format, ElwError when it cannot be written.
    """
    path = Path(evaluation.source) / CONFIG
    with _told(path):
        config = _with_metadata(path)
        config["metadata"]["elw"] = {**(config["metadata"].get("elw") or {}), **evaluation.metadata()}
        with whole(path) as (scratch,):
            scratch.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def check_keeps_figures(folder: str | Path) -> None:
    """Raises what `save_evaluation` would raise for the SAE of that folder, before anything is measured."""
    path = Path(folder) / CONFIG
    with _told(path):
        _with_metadata(path)
        check_replaceable(path)


def _with_metadata(path: Path) -> dict[str, Any]:
    """The configuration in a file, whose metadata can keep figures."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not isinstance(config.get("metadata"), dict):
        raise UsageError(f"{path} is not in SAELens v6 format, so it cannot keep figures: use --json or --db.")
    return config


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the disk says of a configuration is told in a sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ElwError(f"{path} cannot be written ({error}): copy the SAE to a folder that can.") from error
