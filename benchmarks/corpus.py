"""Speed and peak memory of planning an ingest, by size of the corpus: hashing, tokenising, cutting, storing the plan.

    python benchmarks/corpus.py [--sizes 20 100 300] [--single 100] [--rows 100] [--from corpus/]

The texts are made of pieces of the sample corpus (or of the folder given) in seeded order: documents of 20 kB in 32
categories (--sizes), the same as rows of one file of JSON lines (--rows), or one file alone (--single). Each size is
planned in a process of its own, on the default model with its SAEs, up to where the model would run for the first
time; the memory that the model takes by itself is in the first line. Pieces repeat, so a text of more different words
than the sample corpus has may be slower: the tokenizers library keeps the first 10,000 words it met.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.energies.registry import choose_translators, make_energies
from energy_lens.ingest.pipeline import IngestOptions
from energy_lens.ingest.pipeline.planning import Notes, bring_up_to_date
from energy_lens.ingest.pipeline.settling import choose_instruments, settle
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.warehouse.database import ingest_lock

CORPUS = Path(__file__).parent.parent / "corpus"
PIECE, DOCUMENT, CATEGORIES, MB = 500, 20_000, 32, 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 100], help="MB of text in documents of 20 kB")
    parser.add_argument("--single", type=int, nargs="*", default=[], help="MB of text in one file")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="MB of text in rows of one .jsonl")
    parser.add_argument("--from", dest="origin", type=Path, default=CORPUS, help="folder of texts to make them from")
    arguments = parser.parse_args()

    pieces = cut_up(arguments.origin)
    print(f"{'':18} documents        tokens  seconds    MB/s  hashing MB/s  peak GB  over the model's")
    alone = measured(None)["peak"]
    print(f"{'the model alone':18} {alone:57.2f}")
    cases = [(kind, size) for kind in ("sizes", "single", "rows") for size in getattr(arguments, kind)]
    for kind, size in cases:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "texts"
            folder.mkdir()
            write(folder, kind, size * MB, pieces)
            figures = measured(folder)
        name = {"sizes": "documents", "single": "one file", "rows": "rows"}[kind]
        print(
            f"{f'{size} MB, {name}':18} {figures['documents']:9,} {figures['tokens']:13,} {figures['seconds']:8.1f} "
            f"{size / figures['seconds']:7.2f} {size / figures['discover']:13.1f} {figures['peak']:8.2f} "
            f"{figures['peak'] - alone:17.2f}",
            flush=True,
        )


# ------------------------------------------------------------------------------------------------ texts


def cut_up(folder: Path) -> list[str]:
    """Pieces of the texts of a folder, in seeded order."""
    texts = [document.text() for document in discover([folder])]
    pieces = [text[start : start + PIECE] for text in texts for start in range(0, len(text), PIECE)]
    random.Random(0).shuffle(pieces)
    return pieces


def write(folder: Path, kind: str, n_bytes: int, pieces: list[str]) -> None:
    """A corpus of about n_bytes."""
    if kind == "single":
        with (folder / "one.txt").open("w", encoding="utf-8") as file:
            for text in made(n_bytes, pieces):
                file.write(text)
    elif kind == "rows":
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for i, text in enumerate(made(n_bytes, pieces)):
                file.write(json.dumps({"text": text, "category": f"category_{i % CATEGORIES}"}) + "\n")
    else:
        for i, text in enumerate(made(n_bytes, pieces)):
            place = folder / f"category_{i % CATEGORIES}" / f"{i}.txt"
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, encoding="utf-8")


def made(n_bytes: int, pieces: list[str]) -> Iterator[str]:
    """Distinct documents of DOCUMENT bytes or a little more."""
    chance = random.Random(1)
    while n_bytes > 0:
        text, size = [], 0
        while size < DOCUMENT:
            text.append(chance.choice(pieces))
            size += len(text[-1].encode())
        n_bytes -= size
        yield "".join(text)


# ------------------------------------------------------------------------------------------------ measuring


def measured(folder: Path | None) -> dict[str, Any]:
    """Figures of planning a folder, or of loading the model alone, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(plan, folder).result()


def plan(folder: Path | None) -> dict[str, Any]:
    """Plan a folder into a new warehouse."""
    figures: dict[str, Any] = {}
    scratch = Path(tempfile.mkdtemp())
    try:
        options = IngestOptions(db=scratch / "plan.duckdb", dtype="float32")
        energies = make_energies(options.energies, lambda: choose_translators(options.model))
        saes = choose_saes(options.model, None, ())
        with contextlib.redirect_stderr(io.StringIO()), ingest_lock(options.db):
            settings, run = settle(options, energies, saes)
            instruments = choose_instruments(options, settings.dtype, energies, saes)
            instruments.model.load()
            if folder is not None:
                started = time.perf_counter()
                paths = [folder / "rows.jsonl"] if (folder / "rows.jsonl").exists() else [folder]
                documents = {document.sha256: document for document in discover(paths)}
                figures["discover"] = time.perf_counter() - started
                source = TokenSource(instruments.model.load, documents, scratch)
                run = bring_up_to_date(options, settings, run, documents, instruments, source, Notes())
                figures["seconds"] = time.perf_counter() - started
                figures["documents"] = len(documents)
                figures["tokens"] = sum(group.n_tokens for group in run.groups)
    finally:
        shutil.rmtree(scratch)
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures


if __name__ == "__main__":
    main()
