"""`elw export --format delphi`: the cache of latents from which delphi explains and scores features (eai-delphi 0.1.3).

    latents/layers.N/START_END.safetensors    locations [n, 3], activations [n], tokens [contexts, context length]
    latents/layers.N/config.json
    contexts.jsonl                            which context of the warehouse each row of tokens is

Rows are contexts of full length alone, as delphi's tokens are a rectangle. A split of the features is read, written
and forgotten before the next, so that memory does not grow with the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from energy_lens.console import say
from energy_lens.errors import ElwError
from energy_lens.reports.cards.choosing import chosen
from energy_lens.reports.exports.source import Sae, Source, read_source
from energy_lens.reports.queries import ONE_THREAD
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.export_folder import Folder, export_folder
from energy_lens.warehouse.exporting import Exported

#: delphi caches activations above this.
LEAST = 1e-5

#: The largest float16, in which delphi keeps activations; what is larger becomes infinite there.
LARGEST = 65504.0

#: Files of a layer, as delphi splits them; more where a file would hold more activations than SPLIT_ACTIVATIONS.
N_SPLITS = 5
SPLIT_ACTIVATIONS = 10_000_000

#: delphi's own batch size, of which its configuration tells.
BATCH_SIZE = 32

NOTES = (
    "log/hookpoint_firing_counts.pt is left out, a pickle that delphi makes anew, and run_config.json, which says what "
    "is to be explained and with which model.",
    "A warehouse holds no activations of excluded tokens (the first of a context, those of massive norm), which "
    "delphi's own cache has.",
)


def export(db: Path, output: Path, features: Sequence[str] | None = None) -> Exported:
    """Write activations of the current run as delphi's cache into the folder `output`.

    features: words as `chosen` takes them; None for all.
    Raises UsageError for a word or folder that will not do, ElwError for a run without a context of full length.
    """
    with Warehouse(db, config=ONE_THREAD) as warehouse:
        by_layer = chosen(warehouse, features) if features else {}
        source = read_source(warehouse)
        length = source.facts["context_length"]
        tokens = warehouse.run("exports/full_context_tokens").numpy()["vocabulary_id"].astype(np.int64)
        tokens = tokens.reshape(-1, length)
        if not len(tokens):
            raise ElwError(
                f"No context of run {source.facts['run_id']} has all {length} tokens, and delphi reads no others: "
                "ingest longer texts, or with a smaller --context."
            )
        with export_folder(output, "delphi", source.told) as folder:
            folder.write_lines("contexts.jsonl", warehouse.run("exports/full_contexts").dicts())
            n_short = source.facts["n_contexts"] - len(tokens)
            folder.notes.append(
                f"{len(tokens):,} contexts have all {length} tokens and are kept; {n_short:,} shorter ones with "
                f"{source.facts['n_tokens'] - tokens.size:,} tokens are left out."
            )
            for sae in source.saes:
                if not by_layer or sae.layer in by_layer:
                    _write_layer(warehouse, folder, source, sae, tokens, by_layer.get(sae.layer))
            folder.notes += NOTES
    return Exported([output / "latents"], folder.notes)


def _write_layer(
    warehouse: Warehouse, folder: Folder, source: Source, sae: Sae, tokens: Any, features: list[int] | None
) -> None:
    from safetensors.numpy import save_file

    some = {"layer": sae.layer, "features": features, "above": LEAST}
    counts = warehouse.run("exports/latent_counts", largest=LARGEST, **some).fetchall()[0]
    n_kept, n_in_short, n_small, n_too_large = counts
    say(f"Layer {sae.layer}: {n_kept:,} activations…")
    place = f"latents/{module_path(sae)}"
    splits = list(splits_of(sae.d_sae, max(N_SPLITS, -(-n_kept // SPLIT_ACTIVATIONS))))
    for first, last in splits:
        columns = warehouse.run("exports/latents", first=first, last=last, **some).numpy()
        locations = np.stack([columns["row"], columns["position"], columns["latent"]], axis=1)
        with np.errstate(over="ignore"):  # told of in a note
            activations = columns["activation"].astype(np.float16)
        file = folder.file(f"{place}/{first}_{last}.safetensors")
        save_file({"locations": _narrowed(locations), "activations": activations, "tokens": tokens}, file)
    folder.write_json(f"{place}/config.json", _config(source, tokens, len(splits)))
    said = f"{module_path(sae)}: {n_kept:,} activations; {n_in_short:,} in shorter contexts are left out"
    said += f", and {n_small:,} of at most {LEAST}" if n_small else ""
    said += f"; {n_too_large:,} are too large for float16 and infinite there" if n_too_large else ""
    folder.notes.append(f"{said}.")


def module_path(sae: Sae) -> str:
    """The hook point as sparsify names it: layers.N after block N, layers.N.mlp and the like inside it."""
    if sae.hook_name.endswith("hook_resid_post"):
        return f"layers.{sae.layer}"
    inside = {"mlp": "mlp", "transcoder": "mlp", "att": "self_attn"}
    return f"layers.{sae.layer}.{inside.get(sae.site) or sae.hook_name.rpartition('.')[2]}"


def splits_of(d_sae: int, n_splits: int) -> Iterator[tuple[int, int]]:
    """(first, last) feature of each split, the last one included: at linspace(0, d_sae, n_splits + 1), rounded down."""
    edges = [d_sae * place // n_splits for place in range(n_splits + 1)]
    for first, after in pairwise(edges):
        if first < after:
            yield first, after - 1


def _narrowed(locations: Any) -> Any:
    """Locations in 16 bits where rows and latents fit, else in 32, as delphi has them."""
    fits = not len(locations) or locations.max() < 2**16
    return locations.astype(np.uint16 if fits else np.uint32)


def _config(source: Source, tokens: Any, n_splits: int) -> dict[str, Any]:
    return {
        "dataset_repo": source.data_set, "dataset_split": "", "dataset_name": "", "dataset_column": "text",
        "batch_size": BATCH_SIZE, "cache_ctx_len": tokens.shape[1], "n_tokens": tokens.size, "n_splits": n_splits,
        "model_name": source.facts["model"],
    }  # fmt: skip
