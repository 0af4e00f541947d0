"""Tokens per second of `elw ingest` against the peer pipeline, in one run, on the default model and its SAEs.

    python benchmarks/ingest.py [--rounds 3] [--groups 2] [--dtype auto float32]

Machines are noisy, so only ratios are meant: each round runs every contender once on about as many tokens, and the
median of the rounds' ratios is printed. Of elw everything after start-up counts: the model, the statistics, the
commits and the finish. The peer keeps its results in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peer import PeerPipeline

from energy_lens.ingest.corpus import discover
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, load_model, locate
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.ingest.sae.formats import load_sae

CORPUS = Path(__file__).parent.parent / "corpus"
CONTEXT, BATCH = 128, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=2, help="groups of the plan per round (about 4,480 tokens each)")
    parser.add_argument("--dtype", nargs="+", default=["auto", "float32"])
    arguments = parser.parse_args()

    saes = [load_sae(shipped_folder(DEFAULT_MODEL, layer)) for layer in DEFAULT_LAYERS]
    folder, _ = locate(DEFAULT_MODEL)
    model = load_model(DEFAULT_MODEL)
    ids = [token for document in discover([CORPUS]) for token in model.tokenize(document.text())]
    batches = torch.tensor(ids[: len(ids) // (CONTEXT * BATCH) * CONTEXT * BATCH]).view(-1, BATCH, CONTEXT)
    del model
    peers = {
        "peer (Hugging Face + SAELens)": PeerPipeline(folder, saes, frozen=False),
        "peer, parameters frozen": PeerPipeline(folder, saes, frozen=True),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; layers {DEFAULT_LAYERS}, {CONTEXT} x {BATCH}")

    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        done = dict.fromkeys(arguments.dtype, 0)
        for round_ in range(arguments.rounds):
            n_tokens = 0
            for dtype in arguments.dtype:
                options = IngestOptions(
                    db=Path(scratch) / f"{dtype}.duckdb", dtype=dtype, max_tokens=done[dtype] + 4_096 * arguments.groups
                )
                with contextlib.redirect_stderr(io.StringIO()):
                    summary = ingest([CORPUS], options)
                done[dtype], n_tokens = summary.tokens, summary.new_tokens
                seconds = summary.seconds + summary.finish_seconds
                speeds.setdefault(f"elw ingest --dtype {dtype} ({summary.dtype})", []).append(n_tokens / seconds)
            n_batches = max(1, n_tokens // (CONTEXT * BATCH))
            for name, peer in peers.items():
                peer.run(batches[0])
                started = time.perf_counter()
                for i in range(n_batches):
                    peer.run(batches[(round_ * n_batches + i) % len(batches)])
                elapsed = time.perf_counter() - started
                speeds.setdefault(name, []).append(n_batches * CONTEXT * BATCH / elapsed)

    yardstick = speeds[next(iter(peers))]
    print(f"{'':42} {'tokens/s':>9} {'ratio to the peer':>18}   (median of {arguments.rounds} rounds, min to max)")
    for name, rates in speeds.items():
        ratios = [a / b for a, b in zip(rates, yardstick, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:42} {statistics.median(rates):9,.0f} {statistics.median(ratios):18.2f}   ({spread})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process, all contenders loaded: {peak:.1f} GB")


if __name__ == "__main__":
    main()
