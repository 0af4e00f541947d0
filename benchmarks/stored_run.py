"""The current run of a warehouse with stored gradient vectors, at one layer: arrays by context, and p of pairings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from association import TESTS, Contexts, compare, enough_to_test
from null_situations import Corpus, Floats, Ids, Pairing, Singles, true_pairing, unit_effect
from numpy.typing import NDArray
from tqdm import tqdm

from energy_lens import Warehouse
from energy_lens.ingest.statistics.directions import DecoderRows, Sizes, direction_test, read_references

#: Features whose dense arrays are held at once: 600 contexts of 128 tokens are 20 MB an array.
CHUNK = 64

#: p by test, of the features that can be tested.
Ps = dict[str, Floats]


class Part(NamedTuple):
    """Of a chunk of features: p of the tests that need no other features, and what t_specific is made of."""

    enough: NDArray[np.bool_]  #: [feature]
    p: Ps
    sum_s: Floats  #: Σa·g̃ [feature]
    sum_gc2: Floats  #: Σg̃² [feature]
    along: Floats  #: Σa·g̃ with g along the references' unit rows [feature, reference]


class _Paired(NamedTuple):
    """A pairing, ready to be tested."""

    pairing: Pairing
    contexts: Contexts
    counted: NDArray[np.bool_]  #: [context, position]
    along: Singles  #: g̃ along the references' unit rows [context, position, reference]

    def part(self, a: Singles, g: Singles, within: Singles) -> Part:
        """a, g, g̃ [context, position, feature]."""
        sum_s, sum_gc2 = (np.einsum("ctf,ctf->f", x, within).astype(np.float64) for x in (a, within))
        along = a.reshape(-1, a.shape[-1]).T @ self.along.reshape(-1, self.along.shape[-1])
        enough = enough_to_test(a, self.counted, self.contexts.documents)
        p = compare(a, g, within, self.counted, self.contexts.documents)
        return Part(enough, p, sum_s, sum_gc2, along.astype(np.float64))


@dataclass
class Run:
    """Activations and gradients of the current run of a warehouse at one layer, by context."""

    db: Path
    decoder: Singles  #: [d_sae, d_model]
    layer: int
    energies: Sequence[str] = ()

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

    @cached_property
    def references(self) -> Ids:
        """Features whose rows stand beside every other one's in the test of the direction, as the run chose them."""
        with Warehouse(self.db) as warehouse:
            return read_references(warehouse, self.run_id, self.layer)

    @cached_property
    def unit_rows(self) -> Singles:
        """Decoder rows divided by their lengths [d_sae, d_model]."""
        return self.decoder / np.linalg.norm(self.decoder, axis=1, keepdims=True)

    def p_values(
        self, energy: str, pairings: Sequence[Pairing], sizes: Sequence[float] = (), n_planted: int = 0
    ) -> list[dict[float, Ps]]:
        """Of each pairing: p of each test by planted size, of the features that every test can test.

        Size 0 is the pairing itself; the other sizes are planted into the first n_planted pairings.
        """
        gradients = self.gradients[energy]
        flat = gradients.reshape(-1, gradients.shape[-1])
        along = (flat @ -self.unit_rows[self.references].T).reshape(*gradients.shape[:2], -1)
        pairs = []
        for pairing in pairings:
            contexts = self.contexts(pairing)
            counted = contexts.counted()
            pairs.append(_Paired(pairing, contexts, counted, contexts.tested(along[pairing.gradients], counted)))
        parts: list[dict[float, list[Part]]] = [defaultdict(list) for _ in pairings]
        for features in tqdm(self._chunks(), desc=energy):
            all_a, all_g = self.activations(features), self._along(gradients, features)
            cosines = (self.unit_rows[features] @ self.unit_rows[self.references].T).astype(np.float64)
            cosines /= np.linalg.norm(self.decoder[features], axis=1)[:, None]
            for i, (paired, by_size) in enumerate(zip(pairs, parts, strict=True)):
                a, g = all_a[paired.pairing.activations], all_g[paired.pairing.gradients]
                within = paired.contexts.tested(g, paired.counted)
                by_size[0.0].append(paired.part(a, g, within))
                if i < n_planted:
                    effect, effect_within = unit_effect(a, within, paired.contexts)
                    # The effect is a gradient along d_j; the references see of it what d_j has along them.
                    seen = np.einsum("ctf,ctf->f", a, effect_within)[:, None] * cosines
                    for size in sizes:
                        both = (x + np.float32(size) * y for x, y in ((g, effect), (within, effect_within)))
                        part = paired.part(a, *both)
                        by_size[size].append(part._replace(along=by_size[0.0][-1].along + size * seen))
        return [{size: self._joined(chunks) for size, chunks in by_size.items()} for by_size in parts]

    def _joined(self, parts: Sequence[Part]) -> Ps:
        """p of all chunks' features with enough to test, with that of t_specific."""
        enough, sum_s, sum_gc2, along = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("enough", "sum_s", "sum_gc2", "along")
        )
        features = np.flatnonzero(enough)
        # The cosine is not asked for, so one direction with nothing along it stands for the probes.
        along = np.column_stack([along, np.zeros(len(along))])
        compared = DecoderRows(self.decoder, self.references, np.eye(1, self.decoder.shape[1]))
        sizes = Sizes(compared, sum_s, sum_gc2)
        found = direction_test(sizes, features, along[features])
        p = {test: np.concatenate([part.p[test] for part in parts])[features] for test in parts[0].p}
        return {**{test: p[test] for test in TESTS if test in p}, "t_specific": found.p, "reference": found.p_reference}

    def compared_with_stored(self, energy: str, p: Ps) -> dict[str, Any]:
        """Whether p of the true pairing and the counted tokens are what ingest stored; largest differences of p."""
        names = {"within": "p_value", "z_documents": "p_documents", "t_specific": "p_specific"}
        query = f"SELECT {', '.join(names.values())} FROM efas WHERE energy = $energy AND layer = $layer"
        where = "gradient = 'decoder' AND category = 'all' AND p_value IS NOT NULL ORDER BY feature"
        with Warehouse(self.db) as warehouse:
            stored = warehouse.sql(f"{query} AND {where}", energy=energy, layer=self.layer).numpy()
        counted = self.contexts(true_pairing(self.corpus)).counted()
        same = len(stored["p_value"]) == len(p["within"])
        differences = {
            test: float(np.nanmax(np.abs(np.ma.filled(np.ma.asarray(stored[name]), np.nan) - p[test])))
            for test, name in names.items()
            if same
        }
        return {
            "energy": energy, "features_tested": [len(stored["p_value"]), len(p["within"])],
            "largest_difference_of_p": differences, "same_counted_tokens": bool((counted == self.stored_counted).all()),
        }  # fmt: skip
