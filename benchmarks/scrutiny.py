"""What a hostile reader asks of the significance test: a warehouse with stored gradient vectors in, tables out.

    python benchmarks/scrutiny.py FILE.duckdb [--layers 15,20] [--energies nll,hopfield] [--seed 0]
                                  [--sections direction,specific,documents,unequal,intervals,selection] [--output DIR]

FILE comes from `elw ingest --store-gradients`. Sections, each of them Markdown tables:

  direction   z with another direction in place of the feature's decoder row, all else as it is.
  specific    the test that compares directions: t_specific, its variants, their level and their power.
  documents   z by documents in place of contexts, and how far z of two halves of the documents differ.
  unequal     synthetic contexts of unequal length, in which nothing is true.
  intervals   coverage of intervals of a correlation in simulations, and their widths on this run.
  selection   size in half B of what was found in half A.

What is computed from the vectors must equal the stored z; the script stops when it does not. Unequal and the simulated
part of intervals do not depend on FILE. DIR/scrutiny.md holds what is printed, DIR/scrutiny.json the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from association import Contexts
from intervals import METHODS, MIN_EFFECTIVE, Documents, Sums, intervals, simulate
from null_situations import Noise, streamed, synthetic, true_pairing
from numpy.typing import NDArray
from scipy import sparse
from significance import Run, markdown
from tqdm import tqdm

from energy_lens import Warehouse
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.ingest.statistics.significance import (
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    benjamini_hochberg,
    two_sided_p,
    two_sided_t_p,
)
from energy_lens.ingest.statistics.stream import energy_vectors, row_mates

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: A table, its head first, under a heading.
Table = tuple[str, list[list[str]]]

#: Vectors of (context, feature) pairs held at once: 32,768 of 576 numbers are 75 MB.
PAIRS = 32_768

#: Tokens whose g of all features is held at once.
TOKENS = 4_096

#: Random directions, reference rows and halves are drawn this many times, and counts are means over draws.
DRAWS = 5

#: Largest difference from the stored z, for |z| > 1 as a share of it: float32 gradients give 1e-6.
Z_TOLERANCE = 1e-5

#: Reference rows of t_specific.
REFERENCES = (16, 64, 256)

#: Reference rows of the variants.
K = 64

#: A row whose feature is active at a larger share of a feature's tokens co-fires with it: 8 of 2,048 are 0.4 %.
CO_FIRING = 0.1

#: Rows with a larger |cosine| are alike.
ALIKE = 0.3

#: Planted cosines of m_j with the tested direction.
COSINES = (0.1, 0.2, 0.3)

#: Below this share of their mean, eigenvalues of Σ∇̃∇̃ᵀ are lifted before it is inverted.
RIDGE = 1e-3

#: Documents clusters need, as for intervals.
MIN_DOCUMENTS = 10

#: Seeds of synthetic data, each of 64 features.
SEEDS = 30

UNEQUAL = {
    "equal lengths, drift": Noise(levels=0.3, drift=0.5),
    "lengths by context": Noise(levels=0.3, drift=0.5, lengths="contexts", firing=0.5),
    "lengths by document": Noise(levels=0.3, drift=0.5, lengths="documents", firing=0.5),
    "short tails": Noise(levels=0.3, drift=0.5, lengths="tails", firing=0.5),
}

#: Repetitions of each simulated interval.
REPETITIONS = 1_000

#: Simulated documents.
N_DOCUMENTS = (10, 20, 40)
CORRELATIONS = (0.0, 0.1, 0.5, 0.95)
SLOPES = (0.0, 0.3)

#: Features of a layer that selection takes: the largest.
TOP = 20

SECTIONS = ("direction", "specific", "documents", "unequal", "intervals", "selection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("warehouse", type=Path, help="with stored gradient vectors")
    parser.add_argument("--layers", type=_numbers, help="default: all of the run")
    parser.add_argument("--energies", type=_names, help="default: all of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sections", type=_names, default=SECTIONS, help="default: all")
    parser.add_argument("--output", type=Path, help="folder for scrutiny.md and scrutiny.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose among {', '.join(SECTIONS)}")
    tables = scrutinise(arguments.warehouse, arguments.layers, arguments.energies, arguments.sections, arguments.seed)
    text = "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "scrutiny.md").write_text(text + "\n", encoding="utf-8")
        (arguments.output / "scrutiny.json").write_text(json.dumps(tables, indent=1), encoding="utf-8")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def scrutinise(
    db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None, sections: Sequence[str], seed: int
) -> list[Table]:
    """The tables of the sections, in the order of SECTIONS."""
    by_place = {"direction": direction, "specific": specific, "documents": documents, "intervals": stored_intervals}
    results: dict[str, dict[tuple[int, str], Any]] = {name: {} for name in by_place}
    differences = {}
    if set(by_place) & set(sections):
        for place, measured in places(db, layers, energies):
            differences[place] = [f"{measured.difference:.1e}", "yes" if measured.a_centred else "no"]
            for name, measure in by_place.items():
                if name in sections:
                    results[name][place] = measure(
                        measured, np.random.default_rng([seed, *place[1].encode(), place[0]])
                    )
    tables: list[Table] = []
    if differences:
        head = ["layer", "energy", "largest difference from the stored z", "a centred in S_c"]
        tables.append(("Against the stored z", [head, *([str(p[0]), p[1], *row] for p, row in differences.items())]))
    if "direction" in sections:
        tables += direction_tables(results["direction"])
    if "specific" in sections:
        tables += specific_tables(results["specific"])
    if "documents" in sections:
        tables += [*document_tables(results["documents"]), halves_table(db, layers, energies)]
    if "unequal" in sections:
        tables.append(unequal_table(seed))
    if "intervals" in sections:
        tables += [coverage_table(seed), stored_intervals_table(results["intervals"])]
    if "selection" in sections:
        tables.append(selection_table(db, layers, energies))
    return tables


# ------------------------------------------------------------------------------------------------ arrays


@dataclass(frozen=True)
class Pairs:
    """Contexts and the features that are active at their counted tokens, in the order of features."""

    features: Ids  #: [pair]
    contexts: Ids  #: [pair]
    a: sparse.csr_array  #: activations [pair, context·position]
    mean_a: Floats  #: [pair] mean activation over the context's counted tokens
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

    a_centred: bool = False  #: S_c is Σa·g̃ − (Σa/n)(Σg̃), which of the two the stored z decides
    difference: float = np.nan  #: largest one from the stored z

    def __post_init__(self) -> None:
        self.counted = self.contexts.counted()
        tested = self.contexts.less_mates(self.contexts.centred(self.gradients))
        self.tested: Singles = tested * self.counted[..., None]  #: ∇̃ [context, position, d_model]
        self.pairs = make_pairs(self.features, self.tokens, self.activations, self.counted)
        self.enough = enough(self.pairs, self.contexts.documents, len(self.decoder))

    @cached_property
    def null(self) -> Singles:
        """∇̃ of the negative control: each context has that of the next one of its row [context, position, d_model]."""
        return null_gradients(self.gradients, self.contexts)

    def vectors(self, tested: Singles, *, a_centred: bool) -> Iterator[tuple[slice, Singles]]:
        """−Σ_t a·∇̃ by pair, a less its mean over the counted tokens if so said: pairs and [pair, d_model], in parts."""
        flat, sums = tested.reshape(-1, tested.shape[-1]), tested.sum(1)
        for start in range(0, len(self.pairs.features), PAIRS):
            part = slice(start, start + PAIRS)
            vectors = -(self.pairs.a[part] @ flat)
            if a_centred:
                vectors += self.pairs.mean_a[part, None].astype(np.float32) * sums[self.pairs.contexts[part]]
            yield part, vectors

    def s(self, directions: Sequence[Singles], tested: Singles | None = None) -> Floats:
        """S_c along directions, each with a row for every feature [d_sae, d_model]: [direction, pair]."""
        tested = self.tested if tested is None else tested
        s = np.empty((len(directions), len(self.pairs.features)))
        for part, vectors in self.vectors(tested, a_centred=self.a_centred):
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
        for part, vectors in self.vectors(tested, a_centred=self.a_centred):
            features = self.pairs.features[part]
            starts = np.flatnonzero(np.diff(features, prepend=-1))
            m[features[starts]] += np.add.reduceat(vectors.astype(np.float64), starts)
        return m

    def check(self) -> None:
        """Find out whether the stored z centres a. Raises AssertionError when it is neither of the two."""
        differences = {}
        for a_centred in (False, True):
            self.a_centred = a_centred
            z = self.z(self.s([self.decoder])[0])
            is_stored = np.isfinite(self.stored_z)
            apart = np.abs(z - self.stored_z) / np.maximum(np.abs(self.stored_z), 1)
            differences[a_centred] = float(apart[is_stored].max(initial=0))
        assert (np.isfinite(self.stored_z) == self.enough).all(), "other features are tested than those of the run"
        self.a_centred = differences[True] < differences[False]
        self.difference = differences[self.a_centred]
        assert self.difference < Z_TOLERANCE, f"z differs from the stored one by {self.difference:.2g}"


def make_pairs(features: Ids, tokens: Ids, activations: Singles, counted: Mask) -> Pairs:
    """Pairs from activations [n] at tokens (context·position); those that are not counted are left out."""
    n_positions = counted.shape[1]
    is_counted = counted.reshape(-1)[tokens]
    features, tokens, activations = (x[is_counted] for x in (features, tokens, activations))
    keys, pair = np.unique(features * len(counted) + tokens // n_positions, return_inverse=True)
    a = sparse.csr_array((activations, (pair, tokens)), shape=(len(keys), counted.size))
    contexts = keys % len(counted)
    sums = np.bincount(pair, activations.astype(np.float64), len(keys))
    return Pairs(keys // len(counted), contexts, a, sums / counted.sum(1)[contexts], np.bincount(pair))


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
    query = "SELECT feature, z FROM efas WHERE layer = $layer AND energy = $energy AND gradient = 'decoder' AND category = 'all'"  # noqa: E501
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
                stored = warehouse.sql(query, layer=layer, energy=energy).numpy()
            stored_z = np.full(len(decoder), np.nan)
            stored_z[stored["feature"]] = _filled(stored["z"])
            measured = Measured(
                run.vectors(energy), run.contexts(true_pairing(run.corpus)), decoder,
                run.active["feature"].astype(np.int64), tokens, run.active["activation"], stored_z,
            )  # fmt: skip
            measured.check()
            yield (layer, energy), measured
            progress.update()
    progress.close()


# ------------------------------------------------------------------------------------------------ p values in tables


class Rejected(NamedTuple):
    """Of several families of p, each with a false discovery rate of its own."""

    n: int
    at_5: float  #: share below 0.05
    at_01: float  #: share below 0.001
    n_q: int  #: q < 0.05


def rejected(families: Sequence[Floats]) -> Rejected:
    """families: p by layer, without NaN."""
    p = np.concatenate(list(families)) if families else np.zeros(0)
    n_q = sum(int((benjamini_hochberg(family) < 0.05).sum()) for family in families if len(family))
    return Rejected(len(p), float((p < 0.05).mean()), float((p < 0.001).mean()), n_q)


def _levels(families: Sequence[Floats]) -> str:
    total = rejected(families)
    return f"{total.at_5:.1%} / {total.at_01:.2%}"


def _with_totals(results: Mapping[tuple[int, str], Any]) -> Iterator[tuple[list[str], list[Any]]]:
    """First cells and results of each layer and energy, then of each energy over all layers."""
    energies = list(dict.fromkeys(energy for _, energy in results))
    for energy in energies:
        of_energy = {layer: result for (layer, name), result in results.items() if name == energy}
        for layer, result in of_energy.items():
            yield [energy, str(layer)], [result]
        if len(of_energy) > 1:
            yield [energy, "all"], list(of_energy.values())


# ------------------------------------------------------------------------------------------------ direction


def direction(measured: Measured, generator: np.random.Generator) -> dict[str, list[Floats]]:
    """z of the tested features [tested] along each kind of direction, by draw."""
    rows, is_tested = measured.decoder, measured.enough
    tested = np.flatnonzero(is_tested)

    def isotropic() -> Singles:
        return generator.standard_normal(rows.shape).astype(np.float32)

    def another() -> Singles:
        others = np.arange(len(rows))
        others[tested] = np.roll(tested, generator.integers(1, max(len(tested), 2)))
        return rows[others]

    def mix() -> Singles:
        return generator.standard_normal((len(rows), len(rows))).astype(np.float32) @ rows

    kinds: dict[str, list[Singles]] = {"the feature's row": [rows]}
    kinds |= {
        name: [draw() for _ in range(DRAWS)]
        for name, draw in (
            ("isotropic", isotropic), ("another tested feature's row", another), ("mix of all rows", mix),
        )
    }  # fmt: skip
    z = {name: [measured.z(s)[is_tested] for s in measured.s(directions)] for name, directions in kinds.items()}
    z["negative control"] = [measured.z(measured.s([rows], measured.null)[0])[is_tested]]
    return z


def direction_tables(results: Mapping[tuple[int, str], dict[str, list[Floats]]]) -> list[Table]:
    kinds = list(next(iter(results.values())))
    rows = [["energy", "layer", "features", *(f"{kind}: > 1.96 / mean z² / q < 0.05" for kind in kinds)]]
    for first, several in _with_totals(results):
        cells = []
        for kind in kinds:
            z = np.concatenate([draw for result in several for draw in result[kind]])
            z = z[np.isfinite(z)]
            n_draws = len(several[0][kind])
            n_q = sum(
                rejected([two_sided_p(draw[np.isfinite(draw)])]).n_q for result in several for draw in result[kind]
            )
            cells.append(f"{(np.abs(z) > 1.96).mean():.1%} / {(z**2).mean():.2f} / {n_q / n_draws:.3g}")
        rows.append([*first, f"{sum(len(result[kinds[0]][0]) for result in several):,}", *cells])
    return [("Direction: z along other directions", rows)]


# ------------------------------------------------------------------------------------------------ specific


@dataclass(frozen=True)
class Variant:
    """A way to compare m_j along d_j with m_j along reference rows."""

    sizes: Floats  #: N_jk [tested, row]
    planted: Floats  #: what a unit vector along the rows in front adds to N: [row, row]
    candidates: Mask  #: rows that may be references [tested, row]
    k: int | None = K  #: reference rows; None: all candidates, and p is the rank
    shared: bool = False  #: all features have the same references


@dataclass
class Specific:
    """What a variant gives: p of the tested features, by draw of references."""

    true: list[Floats] = field(default_factory=list)  #: along d_j
    null: list[Floats] = field(default_factory=list)  #: along another row, drawn as references are
    any_row: list[Floats] = field(default_factory=list)  #: along any other row
    noise: list[Floats] = field(default_factory=list)  #: along d_j with m_j of the negative control
    power: dict[float, list[Floats]] = field(default_factory=dict)  #: planted along the row of `null`, by cosine


class SpecificResult(NamedTuple):
    """Of one layer and energy."""

    variants: dict[str, Specific]
    z_p: Floats  #: p of z [tested]
    cosine: Floats  #: of m_j with d_j [tested]


def readers(decoder: Floats, covariance: Floats) -> dict[str, Floats]:
    """Vectors v_k [row, d_model] with N_jk = ⟨m_j, v_k⟩, by what sizes are measured in.

    `g` is d_k over the root of d_kᵀCd_k, the size of g along it. `unit` is d_k over its length. `inverse` is C⁻¹d_k
    over the root of d_kᵀC⁻¹d_k: ∇̃ and d_k are both divided by the root of C. `less mean` is `g` after the mean of all
    unit rows was subtracted.
    """
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-30)
    less_mean = unit - unit.mean(0)
    ridge = covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.solve(ridge, unit.T).T

    def scaled(rows: Floats) -> Floats:
        size = np.einsum("kd,kd->k", rows @ covariance, rows)
        result: Floats = rows / np.sqrt(np.maximum(size, 1e-300))[:, None]
        return result

    return {
        "g": scaled(unit),
        "unit": unit,
        "inverse": inverse / np.sqrt(np.einsum("kd,kd->k", inverse, unit))[:, None],
        "less mean": scaled(less_mean),
    }


def draw_references(variant: Variant, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """k reference rows of each feature [tested, k], and one more, the null's [tested]."""
    n_features, n_rows = variant.candidates.shape
    keys = generator.random((1 if variant.shared else n_features, n_rows))
    keys = np.where(variant.candidates, keys, np.inf)
    k = variant.k or 0
    drawn = np.argpartition(keys, k, axis=1)[:, : k + 1]
    return drawn[:, :k], drawn[:, k]


def t_specific(sizes: Floats, tested_sizes: Floats, references: Ids) -> Floats:
    """N_jj over the root mean square of N_jk over references [tested, k]: [tested]; sizes: [tested, row]."""
    spread = np.sqrt(np.mean(np.take_along_axis(sizes, references, 1) ** 2, axis=1))
    t: Floats = tested_sizes / spread
    return t


def rank_p(sizes: Floats, tested_sizes: Floats, candidates: Mask) -> Floats:
    """Share of candidates, the tested row with them, whose |N| is at least that of the tested row [tested]."""
    larger = ((np.abs(sizes) >= np.abs(tested_sizes)[:, None]) & candidates).sum(1)
    p: Floats = (larger + 1) / (candidates.sum(1) + 1)
    return p


def specific_p(
    variant: Variant, noise: Floats, lengths: Floats, tested: Ids, generator: np.random.Generator
) -> Specific:
    """p by draw, under the truth, the nulls and planted effects.

    noise: N of the negative control [tested, row]; lengths: ‖m_j‖ [tested]; tested: the features' ids.
    """
    p_values = Specific(power={cosine: [] for cosine in COSINES})
    each = np.arange(len(tested))
    n_needed = (variant.k or K) + 1
    usable = variant.candidates.sum(1) >= n_needed
    for _ in range(DRAWS):
        references, other = draw_references(variant, generator)
        anybody = (tested + generator.integers(1, variant.sizes.shape[1], len(tested))) % variant.sizes.shape[1]

        def p(sizes: Floats, rows: Ids, references: Ids = references) -> Floats:
            along = sizes[each, rows]
            if variant.k is None:
                without = variant.candidates.copy()
                without[each, rows] = False
                return rank_p(sizes, along, without)[usable]
            return two_sided_t_p(t_specific(sizes, along, references), variant.k)[usable]

        p_values.true.append(p(variant.sizes, tested))
        p_values.null.append(p(variant.sizes, other))
        p_values.any_row.append(p(variant.sizes, anybody))
        p_values.noise.append(p(noise, tested))
        for cosine in COSINES:
            planted = variant.sizes + cosine * lengths[:, None] * variant.planted[other]
            p_values.power[cosine].append(p(planted, other))
        if variant.k is None:
            break  # nothing but the null's row is drawn
    return p_values


def specific(measured: Measured, generator: np.random.Generator) -> SpecificResult:
    """p of each variant, p of z and the cosine of m_j with d_j, of the tested features."""
    tested = np.flatnonzero(measured.enough)
    decoder = measured.decoder.astype(np.float64)
    m, null_m = measured.m()[tested], measured.m(measured.null)[tested]
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    lengths = np.linalg.norm(m, axis=1)
    vectors = readers(decoder, outer(measured.tested))
    null_vectors = readers(decoder, outer(measured.null))
    sizes = {name: m @ v.T for name, v in vectors.items()}
    noise = {name: null_m @ v.T for name, v in null_vectors.items()}
    planted = {name: unit @ v.T for name, v in vectors.items()}
    others = np.ones((len(tested), len(decoder)), bool)
    others[np.arange(len(tested)), tested] = False
    alike = np.abs(unit[tested] @ unit.T) > ALIKE
    among_tested = others & measured.enough
    fires = np.bincount(measured.pairs.features, measured.pairs.n_active, len(decoder)) > 0
    together = co_firing(measured)[tested] > CO_FIRING

    def g(candidates: Mask, k: int | None = K, *, shared: bool = False) -> tuple[str, Variant]:
        return "g", Variant(sizes["g"], planted["g"], candidates, k, shared)

    variants = {f"K = {k}": g(others, k) for k in REFERENCES}
    variants |= {
        f"shared references, K = {K}": g(others, shared=True),
        f"references that fire, K = {K}": g(others & fires),
        f"tested references, K = {K}": g(among_tested),
        f"no co-firing references, K = {K}": g(others & ~together),
        f"no alike references, K = {K}": g(others & ~alike),
        f"neither co-firing nor alike, K = {K}": g(others & ~alike & ~together),
        f"tested, neither co-firing nor alike, K = {K}": g(among_tested & ~alike & ~together),
        "rank among all rows": g(others, None),
        "rank among tested rows": g(among_tested, None),
    }
    for name in ("unit", "inverse", "less mean"):
        variants[f"sizes: {name}, K = {K}"] = name, Variant(sizes[name], planted[name], others)
    results = {
        name: specific_p(variant, noise[reader], lengths, tested, generator)
        for name, (reader, variant) in variants.items()
    }
    z = measured.z(measured.s([measured.decoder])[0])[tested]
    return SpecificResult(results, two_sided_p(z), (m * unit[tested]).sum(1) / lengths)


def co_firing(measured: Measured) -> Floats:
    """Share of a feature's active tokens at which another one is active too [d_sae, d_sae]."""
    shape = (measured.counted.size, len(measured.decoder))
    is_active = sparse.csr_array((np.ones(len(measured.tokens)), (measured.tokens, measured.features)), shape=shape)
    both = (is_active.T @ is_active).toarray()
    share: Floats = both / np.maximum(both.diagonal(), 1)[:, None]
    return share


def specific_tables(results: Mapping[tuple[int, str], SpecificResult]) -> list[Table]:
    def families(several: Sequence[SpecificResult], name: str, kind: Callable[[Specific], list[Floats]]) -> Any:
        return [p for result in several for p in kind(result.variants[name])]

    def n_q(several: Sequence[SpecificResult], name: str) -> float:
        return rejected(families(several, name, lambda v: v.true)).n_q / len(several[0].variants[name].true)

    by_place = [["energy", "layer", "features", "|cosine| median", "z: p / q < 0.05"]]
    by_place[0] += [f"K = {k}: p / q < 0.05" for k in REFERENCES]
    by_place[0] += [f"q < 0.05 by z and K = {K} / z alone / K = {K} alone", "draws agree"]
    by_place[0] += [f"another row, K = {K}: 5 % / 0.1 %", f"negative control, K = {K}"]
    by_variant = [["energy", "variant", "features", "p / q < 0.05", "null like references: 5 % / 0.1 %"]]
    by_variant[0] += ["null any row", "negative control", *(f"planted {cosine:g}: p < 0.05" for cosine in COSINES)]
    for first, several in _with_totals(results):
        z = rejected([result.z_p for result in several])
        cosine = np.median(np.abs(np.concatenate([result.cosine for result in several])))
        cells = [*first, f"{z.n:,}", f"{cosine:.2f}", f"{z.at_5:.1%} / {z.n_q}"]
        for k in REFERENCES:
            p = np.concatenate(families(several, f"K = {k}", lambda v: v.true))
            cells.append(f"{(p < 0.05).mean():.1%} / {n_q(several, f'K = {k}'):.4g}")
        overlap, agreement = np.zeros(3), np.zeros(2)
        for result in several:
            by_z = benjamini_hochberg(result.z_p) < 0.05
            draws = [benjamini_hochberg(p) < 0.05 for p in result.variants[f"K = {K}"].true]
            overlap += np.mean([[(by_z & t).sum(), (by_z & ~t).sum(), (~by_z & t).sum()] for t in draws], axis=0)
            agreement += [np.sum([(draws[0] & t).sum() for t in draws[1:]]), np.sum([t.sum() for t in draws[1:]])]
        cells += [" / ".join(f"{x:.4g}" for x in overlap), f"{agreement[0] / max(agreement[1], 1):.0%}"]
        cells.append(_levels(families(several, f"K = {K}", lambda v: v.null)))
        cells.append(_levels(families(several, f"K = {K}", lambda v: v.noise)))
        by_place.append(cells)
        if first[1] != "all" and len(results) > len({energy for _, energy in results}):
            continue
        for name in several[0].variants:
            true = np.concatenate(families(several, name, lambda v: v.true))
            n = sum(len(result.variants[name].true[0]) for result in several)
            by_variant.append(
                [
                    first[0], name, f"{n:,}", f"{(true < 0.05).mean():.1%} / {n_q(several, name):.4g}",
                    _levels(families(several, name, lambda v: v.null)),
                    _levels(families(several, name, lambda v: v.any_row)),
                    _levels(families(several, name, lambda v: v.noise)),
                    *(f"{(np.concatenate(families(several, name, lambda v, c=c: v.power[c])) < 0.05).mean():.0%}"
                      for c in COSINES),
                ]
            )  # fmt: skip
    return [("Specific: is it this direction?", by_place), ("Specific: variants", by_variant)]


# ------------------------------------------------------------------------------------------------ documents


class ByDocuments(NamedTuple):
    """Of the tested features [tested]."""

    z_p: Floats
    p: dict[str, Floats]  #: by method; NaN below MIN_DOCUMENTS
    null: dict[str, Floats]  #: of the negative control
    shared: tuple[Floats, Floats]  #: z in random halves of documents, in random halves of contexts: [2·draw, tested]


def document_p(z: Floats, n: Ids, n_documents: int) -> dict[str, Floats]:
    """p of z by documents, from n documents whose S is not 0, of n_documents of the run; NaN below MIN_DOCUMENTS.

    `all` and `active` take z itself for Student's t, with all documents or with those. `student` is the t of the S that
    are not 0, z·√((n−1)/(n−z²)): at a level up to 8 % it is valid for normal S of any variances (Ibragimov and
    Müller 2010), and z² cannot exceed n.
    """
    t = z * np.sqrt((n - 1) / np.maximum(n - z**2, 1e-12))
    freedoms = np.maximum(n - 1, 1)
    p = {
        "all": two_sided_t_p(z, n_documents - 1),
        "active": two_sided_t_p(z, freedoms),  # type: ignore[arg-type]
        "student": two_sided_t_p(t, freedoms),  # type: ignore[arg-type]
    }
    return {method: np.where(n >= MIN_DOCUMENTS, values, np.nan) for method, values in p.items()}


def documents(measured: Measured, generator: np.random.Generator) -> ByDocuments:
    """p by contexts and by documents, and z in halves."""
    is_tested, of_context = measured.enough, measured.contexts.documents
    n_documents = len(np.unique(of_context))
    p = {}
    s = measured.s([measured.decoder])[0]
    null = measured.s([measured.decoder], measured.null)[0]
    for name, values in (("true", s), ("null", null)):
        z, n = z_and_clusters(values, measured.pairs, of_context, len(measured.decoder))
        p[name] = document_p(z[is_tested], n[is_tested], n_documents)
    halves = []
    for units in (of_context, np.arange(len(of_context))):
        labels = np.unique(units, return_inverse=True)[1]
        by_draw = []
        for _ in range(DRAWS):
            is_first = (generator.permutation(labels.max() + 1) % 2 == 0)[labels][measured.pairs.contexts]
            by_draw += [measured.z(np.where(is_first == side, s, 0))[is_tested] for side in (True, False)]
        halves.append(np.array(by_draw))
    return ByDocuments(two_sided_p(measured.z(s)[is_tested]), p["true"], p["null"], (halves[0], halves[1]))


def document_tables(results: Mapping[tuple[int, str], ByDocuments]) -> list[Table]:
    methods = ("all", "active", "student")
    rows = [["energy", "layer", "features", f"in {MIN_DOCUMENTS} documents", "z: q < 0.05"]]
    rows[0] += [f"{m}: p < 0.05 / q < 0.05 / of z's: p / q" for m in methods]
    rows[0] += [f"{m}, negative control: 5 % / 0.1 %" for m in methods]
    rows[0] += ["correlation of z between halves of documents / of contexts / share of documents"]
    for first, several in _with_totals(results):
        z_q = [benjamini_hochberg(result.z_p) < 0.05 for result in several]
        enough_documents = [np.isfinite(result.p["all"]) for result in several]
        cells = [*first, f"{sum(map(len, z_q)):,}", f"{sum(x.sum() for x in enough_documents):,}"]
        cells.append(str(sum(int(x.sum()) for x in z_q)))
        for method in methods:
            kept_p = kept_q = 0
            families = []
            for result, by_z, is_used in zip(several, z_q, enough_documents, strict=True):
                p = result.p[method][is_used]
                families.append(p)
                kept_p += int(((p < 0.05) & by_z[is_used]).sum())
                kept_q += int(((benjamini_hochberg(p) < 0.05) & by_z[is_used]).sum()) if len(p) else 0
            total = rejected(families)
            cells.append(f"{total.at_5:.1%} / {total.n_q} / {kept_p} / {kept_q}")
        nulls = [[result.null[method] for result in several] for method in methods]
        cells += [_levels([p[np.isfinite(p)] for p in families]) for families in nulls]
        cells.append(_shared([result.shared for result in several]))
        rows.append(cells)
    return [("Documents: z by documents", rows)]


def _shared(halves: Sequence[tuple[Floats, Floats]]) -> str:
    """Mean correlation of z between halves of documents and of contexts, and the share that the former lacks."""
    r = []
    for unit in range(2):
        z = np.concatenate([both[unit] for both in halves], axis=1)
        pairs = zip(z[::2], z[1::2], strict=True)
        r.append(np.mean([np.corrcoef(*(x[np.isfinite(a + b)] for x in (a, b)))[0, 1] for a, b in pairs]))
    return f"{r[0]:.2f} / {r[1]:.2f} / {1 - r[0] / r[1]:.0%}"


def _halves(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    """Rows of `efas_halves` tested in both halves: columns of A and B by feature, energy and layer."""
    columns = "layer, feature, energy, score, score_within, q_value, z, z_null"
    table = f"(SELECT {columns}, half FROM efas_halves WHERE gradient = 'decoder' AND category = 'all')"
    sides = ", ".join(f"{side}.{c} AS {c}_{side}" for side in "ab" for c in columns.split(", ")[3:])
    where = "a.half = 'A' AND b.half = 'B' AND a.z IS NOT NULL AND b.z IS NOT NULL"
    query = f"SELECT layer, feature, energy, {sides} FROM {table} a JOIN {table} b USING (layer, feature, energy)"
    with Warehouse(db) as warehouse:
        frame = warehouse.sql(f"{query} WHERE {where} ORDER BY energy, layer, feature").numpy()
    wanted = np.ones(len(frame["layer"]), bool)
    if layers is not None:
        wanted &= np.isin(frame["layer"], layers)
    if energies is not None:
        wanted &= np.isin(frame["energy"].astype(str), energies)
    return {name: _filled(values)[wanted] for name, values in frame.items()}


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """Values of a query, NaN where they are NULL."""
    return np.ma.filled(values, np.nan) if np.ma.isMaskedArray(values) else np.asarray(values)


def _places_of(halves: Mapping[str, NDArray[Any]]) -> Iterator[tuple[list[str], list[Mask]]]:
    energy = halves["energy"].astype(str)
    places = {(int(layer), name): None for layer, name in zip(halves["layer"], energy, strict=True)}
    return _with_totals({(layer, name): (halves["layer"] == layer) & (energy == name) for layer, name in places})


def halves_table(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> Table:
    """Var(z_A − z_B)/2 between the halves of the run's documents: 1 where contexts are replicates."""
    halves = _halves(db, layers, energies)
    rows = [["energy", "layer", "features", "Var(z_A − z_B)/2", "of z_null", "correlation of z_A and z_B"]]
    for first, masks in _places_of(halves):
        here = np.any(masks, axis=0)
        a, b, null_a, null_b = (halves[name][here] for name in ("z_a", "z_b", "z_null_a", "z_null_b"))
        both = np.isfinite(null_a + null_b)
        variance, of_null = np.var(a - b) / 2, np.var((null_a - null_b)[both]) / 2
        rows.append([*first, f"{here.sum():,}", f"{variance:.2f}", f"{of_null:.2f}", f"{np.corrcoef(a, b)[0, 1]:.2f}"])
    return "Documents: z in two halves", rows


# ------------------------------------------------------------------------------------------------ unequal


def unequal_p(a: Singles, g: Singles, contexts: Contexts) -> dict[str, Floats]:
    """p by feature of each test, of the negative control too; NaN where it cannot test [feature]."""
    columns, counted = streamed(a, g, contexts.included)
    tested = contexts.less_mates(contexts.centred(g)) * counted[..., None]
    labels = np.unique(contexts.documents, return_inverse=True)[1]
    p = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        p["z of the stream"] = two_sided_p(columns["sum_s"] / np.sqrt(columns["sum_s2"]))
        p["its z_null"] = two_sided_p(columns["null_s"] / np.sqrt(columns["null_s2"]))
        for name, s in (("a as it is", s_by_context(a, tested)), ("a centred", s_centred(a, tested, counted))):
            p[f"z, {name}"] = two_sided_p(s.sum(0) / np.sqrt((s**2).sum(0)))
            by_document = np.zeros((labels.max() + 1, a.shape[-1]))
            np.add.at(by_document, labels, s)
            z = by_document.sum(0) / np.sqrt((by_document**2).sum(0))
            of_documents = document_p(z, (by_document != 0).sum(0), len(by_document))
            p |= {f"documents ({method}), {name}": of_documents[method] for method in ("all", "student")}
    return p


def s_by_context(a: Singles, tested: Singles) -> Floats:
    """S_c = Σa·g̃ by context and feature; a and g̃ [context, position, feature], g̃ 0 where not counted."""
    result: Floats = np.einsum("ctf,ctf->cf", a.astype(np.float64), tested)
    return result


def s_centred(a: Singles, tested: Singles, counted: Mask) -> Floats:
    """S_c − (Σa/n)(Σg̃), the sums over the context's n counted tokens: Σ of a minus its mean times g̃."""
    sum_a = np.einsum("ctf,ct->cf", a.astype(np.float64), counted)
    n = np.maximum(counted.sum(1), 1)[:, None]
    return s_by_context(a, tested) - sum_a / n * tested.sum(1, dtype=np.float64)


def unequal_table(seed: int) -> Table:
    """Levels in UNEQUAL of each test, SEEDS seeds each."""
    rows: list[list[str]] = []
    for i, (situation, noise) in enumerate(tqdm(UNEQUAL.items(), desc="unequal")):
        seeds = range(1_000_000 * (seed + 1) + 1_000 * i, 1_000_000 * (seed + 1) + 1_000 * i + SEEDS)
        repetitions = [unequal_p(*synthetic(noise, each)) for each in seeds]
        if not rows:
            rows.append(["situation", *(f"{test}: 5 % / 0.1 %" for test in repetitions[0])])
        families = {test: [p[test][np.isfinite(p[test])] for p in repetitions] for test in repetitions[0]}
        rows.append([situation, *map(_levels, families.values())])
    return "Unequal: synthetic contexts, nothing is true", rows


# ------------------------------------------------------------------------------------------------ intervals


def coverage_table(seed: int) -> Table:
    """Coverage and mean half-width of each method in simulations, REPETITIONS each."""
    rows = [["slopes", "sizes", "documents", "r", *(f"{method}: covers / ±" for method in METHODS)]]
    rows[0] += ["effective documents", f"below {MIN_EFFECTIVE}", f"effective, from {MIN_EFFECTIVE}: covers"]
    generator = np.random.default_rng([seed, 5])
    for slopes in SLOPES:
        for unequal in (False, True):
            for n_documents in N_DOCUMENTS:
                for r in CORRELATIONS:
                    sums = simulate(Documents(r, n_documents, unequal, slopes), REPETITIONS, generator)
                    simulated = intervals(sums)
                    covers = {name: np.abs(simulated.r - r) <= width for name, width in simulated.half_widths.items()}
                    enough_documents = simulated.effective >= MIN_EFFECTIVE
                    rows.append(
                        [
                            f"{slopes:g}", "unequal" if unequal else "equal", str(n_documents), f"{r:g}",
                            *(f"{covers[name].mean():.1%} / {width.mean():.3f}"
                              for name, width in simulated.half_widths.items()),
                            f"{np.median(simulated.effective):.1f}", f"{(~enough_documents).mean():.0%}",
                            f"{covers['effective'][enough_documents].mean():.1%}" if enough_documents.any() else "–",
                        ]
                    )  # fmt: skip
    return "Intervals: coverage of 95 % in simulations", rows


def document_sums(measured: Measured) -> Sums:
    """Sums over the included tokens of each document, by tested feature [tested, document]."""
    labels = np.unique(measured.contexts.documents, return_inverse=True)[1]
    n_documents, tested = int(labels.max()) + 1, np.flatnonzero(measured.enough)
    of_token = labels.repeat(measured.contexts.included.shape[1])
    included = measured.contexts.included.reshape(-1)
    rows = -measured.decoder[tested].T
    flat = measured.gradients.reshape(-1, rows.shape[0])
    g, g2 = np.zeros((len(tested), n_documents)), np.zeros((len(tested), n_documents))
    for document in range(n_documents):
        tokens = np.flatnonzero((of_token == document) & included)
        for start in range(0, len(tokens), TOKENS):
            dense = flat[tokens[start : start + TOKENS]] @ rows
            g[:, document] += dense.sum(0, dtype=np.float64)
            g2[:, document] += np.einsum("tf,tf->f", dense, dense, dtype=np.float64)
    place = np.full(len(measured.decoder), -1)
    place[tested] = np.arange(len(tested))
    is_tested = place[measured.features] >= 0
    features, tokens = measured.features[is_tested], measured.tokens[is_tested]
    a = measured.activations[is_tested].astype(np.float64)
    along = np.empty(len(a))
    for start in range(0, len(a), PAIRS):
        part = slice(start, start + PAIRS)
        along[part] = -np.einsum("nd,nd->n", flat[tokens[part]], measured.decoder[features[part]])
    key = place[features] * n_documents + of_token[tokens]
    sum_a, sum_a2, sum_ag = (np.bincount(key, x, g.size).reshape(g.shape) for x in (a, a**2, a * along))
    n = np.bincount(of_token, included, n_documents)
    return Sums(n, sum_a, g, sum_a2, g2, sum_ag)


def stored_intervals(measured: Measured, generator: np.random.Generator) -> Any:
    """r, effective documents and half-widths of the tested features, over all documents of the run."""
    del generator
    return intervals(document_sums(measured))


def stored_intervals_table(results: Mapping[tuple[int, str], Any]) -> Table:
    """How wide intervals are on this run."""
    rows = [["energy", "layer", "features", "|r| median", "effective documents", f"below {MIN_EFFECTIVE}"]]
    rows[0] += ["covariance over effective: median / largest", "covariance over jackknife: largest"]
    rows[0] += [f"{method}: pass ±1 / leave 0 out" for method in METHODS]
    for first, several in _with_totals(results):
        r, effective = (np.concatenate([getattr(x, name) for x in several]) for name in ("r", "effective"))
        widths = {name: np.concatenate([x.half_widths[name] for x in several]) for name in METHODS}
        ratio, to_jackknife = widths["covariance"] / widths["effective"], widths["covariance"] / widths["jackknife"]
        cells = [f"{len(r):,}", f"{np.median(np.abs(r)):.3f}", f"{np.median(effective):.1f}"]
        cells += [f"{(effective < MIN_EFFECTIVE).mean():.0%}", f"{np.median(ratio):.2f} / {ratio.max():.1f}"]
        cells.append(f"{to_jackknife.max():.1f}")
        for name in METHODS:
            passes, leaves = (np.abs(r) + widths[name] > 1).sum(), (np.abs(r) > widths[name]).mean()
            cells.append(f"{passes} / {leaves:.0%}")
        rows.append([*first, *cells])
    return "Intervals: on this run", rows


# ------------------------------------------------------------------------------------------------ selection


def selection_table(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> Table:
    """Size in half B, in the direction of A, over size in A: means over what was selected in A."""
    halves = _halves(db, layers, energies)
    kinds = (f"{TOP} largest |score|, q < 0.05", "all q < 0.05", f"{TOP} largest |score|", "all tested")
    rows = [["energy", "layer", *(f"{kind}: n / score / score_within / q < 0.05 in B" for kind in kinds)]]
    for first, masks in _places_of(halves):
        picked: list[list[Ids]] = [[] for _ in kinds]
        for mask in masks:
            here = np.flatnonzero(mask)
            here = here[np.argsort(-np.abs(halves["score_a"][here]), kind="stable")]
            significant = here[halves["q_value_a"][here] < 0.05]
            for chosen, selected in zip(picked, (significant[:TOP], significant, here[:TOP], here), strict=True):
                chosen.append(selected)
        cells = []
        for chosen in picked:
            selected = np.concatenate(chosen)
            if not len(selected):
                cells.append("0")
                continue
            kept = []
            for name in ("score", "score_within"):
                a, b = halves[f"{name}_a"][selected], halves[f"{name}_b"][selected]
                kept.append(f"{(np.sign(a) * b).sum() / np.abs(a).sum():.2f}")
            again = (halves["q_value_b"][selected] < 0.05).mean()
            cells.append(f"{len(selected)} / {' / '.join(kept)} / {again:.0%}")
        rows.append([*first, *cells])
    return "Selection: size in half B over size in half A", rows


if __name__ == "__main__":
    main()
