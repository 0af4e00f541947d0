"""When to believe a significant alignment: four tests where nothing is true, and where an effect was planted.

    python benchmarks/significance.py [TEXTS] [--work DIR] [--max-tokens 73000] [--shuffles 20] [--figure FILE.svg]

TEXTS is a folder of categories, by default corpus/. Its contexts are ingested once (layer 15 of the default model,
`nll` and `logit_lens`, float32) into a warehouse in DIR; give each corpus a DIR of its own, by default a temporary
one. Then activations of one context are tested against gradients of another, with the four tests of
`energy_lens.analysis.comparison` on the same tokens and features, and the same is done with synthetic noise. Printed
are the tables of docs/significance.md, in Markdown; DIR/significance.json holds them as numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from null_situations import (
    Corpus,
    Floats,
    Ids,
    Noise,
    Pairing,
    Singles,
    plant,
    shuffle_contexts,
    shuffle_documents,
    synthetic,
    tested,
    true_pairing,
)
from numpy.typing import NDArray

from energy_lens import Warehouse
from energy_lens.analysis.comparison import TESTS, Contexts, compare, enough_to_test
from energy_lens.analysis.significance import benjamini_hochberg, two_sided_p
from energy_lens.ingest.pipeline import IngestOptions, choose_saes, ingest

CORPUS = Path(__file__).parent.parent / "corpus"
LAYER = 15
ENERGIES = ("nll", "logit_lens")

#: Features whose dense arrays are held at once: 570 contexts of 128 tokens are 37 MB an array.
CHUNK = 128

#: Planted effects, as the score_within that each alone would have.
SIZES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06)

#: Shuffles and seeds into which effects are planted.
POWER_REPETITIONS = 5

SYNTHETIC = {
    "synthetic: document levels": Noise(levels=0.3),
    "synthetic: levels and drift": Noise(levels=0.3, drift=0.3),
    "synthetic: shared levels and drift": Noise(levels=0.3, drift=0.3, shared_levels=True),
}

#: p by test, of the features that can be tested.
Ps = dict[str, Floats]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="?", type=Path, default=CORPUS, help="a folder of categories")
    parser.add_argument("--work", type=Path, help="folder for the warehouse and the results")
    parser.add_argument("--max-tokens", type=int, default=73_000)
    parser.add_argument("--shuffles", type=int, default=20, help="of each kind; twice as many seeds of synthetic data")
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results = study(arguments.texts, work / "significance.duckdb", arguments.max_tokens, arguments.shuffles)
        (work / "significance.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n\n".join(tables(results)))
    if arguments.figure:
        from significance_figure import draw

        arguments.figure.write_text(draw(results), encoding="utf-8")


def study(texts: Path, db: Path, max_tokens: int, n_shuffles: int) -> dict[str, Any]:
    """All results, as they are written to JSON."""
    options = IngestOptions(
        db=db, layers=(LAYER,), energies=ENERGIES, store_gradients=True, dtype="float32", max_tokens=max_tokens
    )
    ingest([texts], options)
    run = Run(db, choose_saes(options)[LAYER].W_dec.numpy())
    results: dict[str, Any] = {
        "corpus": {
            "documents": len(np.unique(run.corpus.documents)), "contexts": len(run.corpus),
            "included_tokens": int(run.included.sum()), "shuffles": n_shuffles,
        },
        "null": [], "power": [], "true": [], "checks": [],
    }  # fmt: skip
    shuffles = {"documents shuffled": shuffle_documents, "contexts shuffled": shuffle_contexts}
    for energy in ENERGIES:
        nulls: dict[str, list[Ps]] = {}
        planted: dict[float, list[Ps]] = {size: [] for size in SIZES}
        for situation, shuffle in shuffles.items():
            nulls[situation] = []
            for seed in range(n_shuffles):
                pairing = shuffle(run.corpus, np.random.default_rng(seed))
                sizes = SIZES if situation == "documents shuffled" and seed < POWER_REPETITIONS else ()
                by_size = run.p_values(energy, pairing, (0.0, *sizes))
                nulls[situation].append(by_size.pop(0.0))
                for size, found in by_size.items():
                    planted[size].append(found)
                print(f"{energy}, {situation}, {seed + 1} of {n_shuffles}", flush=True)
            results["null"].append(rejections(situation, energy, nulls[situation]))
            results["checks"].append(run.own_mates_compared(energy, situation, shuffle, n_shuffles))
        results["power"].append(power("documents shuffled", energy, nulls["documents shuffled"], planted))
        own = run.p_values(energy, true_pairing(run.corpus), (0.0,))[0.0]
        results["true"].append(discoveries(energy, own, nulls["documents shuffled"]))
        results["checks"].append(run.compared_with_stored(energy))
    for situation, noise in SYNTHETIC.items():
        found = [tested(*synthetic(noise, seed)) for seed in range(2 * n_shuffles)]
        results["null"].append(rejections(situation, "noise", found))
        planted = {size: [] for size in SIZES}
        for seed in range(POWER_REPETITIONS):
            a, g, contexts = synthetic(noise, seed)
            for size in SIZES:
                planted[size].append(tested(a, plant(a, g, contexts, size), contexts))
        results["power"].append(power(situation, "noise", found, planted))
        print(situation, flush=True)
    return results


# ------------------------------------------------------------------------------------------------ a run's arrays


@dataclass
class Run:
    """Activations and gradients of the one run of a warehouse at LAYER, by context."""

    db: Path
    decoder: Singles  #: [d_sae, d_model]

    def __post_init__(self) -> None:
        with Warehouse(self.db) as warehouse:

            def ask(query: str) -> dict[str, NDArray[Any]]:
                return warehouse.sql(query).numpy()

            self.length = int(warehouse.sql("SELECT context_length FROM runs").value())
            tokens = ask("SELECT token_id, included, counted FROM token_layers ORDER BY token_id")
            contexts = ask("SELECT context_id, document_id, context_index FROM contexts ORDER BY context_id")
            documents = ask("SELECT document_id, category FROM documents ORDER BY document_id")
            plan = ask("SELECT context_id, group_id * 100_000 + row AS row FROM plan ORDER BY context_id")
            self.ids = np.unique(tokens["token_id"] // self.length)  # of the committed contexts
            active = ask("SELECT feature, token_id, activation FROM activations ORDER BY feature, token_id")
        self.included, self.stored_counted = (self._by_context(tokens["token_id"], tokens[name]) for name in
                                              ("included", "counted"))  # fmt: skip
        own = np.searchsorted(contexts["context_id"], self.ids)
        document = contexts["document_id"][own].astype(np.int64)
        category = documents["category"][np.searchsorted(documents["document_id"], document)].astype(str)
        self.corpus = Corpus(document, category, contexts["context_index"][own].astype(np.int64), plan["row"][own])
        self.active = {name: np.asarray(values) for name, values in active.items()}

    def _by_context(self, token_ids: Ids, values: NDArray[Any]) -> NDArray[Any]:
        """Values of tokens [n, …] as [context, position, …], 0 where there is none."""
        dense = np.zeros((len(self.ids), self.length, *values.shape[1:]), values.dtype)
        dense[np.searchsorted(self.ids, token_ids // self.length), token_ids % self.length] = values
        return dense

    @cached_property
    def gradients(self) -> Mapping[str, Singles]:
        """∂E/∂x by energy [context, position, d_model]."""
        query = "SELECT token_id, vector FROM gradients WHERE energy = $energy ORDER BY token_id"
        found = {}
        with Warehouse(self.db) as warehouse:
            for energy in ENERGIES:
                frame = warehouse.sql(query, energy=energy).pl()
                vectors = frame["vector"].explode().to_numpy().astype(np.float32).reshape(len(frame), -1)
                found[energy] = self._by_context(frame["token_id"].to_numpy(), vectors)
        return found

    def activations(self, features: slice) -> Singles:
        """a [context, position, feature]."""
        start, stop = np.searchsorted(self.active["feature"], [features.start, features.stop])
        token, feature = (self.active[name][start:stop] for name in ("token_id", "feature"))
        a = np.zeros((len(self.ids), self.length, features.stop - features.start), np.float32)
        place = np.searchsorted(self.ids, token // self.length), token % self.length, feature - features.start
        a[place] = self.active["activation"][start:stop]
        return a

    def contexts(self, pairing: Pairing) -> Contexts:
        """The pairs as contexts: included where both sides are."""
        included = self.included[pairing.activations] & self.included[pairing.gradients]
        documents = self.corpus.documents
        return Contexts(included, documents[pairing.activations], documents[pairing.gradients], pairing.rows)

    def _chunks(self) -> Iterator[slice]:
        for first in range(0, len(self.decoder), CHUNK):
            yield slice(first, min(first + CHUNK, len(self.decoder)))

    def _along(self, vectors: Singles, features: slice) -> Singles:
        """g = −⟨∂E/∂x, d_j⟩ of a chunk of features: [context, position, feature]."""
        flat = vectors.reshape(-1, vectors.shape[-1]) @ -self.decoder[features].T
        return flat.reshape(*vectors.shape[:2], -1)

    def p_values(self, energy: str, pairing: Pairing, sizes: Sequence[float]) -> dict[float, Ps]:
        """p of each test by planted size, of the features that every test can test."""
        contexts = self.contexts(pairing)
        counted = contexts.counted()
        raw = self.gradients[energy][pairing.gradients]
        within = contexts.less_mates(contexts.centred(raw))
        parts: dict[float, list[Ps]] = {size: [] for size in sizes}
        for features in self._chunks():
            a = self.activations(features)[pairing.activations] * contexts.included[..., None]
            enough = enough_to_test(a, counted, contexts.documents)
            a, g, centred_g = a[..., enough], self._along(raw, features), self._along(within, features)
            g, centred_g = g[..., enough], centred_g[..., enough]
            for size in sizes:
                if size:
                    g_size = plant(a, g, contexts, size)
                    centred_size = contexts.less_mates(contexts.centred(g_size))
                    parts[size].append(compare(a, g_size, centred_size, counted, contexts.documents))
                else:
                    parts[size].append(compare(a, g, centred_g, counted, contexts.documents))
        return {size: _joined(own) for size, own in parts.items()}

    # -- checks

    def own_mates_p(self, energy: str, pairing: Pairing) -> Floats:
        """p of the within-context test where g̃ is taken *before* shuffling, with the mates of the gradients' own row.

        The activations' document is no mate there either. This is the other way to test a shuffled pairing.
        """
        partner = self.corpus.documents.copy()
        partner[pairing.gradients] = self.corpus.documents[pairing.activations]
        before = Contexts(self.included, partner, self.corpus.documents, self.corpus.rows)
        within = before.less_mates(before.centred(self.gradients[energy]))[pairing.gradients]
        counted = before.counted()[pairing.gradients] & self.included[pairing.activations]
        parts = []
        for features in self._chunks():
            a = self.activations(features)[pairing.activations]
            enough = enough_to_test(a, counted, self.corpus.documents[pairing.activations])
            s = np.einsum("ct,ctf,ctf->cf", counted, a[..., enough], self._along(within, features)[..., enough])
            parts.append(two_sided_p(s.sum(0) / np.sqrt((s.astype(np.float64) ** 2).sum(0))))
        return np.concatenate(parts)

    def own_mates_compared(
        self, energy: str, situation: str, shuffle: Callable[..., Pairing], n_shuffles: int
    ) -> dict[str, Any]:
        """The within-context test's rejections with g̃ taken before shuffling."""
        pairings = [shuffle(self.corpus, np.random.default_rng(seed)) for seed in range(n_shuffles)]
        found = [{"within": self.own_mates_p(energy, pairing)} for pairing in pairings]
        return {"check": "g̃ before shuffling", **rejections(situation, energy, found)}

    def compared_with_stored(self, energy: str) -> dict[str, Any]:
        """Largest difference of p on the true pairing from the p that ingest stored, and whether tokens agree."""
        query = "SELECT feature, p_value FROM efas WHERE energy = $energy AND gradient = 'decoder' AND category = 'all'"
        with Warehouse(self.db) as warehouse:
            stored = warehouse.sql(f"{query} AND p_value IS NOT NULL ORDER BY feature", energy=energy).numpy()[
                "p_value"
            ]
        pairing = true_pairing(self.corpus)
        own = self.p_values(energy, pairing, (0.0,))[0.0]["within"]
        return {
            "check": "stored p", "energy": energy, "features": [len(stored), len(own)],
            "same_tokens": bool((self.contexts(pairing).counted() == self.stored_counted).all()),
            "largest_difference": float(np.abs(stored - own).max()) if len(stored) == len(own) else None,
        }  # fmt: skip


def _joined(parts: Sequence[Ps]) -> Ps:
    return {test: np.concatenate([part[test] for part in parts]) for test in TESTS}


# ------------------------------------------------------------------------------------------------ results


def rejections(situation: str, energy: str, found: Sequence[Ps]) -> dict[str, Any]:
    """Of each test: shares rejected at 5 % and at 0.1 % and the number of q < 0.05, of each repetition."""
    measures: dict[str, Callable[[Floats], float]] = {
        "at_5": lambda p: float((p < 0.05).mean()),
        "at_01": lambda p: float((p < 0.001).mean()),
        "n_q": lambda p: int((benjamini_hochberg(p) < 0.05).sum()),
    }
    tests = {
        test: {name: [measure(own[test]) for own in found] for name, measure in measures.items()} for test in found[0]
    }
    n_features = [len(next(iter(own.values()))) for own in found]
    return {"situation": situation, "energy": energy, "features": n_features, "tests": tests}


def power(situation: str, energy: str, null: Sequence[Ps], planted: Mapping[float, Sequence[Ps]]) -> dict[str, Any]:
    """Of each test: the p below which 5 % of the null lies, and shares of planted effects below 0.05 and below that."""
    tests = {}
    for test in TESTS:
        threshold = threshold_of(null, test, 0.05)
        shares = {
            name: [float(np.mean([(p[test] < level).mean() for p in planted[size]])) for size in SIZES]
            for name, level in (("nominal", 0.05), ("calibrated", threshold))
        }
        tests[test] = {"threshold": threshold, **shares}
    return {"situation": situation, "energy": energy, "sizes": list(SIZES), "tests": tests}


def discoveries(energy: str, own: Ps, null: Sequence[Ps]) -> dict[str, Any]:
    """On the true pairing, of each test: features at q < 0.05, and below the p that 0.1 % of the null falls below."""
    tests = {
        test: {
            "n_q": int((benjamini_hochberg(own[test]) < 0.05).sum()),
            "n_calibrated": int((own[test] < threshold_of(null, test, 0.001)).sum()),
        }
        for test in TESTS
    }
    return {"energy": energy, "features": len(own["within"]), "tests": tests}


def threshold_of(null: Sequence[Ps], test: str, level: float) -> float:
    """The p that a share `level` of the null falls below."""
    return float(np.quantile(np.concatenate([p[test] for p in null]), level))


# ------------------------------------------------------------------------------------------------ tables


def tables(results: Mapping[str, Any]) -> list[str]:
    """Markdown tables."""
    percent = "{:.1%}".format
    null = [["situation", "energy", *(f"{test}: 5 % / 0.1 % / q" for test in TESTS)]]
    for row in results["null"]:
        cells = []
        for test in TESTS:
            own = row["tests"][test]
            spread = f"{percent(np.mean(own['at_5']))} ± {100 * np.std(own['at_5'], ddof=1):.1f}"
            found = f"{np.mean(own['n_q']):.3g} ({np.count_nonzero(own['n_q'])} of {len(own['n_q'])})"
            cells.append(f"{spread} / {np.mean(own['at_01']):.2%} / {found}")
        null.append([row["situation"], row["energy"], *cells])
    strength = [["situation", "energy", "test", "threshold", *map("{:g}".format, SIZES)]]
    for row in results["power"]:
        for test, own in row["tests"].items():
            cells = [f"{percent(a)} ({percent(b)})" for a, b in zip(own["calibrated"], own["nominal"], strict=True)]
            strength.append([row["situation"], row["energy"], test, f"{own['threshold']:.2g}", *cells])
    true = [["energy", "features", *(f"{test}: q / calibrated" for test in TESTS)]]
    for row in results["true"]:
        cells = [f"{row['tests'][test]['n_q']:,} / {row['tests'][test]['n_calibrated']:,}" for test in TESTS]
        true.append([row["energy"], f"{row['features']:,}", *cells])
    checks = "\n".join(json.dumps(check, ensure_ascii=False) for check in results["checks"] if "tests" not in check)
    other = [["g̃ before shuffling", "energy", "5 %", "0.1 %", "n q"]]
    for row in results["checks"]:
        if "tests" in row:
            own = row["tests"]["within"]
            spread = f"{percent(np.mean(own['at_5']))} ± {100 * np.std(own['at_5'], ddof=1):.1f}"
            other.append(
                [row["situation"], row["energy"], spread, f"{np.mean(own['at_01']):.2%}", f"{np.mean(own['n_q']):.3g}"]
            )
    return [json.dumps(results["corpus"]), *map(_markdown, (null, true, strength, other)), checks]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
