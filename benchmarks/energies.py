"""What each energy adds to an ingest, and what the statistics take of it, in one run on the default model and its SAEs.

    python benchmarks/energies.py [--rounds 3] [--groups 1] [--dtype auto]

Each round ingests the same number of tokens with `nll` alone and with `nll` and each other energy; the median of the
rounds' ratios to `nll` alone is printed, since seconds differ between machines. Everything after start-up counts. A
second table says where the time of the last round's ingests went: the within-context test and its negative control are
a part of the statistics in the stream, so that line bounds their cost from above.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from energy_lens.ingest.energies.registry import ENERGIES
from energy_lens.ingest.pipeline import IngestOptions, IngestSummary, commits, ingest
from energy_lens.ingest.pipeline import run as pipeline
from energy_lens.ingest.statistics.histograms import LayerHistograms
from energy_lens.ingest.statistics.stream import LayerStatistics

CORPUS = Path(__file__).parent.parent / "corpus"

SETS = [("nll",), *(("nll", name) for name in ENERGIES if name != "nll"), tuple(ENERGIES)]

#: What is timed apart: (owner, attribute, heading).
STAGES: list[tuple[Any, str, str]] = [
    (LayerStatistics, "add", "moments, test, control"),
    (LayerHistograms, "add", "histograms"),
    (commits, "store_group", "commits"),
    (pipeline, "finish", "finish"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=1, help="groups of the plan per round (about 4,480 tokens each)")
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()

    speeds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    shares: dict[tuple[str, ...], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        done = dict.fromkeys(SETS, 0)
        for _ in range(arguments.rounds):
            for names in SETS:
                options = IngestOptions(
                    db=Path(scratch) / f"{'_'.join(names)}.duckdb", dtype=arguments.dtype, energies=names,
                    max_tokens=done[names] + 4_096 * arguments.groups,
                )  # fmt: skip
                with timed() as seconds, contextlib.redirect_stderr(io.StringIO()):
                    summary = ingest([CORPUS], options)
                done[names] = summary.tokens
                speeds[names].append(summary.new_tokens / duration(summary))
                shares[names] = {stage: spent / duration(summary) for stage, spent in seconds.items()}

    alone = speeds[SETS[0]]
    print(f"{'energies':48} {'tokens/s':>9} {'ratio to nll':>13} {'added ms a token':>17}   (ratio, min to max)")
    for names, rates in speeds.items():
        ratios = [a / b for a, b in zip(rates, alone, strict=True)]
        added = statistics.median(1_000 / a - 1_000 / b for a, b in zip(rates, alone, strict=True))
        print(
            f"{','.join(names):48} {statistics.median(rates):9,.0f} {statistics.median(ratios):13.2f} {added:17.2f}   "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    headings = [heading for _, _, heading in STAGES]
    print("\nshare of the time".ljust(49) + "".join(f"{heading:>24}" for heading in headings))
    for names, stage_shares in shares.items():
        print(f"{','.join(names):48}" + "".join(f"{stage_shares[heading]:24.1%}" for heading in headings))


def duration(summary: IngestSummary) -> float:
    return summary.seconds + summary.finish_seconds


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds spent in each stage while the context lasts."""
    seconds: dict[str, float] = defaultdict(float)
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in STAGES]

    def clocked(function: Callable[..., Any], heading: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[heading] += time.perf_counter() - started

        return call

    for owner, name, heading in STAGES:
        setattr(owner, name, clocked(getattr(owner, name), heading))
    try:
        yield seconds
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


if __name__ == "__main__":
    main()
