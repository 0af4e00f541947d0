"""When to believe a significant alignment: six tests where nothing is true, and where an effect was planted.

    python benchmarks/significance.py [TEXTS] [--work DIR] [--warehouse FILE] [--layer 15] [--energies nll,hopfield]
                                      [--shuffles 10] [--seeds 20] [--only real|synthetic] [--figure FILE.svg]

TEXTS is a folder of categories, by default corpus/. An excerpt from the middle of each document, so that many
documents count alike, is ingested once (one layer of the default model, float32) into a warehouse in DIR, by default a
temporary folder; give each corpus a DIR of its own. With --warehouse a run that has stored gradient vectors is taken
instead. Then activations of one context are tested against gradients of another, with the tests of `association` on
the same tokens and features, and the same is done with synthetic data (`synthetic`, `situations`). Printed are the
tables of docs/significance.md, in Markdown; DIR/significance.json holds them as numbers, and what --only left out is
taken from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from association import TESTS
from null_situations import Floats, shuffle_contexts, shuffle_documents, true_pairing
from situations import SIZES, SYNTHETIC, coverages, null_and_planted
from stored_run import Ps, Run
from tables import markdown
from tqdm import tqdm

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.statistics.significance import benjamini_hochberg

CORPUS = Path(__file__).parent.parent / "corpus"
LAYER = 15
ENERGIES = ("nll", "hopfield")

#: Characters of each document that are read: about 5 contexts.
EXCERPT = 2_000

#: Shuffles into which effects are planted.
POWER_REPETITIONS = 3

#: The shuffle whose null distribution calibrates what is found on the true pairing.
SAME_CATEGORY = "documents, same category"

#: With the controls: another context's gradient (of synthetic data), a reference row in the feature's place.
ALL_TESTS = (*TESTS, "z_null", "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="?", type=Path, default=CORPUS, help="a folder of categories")
    parser.add_argument("--work", type=Path, help="folder for the warehouse and the results")
    parser.add_argument("--warehouse", type=Path, help="a run with stored gradient vectors, in place of TEXTS")
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--energies", type=lambda text: tuple(text.split(",")), default=ENERGIES)
    parser.add_argument("--shuffles", type=int, default=10, help="of each kind")
    parser.add_argument("--seeds", type=int, default=20, help="of each synthetic situation")
    parser.add_argument("--only", choices=("real", "synthetic"), help="do one part again")
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        written = work / "significance.json"
        results = json.loads(written.read_text(encoding="utf-8")) if arguments.only and written.exists() else {}
        if arguments.only != "synthetic":
            db = arguments.warehouse or ingested(arguments.texts, work, arguments.layer, arguments.energies)
            results |= real(db, arguments.layer, arguments.energies, arguments.shuffles)
            written.write_text(json.dumps(results, indent=1), encoding="utf-8")
        if arguments.only != "real":
            for so_far in noise(arguments.seeds):
                results |= so_far
                written.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n\n".join(tables(results)))
    if arguments.figure:
        from significance_figure import draw

        arguments.figure.write_text(draw(results), encoding="utf-8")


def ingested(texts: Path, work: Path, layer: int, energies: Sequence[str]) -> Path:
    """A warehouse of excerpts in a folder, with gradient vectors."""
    db = work / "significance.duckdb"
    options = IngestOptions(db=db, layers=(layer,), energies=tuple(energies), store_gradients=True, dtype="float32")
    ingest([excerpts(texts, work / "excerpts")], options)
    return db


def real(db: Path, layer: int, energies: Sequence[str], n_shuffles: int) -> dict[str, Any]:
    """Shuffles of a run's contexts, and its true pairing."""
    run = Run(db, CurrentRun(db).sae(layer).W_dec.numpy(), layer, energies)
    results: dict[str, Any] = {
        "corpus": {
            "layer": layer, "documents": len(np.unique(run.corpus.documents)), "contexts": len(run.corpus),
            "included_tokens": int(run.included.sum()), "shuffles": n_shuffles,
        },
        "null": [], "power": [], "true": [], "stored": [],
    }  # fmt: skip
    anywhere = replace(run.corpus, categories=np.full(len(run.corpus), "any"))
    shuffles = {
        name: [shuffle(corpus, np.random.default_rng(seed)) for seed in range(n_shuffles)]
        for name, shuffle, corpus in (
            (SAME_CATEGORY, shuffle_documents, run.corpus),
            ("contexts, same category", shuffle_contexts, run.corpus),
            ("documents, any category", shuffle_documents, anywhere),
        )
    }
    for energy in energies:
        nulls = {}
        for situation, pairings in shuffles.items():
            sizes = SIZES if situation == SAME_CATEGORY else ()
            repetitions = run.p_values(energy, pairings, sizes, POWER_REPETITIONS)
            nulls[situation] = [by_size[0.0] for by_size in repetitions]
            results["null"].append(rejections(situation, energy, nulls[situation]))
            if sizes:
                results["power"].append(power(situation, energy, nulls[situation], repetitions[:POWER_REPETITIONS]))
        true = run.p_values(energy, [true_pairing(run.corpus)])[0][0.0]
        results["true"].append(discoveries(energy, true, nulls[SAME_CATEGORY]))
        results["stored"].append(run.compared_with_stored(energy, true))
    return results


def noise(n_seeds: int) -> Iterator[dict[str, Any]]:
    """Synthetic situations, after each of them all so far."""
    results: dict[str, Any] = {"synthetic": [], "synthetic_power": [], "coverage": []}
    for situation, data in tqdm(SYNTHETIC.items(), desc="synthetic"):
        null, by_size = null_and_planted(situation, n_seeds)
        results["synthetic"].append(rejections(situation, "synthetic", null))
        if by_size:
            results["synthetic_power"].append(power(situation, "synthetic", null, by_size))
        results["coverage"].append({"situation": situation, **coverages(data)})
        yield results


def excerpts(texts: Path, folder: Path) -> Path:
    """Write EXCERPT characters from the middle of each document, whole lines, to a folder of the same categories."""
    for document in discover([texts]):
        text = document.text()
        start = max(0, len(text) - EXCERPT) // 2
        start = text.find("\n", start) + 1 if start else 0
        target = folder / document.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text[start : start + EXCERPT], encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------------------------ results


def rejections(situation: str, energy: str, repetitions: Sequence[Ps]) -> dict[str, Any]:
    """Of each test: shares rejected at 5 % and at 0.1 % and the number of q < 0.05, of each repetition."""
    measures: dict[str, Callable[[Floats], float]] = {
        "at_5": lambda p: float((p < 0.05).mean()) if len(p) else np.nan,
        "at_01": lambda p: float((p < 0.001).mean()) if len(p) else np.nan,
        "n_q": lambda p: int((benjamini_hochberg(p) < 0.05).sum()) if len(p) else 0,
    }
    tests = {
        test: {name: [measure(known(p[test])) for p in repetitions] for name, measure in measures.items()}
        for test in repetitions[0]
    }
    n_features = [len(next(iter(p.values()))) for p in repetitions]
    return {"situation": situation, "energy": energy, "features": n_features, "tests": tests}


def power(situation: str, energy: str, null: Sequence[Ps], planted: Sequence[Mapping[float, Ps]]) -> dict[str, Any]:
    """Of each test: the p below which 5 % of the null lies, and shares of planted effects below 0.05 and below that."""
    tests = {}
    for test in TESTS:
        threshold = threshold_of(null, test, 0.05)
        shares = {
            name: [
                float(np.mean([(known(by_size[size][test]) < level).mean() for by_size in planted])) for size in SIZES
            ]
            for name, level in (("nominal", 0.05), ("calibrated", threshold))
        }
        tests[test] = {"threshold": threshold, **shares}
    return {"situation": situation, "energy": energy, "sizes": list(SIZES), "tests": tests}


def discoveries(energy: str, true: Ps, null: Sequence[Ps]) -> dict[str, Any]:
    """On the true pairing, of each test: features at q < 0.05, and below the p that 0.1 % of the null falls below."""
    tests = {
        test: {
            "n_q": int((benjamini_hochberg(known(true[test])) < 0.05).sum()),
            "n_calibrated": int((true[test] < threshold_of(null, test, 0.001)).sum()),
        }
        for test in TESTS
    }
    return {"energy": energy, "features": len(true["within"]), "tests": tests}


def threshold_of(null: Sequence[Ps], test: str, level: float) -> float:
    """The p that a share `level` of the null falls below."""
    return float(np.quantile(known(np.concatenate([p[test] for p in null])), level))


def known(p: Floats) -> Floats:
    """Without NaN: z_documents needs ten documents."""
    return p[np.isfinite(p)]


# ------------------------------------------------------------------------------------------------ tables


def tables(results: Mapping[str, Any]) -> list[str]:
    """Markdown tables."""
    percent = "{:.1%}".format
    null = [["situation", "energy", *(f"{test}: 5 % / 0.1 % / q" for test in ALL_TESTS)]]
    rows = [*results.get("null", []), *results.get("synthetic", [])]
    null += [
        [
            row["situation"],
            row["energy"],
            *(_null_cell(row["tests"][t]) if t in row["tests"] else "" for t in ALL_TESTS),
        ]
        for row in rows
    ]
    strength = [["situation", "energy", "test", "threshold", *map("{:g}".format, SIZES)]]
    for row in [*results.get("power", []), *results.get("synthetic_power", [])]:
        for test, shares in row["tests"].items():
            both = zip(shares["calibrated"], shares["nominal"], strict=True)
            cells = [f"{percent(calibrated)} ({percent(nominal)})" for calibrated, nominal in both]
            strength.append([row["situation"], row["energy"], test, f"{shares['threshold']:.2g}", *cells])
    true = [["energy", "features", *(f"{test}: q / calibrated" for test in TESTS)]]
    for row in results.get("true", []):
        cells = [f"{row['tests'][test]['n_q']:,} / {row['tests'][test]['n_calibrated']:,}" for test in TESTS]
        true.append([row["energy"], f"{row['features']:,}", *cells])
    covered = [["situation", "intervals", "cover the correlation", "largest |r| of a feature", "effective documents"]]
    covered += [
        [
            row["situation"],
            f"{row['n']:,}",
            percent(row["covers"]),
            f"{row['largest_r']:.2f}",
            f"{row['effective']:.1f}",
        ]
        for row in results.get("coverage", [])
    ]
    facts = [json.dumps(fact) for fact in (results.get("corpus"), *results.get("stored", []))]
    return ["\n".join(facts), *map(markdown, (null, strength, true, covered))]


def _null_cell(rejected: Mapping[str, Sequence[float]]) -> str:
    at_5, n_q = rejected["at_5"], rejected["n_q"]
    spread = f"{np.mean(at_5):.1%} ± {100 * np.std(at_5, ddof=1):.1f}"
    return f"{spread} / {np.mean(rejected['at_01']):.2%} / {np.mean(n_q):.3g} ({np.count_nonzero(n_q)} of {len(n_q)})"


if __name__ == "__main__":
    main()
