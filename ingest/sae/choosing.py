"""Which SAEs are meant: a model, layers and folders in, one SAE a layer out.

A folder that is given counts; without one, those that ship with the package. The only place that decides it: ingest,
evaluation, replay, the analyzer and the command line ask here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, built_in, cache_folder
from energy_lens.ingest.model.sites import RESIDUAL, check_sites, width
from energy_lens.ingest.sae.autoencoder import CENTRED, SparseAutoencoder
from energy_lens.ingest.sae.formats import CENTRES_RESIDUALS, CONFIG, WEIGHTS, load_sae, pickled
from energy_lens.ingest.sae.gemma_scope import PARAMS
from energy_lens.ingest.sae.llama_scope import HYPERPARAMS
from energy_lens.ingest.sae.model_names import note_another_model
from energy_lens.ingest.shipped import FOLDER

#: A folder that holds one of these is one of an SAE.
TOLD_BY = (CONFIG, PARAMS, HYPERPARAMS)


def choose_saes(
    model_name: str, layers: Sequence[int] | None = None, folders: Sequence[Path] = ()
) -> dict[int, SparseAutoencoder]:
    """The SAE of each layer to hook, ascending: those in the given folders, else the ones shipped for the model.

    layers: None for those of the given SAEs, else the model's default ones: of a small model all that are shipped.
    Raises UsageError for a layer without an SAE or with two, and for a model that no SAE is shipped for.
    """
    by_layer = _of_folders(folders) if folders else _shipped(model_name, layers or _default(model_name))
    wanted = layers or tuple(by_layer)
    if missing := [layer for layer in wanted if layer not in by_layer]:
        raise UsageError(f"No SAE was given for layer {missing[0]}: the given ones are for {sorted(by_layer)}.")
    return {layer: by_layer[layer] for layer in sorted(set(wanted))}


def _default(model_name: str) -> Sequence[int]:
    return DEFAULT_LAYERS if model_name == DEFAULT_MODEL else shipped_layers(model_name)


def _of_folders(folders: Sequence[Path]) -> dict[int, SparseAutoencoder]:
    """One SAE a layer. Raises UsageError where two folders are for the same one."""
    by_layer: dict[int, SparseAutoencoder] = {}
    for folder in (inner for path in folders for inner in sae_folders(path)):
        sae = load_sae(folder)
        if sae.layer in by_layer:
            raise UsageError(
                f"{folder} and {by_layer[sae.layer].source} are both for layer {sae.layer}: give one SAE a layer."
            )
        by_layer[sae.layer] = replace(sae, source=_lasting(folder))
    return by_layer


def _lasting(folder: Path) -> str:
    """An SAE's folder by a name under which a run finds it from wherever it is asked.

    One of the package's own by its place in the package, which may be installed somewhere else next.
    """
    folder = folder.resolve()
    home = FOLDER.resolve()
    return f"shipped/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)


def _shipped(model_name: str, layers: Sequence[int]) -> dict[int, SparseAutoencoder]:
    """The package's own SAEs. Raises UsageError for a model or a layer that it has none for."""
    available = shipped_layers(model_name)
    if not available:
        others = " and ".join(name for name in built_in() if shipped_layers(name))
        raise UsageError(
            f"No SAEs are shipped for {model_name} (only for {others}): "
            "elw ingest --train-saes trains some first, in minutes; or train some with elw sae train, or get some "
            "with elw sae pull or import, and name them with --sae."
        )
    if missing := [layer for layer in layers if layer not in available]:
        raise UsageError(
            f"No SAE is shipped for layer {missing[0]} of {model_name}, only for {available}: "
            "elw ingest --train-saes trains one first; or train one with elw sae train and name it with --sae."
        )
    saes = {layer: load_sae(shipped_folder(model_name, layer)) for layer in layers}
    return {layer: replace(sae, source=_lasting(Path(sae.source))) for layer, sae in saes.items()}


def check_saes(model: LanguageModel, saes: Iterable[SparseAutoencoder]) -> None:
    """Raises UsageError unless every SAE reads a layer of this model, at its width; notes one of another model."""
    saes = list(saes)
    model.check_layers([sae.layer for sae in saes])
    for sae in saes:
        sites = {sae.site: sae.d_in, sae.site_out: sae.d_model}
        check_sites(model, sites)
        for site, expected in sites.items():
            if (found := width(model, site)) != expected:
                what = "residuals" if site.point in RESIDUAL else site.hook_name
                raise UsageError(
                    f"The SAE of layer {sae.layer} ({sae.source}) reads {what} of width {expected}, and "
                    f"{model.name} has {found}: give one that was trained on this model."
                )
        if sae.normalisation == CENTRED and not _takes_the_mean_out(model):
            raise UsageError(
                f"The SAE of layer {sae.layer} ({sae.source}) says that its model was loaded with {CENTRES_RESIDUALS}, "
                f"which TransformerLens does to models with LayerNorm alone, and {model.name} has another norm: take "
                f"it out of model_from_pretrained_kwargs in {CONFIG}."
            )
        note_another_model(sae, model.name)


def _takes_the_mean_out(model: LanguageModel) -> bool:
    """Whether the model's norm is blind to what all dimensions have in common, as LayerNorm is and RMSNorm is not."""
    x = torch.randn(8, model.d_model, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        once, raised = (model.final_norm(residuals).float() for residuals in (x, x + 2))
    return bool((raised - once).norm() < 0.1 * once.norm())


def shipped_folder(model_name: str, layer: int) -> Path:
    """Where the package keeps its own SAE for a layer of a built-in model."""
    return FOLDER / model_name / f"layer_{layer}"


def shipped_layers(model_name: str) -> list[int]:
    """Layers of a model that the package has an SAE for."""
    if Path(model_name).name != model_name:
        return []  # a path would lead out of the package
    folder = shipped_folder(model_name, 0).parent
    return sorted(int(path.name.removeprefix("layer_")) for path in folder.glob("layer_*"))


def sae_folders(path: Path) -> list[Path]:
    """The SAE folders that a path means: itself, or its subfolders that hold an SAE.

    Raises UsageError when there is none.
    """
    if any((path / name).exists() for name in TOLD_BY) or not path.is_dir():
        return [path]
    folders = sorted({config.parent for name in TOLD_BY for config in path.glob(f"*/{name}")})
    if not folders:
        raise UsageError(
            f"{path} holds no SAE: a folder with {CONFIG} and {WEIGHTS}, or one of such folders, is "
            f"expected{pickled(path)}."
        )
    return folders


def saes_to_evaluate(
    model_name: str, layers: Sequence[int] | None = None, folders: Sequence[Path] = ()
) -> list[SparseAutoencoder]:
    """As choose_saes, but several SAEs of the given folders may read one layer: they are looked at side by side."""
    return load_saes(folders, layers) if folders else list(choose_saes(model_name, layers).values())


def load_saes(paths: Sequence[Path], layers: Sequence[int] | None = None) -> list[SparseAutoencoder]:
    """The SAEs that paths mean, each once; several may read one layer.

    layers: take only the SAEs of these.
    Raises UsageError for a folder without SAEs, or a layer that none of them reads.
    """
    folders = dict.fromkeys(folder for path in paths for folder in sae_folders(path))
    saes = [load_sae(folder) for folder in folders]
    available = sorted({sae.layer for sae in saes})
    if missing := [layer for layer in layers or () if layer not in available]:
        raise UsageError(f"No SAE was given for layer {missing[0]}: the given ones are for {available}.")
    return [sae for sae in saes if layers is None or sae.layer in layers]


def listed(model_name: str) -> list[tuple[str, SparseAutoencoder]]:
    """(source, SAE) of every SAE for a model, those of the package first."""
    shipped = [load_sae(shipped_folder(model_name, layer)) for layer in shipped_layers(model_name)]
    folder = registered_folder(model_name)
    registered = [load_sae(path) for path in sae_folders(folder)] if any(folder.glob(f"*/{CONFIG}")) else []
    registered.sort(key=lambda sae: sae.layer)
    return [("shipped", sae) for sae in shipped] + [("registered", sae) for sae in registered]


def registered_folder(model_name: str) -> Path:
    """Where a model's registered SAEs are: by name, or by path for one that is a file or folder here."""
    path = Path(os.path.expanduser(model_name))
    name = str(path.resolve()) if path.exists() else model_name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-.") or "model"
    if len(slug) > 100:  # a file name has an end
        slug = f"{slug[-80:]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"
    return cache_folder() / "saes" / slug


def stored_folder(source: str, layer: int) -> Path:
    """Where the SAE of a run is now, by the source that the run stored."""
    return shipped_folder(source.split("/")[1], layer) if source.startswith("shipped/") else Path(source)
