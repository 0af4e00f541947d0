"""A warehouse with stored gradient vectors in, what a layer's statistics come from out, by context and feature.

m_cj = −Σ_t a·∇̃ over the counted tokens of a context is all that z, t_specific and z by documents need of a feature:
S_c = ⟨m_cj, d_j⟩. There is one such vector for each feature that is active in a context, so they are made in parts.

Version 3 of the statistics centres ∇̃ once more over the counted tokens, version 2 did not: the stored z tells which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from association import Contexts, centred_over
from null_situations import true_pairing
from numpy.typing import NDArray
from scipy import sparse
from stored_run import Run
from tqdm import tqdm

from energy_lens import Warehouse
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.ingest.statistics.significance import MIN_TEST_CONTEXTS, MIN_TEST_DOCUMENTS, MIN_TEST_TOKENS
from energy_lens.ingest.statistics.stream import energy_vectors, row_mates

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Vectors of (context, feature) pairs held at once: 32,768 of 576 numbers are 75 MB.
PAIRS = 32_768

#: Tokens whose products are summed in float32.
TOKENS = 4_096

#: What `efas` of version 3 says of a feature, beside z.
STORED = ("t_specific", "cosine", "p_reference", "z_documents", "p_documents", "ci_low", "ci_high")

#: Largest difference from the stored z, for |z| > 1 as a share of it: float32 gradients give 1e-6.
Z_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Pairs:
    """Contexts and the features that are active at their counted tokens, in the order of features."""

    features: Ids  #: [pair]
    contexts: Ids  #: [pair]
    a: sparse.csr_array  #: activations [pair, context·position]
    n_active: Ids  #: [pair] active counted tokens


@dataclass
class Measured:
    """One layer and energy: what every statistic of its features comes from."""

    gradients: Singles  #: ∂E/∂x [context, position, d_model], 0 where not included
    contexts: Contexts
    decoder: Singles  #: [d_sae, d_model]
    features: Ids  #: [activation]
    tokens: Ids  #: [activation] context·position
    activations: Singles  #: [activation]
    stored_z: Floats  #: of `efas` [d_sae], NaN where it tests nothing
    stored: Mapping[str, Floats] = field(default_factory=dict)  #: what else `efas` says [d_sae], of version 3
    references: Ids = field(default_factory=lambda: np.zeros(0, np.int64))  #: features whose rows all are compared with

    version: int = 3  #: of the statistics, 2 or 3, which the stored z decides
    difference: float = np.nan  #: largest one from the stored z

    def __post_init__(self) -> None:
        self.counted = self.contexts.counted()
        less_mates = self.contexts.less_mates(self.contexts.centred(self.gradients))
        self._less_mates: Singles = less_mates * self.counted[..., None]
        self.pairs = make_pairs(self.features, self.tokens, self.activations, self.counted)
        self.enough = enough(self.pairs, self.contexts.documents, len(self.decoder))

    @cached_property
    def tested(self) -> Singles:
        """∇̃ [context, position, d_model], 0 where not counted."""
        return centred_over(self._less_mates, self.counted) if self.version > 2 else self._less_mates

    @cached_property
    def null(self) -> Singles:
        """∇̃ of the negative control: each context has that of the next one of its row [context, position, d_model].

        As version 3 has it, whichever the run is of.
        """
        return null_gradients(self.gradients, self.contexts)

    def vectors(self, tested: Singles) -> Iterator[tuple[slice, Singles]]:
        """−Σ_t a·∇̃ by pair: pairs and [pair, d_model], in parts."""
        flat = tested.reshape(-1, tested.shape[-1])
        for start in range(0, len(self.pairs.features), PAIRS):
            part = slice(start, start + PAIRS)
            yield part, -(self.pairs.a[part] @ flat)

    def s(self, directions: Sequence[Singles], tested: Singles | None = None) -> Floats:
        """S_c along directions, each with a row for every feature [d_sae, d_model]: [direction, pair]."""
        tested = self.tested if tested is None else tested
        s = np.empty((len(directions), len(self.pairs.features)))
        for part, vectors in self.vectors(tested):
            for i, rows in enumerate(directions):
                s[i, part] = np.einsum("pd,pd->p", vectors, rows[self.pairs.features[part]])
        return s

    def z(self, s: Floats, clusters: Ids | None = None) -> Floats:
        """ΣS/√ΣS² by feature over contexts, or over clusters of contexts [context]; s: [pair]; out: [d_sae]."""
        return z_and_clusters(s, self.pairs, clusters, len(self.decoder))[0]

    def m(self, tested: Singles | None = None) -> Floats:
        """m_j = Σ_c −Σ_t a·∇̃ by feature [d_sae, d_model]."""
        tested = self.tested if tested is None else tested
        m = np.zeros(self.decoder.shape)
        for part, vectors in self.vectors(tested):
            features = self.pairs.features[part]
            starts = np.flatnonzero(np.diff(features, prepend=-1))
            m[features[starts]] += np.add.reduceat(vectors.astype(np.float64), starts)
        return m

    def check(self) -> None:
        """Find out which version the stored z is of. Raises AssertionError when it is of neither."""
        is_stored = np.isfinite(self.stored_z)
        assert (is_stored == self.enough).all(), "other features are tested than those of the run"
        differences = {}
        for version in (3, 2):
            self.version = version
            self.__dict__.pop("tested", None)  # made anew
            z = self.z(self.s([self.decoder])[0])
            apart = np.abs(z - self.stored_z) / np.maximum(np.abs(self.stored_z), 1)
            self.difference = differences[version] = float(apart[is_stored].max(initial=0))
            if self.difference < Z_TOLERANCE:
                return
        raise AssertionError(f"z differs from the stored one by {differences} (version: difference)")


def make_pairs(features: Ids, tokens: Ids, activations: Singles, counted: Mask) -> Pairs:
    """Pairs from activations [n] at tokens (context·position); those that are not counted are left out."""
    n_positions = counted.shape[1]
    is_counted = counted.reshape(-1)[tokens]
    features, tokens, activations = (x[is_counted] for x in (features, tokens, activations))
    keys, pair = np.unique(features * len(counted) + tokens // n_positions, return_inverse=True)
    a = sparse.csr_array((activations, (pair, tokens)), shape=(len(keys), counted.size))
    return Pairs(keys // len(counted), keys % len(counted), a, np.bincount(pair))


def enough(pairs: Pairs, documents: Ids, d_sae: int) -> Mask:
    """Features with the tokens, contexts and documents that the within-context test needs [d_sae]."""
    n_tokens = np.bincount(pairs.features, pairs.n_active, d_sae)
    n_contexts = np.bincount(pairs.features, minlength=d_sae)
    n_documents = z_and_clusters(np.ones(len(pairs.features)), pairs, documents, d_sae)[1]
    result: Mask = (
        (n_tokens >= MIN_TEST_TOKENS) & (n_contexts >= MIN_TEST_CONTEXTS) & (n_documents >= MIN_TEST_DOCUMENTS)
    )
    return result


def z_and_clusters(s: Floats, pairs: Pairs, clusters: Ids | None, d_sae: int) -> tuple[Floats, Ids]:
    """ΣS/√ΣS² by feature, S the sums of s [pair] over clusters of contexts [context], and how many S are not 0."""
    features = pairs.features
    if clusters is not None:
        labels = np.unique(clusters, return_inverse=True)[1]
        n_labels = int(labels.max()) + 1
        keys, place = np.unique(features * n_labels + labels[pairs.contexts], return_inverse=True)
        s, features = np.bincount(place, s, len(keys)), keys // n_labels
    total, squares = (np.bincount(features, x, d_sae) for x in (s, s**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / np.sqrt(squares), np.bincount(features, s != 0, d_sae).astype(np.int64)


def null_gradients(gradients: Singles, contexts: Contexts) -> Singles:
    """∇̃ of the negative control as the stream has it, 0 where it does not count [context, position, d_model].

    The next context is that of the row in the order of contexts, not of lanes, so that pairs differ from the stored.
    """
    null = np.zeros_like(gradients)
    for row in np.unique(contexts.rows):
        places = np.flatnonzero(contexts.rows == row)
        mates = row_mates(torch.from_numpy(contexts.included[places]))
        null[places] = energy_vectors(torch.from_numpy(gradients[places]), mates).null.numpy()
    return null


def outer(tested: Singles) -> Floats:
    """Σ∇̃∇̃ᵀ over tokens [d_model, d_model]; float32 inside a part, float64 over parts."""
    flat = tested.reshape(-1, tested.shape[-1])
    parts = (flat[i : i + TOKENS] for i in range(0, len(flat), TOKENS))
    result: Floats = sum(((part.T @ part).astype(np.float64) for part in parts), np.zeros((flat.shape[1],) * 2))
    return result


def places(
    db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None
) -> Iterator[tuple[tuple[int, str], Measured]]:
    """What is measured at each layer and energy, and has been checked against the stored z."""
    current = CurrentRun(db)
    assert current.facts.store_gradients, "the run has no gradient vectors: elw ingest --store-gradients"
    chosen_layers = current.chosen(layers, current.facts.layers, "layer")
    chosen_energies = current.chosen(energies, current.facts.energies, "energy")
    where = "layer = $layer AND energy = $energy AND gradient = 'decoder' AND category = 'all'"
    progress = tqdm(total=len(chosen_layers) * len(chosen_energies), desc="layers and energies")
    for layer in chosen_layers:
        sae = current.sae(layer)
        assert sae.normalisation == "none", "a normalised SAE scales each token's gradient, and scales are not stored"
        decoder = sae.W_dec.numpy()
        run = Run(db, decoder, layer)
        places_of_tokens = np.searchsorted(run.ids, run.active["token_id"] // run.length) * run.length
        tokens = places_of_tokens + run.active["token_id"] % run.length
        for energy in chosen_energies:
            with Warehouse(db) as warehouse:
                # A file of before version 3 has none of the later columns, unless it was migrated.
                known = warehouse.sql("SELECT column_name AS name FROM duckdb_columns() WHERE table_name = 'efas'")
                columns = ("z", *(STORED if {*STORED} <= {*known.numpy()["name"]} else ()))
                names = ", ".join(("feature", *columns))
                rows = warehouse.sql(f"SELECT {names} FROM efas WHERE {where}", layer=layer, energy=energy).numpy()
            stored = {name: np.full(len(decoder), np.nan) for name in columns}
            for name, values in stored.items():
                values[rows["feature"]] = filled(rows[name])
            measured = Measured(
                run.vectors(energy), run.contexts(true_pairing(run.corpus)), decoder,
                run.active["feature"].astype(np.int64), tokens, run.active["activation"], stored.pop("z"), stored,
                run.references if stored else np.zeros(0, np.int64),
            )  # fmt: skip
            measured.check()
            yield (layer, energy), measured
            progress.update()
    progress.close()


def filled(values: NDArray[Any]) -> NDArray[Any]:
    """Values of a query, NaN where they are NULL."""
    return np.ma.filled(values, np.nan) if np.ma.isMaskedArray(values) else np.asarray(values)
