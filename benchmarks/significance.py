"""When to believe a significant alignment: four tests where nothing is true, and where an effect was planted.

    python benchmarks/significance.py [TEXTS] [--work DIR] [--shuffles 20] [--figure FILE.svg]

TEXTS is a folder of categories, by default corpus/. An excerpt from the middle of each document, so that many
documents count alike, is ingested once (layer 15 of the default model, `nll` and `logit_lens`, float32) into a
warehouse in DIR, by default a temporary folder; give each corpus a DIR of its own. Then activations of one context are
tested against gradients of another, with the four tests of `association` on the same tokens and
features, and the same is done with synthetic noise. Printed are the tables of docs/significance.md, in Markdown;
DIR/significance.json holds them as numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from association import TESTS, Contexts, compare, enough_to_test
from null_situations import (
    Corpus,
    Floats,
    Ids,
    Noise,
    Pairing,
    Singles,
    shuffle_contexts,
    shuffle_documents,
    synthetic,
    tested,
    tested_with_effects,
    true_pairing,
    unit_effect,
)
from numpy.typing import NDArray
from tqdm import tqdm

from energy_lens import Warehouse
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.ingest.statistics.significance import benjamini_hochberg

CORPUS = Path(__file__).parent.parent / "corpus"
LAYER = 15
ENERGIES = ("nll", "logit_lens")

#: Characters of each document that are read: about 5 contexts.
EXCERPT = 2_000

#: Features whose dense arrays are held at once: 600 contexts of 128 tokens are 20 MB an array.
CHUNK = 64

#: Planted effects, as the score_within that each alone would have.
SIZES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06)

#: Shuffles and seeds into which effects are planted.
POWER_REPETITIONS = 5

#: Seeds of synthetic data to a shuffle: 64 features at a time are few.
SEEDS_PER_SHUFFLE = 6

#: The shuffle whose null distribution calibrates what is found on the true pairing.
SAME_CATEGORY = "documents, same category"

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
    parser.add_argument("--shuffles", type=int, default=20, help="of each kind")
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results = study(arguments.texts, work, arguments.shuffles)
        (work / "significance.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n\n".join(tables(results)))
    if arguments.figure:
        from significance_figure import draw

        arguments.figure.write_text(draw(results), encoding="utf-8")


def study(texts: Path, work: Path, n_shuffles: int) -> dict[str, Any]:
    """All results, as they are written to JSON."""
    db = work / "significance.duckdb"
    options = IngestOptions(db=db, layers=(LAYER,), energies=ENERGIES, store_gradients=True, dtype="float32")
    ingest([excerpts(texts, work / "excerpts")], options)
    run = Run(db, choose_saes(options.model, options.layers)[LAYER].W_dec.numpy())
    results: dict[str, Any] = {
        "corpus": {
            "documents": len(np.unique(run.corpus.documents)), "contexts": len(run.corpus),
            "included_tokens": int(run.included.sum()), "shuffles": n_shuffles,
        },
        "null": [], "power": [], "true": [], "before_shuffling": [], "stored": [],
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
    for energy in ENERGIES:
        nulls = {}
        for situation, pairings in shuffles.items():
            sizes = () if situation.startswith("contexts") else SIZES
            repetitions = run.p_values(energy, pairings, sizes, POWER_REPETITIONS)
            nulls[situation] = [by_size[0.0] for by_size in repetitions]
            results["null"].append(rejections(situation, energy, nulls[situation]))
            if sizes:
                results["power"].append(power(situation, energy, nulls[situation], repetitions[:POWER_REPETITIONS]))
            before = [{"within": p} for p in run.p_values_before_shuffling(energy, pairings)]
            results["before_shuffling"].append(rejections(situation, energy, before))
        true = run.p_values(energy, [true_pairing(run.corpus)])[0][0.0]
        results["true"].append(discoveries(energy, true, nulls[SAME_CATEGORY]))
        results["stored"].append(run.compared_with_stored(energy, true["within"]))
    for i, (situation, noise) in enumerate(tqdm(SYNTHETIC.items(), desc="synthetic")):
        seeds = range(10_000 * i, 10_000 * i + SEEDS_PER_SHUFFLE * n_shuffles)
        null = [tested(*synthetic(noise, seed)) for seed in seeds]
        planted = [tested_with_effects(noise, seed, SIZES) for seed in seeds[: 3 * POWER_REPETITIONS]]
        results["null"].append(rejections(situation, "noise", null))
        results["power"].append(power(situation, "noise", null, planted))
    return results


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


# ------------------------------------------------------------------------------------------------ a run's arrays


@dataclass
class Run:
    """Activations and gradients of the current run of a warehouse at one layer, by context."""

    db: Path
    decoder: Singles  #: [d_sae, d_model]
    layer: int = LAYER
    energies: Sequence[str] = ENERGIES

    def __post_init__(self) -> None:
        with Warehouse(self.db) as warehouse:
            self.run_id = int(warehouse.sql("SELECT run_id FROM runs WHERE is_current").value())

            def ask(columns: str, table: str, order: str, layer: int | None = None) -> dict[str, NDArray[Any]]:
                place = f"run_id = {self.run_id}" + (f" AND layer = {layer}" if layer is not None else "")
                return warehouse.sql(f"SELECT {columns} FROM {table} WHERE {place} ORDER BY {order}").numpy()

            self.length = int(ask("context_length", "runs", "run_id")["context_length"][0])
            tokens = ask("token_id, included, counted", "token_layers", "token_id", self.layer)
            contexts = ask("context_id, document_id, context_index", "contexts", "context_id")
            documents = ask("document_id, category", "documents", "document_id")
            plan = ask("context_id, group_id * 100_000 + row AS row", "plan", "context_id")
            self.ids = np.unique(tokens["token_id"] // self.length)  # of the committed contexts
            active = ask("feature, token_id, activation", "activations", "feature, token_id", self.layer)
        self.included, self.stored_counted = (self._by_context(tokens["token_id"], tokens[name]) for name in
                                              ("included", "counted"))  # fmt: skip
        place = np.searchsorted(contexts["context_id"], self.ids)
        document = contexts["document_id"][place].astype(np.int64)
        category = documents["category"][np.searchsorted(documents["document_id"], document)].astype(str)
        self.corpus = Corpus(document, category, contexts["context_index"][place].astype(np.int64), plan["row"][place])
        self.active = {name: np.asarray(values) for name, values in active.items()}

    def _by_context(self, token_ids: Ids, values: NDArray[Any]) -> NDArray[Any]:
        """Values of tokens [n, …] as [context, position, …], 0 where there is none."""
        dense = np.zeros((len(self.ids), self.length, *values.shape[1:]), values.dtype)
        dense[np.searchsorted(self.ids, token_ids // self.length), token_ids % self.length] = values
        return dense

    @cached_property
    def gradients(self) -> Mapping[str, Singles]:
        """∂E/∂x by energy [context, position, d_model]."""
        return {energy: self.vectors(energy) for energy in self.energies}

    def vectors(self, energy: str) -> Singles:
        """∂E/∂x of one energy, not kept: [context, position, d_model], 0 where not included."""
        place = f"run_id = {self.run_id} AND layer = {self.layer} AND energy = $energy"
        query = f"SELECT token_id, vector FROM gradients WHERE {place} ORDER BY token_id"
        with Warehouse(self.db) as warehouse:
            frame = warehouse.sql(query, energy=energy).pl()
        vectors = frame["vector"].explode().to_numpy().astype(np.float32).reshape(len(frame), -1)
        return self._by_context(frame["token_id"].to_numpy(), vectors)

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

    def _chunks(self) -> list[slice]:
        return [slice(i, min(i + CHUNK, len(self.decoder))) for i in range(0, len(self.decoder), CHUNK)]

    def _along(self, vectors: Singles, features: slice) -> Singles:
        """g = −⟨∂E/∂x, d_j⟩ of a chunk of features: [context, position, feature]."""
        flat = vectors.reshape(-1, vectors.shape[-1]) @ -self.decoder[features].T
        return flat.reshape(*vectors.shape[:2], -1)

    def p_values(
        self, energy: str, pairings: Sequence[Pairing], sizes: Sequence[float] = (), n_planted: int = 0
    ) -> list[dict[float, Ps]]:
        """Of each pairing: p of each test by planted size, of the features that every test can test.

        Size 0 is the pairing itself; the other sizes are planted into the first n_planted pairings.
        """
        gradients = self.gradients[energy]
        contexts = [self.contexts(pairing) for pairing in pairings]
        counted = [pairs.counted() for pairs in contexts]
        parts: list[dict[float, list[Ps]]] = [defaultdict(list) for _ in pairings]
        for features in tqdm(self._chunks(), desc=energy):
            all_a, all_g = self.activations(features), self._along(gradients, features)
            for i, (pairing, pairs, tokens, by_size) in enumerate(zip(pairings, contexts, counted, parts, strict=True)):
                a, g = all_a[pairing.activations], all_g[pairing.gradients]
                within = pairs.tested(g, tokens)
                enough = enough_to_test(a, tokens, pairs.documents)
                by_size[0.0].append(_of(enough, compare(a, g, within, tokens, pairs.documents)))
                if i < n_planted:
                    effect, effect_within = unit_effect(a, within, pairs)
                    for size in sizes:
                        both = (x + np.float32(size) * y for x, y in ((g, effect), (within, effect_within)))
                        by_size[size].append(_of(enough, compare(a, *both, tokens, pairs.documents)))
        return [{size: _joined(chunks) for size, chunks in by_size.items()} for by_size in parts]

    # -- checks

    def p_values_before_shuffling(self, energy: str, pairings: Sequence[Pairing]) -> list[Floats]:
        """p of the within-context test of each pairing, g̃ taken *before* shuffling with the mates of its own row.

        The activations' document is no mate there either. This is the other way to test a shuffled pairing.
        """
        documents, prepared = self.corpus.documents, []
        for pairing in pairings:
            partner = documents.copy()
            partner[pairing.gradients] = documents[pairing.activations]
            before = Contexts(self.included, partner, documents, self.corpus.rows)
            counted = before.counted()[pairing.gradients] & self.included[pairing.activations]
            prepared.append((pairing, before, counted))
        parts: list[list[Floats]] = [[] for _ in pairings]
        for features in tqdm(self._chunks(), desc=f"{energy}, g̃ before shuffling"):
            all_a, g = self.activations(features), self._along(self.gradients[energy], features)
            for chunks, (pairing, before, counted) in zip(parts, prepared, strict=True):
                a = all_a[pairing.activations]
                within = before.less_mates(before.centred(g))[pairing.gradients]
                enough = enough_to_test(a, counted, documents[pairing.activations])
                p = compare(a, g[pairing.gradients], within, counted, documents[pairing.activations])["within"]
                chunks.append(p[enough])
        return [np.concatenate(chunks) for chunks in parts]

    def compared_with_stored(self, energy: str, p: Floats) -> dict[str, Any]:
        """Whether p of the true pairing and the counted tokens are what ingest stored."""
        query = "SELECT p_value FROM efas WHERE energy = $energy AND gradient = 'decoder' AND category = 'all'"
        with Warehouse(self.db) as warehouse:
            result = warehouse.sql(f"{query} AND p_value IS NOT NULL ORDER BY feature", energy=energy)
            stored = result.numpy()["p_value"]
        counted = self.contexts(true_pairing(self.corpus)).counted()
        return {
            "energy": energy, "features_tested": [len(stored), len(p)],
            "largest_difference_of_p": float(np.abs(stored - p).max()) if len(stored) == len(p) else None,
            "same_counted_tokens": bool((counted == self.stored_counted).all()),
        }  # fmt: skip


def _of(features: NDArray[np.bool_], p: Ps) -> Ps:
    return {test: values[features] for test, values in p.items()}


def _joined(parts: Sequence[Ps]) -> Ps:
    return {test: np.concatenate([part[test] for part in parts]) for test in TESTS}


# ------------------------------------------------------------------------------------------------ results


def rejections(situation: str, energy: str, repetitions: Sequence[Ps]) -> dict[str, Any]:
    """Of each test: shares rejected at 5 % and at 0.1 % and the number of q < 0.05, of each repetition."""
    measures: dict[str, Callable[[Floats], float]] = {
        "at_5": lambda p: float((p < 0.05).mean()),
        "at_01": lambda p: float((p < 0.001).mean()),
        "n_q": lambda p: int((benjamini_hochberg(p) < 0.05).sum()),
    }
    tests = {
        test: {name: [measure(p[test]) for p in repetitions] for name, measure in measures.items()}
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
            name: [float(np.mean([(by_size[size][test] < level).mean() for by_size in planted])) for size in SIZES]
            for name, level in (("nominal", 0.05), ("calibrated", threshold))
        }
        tests[test] = {"threshold": threshold, **shares}
    return {"situation": situation, "energy": energy, "sizes": list(SIZES), "tests": tests}


def discoveries(energy: str, true: Ps, null: Sequence[Ps]) -> dict[str, Any]:
    """On the true pairing, of each test: features at q < 0.05, and below the p that 0.1 % of the null falls below."""
    tests = {
        test: {
            "n_q": int((benjamini_hochberg(true[test]) < 0.05).sum()),
            "n_calibrated": int((true[test] < threshold_of(null, test, 0.001)).sum()),
        }
        for test in TESTS
    }
    return {"energy": energy, "features": len(true["within"]), "tests": tests}


def threshold_of(null: Sequence[Ps], test: str, level: float) -> float:
    """The p that a share `level` of the null falls below."""
    return float(np.quantile(np.concatenate([p[test] for p in null]), level))


# ------------------------------------------------------------------------------------------------ tables


def tables(results: Mapping[str, Any]) -> list[str]:
    """Markdown tables."""
    percent = "{:.1%}".format
    null = [["situation", "energy", *(f"{test}: 5 % / 0.1 % / q" for test in TESTS)]]
    null += [
        [row["situation"], row["energy"], *(_null_cell(row["tests"][t]) for t in TESTS)] for row in results["null"]
    ]
    strength = [["situation", "energy", "test", "threshold", *map("{:g}".format, SIZES)]]
    for row in results["power"]:
        for test, shares in row["tests"].items():
            both = zip(shares["calibrated"], shares["nominal"], strict=True)
            cells = [f"{percent(calibrated)} ({percent(nominal)})" for calibrated, nominal in both]
            strength.append([row["situation"], row["energy"], test, f"{shares['threshold']:.2g}", *cells])
    true = [["energy", "features", *(f"{test}: q / calibrated" for test in TESTS)]]
    for row in results["true"]:
        cells = [f"{row['tests'][test]['n_q']:,} / {row['tests'][test]['n_calibrated']:,}" for test in TESTS]
        true.append([row["energy"], f"{row['features']:,}", *cells])
    before = [["within, g̃ taken before shuffling", "energy", "5 % / 0.1 % / q"]]
    before += [
        [row["situation"], row["energy"], _null_cell(row["tests"]["within"])] for row in results["before_shuffling"]
    ]
    facts = [json.dumps(fact) for fact in (results["corpus"], *results["stored"])]
    return ["\n".join(facts), *map(markdown, (null, before, strength, true))]


def _null_cell(rejected: Mapping[str, Sequence[float]]) -> str:
    at_5, n_q = rejected["at_5"], rejected["n_q"]
    spread = f"{np.mean(at_5):.1%} ± {100 * np.std(at_5, ddof=1):.1f}"
    return f"{spread} / {np.mean(rejected['at_01']):.2%} / {np.mean(n_q):.3g} ({np.count_nonzero(n_q)} of {len(n_q)})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
