"""What `speed.py` times, each a process of its own that tells its phases (`turns`).

    python benchmarks/contenders.py NAME OPTIONS    with OPTIONS a JSON object

products   the machine's own speed (`products`)
peer       the pipeline of an afternoon (`peer`), its parameters frozen or not
ingest     elw's own, by its options
intervene  interventions on a warehouse
train      an SAE on a corpus
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def phase(name: str) -> None:
    print(f"phase {name}", flush=True)


def told(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which tells that a phase begins with it."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        phase(name)
        return function(*arguments, **keywords)

    return call


def products(dtype: str, seconds: float) -> dict[str, Any]:
    """What the machine can do: tokens/s at most, GFLOP/s, and seconds of every product."""
    from products import default_products

    phase("products")
    products = default_products(dtype)
    products.measure(seconds)
    parts = products.of_token()
    flop = sum(flop for flop, _ in parts.values())
    return {
        "tokens_per_second": products.tokens_per_second, "gflops": flop * products.tokens_per_second / 1e9,
        "mflop": {part: flop / 1e6 for part, (flop, _) in parts.items()},
        "us": {part: seconds * 1e6 for part, (_, seconds) in parts.items()},
        "patch_token": {layer: products.of_patches(layer, 1, 0) for layer in range(products.model.n_layers)},
        "patch_loss": products.of_patches(0, 0, 1),
        "patch_context": {layer: products.of_predictions(layer, 3, 4) for layer in range(products.model.n_layers)},
    }  # fmt: skip


def peer(ids: str, frozen: bool) -> dict[str, Any]:
    """ids: a file of token ids [batch, context, position]."""
    from peer import PeerPipeline

    from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, locate
    from energy_lens.ingest.sae.choosing import shipped_folder
    from energy_lens.ingest.sae.formats import load_sae

    saes = [load_sae(shipped_folder(DEFAULT_MODEL, layer)) for layer in DEFAULT_LAYERS]
    pipeline = PeerPipeline(locate(DEFAULT_MODEL)[0], saes, frozen)
    batches = torch.tensor(json.loads(Path(ids).read_text()))
    pipeline.run(batches[0])
    phase("stream")
    for tokens in batches:
        pipeline.run(tokens)
    phase("end")
    return {"tokens": batches.numel()}


def ingest(db: str, corpus: str, **options: Any) -> dict[str, Any]:
    from energy_lens.ingest.pipeline import IngestOptions, processing
    from energy_lens.ingest.pipeline import run as pipeline

    if "energies" in options:
        options["energies"] = tuple(options["energies"])
    pipeline.calibrate = told("calibration", pipeline.calibrate)
    pipeline.process = told("stream", pipeline.process)
    processing.compile_blocks = told("compiling", processing.compile_blocks)
    processing.GroupBuilder = told("stream", processing.GroupBuilder)
    pipeline.finish = told("finish", pipeline.finish)
    summary = pipeline.ingest([corpus], IngestOptions(db=Path(db), **options))
    phase("end")
    return {"tokens": summary.new_tokens, "dtype": summary.dtype}


def intervene(db: str, **options: Any) -> dict[str, Any]:
    from energy_lens import Warehouse
    from energy_lens.analysis.interventions import processing
    from energy_lens.analysis.interventions import run as interventions
    from energy_lens.analysis.interventions.options import InterventionOptions

    options["features"], options["layers"] = tuple(options["features"]), tuple(options["layers"])
    processing.measure = told("patches", processing.measure)
    processing.store_effects = told("effects", processing.store_effects)
    done = interventions.intervene(Path(db), InterventionOptions(**options))
    phase("end")
    with Warehouse(db) as warehouse:
        n_tokens, n_looked_at = warehouse.sql(
            "SELECT sum(n_tokens)::BIGINT, sum(n_edited + n_later)::BIGINT FROM interventions "
            "JOIN contexts USING (run_id, context_id)"
        ).fetchall()[0]
        (n_unpatched,) = warehouse.sql(
            "SELECT sum(n_tokens)::BIGINT FROM intervention_contexts JOIN contexts USING (run_id, context_id)"
        ).fetchall()[0]
    return {
        "patches": sum(each.n_new_patches for each in done), "tokens": n_tokens, "looked_at": n_looked_at,
        "unpatched": n_unpatched,
    }  # fmt: skip


def train(corpus: str, folder: str, tokens: int, layer: int, dtype: str) -> dict[str, Any]:
    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.model.loading import DEFAULT_MODEL
    from energy_lens.ingest.model.precision import load_in, name_of
    from energy_lens.ingest.training.saes import TrainingConfig, train_saes

    model = load_in(DEFAULT_MODEL, dtype, layer=layer)
    phase("training")
    config = TrainingConfig(tokens=tokens, passes=1)
    train_saes(model, discover([corpus]), [layer], config, Path(folder))
    phase("end")
    return {"tokens": tokens, "dtype": name_of(model)}


CONTENDERS = {contender.__name__: contender for contender in (products, peer, ingest, intervene, train)}

if __name__ == "__main__":
    with contextlib.redirect_stderr(io.StringIO()):
        found = CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(found), flush=True)
