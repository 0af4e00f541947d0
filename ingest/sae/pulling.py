"""An SAE's address in, its registered copy out: its files fetched from the hub, read, checked against a model.

Only files that a format here reads are fetched; pickles, code and READMEs are not even asked for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from energy_lens.console import say
from energy_lens.errors import UsageError
from energy_lens.ingest.repositories import Repository, repository
from energy_lens.ingest.sae.formats import (
    CONFIG,
    PICKLES,
    SCALED_INPUT,
    SPARSIFY_WEIGHTS,
    STATISTICS,
    WEIGHTS,
    load_sae,
)
from energy_lens.ingest.sae.gemma_scope import PARAMS
from energy_lens.ingest.sae.published import PublishedSae, closest, hub_name, published
from energy_lens.ingest.sae.registry import check_free, register
from energy_lens.warehouse.locks import claimed_folder

#: The files of an SAE's folder, by format: SAELens, sparsify, Gemma Scope, Llama Scope in its two arrangements. The
#: last one holds the weights.
LAYOUTS = (
    (CONFIG, WEIGHTS),
    (CONFIG, SPARSIFY_WEIGHTS),
    (PARAMS,),
    ("hyperparams.json", "checkpoints/final.safetensors"),
    ("hyperparams.json", "final.safetensors"),
)

#: Parts of the longest name in a layout.
DEEPEST = max(file.count("/") + 1 for layout in LAYOUTS for file in layout)

#: Files that are taken along where there are any, by the first file of a layout: scales and names that are kept apart.
OPTIONAL = {CONFIG: (STATISTICS, "activation_scaler.json"), "hyperparams.json": ("lm_config.json",)}


def pull_sae(
    address: str,
    model_name: str | None = None,
    output: Path | None = None,
    layer: int | None = None,
    activation_scale: float | None = None,
    calibrate: Sequence[Path] = (),
) -> tuple[Path, str]:
    """Fetch a published SAE and register it; returns (folder of the copy, model that it is registered for).

    address: as in `published`. model_name: else the one that the SAE says it was trained on. The others as in
    `import_sae`. Raises UsageError for an SAE that is not there, cannot be read or does not fit the model, ElwError
    when the hub cannot be asked.
    """
    if output is not None:
        check_free(output)
        with claimed_folder(output, "elw sae pull"):  # what cannot be written shall not cost a download first
            pass
    where = published(address)
    found = repository(where.repository)
    path, files = _files_of(found, where.path)
    folder = found.fetch(files) / path
    scale = _known_scale(folder, where) if activation_scale is None else activation_scale
    sae = load_sae(folder, scale, layer, where.corrections)
    said = where.model_name or sae.model_name
    if model_name is None and not said:
        raise UsageError(f"{address} does not say which model it was trained on: name that with --model.")
    model = model_name or hub_name(said)
    if model_name is None:
        say(f"{address} was trained on {said}: it is registered for {model} (--model names another).")
    origin = {"pulled_from": f"hf:{found.name}{'/' if path else ''}{path}@{found.commit}", **where.origin}
    return register(sae, model, output, calibrate, origin), model


def _files_of(found: Repository, path: str) -> tuple[str, list[str]]:
    """(folder, files) of the SAE at a path: what its format reads. Raises UsageError when there is none."""
    if path in found.files:  # a file of the SAE stands for its folder
        path = "/".join(PurePosixPath(path).parts[:-1])
    files = needed(_below(found.files, path))
    if not files:
        raise UsageError(_absent(found, path))
    return path, [f"{path}/{file}".lstrip("/") for file in files]


def needed(files: Collection[str]) -> list[str]:
    """Of the files of a folder, those that a format reads; none where it holds no SAE.

    Weights last: where they are in the cache, all that goes with them is.
    """
    whole = [layout for layout in LAYOUTS if all(file in files for file in layout)]
    if not whole:
        return []
    beside = [file for layout in whole for file in layout[:-1]]
    beside += [file for layout in whole for file in OPTIONAL.get(layout[0], ()) if file in files]
    return list(dict.fromkeys([*beside, *(layout[-1] for layout in whole)]))


def _below(files: Iterable[str], path: str) -> set[str]:
    """Names within a folder."""
    start = f"{path}/" if path else ""
    return {file.removeprefix(start) for file in files if file.startswith(start)}


def _absent(found: Repository, path: str) -> str:
    """What to say where a folder holds no SAE that can be read."""
    what = f"{found.name} has no SAE at {path}" if path else f"{found.name} has no SAE at its top"
    cached = " in the cache, and the hub could not be asked" if found.cached else ""
    inside = _below(found.files, path)
    if pickled := sorted(file for file in inside if "/" not in file and file.endswith(PICKLES)):
        return f"{what} that is read: {pickled[0]} is a pickle, which is never read; convert it to safetensors first."
    if others := _folders(found.files):
        return f"{what}{cached}: it has them at {closest(path, others)}."
    formats = " or ".join(" and ".join(layout) for layout in LAYOUTS)
    return f"{what}{cached}, nor anywhere: a folder with {formats} is expected."


def _folders(files: Iterable[str]) -> list[str]:
    """The folders of a repository that hold an SAE; its top as a full stop."""
    within = defaultdict(set)
    for file in files:
        parts = file.split("/")
        for depth in range(1, min(len(parts), DEEPEST) + 1):
            within["/".join(parts[:-depth])].add("/".join(parts[-depth:]))
    return sorted(folder or "." for folder, names in within.items() if needed(names))


def _known_scale(folder: Path, where: PublishedSae) -> float | None:
    """The scale of its input that SAELens' registry has, for an SAE whose config leaves it out."""
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # none is needed, or reading it says what is wrong
    normalisation = {**config, **where.corrections}.get("normalize_activations") if isinstance(config, dict) else None
    return where.activation_scale if normalisation in (True, SCALED_INPUT) else None
