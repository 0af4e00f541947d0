"""Do the tools that exports are for read them, and find the numbers of the warehouse?

The packages need not share an environment with ours. Two steps, over one folder:

    python benchmarks/exports_read_back.py write DIR [DB [WORD,...]]    here: every export, and what SQL says
    OTHER/bin/python benchmarks/exports_read_back.py check DIR FORMAT   where the format's own package is

FORMAT is saedashboard (sae-dashboard), delphi (eai-delphi), parquet (polars and DuckDB), or neuronpedia=CHECKOUT, a
checkout of the Neuronpedia repository: its own classes read the rows, and its own converter makes the bundle from our
SAEDashboard files, which has to be the one that we wrote. Every step prints what agreed and fails at a difference.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMATS = ("saedashboard", "neuronpedia", "delphi", "parquet")

#: Latents that delphi's whole way to an example is gone with, of each layer.
N_RECORDS = 20


def main(step: str, folder: str, *words: str) -> None:
    {"write": write, "check": check}[step](Path(folder), *words)


# ------------------------------------------------------------------------------------------------ here


def write(folder: Path, db: str | None = None, features: str | None = None) -> None:
    from importlib import import_module

    from energy_lens.cli.export import EXPORTS
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    path = warehouse_path(db)
    for form in FORMATS:
        module, _, function = EXPORTS[form].partition(":")
        began = time.perf_counter()
        chosen = features.split(",") if features and form != "parquet" else None
        getattr(import_module(module), function)(path, folder / form, chosen)
        files = [file for file in (folder / form).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"{form:14s} {time.perf_counter() - began:7.1f} s {size / 1e6:9.1f} MB {len(files):6d} files", flush=True)
    with Warehouse(path) as warehouse:
        length = warehouse.sql("SELECT context_length FROM current_run").value()
        columns = warehouse.sql(
            "SELECT layer, feature, token_id, activation FROM activations "
            "WHERE run_id = (SELECT run_id FROM current_run) ORDER BY layer, token_id, feature"
        ).numpy()
        lengths = dict(
            warehouse.sql(
                "SELECT context_id, n_tokens FROM contexts WHERE run_id = (SELECT run_id FROM current_run)"
            ).fetchall()
        )
    n_tokens = np.array([lengths[context] for context in range(len(lengths))])
    np.savez(
        folder / "expected.npz", length=length, n_tokens=n_tokens, **{k: np.asarray(v) for k, v in columns.items()}
    )


# ------------------------------------------------------------------------------------------------ where the tools are


def check(folder: Path, form: str) -> None:
    name, _, checkout = form.partition("=")
    steps = {"saedashboard": check_saedashboard, "delphi": check_delphi, "parquet": check_parquet}
    if name == "neuronpedia":
        check_neuronpedia(folder, Path(checkout))
    else:
        steps[name](folder)


@dataclass
class Expected:
    """What SQL says of activations."""

    length: int  #: tokens of a full context
    n_tokens: np.ndarray  #: of each context
    columns: dict[str, np.ndarray]  #: layer, feature, token_id and activation, by layer, token and feature
    features: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]  #: {(layer, feature): (token ids, activations)}


def expected(folder: Path) -> Expected:
    with np.load(folder / "expected.npz") as stored:
        columns = {name: stored[name] for name in ("layer", "feature", "token_id", "activation")}
        length, n_tokens = int(stored["length"]), stored["n_tokens"]
    order = np.lexsort((columns["token_id"], columns["feature"], columns["layer"]))
    names = np.stack([columns["layer"][order], columns["feature"][order]], axis=1)
    starts = np.flatnonzero(np.r_[True, (names[1:] != names[:-1]).any(axis=1)])
    parts = (np.split(columns[name][order], starts[1:]) for name in ("token_id", "activation"))
    features = dict(zip(map(tuple, names[starts].tolist()), zip(*parts, strict=True), strict=True))
    return Expected(length, n_tokens, columns, features)


def contexts_of(told: Expected, layer: int, feature: int) -> set[bytes]:
    """Activations of a feature in each context in which it fires, as the bytes of float32s."""
    token_ids, activations = told.features[layer, feature]
    context, position = np.divmod(token_ids, told.length)
    found = set()
    for one in np.unique(context):
        values = np.zeros(told.n_tokens[one], np.float32)
        values[position[context == one]] = activations[context == one]
        found.add(values.tobytes())
    return found


def check_saedashboard(folder: Path) -> None:
    import sae_dashboard
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

    told = expected(folder)
    n_features = n_contexts = 0
    for path in sorted((folder / "saedashboard").glob("*/batch-*.json")):
        read = json.loads(path.read_text(encoding="utf-8"))
        batch = NeuronpediaDashboardBatch(**read)
        assert batch.to_dict() == read, f"{path}: what the package writes again is not what it read"
        for feature in batch.features:
            stored = contexts_of(told, batch.layer, feature.feature_index)
            assert len(feature.freq_hist_data_bar_heights) == len(feature.freq_hist_data_bar_values) == 50
            n_active = len(told.features[batch.layer, feature.feature_index][0])
            assert sum(feature.freq_hist_data_bar_heights) == n_active
            for activation in feature.activations:
                assert np.float32(activation.values).tobytes() in stored
                assert len(activation.tokens) == len(activation.values)
                assert activation.values[activation.qualifying_token_index] > 0
                n_contexts += 1
            n_features += 1
    print(
        f"sae-dashboard {sae_dashboard.__version__}: {n_features:,} features and {n_contexts:,} contexts read, written "
        "again by the package as they were, activations equal to the warehouse's"
    )


def check_delphi(folder: Path) -> None:
    import delphi
    import torch
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents import LatentDataset

    told = expected(folder)
    row_of = np.full(len(told.n_tokens), -1)
    for line in (folder / "delphi" / "contexts.jsonl").read_text(encoding="utf-8").splitlines():
        context = json.loads(line)
        row_of[context["context_id"]] = context["row"]
    raw = folder / "delphi" / "latents"
    constructor = ConstructorConfig(min_examples=1, n_non_activating=5, example_ctx_len=told.length // 4)
    sampler = SamplerConfig(n_examples_train=5, n_examples_test=5, n_quantiles=2)
    n_activations = n_records = 0
    for module in sorted(path.name for path in raw.iterdir()):
        dataset = LatentDataset(raw, sampler, constructor, tokenizer=_Numbers(), modules=[module])
        found = {}
        for buffer in dataset.buffers:
            latents, locations, activations = buffer.load_data_per_latent()
            found |= {int(n): (at, a) for n, at, a in zip(latents, locations, activations, strict=True)}
        layer = int(module.split(".")[1])
        for feature, (at, activations) in found.items():
            token_ids, values = told.features[layer, feature]
            context, position = np.divmod(token_ids, told.length)
            kept = (told.n_tokens[context] == told.length) & (values > 1e-5)
            assert (at[:, 0].numpy() == row_of[context[kept]]).all()
            assert (at[:, 1].numpy() == position[kept]).all()
            assert (activations.numpy() == values[kept].astype(np.float16)).all()
            n_activations += len(at)
        # delphi's whole way from a latent to its examples, for those that fire most
        often = sorted(found, key=lambda feature: -len(found[feature][0]))[:N_RECORDS]
        some = {module: torch.tensor(sorted(often))}
        for record in LatentDataset(raw, sampler, constructor, tokenizer=_Numbers(), modules=[module], latents=some):
            at, activations = found[record.latent.latent_index]
            assert record.per_token_frequency == len(at) / dataset.tokens.numel()
            assert max(float(example.max_activation) for example in record.train) <= float(activations.max())
            n_records += 1
    print(
        f"eai-delphi {delphi.__version__}: {n_activations:,} activations read, equal to the warehouse's in float16; "
        f"{n_records} latents gone with to their examples"
    )


class _Numbers:
    """A tokenizer's stand-in, which decodes a token as its id: delphi has need of no other part here."""

    def batch_decode(self, tokens) -> list[str]:
        return [str(int(token)) for token in np.asarray(tokens).ravel()]

    def decode(self, tokens) -> str:
        return " ".join(self.batch_decode(tokens))


def check_neuronpedia(folder: Path, checkout: Path) -> None:
    utils = checkout / "utils" / "neuronpedia-utils"
    sys.path.insert(0, str(utils))
    from neuronpedia_utils.db_models import activation, explanation, feature, model, source, source_release, source_set

    classes = {
        "features": feature.Feature, "activations": activation.Activation, "explanations": explanation.Explanation,
        "release": source_release.SourceRelease, "model": model.Model, "sourceset": source_set.SourceSet,
        "source": source.Source,
    }  # fmt: skip
    counts = dict.fromkeys(classes, 0)
    for path in sorted((folder / "neuronpedia").rglob("*.jsonl*")):
        kind = path.parent.name if path.name.startswith("batch-") else path.name.partition(".")[0]
        names = classes[kind].__dataclass_fields__.keys()
        for row in rows_of(path):
            assert row.keys() == names, f"{path}: {row.keys() ^ names}"
            classes[kind](**row)
            counts[kind] += 1
    print("Neuronpedia's classes read " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items()))
    _compare_with_converter(folder, utils)


#: What the converter makes up, does not know, or writes in another type.
UNLIKE = {
    "id", "createdAt", "lossValues", "topkCosSimIndices", "topkCosSimValues", "dataSource", "dataIndex",
    "sourceSetName", "index",
}  # fmt: skip


def _compare_with_converter(folder: Path, utils: Path) -> None:
    """What Neuronpedia's converter makes of our SAEDashboard files, beside the bundle."""
    n_rows = 0
    for place in sorted(path for path in (folder / "saedashboard").iterdir() if path.is_dir()):
        about = json.loads((place / "skipped_indexes.json").read_text())
        settings = json.loads((place / "run_settings.json").read_text())
        hook = place.name.partition("_blocks.")[2].rpartition("_")[0].partition(".")[2]
        options = {
            "saedashboard-output-dir": place.resolve(),
            "creator-name": "elw", "release-id": "elw", "release-title": "elw",
            "url": "none", "model-name": about["model_id"], "neuronpedia-source-set-id": about["sae_set"],
            "neuronpedia-source-set-description": "none", "hf-weights-repo-id": "none", "hf-weights-path": "none/none",
            "hook-point": hook, "layer-num": about["layer"], "prompts-huggingface-dataset-path": "none",
            "n-prompts-total": settings["n_prompts_total"], "n-tokens-in-prompt": settings["n_tokens_in_prompt"],
        }  # fmt: skip
        scratch = folder / "converted"
        scratch.mkdir(exist_ok=True)
        script = utils.resolve() / "neuronpedia_utils" / "convert-saedashboard-to-neuronpedia-export.py"
        environment = {
            **os.environ,
            "PYTHONPATH": str(utils.resolve()),
            "DEFAULT_CREATOR_ID": "clkht01d40000jv08hvalcvly",
        }
        subprocess.run(
            [
                sys.executable, script, *(f"--{name}={value}" for name, value in options.items()),
            ],
            cwd=scratch, env=environment, check=True, stdout=subprocess.DEVNULL, text=True,
            input="n\n",  # to its question whether BOS is to be made 0
        )  # fmt: skip
        relative = Path(about["model_id"]) / f"{about['layer']}-{about['sae_set']}"
        for kind in ("features", "activations"):
            ours = all_rows(folder / "neuronpedia" / relative / kind)
            theirs = all_rows(scratch / "exports" / relative / kind)
            for mine, converted in zip(ours, theirs, strict=True):
                assert int(mine["index"]) == int(converted["index"])
                unlike = {key for key in converted if mine[key] != converted[key]} - UNLIKE
                assert not unlike, f"{relative} {kind} {mine['index']}: {unlike}"
                n_rows += 1
    print(f"Neuronpedia's converter makes the same {n_rows:,} rows of the SAEDashboard files")


def all_rows(folder: Path) -> list[dict]:
    """Rows of the batches of a folder, features in ascending order."""
    rows = [row for path in folder.glob("batch-*") for row in rows_of(path)]
    return sorted(rows, key=lambda row: int(row["index"]))  # stable: of a feature, in the order of the file


def rows_of(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        yield from map(json.loads, stream)


def check_parquet(folder: Path) -> None:
    import hashlib

    import duckdb
    import polars

    root = folder / "parquet"
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    for file in manifest["files"]:
        assert hashlib.sha256((root / file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]
    n_rows = 0
    for table in manifest["tables"]:
        pattern = f"{root}/{table['name']}/**/*.parquet"
        by_polars = polars.scan_parquet(pattern, hive_partitioning=True).select(polars.len()).collect().item()
        ((by_duckdb,),) = duckdb.sql(
            f"SELECT count(*) FROM read_parquet('{pattern}', hive_partitioning = true)"
        ).fetchall()
        assert by_polars == by_duckdb == table["rows"], table["name"]
        n_rows += by_duckdb
    told = expected(folder)
    read = polars.read_parquet(f"{root}/activations/**/*.parquet", hive_partitioning=True)
    read = read.sort("layer", "token_id", "feature")
    for name in ("layer", "feature", "token_id", "activation"):
        assert (read[name].to_numpy() == told.columns[name]).all(), name
    print(
        f"polars and DuckDB read {n_rows:,} rows of {len(manifest['tables'])} tables; activations equal the warehouse's"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
